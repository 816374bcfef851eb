"""Samplers: from noise to data."""

from typing import Any

import jax.numpy as jnp

import diffkit as dk
from diffkit.samplers import between, is_long
from diffkit.samplers.base import Denoise
from diffkit.typing import Example, PRNGKey, Scalar


@dk.register("sampler", "custom_ralston")
class Ralston(dk.AbstractSampler):
    r"""Ralston's method for the probability-flow ODE dy / drho = eps, rho = sigma / alpha.

    The method of order 2 with two stages whose error bound is the smallest (Ralston 1962): the second
    stage lies at two thirds of the step and counts three times as much as the first. In a long step it
    would amplify; there the two calls of the network are two steps of DDIM.
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
        long = is_long(logsnr_t, logsnr_s)
        place = jnp.where(long, between(logsnr_t, logsnr_s, 0.5), -2 * jnp.log(rho + 2 / 3 * delta))
        reach = jnp.where(long, jnp.exp(-place / 2) - rho, 2 / 3 * delta)
        first = denoise(y, logsnr_t).eps
        second = denoise(y + reach * first, place).eps
        two_of_ddim = reach * first + (delta - reach) * second
        return y + jnp.where(long, two_of_ddim, delta * (first + 3 * second) / 4), None
