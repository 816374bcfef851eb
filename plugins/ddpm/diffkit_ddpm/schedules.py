r"""The discrete noise levels of DDPM and improved DDPM, read as schedules in continuous time.

A chain $q(z_k \mid z_{k-1}) = N(\sqrt{1 - \beta_k}\, z_{k-1}, \beta_k I)$ has the noise levels
$\bar\alpha_k = \prod_{i \le k} (1 - \beta_i)$ (DDPM, arXiv 2006.11239, equation 4), that is
$\lambda_k = \log \bar\alpha_k - \log(1 - \bar\alpha_k)$. With K of them, counted from k = 0, the time
t = k / (K - 1) is level k, with a monotone cubic between them.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import diffkit as dk
from diffkit.typing import Scalar, ScalarLike, as_float, check_at_least

# No step leaves the interval, since the slopes at its ends are at most twice the chord's. The
# published schedules need three in float32; seven are enough for slopes from a twentieth of it.
_NEWTON_STEPS = 7


class DiscreteBetas(dk.AbstractSchedule):
    r"""Any discrete chain of variances $\beta_k$ as a schedule in continuous time.

    Choose it to train or evaluate a model over the exact noise levels of a published discrete-time
    model; `linear_beta` and `iddpm_cosine` are the two well-known ones. Between two levels it is the
    monotone cubic of Fritsch and Butland (1984), also known as PCHIP: the slope at a level is the harmonic
    mean of the secants on its two sides, so the curve is strictly decreasing and smooth. Its coefficients
    are kept in a `diffkit.Buffer`: neither trained nor averaged.

    **Arguments:** `betas`: the variances of the K forward steps, least noise first.

    **Raises:** `ValueError` for fewer than two, or one that is not in (0, 1).
    """

    # Row k: the coefficients of 1, w, w^2, w^3 with w = t (K - 1) - k.
    cubics: dk.Buffer[Float[Array, "levels 4"]]

    def __init__(self, betas: Float[np.ndarray, " levels"]):
        if len(betas) < 2:
            raise ValueError(f"betas must have at least 2 entries, got {len(betas)}.")
        low, high = betas.min(), betas.max()
        if not 0 < low <= high < 1:
            raise ValueError(f"betas must be in (0, 1), got values from {low} to {high}.")
        # From log alpha_bar, to keep the digits at both ends.
        log_alpha_bar = np.cumsum(np.log1p(-betas.astype(np.float64)))
        logsnr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
        self.cubics = dk.Buffer(jnp.asarray(_monotone_cubics(logsnr)))

    def __call__(self, t: ScalarLike) -> Scalar:
        table = self.cubics.get()
        position = as_float(t) * (len(table) - 1)
        # The last row is a straight line: t = 1 is exact.
        index = jnp.clip(jnp.floor(position), 0, len(table) - 1).astype(int)
        return _cubic(table[index], position - index)[0]

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        table, logsnr = self.cubics.get(), as_float(logsnr)
        # The number of levels above, not a binary search: one pass, and no loop on an accelerator.
        index = jnp.clip(jnp.sum(table[:, 0] > logsnr) - 1, 0, len(table) - 2)
        # Relative to the wanted value, to keep the digits of the difference.
        row = jnp.append(table[index, 0] - logsnr, table[index, 1:])
        return (index + _root(row)) / (len(table) - 1)


def _monotone_cubics(values: np.ndarray) -> np.ndarray:
    """The coefficients between strictly decreasing values at distance 1, the last row a line."""
    secants = np.diff(values)
    slopes = np.full_like(values, secants[0])
    if len(secants) > 1:
        before, after = secants[:-1], secants[1:]
        slopes[1:-1] = 2 * before * after / (before + after)
        slopes[0], slopes[-1] = _end_slope(*secants[:2]), _end_slope(*secants[:-3:-1])
    start, end = slopes[:-1], slopes[1:]
    square, cube = 3 * secants - 2 * start - end, start + end - 2 * secants
    rows = np.stack([values[:-1], start, square, cube], axis=1)
    return np.append(rows, [[values[-1], slopes[-1], 0, 0]], axis=0)


def _end_slope(nearest: float, next_: float) -> float:
    """The slope at an end: of the parabola through three values, but never near zero."""
    return nearest * max(1.5 - 0.5 * next_ / nearest, 0.25)


def _cubic(row: Float[Array, " 4"], w: Scalar) -> tuple[Scalar, Scalar]:
    """Value and slope at w of the cubic with the coefficients `row`."""
    c0, c1, c2, c3 = row
    return c0 + w * (c1 + w * (c2 + w * c3)), c1 + w * (2 * c2 + w * 3 * c3)


def _root(row: Float[Array, " 4"]) -> Scalar:
    """Where a decreasing cubic is zero, by Newton's method from the chord's zero."""
    w = -row[0] / jnp.sum(row[1:])
    for _ in range(_NEWTON_STEPS):
        value, slope = _cubic(row, w)
        w = w - value / slope
    return w


@dk.register("schedule", "linear_beta")
def linear_beta(*, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> DiscreteBetas:
    r"""DDPM's schedule: $\beta_k$ in even steps from $10^{-4}$ to 0.02, 1000 of them.

    Ho, Jain and Abbeel 2020 (arXiv 2006.11239), section 4. log SNR runs from 9.2 to -10.1. Choose it to
    reproduce DDPM and its successors; improved DDPM found it too noisy too soon for small images.

    **Arguments:** `steps`: the number of noise levels; `beta_start`, `beta_end`: the variances of the
    first and of the last forward step, which should change in inverse proportion to `steps`.

    **Raises:** `ValueError` for fewer than two steps, or a variance that is not in (0, 1).
    """
    check_at_least("steps", steps, 2)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not 0 < beta < 1:
            raise ValueError(f"{name} must be in (0, 1), got {beta}.")
    return DiscreteBetas(np.linspace(beta_start, beta_end, steps))


@dk.register("schedule", "iddpm_cosine")
def iddpm_cosine(*, steps: int = 1000, offset: float = 0.008) -> DiscreteBetas:
    r"""Improved DDPM's cosine schedule, discrete and clipped as published.

    $\bar\alpha_k = f((k + 1) / K) / f(0)$ with $f(u) = \cos^2(\frac\pi2 \frac{u + s}{1 + s})$, and
    $\beta_k = \min(1 - \bar\alpha_k / \bar\alpha_{k - 1},\ 0.999)$: Nichol and Dhariwal 2021 (arXiv
    2102.09672), equation 17 and below. log SNR runs from 10.1 to -19.8. Choose it to reproduce improved
    DDPM; diffkit's `cosine` is the same curve in continuous time, with ends of your choice.

    **Arguments:** `steps`: K, the number of noise levels; `offset`: s, for a larger first step.

    **Raises:** `ValueError` for fewer than two steps, or an offset that is negative.
    """
    check_at_least("steps", steps, 2)
    if not (math.isfinite(offset) and offset >= 0):
        raise ValueError(f"offset must be a number of at least 0, got {offset}.")
    angle = np.pi / 2 * (np.arange(steps + 1) / steps + offset) / (1 + offset)
    f = np.cos(angle) ** 2
    return DiscreteBetas(np.minimum(1 - f[1:] / f[:-1], 0.999))
