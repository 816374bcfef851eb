"""The interface of networks, and the checks that they share.

A network maps a latent `z`, its `logsnr` and an optional condition to an array of the shape of `z`, or to
several, stacked along the first axis. The parameterization decides what they mean (noise, data, velocity,
...), the process how the latent is scaled. A network sees one example; `jax.vmap` makes a batch.
"""

import abc
from typing import Any, ClassVar, Final

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.registry import available, get, name_of
from diffkit.typing import Condition, Example, MaybeKey, Scalar

DTYPES: Final = ("float32", "bfloat16")


class AbstractNetwork(eqx.Module):
    """The interface of all networks.

    By convention the constructor is `Network(shape, *, ..., outputs=1, condition_size=0,
    logsnr_range=(13.3, -5.0), dtype="float32", key)`. Every option is a number, a string or a tuple, so a
    config can hold it.

    **Attributes:** checked by diffkit before work begins; a network sets those that differ from the
    defaults. `shape`: of its latents, `None` for any; `condition_size`: the length of its condition, 0 for
    none; `outputs`: how many maps of the latent's shape it returns (`AbstractParameterization.outputs`).
    Arguments `levels` and `logsnr_range` of its constructor that it keeps must be the model's, too.
    """

    rank: ClassVar[int | None] = None
    """How many axes the examples must have: 3 for a network only for images, `None` for any number."""

    shape: tuple[int, ...] | None = eqx.field(default=None, static=True, kw_only=True)
    condition_size: int = eqx.field(default=0, static=True, kw_only=True)
    outputs: int = eqx.field(default=1, static=True, kw_only=True)

    @abc.abstractmethod
    def __call__(
        self, z: Example, logsnr: Scalar, condition: Condition = None, *, key: MaybeKey = None
    ) -> Float[Array, "..."]:
        """Evaluate the network on one example.

        **Arguments:** `z`: the latent, an image as (channels, height, width); `logsnr`: its log
        signal-to-noise ratio; `condition`: a vector that describes the example (`diffkit.data.conditions`),
        `None` for zeros, which are no condition; `key`: for dropout, in training; without a key the network
        is deterministic.

        **Returns:** a float32 array with the shape of `z`, its first axis `outputs` times as long.
        """


def normalise_logsnr(logsnr: Scalar, logsnr_range: tuple[float, float]) -> Scalar:
    """Place `logsnr` on the unit interval: 0 at the largest (data) of the range, 1 at the smallest."""
    high, low = logsnr_range
    return (high - logsnr) / (high - low)


def condition_or_zeros(condition: Condition, size: int) -> Float[Array, " size"]:
    """The condition, or zeros if there is none; a `ValueError` if its size is not `size`."""
    if condition is None:
        return jnp.zeros(size, jnp.float32)
    if condition.shape != (size,):
        raise ValueError(
            f"condition has shape {condition.shape}, but this network was built with "
            f"condition_size={size} and expects shape {(size,)}."
        )
    return condition.astype(jnp.float32)


def add_latent(z: Float[Array, "*shape"], output: Float[Array, "..."]) -> Float[Array, "..."]:
    """An output in float32, with `z` added to the first of its maps."""
    output = output.astype(jnp.float32)
    return jnp.concatenate([z + output[: len(z)], output[len(z) :]])


def check_common(network: Any, dropout: float) -> None:
    """Check the options of a network with `embed`; a `ValueError` names the argument and its value."""
    if not (got := network.shape) or min(got) < 1:
        raise ValueError(f"shape must be one or more positive sizes, as (3, 32, 32); got {got}.")
    for name, least in (("outputs", 1), ("condition_size", 0), ("width", 4), ("depth", 1)):
        if (value := getattr(network, name)) < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value}.")
    if not (got := network.logsnr_range)[0] > got[1]:
        raise ValueError(f"logsnr_range must be (largest, smallest), such as (13.3, -5.0); got {got}.")
    if network.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {network.dtype!r}.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be a probability in [0, 1); got {dropout}.")


def check_image(shape: tuple[int, ...], network: AbstractNetwork) -> tuple[int, int, int]:
    """The shape as (channels, height, width), or a `ValueError` that names the networks for the shape."""
    if len(shape) != 3:
        ranks = {name: getattr(get("network", name), "rank", None) for name in available("network")}
        others = [f"network={name}" for name, rank in ranks.items() if rank in (None, len(shape))]
        raise ValueError(
            f"network {name_of('network', network) or type(network).__name__} takes images (channels, "
            f"height, width), but the examples have the shape {shape}: choose {' or '.join(others)}"
            + (", or give images an axis of channels." if len(shape) == 2 else ".")
        )
    return shape[0], shape[1], shape[2]
