"""Embeddings of numbers for a network: sines and cosines of a number's multiples.

A network learns smooth functions of its inputs easily and rapid ones badly; the waves turn rapid dependence
into a linear one.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.typing import Scalar


def sinusoidal_embedding(position: Scalar, size: int) -> Float[Array, " size"]:
    r"""Sines and cosines of a number \(p\), `position`, at geometrically spaced frequencies.

    With \(h = \lfloor size / 2 \rfloor\) and \(f_i = 10000^{-i / (h - 1)}\), i = 0 ... h - 1:

    $$ (\sin(1000 f_0 p), \dots, \sin(1000 f_{h-1} p), \cos(1000 f_0 p), \dots) $$

    and one more zero if `size`, 4 or more, is odd. The factor 1000 maps positions in [0, 1] to the 1000
    steps for which the embedding was made, as in VDM's reference implementation.

    **Raises:** `ValueError` if `size` is below 4.
    """
    if size < 4:
        raise ValueError(f"size of a sinusoidal embedding must be at least 4; got {size}.")
    half = size // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - 1)
    angles = position.astype(jnp.float32) * 1000.0 * jnp.exp(-math.log(10000.0) * exponents)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), jnp.zeros((size % 2,), jnp.float32)])


def fourier_features(
    z: Float[Array, "*rest channels"], exponents: tuple[int, ...], levels: int = 256
) -> Float[Array, "*rest features"]:
    r"""Sines and cosines of \(2^n 2 \pi z\), for each channel (last axis) and each exponent n.

    VDM (section 5.2) passes them to the network with `z` to resolve the finest grey levels: with 8-bit data
    on [-1, 1] neighbouring levels differ by \(2^{-7}\), the period of n = 7. For another number of levels
    the frequencies are scaled by levels / 256, so this stays so. First come all sines, then all cosines;
    within each, channels are outermost and exponents innermost.

    **Arguments:** `z`: the latent, channels last; `exponents`: the n, such as VDM's (6, 7), empty for no
    features; `levels`: the number of values of a dimension of the data.
    """
    scale = 2.0 * math.pi * levels / 256
    frequencies = jnp.asarray([2.0**n * scale for n in exponents], jnp.float32)
    angles = z.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * z.ndim + (-1,))
    angles = angles.reshape(*z.shape[:-1], z.shape[-1] * len(exponents))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
