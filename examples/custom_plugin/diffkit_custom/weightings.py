"""Weightings: which noise levels a loss cares for."""

import math

import equinox as eqx
import jax.numpy as jnp

import diffkit as dk
from diffkit.typing import Scalar, ScalarLike, as_float


class Window(eqx.Module):
    """A factor of a loss: a bell over logsnr."""

    centre: float
    width: float

    def __call__(self, logsnr: ScalarLike) -> Scalar:
        return jnp.exp(-0.5 * jnp.square((as_float(logsnr) - self.centre) / self.width))


@dk.register("weighting", "custom_window")
def window(
    centre: float = 1.0,
    width: float = 4.0,
    *,
    schedule: dk.AbstractSchedule,
    process: dk.AbstractProcess,
    parameterization: dk.AbstractParameterization,
) -> dk.Implied:
    """The mean squared error of what the network predicts, times a bell over logsnr.

    A weighting that is stated as a loss is derived from it, and not written down: this function names
    the loss, `implied_weighting` has the formula, and the laws check the one against the other.

    **Arguments:** `centre`, `width`: of the bell. The parts of the model are filled in.

    **Raises:** `ValueError` if `width` is not positive.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive number, got {width}.")
    return dk.weightings.implied_weighting(
        parameterization=parameterization,
        schedule=schedule,
        process=process,
        factor=Window(centre, width),
    )
