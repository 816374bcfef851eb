"""The denoising network of Variational Diffusion Models."""

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.networks import layers as nn
from diffkit.networks.base import AbstractNetwork, add_latent, check_common, check_image
from diffkit.networks.embeddings import fourier_features
from diffkit.registry import register
from diffkit.typing import PRNGKey, Scalar, check_at_least


@register("network", "vdm_unet")
class VDMUNet(AbstractNetwork):
    """VDM's U-Net (section 5.2 and appendix B): many blocks, Fourier features of the input.

    Unlike the usual U-Net it never changes the resolution, since likelihood depends on the finest details.
    `depth` residual blocks go down, two with attention between them form the middle, and `depth + 1` blocks
    go up, each reading the output of one on the way down. Fourier features resolve grey levels.

    At the start it returns `z` itself, to which the noise is close over much of the noise range. With the
    same parameters it equals the reference implementation (`vdm_unet_from_reference`).
    """

    rank: ClassVar[int | None] = 3

    embed1: nn.Dense
    embed2: nn.Dense
    conv_in: nn.Conv
    down: nn.Stage
    middle1: nn.ResidualBlock
    middle_attention: nn.SelfAttention
    middle2: nn.ResidualBlock
    up: nn.Stage
    norm_out: nn.GroupNorm
    conv_out: nn.Conv
    shape: tuple[int, ...] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    fourier: tuple[int, ...] = eqx.field(static=True)
    attention: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    logsnr_range: tuple[float, float] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 32,
        attention: bool = False,
        dropout: float = 0.1,
        fourier: tuple[int, ...] = (6, 7),
        groups: int = 32,
        remat: bool = False,
        levels: int = 256,
        outputs: int = 1,
        condition_size: int = 0,
        logsnr_range: tuple[float, float] = (13.3, -5.0),
        dtype: str = "float32",
        key: PRNGKey,
    ):
        """**Arguments:** those of `diffkit.networks.MLP`, with

        - `shape`: (channels, height, width) of one image.
        - `width`: channels of every block, 4 or more.
        - `depth`: residual blocks on the way down; the way up has one more.
        - `attention`: attention after every block. The middle always has attention.
        - `groups`: of every normalisation. A group of one channel would remove what the noise level adds
          to it, so for a width of 32 or less choose fewer: an eighth of the width works well.
        - `remat`: keep only the blocks' inputs for the backward pass: less memory, more time.
        - `condition_size`: length of the condition, 1 in the reference.

        **Raises:** `ValueError` for an argument out of range.
        """
        self.shape, self.width, self.depth, self.fourier = shape, width, depth, fourier
        self.levels, self.outputs, self.groups, self.dropout = levels, outputs, groups, dropout
        self.condition_size, self.logsnr_range = condition_size, logsnr_range
        self.dtype, self.remat, self.attention = dtype, remat, attention
        check_common(self, dropout)
        check_at_least("groups", groups, 1)
        channels, size = check_image(shape, self)[0], 4 * width

        def residual(inputs: int, key: PRNGKey) -> nn.ResidualBlock:
            return nn.ResidualBlock(inputs, width, size, dropout=dropout, groups=groups, key=key)

        def stage(inputs: int, key: PRNGKey) -> nn.Stage:
            key, second = jax.random.split(key)
            attend = nn.SelfAttention(width, groups=groups, key=second) if attention else None
            return nn.Stage(residual(inputs, key), attend)

        keys = jax.random.split(key, 9)
        self.embed1 = nn.Dense(width + condition_size, size, key=keys[0])
        self.embed2 = nn.Dense(size, size, key=keys[1])
        self.conv_in = nn.Conv(channels * (1 + 2 * len(fourier)), width, key=keys[2])
        self.down = nn.stack(lambda key: stage(width, key), depth, key=keys[3])
        self.middle1 = residual(width, keys[4])
        self.middle_attention = nn.SelfAttention(width, groups=groups, key=keys[5])
        self.middle2 = residual(width, keys[6])
        self.up = nn.stack(lambda key: stage(2 * width, key), depth + 1, key=keys[7])
        self.norm_out = nn.GroupNorm(width, groups=groups)
        self.conv_out = nn.Conv(width, outputs * channels, zero=True, key=keys[8])

    def __call__(
        self,
        z: Float[Array, "channels height width"],
        logsnr: Scalar,
        condition: Float[Array, " condition_size"] | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Float[Array, "outputs height width"]:
        """Evaluate on one image; see `AbstractNetwork`."""
        embedding = nn.embed(self, logsnr, condition)
        image = jnp.transpose(z, (1, 2, 0))
        waves = fourier_features(image, self.fourier, self.levels)
        down_keys = middle_key1 = middle_key2 = up_keys = None
        if key is not None:
            keys = jax.random.split(key, 2 * self.depth + 3)
            down_keys, up_keys = keys[: self.depth], keys[self.depth : -2]
            middle_key1, middle_key2 = keys[-2], keys[-1]

        def go_down(stage: nn.Stage, h: Any, key: Any) -> tuple[Any, Any]:
            h = stage(h, embedding, key=key)
            return h, h

        def go_up(stage: nn.Stage, h: Any, inputs: Any) -> tuple[Any, None]:
            skip, key = inputs
            return stage(h, embedding, skip=skip, key=key), None

        first = self.conv_in(jnp.concatenate([image, waves], axis=-1).astype(self.dtype))
        h, skips = nn.scan_blocks(go_down, self.down, first, down_keys, remat=self.remat)
        h = self.middle1(h, embedding, key=middle_key1)
        h = self.middle_attention(h)
        h = self.middle2(h, embedding, key=middle_key2)
        skips = jnp.concatenate([skips[::-1], first[None]])
        h, _ = nn.scan_blocks(go_up, self.up, h, (skips, up_keys), remat=self.remat)
        h = self.conv_out(jax.nn.silu(self.norm_out(h)))
        return add_latent(z, jnp.transpose(h, (2, 0, 1)))


# The layers of a block and of an attention, by our names and by the reference's.
_BLOCK = {
    "norm1": "GroupNorm_0",
    "conv1": "conv1",
    "project": "cond_proj",
    "norm2": "GroupNorm_1",
    "conv2": "conv2",
}
_ATTENTION = {"norm": "GroupNorm_0", "query": "q", "key": "k", "value": "v", "out": "proj_out"}


def vdm_unet_from_reference(
    params: Mapping[str, Any], *, shape: tuple[int, ...], config: Mapping[str, Any]
) -> VDMUNet:
    """A `VDMUNet` with the parameters of the reference implementation's score model.

    **Arguments:** `params`: the nested dictionary of arrays under `score_model` in a checkpoint of the
    reference; `shape`: (channels, height, width) of one image; `config`: the reference's configuration.

    **Returns:** the network, in float32, with `condition_size=1`.

    **Raises:** `ValueError` if a parameter is missing or its shape differs from the configuration's.
    """

    def layer(tree: Mapping[str, Any]) -> dict[str, Any]:
        if "scale" in tree:
            return {"scale": tree["scale"], "bias": tree["bias"]}
        return {"weight": tree["kernel"], "bias": tree.get("bias")}

    def layers(name: str, names: Mapping[str, str]) -> dict[str, Any]:
        tree = params[name]
        found = {ours: layer(tree[theirs]) for ours, theirs in names.items()}
        # Where a block keeps its width there is none.
        return found | {"shortcut": layer(tree["nin_shortcut"]) if "nin_shortcut" in tree else None}

    def stages(way: str, count: int) -> dict[str, Any]:
        each = [{"block": layers(f"{way}.block_{i}", _BLOCK)} for i in range(count)]
        for i, stage in enumerate(each):
            attended = config["with_attention"]
            stage["attention"] = layers(f"{way}.attn_{i}", _ATTENTION) if attended else {}
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    network = VDMUNet(
        shape,
        width=config["sm_n_embd"],
        depth=config["sm_n_layer"],
        attention=config["with_attention"],
        dropout=float(config["sm_pdrop"]),
        fourier=(6, 7) if config["with_fourier_features"] else (),
        condition_size=1,
        logsnr_range=(-float(config["gamma_min"]), -float(config["gamma_max"])),
        key=jax.random.key(0),
    )
    try:
        values: dict[str, Any] = {
            "embed1": layer(params["dense0"]),
            "embed2": layer(params["dense1"]),
            "conv_in": layer(params["conv_in"]),
            "down": stages("down", network.depth),
            "middle1": layers("mid.block_1", _BLOCK),
            "middle_attention": layers("mid.attn_1", _ATTENTION),
            "middle2": layers("mid.block_2", _BLOCK),
            "up": stages("up", network.depth + 1),
            "norm_out": layer(params["GroupNorm_0"]),
            "conv_out": layer(params["conv_out"]),
        }
    except KeyError as error:
        raise ValueError(
            f"params has no entry {error}; expected the reference's score model with "
            f"sm_n_layer={config['sm_n_layer']} and with_attention={config['with_attention']}."
        ) from error

    def fill(path: Any, leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        value: Any = values
        for entry in path:
            value = None if value is None else value[entry.name]
        if value is None or np.shape(value) != leaf.shape:
            found = "nothing" if value is None else f"shape {np.shape(value)}"
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params has {found} for {name}, expected shape {leaf.shape}.")
        return jnp.asarray(value, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, network)
