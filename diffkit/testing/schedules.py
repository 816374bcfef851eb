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


@law("schedule", "logsnr is a finite scalar at 10,000 times from 0 to 1, both ends included.")
def finite(subject: Subject) -> None:
    logsnr = mapped(subject.part, _T)
    require(np.isfinite(logsnr), given={"t": _T}, numbers={"logsnr(t)": logsnr}, expected="finite")


@law("schedule", "logsnr falls strictly from each of 10,000 times to the next, in float32.")
def strictly_decreasing(subject: Subject) -> None:
    logsnr = mapped(subject.part, _T)
    _check_decreasing(logsnr, {})


def _check_decreasing(logsnr: np.ndarray, where: dict[str, Any]) -> None:
    require(
        np.diff(logsnr) < 0,
        given=where | {"t": _T[:-1], "next t": _T[1:]},
        numbers={"logsnr(t)": logsnr[:-1], "logsnr(next t)": logsnr[1:]},
        expected="the second below the first",
    )


@law("schedule", "inverse undoes the schedule, both ways, to the precision of float32.")
def inverse_inverts(subject: Subject) -> None:
    schedule = subject.part
    t = _T[:: len(_T) // 200]
    logsnr, slope = _slopes(schedule, t)
    # How far the rounding of logsnr moves t, and vice versa, with a wide margin.
    back = mapped(schedule.inverse, logsnr)
    require_close(
        back,
        t,
        1e-4 + 32 * _EPS * (1 + np.abs(logsnr)) / np.maximum(np.abs(slope), 1e-12),
        given={"t": t, "logsnr(t)": logsnr},
        what="inverse(logsnr(t))",
        should="t",
    )
    maximum, minimum = logsnr[0], float(schedule(jnp.asarray(1.0)))
    logsnr = np.linspace(maximum, minimum, 201, dtype=np.float32)
    t = mapped(schedule.inverse, logsnr)
    there, slope = _slopes(schedule, t)
    require_close(
        there,
        logsnr,
        1e-3 + 32 * _EPS * (1 + np.abs(logsnr) + np.abs(slope)),
        given={"logsnr": logsnr, "inverse(logsnr)": t},
        what="logsnr(inverse(logsnr))",
        should="logsnr",
    )


@law("schedule", "endpoints are logsnr at t = 0 and at t = 1, the larger first.")
def endpoints(subject: Subject) -> None:
    _check_endpoints(subject.part, {})


def _check_endpoints(schedule: Any, where: dict[str, Any]) -> None:
    ends = np.array([float(end) for end in schedule.endpoints])
    there = np.array([float(schedule(jnp.asarray(t))) for t in (0.0, 1.0)])
    require(
        ends[0] > ends[1],
        given=where or {"endpoints": "of the part"},
        numbers={"endpoints": ends},
        expected="(max, min)",
    )
    require_close(
        there,
        ends,
        1e-5 * (1 + np.abs(ends)),
        given=where | {"t": np.array([0.0, 1.0])},
        what="logsnr(t)",
        should="the endpoint",
    )


@law(
    "schedule",
    "Training moves no endpoint by accident: they are fixed, or parameters of their own (at most two "
    "numbers move them); after a few steps on a VLB logsnr still falls strictly between them.",
)
def endpoints_kept_while_training(subject: Subject) -> None:
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
    if sum(moving.values()) > 2:
        names = ", ".join(f"{count} in {name}" for name, count in moving.items() if count)
        raise Violation(
            f"the derivatives of logsnr(0) and logsnr(1) by the parameters, and {_STEPS} steps",
            f"{sum(moving.values())} trainable numbers move the endpoints ({names}), from "
            f"{text(before)} to {text(after)} in these steps; expected fixed endpoints, or at most two "
            "numbers",
        )
    made = eqx.combine(trained, rest)
    where = {"training steps": _STEPS}
    logsnr = mapped(made, _T)
    require(
        np.isfinite(logsnr), given=where | {"t": _T}, numbers={"logsnr": logsnr}, expected="finite"
    )
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

        gradient = jax.grad(loss)(params)
        return jax.tree.map(
            lambda p, g: p - 0.02 * jnp.sign(g) * (1 + jnp.abs(p)), params, gradient
        )

    for index in range(_STEPS):
        params = step(params, jax.random.fold_in(jax.random.key(2), index))
    return params
