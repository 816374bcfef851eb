r"""Decoders: from the last latent to data.

A decoder is $p(x \mid z_0)$ and the fixed map from data as stored (integer levels, or floats) to the values
that are diffused. It works in the rescaled latent $y_0 = z_0 / \alpha_0 = x + \rho_0 \epsilon$, and
therefore under every process.
"""

import abc
import functools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Integer, Real

from diffkit.processes import NoiseLevel
from diffkit.registry import register
from diffkit.typing import Example, MaybeKey, Scalar, check_at_least


class AbstractDecoder(eqx.Module):
    """p(x | z_0), independent over dimensions."""

    levels: eqx.AbstractVar[int | None]
    """The number of values of a dimension; `None` for continuous data."""

    @abc.abstractmethod
    def encode(self, x: Real[ArrayLike, "*shape"]) -> Example:
        """Map data as stored to the values that are diffused, about in [-1, 1]."""

    @abc.abstractmethod
    def log_prob(self, x: Real[ArrayLike, "*shape"], z_0: Example, level_0: NoiseLevel) -> Scalar:
        """log p(x | z_0) in nats, summed over dimensions; `x` is data as stored."""

    @abc.abstractmethod
    def decode(self, z_0: Example, level_0: NoiseLevel, *, key: MaybeKey = None) -> Real[Array, "*shape"]:
        """Data as stored: the most probable x given `z_0`, or a draw from p(x | z_0) if `key` is given."""


# Levels on either side of the nearest one that can carry probability when rho is at most this share of
# their distance: the others lie 8.5 distances off or more, with less than 1e-31 of the nearest one's
# probability.
_WINDOW = 8
_NARROW = 0.7


def _value(index: Integer[Array, "*shape"], levels: int) -> Example:
    return (2 * index.astype(float) + 1) / levels - 1


def _nearest(y: Example, levels: int) -> Int[Array, "*shape"]:
    return jnp.clip(jnp.floor((y + 1) * (levels / 2)), 0, levels - 1).astype(int)


def _moments(y: Example, rho: Scalar, levels: int) -> tuple[Example, Example, Example]:
    """Sums over levels k, all relative to the value nearest to y.

    With u_k = (y - v_k) / rho, n the nearest one and d_k = u_k - u_n, the weights are p_k = exp((u_n^2 -
    u_k^2) / 2): at most 1, so nothing overflows, and no large squares cancel. Returns log sum_k p_k, and
    the means of d_k and of u_k^2 - u_n^2 under p.
    """
    nearest = _nearest(y, levels)
    u_nearest = (y - _value(nearest, levels)) / rho
    spacing = 2 / levels / rho

    def over(offsets: Int[Array, " n"]) -> tuple[Example, Example, Example]:
        # A loop over levels of elementwise terms: no array of dimensions x levels is ever made.
        def add(sums, offset):
            d = -offset * spacing
            squares = d * (d + 2 * u_nearest)
            inside = (nearest + offset >= 0) & (nearest + offset < levels)
            p = jnp.where(inside, jnp.exp(-0.5 * squares), 0.0)
            return (sums[0] + p, sums[1] + p * d, sums[2] + p * squares), None

        zeros = jnp.zeros_like(y)
        (total, first, second), _ = jax.lax.scan(add, (zeros, zeros, zeros), offsets)
        return jnp.log(total), first / total, second / total

    everything, window = jnp.arange(1 - levels, levels), jnp.arange(-_WINDOW, _WINDOW + 1)
    if everything.size <= window.size:
        return over(everything)
    # At a decoder's high SNR only the nearest levels have probability. A batch shares the scalar condition.
    narrow = rho <= _NARROW * 2 / levels
    return jax.lax.cond(narrow, lambda: over(window), lambda: over(everything))


