r"""The velocity along the straight path."""

import jax.numpy as jnp

import diffkit as dk
from diffkit.typing import Scalar


@dk.register("parameterization", "velocity")
class Velocity(dk.AbstractParameterization):
    r"""The network predicts $\epsilon - x$: the velocity $dz / d\tau$ along the straight path.

    With $z = (1 - \tau) x + \tau \epsilon$ it is the target of rectified flow (Liu, Gong and Liu 2023,
    arXiv 2209.03003, equation 1) and of flow matching with optimal transport (Lipman et al. 2023, arXiv
    2210.02747, equation 23); they write x - eps, since their time runs from noise to data. Under `straight`
    the samplers `euler` and `midpoint` follow it. Like v, it is well conditioned at both ends: its squared
    error is that of v times $(1 + \rho)^2 / (1 + \rho^2)$. Choose it to train or load flow models.
    """

    def coefficients(self, level: dk.NoiseLevel) -> tuple[Scalar, Scalar]:
        return -jnp.ones_like(level.alpha), jnp.ones_like(level.alpha)
