"""Run directories: what a training run writes, and how to read it.

RUN/
  config.yaml        every choice: parts with their options, data, training settings; and `transport`,
                     the process and schedule given by `diffkit convert`
  data.json          what the data are: names and sizes of files, or digests (`diffkit.data.identity`)
  checkpoints/       the training state, by step (orbax), each with a manifest of what was written
  metrics.jsonl      training metrics, a record per line
  tensorboard/       the same for TensorBoard
  evaluation.json    the test likelihood; written last, so it marks a complete run
  *.png              samples, training curves, the schedule
  lock.json          the process that trains there, while it does
  nonfinite_STEP/    a step that was not finite, for `diffkit replay`
"""

import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.configs import (
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    differences,
    flat,
    make,
    nodes_of,
    preset_of,
    read_config,
    spec_of,
)
from diffkit.data import DATA_FILE, AbstractDataset, encode_condition
from diffkit.files import read_json, refuse_links, replace_text
from diffkit.model import DiffusionModel
from diffkit.nodes import short
from diffkit.presets import (
    MODEL_KINDS,
    Assembly,
    Context,
    DataSpec,
    Preset,
    assemble,
    key_of,
    make_part,
    part,
)
from diffkit.schedules import ordered_endpoints
from diffkit.training import Checkpoints, TrainConfig, init_state, read_metrics
from diffkit.training.branches import find_run
from diffkit.training.checkpoints import copy_checkpoint
from diffkit.transport import carried, range_losses

TERMS: Final = ("prior", "reconstruction", "diffusion")
"""The terms of the bound, which add up to the total."""

TOO_LARGE: Final = 1e30
"""Beyond it, sums and squares over runs overflow; no result comes near."""
_MOST_STEPS: Final = 100


@dataclass(frozen=True)
class Run:
    """A run read from disk.

    **Attributes:** `path`; `step`, of the checkpoint; `model`, with averaged parameters; `metrics`, the
    records of training, oldest first; `config`, the composed configuration as plain containers (empty
    for a run started in Python).
    """

    path: Path
    step: int
    model: DiffusionModel
    metrics: list[dict[str, float]]
    config: Mapping[str, Any]

    def data(self) -> AbstractDataset:
        """Load the training data again.

        **Raises:** `ValueError` if the run was started in Python and does not name its data.
        """
        if not self.config:
            raise ValueError(f"run {self.path} has no {CONFIG_FILE}, so its data are not known.")
        return make(self.config["data"])

    def condition(self, value: int | Sequence[float]) -> Float[Array, " condition"]:
        """A condition of the model, for sampling.

        **Arguments:** `value`: a class if the run's data have labels, or a vector of numbers.

        **Raises:** `ValueError` if the model has no such conditions, or the run was started in Python.
        """
        return jnp.asarray(encode_condition(self.data(), value))

    def part(self, kind: str) -> Any:
        """The sampler or grid of the configuration."""
        return part(kind, make(self.config[kind]), model=self.model)


def read_evaluation(file: Path) -> dict[str, Any]:
    """The evaluation of a run, as `diffkit train` writes it; a number that is none is NaN.

    **Raises:** `ValueError`, naming the file and the entry, if it is damaged.
    """
    bounds = [f"{name}_bits_per_dim" for name in ("total", *TERMS)]
    found = read_record(file, bounds, counts=("examples",))
    for name in ("total", *TERMS):
        found[f"{name}_standard_error"] = _number(file, found, f"{name}_standard_error", missing=True)
    _check_steps(file, found, "")
    others = found.get("at_steps", [])
    if not isinstance(others, list) or len(others) > _MOST_STEPS:
        raise ValueError(f"{file}: at_steps must be a list of at most {_MOST_STEPS} evaluations.")
    for index, each in enumerate(others):
        place = f"at_steps[{index}]."
        if not isinstance(each, dict):
            raise ValueError(f"{file}: at_steps[{index}] must be an object, got {short(each)}.")
        _check_steps(file, each, place)
        each["total_bits_per_dim"] = _number(file, each, "total_bits_per_dim", place)
    return found


