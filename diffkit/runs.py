"""Run directories: what a training run writes, and how to read it.

RUN/
  config.yaml        every choice: parts with their options, data, training settings; and `transport`,
                     the process and schedule given by `diffkit convert`
  checkpoints/       the training state, by step (orbax)
  metrics.jsonl      training metrics, a record per line
  tensorboard/       the same for TensorBoard
  evaluation.json    the test likelihood; written last, so it marks a complete run
  *.png              samples, training curves, the schedule
  lock.json          the process that trains there, while it does
  nonfinite_STEP/    a step that was not finite, for `diffkit replay`
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from diffkit.data import AbstractDataset, encode_condition
from diffkit.model import DiffusionModel
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
from diffkit.transport import carried, range_losses


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

    The new run has the old one's newest checkpoint and configuration, with the new process and schedule in
    the entry `transport`.

    **Arguments:** `source`: the run's directory; `out`: the new one's; `process`, `schedule`: nodes of a
    configuration, as hydra-zen writes them; `None` keeps the run's.

    **Returns:** the new run, and a sentence for each end where its range of `logsnr` differs from the old
    one (`diffkit.equivalence.range_losses`).

    **Raises:** `ValueError` if neither part is given, a part does not fit, the run was started in Python,
    or `out` exists; `FileNotFoundError` if there is no run at `source`. On an error, nothing is written.
    """
    import yaml

    if process is None and schedule is None:
        raise ValueError("convert needs process=NAME or schedule=NAME, or both; got neither.")
    if out.exists():
        raise ValueError(f"out must be a new directory, there is something at {out}.")
    run = load_run(source)
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
        shutil.copytree(source / step, new / step)
        if (source / METRICS_FILE).exists():
            shutil.copy(source / METRICS_FILE, new / METRICS_FILE)
        (new / CONFIG_FILE).write_text(yaml.safe_dump(config, sort_keys=False))
        try:
            new.replace(out)
        except OSError:
            if not out.exists():
                raise
            # Made meanwhile, by another process.
            raise ValueError(f"out must be a new directory, there is something at {out}.") from None
    return load_run(out), losses


def load_run(path: str | Path, *, like: DiffusionModel | Preset | None = None) -> Run:
    """Read a run directory.

    **Arguments:** `path`: the directory; `like`: the composition passed to `fit`: a preset, or a model
    assembled by hand. Needed only for a run with an unregistered part; its parts are compared with the
    run's.

    **Returns:** a `Run` at its newest checkpoint.

    **Raises:** `FileNotFoundError` if there is no run or no checkpoint at `path`; `ValueError` if
    `like` is needed and missing, or is another composition (the message says what differs);
    `diffkit.training.CheckpointError` if `like` has another structure.
    """
    path = Path(path)
    if not (path / CHECKPOINTS).is_dir():
        raise FileNotFoundError(f"path must be a run directory, there are no checkpoints at {path}.")
    config = read_config(path)
    if not config and like is None:
        raise ValueError(
            f"run {path} was started in Python by an older version and has no {CONFIG_FILE}: "
            "read it with dk.load_run(path, like=MODEL), a model of the same structure."
        )
    checkpoints = Checkpoints(path / CHECKPOINTS)
    try:
        step = checkpoints.latest_step()
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


def _like(like: DiffusionModel | Preset, config: Mapping[str, Any], path: Path) -> DiffusionModel:
    """The model to read a run into, checked against the run's composition."""
    if isinstance(like, Preset):
        if not config:
            raise ValueError(f"run {path} has no {CONFIG_FILE}: like must be a model, not a preset.")
        spec = spec_of(config)
        model = assemble(like, spec, key=key_of(config["train"]["seed"])).model
        now = nodes_of(like, spec)
        there = {kind: config[kind] for kind in now}
    elif not config:
        return like
    else:
        # An object does not record its configuration: only the checkpoint can compare options that were
        # left open, and parts that do not keep their options.
        model, there, now = like, {}, {}
        nodes = nodes_of(Preset.of(like), DataSpec(like.shape, like.decoder.levels))
        for kind in MODEL_KINDS:
            node = nodes[kind]
            if node.keys() & config[kind].keys() & {"_target_", "_python_"}:
                kept = flat({kind: config[kind]})
                there |= {name: value for name, value in kept.items() if value is not None}
                now |= {k: v for k, v in flat({kind: node}).items() if kept.get(k, v) is not None}
    if differ := differences(there, now):
        raise ValueError(f"like is not what run {path} was trained with: {'; '.join(differ)}.")
    return model
