r"""Gaussians on a lattice, as distributions for a stack.

To code a latent with finitely many bits, it is restricted to the points $k \delta$ of a lattice, with the
probabilities

$$P(k) \propto \exp\left(-\frac{(k \delta - \mu)^2}{2 \sigma^2}\right).$$

By Poisson's summation formula a sum over the lattice of a Gaussian times a polynomial differs from
$1 / \delta$ times the integral by a factor $1 + O(e^{-2 \pi^2 (\sigma / \delta)^2})$: 3e-9 for
$\sigma = \delta$. So $P(k)$ is $\delta$ times the density, and mean, variance and divergences are those of
the Gaussians. One or two points per standard deviation lose nothing, whereas bins with the integrated
density would add their own variance $\delta^2 / 12$.

Each point within five standard deviations has its own symbol, with its exact frequency in units of
$2^{-24}$. Each tail beyond is one symbol, followed by the distance in an Elias gamma code with the tail's
own probability of stopping at once. So every point can be coded: even a bad model codes without loss.
"""

import math
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float

from diffkit_bitsback.errors import CannotEncode
from diffkit_bitsback.stack import TOTAL, Ints, Stack, Weights, groups

Floats = Float[np.ndarray, " n"]
Flags = Bool[np.ndarray, " n"]

# The standard deviations whose points have their own symbols.
_BULK = 5.0
# Standard deviations of more points than this are coded in cells of several points. The density counts as
# constant within a cell of at most 1/64 standard deviation, which costs (1/64)^2/24 nats.
_WIDE = 64.0
# Limits in lattice points, so that all is exact in float64 and int64. Beyond them the code gets longer.
_FARTHEST = 2.0**40
_NARROWEST, _WIDEST = 2.0**-10, 2.0**20
# The entries of the table for a group of rows, which must fit into the processor's cache.
_ENTRIES = 1 << 16
# Probability 2^-(n + 1) for a distance of n bits after the leading one, at least one unit.
_MOST_BITS = 44
_LENGTHS = np.maximum(2.0 ** (23 - np.arange(_MOST_BITS + 1)), 1.0) - 1
_LENGTHS[0] += TOTAL - len(_LENGTHS) - _LENGTHS.sum()


