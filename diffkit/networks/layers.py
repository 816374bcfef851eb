"""The pieces of networks, made to train and compile fast.

Inside a network images are channels last: (height, width, channels). Parameters are float32; a piece
computes in the dtype of its input, but normalises, takes softmax and sums in float32. Blocks of one kind
keep their parameters stacked along a new first axis (`stack`) and run under `jax.lax.scan` (`scan_blocks`),
so only one block is compiled.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffkit.networks.base import condition_or_zeros, normalise_logsnr
from diffkit.networks.convolution import conv2d
from diffkit.networks.embeddings import sinusoidal_embedding
from diffkit.typing import Condition, Example, MaybeKey, PRNGKey, Scalar

Block = TypeVar("Block", bound=eqx.Module)
Carry = TypeVar("Carry")

_QUERIES_AT_A_TIME = 128

Image = Float[Array, "height width channels"]
Skip = Float[Array, "height width channels_skipped"] | None
Embedding = Float[Array, " embedding_size"]


def normalisation_groups(channels: int, groups: int) -> int:
    """The largest number of groups that divides both `groups` and `channels`."""
    return math.gcd(groups, channels)


def group_norm(
    x: Float[Array, "*space channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    groups: int,
    epsilon: float = 1e-6,
) -> Float[Array, "*space channels"]:
    """Group normalisation: mean 0 and variance 1 over space and the channels of a group.

    Mean and variance come in float32 from the sums of the values and of their squares: the relative error
    of the variance is about 1e-7 (1 + mean^2 / variance). Channels are summed over space first and groups
    formed from the sums, ten times as fast on CPU as an axis for the groups.

    **Arguments:** `x`: an image or a vector, channels last; `scale`, `bias`: applied afterwards, per
    channel; `groups`: must divide the number of channels; `epsilon`: added to the variance.
    """
    channels = x.shape[-1]
    space = tuple(range(x.ndim - 1))
    values = x.astype(jnp.float32)
    count = x.size // groups
    sums = jnp.stack([jnp.sum(values, space), jnp.sum(jnp.square(values), space)])
    mean, square = jnp.sum(sums.reshape(2, groups, channels // groups), axis=-1) / count
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + epsilon)
    factor = jnp.repeat(inverse, channels // groups) * scale
    offset = bias - jnp.repeat(mean, channels // groups) * factor
    ones = (1,) * len(space)
    return (values * factor.reshape(*ones, -1) + offset.reshape(*ones, -1)).astype(x.dtype)


def dropout_mask(shape: tuple[int, ...], rate: float, *, key: PRNGKey) -> Bool[Array, "..."]:
    """Which units to keep, each with probability 1 - `rate` rounded to a multiple of 1/65536.

    Two units share one random word: several times cheaper than `jax.random.bernoulli`.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (size // 2 + size % 2,), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16])[:size]
    return (halves < jnp.uint32(round((1.0 - rate) * 65536))).reshape(shape)


def apply_dropout(x: Example, keep: Bool[Array, "*shape"], rate: float) -> Example:
    """Zero the units that are not kept, and scale the others to preserve the mean."""
    kept = round((1.0 - rate) * 65536) / 65536
    return jnp.where(keep, x * jnp.asarray(1.0 / kept, x.dtype), jnp.zeros((), x.dtype))


def dropout(x: Example, rate: float, *, key: MaybeKey) -> Example:
    """Drop units at random; with no key or a rate of 0, return `x`."""
    if key is None or rate == 0.0:
        return x
    return apply_dropout(x, dropout_mask(x.shape, rate, key=key), rate)


def stack(make: Callable[[PRNGKey], Block], count: int, *, key: PRNGKey) -> Block:
    """Make `count` modules at once, each from a key, as one module whose arrays have a new first axis."""
    return eqx.filter_vmap(make)(jax.random.split(key, count))


def scan_blocks(
    step: Callable[[Any, Carry, Any], tuple[Carry, Any]],
    blocks: eqx.Module,
    carry: Carry,
    inputs: Any,
    *,
    remat: bool = False,
) -> tuple[Carry, Any]:
    """Run stacked blocks one after the other.

    **Arguments:** `step`: called as `step(block, carry, input)`, returns the next carry and an output;
    `blocks`: as made by `stack`; `carry`: for the first block; `inputs`: a pytree of arrays (or `None`),
    with one entry along the first axis for each block; `remat`: recompute each block in the backward pass
    to save memory.

    **Returns:** the last carry, and the outputs stacked.
    """
    arrays, static = eqx.partition(blocks, eqx.is_array)

    def body(carry: Carry, slices: Any) -> tuple[Carry, Any]:
        arrays, inputs = slices
        return step(eqx.combine(arrays, static), carry, inputs)

    if remat:
        # A scan needs no barrier against merging with the forward pass.
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, carry, (arrays, inputs))


