"""Timestep respacing: a sampler's steps among the times of a discrete-time model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import diffkit as dk
from diffkit.typing import check_at_least


@dk.register("grid", "respaced")
class Respaced(dk.AbstractGrid):
    """Spreads steps evenly among the times of a discrete-time model, and uses no other time.

    Improved DDPM, section 4: visits `steps + 1` of the `timesteps` noise levels in training, both ends
    included, each the nearest to an even spread. Choose it for a model with discrete noise levels
    (`linear_beta`, `iddpm_cosine`), to sample at levels that it knows. Under any schedule level k is
    t = k / (timesteps - 1).

    **Arguments:** `timesteps`: the number of discrete noise levels.

    **Raises:** `ValueError` for fewer than two levels; when called, for more steps than lie between them.
    """

    timesteps: int = eqx.field(default=1000, static=True)

    def __check_init__(self):
        check_at_least("timesteps", self.timesteps, 2)

    def __call__(self, schedule: dk.AbstractSchedule, steps: int) -> Float[Array, " {steps}+1"]:
        last = self.timesteps - 1
        check_at_least("steps", steps, 1)
        if steps > last:
            most = f"{last} for grid=respaced with timesteps={self.timesteps}"
            raise ValueError(f"steps must be at most {most}, got {steps}; or choose grid=uniform_t.")
        # In integers, rounded to the nearest: distinct because the spread is at least one.
        index = (2 * last * np.arange(steps, -1, -1) + steps) // (2 * steps)
        return jax.vmap(schedule)(jnp.asarray(index / last, float))
