r"""The laws of samplers, on a problem with a known answer.

Data are normal with mean m and standard deviation s. In the rescaled latent the probability-flow ODE
then has the map $m + (y - m) \sqrt{(s^2 + \rho_b^2) / (s^2 + \rho_a^2)}$ from $\rho_a$ to $\rho_b$, and
the latents have the mean m and the variance $s^2 + \rho^2$. One law also uses data from two such normals,
at $m \pm d$: in one dimension the map keeps the share of the data below. The denoiser is exact, so that
only the sampler is measured.
"""

import functools
import itertools
import math
from statistics import NormalDist
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffkit.denoiser import Prediction
from diffkit.processes import VarianceExploding
from diffkit.samplers import DDIM, AbstractSampler, take_step
from diffkit.testing.base import (
    LOGSNR_RANGE,
    NotApplicable,
    Subject,
    Violation,
    draws_numbers,
    law,
    require,
    text,
)

_MEAN, _STD = 0.7, 0.5
_NORMAL = (_MEAN, _STD, 0.0)
_TWO_MODES = (0.0, 0.1, 1.0)
"""Mean, standard deviation of a mode, and half the distance of the modes."""
_WIDE = (-2 * math.log(80), -2 * math.log(0.002))
"""From rho = 80, where the data are lost in the noise, to rho = 0.002."""
_MIDDLE = (-4.0, 6.0)
"""Where the data emerge: a step is finer here, so fewer steps suffice."""
_WHOLE = LOGSNR_RANGE[1], LOGSNR_RANGE[0]
_MOST = 1000
_EXAMPLES = 16
_DRAWS = 2**15


def _denoise(y: Any, logsnr: Any, data: Any = _NORMAL) -> Prediction:
    # Alpha is 1 under this process: the latent is the rescaled latent.
    level = VarianceExploding().at(logsnr)
    mean, std, half = data
    variance, rho2 = std**2 + jnp.square(level.rho), jnp.square(level.rho)
    mode = half * jnp.tanh(half * (y - mean) / variance)
    x = mean + (std**2 * (y - mean) + rho2 * mode) / variance
    return Prediction(x, level.rho * ((y - mean - mode) / variance), level)


@eqx.filter_jit
def _integrate(sampler, y, keys, logsnr, steps, data):
    def denoise(y, logsnr):
        return _denoise(y, logsnr, data)

    def step(y, state, key, logsnr_t, logsnr_s, index):
        key = jax.random.fold_in(key, index) if sampler.stochastic else None
        return take_step(sampler, denoise, y, logsnr_t, logsnr_s, state, key)

    every: Any = jax.vmap(step, in_axes=(0, 0, 0, None, None, None))

    def body(index, carry):
        return every(*carry, keys, logsnr[index], logsnr[index + 1], index)

    # The number of steps is an array, so one compilation serves all.
    return jax.lax.fori_loop(0, steps, body, (y, jax.vmap(sampler.init)(y)))[0]


def _run(
    sampler: AbstractSampler,
    y: np.ndarray,
    logsnr: np.ndarray,
    dtype: Any,
    seed: int = 0,
    data: tuple[float, float, float] = _NORMAL,
) -> np.ndarray:
    """The latents y, (n, 1), taken along a grid."""
    padded = np.concatenate([logsnr, np.full(_MOST + 1 - len(logsnr), logsnr[-1])])
    keys = jax.random.split(jax.random.key(seed), len(y))
    inputs = jnp.asarray(y, dtype), keys, jnp.asarray(padded, dtype), jnp.asarray(len(logsnr) - 1)
    found = np.asarray(_integrate(sampler, *inputs, jnp.asarray(data, dtype)))
    if found.dtype != dtype:
        given = f"a latent in {np.dtype(dtype).name}"
        raise Violation(given, f"it comes back in {found.dtype}; expected the dtype to be kept")
    return found.astype(np.float64)