@no_type_check  # not at run time, as `Stack`
class LatticeGaussians:
    """Independent Gaussians, each restricted to the points of one lattice.

    **Arguments:** `mean`; `std`: of each, or one for all; `spacing`, of which the points are multiples.

    **Raises:** `CannotEncode` for a mean or a standard deviation that is not finite.
    """

    def __init__(self, mean: Floats, std: Floats | float, spacing: float):
        self._mean = mean.astype(np.float64) / spacing
        self._std = np.asarray(std, np.float64) / spacing
        if not (np.isfinite(self._mean).all() and np.isfinite(self._std).all()):
            raise CannotEncode("the model predicts a mean or a deviation that is not finite.")
        std = np.clip(self._std, _NARROWEST, _WIDEST)
        mean = np.clip(self._mean, -_FARTHEST, _FARTHEST)
        # Cells of 2^bits points.
        self._bits = np.maximum(np.ceil(np.log2(std / _WIDE)), 0).astype(np.int64)
        centre = np.rint(mean)
        self._centre = centre.astype(np.int64)
        # From here on in cells. A cell with an even number of points has its middle half a point lower.
        size = np.exp2(self._bits)
        self._offset = (mean - centre + np.where(self._bits > 0, 0.5, 0.0)) / size
        self._inverse = size / std
        self._half = max(math.ceil(_BULK / self._inverse.min() + 0.5), 1)
        # Relative to the lowest point of the cell around the mean.
        self._lowest = self._centre - (np.left_shift(1, self._bits) >> 1)

    def log_prob(self, k: Ints) -> Floats:
        """The log of the Gaussian density at the point k, times the spacing, in nats."""
        exponent = -0.5 * np.square((k - self._mean) / self._std)
        return exponent - np.log(self._std) - 0.5 * math.log(2 * math.pi)

    def pop(self, stack: Stack) -> Ints:
        """Draw a point of each from the stack."""
        drawn = [stack.pop(self._weights(rows)) for rows in self._groups()]
        cell = np.concatenate(drawn, dtype=np.int64) - (self._half + 1)
        bits = np.broadcast_to(self._bits, cell.shape)
        within = stack.pop_bits(bits)
        far = np.flatnonzero(np.abs(cell) > self._half)
        if len(far):
            cell[far] += np.sign(cell[far]) * self._pop_distance(stack, far, cell[far] > 0)
        return self._lowest + (cell << bits) + within

    def push(self, stack: Stack, k: Ints) -> None:
        """Undo `pop`: a `pop` afterwards returns these points.

        **Raises:** `CannotEncode` for a point too far away to describe.
        """
        relative = k - self._lowest
        bits = np.broadcast_to(self._bits, k.shape)
        cell = relative >> bits
        distance = np.abs(cell) - (self._half + 1)
        far = np.flatnonzero(distance >= 0)
        if len(far):
            self._push_distance(stack, distance[far], far, cell[far] > 0)
        stack.push_bits(relative - (cell << bits), bits)
        symbols = np.clip(cell, -self._half - 1, self._half + 1) + (self._half + 1)
        for rows in reversed(self._groups()):
            stack.push(symbols[rows], self._weights(rows))

    def _groups(self) -> list[slice]:
        return groups(len(self._mean), max(_ENTRIES // (2 * self._half + 3), 1))

    def _weights(self, rows: slice) -> Weights:
        """The frequencies, less one, of the cells -half ... half, between those of the two tails."""
        half = self._half
        offset = self._offset[rows, None]
        rate = self._inverse if self._inverse.ndim == 0 else self._inverse[rows, None]
        rate = -0.5 * np.square(rate)
        j = np.arange(-half - 1.0, half + 2.0)
        # (j - offset)^2 minus that of j = 0, next to the mean, so that not every weight underflows.
        weights = j - 2 * offset
        weights *= j
        weights *= rate
        np.exp(weights, out=weights)
        # Beyond, the weights fall at least geometrically.
        weights[:, 0] /= -np.expm1(rate * (2 * half + 3 + 2 * offset))[:, 0]
        weights[:, -1] /= -np.expm1(rate * (2 * half + 3 - 2 * offset))[:, 0]
        weights *= TOTAL / weights.sum(axis=1, keepdims=True)
        weights -= 1
        np.rint(weights, out=weights)
        np.maximum(weights, 0, out=weights)
        weights[:, half + 1] += TOTAL - len(j) - weights.sum(axis=1)
        return weights

    def _stop(self, far: Ints, upper: Flags) -> Weights:
        """The weights of stopping at the first cell of a tail and of continuing."""
        inverse = self._inverse if self._inverse.ndim == 0 else self._inverse[far]
        offset = np.where(upper, self._offset[far], -self._offset[far])
        stop = -np.expm1(-np.square(inverse) * (self._half + 1.5 - offset))
        weight = np.clip(np.rint(TOTAL * stop - 1), 0, TOTAL - 2)
        return np.stack([weight, TOTAL - 2 - weight], axis=1)

    def _pop_distance(self, stack: Stack, far: Ints, upper: Flags) -> Ints:
        distance = stack.pop(self._stop(far, upper)).astype(np.int64)
        on = np.flatnonzero(distance)
        length = stack.pop(np.tile(_LENGTHS, (len(on), 1))).astype(np.int64)
        distance[on] = (1 << length) + stack.pop_bits(length)
        return distance

    def _push_distance(self, stack: Stack, distance: Ints, far: Ints, upper: Flags) -> None:
        on = np.flatnonzero(distance)
        # The exponent of float64, exact for integers below 2^53.
        length = np.frexp(distance[on].astype(np.float64))[1].astype(np.int64) - 1
        if length.max(initial=0) > _MOST_BITS:
            raise CannotEncode("a latent is too far from the model's mean to be coded.")
        stack.push_bits(distance[on] - (1 << length), length)
        stack.push(length, np.tile(_LENGTHS, (len(on), 1)))
        stack.push(np.minimum(distance, 1), self._stop(far, upper))
