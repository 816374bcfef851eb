"""Samplers: from noise to data."""

from typing import ClassVar

import jax.numpy as jnp

import diffkit as dk
from diffkit.samplers import AbstractOneStepSampler, Denoise, Step, between, is_long
from diffkit.typing import Example


@dk.register("sampler", "custom_ralston")
class Ralston(AbstractOneStepSampler):
    r"""Ralston's method for the probability-flow ODE dy / drho = eps, rho = sigma / alpha.

    The method of order 2 with two stages whose error bound is the smallest (Ralston 1962): the second
    stage lies at two thirds of the step and counts three times as much as the first. In a long step it
    would amplify; there the two calls of the network are two steps of DDIM.
    """

    stochastic: ClassVar[bool] = False
    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        logsnr_t, logsnr_s, _ = step
        rho = step.rho_t
        # The difference of two near numbers, with all its digits.
        delta = rho * jnp.expm1((logsnr_t - logsnr_s) / 2)
        long = is_long(logsnr_t, logsnr_s)
        place = jnp.where(long, between(logsnr_t, logsnr_s, 0.5), -2 * jnp.log(rho + 2 / 3 * delta))
        reach = jnp.where(long, jnp.exp(-place / 2) - rho, 2 / 3 * delta)
        first = denoise(y, logsnr_t).eps
        second = denoise(y + reach * first, place).eps
        two_of_ddim = reach * first + (delta - reach) * second
        return y + jnp.where(long, two_of_ddim, delta * (first + 3 * second) / 4)
