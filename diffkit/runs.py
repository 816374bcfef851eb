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
import functools
import inspect
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffkit.data import AbstractDataset, condition_size, encode_condition
from diffkit.files import replace_text
from diffkit.model import DiffusionModel
from diffkit.presets import MODEL_KINDS, build_model, build_schedule, part
from diffkit.schedules import ordered_endpoints
from diffkit.training import Checkpoints, TrainConfig, init_state, read_metrics
from diffkit.training.loop import CHECKPOINTS, METRICS_FILE
from diffkit.transport import carried, range_losses

CONFIG_FILE: Final = "config.yaml"
EVALUATION_FILE: Final = "evaluation.json"
VARIANCE_FILE: Final = "variance.json"

MAY_CHANGE: Final = (
    "train.steps",
    "train.checkpoint_every",
    "train.evaluate_every",
    "train.evaluate_passes",
    "passes",
    "evaluate_steps",
    "variance",
    "samples",
    "sample_steps",
)
"""Settings that may differ when a run goes on: how long it trains, and what is looked at."""


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


def make(config: Any) -> Any:
    """What a node of a configuration describes.

    **Arguments:** `config`: a mapping with `_target_`, as hydra-zen writes it.

    **Returns:** an instance; or, for `_partial_: true`, a `functools.partial` with the options.
    Sequences become tuples, which is what the constructors of parts take.
    """
    from hydra_zen import instantiate

    made = instantiate(config, _convert_="all")
    if isinstance(made, functools.partial):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in made.keywords.items()}
        return functools.partial(made.func, *made.args, **options)
    return made


def model_from_config(config: Mapping[str, Any], data: AbstractDataset) -> DiffusionModel:
    """The untrained model of a configuration, for these data; its seed is `train.seed`.

    If the data have conditions the model takes them.
    """
    parts = {kind: make(config[kind]) for kind in MODEL_KINDS}
    key = jax.random.key(config["train"]["seed"])
    return build_model(
        parts,
        shape=data.shape,
        levels=data.levels,
        key=key,
        data_std=config.get("data_std", 1.0),
        condition_size=condition_size(data),
    )


def transported(model: DiffusionModel, config: Mapping[str, Any]) -> DiffusionModel:
    """The model under the process and the schedule that `diffkit convert` gave the run, if it did."""
    moved = config.get("transport") or {}
    process, schedule = moved.get("process"), moved.get("schedule")
    if schedule is not None:
        key = jax.random.key(config["train"]["seed"])
        schedule = build_schedule(
            make(schedule), shape=model.shape, levels=model.decoder.levels, key=key
        )
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


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration into a run directory, or check that the one there is the same.

    **Raises:** `ValueError` if the directory belongs to a run with other choices, naming them. The
    settings in `MAY_CHANGE` may differ; what was evaluated under others is removed.
    """
    import yaml

    file = path / CONFIG_FILE
    if file.exists():
        changes = _changes(yaml.safe_load(file.read_text()), config)
        differ = [
            f"{name} ({there!r} there, {now!r} now)"
            for name, (there, now) in changes.items()
            if name not in MAY_CHANGE
        ]
        if differ:
            raise ValueError(
                f"run={str(path)!r} holds a run with other choices: {'; '.join(differ[:5])}. "
                "Name another directory, or remove this one."
            )
        if changes:
            (path / EVALUATION_FILE).unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)
    replace_text(file, yaml.safe_dump(dict(config), sort_keys=False))


def is_finished(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether a directory holds a run of this very configuration that was trained and evaluated."""
    import yaml

    file = path / CONFIG_FILE
    if not (file.exists() and (path / EVALUATION_FILE).exists()):
        return False
    return not _changes(yaml.safe_load(file.read_text()), config)


_OLD_OPTIMISER: Final = {"_target_": "diffkit.optimisers.AdamW", "_partial_": True}


def _changes(known: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between a configuration that was stored and a new one: name to (there, now)."""
    # A run that is older than the choice of an optimiser had this one.
    there, now = flat({"optimiser": _OLD_OPTIMISER, **known}), flat(config)
    return {
        name: (there.get(name), now.get(name))
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
        and not (name not in there and _is_default(config, name))
    }


def _is_default(config: Mapping[str, Any], name: str) -> bool:
    """Whether an option has its default, so that a run that is older than the option had it too."""
    from hydra.utils import get_object

    kind, _, option = name.rpartition(".")
    node = config.get(kind)
    if not isinstance(node, Mapping) or "_target_" not in node:
        return False
    known = inspect.signature(get_object(node["_target_"])).parameters
    return option in known and known[option].default == node.get(option)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration with a dotted name for each value."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def load_run(path: str | Path, *, like: DiffusionModel | None = None) -> Run:
    """Read a run directory.

    **Arguments:**

    - `path`: the directory.
    - `like`: a model of the same structure, whose arrays are replaced. Only needed for a run that was
      started in Python with `fit(..., directory=...)`: one from the command line knows its model.

    **Returns:** a `Run` at its newest checkpoint.

    **Raises:** `FileNotFoundError` if there is no run or no checkpoint at `path`; `ValueError` if
    `like` is needed and missing; `diffkit.training.CheckpointError` if `like` has another structure.
    """
    import yaml

    path = Path(path)
    if not (path / CHECKPOINTS).is_dir():
        raise FileNotFoundError(
            f"path must be a run directory, there are no checkpoints at {path}."
        )
    checkpoints = Checkpoints(path / CHECKPOINTS)
    step = checkpoints.latest_step()
    if step is None:
        raise FileNotFoundError(f"the run at {path} was stopped before its first checkpoint.")
    file = path / CONFIG_FILE
    config: Mapping[str, Any] = yaml.safe_load(file.read_text()) if file.exists() else {}
    if like is not None:
        model = like
    elif config:
        model = model_from_config(config, make(config["data"]))
    else:
        raise ValueError(
            f"run {path} was started in Python and has no {CONFIG_FILE}: pass like=, a model of the "
            "same structure."
        )
    try:
        # Of the state only the model is needed.
        wanted = dataclasses.replace(init_state(model, TrainConfig()), optimiser=None)
        state, _ = checkpoints.restore(step, like=wanted, beside=("time_sampler", "optimiser"))
    finally:
        checkpoints.close()
    model = transported(state.averaged_model, config)
    return Run(path, step, model, read_metrics(path / METRICS_FILE), config)
