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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from diffkit.data import DATA_FILE, AbstractDataset
from diffkit.display import type_name
from diffkit.files import LARGEST, read_yaml, refuse_links, replace_text
from diffkit.networks import AbstractNetwork
from diffkit.nodes import FOREIGN, check_node, check_values, fits, is_plain, short, stored, unknown, wrong
from diffkit.nodes import defaults as defaults
from diffkit.nodes import find as find
from diffkit.nodes import make as make
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
    "train.data_changed",
)
"""Settings that may change when a run continues: how long it trains, when it saves, what it evaluates."""

RENAMED: Final = {"timesteps": "loss_steps"}
"""Settings of training by the names that they had in older versions."""

_SETTINGS: Final = "diffkit.training.config.TrainConfig"
_OTHERS: Final[Mapping[str, Any]] = {
    "passes": int,
    "evaluate_steps": list[int | None],
    "variance": bool,
    "samples": int,
    "sample_steps": int,
    "data_std": float,
    "from": str | None,
    "transport": Mapping | None,
}
"""The entries of a configuration that are neither nodes nor settings of training, with their types."""
_GAUSSIAN: Final = "diffkit.decoders.GaussianDecoder"
_IMAGES: Final = "diffkit.data.images.ImageFolder"
_ELBO: Final = "diffkit.weightings.ELBO"


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
    parts = {kind: make(config[kind], kind) for kind in KINDS}
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
    if data is None and FOREIGN in node:
        known: dict[str, Any] = {name: node[name] for name in ("levels", "condition_size")}
        statistics = node["statistics"] and tuple(node["statistics"])
        return DataSpec(tuple(node["shape"]), statistics=statistics, **known)
    return DataSpec.of(make(node, "data") if data is None else data)


def unregistered(config: Mapping[str, Any]) -> dict[str, str]:
    """The unregistered parts of a configuration, by kind."""
    nodes = {kind: node for kind, node in config.items() if isinstance(node, Mapping)}
    return {kind: node[FOREIGN] for kind, node in nodes.items() if FOREIGN in node}


def node_of(kind: str, choice: Any, context: Context = Context()) -> dict[str, Any]:
    """A choice as a node of a configuration.

    **Arguments:** `kind`; `choice`: as in `diffkit.Preset`; `context`: for checking an instance's options.
    """
    part = resolve(kind, choice)
    if isinstance(part, functools.partial):
        cls, options = part.func, None if part.args else part.keywords
    else:
        cls, options = (part, {}) if is_constructor(part) else (type(part), _options(part, context))
    if options is None or not _is_known(kind, cls) or not all(map(is_plain, options.values())):
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
            node[name] = stored(value)
    return node


