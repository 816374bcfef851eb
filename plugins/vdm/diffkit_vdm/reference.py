"""Checkpoints of the reference implementation (github.com/google-research/vdm) as diffkit models.

Flax's msgpack serialisation of `{"step", "params", "ema_params", ...}`: nested maps of arrays, each an
extension of type 1 that holds (shape, dtype, bytes).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import msgpack
import numpy as np

import diffkit as dk
from diffkit_vdm.schedules import LearnedLinear, LearnedMonotone
from diffkit_vdm.unet import vdm_unet_from_reference

_CONFIG_KEYS: Final = (
    "vocab_size",
    "with_fourier_features",
    "with_attention",
    "gamma_type",
    "gamma_min",
    "gamma_max",
    "sm_n_embd",
    "sm_n_layer",
    "sm_pdrop",
)


def _extension(code: int, data: bytes) -> Any:
    if code != 1:
        raise ValueError(f"msgpack_path holds an extension of type {code}, expected type 1, arrays.")
    shape, dtype, buffer = msgpack.unpackb(data)
    return np.frombuffer(buffer, dtype=np.dtype(dtype)).reshape(shape)


def _read_params(path: Path, group: str, needed: Sequence[str]) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"msgpack_path must be a checkpoint file, there is none at {path}.")
    try:
        stored = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, strict_map_key=False)
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise ValueError(f"msgpack_path {path} is not a Flax msgpack file: {error}") from error
    if not isinstance(stored, dict) or not isinstance(stored.get(group), dict):
        found = sorted(map(str, stored)) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"msgpack_path {path} has no {group!r}; it holds {found}.")
    params = stored[group]
    if missing := [name for name in needed if name not in params]:
        raise ValueError(
            f"msgpack_path {path} has no {' and no '.join(missing)} in its {group}; it has "
            f"{', '.join(params)}."
        )
    return params


def _read_config(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    values = config if isinstance(config, Mapping) else json.loads(Path(config).read_text())
    if missing := [name for name in _CONFIG_KEYS if name not in values]:
        raise ValueError(f"config lacks {', '.join(missing)}; it has {', '.join(values)}.")
    return values


def _schedule(config: Mapping[str, Any], params: Mapping[str, Any]) -> dk.AbstractSchedule:
    """The reference's gamma(t) is -logsnr(t)."""
    kind = config["gamma_type"]
    low, high = float(config["gamma_min"]), float(config["gamma_max"])
    if kind == "fixed":
        return dk.LinearLogSNR(-low, -high)

    def array(value: Any, *shape: int) -> jax.Array:
        return jnp.asarray(value, jnp.float32).reshape(shape)

    gamma = params["gamma"]
    if kind == "learnable_scalar":  # gamma = b + |w| t
        return eqx.tree_at(
            lambda s: (s.ends.start, s.ends.gap),
            LearnedLinear(-low, -high),
            (-array(gamma["b"]), array(gamma["w"])),
        )
    if kind == "learnable_nnet":  # gamma = b1 + |w1| t + mean(|w3| tanh((|w2| (2 t - 1) + b2) / 2))
        hidden, key = gamma["l2"]["kernel"].size, jax.random.key(0)
        schedule = LearnedMonotone(-low, -high, hidden=hidden, normalize=False, key=key)
        gap = array(gamma["l1"]["kernel"])
        # A weight of zero has no logarithm; this one gives the same function.
        slope = jnp.maximum(jnp.abs(array(gamma["l2"]["kernel"], -1)), 1e-30)
        # diffkit's network has slope 1 where the reference's has |w1|.
        height = jnp.maximum(jnp.abs(array(gamma["l3"]["kernel"], -1) / gap), 1e-30)
        centre = -array(gamma["l2"]["bias"], -1) / slope
        values = (-array(gamma["l1"]["bias"]), gap, jnp.log(slope), centre, jnp.log(height))

        def leaves(s: Any) -> tuple[Any, ...]:
            ends, inside = s.ends, s.interior
            return ends.start, ends.gap, inside.log_slope, inside.centre, inside.log_height

        return eqx.tree_at(leaves, schedule, values)
    raise ValueError(f"config gamma_type must be fixed, learnable_scalar or learnable_nnet, got {kind!r}.")


def import_reference(
    msgpack_path: str | Path,
    config: Mapping[str, Any] | str | Path,
    *,
    shape: tuple[int, int, int] = (3, 32, 32),
    group: str = "params",
) -> dk.DiffusionModel:
    """A checkpoint of the reference implementation as a diffkit model.

    Its monotone network becomes a `LearnedMonotone(normalize=False)`, so that the numbers agree.

    **Arguments:** `msgpack_path`: the checkpoint, a Flax msgpack file; `config`: the reference's model
    configuration, a mapping or the path of a JSON file; `shape`: (channels, height, width) of one image,
    32x32 in the published checkpoints; `group`: `"params"`, or `"ema_params"` for the averaged ones.

    **Returns:** the model. Its network takes the reference's conditioning number as a condition of
    size 1; without a condition it is zero, as in the reference's own experiments.

    **Raises:** `FileNotFoundError`; `ValueError` if the file is not such a checkpoint, or does not fit the
    configuration, naming the parameter.
    """
    values = _read_config(config)
    if group not in ("params", "ema_params"):
        raise ValueError(f"group must be 'params' or 'ema_params', got {group!r}.")
    needed = ("score_model",) if values["gamma_type"] == "fixed" else ("score_model", "gamma")
    params = _read_params(Path(msgpack_path), group, needed)
    network = vdm_unet_from_reference(params["score_model"], shape=shape, config=values)
    denoiser = dk.Denoiser(network, dk.Epsilon(), dk.VariancePreserving())
    decoder = dk.DiscretizedDecoder(levels=int(values["vocab_size"]))
    return dk.DiffusionModel(denoiser, _schedule(values, params), decoder, shape)