def _lecun_normal(key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Normal weights cut at two deviations, of variance 1 / inputs; the last axis is the outputs.

    Drawn as a vector: four axes take several times as long to compile, most of the time to build a network.
    """
    deviation = 0.87962566103423978  # of the standard normal distribution cut at -2 and 2
    draws = jax.random.truncated_normal(key, -2.0, 2.0, (math.prod(shape),))
    return (draws * (math.prod(shape[:-1]) ** -0.5 / deviation)).reshape(shape)


class Dense(eqx.Module):
    """A linear map of the last axis, computed in the dtype of its input."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"] | None

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False, bias: bool = True, key: PRNGKey):
        """**Arguments:** sizes; `zero`: start with weights of zero; `bias`: add a bias."""
        shape = (inputs, outputs)
        self.weight = jnp.zeros(shape, jnp.float32) if zero else _lecun_normal(key, shape)
        self.bias = jnp.zeros((outputs,), jnp.float32) if bias else None

    def __call__(self, x: Float[Array, "*rest inputs"]) -> Float[Array, "*rest outputs"]:
        """Apply the map."""
        y = jnp.dot(x, self.weight.astype(x.dtype))
        if self.bias is None:
            return y
        return y + self.bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Conv(eqx.Module):
    """A 3x3 convolution with bias that keeps the image's size."""

    weight: Float[Array, "3 3 channels_in channels_out"]
    bias: Float[Array, " channels_out"]

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False, key: PRNGKey):
        """**Arguments:** numbers of channels; `zero`: start with weights of zero."""
        shape = (3, 3, inputs, outputs)
        self.weight = jnp.zeros(shape, jnp.float32) if zero else _lecun_normal(key, shape)
        self.bias = jnp.zeros((outputs,), jnp.float32)

    def __call__(
        self, x: Float[Array, "height width channels_in"]
    ) -> Float[Array, "height width channels_out"]:
        """Convolve one image."""
        return conv2d(x, self.weight) + self.bias.astype(x.dtype)[None, None, :]


class GroupNorm(eqx.Module):
    """Group normalisation with a scale and a bias per channel (`group_norm`)."""

    scale: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)

    def __init__(self, channels: int, *, groups: int = 32):
        """**Arguments:** `groups` is reduced to its greatest common divisor with `channels`."""
        self.scale = jnp.ones((channels,), jnp.float32)
        self.bias = jnp.zeros((channels,), jnp.float32)
        self.groups = normalisation_groups(channels, groups)

    def __call__(self, x: Float[Array, "*space channels"]) -> Float[Array, "*space channels"]:
        """Normalise."""
        return group_norm(x, self.scale, self.bias, self.groups)


