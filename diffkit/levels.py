"""A noise level: what a process says of one `logsnr`, and all that a target needs to know of it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.display import describe
from diffkit.typing import Scalar


class NoiseLevel(eqx.Module):
    """One noise level of one process: scalars.

    **Attributes:** `logsnr`; `alpha`, the factor of the data; `sigma`, the noise's standard deviation.
    """

    logsnr: Scalar
    alpha: Scalar
    sigma: Scalar

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={describe(value)}" for name, value in vars(self).items())
        return f"NoiseLevel({numbers})"

    @property
    def rho(self) -> Float[Array, "..."]:
        r"""$\sigma / \alpha$: the standard deviation of the noise in the rescaled latent z / alpha."""
        return jnp.exp(-self.logsnr / 2)
