"""Configurations: a composition as plain containers, stored as `config.yaml` in a run directory.

A node names a part by its import path, as Hydra does: `_target_`, `_partial_: true` and its options. An
unregistered part, which other processes cannot find, has a node with `_python_` instead of `_target_`. It
records what the part was, to notice a different one, but cannot make it.
"""

import dataclasses
import functools
import hashlib
import inspect
import os
import pkgutil
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from diffkit import registry
from diffkit.data import AbstractDataset
from diffkit.files import replace_text
from diffkit.networks import AbstractNetwork
from diffkit.presets import MODEL_KINDS, TRAINING_KINDS, DataSpec, Preset, resolve
from diffkit.registry import CONTEXT, Context, complete, is_constructor, name_of

KINDS: Final = (*MODEL_KINDS, *TRAINING_KINDS)
"""The kinds of a preset, in the order of a configuration."""

CONFIG_FILE: Final = "config.yaml"
EVALUATION_FILE: Final = "evaluation.json"
VARIANCE_FILE: Final = "variance.json"
METRICS_FILE: Final = "metrics.jsonl"
CHECKPOINTS: Final = "checkpoints"

LOOKS: Final = {"passes": 16, "evaluate_steps": (), "variance": False, "samples": 64}
"""What `diffkit train` evaluates at the end of a run, with its defaults."""

MAY_CHANGE: Final = (
    *LOOKS,
    "sample_steps",
    "train.steps",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.nonfinite",
    "train.evaluate_every",
    "train.evaluate_passes",
)
"""Settings that may change when a run continues: how long it trains, when it saves, what it evaluates."""

RENAMED: Final = {"timesteps": "loss_steps"}
"""Settings of training by the names that they had in older versions."""

_FOREIGN: Final = "_python_"
_GAUSSIAN: Final = "diffkit.decoders.GaussianDecoder"
_ELBO: Final = "diffkit.weightings.ELBO"


def make(node: Any) -> Any:
    """Make what a node of a configuration describes.

    **Arguments:** `node`: a mapping with `_target_`.

    **Returns:** an instance; or, for `_partial_: true`, a `functools.partial` with the options.
    Sequences become tuples, as the constructors of parts expect.

    **Raises:** `ValueError` for a part made in Python, or an option without a value.
    """
    from hydra_zen import instantiate

    if _FOREIGN in node:
        raise ValueError(
            f"the run has a part that was made in Python, {node[_FOREIGN]}, and no command can make it: "
            "dk.load_run(path, like=...), with the preset or the model that was trained."
        )
    for option, value in node.items():
        if value == "???":
            part = find(node["_target_"])
            text = f"{part.__doc__}\n\n{part.__init__.__doc__}\n\n"
            said = re.search(rf"`{option}`: (.*?)(?:[.;]\s|\n\s*\n)", text, re.S)
            kind, name = next((k, n) for k in registry.KINDS if (n := name_of(k, part)))
            raise ValueError(
                f"{kind}={name} needs {kind}.{option}=..."
                + (f", {' '.join(said[1].split())}." if said else ".")
            )
    made = instantiate(node, _convert_="all")
    if isinstance(made, functools.partial):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in made.keywords.items()}
        return functools.partial(made.func, *made.args, **options)
    return made


def preset_of(config: Mapping[str, Any]) -> Preset:
    """The composition described by a configuration.

    **Raises:** `ValueError` if an entry is missing or a part is not registered.
    """
    if missing := [entry for entry in (*KINDS, "train") if entry not in config]:
        raise ValueError(
            f"a configuration must be that of a run, as in its {CONFIG_FILE}; it has no "
            f"{', '.join(missing)}."
        )
    more = {name: config[name] for name in ("data_std", "sample_steps") if name in config}
    train = {name: value for name, value in config["train"].items() if name != "_target_"}
    parts = {kind: make(config[kind]) for kind in KINDS}
    return Preset(**parts, train=train, **more)


def config_of(preset: Preset, data: Any, settings: Any) -> dict[str, Any]:
    """The configuration of a composition, as `diffkit train` writes it.

    **Arguments:** `preset`; `data`: a dataset; `settings`: a `diffkit.TrainConfig`.
    """
    return {
        **nodes_of(preset, DataSpec.of(data)),
        "data": _data_node(data),
        "train": {"_target_": _path(type(settings)), **dataclasses.asdict(settings)},
        **{name: list(v) if isinstance(v, tuple) else v for name, v in LOOKS.items()},
        "data_std": preset.data_std,
        "sample_steps": preset.sample_steps,
    }


