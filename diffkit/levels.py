"""A noise level: what a process says of one `logsnr`, and all that a target needs to know of it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.display import describe
from diffkit.typing import Scalar


class NoiseLevel(eqx.Module):
    """One noise level of one process.

    **Attributes:** `logsnr`; `alpha`, the factor of the data; `sigma`, the standard deviation of the
    noise. All scalars.
    """

    logsnr: Scalar
    alpha: Scalar
    sigma: Scalar

    def __repr__(self) -> str:
        words = f"logsnr={describe(self.logsnr)}, alpha={describe(self.alpha)}"
        return f"NoiseLevel({words}, sigma={describe(self.sigma)})"

    @property
    def rho(self) -> Float[Array, "..."]:
        r"""$\sigma / \alpha$: the standard deviation of the noise in the rescaled latent z / alpha."""
        return jnp.exp(-self.logsnr / 2)
