"""The target of improved DDPM: the noise, and the variance of the reverse step."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

import diffkit as dk
from diffkit.denoiser import step_divergence
from diffkit.typing import Example, Scalar, check_at_least


@dk.register("parameterization", "epsilon_range")
class EpsilonRange(dk.AbstractParameterization):
    r"""The network predicts the noise, and the variance of each reverse step within its range.

    Improved DDPM (arXiv 2102.09672), equation 15: the log variance of $p(z_s \mid z_t)$ is
    $v \log \beta_t + (1 - v) \log \tilde\beta_t$, v = 1 for the forward step, v = 0 for the posterior. The
    network has two outputs; the second, o, gives $v = (o + 1) / 2$, unbounded, as published. The squared
    error of the noise does not depend on v, so `diffkit.DiffusionLoss` adds `vlb_weight` times the bound of
    the discrete-time model with `steps` steps, in bits, without a gradient through its means: with
    `weighting=simple` that is the hybrid loss $L_\text{simple} + 0.001\, L_\text{vlb}$ (equation 16).

    Choose it to sample with few ancestral steps, or for a discrete-time likelihood with few.

    **Arguments:** `steps`: T of the bound that trains the variances, K - 1 under a schedule of K discrete
    levels; `vlb_weight`: the weight of that bound, in bits, against the other loss in squared error.

    **Raises:** `ValueError` if `steps` is below 1 or `vlb_weight` is negative.
    """

    outputs: ClassVar[int] = 2
    steps: int = eqx.field(default=1000, static=True)
    vlb_weight: float = eqx.field(default=0.001, static=True)

    def __check_init__(self):
        check_at_least("steps", self.steps, 1)
        if not (math.isfinite(self.vlb_weight) and self.vlb_weight >= 0):
            raise ValueError(f"vlb_weight must be a number of at least 0, got {self.vlb_weight}.")

    @property
    def extra_steps(self) -> int:
        return self.steps

    def read(self, output: Float[Array, "..."]) -> tuple[Example, Example]:
        target, place = jnp.split(output, 2)
        # From [-1, 1]: a network that starts at zero starts in the middle.
        return target, 0.5 * (place + 1)

    def extra_loss(self, squares: Example, spread: Example, logsnr_t: Scalar, logsnr_s: Scalar) -> Scalar:
        divergence = self.steps * step_divergence(squares, logsnr_t, logsnr_s, spread)
        return self.vlb_weight / math.log(2) * divergence

    def coefficients(self, level: dk.NoiseLevel) -> tuple[Scalar, Scalar]:
        return dk.Epsilon().coefficients(level)
