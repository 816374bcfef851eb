"""Samplers: from noise to data."""

from typing import Any

import jax.numpy as jnp

import diffkit as dk
from diffkit.samplers.base import Denoise
from diffkit.typing import Example, PRNGKey, Scalar


@dk.register("sampler", "custom_ralston")
class Ralston(dk.AbstractSampler):
    r"""Ralston's method for the probability-flow ODE dy / drho = eps, rho = sigma / alpha.

    The method of order 2 with two stages whose error bound is the smallest (Ralston 1962): the second
    stage lies at two thirds of the step and counts three times as much as the first.
    """

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def order(self) -> int:
        return 2

    @property
    def calls(self) -> int:
        return 2

    def init(self, y: Example) -> None:
        return None

    def step(
        self,
        denoise: Denoise,
        y: Example,
        logsnr_t: Scalar,
        logsnr_s: Scalar,
        state: Any,
        key: PRNGKey | None,
    ) -> tuple[Example, None]:
        rho = jnp.exp(-logsnr_t / 2)
        # The difference of two near numbers, with all its digits.
        delta = rho * jnp.expm1((logsnr_t - logsnr_s) / 2)
        first = denoise(y, logsnr_t).eps
        between = -2 * jnp.log(rho + 2 / 3 * delta)
        second = denoise(y + 2 / 3 * delta * first, between).eps
        return y + delta * (first + 3 * second) / 4, None
