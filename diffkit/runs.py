"""Run directories: what a training run leaves behind, and how it is read again.

    RUN/
      config.yaml        every choice: parts with their options, data, training settings; and `transport`,
                         what `diffkit convert` carried the trained model over to
      checkpoints/       the training state, by step (orbax)
      metrics.jsonl      training metrics, a record per line
      tensorboard/       the same for TensorBoard
      evaluation.json    the test likelihood; written last, so that it marks a run that is complete
      *.png              samples, training curves, the schedule

The configuration names parts by their import paths, as Hydra does, so that a run of a plugin's parts is
read wherever the plugin is installed.
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
    model_nodes,
    nodes_of,
    preset_of,
    read_config,
    spec_of,
)
from diffkit.data import AbstractDataset, encode_condition
from diffkit.model import DiffusionModel
from diffkit.presets import (
    Assembly,
    Context,
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
    """A run that was read from disk.

    **Attributes:** `path`; `step`, of the checkpoint; `model`, with averaged parameters; `metrics`, the
    records of training, oldest first; `config`, the composed configuration as plain containers (empty
    for a run that was started in Python).
    """

    path: Path
    step: int
    model: DiffusionModel
    metrics: list[dict[str, float]]
    config: Mapping[str, Any]

    def data(self) -> AbstractDataset:
        """The data that it was trained on, loaded anew.

        **Raises:** `ValueError` if the run was started in Python and so does not name its data.
        """
        if not self.config:
            raise ValueError(f"run {self.path} has no {CONFIG_FILE}, so its data are not known.")
        return make(self.config["data"])

    def condition(self, value: int | Sequence[float]) -> Float[Array, " condition"]:
        """A condition of the model, to sample with.

        **Arguments:** `value`: a class, where the run's data have labels, or a vector of numbers.

        **Raises:** `ValueError` if the model has no conditions or others, or if the run was started in
        Python.
        """
        return jnp.asarray(encode_condition(self.data(), value))

    def part(self, kind: str) -> Any:
        """A part for sampling that the configuration chose, its sampler or its grid."""
        return part(kind, make(self.config[kind]), model=self.model)


def assembled(config: Mapping[str, Any], data: AbstractDataset | None = None) -> Assembly:
    """The composition of a configuration, as it was before training.

    **Arguments:** `config`; `data`: its data, if they are loaded already.
    """
    return assemble(preset_of(config), spec_of(config, data), key=key_of(config["train"]["seed"]))


def transported(model: DiffusionModel, config: Mapping[str, Any]) -> DiffusionModel:
    """The model under the process and the schedule that `diffkit convert` gave the run, if it did."""
    moved = config.get("transport") or {}
    process, schedule = moved.get("process"), moved.get("schedule")
    if schedule is not None:
        context = Context(
            shape=model.shape, levels=model.decoder.levels, key=key_of(config["train"]["seed"])
        )
        schedule = make_part("schedule", make(schedule), context)
    return carried(model, None if process is None else make(process)(), schedule)


def convert_run(
    source: Path,
    out: Path,
    *,
    process: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
) -> tuple[Run, tuple[str, ...]]:
    """A run's model under another process or schedule, as a run of its own; nothing is trained.

    The new run has the newest checkpoint of the old one and its configuration, in which an entry
    `transport` says what the model was carried over to.

    **Arguments:** `source`: the run's directory; `out`: that of the new one; `process`, `schedule`: nodes
    of a configuration, as hydra-zen writes them; `None` for what the run has.

    **Returns:** the new run, and a sentence for each end at which its range of `logsnr` is not the one
    that the old one had (`diffkit.equivalence.range_losses`).

    **Raises:** `ValueError` if neither part is given or does not fit, if the run was started in Python,
    or if there is something at `out`; `FileNotFoundError` if there is no run at `source`. Then nothing is
    written.
    """
    import yaml

    if process is None and schedule is None:
        raise ValueError("convert needs process=NAME or schedule=NAME, or both; got neither.")
    if out.exists():
        raise ValueError(f"out must be a new directory, there is something at {out}.")
    if (source / CHECKPOINTS).is_dir() and not (source / CONFIG_FILE).exists():
        raise ValueError(
            f"run {source} was started in Python and has no {CONFIG_FILE}: use "
            "diffkit.equivalence.transport in Python."
        )
    run = load_run(source)
    known = run.config.get("transport") or {}
    moved = {
        "process": process or known.get("process"),
        "schedule": schedule or known.get("schedule"),
    }
    config = {**run.config, "transport": moved}
    # An option that does not fit is refused here, before anything is written.
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
        new.replace(out)
    return load_run(out), losses


def load_run(path: str | Path, *, like: DiffusionModel | Preset | None = None) -> Run:
    """Read a run directory.

    **Arguments:**

    - `path`: the directory.
    - `like`: the composition that was trained, as it was given to `fit`: a preset, or a model put together
      by hand. Only needed for a run with a part that is not registered; its parts are compared with those
      of the run.

    **Returns:** a `Run` at its newest checkpoint.

    **Raises:** `FileNotFoundError` if there is no run or no checkpoint at `path`; `ValueError` if
    `like` is needed and missing, or is another composition (the message says what differs);
    `diffkit.training.CheckpointError` if `like` has another structure.
    """
    path = Path(path)
    if not (path / CHECKPOINTS).is_dir():
        raise FileNotFoundError(
            f"path must be a run directory, there are no checkpoints at {path}."
        )
    config = read_config(path)
    if not config and like is None:
        raise ValueError(
            f"run {path} was started in Python by an older version and has no {CONFIG_FILE}: pass like=, "
            "a model of the same structure."
        )
    checkpoints = Checkpoints(path / CHECKPOINTS)
    try:
        step = checkpoints.latest_step()
        if step is None:
            raise FileNotFoundError(f"the run at {path} was stopped before its first checkpoint.")
        settings = make(config["train"]) if config else TrainConfig()
        if like is None:
            model = assembled(config).model
        else:
            model = _like(like, config, path, settings)
        # Of the state only the model is needed.
        wanted = dataclasses.replace(init_state(model, TrainConfig()), optimiser=None)
        state, _ = checkpoints.restore(step, like=wanted, beside=("time_sampler", "optimiser"))
    finally:
        checkpoints.close()
    model = transported(state.averaged_model, config)
    return Run(path, step, model, read_metrics(path / METRICS_FILE), config)


def _like(
    like: DiffusionModel | Preset, config: Mapping[str, Any], path: Path, settings: TrainConfig
) -> DiffusionModel:
    """The model to read a run into, if it is of the run's composition."""
    if not config:
        if isinstance(like, Preset):
            raise ValueError(
                f"run {path} has no {CONFIG_FILE}: like must be a model, got a preset."
            )
        return like
    if isinstance(like, Preset):
        spec = spec_of(config)
        model = assemble(like, spec, key=key_of(settings.seed)).model
        now = nodes_of(like, spec)
        there = {kind: config[kind] for kind in now if kind in config}
    else:
        # An object does not tell how it was named: options that were left open, and parts whose options it
        # does not keep, are compared by the checkpoint alone.
        model, there, now = like, {}, {}
        for kind, node in model_nodes(like).items():
            if node.keys() & config[kind].keys() & {"_target_", "_python_"}:
                kept = flat({kind: config[kind]})
                there |= {name: value for name, value in kept.items() if value is not None}
                now |= {k: v for k, v in flat({kind: node}).items() if kept.get(k, v) is not None}
    if differ := differences(there, now):
        raise ValueError(f"like is not what run {path} was trained with: {'; '.join(differ)}.")
    return model
