"""The laws of decoders."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.processes import VariancePreserving
from diffkit.testing.base import NotApplicable, Subject, law, mapped, require, require_close, text

# From where decoders work to where no data are left.
_LOGSNR = np.array([13.3, 8.0, 3.0, 0.0, -5.0], np.float32)
# Latents y = z / alpha inside and outside of the range of encoded data.
_Y = np.array([-3.0, -1.0, -0.504, 0.0, 0.2471, 0.99, 2.5], np.float32)
_POINTS = 8001
_DRAWS = 4096


def _probabilities(part: Any, y: np.ndarray, logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of x, and the probability of each given each latent in turn: (latents, values).

    For discrete data, of the levels; for continuous data, of cells around the points of a fine grid, of 20
    standard deviations to both sides of the decoder's best value.
    """

    def best(y, logsnr):
        level = VariancePreserving().at(logsnr)
        best = part.decode(level.alpha * y[None], level)[0]
        # The length of a unit of encoded data in stored units.
        stretch = 1 / jax.grad(lambda x: part.encode(x[None])[0])(best)
        return best, jnp.abs(stretch) * level.rho

    if part.levels is not None:
        x = np.tile(np.arange(part.levels), (len(y), 1))
    else:
        centre, std = mapped(best, y, logsnr)
        x = centre[:, None] + 20 * std[:, None] * np.linspace(-1, 1, _POINTS)
        x = x.astype(np.float32)

    def log_prob(x, y, logsnr):
        level = VariancePreserving().at(logsnr)
        z = level.alpha * y[None]
        return jax.vmap(lambda one: part.log_prob(one[None], z, level))(x)

    p = np.exp(mapped(log_prob, x, y, logsnr).astype(np.float64))
    return x, p if part.levels is not None else p * np.gradient(x.astype(np.float64), axis=1)


@law("decoder")
def probabilities_sum_to_one(subject: Subject) -> None:
    """Probabilities sum to one over the levels, or the density integrates to one, for latents inside and
    outside the range of the data, at logsnr 13.3 to -5."""
    y, logsnr = (a.ravel() for a in np.meshgrid(_Y, _LOGSNR))
    total = _probabilities(subject.part, y, logsnr)[1].sum(axis=1)
    given = {"z_0 / alpha_0": y, "logsnr_0": logsnr}
    require_close(total, 1.0, 1e-3, given, "sum of the probabilities")


@law("decoder")
def dimensions_are_independent(subject: Subject) -> None:
    """log_prob of an example is the sum over its dimensions."""
    part = subject.part
    stored = jnp.asarray([0, 1] if part.levels is not None else [0.3, -0.2])

    def both(logsnr):
        level = VariancePreserving().at(logsnr)
        z = level.alpha * jnp.asarray(_Y[2:4])
        whole = part.log_prob(stored, z, level)
        return whole, sum(part.log_prob(stored[i : i + 1], z[i : i + 1], level) for i in range(2))

    whole, total = mapped(both, _LOGSNR)
    require_close(
        whole,
        total,
        1e-5 * (1 + np.abs(total)),
        {"x": text(stored), "z_0 / alpha_0": text(_Y[2:4]), "logsnr_0": _LOGSNR},
        "log_prob of both dimensions",
        "the sum of each one's",
    )


@law("decoder")
def encodes_in_range(subject: Subject) -> None:
    """Levels are encoded in increasing order and within [-1, 1]; floats increasing and finite."""
    part = subject.part
    if part.levels is None:
        stored, most, expected = jnp.linspace(-3.0, 3.0, 61), np.inf, "a finite number"
    else:
        stored, most, expected = jnp.arange(part.levels), 1.0, "a number in [-1, 1]"
    encoded, x = np.asarray(part.encode(stored)), np.asarray(stored)
    holds = np.isfinite(encoded) & (np.abs(encoded) <= most)
    require(holds, {"x": x}, {"encoded": encoded}, expected)
    require(
        np.diff(encoded) > 0,
        {"x": x[:-1]},
        {"encoded": encoded[:-1], "encoded next": encoded[1:]},
        "the second above the first",
    )


@law("decoder")
def decode_undoes_encode(subject: Subject) -> None:
    """decode undoes encode at almost no noise."""
    part = subject.part
    level = VariancePreserving().at(20.0)
    if part.levels is not None:
        stored = jnp.arange(part.levels)
    else:  # in the data's own units
        stored = part.decode(level.alpha * jnp.linspace(-1.0, 1.0, 41), level)
    back, x = (np.asarray(a) for a in (part.decode(level.alpha * part.encode(stored), level), stored))
    tolerance = 0.0 if part.levels is not None else 1e-5 * float(np.abs(x).max())
    require_close(back, x, tolerance, {"x": x, "logsnr_0": 20.0}, "decode(encode(x))", "x")


@law("decoder")
def draws_follow_the_probabilities(subject: Subject) -> None:
    """decode with a key draws from the probabilities: a Kolmogorov-Smirnov test of 4096 draws at each of
    three noise levels, which a correct decoder fails once in 10^4."""
    part = subject.part
    if part.levels is not None and part.levels > _DRAWS:
        raise NotApplicable(f"more levels ({part.levels}) than draws")
    keys = jax.random.split(jax.random.key(0), _DRAWS)
    limit = np.sqrt(np.log(2 / 1e-4) / 2 / _DRAWS)
    latents, logsnrs = np.full(3, 0.2471, np.float32), np.array([8.0, 3.0, -2.0], np.float32)

    def draws(y, logsnr):
        level = VariancePreserving().at(logsnr)
        return jax.vmap(lambda key: part.decode(level.alpha * y[None], level, key=key)[0])(keys)

    drawn = mapped(draws, latents, logsnrs)
    values, probabilities = _probabilities(part, latents, logsnrs)
    shares = np.cumsum(probabilities, axis=1)
    for draw, x, share, y, logsnr in zip(drawn, values, shares, latents, logsnrs, strict=True):
        found = np.searchsorted(np.sort(draw), x, side="right") / _DRAWS
        require(
            np.abs(found - share) <= limit,
            {"x": x, "z_0 / alpha_0": y, "logsnr_0": logsnr},
            {"share of draws up to x": found, "probability up to x": share},
            f"a difference of at most {limit:.4f}",
            np.abs(found - share),
        )
