"""The diffusion model: denoiser, schedule and decoder together."""

import inspect
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from diffkit.buffers import trainable
from diffkit.decoders import AbstractDecoder
from diffkit.denoiser import AbstractDenoiser, underlying
from diffkit.display import outline
from diffkit.processes import AbstractProcess, NoiseLevel
from diffkit.schedules import AbstractSchedule
from diffkit.typing import DataBatch, ScalarLike, as_float


class DiffusionModel(eqx.Module):
    """A generative model with a likelihood bound: everything that `vlb` and `sample` need.

    It does not hold how it is trained (weighting, time sampler, optimiser). All options are static, so
    plain `jax.jit` and `jax.grad` take it, as well as Equinox's `filter_jit` and `filter_grad`.

    **Arguments:** `denoiser`: predicts data and noise from a latent, and fixes the process; `schedule`:
    maps time to `logsnr`; `decoder`: p(x | z_0), and the form of stored data; `shape`: of one example,
    images as (channels, height, width).

    **Raises:** `ValueError` if `shape` has an entry that is not positive, or the network was built with
    another `shape`, `logsnr_range` or `levels`. (Trainable schedules are not compared: training may have
    moved them.) `diffkit.equivalence.transport` gives a trained model another range.
    """

    denoiser: AbstractDenoiser
    schedule: AbstractSchedule
    decoder: AbstractDecoder
    shape: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self):
        if any(n < 1 for n in self.shape):
            raise ValueError(f"shape must have positive entries only, got {self.shape}.")
        learned = any(jax.tree.leaves(trainable(self.schedule)))
        ends = (None, None) if learned else self.schedule.endpoints
        check_network(self.denoiser, self.shape, self.decoder.levels, ends)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(self, trainable(self))))
        head = f"DiffusionModel of shape {self.shape}, {count:,} parameters"
        return "\n".join([head, *outline(self)])

    @property
    def process(self) -> AbstractProcess:
        """The process of the denoiser."""
        return self.denoiser.process

    def level(self, t: ScalarLike) -> NoiseLevel:
        """The noise level at time `t`."""
        return self.process.at(self.schedule(as_float(t)))

    def encode(self, x: DataBatch) -> Float[Array, "batch *shape"]:
        """Map a batch of data as stored to the values that are diffused.

        **Raises:** `ValueError` if the examples do not have the model's shape, or hold levels that the
        decoder does not have (not checked within a compiled function); a type error for the wrong dtype.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"x must be a batch of examples of shape {self.shape}, that is an array of shape "
                f"(batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}."
            )
        if not isinstance(x, Tracer):
            # In NumPy because JAX would trace the checks within a compiled function.
            check_levels(np.asarray(x), self.decoder.levels)
        return jax.vmap(self.decoder.encode)(x)


def check_network(
    denoiser: AbstractDenoiser, shape: tuple[int, ...], levels: int | None, ends: tuple[Any, Any]
) -> None:
    """Refuse a network built for another model: a `ValueError` with the option and both values.

    **Arguments:** `denoiser`; of its model `shape`, `levels`, and `ends`, the schedule's or `None`s.
    """
    network = getattr(underlying(denoiser), "network", None)
    known: dict[str, Any] = {"shape": shape, "levels": levels}
    if not any(end is None or isinstance(end, Tracer) for end in ends):
        maximum, minimum = (round(float(end), 4) for end in ends)
        # One that does not fall is refused where it is used.
        known["logsnr_range"] = (maximum, minimum) if np.inf > maximum > minimum else None
    # An option of another meaning may have the same name, if the context did not fill it in.
    options = () if network is None else inspect.signature(type(network)).parameters
    for option, value in known.items():
        built: Any = getattr(network, option, None) if option in ("shape", *options) else None
        # Endpoints are float32 and are stated with few digits; a hundredth of logsnr changes nothing.
        if not (built is None or value is None) and not (
            np.shape(built) == np.shape(value) and np.allclose(built, value, rtol=0, atol=1e-2)
        ):
            raise ValueError(
                f"network {type(network).__name__} was built with {option}={built}, but its model has "
                f"{option}={value}: build it with {option}={value}."
            )


def check_levels(x: np.ndarray, levels: int | None) -> None:
    """Refuse data `x` as stored that a decoder with this many levels cannot code.

    **Raises:** `TypeError` if the data are not integers, `ValueError` for integers out of range.
    """
    if levels is None:
        return
    if not np.issubdtype(x.dtype, np.integer):
        raise TypeError(
            f"x must hold integers from 0 to {levels - 1}, as stored, since the decoder has "
            f"levels={levels}; got {x.dtype}."
        )
    if x.size and not (x.min() >= 0 and x.max() < levels):
        raise ValueError(
            f"x must hold integers from 0 to {levels - 1}, since the decoder has levels={levels}; got "
            f"values from {x.min()} to {x.max()}."
        )