def read_record(file: Path, numbers: Sequence[str], *, counts: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON file of a run.

    **Arguments:** `file`; `numbers`, `counts`: entries that it must have, numbers and positive whole ones.

    **Returns:** its entries; a number that is none, which JSON has as null, is NaN.

    **Raises:** `ValueError`, naming the file and the entry, if it is damaged.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a JSON object, got {short(found)}.")
    if missing := [name for name in (*numbers, *counts) if name not in found]:
        needed = ", ".join((*numbers, *counts))
        raise ValueError(f"{file} must have {needed}; it has no {', '.join(missing)}.")
    for name in counts:
        if not (type(found[name]) is int and 0 < found[name] < 2**63):
            raise ValueError(f"{file}: {name} must be a positive whole number, got {short(found[name])}.")
    return found | {name: _number(file, found, name) for name in numbers}


def _number(file: Path, found: Mapping[str, Any], name: str, place: str = "", missing: bool = False) -> Any:
    value = found.get(name)
    if value is None:
        return None if missing else math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{file}: {place}{name} must be a number, got {short(value)}.")
    return float(value) if abs(value) < TOO_LARGE else math.nan


def _check_steps(file: Path, found: Mapping[str, Any], place: str) -> None:
    steps = found.get("steps", 0)
    if steps is not None and not (type(steps) is int and 0 < steps < 2**63):
        raise ValueError(
            f"{file}: {place}steps must be a positive whole number or null, got {short(steps)}."
        )


def assembled(config: Mapping[str, Any], data: AbstractDataset | None = None) -> Assembly:
    """The composition of a configuration, as before training.

    **Arguments:** `config`; `data`: its data, if already loaded.
    """
    return assemble(preset_of(config), spec_of(config, data), key=key_of(config["train"]["seed"]))


def transported(model: DiffusionModel, config: Mapping[str, Any]) -> DiffusionModel:
    """The model under the process and schedule given by `diffkit convert`, if any."""
    moved = config.get("transport") or {}
    process, schedule = moved.get("process"), moved.get("schedule")
    if schedule is not None:
        key = key_of(config["train"]["seed"])
        context = Context(shape=model.shape, levels=model.decoder.levels, key=key)
        schedule = make_part("schedule", make(schedule), context)
    return carried(model, None if process is None else make(process)(), schedule)


def convert_run(
    source: Path,
    out: Path,
    *,
    process: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
) -> tuple[Run, tuple[str, ...]]:
    """Write a run's model under another process or schedule as a new run, without training.

    The new run has the old one's checkpoint (the newest whole one, if no step is given) and configuration,
    with the new process and schedule in the entry `transport`.

    **Arguments:** `source`: the run's directory, or `RUN@STEP`; `out`: the new one's; `process`,
    `schedule`: nodes of a configuration, as hydra-zen writes them; `None` keeps the run's.

    **Returns:** the new run, and a sentence for each end where its range of `logsnr` differs from the old
    one (`diffkit.equivalence.range_losses`).

    **Raises:** `ValueError` if neither part is given, a part does not fit, the run was started in Python,
    or `out` exists; `FileNotFoundError` if there is no run at `source`; `diffkit.training.CheckpointError`
    if none of its checkpoints is whole. On an error, nothing is written.
    """
    import yaml

    if process is None and schedule is None:
        raise ValueError("convert needs process=NAME or schedule=NAME, or both; got neither.")
    if os.path.lexists(out):
        raise ValueError(f"out must be a new directory, there is something at {out}.")
    run = load_run(source)
    refuse_links(run.path / CHECKPOINTS / str(run.step))  # whose files would be copied from elsewhere
    known, given = run.config.get("transport") or {}, {"process": process, "schedule": schedule}
    moved = {name: node or known.get(name) for name, node in given.items()}
    config = {**run.config, "transport": moved}
    # Refuses options that do not fit, before anything is written.
    model = transported(run.model, config)
    losses = range_losses(ordered_endpoints(run.model.schedule), ordered_endpoints(model.schedule))
    # Complete or not there at all.
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
        new = Path(place) / out.name
        step = Path(CHECKPOINTS) / str(run.step)
        (new / step).parent.mkdir(parents=True)
        copy_checkpoint(run.path / step, new / step, config)
        for name in (METRICS_FILE, DATA_FILE):
            if (run.path / name).is_file():
                shutil.copy(run.path / name, new / name)
        replace_text(new / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False))
        try:
            new.replace(out)
        except OSError:
            if not out.exists():
                raise
            # Made meanwhile, by another process.
            raise ValueError(f"out must be a new directory, there is something at {out}.") from None
    return load_run(out), losses