def _path(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


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
        if value is parameter.empty or not is_plain(value):
            return None
        options[name] = value
    try:
        again = eqx.filter_eval_shape(complete, functools.partial(type(part), **options), context)
    except Exception:  # a stranger's constructor may raise anything
        return None
    return options if _content(again, values=False) == _content(part, values=False) else None


def located(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose data are found from any working directory: with absolute paths.

    They are the options that a dataset annotates with `os.PathLike`.
    """
    node = config.get("data")
    if not isinstance(node, Mapping):
        return dict(config)
    places = {
        name: os.path.abspath(os.path.expanduser(node[name]))
        for name in _paths_of(config)
        if node[name] != "???"
    }
    return {**config, "data": {**node, **places}}


def _paths_of(config: Mapping[str, Any]) -> set[str]:
    """The options of its data that are paths, and given."""
    node = config.get("data")
    named = _paths(node.get("_target_", "")) if isinstance(node, Mapping) else ()
    return {name for name in named if isinstance(node, Mapping) and isinstance(node.get(name), str)}


@functools.cache
def _paths(target: str) -> tuple[str, ...]:
    """The options of a dataset that are paths."""
    made = find(target)
    parameters = inspect.signature(made).parameters if isinstance(made, type) else {}
    return tuple(name for name, each in parameters.items() if "PathLike" in str(each.annotation))


def _data_node(data: Any) -> dict[str, Any]:
    args, given = getattr(data, "made_with", ((), {"": data}))
    options = {**dict(zip(inspect.signature(type(data)).parameters, args, strict=False)), **given}
    if not all(map(is_plain, options.values())) or not _is_known("data", type(data)):
        spec = dataclasses.asdict(DataSpec.of(data))
        return _foreign(data) | {name: stored(value) for name, value in spec.items()}
    return _node(type(data), options, partial=False)


def _foreign(part: Any) -> dict[str, Any]:
    if isinstance(part, functools.partial):
        name, content = part.func, {**part.keywords, "args": part.args}
    else:
        name, content = (part, {}) if is_constructor(part) else (type(part), part)
    return {FOREIGN: _path(name), "content": _content(content)}


def _content(value: Any, *, values: bool = True) -> Any:
    """The content of a part in plain containers. Of trainable arrays, which training changes, the shape."""
    if isinstance(value, Array | jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.ndarray):
        kept = f"{value.dtype}{list(value.shape)}"
        return f"{kept} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}" if values else kept
    if is_plain(value):
        return stored(value)
    if isinstance(value, Mapping):
        return {str(key): _content(item, values=values) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_content(item, values=values) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {each.name: getattr(value, each.name, None) for each in dataclasses.fields(value)}
        return {"class": _path(type(value)), **_content(found, values=values)}
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an older version in the words of this one.

    Options younger than the configuration get what it had: today's default, with exceptions.
    """
    config = dict(config)
    config.setdefault("optimiser", {"_target_": "diffkit.optimisers.AdamW", "_partial_": True})
    config.setdefault("data_std", 1.0)
    for kind in KINDS:
        if isinstance(node := config.get(kind), Mapping) and "_target_" in node:
            config[kind] = {"_target_": node["_target_"], "_partial_": True} | dict(node)
    decoder, train = config.get("decoder"), config.get("train")
    if isinstance(decoder, Mapping) and decoder.get("_target_") == _GAUSSIAN:
        # It did not standardise; today's default does.
        config["decoder"] = {"mean": 0.0, "std": 1.0} | dict(decoder)
    data = config.get("data")
    if isinstance(data, Mapping) and data.get("_target_") == _IMAGES:
        # It split by positions, and took what it could convert.
        config["data"] = {"split": "positions", "convert": True} | dict(data)
    if isinstance(train, Mapping):
        settings = {RENAMED.get(name, name): value for name, value in train.items()}
        config["train"] = {"_target_": _SETTINGS} | settings
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


def read_config(path: Path, *, building: bool = False) -> dict[str, Any]:
    """The configuration in a run directory, empty if there is none.

    **Arguments:** `path`: of the run; `building`: whether its parts will be made.

    **Raises:** as `checked`, naming the file.
    """
    file = path / CONFIG_FILE
    if not os.path.lexists(file):
        return {}
    return checked(read_yaml(file, whole=True), f"{file}: ", building=building)


def checked(config: Any, where: str = "", *, building: bool = False) -> dict[str, Any]:
    """A configuration of this or an older version, checked before anything in it is imported or made.

    **Arguments:** `config`: as it was read; `where`: what an error begins with, such as the file;
    `building`: whether its parts will be made, for which it must have all of them.

    **Returns:** the configuration in the words of this version (`upgraded`).

    **Raises:** `ValueError`, naming the entry, for a missing or an unknown one, a part that is not
    registered, an unknown option, or a value that does not fit. The part of a plugin that is not installed
    may be named, unless it will be made: a `ModuleNotFoundError`.
    """
    if not isinstance(config, Mapping):
        must = "it must be the configuration of a run, a mapping"
        raise ValueError(f"{where}{must}, got {short(config)}.")
    known = (*KINDS, "data", "train", *_OTHERS)
    for name, value in config.items():
        if name not in known:
            raise unknown(where, "a configuration", name, known)
        check_values(value, name, where=where)
    for name in (*KINDS, "data", "train"):
        if not isinstance(config.get(name, {}), Mapping):
            raise wrong(where, name, "be a mapping", config[name])
    # Before defaults take the places of others.
    own = [f"train.{name}" for name in ("steps", "seed") if name not in config.get("train", {})]
    config = upgraded(config)
    needed = (*(KINDS if building else ()), "data", "train")
    missing = [name for name in needed if name not in config] or own
    if missing:
        raise ValueError(
            f"{where}it must be a run's configuration and has no {', '.join(missing)}: is it cut short?"
        )
    for name, hint in _OTHERS.items():
        if name in config and not fits(config[name], hint):
            raise wrong(where, name, f"be {type_name(hint)}", config[name])
    for kind in (*KINDS, "data"):
        if kind in config:
            _check_entry(config[kind], kind, kind, where, building)
    moved = config.get("transport") or {}
    for kind, node in moved.items():
        if kind not in ("process", "schedule"):
            raise unknown(where, "transport", kind, ("process", "schedule"))
        if node is not None:
            _check_entry(node, f"transport.{kind}", kind, where, building)
    _check_settings(config["train"], where)
    return config


def _check_entry(node: Any, key: str, kind: str, where: str, building: bool) -> None:
    check_node(node, key, kind=kind, where=where, building=building)
    partial = kind != "data"
    if FOREIGN not in node and node.get("_partial_", partial) is not partial:
        raise wrong(where, f"{key}._partial_", f"be {str(partial).lower()}", node["_partial_"])


def _check_settings(train: Mapping[str, Any], where: str) -> None:
    if train["_target_"] != _SETTINGS:
        raise wrong(where, "train._target_", f"be {_SETTINGS}", train["_target_"])
    check_node(train, "train", where=where)
    if train.get("_partial_", False):
        raise wrong(where, "train._partial_", "be false", True)
    if train.get("seed", 0) < 0:  # which makes a key before the settings are made
        raise wrong(where, "train.seed", "be at least 0", train["seed"])


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration into a run directory, or check that it matches the one there.

    The settings in `MAY_CHANGE` may differ; a change removes the old evaluation. A run without a checkpoint
    or an evaluation starts again.

    **Raises:** `ValueError` if a configuration cannot hold an option, or is too large; if the directory
    belongs to a run with other choices, naming them, or holds what a run writes without a configuration; if
    it has a link where training would write through it.
    """
    import yaml

    checked(config, "the new configuration: ")  # or it could not be read again
    refuse_links(path / CHECKPOINTS)
    refuse_links(path / "tensorboard")
    places = (path / CHECKPOINTS).iterdir() if (path / CHECKPOINTS).is_dir() else ()
    saved = any(place.name.isdecimal() for place in places)  # what a killed save left is none
    known = read_config(path)
    if saved and not known:
        raise ValueError(
            f"run={str(path)!r} holds checkpoints and no {CONFIG_FILE}, so what they were trained with "
            "is not known. Name another directory; dk.load_run(path, like=model) reads them."
        )
    config = located(config)
    others = (EVALUATION_FILE, METRICS_FILE, VARIANCE_FILE, "tensorboard")
    if not known and (left := [name for name in others if os.path.lexists(path / name)]):
        raise ValueError(
            f"run={str(path)!r} holds {', '.join(left)} and no {CONFIG_FILE}, so what was trained there is "
            "not known. Name another directory, or remove these."
        )
    begun = saved or (path / EVALUATION_FILE).exists()
    if known and begun and (path / DATA_FILE).exists():
        # Wherever they are now: training goes on only with the same data, which it compares.
        known = located(known)
        moved = {name: known["data"][name] for name in _paths_of(known) & _paths_of(config)}
        config["data"] = config["data"] | moved
    changes = _changes(known, config) if known else {}
    if begun and (differ := differences(known, config)):
        raise ValueError(
            f"run={str(path)!r} holds a run with other choices: {'; '.join(differ[:5])}. "
            "Choose as there to continue it, name another directory, or remove this one."
        )
    order = [name for name in (*KINDS, "data", "train") if name in config]
    ordered = {name: config[name] for name in (*order, *sorted(config.keys() - set(order)))}
    text = yaml.safe_dump(ordered, sort_keys=False)
    if len(text) > LARGEST:
        raise ValueError(
            f"a configuration must have at most {LARGEST} bytes, to be read again; got {len(text)}."
        )
    if changes:
        (path / EVALUATION_FILE).unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    replace_text(path / CONFIG_FILE, text)


def differences(known: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """How a configuration differs from the stored one of a run, in words."""
    return [
        f"{name} ({short(there)} there, {short(now)} now)"
        for name, (there, now) in _changes(known, config).items()
        if name not in MAY_CHANGE
    ]


def is_finished(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether a directory holds a trained and evaluated run of this exact configuration."""
    known = read_config(path)
    return bool(known) and (path / EVALUATION_FILE).exists() and not _changes(known, config)


def _changes(known: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The differences between a stored configuration and a new one: name to (there, now)."""
    there, now = (flat(located(upgraded(each))) for each in (known, config))
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
