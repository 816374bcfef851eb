"""Cheap checks of one's own parts: the quick half of the laws of `diffkit.testing`.

`diffkit.fit` and `diffkit.sample` run them once, before work begins, on a few hundred numbers of each part;
`check=False` skips them. The core's own parts are left out, since its tests run the laws on them. Within a
compiled function values cannot be read, and nothing is checked.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, Float, PyTree

from diffkit.buffers import trainable
from diffkit.denoiser import Denoiser, underlying
from diffkit.grids import AbstractGrid
from diffkit.model import DiffusionModel
from diffkit.parameterizations import AbstractParameterization
from diffkit.processes import AbstractProcess
from diffkit.schedules import AbstractSchedule, ordered_endpoints
from diffkit.time_samplers import AbstractTimeSampler
from diffkit.weightings import AbstractWeighting

MOVES: Final = 1e-5
"""A derivative of an endpoint (`endpoint_slopes`) above this is more than rounding."""

_POINTS = 257
_CELLS = 2**15
# Networks return numbers of order one; an error amplified this much leaves two digits of float32's seven.
_LARGEST_AMPLIFICATION = 1e5


def check_model(model: DiffusionModel) -> None:
    """Check schedule and target of a model: a `ValueError` says which, what came and what was expected."""
    if _is_traced(model):
        return
    schedule, denoiser = model.schedule, underlying(model.denoiser)
    ends = ordered_endpoints(schedule)
    if not _is_core(schedule):
        t = np.linspace(0.0, 1.0, _POINTS, dtype=np.float32)
        logsnr = evaluated(schedule, t)
        numbers = {"logsnr": logsnr[:-1], "then": logsnr[1:], "t": t[:-1]}
        _require("schedule", schedule, np.diff(logsnr) < 0, "fall strictly", numbers)
    if isinstance(denoiser, Denoiser) and not _is_core(denoiser.parameterization, denoiser.process):
        check_target(denoiser.parameterization, denoiser.process, ends)


def check_loss(model: DiffusionModel, weighting: AbstractWeighting, sampler: AbstractTimeSampler) -> None:
    """Check the parts of a loss over the range of a model. **Raises:** as `check_model`."""
    if not _is_core(weighting, model.schedule):
        # Not at the very ends, where by rounding the formula of a published loss may give anything.
        ends = ordered_endpoints(model.schedule)
        logsnr = np.linspace(*ends, _POINTS, dtype=np.float32)[1:-1]
        w = evaluated(weighting, logsnr)
        good = (w >= 0) & np.isfinite(w) & (w.max() > 0)
        must = "be finite, at least 0 and not 0 everywhere"
        _require("weighting", weighting, good, must, {"w": w, "logsnr": logsnr})
    if _is_core(sampler):
        return
    t, importance = (a.ravel() for a in draws(sampler, 64, 32, 1))
    density = evaluated(sampler.density, t)
    numbers = {"t": t, "importance": importance, "density": density}
    good = (t >= 0) & (t < 1) & (np.abs(importance * density - 1) <= 1e-3)
    must = "draw t in [0, 1) and return the importance 1 / density(t)"
    _require("time_sampler", sampler, good, must, numbers)
    t, share, expected, distance = against_density(sampler, draws(sampler, 4, 1024, 2)[0][:, 0])
    # A correct sampler exceeds it once in 10^6.
    limit = math.sqrt(math.log(2 / 1e-6) / 2 / len(t))
    numbers = {"the share of draws": share, "the integral of the density": expected, "up to t": t}
    _require("time_sampler", sampler, distance <= limit, "draw t that follow its density", numbers)


def check_condition(model: DiffusionModel) -> None:
    """Refuse a network whose program does not read its condition, evaluating nothing: a `ValueError`."""
    denoiser = underlying(model.denoiser)
    if not isinstance(denoiser, Denoiser) or _is_core(denoiser.network):
        return
    call, size = type(denoiser.network).__call__, denoiser.network.condition_size
    inputs: Any = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (model.shape, (), (size,))]
    program = eqx.filter_make_jaxpr(call)(denoiser.network, *inputs)[0].jaxpr
    if not any(program.invars[-1] is read for step in program.eqns for read in step.invars):
        raise ValueError(
            f"network {type(denoiser.network).__name__} has condition_size={size} and ignores its argument "
            "condition, but the data have conditions: use it, or take the data without them."
        )


def check_grid(grid: AbstractGrid, schedule: AbstractSchedule, steps: int) -> None:
    """Check that a grid has its points, in order. **Raises:** as `check_model`."""
    if _is_core(grid) or _is_traced(grid, schedule):
        return
    logsnr = np.asarray(grid(schedule, steps))
    ends = np.array(ordered_endpoints(schedule))
    must = f"have steps + 1 = {steps + 1} points"
    _require("grid", grid, [logsnr.shape == (steps + 1,)], must, {"points": [logsnr.size]})
    numbers = {"logsnr": logsnr[:-1], "then": logsnr[1:]}
    _require("grid", grid, np.diff(logsnr) > 0, "rise strictly, from noise to data", numbers)
    numbers = {"logsnr": logsnr[[-1, 0]], "the schedule's": ends}
    near = np.abs(logsnr[[-1, 0]] - ends) <= 1e-3
    _require("grid", grid, near, "end at the schedule's endpoints", numbers)


def check_target(
    parameterization: AbstractParameterization,
    process: AbstractProcess,
    logsnr_range: tuple[float, float],
) -> None:
    """Refuse a target parallel to the latent, or one that does not determine x or eps at an end.

    **Arguments:** the target; its process; the endpoints of the schedule, (max, min).

    **Raises:** `ValueError`, naming the noise level and the determinant; or the end and how much it
    amplifies an error of the network; or the infinite end.
    """
    for end, logsnr in zip(("data", "noise"), logsnr_range, strict=True):
        if not math.isfinite(logsnr):
            raise ValueError(
                f"schedule must have finite endpoints, got logsnr = {logsnr} at the {end} end: with "
                "zero terminal SNR (or no noise at all) the rescaled latent z / alpha and the bound "
                "do not exist. Truncate the schedule, for example with logsnr_min=-20."
            )
    if not _is_core(parameterization, process):
        logsnrs = np.linspace(*logsnr_range, _POINTS, dtype=np.float32)
        row = target_row(parameterization, process, logsnrs)
        det, size = determinant(*row)
        numbers = dict(zip(("a", "b", "alpha", "sigma"), row, strict=True))
        must = (
            "have a determinant alpha b - sigma a of one sign and not zero (where it is, the target is "
            "parallel to the latent and determines neither x nor eps)"
        )
        good = det * np.sign(det[0]) > 1e-5 * size
        numbers = {"the determinant": det, **numbers, "logsnr": logsnrs}
        _require("parameterization", parameterization, good, must, numbers)
    for end, logsnr, wanted in zip(("data", "noise"), logsnr_range, ("eps", "x"), strict=True):
        level = process.at(logsnr)
        # d target / d eps at fixed z is det / alpha, and d target / d x is -det / sigma.
        slope = jnp.sqrt(parameterization.error_factor(level))
        amplification = float((1.0 if wanted == "eps" else level.rho) / slope)
        if not amplification <= _LARGEST_AMPLIFICATION:
            raise ValueError(
                f"parameterization {type(parameterization).__name__} does not determine {wanted} at "
                f"the {end} end of the schedule, logsnr = {logsnr:.4g}: an error of the network would "
                f"count {amplification:.1e} times. Choose parameterization=v, or a schedule that "
                "ends earlier."
            )


def target_row(part: Any, process: Any, logsnr: ArrayLike) -> tuple[np.ndarray, ...]:
    """The matrix of a target, (a, b, alpha, sigma), at many noise levels, in float64."""
    row = evaluated(eqx.Partial(_row, part, process), logsnr)
    return tuple(entry.astype(np.float64) for entry in row)


def _row(part, process, logsnr):
    level = process.at(logsnr)
    return *part.coefficients(level), level.alpha, level.sigma


def determinant(a: Any, b: Any, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """alpha b - sigma a, and the sum of the sizes of its two terms."""
    return alpha * b - sigma * a, np.abs(alpha * b) + np.abs(sigma * a)


def draws(sampler: Any, batch: int, keys: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Times and importances of many batches, (keys, batch)."""
    split = jax.random.split(jax.random.key(seed), keys)
    return evaluated(eqx.Partial(_batch, sampler, batch), split)