def _to_value(x: Integer[Array, "*shape"], y: Example, rho: Scalar, levels: int) -> tuple[Example, Example]:
    """u_x - u_n and u_x^2 - u_n^2 for the value x, as in `_moments`."""
    nearest = _nearest(y, levels)
    u_nearest = (y - _value(nearest, levels)) / rho
    d = (nearest - x.astype(nearest.dtype)) * (2 / levels / rho)
    return d, d * (d + 2 * u_nearest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_prob_of(x: Integer[Array, "*shape"], y: Example, rho: Scalar, levels: int) -> Example:
    """log p(x | y) of each dimension."""
    return -0.5 * _to_value(x, y, rho, levels)[1] - _moments(y, rho, levels)[0]


@_log_prob_of.defjvp
def _log_prob_of_jvp(levels, primals, tangents):
    # d log p = (E[u] - u_x) dy / rho + (u_x^2 - E[u^2]) drho / rho. The loop over levels gives the
    # means too: the backward pass keeps only arrays of the size of y.
    x, y, rho = primals
    _, dy, drho = tangents
    log_total, mean_d, mean_squares = _moments(y, rho, levels)
    d, squares = _to_value(x, y, rho, levels)
    slope = (mean_d - d) * dy + (squares - mean_squares) * drho
    return -0.5 * squares - log_total, slope / rho


@register("decoder", "discretized")
class DiscretizedDecoder(AbstractDecoder):
    r"""The decoder of VDM (equation 9) for data with a few integer values.

    The value $k$ of $n$ is encoded as $v_k = (2k + 1)/n - 1$, and $p(x = k \mid z_0) \propto \exp(-(y_0 -
    v_k)^2 / (2 \rho_0^2))$, normalised over the levels.

    **Arguments:** `levels`: the number of values, 0 ... levels - 1: 256 for 8-bit images.

    **Raises:** `ValueError` if `levels` is less than 2; a type error if data are not integers.
    """

    levels: int = eqx.field(default=256, static=True)

    def __check_init__(self):
        check_at_least("levels", self.levels, 2)

    def encode(self, x: Integer[ArrayLike, "*shape"]) -> Example:
        return _value(jnp.asarray(x), self.levels)

    def log_prob(self, x: Integer[ArrayLike, "*shape"], z_0: Example, level_0: NoiseLevel) -> Scalar:
        y = z_0 / level_0.alpha
        return jnp.sum(_log_prob_of(jnp.asarray(x), y, level_0.rho, self.levels))

    def decode(self, z_0: Example, level_0: NoiseLevel, *, key: MaybeKey = None) -> Int[Array, "*shape"]:
        y = z_0 / level_0.alpha
        if key is None:
            return _nearest(y, self.levels)
        values = self.encode(jnp.arange(self.levels))
        logits = -0.5 * jnp.square((y[..., None] - values) / level_0.rho)
        return jax.random.categorical(key, logits).astype(int)


_Numbers = float | tuple[float, ...]
_Given = Real[ArrayLike, "..."] | Sequence[float | int]


@register("decoder", "gaussian")
class GaussianDecoder(AbstractDecoder):
    r"""For continuous data: $p(x \mid z_0) = \mathcal N(x;\, m + s y_0,\, s^2 \rho_0^2 I)$.

    The model diffuses $(x - m) / s$. The bound is on the log density of x in the data's own units: it
    includes $-\log s$ for each dimension and can have either sign.

    **Arguments:** `mean`, `std`: m and s, each a number, or one number for each channel (the first axis).
    By default those of the training data if their mean is outside [-1, 1] or their standard deviation
    outside [0.5, 2]; else 0 and 1, which leave data as they are. `statistics`: mean and standard deviation
    of the training data, filled in for a model made for a dataset; without them, the defaults are 0 and 1.

    **Raises:** `ValueError` if a number is not finite or a standard deviation is not positive.
    """

    mean: _Numbers = eqx.field(static=True)
    std: _Numbers = eqx.field(static=True)

    def __init__(
        self,
        mean: _Given | None = None,
        std: _Given | None = None,
        *,
        statistics: tuple[float, float] | None = None,
    ):
        m, s = statistics or (0.0, 1.0)
        if abs(m) <= 1 and 0.5 <= s <= 2:
            m, s = 0.0, 1.0
        self.mean = _numbers("mean", m if mean is None else mean)
        # Constant data have no scale.
        self.std = _numbers("std", (s or 1.0) if std is None else std)
        if np.min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}.")

    @property
    def levels(self) -> None:
        return None

    def encode(self, x: Float[ArrayLike, "*shape"]) -> Example:
        x = jnp.asarray(x)
        return (x - _per_channel(self.mean, x)) / _per_channel(self.std, x)

    def log_prob(self, x: Float[ArrayLike, "*shape"], z_0: Example, level_0: NoiseLevel) -> Scalar:
        y = z_0 / level_0.alpha
        squared = jnp.sum(jnp.square((self.encode(x) - y) / level_0.rho))
        log_variance = math.log(2 * math.pi) - level_0.logsnr
        scale = y.size * float(np.mean(np.log(self.std)))
        return -0.5 * (squared + y.size * log_variance) - scale

    def decode(self, z_0: Example, level_0: NoiseLevel, *, key: MaybeKey = None) -> Float[Array, "*shape"]:
        y = z_0 / level_0.alpha
        y = y if key is None else y + level_0.rho * jax.random.normal(key, y.shape, y.dtype)
        return y * _per_channel(self.std, y) + _per_channel(self.mean, y)


def _numbers(name: str, given: _Given) -> _Numbers:
    array = np.asarray(given, np.float64)
    if array.ndim > 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a finite number, or one for each channel, got {given}.")
    return tuple(array.tolist()) if array.ndim else float(array)


def _per_channel(value: _Numbers, x: Example) -> Any:
    """A number as it is; one for each channel, shaped to broadcast along the first axis."""
    if not isinstance(value, tuple):
        return value
    if x.shape[:1] != (len(value),):
        raise ValueError(
            f"GaussianDecoder has mean or std for {len(value)} channels, but x has the shape {x.shape}."
        )
    return np.asarray(value, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
