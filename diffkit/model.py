"""The diffusion model: denoiser, schedule and decoder together."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from diffkit.decoders import AbstractDecoder
from diffkit.denoiser import AbstractDenoiser
from diffkit.processes import AbstractProcess, NoiseLevel
from diffkit.schedules import AbstractSchedule
from diffkit.typing import DataBatch, ScalarLike, as_float


class DiffusionModel(eqx.Module):
    """A generative model with a likelihood bound: everything that `vlb` and `sample` need.

    How it is trained (weighting, time sampler, optimiser) is no part of it.

    **Arguments:**

    - `denoiser`: predicts data and noise from a latent; it fixes the process.
    - `schedule`: time to `logsnr`.
    - `decoder`: p(x | z_0), and the form in which data are stored.
    - `shape`: the shape of one example, images as (channels, height, width).

    **Raises:** `ValueError` if `shape` has an entry that is not positive.
    """

    denoiser: AbstractDenoiser
    schedule: AbstractSchedule
    decoder: AbstractDecoder
    shape: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        if any(n < 1 for n in self.shape):
            raise ValueError(f"shape must have positive entries only, got {self.shape}.")

    @property
    def process(self) -> AbstractProcess:
        """The process of the denoiser."""
        return self.denoiser.process

    def level(self, t: ScalarLike) -> NoiseLevel:
        """The noise level at time `t`."""
        return self.process.at(self.schedule(as_float(t)))

    def encode(self, x: DataBatch) -> Float[Array, "batch *shape"]:
        """A batch of data as stored to the values that are diffused.

        **Raises:** `ValueError` if the examples do not have the model's shape; a type error if their
        dtype is not the decoder's.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"x must be a batch of examples of shape {self.shape}, that is an array of shape "
                f"(batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}."
            )
        return jax.vmap(self.decoder.encode)(x)
