r"""Processes: what a noise level means for signal and noise.

A process maps `logsnr` to the pair $(\alpha, \sigma)$ with $\log \alpha^2 / \sigma^2 = \lambda$, and
so defines the latent $z_t = \alpha x + \sigma \epsilon$. It does not depend on time.

**The rescaled latent.** $y = z / \alpha = x + \rho\,\epsilon$ with $\rho = \sigma / \alpha = e^{-\lambda /
2}$ is the same for every process (VDM section 5.1). What depends on $\lambda$ alone is therefore written
once, in terms of $y$: the posterior $q(y_s \mid y_t, x)$ (VDM appendix A) and the prior of the last latent.
Each process multiplies both by its $\alpha$.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp

from diffkit.levels import NoiseLevel as NoiseLevel
from diffkit.parameterizations import DataLike, Epsilon, NoiseLike, X, as_array
from diffkit.registry import register
from diffkit.typing import Example, Scalar, ScalarLike, as_float


def rescaled_posterior(
    y_t: Example, x: DataLike, logsnr_t: ScalarLike, logsnr_s: ScalarLike
) -> tuple[Example, Scalar]:
    r"""$q(y_s \mid y_t, x)$ of the rescaled latent, for s less noisy than t.

    With $c = 1 - \mathrm{SNR}_t / \mathrm{SNR}_s = -\mathrm{expm1}(\lambda_t - \lambda_s)$ the mean is
    $(1 - c)\, y_t + c\, x$ and the standard deviation $\rho_s \sqrt c$ (VDM equations 26 to 28, divided
    by $\alpha_s$).

    **Arguments:** `y_t`, the rescaled latent; `x`, data or a prediction of it; `logsnr_t <= logsnr_s`.

    **Returns:** the mean, of the shape of `x`, and the standard deviation, a scalar.

    **Raises:** `TypeError` if `x` is a prediction of something else.
    """
    x = as_array(x, X(), "x")
    step = as_float(logsnr_t) - as_float(logsnr_s)
    c = -jnp.expm1(step)
    std = jnp.exp(-as_float(logsnr_s) / 2) * jnp.sqrt(c)
    return jnp.exp(step) * y_t + c * x, std


def rescaled_forward_std(logsnr_s: ScalarLike, logsnr_t: ScalarLike) -> Scalar:
    r"""The standard deviation of the forward step $q(y_t \mid y_s) = \mathcal N(y_s, \cdot)$, a scalar.

    For the rescaled latent: $\sqrt{\rho_t^2 - \rho_s^2} = \rho_t \sqrt c$ with $c = -\mathrm{expm1}(
    \lambda_t - \lambda_s)$ (VDM appendix A.1, divided by $\alpha_t$), so a short step keeps its precision.

    **Arguments:** `logsnr_t <= logsnr_s`.
    """
    step = as_float(logsnr_t) - as_float(logsnr_s)
    return jnp.exp(-as_float(logsnr_t) / 2) * jnp.sqrt(-jnp.expm1(step))


def log_spread(logsnr_t: ScalarLike, logsnr_s: ScalarLike) -> Scalar:
    r"""The range of the log standard deviation of a reverse step above the posterior's, at least 0.

    It reaches from the posterior's variance, right for data that are a single point, to the forward step's
    $\sigma_{t|s}^2$, right for standard normal data (DDPM section 3.2; improved DDPM section 3.1): half the
    logarithm of the ratio $\sigma_t^2 / \sigma_s^2$ of the variance preserving process.
    """
    noise_t, noise_s = (jax.nn.log_sigmoid(-as_float(value)) for value in (logsnr_t, logsnr_s))
    return 0.5 * (noise_t - noise_s)


def rescaled_prior_std(logsnr: ScalarLike) -> Scalar:
    r"""The standard deviation $\sqrt{1 + \rho^2}$ of the prior of the rescaled latent at t = 1.

    The marginal one for data of unit variance: under the variance preserving process it makes the prior of
    $z_1$ standard normal, as in VDM; any other process gives the same model.
    """
    return jnp.exp(-0.5 * jax.nn.log_sigmoid(as_float(logsnr)))


class AbstractProcess(eqx.Module):
    """A map from `logsnr` to the factors of data and noise."""

    @abc.abstractmethod
    def at(self, logsnr: ScalarLike) -> NoiseLevel:
        """The noise level with this `logsnr`."""

    def perturb(self, x: DataLike, eps: NoiseLike, level: NoiseLevel) -> Example:
        """The latent alpha x + sigma eps, of one shape: a draw of q(z | x) if `eps` is standard normal.

        **Raises:** `TypeError` if `x` or `eps` is a prediction of something else.
        """
        x, eps = as_array(x, X(), "x"), as_array(eps, Epsilon(), "eps")
        return level.alpha * x + level.sigma * eps

    def posterior(
        self, z_t: Example, x: DataLike, level_t: NoiseLevel, level_s: NoiseLevel
    ) -> tuple[Example, Scalar]:
        """q(z_s | z_t, x) for s less noisy than t; for a prediction, p(z_s | z_t) (VDM equation 31).

        **Arguments:** `z_t` and `x` of one shape; `level_t.logsnr <= level_s.logsnr`.

        **Returns:** mean, of the shape of `x`, and standard deviation, a scalar.

        **Raises:** `TypeError` if `x` is a prediction of something else.
        """
        mean, std = rescaled_posterior(z_t / level_t.alpha, x, level_t.logsnr, level_s.logsnr)
        return level_s.alpha * mean, level_s.alpha * std

    def prior_std(self, level: NoiseLevel) -> Scalar:
        """The standard deviation of the prior p(z_1), with `level` the last noise level."""
        return level.alpha * rescaled_prior_std(level.logsnr)


@register("process", "variance_preserving")
class VariancePreserving(AbstractProcess):
    r"""$\alpha^2 + \sigma^2 = 1$: the latent keeps unit variance. DDPM, VDM, the VP SDE.

    $\alpha^2 = \mathrm{sigmoid}(\lambda)$ and $\sigma^2 = \mathrm{sigmoid}(-\lambda)$, by `log_sigmoid`, so
    both keep their relative precision in float32 at both ends.
    """

    def at(self, logsnr: ScalarLike) -> NoiseLevel:
        logsnr = as_float(logsnr)
        alpha = jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr))
        return NoiseLevel(logsnr, alpha, sigma=jnp.exp(0.5 * jax.nn.log_sigmoid(-logsnr)))


@register("process", "variance_exploding")
class VarianceExploding(AbstractProcess):
    r"""$\alpha = 1$, $\sigma = e^{-\lambda / 2}$: noise is added to the data. NCSN, the VE SDE, EDM."""

    def at(self, logsnr: ScalarLike) -> NoiseLevel:
        logsnr = as_float(logsnr)
        return NoiseLevel(logsnr, alpha=jnp.ones_like(logsnr), sigma=jnp.exp(-logsnr / 2))