def nodes_of(preset: Preset, data: DataSpec) -> dict[str, dict[str, Any]]:
    """The node of each kind of a preset."""
    context = Context(**vars(data), data_std=preset.data_std, key=jax.random.key(0))
    return {kind: node_of(kind, getattr(preset, kind), context) for kind in KINDS}


def spec_of(config: Mapping[str, Any], data: AbstractDataset | None = None) -> DataSpec:
    """What a model must know about the data of a configuration.

    **Arguments:** `config`; `data`: its data, if already loaded.
    """
    node = config["data"]
    if data is None and _FOREIGN in node:
        known: dict[str, Any] = {name: node[name] for name in ("levels", "condition_size")}
        statistics = node["statistics"] and tuple(node["statistics"])
        return DataSpec(tuple(node["shape"]), statistics=statistics, **known)
    return DataSpec.of(make(node) if data is None else data)


def unregistered(config: Mapping[str, Any]) -> dict[str, str]:
    """The unregistered parts of a configuration, by kind."""
    nodes = {kind: node for kind, node in config.items() if isinstance(node, Mapping)}
    return {kind: node[_FOREIGN] for kind, node in nodes.items() if _FOREIGN in node}


def node_of(kind: str, choice: Any, context: Context = Context()) -> dict[str, Any]:
    """A choice as a node of a configuration.

    **Arguments:** `kind`; `choice`: as in `diffkit.Preset`; `context`: for checking an instance's options.
    """
    part = resolve(kind, choice)
    if isinstance(part, functools.partial):
        cls, options = part.func, None if part.args else part.keywords
    else:
        cls, options = (part, {}) if is_constructor(part) else (type(part), _options(part, context))
    if options is None or not _is_known(kind, cls) or not all(map(_is_plain, options.values())):
        return _foreign(part)
    return _node(cls, options)


def _is_known(kind: str, cls: Any) -> bool:
    """Whether another process can find it: registered, and not in a script."""
    return name_of(kind, cls) is not None and cls.__module__ != "__main__"


def _node(cls: Any, options: Mapping[str, Any], *, partial: bool = True) -> dict[str, Any]:
    node: dict[str, Any] = {"_target_": _path(cls), "_partial_": partial}
    for name, parameter in inspect.signature(cls).parameters.items():
        default = parameter.empty if partial and name in CONTEXT else parameter.default
        if (value := options.get(name, default)) is not parameter.empty:
            node[name] = _stored(value)
    return node


