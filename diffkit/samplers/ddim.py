r"""DDIM (Song, Meng and Ermon 2021, arXiv 2010.02502)."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffkit.registry import register
from diffkit.samplers.base import AbstractSampler, Denoise
from diffkit.typing import Example, PRNGKey, Scalar


@register("sampler", "ddim")
class DDIM(AbstractSampler):
    r"""Keeps the predicted data and moves the predicted noise to the new level.

    $$y_s = \hat x + \rho_s \left(\sqrt{1 - \eta^2 c}\;\hat\epsilon + \eta \sqrt c\;\xi\right),
      \qquad c = 1 - \rho_s^2 / \rho_t^2,$$

    with $\xi$ standard normal (equation 12 of the paper, divided by $\alpha_s$). For $\eta = 0$ it is
    the Euler method for the probability-flow ODE $dy / d\rho = \hat\epsilon$, of order 1, and draws no
    random numbers; for $\eta = 1$ it is ancestral sampling.

    **Arguments:** `eta`: the share of noise, from 0 to 1.

    **Raises:** `ValueError` if `eta` is not in [0, 1].
    """

    eta: float = 0.0

    def __check_init__(self):
        if not (math.isfinite(self.eta) and 0 <= self.eta <= 1):
            raise ValueError(f"eta must be in [0, 1], got {self.eta}.")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    @property
    def order(self) -> int:
        return 1

    @property
    def calls(self) -> int:
        return 1

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
        prediction = denoise(y, logsnr_t)
        rho_t, rho_s = jnp.exp(-logsnr_t / 2), jnp.exp(-logsnr_s / 2)
        c = -jnp.expm1(logsnr_t - logsnr_s)
        kept = rho_s * jnp.sqrt(1 - self.eta**2 * c)
        # y - rho_t eps is x; written as an increment, so that small steps keep their digits.
        y = y + (kept - rho_t) * prediction.eps
        if key is not None:
            y = y + self.eta * rho_s * jnp.sqrt(c) * jax.random.normal(key, y.shape, y.dtype)
        return y, None
