r"""Ancestral sampling: the generative model itself, step by step."""

from typing import Any

import jax

from diffkit.processes import rescaled_posterior
from diffkit.registry import register
from diffkit.samplers.base import AbstractSampler, Denoise
from diffkit.typing import Example, PRNGKey, Scalar


@register("sampler", "ancestral")
class Ancestral(AbstractSampler):
    r"""Draws from $p(z_s \mid z_t) = q(z_s \mid z_t, x = \hat x(z_t))$, VDM equation 34.

    With T steps uniform in t it is exactly the discrete-time model whose bound `vlb(..., steps=T)` is;
    any number of steps works. Needs some hundred steps; choose it where samples should come from the
    model that was evaluated.
    """

    @property
    def stochastic(self) -> bool:
        return True

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
        assert key is not None
        mean, std = rescaled_posterior(y, denoise(y, logsnr_t).x, logsnr_t, logsnr_s)
        return mean + std * jax.random.normal(key, y.shape, y.dtype), None
