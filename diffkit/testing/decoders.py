"""The laws of decoders."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.processes import VariancePreserving
from diffkit.testing.base import NotApplicable, Subject, law, mapped, require, require_close, text

# From where decoders work to where no data are left.
_LOGSNR = (13.3, 8.0, 3.0, 0.0, -5.0)
# Latents y = z / alpha inside and outside of the range of encoded data.
_Y = np.array([-3.0, -1.0, -0.504, 0.0, 0.2471, 0.99, 2.5], np.float32)
_POINTS = 8001


def _support(part: Any, y: np.ndarray, logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of x, and the log probability of each given each latent in turn: (latents, values).

    For discrete data, the levels; for continuous data, a fine grid of 20 standard deviations to both sides
    of the decoder's best value.
    """

    def log_prob(x, y, logsnr):
        level = VariancePreserving().at(logsnr)
        return part.log_prob(x[None], level.alpha * y[None], level)

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

    def every(x, y, logsnr):
        return jax.vmap(lambda one: log_prob(one, y, logsnr))(x)

    return x, mapped(every, x, y, logsnr)


def _probabilities(part: Any, x: np.ndarray, log_prob: np.ndarray) -> np.ndarray:
    """The probability of each value, or of the cell around each point of the grid."""
    p = np.exp(log_prob.astype(np.float64))
    return p if part.levels is not None else p * np.gradient(x.astype(np.float64), axis=1)


@law(
    "decoder",
    "Probabilities sum to one over the levels, or the density integrates to one, for latents inside "
    "and outside the range of the data, at logsnr 13.3 to -5.",
)
def probabilities_sum_to_one(subject: Subject) -> None:
    part = subject.part
    y, logsnr = (a.ravel() for a in np.meshgrid(_Y, np.asarray(_LOGSNR, np.float32)))
    total = _probabilities(part, *_support(part, y, logsnr)).sum(axis=1)
    require_close(
        total,
        np.ones_like(total),
        1e-3,
        given={"z_0 / alpha_0": y, "logsnr_0": logsnr},
        what="sum of the probabilities",
        should="it should be",
    )


@law("decoder", "log_prob of an example is the sum over its dimensions.")
def dimensions_are_independent(subject: Subject) -> None:
    part = subject.part
    stored = jnp.asarray([0, 1] if part.levels is not None else [0.3, -0.2])

    def both(logsnr):
        level = VariancePreserving().at(logsnr)
        z = level.alpha * jnp.asarray(_Y[2:4])
        whole = part.log_prob(stored, z, level)
        return whole, sum(part.log_prob(stored[i : i + 1], z[i : i + 1], level) for i in range(2))

    logsnr = np.asarray(_LOGSNR, np.float32)
    whole, total = mapped(both, logsnr)
    require_close(
        whole,
        total,
        1e-5 * (1 + np.abs(total)),
        given={"x": text(stored), "z_0 / alpha_0": text(_Y[2:4]), "logsnr_0": logsnr},
        what="log_prob of both dimensions",
        should="the sum of each one's",
    )


@law(
    "decoder",
    "Levels are encoded in increasing order and within [-1, 1]; floats increasing and finite.",
)
def encodes_in_range(subject: Subject) -> None:
    part = subject.part
    if part.levels is None:
        stored, low, high = jnp.linspace(-3.0, 3.0, 61), -np.inf, np.inf
    else:
        stored, low, high = jnp.arange(part.levels), -1.0, 1.0
    encoded = np.asarray(part.encode(stored))
    given, numbers = {"x": np.asarray(stored)}, {"encoded": encoded}
    require(
        np.isfinite(encoded) & (encoded >= low) & (encoded <= high),
        given=given,
        numbers=numbers,
        expected="a number in [-1, 1]" if part.levels is not None else "a finite number",
    )
    require(
        np.diff(encoded) > 0,
        given={"x": np.asarray(stored)[:-1]},
        numbers={"encoded": encoded[:-1], "encoded next": encoded[1:]},
        expected="the second above the first",
    )


@law("decoder", "decode undoes encode at almost no noise.")
def decode_undoes_encode(subject: Subject) -> None:
    part = subject.part
    level = VariancePreserving().at(20.0)
    if part.levels is not None:
        stored = jnp.arange(part.levels)
    else:  # in the data's own units
        stored = part.decode(level.alpha * jnp.linspace(-1.0, 1.0, 41), level)
    back = part.decode(level.alpha * part.encode(stored), level)
    require_close(
        np.asarray(back),
        np.asarray(stored),
        0.0 if part.levels is not None else 1e-5 * float(jnp.max(jnp.abs(stored))),
        given={"x": np.asarray(stored), "logsnr_0": 20.0},
        what="decode(encode(x))",
        should="x",
    )


@law(
    "decoder",
    "decode with a key draws from the probabilities: a Kolmogorov-Smirnov test of 4096 draws at each "
    "of three noise levels, which a correct decoder fails once in 10^4.",
)
def draws_follow_the_probabilities(subject: Subject) -> None:
    part = subject.part
    count = 4096
    if part.levels is not None and part.levels > 2**12:
        raise NotApplicable(f"more levels ({part.levels}) than draws")
    keys = jax.random.split(jax.random.key(0), count)
    limit = np.sqrt(np.log(2 / 1e-4) / 2 / count)
    latents, logsnrs = np.full(3, 0.2471, np.float32), np.array([8.0, 3.0, -2.0], np.float32)

    def draws(y, logsnr):
        level = VariancePreserving().at(logsnr)
        return jax.vmap(lambda key: part.decode(level.alpha * y[None], level, key=key)[0])(keys)

    drawn = mapped(draws, latents, logsnrs)
    x, log_prob = _support(part, latents, logsnrs)
    shares = np.cumsum(_probabilities(part, x, log_prob), axis=1)
    for index, logsnr in enumerate(logsnrs):
        found = np.searchsorted(np.sort(drawn[index]), x[index], side="right") / count
        require(
            np.abs(found - shares[index]) <= limit,
            given={"x": x[index], "z_0 / alpha_0": latents[index], "logsnr_0": logsnr},
            numbers={"share of draws up to x": found, "probability up to x": shares[index]},
            expected=f"a difference of at most {limit:.4f}",
            worst=np.abs(found - shares[index]),
        )