def _batch(sampler, batch, key):
    return sampler(key, batch)


def distribution(sampler: Any) -> tuple[np.ndarray, np.ndarray]:
    """The distribution function on a fine grid, integrated from the density by the midpoint rule."""
    middle = (np.arange(_CELLS, dtype=np.float32) + 0.5) / _CELLS
    density = evaluated(sampler.density, middle).astype(np.float64)
    return np.arange(_CELLS + 1) / _CELLS, np.concatenate([[0.0], np.cumsum(density) / _CELLS])


def against_density(sampler: Any, t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Independent draws in order, the share of draws and the integral of the density up to each, and the
    distance of Kolmogorov and Smirnov between the two."""
    t = np.sort(t.astype(np.float64))
    expected, share = np.interp(t, *distribution(sampler)), np.arange(len(t) + 1) / len(t)
    distance = np.maximum(np.abs(share[1:] - expected), np.abs(share[:-1] - expected))
    return t, share[1:], expected, distance


def endpoint_slopes(schedule: AbstractSchedule) -> PyTree[Float[Any, "2 ..."]]:
    """The derivatives of both endpoints by every trainable number, divided by their distance."""
    params, rest = eqx.partition(schedule, trainable(schedule))
    if not jax.tree.leaves(params):
        return params

    def ends(params):
        made = eqx.combine(params, rest)
        found = jnp.stack([made(jnp.asarray(t)) for t in (0.0, 1.0)])
        return found / jax.lax.stop_gradient(found[0] - found[1])

    return jax.jit(jax.jacrev(ends))(params)


def evaluated(function: Callable[..., Any], inputs: ArrayLike) -> Any:
    """A function of a scalar at many inputs, as NumPy arrays. It is compiled once if it is a module."""
    return jax.tree.map(np.asarray, _evaluated(function, jnp.asarray(inputs)))


@eqx.filter_jit
def _evaluated(function, inputs):
    return jax.vmap(function)(inputs)


def _is_core(*parts: Any) -> bool:
    """Whether parts consist of the core's classes and functions only."""
    return all(
        not (callable(part) or dataclasses.is_dataclass(part))
        or (getattr(part, "__module__", "").startswith("diffkit.") and _is_core(*vars(part).values()))
        for part in parts
    )


def _is_traced(*parts: Any) -> bool:
    # Within a compiled function even the sum of two constants is traced.
    return any(isinstance(leaf, Tracer) for leaf in (jnp.ones(()) + 1, *jax.tree.leaves(parts)))


def _require(kind: str, part: Any, good: Any, must: str, numbers: dict[str, Any]) -> None:
    """Refuse a part at the first place where it is not good, showing the numbers there."""
    if not np.all(good):
        at = int(np.argmin(good))
        got = ", ".join(f"{name} = {values[at]:.6g}" for name, values in numbers.items())
        raise ValueError(f"{kind} {type(part).__name__} must {must}; got {got}.")