class SelfAttention(eqx.Module):
    """Residual self-attention between the pixels of an image, with one head; it starts as the identity."""

    norm: GroupNorm
    query: Dense
    key: Dense
    value: Dense
    out: Dense

    def __init__(self, channels: int, *, groups: int = 32, key: PRNGKey):
        """**Arguments:** `channels`, `groups`: of the image and of the normalisation."""
        keys = jax.random.split(key, 4)
        self.norm = GroupNorm(channels, groups=groups)
        self.query = Dense(channels, channels, key=keys[0])
        self.key = Dense(channels, channels, key=keys[1])
        self.value = Dense(channels, channels, key=keys[2])
        self.out = Dense(channels, channels, zero=True, key=keys[3])

    def __call__(self, x: Image) -> Image:
        """Add to each pixel what it reads from the others."""
        pixels = x.shape[0] * x.shape[1]
        some = next(n for n in range(min(pixels, _QUERIES_AT_A_TIME), 0, -1) if pixels % n == 0)
        h = self.norm(x).reshape(pixels, -1)
        query, key, value = self.query(h), self.key(h), self.value(h)

        # All attention weights together are larger than anything else: compute them for some queries at a
        # time, and again for the backward pass.
        @partial(jax.checkpoint, prevent_cse=False)
        def attend(query: Float[Array, "some channels"]) -> Float[Array, "some channels"]:
            scores = jnp.dot(query * query.shape[-1] ** -0.5, key.T, preferred_element_type=jnp.float32)
            return jnp.dot(jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)

        h = jax.lax.map(attend, query.reshape(pixels // some, some, -1))
        return x + self.out(h.reshape(pixels, -1)).reshape(x.shape)


class ResidualBlock(eqx.Module):
    """Two 3x3 convolutions, each after GroupNorm and swish, around a shortcut.

    The embedding (of the noise level and the condition) is projected and added after the first. It starts
    as its shortcut: the identity or, if the number of channels changes, a linear map of each pixel. For the
    backward pass it keeps its input, the output of the first convolution and the dropout mask.
    """

    norm1: GroupNorm
    conv1: Conv
    project: Dense
    norm2: GroupNorm
    conv2: Conv
    shortcut: Dense | None
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding_size: int,
        *,
        dropout: float = 0.0,
        groups: int = 32,
        key: PRNGKey,
    ):
        """**Arguments:** `inputs`, `outputs`: numbers of channels; `embedding_size`: of the embedding;
        `dropout`: the rate, before the second convolution; `groups`: of the normalisations.
        """
        keys = jax.random.split(key, 4)
        self.norm1 = GroupNorm(inputs, groups=groups)
        self.conv1 = Conv(inputs, outputs, key=keys[0])
        self.project = Dense(embedding_size, outputs, zero=True, bias=False, key=keys[1])
        self.norm2 = GroupNorm(outputs, groups=groups)
        self.conv2 = Conv(outputs, outputs, zero=True, key=keys[2])
        self.shortcut = None if inputs == outputs else Dense(inputs, outputs, key=keys[3])
        self.dropout = dropout

    def __call__(
        self, x: Image, embedding: Embedding, *, skip: Skip = None, key: MaybeKey = None
    ) -> Float[Array, "height width outputs"]:
        """Apply the block to one image.

        **Arguments:** `x`: the image; `embedding`: of the noise level and the condition; `skip`: channels
        to append to the image, if any; `key`: for dropout, `None` for none.
        """
        keep, rate = None, self.dropout
        if key is not None and rate > 0:
            keep = dropout_mask((*x.shape[:2], self.conv2.bias.shape[0]), rate, key=key)

        # The backward pass of each half recomputes the normalised image, but not the convolution, whose
        # derivative does not need its output.
        def first(block: ResidualBlock, x: Any, skip: Any, embedding: Any) -> tuple[Any, Any]:
            x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
            h = block.conv1(jax.nn.silu(block.norm1(x)))
            h = h + block.project(embedding)[None, None, :]
            return h, x if block.shortcut is None else block.shortcut(x)

        def second(block: ResidualBlock, h: Any, keep: Any) -> Any:
            h = jax.nn.silu(block.norm2(h))
            return block.conv2(h if keep is None else apply_dropout(h, keep, rate))

        h, x = jax.checkpoint(first, prevent_cse=False)(self, x, skip, embedding)
        return x + jax.checkpoint(second, prevent_cse=False)(self, h, keep)


class Stage(eqx.Module):
    """A residual block, with attention after it if there is any."""

    block: ResidualBlock
    attention: SelfAttention | None

    def __call__(
        self, x: Image, embedding: Embedding, *, skip: Skip = None, key: MaybeKey = None
    ) -> Float[Array, "height width outputs"]:
        h = self.block(x, embedding, skip=skip, key=key)
        return h if self.attention is None else self.attention(h)


def embed(network: Any, logsnr: Scalar, condition: Condition) -> Embedding:
    """Noise level and condition as one vector, by a network's layers `embed1` and `embed2`."""
    position = normalise_logsnr(logsnr, network.logsnr_range)
    condition = condition_or_zeros(condition, network.condition_size)
    features = jnp.concatenate([sinusoidal_embedding(position, network.width), condition])
    features = jax.nn.silu(network.embed2(jax.nn.silu(network.embed1(features))))
    return features.astype(network.dtype)