def _path(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _stored(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_stored(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | os.PathLike | None)


def _options(part: Any, context: Context) -> dict[str, Any] | None:
    """The options that make the same part again: its attributes of their names; else `None`."""
    options = {}
    if isinstance(part, AbstractNetwork):
        # Its own range: a model refuses a network of another than its schedule's.
        context = dataclasses.replace(context, logsnr_range=getattr(part, "logsnr_range", None))
    for name, parameter in inspect.signature(type(part)).parameters.items():
        if name in CONTEXT:
            continue
        value = getattr(part, name, parameter.empty)
        if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0:
            value = value.item()
        if value is parameter.empty or not _is_plain(value):
            return None
        options[name] = value
    try:
        again = eqx.filter_eval_shape(complete, functools.partial(type(part), **options), context)
    except Exception:  # a stranger's constructor may raise anything
        return None
    return options if _content(again, values=False) == _content(part, values=False) else None


def _data_node(data: Any) -> dict[str, Any]:
    args, given = getattr(data, "made_with", ((), {"": data}))
    options = {**dict(zip(inspect.signature(type(data)).parameters, args, strict=False)), **given}
    if not all(map(_is_plain, options.values())) or not _is_known("data", type(data)):
        spec = dataclasses.asdict(DataSpec.of(data))
        return _foreign(data) | {name: _stored(value) for name, value in spec.items()}
    return _node(type(data), options, partial=False)


def _foreign(part: Any) -> dict[str, Any]:
    if isinstance(part, functools.partial):
        name, content = part.func, {**part.keywords, "args": part.args}
    else:
        name, content = (part, {}) if is_constructor(part) else (type(part), part)
    return {_FOREIGN: _path(name), "content": _content(content)}


def _content(value: Any, *, values: bool = True) -> Any:
    """The content of a part in plain containers. Of trainable arrays, which training changes, the shape."""
    if isinstance(value, Array | jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.ndarray):
        kept = f"{value.dtype}{list(value.shape)}"
        return f"{kept} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}" if values else kept
    if _is_plain(value):
        return _stored(value)
    if isinstance(value, Mapping):
        return {str(key): _content(item, values=values) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_content(item, values=values) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
        return {"class": _path(type(value)), **_content(found, values=values)}
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"


@functools.cache
def find(target: str) -> Any:
    """The object that a node names; `None` if it cannot be imported, such as a missing plugin."""
    try:
        return pkgutil.resolve_name(target)
    except Exception:  # a stranger's module may raise anything
        return None


@functools.cache
def defaults(target: str) -> Mapping[str, Any]:
    """The options of what a node names that have plain defaults."""
    made = find(target)
    signature = inspect.signature(made).parameters if callable(made) else {}
    return {
        name: _stored(parameter.default)
        for name, parameter in signature.items()
        if _is_plain(parameter.default) and name not in CONTEXT
    }


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an older version in the words of this one.

    Options younger than the configuration get what it had: today's default, with exceptions.
    """
    config = dict(config)
    config.setdefault("optimiser", {"_target_": "diffkit.optimisers.AdamW", "_partial_": True})
    config.setdefault("data_std", 1.0)
    decoder, train = config.get("decoder"), config.get("train")
    if isinstance(decoder, Mapping) and decoder.get("_target_") == _GAUSSIAN:
        # It did not standardise; today's default does.
        config["decoder"] = {"mean": 0.0, "std": 1.0} | dict(decoder)
    if isinstance(train, Mapping):
        config["train"] = {RENAMED.get(name, name): value for name, value in train.items()}
        schedule, weighting = _filled(config.get("schedule")), config.get("weighting") or {}
        if schedule and schedule.get("learn_endpoints") and weighting.get("_target_") != _ELBO:
            # It trained them under any weighting; today's default does under the bound alone.
            config["train"].setdefault("learn_endpoints", True)
    return _filled(config)


def _filled(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    found = {name: _filled(value) for name, value in node.items()}
    return found | {k: v for k, v in defaults(node.get("_target_", "")).items() if k not in found}


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a run directory, empty if there is none.

    **Raises:** `ValueError`, naming the file, if it is not a configuration.
    """
    import yaml

    file = path / CONFIG_FILE
    if not file.exists():
        return {}
    try:
        config = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:  # which do not name the file
        raise ValueError(f"{file} is damaged: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold the configuration of a run, got {type(config).__name__}.")
    return upgraded(config)


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration into a run directory, or check that it matches the one there.

    The settings in `MAY_CHANGE` may differ; a change removes the old evaluation. A run without a checkpoint
    or an evaluation starts again.

    **Raises:** `ValueError` if the directory belongs to a run with other choices, naming them, or holds
    what a run writes without a configuration.
    """
    import yaml

    saved = (path / CHECKPOINTS).is_dir() and any((path / CHECKPOINTS).iterdir())
    known = read_config(path)
    if saved and not known:
        raise ValueError(
            f"run={str(path)!r} holds checkpoints and no {CONFIG_FILE}, so what they were trained with "
            "is not known. Name another directory; dk.load_run(path, like=model) reads them."
        )
    others = (EVALUATION_FILE, METRICS_FILE, VARIANCE_FILE, "tensorboard")
    if not known and (left := [name for name in others if os.path.lexists(path / name)]):
        raise ValueError(
            f"run={str(path)!r} holds {', '.join(left)} and no {CONFIG_FILE}, so what was trained there is "
            "not known. Name another directory, or remove these."
        )
    changes = _changes(known, config) if known else {}
    begun = saved or (path / EVALUATION_FILE).exists()
    if begun and (differ := differences(known, config)):
        raise ValueError(
            f"run={str(path)!r} holds a run with other choices: {'; '.join(differ[:5])}. "
            "Choose as there to continue it, name another directory, or remove this one."
        )
    if changes:
        (path / EVALUATION_FILE).unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    order = [name for name in (*KINDS, "data", "train") if name in config]
    ordered = {name: config[name] for name in (*order, *sorted(config.keys() - set(order)))}
    replace_text(path / CONFIG_FILE, yaml.safe_dump(ordered, sort_keys=False))


def differences(known: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """How a configuration differs from the stored one of a run, in words."""
    return [
        f"{name} ({_short(there)} there, {_short(now)} now)"
        for name, (there, now) in _changes(known, config).items()
        if name not in MAY_CHANGE
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_finished(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether a directory holds a trained and evaluated run of this exact configuration."""
    known = read_config(path)
    return bool(known) and (path / EVALUATION_FILE).exists() and not _changes(known, config)


def _changes(known: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differences between a stored configuration and a new one: name to (there, now)."""
    there, now = flat(upgraded(known)), flat(upgraded(config))
    return {
        name: (there.get(name), now.get(name))
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    }


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration with a dotted name for each value."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
