r"""The schedules of the VP and sub-VP SDEs.

Song et al. 2021 (arXiv 2011.13456, equations 29 and 32) let $\beta$ grow linearly with time and need only
its integral,

$$B(t) = \beta_{\min} t + \tfrac12 (\beta_{\max} - \beta_{\min})\, t^2, \qquad \alpha = e^{-B/2}.$$

Under the VP SDE $\sigma^2 = 1 - e^{-B}$, under the sub-VP SDE $\sigma = 1 - e^{-B}$: the same $B$ gives
two schedules of $\lambda = \log \alpha^2 / \sigma^2$, which run under any process here. The schedule of
the VE SDE, $\sigma$ geometric in time, is the core's `linear_logsnr`. Their $t \in [t_{\min}, 1]$, since
the log SNR is infinite at 0, is our $t \in [0, 1]$.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp

import diffkit as dk
from diffkit.typing import Scalar, ScalarLike, as_float


class AbstractBeta(dk.AbstractSchedule):
    """A schedule whose `logsnr` is a function of B(t), the integral of a linear beta(t)."""

    t_min: eqx.AbstractVar[float]
    beta_min: float = eqx.field(default=0.1, static=True)
    beta_max: float = eqx.field(default=20.0, static=True)

    def __check_init__(self):
        low, high, t_min = self.beta_min, self.beta_max, self.t_min
        if not 0 <= low <= high < float("inf") or high == 0:
            raise ValueError(
                "beta_min and beta_max must be finite with 0 <= beta_min <= beta_max and "
                f"beta_max > 0, got beta_min={low}, beta_max={high}."
            )
        if not 0 < t_min < 1:
            raise ValueError(f"t_min must be in (0, 1), with logsnr infinite at 0; got {t_min}.")

    @abc.abstractmethod
    def logsnr_at(self, integral: Scalar) -> Scalar:
        """`logsnr` at this integral of beta."""

    @abc.abstractmethod
    def integral_at(self, logsnr: Scalar) -> Scalar:
        """The integral of beta at this `logsnr`: the inverse of `logsnr_at`."""

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        # Two products are exact at both ends in float32.
        t = (1 - t) * self.t_min + t
        half_slope = 0.5 * (self.beta_max - self.beta_min)
        return self.logsnr_at(t * (self.beta_min + half_slope * t))

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        integral = self.integral_at(as_float(logsnr))
        # The form of the quadratic's root without a difference.
        double_slope = 2 * (self.beta_max - self.beta_min)
        t = 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + double_slope * integral))
        return (t - self.t_min) / (1 - self.t_min)


@dk.register("schedule", "vp_beta")
class VPBeta(AbstractBeta):
    r"""The VP SDE with linear beta: $\lambda = -\log(e^B - 1)$. The limit of DDPM's linear schedule.

    It spends most of its time at low signal-to-noise ratios, which is good for samples; the published VP
    models were trained with it. Their own `t_min` is 1e-5 for training and likelihoods (a log SNR of 13.8)
    and 1e-3 for sampling (9.1); here a model has one range for both.

    **Arguments:** `beta_min`, `beta_max`: beta at the ends of their time (appendix C of the paper);
    `t_min`: their time at our t = 0.

    **Raises:** `ValueError` if not 0 <= beta_min <= beta_max, `beta_max` is 0, or `t_min` is not in
    (0, 1).
    """

    t_min: float = eqx.field(default=1e-5, static=True)

    def logsnr_at(self, integral: Scalar) -> Scalar:
        # expm1(B) as exp(B) (1 - exp(-B)): precise for small B, without overflow.
        return -integral - jnp.log(-jnp.expm1(-integral))

    def integral_at(self, logsnr: Scalar) -> Scalar:
        return jax.nn.softplus(-logsnr)


@dk.register("schedule", "sub_vp_beta")
class SubVPBeta(AbstractBeta):
    r"""The sub-VP SDE with linear beta: $\lambda = -2 \log(2 \sinh \tfrac B2)$.

    Since $\sigma$ is the square of that of `vp_beta`, the log SNR at the data end is twice as large: 18.2
    at the default `t_min` of 1e-3, with which the published models sample. They train down to 1e-5, that is
    27.6, where float32 leaves nothing to learn. Choose it to reproduce the paper's sub-VP models.

    **Arguments:** and **Raises:** as for `vp_beta`.
    """

    t_min: float = eqx.field(default=1e-3, static=True)

    def logsnr_at(self, integral: Scalar) -> Scalar:
        return -integral - 2 * jnp.log(-jnp.expm1(-integral))

    def integral_at(self, logsnr: Scalar) -> Scalar:
        return 2 * jnp.arcsinh(0.5 * jnp.exp(-logsnr / 2))
