"""The laws of schedules."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffkit import analytic
from diffkit.buffers import trainable
from diffkit.checks import MOVES, endpoint_slopes
from diffkit.decoders import GaussianDecoder
from diffkit.model import DiffusionModel
from diffkit.objectives import vlb
from diffkit.testing.base import Subject, Violation, law, mapped, require, require_close, text
from diffkit.time_samplers import LowDiscrepancy

_T = np.linspace(0.0, 1.0, 10_000, dtype=np.float32)
_EPS = float(np.finfo(np.float32).eps)


def _slopes(schedule: Callable[[Any], Any], t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    def one(t):
        return jax.jvp(schedule, (t,), (jnp.ones_like(t),))

    return mapped(one, t)


@law("schedule")
def finite(subject: Subject) -> None:
    """logsnr is a finite scalar at 10,000 times from 0 to 1, both ends included."""
    logsnr = mapped(subject.part, _T)
    require(np.isfinite(logsnr), {"t": _T}, {"logsnr(t)": logsnr}, "finite")


@law("schedule")
def strictly_decreasing(subject: Subject) -> None:
    """logsnr falls strictly from each of 10,000 times to the next, in float32."""
    _check_decreasing(mapped(subject.part, _T), {})


def _check_decreasing(logsnr: np.ndarray, where: dict[str, Any]) -> None:
    require(
        np.diff(logsnr) < 0,
        where | {"t": _T[:-1], "next t": _T[1:]},
        {"logsnr(t)": logsnr[:-1], "logsnr(next t)": logsnr[1:]},
        "the second below the first",
    )


@law("schedule")
def inverse_inverts(subject: Subject) -> None:
    """inverse undoes the schedule, both ways, to the precision of float32."""
    schedule = subject.part
    t = _T[:: len(_T) // 200]
    logsnr, slope = _slopes(schedule, t)
    # How far the rounding of logsnr moves t, and vice versa, with a wide margin.
    back = mapped(schedule.inverse, logsnr)
    given = {"t": t, "logsnr(t)": logsnr}
    tolerance = 1e-4 + 32 * _EPS * (1 + np.abs(logsnr)) / np.maximum(np.abs(slope), 1e-12)
    require_close(back, t, tolerance, given, "inverse(logsnr(t))", "t")
    maximum, minimum = logsnr[0], float(schedule(jnp.asarray(1.0)))
    logsnr = np.linspace(maximum, minimum, 201, dtype=np.float32)
    t = mapped(schedule.inverse, logsnr)
    there, slope = _slopes(schedule, t)
    given = {"logsnr": logsnr, "inverse(logsnr)": t}
    tolerance = 1e-3 + 32 * _EPS * (1 + np.abs(logsnr) + np.abs(slope))
    require_close(there, logsnr, tolerance, given, "logsnr(inverse(logsnr))", "logsnr")


@law("schedule")
def endpoints(subject: Subject) -> None:
    """endpoints are logsnr at t = 0 and at t = 1, the larger first."""
    _check_endpoints(subject.part, {})


def _check_endpoints(schedule: Any, where: dict[str, Any]) -> None:
    ends = np.array([float(end) for end in schedule.endpoints])
    there = np.array([float(schedule(jnp.asarray(t))) for t in (0.0, 1.0)])
    given = where or {"endpoints": "of the part"}
    require(ends[0] > ends[1], given, {"endpoints": ends}, "(max, min)")
    given, tolerance = where | {"t": np.array([0.0, 1.0])}, 1e-5 * (1 + np.abs(ends))
    require_close(there, ends, tolerance, given, "logsnr(t)", "the endpoint")


@law("schedule")
def endpoints_kept_while_training(subject: Subject) -> None:
    """Training moves no endpoint by accident: they are fixed, or parameters of their own (at most two
    numbers move them); after a few steps on a VLB logsnr still falls strictly between them."""
    schedule = subject.part
    params, rest = eqx.partition(schedule, trainable(schedule))
    if not jax.tree.leaves(params):
        return  # Nothing can move.
    trained = _trained(params, rest)

    def ends(params):
        schedule = eqx.combine(params, rest)
        return jnp.stack([schedule(jnp.asarray(0.0)), schedule(jnp.asarray(1.0))])

    before, after = np.asarray(ends(params)), np.asarray(ends(trained))
    # The endpoints' derivatives by every trainable number show what moves them under any loss.
    moving = {
        jax.tree_util.keystr(path): int((np.abs(leaf) > MOVES).any(axis=0).sum())
        for path, leaf in jax.tree_util.tree_leaves_with_path(endpoint_slopes(schedule))
    }
    if (total := sum(moving.values())) > 2:
        names = ", ".join(f"{count} in {name}" for name, count in moving.items() if count)
        raise Violation(
            f"the derivatives of logsnr(0) and logsnr(1) by the parameters, and {_STEPS} steps",
            f"{total} trainable numbers move the endpoints ({names}), from "
            f"{text(before)} to {text(after)} in these steps; expected fixed endpoints, or at most two "
            "numbers",
        )
    made = eqx.combine(trained, rest)
    where = {"training steps": _STEPS}
    logsnr = mapped(made, _T)
    require(np.isfinite(logsnr), where | {"t": _T}, {"logsnr": logsnr}, "finite")
    _check_endpoints(made, where)
    _check_decreasing(logsnr, where)


_STEPS = 5


def _trained(params: Any, rest: Any) -> Any:
    """The parameters after a few steps of sign descent, as long as Adam's first, on a VLB."""
    # A denoiser that is right for data of another mean and width.
    denoiser = analytic.gaussian(np.array([0.5, -0.5]), np.diag([0.5, 2.0]))
    x = jax.random.normal(jax.random.key(1), (16, 2))

    @jax.jit
    def step(params, key):
        def loss(params):
            model = DiffusionModel(denoiser, eqx.combine(params, rest), GaussianDecoder(), (2,))
            return jnp.mean(vlb(model, x, key=key, time_sampler=LowDiscrepancy()).total)

        def move(p, g):
            return p - 0.02 * jnp.sign(g) * (1 + jnp.abs(p))

        return jax.tree.map(move, params, jax.grad(loss)(params))

    for index in range(_STEPS):
        params = step(params, jax.random.fold_in(jax.random.key(2), index))
    return params
