"""Time samplers: at which times a batch is evaluated.

A time sampler draws one t in [0, 1) for each example of a batch, and says with which density. The
loss divides by the density, so that a time sampler changes the variance of an estimate and never its
expectation.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.registry import register
from diffkit.typing import PRNGKey, Scalar, ScalarLike, as_float


class AbstractTimeSampler(eqx.Module):
    """Draws times with a known density."""

    @abc.abstractmethod
    def __call__(
        self, key: PRNGKey, batch_size: int
    ) -> tuple[Float[Array, " {batch_size}"], Float[Array, " {batch_size}"]]:
        """Times for a batch, each with the marginal density `density`, and importances 1 / density."""

    @abc.abstractmethod
    def density(self, t: ScalarLike) -> Scalar:
        """The marginal density at time `t`; its integral over [0, 1] is 1."""


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")


@register("time_sampler", "uniform")
class Uniform(AbstractTimeSampler):
    """Independent uniform times."""

    def __call__(
        self, key: PRNGKey, batch_size: int
    ) -> tuple[Float[Array, " {batch_size}"], Float[Array, " {batch_size}"]]:
        _check_batch_size(batch_size)
        t = jax.random.uniform(key, (batch_size,))
        return t, jnp.ones_like(t)

    def density(self, t: ScalarLike) -> Scalar:
        return jnp.ones_like(as_float(t))


@register("time_sampler", "low_discrepancy")
class LowDiscrepancy(AbstractTimeSampler):
    """Evenly spaced times with one random shift: t_i = mod(u + i / n, 1), VDM appendix I.1.

    Each time by itself is uniform; together they cover [0, 1] with gaps of exactly 1 / n, so that the
    mean over a batch has a much smaller variance than with independent times.
    """

    def __call__(
        self, key: PRNGKey, batch_size: int
    ) -> tuple[Float[Array, " {batch_size}"], Float[Array, " {batch_size}"]]:
        _check_batch_size(batch_size)
        shift = jax.random.uniform(key)
        t = jnp.mod(shift + jnp.arange(batch_size) / batch_size, 1.0)
        return t, jnp.ones_like(t)

    def density(self, t: ScalarLike) -> Scalar:
        return jnp.ones_like(as_float(t))
