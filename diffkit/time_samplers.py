"""Time samplers: the times at which a batch is evaluated, one t in [0, 1) for each example.

The loss divides by their density, so they change the variance of an estimate but never its expectation.
"""

import abc
import math
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.registry import register
from diffkit.typing import PRNGKey, Scalar, ScalarLike, as_float, check_at_least

Self = TypeVar("Self", bound="AbstractAdaptiveTimeSampler")

Times = tuple[Float[Array, " {batch_size}"], Float[Array, " {batch_size}"]]
"""Times and their importances, the inverse densities, for a batch of `batch_size`."""


class AbstractTimeSampler(eqx.Module):
    """Draws times with a known density."""

    @abc.abstractmethod
    def __call__(self, key: PRNGKey, batch_size: int) -> Times:
        """Times for a batch, each with the marginal density `density`, and importances 1 / density."""

    @abc.abstractmethod
    def density(self, t: ScalarLike) -> Scalar:
        """The marginal density at time `t`; its integral over [0, 1] is 1."""


class AbstractUniform(AbstractTimeSampler):
    """Times that are each uniform."""

    @abc.abstractmethod
    def draw(self, key: PRNGKey, n: int) -> Float[Array, " {n}"]:
        """Times for a batch of n."""

    def __call__(self, key: PRNGKey, batch_size: int) -> Times:
        check_at_least("batch_size", batch_size, 1)
        t = self.draw(key, batch_size)
        return t, jnp.ones_like(t)

    def density(self, t: ScalarLike) -> Scalar:
        return jnp.ones_like(as_float(t))


@register("time_sampler", "uniform")
class Uniform(AbstractUniform):
    """Independent uniform times."""

    def draw(self, key: PRNGKey, n: int) -> Float[Array, " {n}"]:
        return jax.random.uniform(key, (n,))


@register("time_sampler", "low_discrepancy")
class LowDiscrepancy(AbstractUniform):
    """Evenly spaced times with one random shift: t_i = mod(u + i / n, 1), VDM appendix I.1.

    Each time is uniform; together they cover [0, 1] with gaps of exactly 1 / n, so the mean over a batch
    has a much smaller variance than with independent times.
    """

    def draw(self, key: PRNGKey, n: int) -> Float[Array, " {n}"]:
        return jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1.0)


@register("time_sampler", "stratified")
class Stratified(AbstractUniform):
    """One independent uniform time in each of n equal parts of [0, 1): t_i = (i + u_i) / n.

    It covers [0, 1] nearly as evenly as `LowDiscrepancy`, but with independent times in a batch: choose it
    where a regular spacing could fall in step with the structure of the loss.
    """

    def draw(self, key: PRNGKey, n: int) -> Float[Array, " {n}"]:
        shift, order = jax.random.split(key)
        # Rounding can give 1.0, which is not a time. The order is random, so that each example of a batch
        # sees all times.
        t = jnp.minimum((jnp.arange(n) + jax.random.uniform(shift, (n,))) / n, 1 - 2.0**-24)
        return jax.random.permutation(order, t)


class AbstractAdaptiveTimeSampler(AbstractTimeSampler):
    """A time sampler that learns from the losses at the times it drew.

    It is part of the training state: `fit` calls `update` after every step and keeps the result.
    """

    @abc.abstractmethod
    def update(self: Self, t: Float[Array, " batch"], loss: Float[Array, " batch"]) -> Self:
        """The time sampler after the times `t` that it drew and their losses, without importances."""


@register("time_sampler", "adaptive")
class Adaptive(AbstractAdaptiveTimeSampler):
    r"""Draws times in proportion to a running estimate of the loss: importance sampling.

    Each of many equal bins of [0, 1] keeps a moving average of the squared losses in it. The density of
    times is constant within a bin and proportional to the root of this average, which minimises the
    variance of the estimate. The times of a batch cover the distribution evenly, like those of
    `LowDiscrepancy`.

    Kingma and Gao 2023 (arXiv 2303.00848, section 3.3 and appendix F) average the loss itself over bins of
    $\lambda$ and so make its mean even. Bins of t do the same for a fixed schedule, and follow a learned
    one. Choose it for weighted losses that are uneven over time.

    **Arguments:** `bins`: their number; `decay`: of the average, per time that falls into a bin; `floor`:
    the share of uniform times, so that no importance exceeds 1 / floor.

    **Raises:** `ValueError` for a value out of its range.
    """

    bins: int = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    floor: float = eqx.field(static=True)
    total: Float[Array, " bins"]
    weight: Float[Array, " bins"]

    def __init__(self, bins: int = 100, decay: float = 0.99, floor: float = 0.1):
        check_at_least("bins", bins, 1)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}.")
        if not (math.isfinite(floor) and 0 < floor <= 1):
            raise ValueError(f"floor must be in (0, 1], got {floor}.")
        self.bins, self.decay, self.floor = bins, float(decay), float(floor)
        # The moving average is total / weight, which needs no initial value.
        self.total = jnp.zeros((bins,))
        self.weight = jnp.zeros((bins,))

    @property
    def second_moment(self) -> Float[Array, " bins"]:
        """The mean squared loss in each bin; in bins without losses, that of all bins."""
        seen = self.weight > 0
        known = jnp.where(seen, self.total / jnp.where(seen, self.weight, 1.0), 0.0)
        mean = jnp.sum(known) / jnp.maximum(jnp.sum(seen), 1)
        return jnp.where(seen, known, mean)

    def _shares(self) -> Float[Array, " bins"]:
        root = jnp.sqrt(self.second_moment)
        # Without losses, or if all are zero, all bins are alike.
        root = jnp.where(jnp.sum(root) > 0, root, 1.0)
        return (1 - self.floor) * root / jnp.sum(root) + self.floor / self.bins

    def __call__(self, key: PRNGKey, batch_size: int) -> Times:
        u, _ = LowDiscrepancy()(key, batch_size)
        shares = self._shares()
        ends = jnp.cumsum(shares)
        u = u * ends[-1]
        index = jnp.minimum(jnp.searchsorted(ends, u, side="right"), self.bins - 1)
        inside = jnp.clip((u - (ends[index] - shares[index])) / shares[index], 0.0, 1.0)
        t = jnp.minimum((index + inside) / self.bins, 1 - 2.0**-24)
        return t, 1 / (self.bins * shares[index])

    def density(self, t: ScalarLike) -> Scalar:
        index = jnp.clip(jnp.floor(as_float(t) * self.bins).astype(int), 0, self.bins - 1)
        return self.bins * self._shares()[index]

    def update(self, t: Float[Array, " batch"], loss: Float[Array, " batch"]) -> "Adaptive":
        index = jnp.clip(jnp.floor(t * self.bins).astype(int), 0, self.bins - 1)
        counts = jnp.zeros_like(self.total).at[index].add(1.0)
        sums = jnp.zeros_like(self.total).at[index].add(jnp.square(loss))
        # A bin without a time keeps its average.
        kept = self.decay**counts
        total = kept * self.total + (1 - kept) * sums / jnp.maximum(counts, 1.0)
        weight = kept * self.weight + (1 - kept)
        return eqx.tree_at(lambda s: (s.total, s.weight), self, (total, weight))
