"""Schedules: how the noise level depends on time."""

import math

import jax.numpy as jnp

import diffkit as dk
from diffkit.schedules import check_range
from diffkit.typing import Scalar, ScalarLike, as_float


@dk.register("schedule", "custom_bent")
class Bent(dk.AbstractSchedule):
    """A bent line between two endpoints.

    The position between the endpoints is s(t) = t + bend t (1 - t). A positive bend spends more time in
    the noisier half of the range, a negative one in the cleaner half.

    **Arguments:**

    - `logsnr_max`, `logsnr_min`: log SNR at t = 0 and at t = 1; by default the first fits the data's
      levels (`diffkit.schedules.check_range`).
    - `bend`: between -1 and 1, both excluded; 0 is the straight line.
    - `levels`: the number of values of a dimension of the data; diffkit fills it in.

    **Raises:** `ValueError` if `bend` is out of range or the endpoints are not in order.
    """

    logsnr_max: float
    logsnr_min: float
    bend: float

    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float = -5.0,
        *,
        bend: float = 0.5,
        levels: int | None = None,
    ):
        if not (math.isfinite(bend) and -1 < bend < 1):
            raise ValueError(f"bend must be between -1 and 1, got {bend}.")
        self.logsnr_max, self.logsnr_min = check_range(logsnr_max, logsnr_min, levels)
        self.bend = bend

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        s = t + self.bend * t * (1 - t)
        # Both products, so that both ends are exact in float32.
        return (1 - s) * self.logsnr_max + s * self.logsnr_min

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        s = (self.logsnr_max - as_float(logsnr)) / (self.logsnr_max - self.logsnr_min)
        # The root of a quadratic, in the form that loses no digits where bend is small.
        b = 1 + self.bend
        return 2 * s / (b + jnp.sqrt(b * b - 4 * self.bend * s))
