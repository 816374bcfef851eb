"""Weightings: which noise levels a loss emphasises."""

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
    """The mean squared error of the network's target, times a bell over logsnr.

    Derive a weighting stated as a loss instead of writing it down: this function names the loss,
    `implied_weighting` has the formula, and the laws check one against the other.

    **Arguments:** `centre`, `width`: of the bell. diffkit fills in the parts of the model.

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
