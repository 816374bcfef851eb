"""The target of improved DDPM: the noise, and the variance of the reverse step."""

import math

import equinox as eqx

import diffkit as dk
from diffkit.typing import Scalar


@dk.register("parameterization", "epsilon_range")
class EpsilonRange(dk.AbstractRangeParameterization):
    r"""The network predicts the noise, and the variance of each reverse step within its range.

    Improved DDPM (arXiv 2102.09672), equation 15: the log variance of $p(z_s \mid z_t)$ is
    $v \log \beta_t + (1 - v) \log \tilde\beta_t$, v = 1 that of the forward step, v = 0 that of the
    posterior. The network's output is twice as long: the second half o is $v = (o + 1) / 2$, without
    any bound, as published. Only the discrete-time bound teaches v, so a model trained with it minimises
    the hybrid loss $L_\text{simple} + 0.001\, L_\text{vlb}$ (equation 16) without more being said.

    Choose it to sample with few ancestral steps, or for a discrete-time likelihood; what is gained in
    either vanishes with the number of steps.

    **Arguments:**

    - `steps`: T of the bound from which the variances are learnt. Under a schedule of K discrete levels
      it is K - 1 for steps from level to level.
    - `vlb_weight`: the weight of that bound, in bits, beside the other loss in squared error; both are
      summed over dimensions, or both averaged, which is the same.

    **Raises:** `ValueError` if `steps` is below 1, or `vlb_weight` negative.
    """

    steps: int = eqx.field(default=1000, static=True)
    vlb_weight: float = eqx.field(default=0.001, static=True)

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")
        if not (math.isfinite(self.vlb_weight) and self.vlb_weight >= 0):
            raise ValueError(f"vlb_weight must be a number of at least 0, got {self.vlb_weight}.")

    def coefficients(self, level: dk.NoiseLevel) -> tuple[Scalar, Scalar]:
        return dk.Epsilon().coefficients(level)
