r"""Denoisers: a network together with what it predicts and under which process.

The interface is `denoiser(z, logsnr) -> Prediction`, the same for trained networks and for closed forms
(`diffkit.analytic`).
"""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.display import describe
from diffkit.networks import AbstractNetwork
from diffkit.parameterizations import (
    AbstractParameterization,
    DataLike,
    Epsilon,
    NoiseLike,
    P,
    Predicted,
    Score,
    V,
    X,
    as_array,
)
from diffkit.processes import AbstractProcess, NoiseLevel, log_spread, rescaled_posterior
from diffkit.typing import Condition, Example, MaybeKey, Scalar, ScalarLike, as_float


class Prediction(eqx.Module):
    """A denoiser's prediction for one latent, in every form, each with its target (`diffkit.Predicted`).

    **Arguments:** `x`: the expected data, an array or a prediction of them; `eps`: the expected noise,
    likewise; `level`: the noise level of the latent; `spread`: where the log variance of a reverse step
    lies between the posterior's (0) and the forward step's (1), for each dimension, `None` if not
    predicted.

    **Raises:** `TypeError` if `x` or `eps` is a prediction of something else.
    """

    x: Float[Predicted[X], "*shape"]
    eps: Float[Predicted[Epsilon], "*shape"]
    level: NoiseLevel
    spread: Example | None

    def __init__(self, x: DataLike, eps: NoiseLike, level: NoiseLevel, spread: Example | None = None):
        self.x = Predicted(as_array(x, X(), "x"), X())
        self.eps = Predicted(as_array(eps, Epsilon(), "eps"), Epsilon())
        self.level = level
        self.spread = spread

    @classmethod
    def of(cls, predicted: Float[Predicted[P], "*shape"], z: Example, level: NoiseLevel) -> "Prediction":
        """Make one from a prediction of any target and the latent `z` at `level`, by the 2x2 solve.

        ```python
        level = dk.VariancePreserving().at(0.0)
        z, output = jnp.ones(2), jnp.zeros(2)
        prediction = dk.Prediction.of(dk.Predicted(output, dk.V()), z, level)
        ```
        """
        return cls(*predicted.parameterization.solve(predicted, z, level), level)

    def __repr__(self) -> str:
        spread = "" if self.spread is None else f"\n  spread  {describe(self.spread)}"
        x, eps = (describe(getattr(value, "value", value)) for value in (self.x, self.eps))
        return f"Prediction at {self.level}\n  x       {x}\n  eps     {eps}{spread}"

    @property
    def v(self) -> Predicted[V]:
        """The v of `diffkit.V`."""
        return self.as_target(V())

    @property
    def score(self) -> Predicted[Score]:
        """The gradient of the log density of the latent: -eps / sigma."""
        return Predicted(-self.eps / self.level.sigma, Score())

    def as_target(self, parameterization: P) -> Predicted[P]:
        """The prediction in any parameterization."""
        return Predicted(parameterization.target(self.x, self.eps, self.level), parameterization)

    def reverse(
        self, logsnr_s: ScalarLike, *, spread: ScalarLike = 0.0
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The reverse step p(y_s | y_t) of the rescaled latent, to a less noisy `logsnr_s`.

        **Returns:** the mean, the posterior's with the predicted data in place of x, and the standard
        deviation, a scalar unless predicted; `spread` is used if the prediction has none of its own.
        """
        y = self.x + self.level.rho * self.eps
        mean, std = rescaled_posterior(y, self.x, self.level.logsnr, logsnr_s)
        own = as_float(spread) if self.spread is None else self.spread
        return mean, std * jnp.exp(own * log_spread(self.level.logsnr, logsnr_s))


def step_divergence(squares: Example, logsnr_t: Scalar, logsnr_s: Scalar, spread: Example | None) -> Scalar:
    """KL(q(y_s | y_t, x) || p(y_s | y_t)) in nats, summed over dimensions, from the squared errors of eps.

    q is `diffkit.processes.rescaled_posterior`, p `Prediction.reverse`, which sampling and coding use.
    Their means differ by the errors of eps, so the closed form loses no digits for short steps. Without a
    spread it is half of expm1(logsnr_s - logsnr_t) times the sum of the squares (VDM equation 14).

    **Arguments:** `squares`: the squared errors of eps; `logsnr_t <= logsnr_s`; `spread`: as in a
    `Prediction`.
    """
    mean_term = jnp.expm1(logsnr_s - logsnr_t) * squares
    if spread is None:
        return 0.5 * jnp.sum(mean_term)
    log_ratio = 2 * spread * log_spread(logsnr_t, logsnr_s)
    # r - 1 - log r for the ratio r of the variances q / p.
    return 0.5 * jnp.sum(jnp.exp(-log_ratio) * mean_term + jnp.expm1(-log_ratio) + log_ratio)


class AbstractDenoiser(eqx.Module):
    """Anything that predicts data and noise from a latent."""

    process: eqx.AbstractVar[AbstractProcess]

    @abc.abstractmethod
    def __call__(
        self, z: Example, logsnr: ScalarLike, condition: Condition = None, *, key: MaybeKey = None
    ) -> Prediction:
        """The prediction for one latent.

        **Arguments:** `z`: the latent alpha x + sigma eps of `process`, one example; `logsnr`: its noise
        level, a scalar; `condition`: what the model is conditioned on, or `None`; `key`: for dropout while
        training, `None` for inference.
        """


class AbstractDerivedDenoiser(AbstractDenoiser):
    """A denoiser made from another one, without a network of its own."""

    denoiser: eqx.AbstractVar[AbstractDenoiser]


def underlying(denoiser: AbstractDenoiser) -> AbstractDenoiser:
    """The trained or exact denoiser from which this one is derived."""
    while isinstance(denoiser, AbstractDerivedDenoiser):
        denoiser = denoiser.denoiser
    return denoiser


class Denoiser(AbstractDenoiser):
    r"""A network with a parameterization, under a process.

    The network sees the latent scaled to unit variance, $z / \sqrt{\alpha^2 s^2 + \sigma^2}$ with $s$ the
    standard deviation of the data. For $s = 1$ that is the variance preserving latent under every process,
    so one network serves all.

    **Arguments:** `network`: for one example, with as many `outputs` as the parameterization;
    `parameterization`: what its output means; `process`: of the latents; `data_std`: the standard deviation
    s of the data.

    **Raises:** `ValueError` if `data_std` is not positive, or if the `outputs` of network and
    parameterization differ.
    """

    network: AbstractNetwork
    parameterization: AbstractParameterization
    process: AbstractProcess
    data_std: float = eqx.field(static=True)

    # Written out because static checkers would put the inherited `process` first.
    def __init__(
        self,
        network: AbstractNetwork,
        parameterization: AbstractParameterization,
        process: AbstractProcess,
        *,
        data_std: float = 1.0,
    ):
        if not (math.isfinite(data_std) and data_std > 0):
            raise ValueError(f"data_std must be a positive number, got {data_std}.")
        if network.outputs != parameterization.outputs:
            raise ValueError(
                f"network must have outputs={parameterization.outputs}, as parameterization "
                f"{type(parameterization).__name__} asks, but {type(network).__name__} has "
                f"outputs={network.outputs}."
            )
        self.network, self.parameterization = network, parameterization
        self.process, self.data_std = process, float(data_std)

    def __call__(
        self, z: Example, logsnr: ScalarLike, condition: Condition = None, *, key: MaybeKey = None
    ) -> Prediction:
        level = self.process.at(as_float(logsnr))
        scale = 1 / jnp.hypot(level.alpha * self.data_std, level.sigma)
        output = self.network(z * scale, level.logsnr, condition, key=key)
        wanted = (self.network.outputs * z.shape[0], *z.shape[1:])
        if output.shape != wanted:
            raise ValueError(
                f"network {type(self.network).__name__} must return the shape {wanted} for a latent of "
                f"shape {z.shape}, got {output.shape}."
            )
        target, spread = self.parameterization.read(output)
        return Prediction(*self.parameterization.solve(target, z, level), level, spread)
