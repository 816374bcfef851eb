r"""DDIM (Song, Meng and Ermon 2021, arXiv 2010.02502)."""

import math
from typing import ClassVar

import jax.numpy as jnp

from diffkit.registry import register
from diffkit.samplers.base import AbstractOneStepSampler, Denoise, Step
from diffkit.typing import Example


@register("sampler", "ddim")
class DDIM(AbstractOneStepSampler):
    r"""Keeps the predicted data and moves the predicted noise to the new level.

    $$y_s = \hat x + \rho_s \left(\sqrt{1 - \eta^2 c}\;\hat\epsilon + \eta \sqrt c\;\xi\right),
      \qquad c = 1 - \rho_s^2 / \rho_t^2,$$

    with $\xi$ standard normal (equation 12 of the paper, divided by $\alpha_s$). For $\eta = 0$ it is
    the Euler method for the probability-flow ODE $dy / d\rho = \hat\epsilon$, of order 1, and draws no
    random numbers; for $\eta = 1$ it is ancestral sampling.

    **Arguments:** `eta`: the share of noise, from 0 to 1.

    **Raises:** `ValueError` if `eta` is not in [0, 1].
    """

    order: ClassVar[int] = 1
    eta: float = 0.0

    def __check_init__(self):
        if not (math.isfinite(self.eta) and 0 <= self.eta <= 1):
            raise ValueError(f"eta must be in [0, 1], got {self.eta}.")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        rho_s, c = step.rho_s, step.removed
        kept = rho_s * jnp.sqrt(1 - self.eta**2 * c)
        # y - rho_t eps is x; written as an increment to keep the digits of small steps.
        y = y + (kept - step.rho_t) * denoise(y, step.logsnr_t).eps
        if step.key is not None:
            y = y + self.eta * rho_s * jnp.sqrt(c) * step.noise(y)
        return y
