"""Ancestral sampling: the generative model itself, step by step."""

from typing import ClassVar

from diffkit.registry import register
from diffkit.samplers.base import AbstractOneStepSampler, Denoise, Step
from diffkit.typing import Example


@register("sampler", "ancestral")
class Ancestral(AbstractOneStepSampler):
    r"""Draws from $p(z_s \mid z_t) = q(z_s \mid z_t, x = \hat x(z_t))$, VDM equation 34.

    With T steps uniform in t it is exactly the discrete-time model bounded by `vlb(..., steps=T)`; any
    number of steps works. Needs some hundred steps; choose it to sample from the model that was evaluated.

    **Arguments:** `spread`: where the log variance lies between the posterior's (0, the model itself) and
    the forward step's (1, DDPM's "fixed large" variance, section 3.2 there). A predicted variance
    (`Prediction.spread`) takes precedence.

    **Raises:** `ValueError` if `spread` is not in [0, 1].
    """

    stochastic: ClassVar[bool] = True
    order: ClassVar[int] = 1
    spread: float = 0.0

    def __check_init__(self):
        if not 0 <= self.spread <= 1:
            raise ValueError(f"spread must be in [0, 1], got {self.spread}.")

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        mean, std = denoise(y, step.logsnr_t).reverse(step.logsnr_s, spread=self.spread)
        return mean + std * step.noise(y)