def load_run(
    path: str | Path,
    *,
    step: int | None = None,
    data: Mapping[str, Any] | None = None,
    like: DiffusionModel | Preset | None = None,
) -> Run:
    """Read a run directory.

    **Arguments:** `path`: the directory, or `"RUN@STEP"`; `step`: of the checkpoint, by default the newest
    one; `data`: options of its data that are not as they were, such as `{"path": "new/place"}`; `like`: the
    composition passed to `fit`: a preset, or a model assembled by hand. Needed only for a run with an
    unregistered part; its parts are compared with the run's.

    **Returns:** a `Run` at that checkpoint.

    **Raises:** `FileNotFoundError` if there is no run or no such checkpoint at `path`; `ValueError` if
    `like` is needed and missing, or is another composition (the message says what differs), or the data
    have no such option; `diffkit.training.CheckpointError` if `like` has another structure, if no
    checkpoint is whole, or if `config.yaml` was changed after it was written.

    **Warns:** `diffkit.training.CheckpointWarning` if newer checkpoints are damaged (`diffkit.verify_run`).
    """
    path, step = find_run(path, step)
    config = read_config(path, building=like is None)
    if not config and like is None:
        raise ValueError(
            f"run {path} was started in Python by an older version and has no {CONFIG_FILE}: "
            "read it with dk.load_run(path, like=MODEL), a model of the same structure."
        )
    if data:
        config = {**config, "data": _moved(config.get("data", {}), data, path)}
    checkpoints = Checkpoints(path / CHECKPOINTS)
    try:
        step = checkpoints.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"the run at {path} was stopped before its first checkpoint.")
        model = assembled(config).model if like is None else _like(like, config, path)
        # Only the model of the state is needed.
        wanted = dataclasses.replace(init_state(model, TrainConfig()), optimiser=None)
        state, _ = checkpoints.restore(step, like=wanted, beside=("time_sampler", "optimiser"))
    finally:
        checkpoints.close()
    model = transported(state.averaged_model, config)
    return Run(path, step, model, read_metrics(path / METRICS_FILE), config)


def _moved(node: Mapping[str, Any], changes: Mapping[str, Any], path: Path) -> dict[str, Any]:
    known = [name for name in node if not name.startswith("_")] if "_target_" in node else []
    if unknown := [name for name in changes if name not in known]:
        names = ", ".join(known) or "none"
        raise ValueError(f"the data of run {path} have no option {unknown[0]!r}. They have: {names}.")
    # As a stored configuration has them.
    plain = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in changes.items()}
    return {**node, **plain}


def _like(like: DiffusionModel | Preset, config: Mapping[str, Any], path: Path) -> DiffusionModel:
    """The model to read a run into, checked against the run's composition."""
    if isinstance(like, Preset):
        if not config:
            raise ValueError(f"run {path} has no {CONFIG_FILE}: like must be a model, not a preset.")
        spec = spec_of(config)
        model = assemble(like, spec, key=key_of(config["train"]["seed"])).model
        now = nodes_of(like, spec)
        there = {kind: config.get(kind) for kind in now}
    elif not config:
        return like
    else:
        # An object does not record its configuration: only the checkpoint can compare options that were
        # left open, and parts that do not keep their options.
        model, there, now = like, {}, {}
        nodes = nodes_of(Preset.of(like), DataSpec(like.shape, like.decoder.levels))
        for kind in MODEL_KINDS:
            node = nodes[kind]
            stored = config.get(kind, {})
            if node.keys() & stored.keys() & {"_target_", "_python_"}:
                kept = flat({kind: stored})
                there |= {name: value for name, value in kept.items() if value is not None}
                now |= {k: v for k, v in flat({kind: node}).items() if kept.get(k, v) is not None}
    if differ := differences(there, now):
        raise ValueError(f"like is not what run {path} was trained with: {'; '.join(differ)}.")
    return model
