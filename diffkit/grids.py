"""Grids: where a sampler places its steps.

A grid turns a schedule and a number of steps into the `steps + 1` values of `logsnr` that a sampler visits,
increasing from the schedule's minimum (noise) to its maximum (data).
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.registry import register
from diffkit.schedules import AbstractSchedule
from diffkit.typing import check_at_least


class AbstractGrid(eqx.Module):
    """A placement of steps between the endpoints of a schedule."""

    @abc.abstractmethod
    def __call__(self, schedule: AbstractSchedule, steps: int) -> Float[Array, " {steps}+1"]:
        """`steps + 1` increasing values of `logsnr`, including the schedule's endpoints."""


@register("grid", "uniform_t")
class UniformT(AbstractGrid):
    """Steps of equal size in the schedule's time. A discrete-time model of T steps needs it."""

    def __call__(self, schedule: AbstractSchedule, steps: int) -> Float[Array, " {steps}+1"]:
        check_at_least("steps", steps, 1)
        return jax.vmap(schedule)(jnp.linspace(1.0, 0.0, steps + 1))


@register("grid", "uniform_logsnr")
class UniformLogSNR(AbstractGrid):
    """Steps of equal size in `logsnr`, whatever the schedule."""

    def __call__(self, schedule: AbstractSchedule, steps: int) -> Float[Array, " {steps}+1"]:
        check_at_least("steps", steps, 1)
        maximum, minimum = schedule.endpoints
        fraction = jnp.linspace(0.0, 1.0, steps + 1)
        return (1 - fraction) * minimum + fraction * maximum
