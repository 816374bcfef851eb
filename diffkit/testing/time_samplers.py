"""The laws of time samplers. Statistical tests have fixed keys; their false-alarm rates are stated."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import rel_entr

from diffkit.checks import against_density, distribution, draws
from diffkit.testing.base import NotApplicable, Subject, law, mapped, require, require_close
from diffkit.time_samplers import AbstractAdaptiveTimeSampler

_CELLS = 2**15
_MIDDLE = (np.arange(_CELLS, dtype=np.float32) + 0.5) / _CELLS
_KEYS = 8192
_SMALL, _BATCH = 4, 64
# The least density at which averages are compared.
_LEAST = 0.01


def _states(part: Any) -> Iterator[tuple[str, Any]]:
    """The sampler, and, if it adapts, the sampler after very uneven losses."""
    yield "as constructed", part
    if isinstance(part, AbstractAdaptiveTimeSampler):
        for index in range(5):
            t, _ = part(jax.random.fold_in(jax.random.key(3), index), 512)
            part = part.update(t, 0.1 + jnp.exp(-20 * jnp.abs(t - 0.7)))
        yield "after five updates", part


@law("time_sampler")
def draws_are_times(subject: Subject) -> None:
    """Every t is in [0, 1) and every importance positive and finite, at any batch size."""
    for state, part in _states(subject.part):
        for batch in (1, 7, _BATCH):
            t, importance = (a.ravel() for a in draws(part, batch, 256, 0))
            require(
                (t >= 0) & (t < 1) & np.isfinite(importance) & (importance > 0),
                {"batch_size": batch, "state": state},
                {"t": t, "importance": importance},
                "0 <= t < 1 and a positive importance",
            )


@law("time_sampler")
def density_integrates_to_one(subject: Subject) -> None:
    """The density is finite, non-negative and integrates to 1 over [0, 1]."""
    for state, part in _states(subject.part):
        density = mapped(part.density, _MIDDLE)
        holds, given = np.isfinite(density) & (density >= 0), {"t": _MIDDLE, "state": state}
        require(holds, given, {"density": density}, "a number of at least 0")
        total = np.atleast_1d(density.mean(dtype=np.float64))
        given = {"midpoints": _CELLS, "state": state}
        require_close(total, 1.0, 5e-3, given, "integral of the density")


@law("time_sampler")
def importance_is_one_over_density(subject: Subject) -> None:
    """The importance of a draw is 1 / density at its time."""
    for state, part in _states(subject.part):
        t, importance = (a.ravel() for a in draws(part, _BATCH, 32, 1))
        product = importance * mapped(part.density, t)
        given = {"t": t, "importance": importance, "state": state}
        require_close(product, 1.0, 1e-3, given, "importance times density")


@law("time_sampler")
def draws_follow_the_density(subject: Subject) -> None:
    """Draws follow the density: a Kolmogorov-Smirnov test of the first time of each of 8192 batches, which
    a correct sampler fails once in 10^4."""
    for state, part in _states(subject.part):
        first = draws(part, _SMALL, _KEYS, 2)[0][:, 0]
        t, share, expected, distance = against_density(part, first)
        # P(sqrt(n) D > x) = 2 exp(-2 x^2), at 1e-4.
        limit = np.sqrt(np.log(2 / 1e-4) / 2 / _KEYS)
        require(
            distance <= limit,
            {"t": t, "batches": _KEYS, "batch_size": _SMALL, "state": state},
            {"share of draws up to t": share, "integral of the density up to t": expected},
            f"a difference of at most {limit:.4f}",
            distance,
        )


@law("time_sampler")
def importance_makes_averages_unbiased(subject: Subject) -> None:
    """Averages over all draws, weighted by importance, are unbiased within 5 standard errors: 1, t and t^2
    where the density is at least 0.01, so that no importance exceeds 100. Elsewhere the share of the draws
    is the integral of the density, at each place of the batch. A correct sampler fails less than once in
    10^5."""
    for state, part in _states(subject.part):
        # The region may be in pieces: the density at its time decides whether a draw or a cell is in it.
        density = mapped(part.density, _MIDDLE).astype(np.float64)
        counted = density >= _LEAST
        # At each border of the region a part of a cell is on the wrong side.
        borders = (1 + np.count_nonzero(counted[1:] != counted[:-1])) / _CELLS
        t, importance = draws(part, _SMALL, _KEYS, 4)
        inside = (mapped(part.density, t.ravel()) >= _LEAST).reshape(t.shape)
        t, importance = t.astype(np.float64), importance.astype(np.float64)

        # Batches are independent, but not the times of one: one test for each place in the batch.
        # P(n KL > x) is at most 2 exp(-x) (Chernoff). Five in 10^7 at each place and six in 10^7 for each
        # average make less than one in 10^5, even for two states.
        share = 1 - inside.mean(axis=0)
        expected = density[~counted].sum() / _CELLS
        nearest = np.clip(share, max(expected - _LEAST * borders, 0), expected + _LEAST * borders)
        with jax.enable_x64(True):
            surprise = rel_entr(share, nearest) + rel_entr(1 - share, 1 - nearest)
        surprise = _KEYS * np.asarray(surprise)
        require(
            surprise <= np.log(2 / 5e-7),
            {"place in the batch": np.arange(_SMALL), "batches": _KEYS, "state": state},
            {
                f"share of draws where the density is below {_LEAST}": share,
                "integral of the density there": np.full(_SMALL, expected),
            },
            "a difference that chance explains more often than five times in 10^7",
            surprise,
        )

        for power in range(3):
            means = np.mean(np.where(inside, importance * t**power, 0.0), axis=1)
            error = means.std() / np.sqrt(_KEYS)
            exact = np.sum(np.where(counted, _MIDDLE.astype(np.float64) ** power, 0.0)) / _CELLS
            found, tolerance = np.atleast_1d(means.mean()), 5 * error + borders + 1e-3 * exact
            function = f"t^{power} where the density is at least {_LEAST}"
            given = {"function": function, "state": state}
            require_close(found, float(exact), float(tolerance), given, "average", "integral")


@law("time_sampler")
def covers_evenly(subject: Subject) -> None:
    """The times of a batch cover the density evenly (star discrepancy of at most 2 / n on average), or they
    are spread like independent ones."""
    for state, part in _states(subject.part):
        t, _ = draws(part, _BATCH, 128, 5)
        u = np.sort(np.interp(t.astype(np.float64), *distribution(part)), axis=1)
        ranks = np.arange(_BATCH + 1) / _BATCH
        gaps = np.maximum(np.abs(u - ranks[1:]), np.abs(u - ranks[:-1]))
        discrepancy = gaps.max(axis=1).mean()
        if discrepancy <= 2 / _BATCH:
            continue
        # The mean of the Kolmogorov distribution, with the usual correction for small n; that of 128
        # batches varies by 3 % (one standard error).
        independent = 0.8687 / (np.sqrt(_BATCH) + 0.12 + 0.11 / np.sqrt(_BATCH))
        if abs(discrepancy / independent - 1) < 0.2:
            raise NotApplicable("its times are independent: it does not claim to be even")
        require(
            False,
            {"batch_size": _BATCH, "batches": 128, "state": state},
            {"mean star discrepancy": discrepancy},
            f"at most {2 / _BATCH:.4f} (even), or about {independent:.4f} (independent)",
        )
