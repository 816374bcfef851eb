"""A residual multilayer perceptron, for points and other small examples."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.networks.base import AbstractNetwork, add_latent, check_common
from diffkit.networks.embeddings import fourier_features
from diffkit.networks.layers import Dense, Embedding, dropout, embed, group_norm, scan_blocks, stack
from diffkit.registry import register
from diffkit.typing import Condition, Example, MaybeKey, PRNGKey, Scalar


class _Block(eqx.Module):
    """Layer norm, scaled and shifted by the embedding, and two dense layers, around an identity."""

    modulate: Dense
    dense1: Dense
    dense2: Dense
    dropout: float = eqx.field(static=True)

    def __call__(
        self, h: Float[Array, " width"], embedding: Embedding, *, key: MaybeKey
    ) -> Float[Array, " width"]:
        scale, shift = jnp.split(self.modulate(embedding), 2)
        ones = jnp.ones_like(h, jnp.float32)
        x = group_norm(h, ones, jnp.zeros_like(ones), groups=1)
        x = jax.nn.silu(self.dense1(x * (1 + scale) + shift))
        return h + self.dense2(dropout(x, self.dropout, key=key))


@register("network", "mlp")
class MLP(AbstractNetwork):
    """A residual multilayer perceptron, which flattens examples of any shape.

    The noise level and the condition scale and shift the normalised input of each block. The output is
    added to `z` and starts at zero: the network starts as the identity.
    """

    embed1: Dense
    embed2: Dense
    dense_in: Dense
    blocks: _Block
    modulate_out: Dense
    dense_out: Dense
    shape: tuple[int, ...] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    fourier: tuple[int, ...] = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    logsnr_range: tuple[float, float] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 4,
        fourier: tuple[int, ...] = (),
        dropout: float = 0.0,
        levels: int = 256,
        outputs: int = 1,
        condition_size: int = 0,
        logsnr_range: tuple[float, float] = (13.3, -5.0),
        dtype: str = "float32",
        key: PRNGKey,
    ):
        """**Arguments:**

        - `shape`: of one example, with any number of axes.
        - `width`: hidden units, 4 or more.
        - `depth`: residual blocks, of two layers each.
        - `fourier`: exponents n of the input's `fourier_features`; empty for none. Small exponents up to
          the data's resolution help with fine structure, such as grey levels.
        - `dropout`: rate within the blocks.
        - `levels`: the number of values of a dimension of the data; scales the features' frequencies.
        - `outputs`: how many maps of the shape of `z` it returns; `z` is added to the first.
        - `condition_size`: length of the condition; 0 for none.
        - `logsnr_range`: (largest, smallest) logsnr, data end first.
        - `dtype`: of the blocks' computations, "float32" or "bfloat16"; all else is float32.

        **Raises:** `ValueError` for an argument out of range.
        """
        self.shape, self.width, self.depth, self.fourier = shape, width, depth, fourier
        self.levels, self.outputs, self.dropout = levels, outputs, dropout
        self.condition_size, self.logsnr_range, self.dtype = condition_size, logsnr_range, dtype
        check_common(self, dropout)

        def block(key: PRNGKey) -> _Block:
            keys = jax.random.split(key, 3)
            return _Block(
                modulate=Dense(width, 2 * width, zero=True, key=keys[0]),
                dense1=Dense(width, 2 * width, key=keys[1]),
                dense2=Dense(2 * width, width, zero=True, key=keys[2]),
                dropout=dropout,
            )

        size = math.prod(shape)
        keys = jax.random.split(key, 6)
        self.embed1 = Dense(width + condition_size, width, key=keys[0])
        self.embed2 = Dense(width, width, key=keys[1])
        self.dense_in = Dense(size * (1 + 2 * len(fourier)), width, key=keys[2])
        self.blocks = stack(block, depth, key=keys[3])
        self.modulate_out = Dense(width, 2 * width, zero=True, key=keys[4])
        self.dense_out = Dense(width, outputs * size, zero=True, key=keys[5])

    def __call__(
        self, z: Example, logsnr: Scalar, condition: Condition = None, *, key: MaybeKey = None
    ) -> Float[Array, "..."]:
        """Evaluate on one example; see `AbstractNetwork`."""
        if z.shape != self.shape:
            raise ValueError(f"z has shape {z.shape}, but this network was built for {self.shape}.")
        embedding = embed(self, logsnr, condition)
        flat = z.reshape(-1)
        features = jnp.concatenate([flat, fourier_features(flat, self.fourier, self.levels)])
        keys = None if key is None else jax.random.split(key, self.depth)

        def step(block: _Block, h: Any, key: Any) -> tuple[Any, None]:
            return block(h, embedding, key=key), None

        h, _ = scan_blocks(step, self.blocks, self.dense_in(features.astype(self.dtype)), keys)
        scale, shift = jnp.split(self.modulate_out(embedding), 2)
        h = self.dense_out(jax.nn.silu(h * (1 + scale) + shift))
        return add_latent(z, h.reshape(-1, *z.shape[1:]))