def _start(ends: tuple[float, float], count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((count, 1))
    return _MEAN + math.sqrt(_STD**2 + math.exp(-ends[0])) * noise


def _error(sampler: AbstractSampler, steps: int) -> float:
    """The root mean square distance from the exact solution of the probability-flow ODE."""
    y = _start(_WIDE, _EXAMPLES, 0)
    found = _run(sampler, y, np.linspace(*_WIDE, steps + 1), np.float64)
    before, after = (_STD**2 + math.exp(-logsnr) for logsnr in _WIDE)
    exact = _MEAN + (y - _MEAN) * math.sqrt(after / before)
    return float(np.sqrt(np.mean((found - exact) ** 2)))


def _only(subject: Subject, *, stochastic: bool) -> AbstractSampler:
    if subject.part.stochastic != stochastic:
        raise NotApplicable("not stochastic" if stochastic else "a law of deterministic samplers")
    return subject.part


@law("sampler")
def reaches_its_order(subject: Subject) -> None:
    """A deterministic sampler reaches its stated order: the slope of log error against log steps, at 160,
    320 and 640 steps in float64, is at most 0.3 below it. Without an order the error is below 1e-4 for any
    number of steps."""
    sampler = _only(subject, stochastic=False)
    counts = np.array((1, 4, 32) if sampler.order is None else (160, 320, 640))
    with jax.enable_x64(True):
        errors = np.array([_error(sampler, int(steps)) for steps in counts])
    if sampler.order is None:
        expected = "below 1e-4, since order is None"
        require(errors < 1e-4, {"steps": counts}, {"error": errors}, expected)
        return
    given = {"steps": text(counts), "order": sampler.order}
    finite = bool(np.isfinite(errors).all())
    require(finite, given, {"errors": text(errors)}, "finite errors")
    counts, errors = counts[errors > 1e-12], errors[errors > 1e-12]
    if len(counts) < 2:
        return  # Exact to rounding.
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    require(
        bool(order >= sampler.order - 0.3),
        given,
        {"errors": text(errors), "measured order": order},
        f"{sampler.order}, or at least {sampler.order - 0.3:.1f}",
    )


@law("sampler")
def draws_only_if_stochastic(subject: Subject) -> None:
    """step draws random numbers if and only if the sampler says that it is stochastic."""
    sampler = subject.part

    def step(y, key):
        return sampler.step(_denoise, y, jnp.asarray(0.0), jnp.asarray(1.0), sampler.init(y), key)

    stated = sampler.stochastic
    draws = draws_numbers(step, jnp.ones((1,)), jax.random.key(0) if stated else None)
    numbers = {"step draws random numbers": draws}
    require(draws == stated, {"stochastic": stated}, numbers, str(stated))


@law("sampler")
def calls_as_stated(subject: Subject) -> None:
    """A step calls the network as often as stated, after the first steps."""
    sampler = subject.part
    if sampler.calls is None:
        raise NotApplicable("calls is None: their number varies")
    visited = []

    def denoise(y, logsnr):
        visited.append(logsnr)
        return _denoise(y, logsnr)

    logsnr, y = jnp.linspace(-3.0, 3.0, 9), jnp.ones((1,))
    state = sampler.init(y)
    # Without compilation, so that Python sees every call.
    with jax.disable_jit():
        for index in range(8):
            key = jax.random.key(index) if sampler.stochastic else None
            visited.clear()
            y, state = sampler.step(denoise, y, logsnr[index], logsnr[index + 1], state, key)
    found, given = len(visited), {"step": 8, "calls": sampler.calls}
    require(found == sampler.calls, given, {"calls of the network": found}, str(sampler.calls))


@law("sampler")
def keeps_its_digits_in_float32(subject: Subject) -> None:
    """In float32, with 640 steps, a deterministic sampler differs from itself in float64 by at most 1e-4
    (for data of standard deviation 0.5): coefficients keep their digits."""
    sampler = _only(subject, stochastic=False)
    y, logsnr = _start(_WIDE, _EXAMPLES, 0), np.linspace(*_WIDE, 641)
    found = _run(sampler, y, logsnr, np.float32)[:, 0]
    with jax.enable_x64(True):
        exact = _run(sampler, y, logsnr, np.float64)[:, 0]
    require(
        np.abs(found - exact) <= 1e-4,
        {"start": y[:, 0], "steps": 640},
        {"float32": found, "float64": exact},
        "a difference of at most 1e-4",
        np.abs(found - exact),
    )


_UNEVEN = {
    "8 steps": np.linspace(*_WHOLE, 9),
    "steps of sizes 0.01 and 5": np.cumsum([-10.0, *[0.01, 5.0] * 4, 0.01, 3.0]),
}


@law("sampler")
def stays_bounded_on_uneven_grids(subject: Subject) -> None:
    """On a grid of few steps and one of very uneven steps over the whole range, in float32, latents stay
    finite and at most twice as large as the largest at the start."""
    sampler = subject.part
    count = _DRAWS if sampler.stochastic else _EXAMPLES  # the shapes of the other laws
    y = _start(_WHOLE, count, 1)
    most = 2 * np.abs(y).max()
    for name, logsnr in _UNEVEN.items():
        found = _run(sampler, y, logsnr, np.float32)[:, 0]
        require(
            np.isfinite(found) & (np.abs(found) <= most),
            {"grid": name, "logsnr": text(logsnr), "start": y[:, 0]},
            {"end": found},
            f"a latent of at most {most:.4g}",
            np.abs(found),
        )


def _even_in_rho(steps: int) -> np.ndarray:
    first, last = (math.exp(-end / 14) for end in _WIDE)
    return -14 * np.log(np.linspace(first, last, steps + 1))


def _even_on_the_straight_path(steps: int) -> np.ndarray:
    first, last = (1 / (1 + math.exp(end / 2)) for end in _WIDE)
    shares = np.linspace(first, last, steps + 1)
    return 2 * np.log((1 - shares) / shares)


def _growing(steps: int) -> np.ndarray:
    return _WIDE[0] + (np.exp2(4 * np.arange(steps + 1) / steps) - 1) / 15 * (_WIDE[1] - _WIDE[0])


_FEW = {
    "even in logsnr": lambda steps: np.linspace(*_WIDE, steps + 1),
    "even in logsnr from rho = 20000": lambda steps: np.linspace(-19.8, _WIDE[1], steps + 1),
    "even in rho^(1/7)": _even_in_rho,
    "even on the straight path": _even_on_the_straight_path,
    "of growing steps": _growing,
}
"""Grids from rho = 80 to 0.002, but for the second, by the number of steps."""

_below = np.vectorize(NormalDist().cdf)


def _quantile_map(y: np.ndarray, ends: tuple[float, float], data: tuple[float, float, float]) -> np.ndarray:
    """The exact solution of the probability-flow ODE in one dimension: the share below is kept."""
    mean, std, half = data

    def below(y: np.ndarray, logsnr: float) -> np.ndarray:
        scale = math.hypot(std, math.exp(-logsnr / 2))
        return (_below((y - mean - half) / scale) + _below((y - mean + half) / scale)) / 2

    share, low, high = below(y, ends[0]), np.full(y.shape, -10.0), np.full(y.shape, 10.0)
    for _ in range(60):
        middle = (low + high) / 2
        less = below(middle, ends[1]) < share
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return (low + high) / 2


def _distance(sampler: AbstractSampler, logsnr: np.ndarray, data: tuple[float, float, float]) -> float:
    """The root mean square distance from the exact map; for a stochastic sampler, the Wasserstein distance
    of order 2 between the distributions, treating the latents as normal."""
    ends = float(logsnr[0]), float(logsnr[-1])
    if not sampler.stochastic:
        # Quantiles of the prior, so that the modes have equal shares.
        spread = math.sqrt(data[1] ** 2 + data[2] ** 2 + math.exp(-ends[0]))
        shares = (np.arange(_EXAMPLES) + 0.5) / _EXAMPLES
        y = np.array([[NormalDist(data[0], spread).inv_cdf(share)] for share in shares])
        found = _run(sampler, y, logsnr, np.float32, data=data)
        return float(np.sqrt(np.mean((found - _quantile_map(y, ends, data)) ** 2)))
    found = _run(sampler, _start(ends, _DRAWS, 0), logsnr, np.float32)
    std = math.sqrt(_STD**2 + math.exp(-ends[1]))
    return math.hypot(found.mean() - _MEAN, found.std() - std)


@functools.cache
def _distance_of_ddim(grid: str, calls: int, data: tuple[float, float, float]) -> float:
    return _distance(DDIM(), _FEW[grid](calls), data)


@law("sampler")
def does_not_amplify(subject: Subject) -> None:
    """With 1, 2, 3 and 4 steps to rho = 0.002, on five grids from rho = 80 or more, the error is at most
    twice that of DDIM with as many network calls, give or take 0.01. The error is measured against the
    exact map, for normal data and for two narrow modes; for a stochastic sampler it is that of mean and
    standard deviation, for normal data."""
    sampler = subject.part
    problems = {"normal": _NORMAL} | ({} if sampler.stochastic else {"two modes": _TWO_MODES})
    for (problem, data), (name, grid), steps in itertools.product(
        problems.items(), _FEW.items(), range(1, 5)
    ):
        error = _distance(sampler, grid(steps), data)
        reference = _distance_of_ddim(name, steps * (sampler.calls or 1), data)
        require(
            bool(error <= 2 * reference + 0.01),
            {"data": problem, "grid": name, "steps": steps, "calls": sampler.calls},
            {"error": error, "error of DDIM": reference},
            "at most twice that of DDIM",
        )


def _moments(sampler: AbstractSampler, ends: tuple[float, float], steps: int, runs: int):
    """Mean, and variance by its exact value, of the last latents of `runs` times _DRAWS draws."""
    logsnr = np.linspace(*ends, steps + 1)
    starts = (_start(ends, _DRAWS, run) for run in range(runs))
    found = [_run(sampler, y, logsnr, np.float32, run) for run, y in enumerate(starts)]
    exact = _STD**2 + math.exp(-ends[1])
    return np.mean(found), np.mean((np.array(found) - _MEAN) ** 2) / exact


@law("sampler")
def reproduces_mean_and_variance(subject: Subject) -> None:
    """A stochastic sampler reproduces mean and variance of the data in 1000 steps: within 5 standard errors
    of 32768 draws (false alarm rate below 10^-5) and a bias of 2 %."""
    sampler = _only(subject, stochastic=True)
    mean, variance = _moments(sampler, _WIDE, _MOST, 1)
    given = {"data": f"normal, mean {_MEAN}, standard deviation {_STD}", "steps": _MOST}
    for what, found, right, within in (
        ("mean", mean, _MEAN, (5 / math.sqrt(_DRAWS) + 0.02) * _STD),
        ("variance, by the exact one", variance, 1, 5 * math.sqrt(2 / _DRAWS) + 0.02),
    ):
        holds = bool(abs(found - right) <= within)
        require(holds, given, {what: found}, f"{right} within {within:.4f}")


@law("sampler")
def bias_falls_at_the_weak_order(subject: Subject) -> None:
    """The bias of a stochastic sampler in mean and variance falls from 64 to 256 steps at its weak order
    minus 0.5 or faster, give or take 3 standard errors of 2^19 draws."""
    sampler = _only(subject, stochastic=True)
    order = sampler.order
    if order is None:
        raise NotApplicable("order is None: its bias has no order")
    runs, counts = 16, (64, 256)
    found, draws = [_moments(sampler, _MIDDLE, steps, runs) for steps in counts], runs * _DRAWS
    for what, bias, error in (
        ("mean, by the standard deviation", [(m - _MEAN) / _STD for m, _ in found], draws**-0.5),
        ("variance, by the exact one", [v - 1 for _, v in found], (2 / draws) ** 0.5),
    ):
        few, many = np.abs(bias)
        # As fast as both errors allow: only a real bias can fall too slowly. With fewer steps its sign
        # changes for correct samplers too.
        fastest = math.log((few + 3 * error) / max(many - 3 * error, 1e-12), 4)
        require(
            bool(fastest >= order - 0.5),  # false for NaN
            {"steps": text(counts), "order": order},
            {
                f"bias of the {what}": text(bias),
                "standard error": error,
                "order at which it falls, at most": fastest,
            },
            f"{order}, or at least {order - 0.5}",
        )


@law("sampler")
def step_depends_on_its_arguments_alone(subject: Subject) -> None:
    """A step depends only on its arguments: two calls give the same result, and so does an example alone
    and in a batch."""
    sampler = subject.part
    y = jnp.asarray(_start(_MIDDLE, 3, 2), jnp.float32)
    keys = jax.random.split(jax.random.key(6), len(y))

    def two_steps(y, key):
        state = sampler.init(y)
        for index, (logsnr_t, logsnr_s) in enumerate(((-1.0, 0.5), (0.5, 1.5))):
            own = jax.random.fold_in(key, index) if sampler.stochastic else None
            ends = jnp.asarray(logsnr_t), jnp.asarray(logsnr_s)
            y, state = sampler.step(_denoise, y, *ends, state, own)
        return y, state

    def numbers(tree: Any) -> np.ndarray:
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    index = 1
    once, again = (numbers(two_steps(y[index], keys[index])) for _ in range(2))
    among = numbers(jax.tree.map(lambda leaf: leaf[index], jax.vmap(two_steps)(y, keys)))
    for how, other in (("called again", again), ("within a batch", among)):
        require(
            np.abs(once - other) <= 1e-4 * (1 + np.abs(once)),
            {"latent": y[index, 0], "start of the steps": text([-1.0, 0.5])},
            {"latent and state": once, how: other},
            "the same",
            np.abs(once - other),
        )
