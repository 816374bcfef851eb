"""A U-Net at several resolutions, as in most image diffusion models."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.networks import layers as nn
from diffkit.networks.base import AbstractNetwork, add_latent, check_common, check_image
from diffkit.networks.embeddings import fourier_features
from diffkit.registry import register
from diffkit.typing import Condition, Example, MaybeKey, PRNGKey, Scalar


class _Resolution(eqx.Module):
    """The blocks at one resolution: on the way down, and, mirrored, on the way up."""

    enter: nn.Conv  # from the channels of the resolution above (or of the input) to this one's
    down: nn.Stage
    up: nn.Stage
    leave: nn.Conv | None  # to the channels of the resolution above


def _halve(x: nn.Image) -> Float[Array, "half_h half_w channels"]:
    """The mean of each 2x2 square."""
    height, width, channels = x.shape
    return x.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def _double(x: nn.Image) -> Float[Array, "double_h double_w channels"]:
    """Each pixel four times."""
    height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, None, :, None, :], (height, 2, width, 2, channels))
    return x.reshape(2 * height, 2 * width, channels)


@register("network", "unet")
class UNet(AbstractNetwork):
    """A U-Net: `depth` residual blocks at each resolution down, and as many up with skips.

    Between resolutions it averages 2x2 squares on the way down and repeats pixels on the way up, each
    followed or preceded by a convolution that changes the number of channels. In the middle, at the
    coarsest resolution, are a block, attention, and a block. The blocks at one resolution are scanned:
    compile time grows with the number of resolutions, not with `depth`. It starts as the identity: the last
    convolution starts at zero, and `z` is added to it.
    """

    rank: ClassVar[int | None] = 3

    embed1: nn.Dense
    embed2: nn.Dense
    resolutions: tuple[_Resolution, ...]
    middle1: nn.ResidualBlock
    middle_attention: nn.SelfAttention
    middle2: nn.ResidualBlock
    norm_out: nn.GroupNorm
    conv_out: nn.Conv
    shape: tuple[int, ...] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    multipliers: tuple[int, ...] = eqx.field(static=True)
    attention: tuple[int, ...] = eqx.field(static=True)
    fourier: tuple[int, ...] = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    logsnr_range: tuple[float, float] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        depth: int = 2,
        multipliers: tuple[int, ...] = (1, 2, 2),
        attention: tuple[int, ...] = (),
        dropout: float = 0.1,
        fourier: tuple[int, ...] = (),
        remat: bool = False,
        levels: int = 256,
        outputs: int = 1,
        condition_size: int = 0,
        logsnr_range: tuple[float, float] = (13.3, -5.0),
        dtype: str = "float32",
        key: PRNGKey,
    ):
        """**Arguments:** those of `MLP`, with

        - `shape`: (channels, height, width) of one image. Height and width must be divisible by
          2^(len(multipliers) - 1).
        - `width`: channels at multiplier 1; 4 or more.
        - `depth`: residual blocks at each resolution, on each way.
        - `multipliers`: channels in units of `width`, one entry for each resolution, the image's own first.
        - `attention`: the resolutions (0 is the image's own) with attention after each block. The middle
          always has it.
        - `remat`: keep only the blocks' inputs for the backward pass: less memory, more time.

        **Raises:** `ValueError` for an argument out of range.
        """
        self.shape, self.width, self.depth = shape, width, depth
        self.multipliers, self.fourier, self.remat = multipliers, fourier, remat
        self.levels, self.outputs, self.attention, self.dropout = levels, outputs, attention, dropout
        self.condition_size, self.logsnr_range, self.dtype = condition_size, logsnr_range, dtype
        check_common(self, dropout)
        channels, height, columns = check_image(shape, self)
        if not multipliers or min(multipliers) < 1:
            raise ValueError(
                f"multipliers must be one or more positive integers, such as (1, 2); got {multipliers}."
            )
        last = len(multipliers) - 1
        if not {*attention} <= {*range(last + 1)}:
            raise ValueError(f"attention must name resolutions from 0 to {last}; got {attention}.")
        divisor = 2**last
        if height % divisor or columns % divisor:
            raise ValueError(
                f"shape must have a height and a width divisible by {divisor}, since multipliers "
                f"has {len(multipliers)} entries; got {shape}."
            )

        size = 4 * width
        # Four channels or more to a group: normalising one alone would remove what the noise level adds.
        groups = max(1, min(32, width // 4))
        *resolution_keys, k1, k2, k3, k4, k5, k6 = jax.random.split(key, len(multipliers) + 6)

        def residual(inputs: int, outputs: int, key: PRNGKey) -> nn.ResidualBlock:
            return nn.ResidualBlock(inputs, outputs, size, dropout=dropout, groups=groups, key=key)

        def attend(channels: int, key: PRNGKey) -> nn.SelfAttention:
            return nn.SelfAttention(channels, groups=groups, key=key)

        def make_resolution(index: int, inputs: int, key: PRNGKey) -> _Resolution:
            own = width * multipliers[index]

            def stage(channels: int, key: PRNGKey) -> nn.Stage:
                key, second = jax.random.split(key)
                attention_block = attend(own, second) if index in attention else None
                return nn.Stage(residual(channels, own, key), attention_block)

            keys = jax.random.split(key, 4)
            return _Resolution(
                enter=nn.Conv(inputs, own, key=keys[0]),
                down=nn.stack(lambda key: stage(own, key), depth, key=keys[1]),
                up=nn.stack(lambda key: stage(2 * own, key), depth, key=keys[2]),
                leave=None if index == 0 else nn.Conv(own, inputs, key=keys[3]),
            )

        inputs = (channels * (1 + 2 * len(fourier)), *(width * m for m in multipliers[:-1]))
        self.resolutions = tuple(map(make_resolution, range(len(multipliers)), inputs, resolution_keys))
        coarsest = width * multipliers[-1]
        self.embed1 = nn.Dense(width + condition_size, size, key=k1)
        self.embed2 = nn.Dense(size, size, key=k2)
        self.middle1 = residual(coarsest, coarsest, k3)
        self.middle_attention = attend(coarsest, k4)
        self.middle2 = residual(coarsest, coarsest, k5)
        self.norm_out = nn.GroupNorm(width * multipliers[0], groups=groups)
        self.conv_out = nn.Conv(width * multipliers[0], outputs * channels, zero=True, key=k6)

    def __call__(
        self, z: Example, logsnr: Scalar, condition: Condition = None, *, key: MaybeKey = None
    ) -> Float[Array, "outputs height width"]:
        """Evaluate on one image; see `AbstractNetwork`."""
        if z.shape != self.shape:
            raise ValueError(f"z has shape {z.shape}, but this network was built for {self.shape}.")
        embedding = nn.embed(self, logsnr, condition)
        image = jnp.transpose(z, (1, 2, 0))
        features = fourier_features(image, self.fourier, self.levels)
        h = jnp.concatenate([image, features], axis=-1).astype(self.dtype)
        count = len(self.resolutions)
        middle_key1, middle_key2, *ways = [None] * 4 if key is None else jax.random.split(key, 4)
        down_keys, up_keys = (
            [None] * count if way is None else list(jax.random.split(way, (count, self.depth)))
            for way in ways
        )

        def go_down(stage: nn.Stage, h: Any, key: Any) -> tuple[Any, Any]:
            h = stage(h, embedding, key=key)
            return h, h

        def go_up(stage: nn.Stage, h: Any, inputs: Any) -> tuple[Any, None]:
            skip, key = inputs
            return stage(h, embedding, skip=skip, key=key), None

        skips = []
        for resolution, keys in zip(self.resolutions, down_keys, strict=True):
            h = resolution.enter(_halve(h) if skips else h)
            h, outputs = nn.scan_blocks(go_down, resolution.down, h, keys, remat=self.remat)
            skips.append(outputs[::-1])

        h = self.middle1(h, embedding, key=middle_key1)
        h = self.middle_attention(h)
        h = self.middle2(h, embedding, key=middle_key2)

        for resolution, skip, keys in zip(self.resolutions[::-1], skips[::-1], up_keys, strict=True):
            h, _ = nn.scan_blocks(go_up, resolution.up, h, (skip, keys), remat=self.remat)
            if resolution.leave is not None:
                h = _double(resolution.leave(h))

        h = self.conv_out(jax.nn.silu(self.norm_out(h)))
        return add_latent(z, jnp.transpose(h, (2, 0, 1)))
