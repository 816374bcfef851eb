"""`fit`: the training loop."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.checks import check_condition, check_loss, check_model
from diffkit.configs import CHECKPOINTS, METRICS_FILE, RENAMED, config_of, unregistered
from diffkit.data import AbstractDataset, AbstractSource, batches, check_identity, condition_size
from diffkit.denoiser import Denoiser, underlying
from diffkit.display import outline
from diffkit.grids import UniformT
from diffkit.locks import writing
from diffkit.model import DiffusionModel, check_levels
from diffkit.optimisers import AdamW
from diffkit.presets import TRAINING_KINDS, Assembly, DataSpec, Preset, assemble, key_of, seed_of
from diffkit.registry import did_you_mean
from diffkit.samplers import Ancestral, sample
from diffkit.samplers.loop import check_sampler
from diffkit.schedules import ordered_endpoints
from diffkit.time_samplers import AbstractTimeSampler, LowDiscrepancy
from diffkit.training.branches import origin, start_run
from diffkit.training.checkpoints import Checkpoints
from diffkit.training.config import TrainConfig
from diffkit.training.evaluation import Evaluation, evaluate
from diffkit.training.interruption import Interrupted, Stop, listening
from diffkit.training.metrics import Hook, JsonLines, ProgressBar, StepInfo, TensorBoard
from diffkit.training.nonfinite import (
    MANY_SKIPS,
    NotFinite,
    check_parameters,
    check_rows,
    explain,
    objective_of,
    write_dump,
)
from diffkit.training.state import (
    METRICS,
    SKIPPED,
    Batch,
    Objective,
    Optimiser,
    TrainState,
    init_state,
    train_steps,
)
from diffkit.typing import PRNGKey
from diffkit.weightings import ELBO, AbstractWeighting

_PATIENCE = 15 * 60.0
"""How many seconds of training may be repeated to find out why a step is not finite."""

_READ_AHEAD = 6
"""How many dispatches of data are in memory at once: those that `batches` keeps ready and two in use."""


@dataclass(frozen=True)
class Fit:
    """The result of training.

    **Attributes:** `model`: with averaged parameters, the one to use; `state`: the whole training
    state; `metrics`: the records, oldest first; `assembly`: the trained composition, with the model before
    training; `directory`: of the run, or `None`.
    """

    model: DiffusionModel
    state: TrainState
    metrics: list[dict[str, float]]
    assembly: Assembly
    directory: Path | None = None

    def __repr__(self) -> str:
        losses = [record["loss"] for record in self.metrics if "loss" in record]
        unit = " bits/dim" if isinstance(self.assembly.weighting, ELBO) else ""
        head = f"Fit after {int(self.state.step):,} steps"
        head += f", last loss {losses[-1]:.4g}{unit}" if losses else ""
        head += f", in {self.directory}" if self.directory else ""
        parts = {kind: getattr(self.assembly, kind) for kind in TRAINING_KINDS}
        return "\n".join([head, *outline({**vars(self.model), **parts})])

    def evaluate(self, source: AbstractSource, *, key: PRNGKey, **options: Any) -> Evaluation:
        """The likelihood of the trained model: `diffkit.evaluate`, with the T of training by default."""
        return evaluate(self, source, key=key, **options)

    def sample(self, count: int | tuple[int, ...], *, key: PRNGKey, **options: Any) -> jax.Array:
        """Samples of the trained model: `diffkit.sample` with the preset's sampler, grid and steps.

        **Arguments:** `count`; `key`; `options`: of `diffkit.sample`, including another `sampler`.
        """
        parts = self.assembly
        chosen = {"steps": parts.preset.sample_steps, "grid": parts.grid} | options
        sampler = chosen.pop("sampler", parts.sampler)
        return sample(self.model, sampler, count, key=key, **chosen)


def check_data(model: DiffusionModel, data: AbstractDataset) -> None:
    """Refuse data that do not fit the model, or a schedule that does not fall, by a `ValueError`."""
    ordered_endpoints(model.schedule)
    if data.shape != model.shape:
        raise ValueError(f"data has examples of shape {data.shape}, but the model takes {model.shape}.")
    if data.levels != model.decoder.levels:
        raise ValueError(
            f"data has levels={data.levels}, but the model's decoder has levels={model.decoder.levels}."
        )
    size = condition_size(data)
    denoiser = underlying(model.denoiser)
    known = denoiser.network.condition_size if isinstance(denoiser, Denoiser) else size
    if size > 0 and known != size:
        raise ValueError(
            f"data has conditions of {size} numbers, but the model's network was built with "
            f"condition_size={known}. Give condition_size={size} to Preset.model or to the "
            "network, or take the data without conditions."
        )


def _check(parts: Assembly, data: AbstractDataset, check: bool) -> None:
    check_data(parts.model, data)
    if check:
        check_model(parts.model)
        check_loss(parts.model, parts.weighting, parts.time_sampler)
        part = getattr(underlying(parts.model.denoiser), "parameterization", None)
        check_sampler(parts.sampler, parts.model.shape, spread=part is not None and part.outputs > 1)
        if condition_size(data) > 0:
            check_condition(parts.model)


def settings_of(preset: Preset) -> TrainConfig:
    """The training settings of a preset.

    **Raises:** `ValueError` for an unknown setting or a value out of its range.
    """
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in preset.train:
        if name not in known:
            hint = did_you_mean(RENAMED.get(name, name), known)
            raise ValueError(f"train has no setting {name!r}.{hint} It has: {', '.join(known)}.")
    return TrainConfig(**preset.train)


def fit(
    what: Preset | DiffusionModel,
    data: AbstractDataset,
    config: TrainConfig | None = None,
    *,
    key: PRNGKey | None = None,
    weighting: AbstractWeighting | None = None,
    time_sampler: AbstractTimeSampler | None = None,
    optimiser: Optimiser | None = None,
    directory: str | Path | None = None,
    start_from: str | Path | None = None,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
    check: bool = True,
) -> Fit:
    """Train a composition.

    Minimises the weighted diffusion loss plus the prior and reconstruction terms (with the weighting
    `ELBO`: the VLB). Many steps run in one compiled call; the host reads the metrics of a call while the
    next one runs.

    **Arguments:**

    - `what`: a preset, which chooses everything; or a model assembled by hand, which is not changed and
      takes its loss and settings from the arguments below.
    - `data`: a dataset; trains on its `train` source, given its conditions if it has any. Its examples are
      checked before training begins, and a directory that goes on must go on with the same data
      (`TrainConfig.data_changed`).
    - `config`: the settings of the loop, for a model by hand. Change those of a preset with
      `preset.replace(train={"steps": 1000})`.
    - `key`: for the initial parameters, the order of the data, the noise and the times; by default
      `jax.random.key(seed)` with the seed of the settings.
    - `weighting`, `time_sampler`: the parts of the loss, for a model by hand; by default `ELBO` and
      `LowDiscrepancy`. A time sampler that adapts belongs to the training state.
    - `optimiser`: a part, for a model by hand, by default `diffkit.optimisers.AdamW()`; or an optax
      gradient transformation, used as it is, without the learning rate, weight decay and clipping of the
      settings. The interior of a schedule that minimises the variance keeps its own
      (`TrainConfig.interior_learning_rate`).
    - `directory`: where to write configuration, metrics and checkpoints. If it holds checkpoints of the
      same composition, training continues from the newest one, exactly as if it had never stopped. With
      one, Ctrl-C, SIGTERM and SIGUSR1 let the steps under way end and save a checkpoint; a second signal
      stops at once.
    - `start_from`: another run to begin from, `"RUN@STEP"`, or `"RUN"` for its newest checkpoint. It must
      have the same model; the settings may differ. Its steps count: `steps` is the number after which the
      new run ends. Another optimiser or adaptive time sampler starts anew. Needs a `directory`.
    - `progress`: show a progress bar; `hooks`: functions called with a `diffkit.training.StepInfo` after
      each dispatch and each evaluation, while the next dispatch runs.
    - `check`: check the parts before work begins, on a few hundred numbers (`diffkit.checks`): the schedule
      falls, the target determines x and eps, the weighting is not negative, the times follow their density,
      the network reads its conditions, a step keeps its shapes. `False` trains them unchecked.

    **Returns:** a `Fit`.

    **Raises:** `ValueError` if the data do not fit the model, a part is wrong (`check`; `TypeError` for the
    step of a sampler), settings are given with a preset, the directory holds a run of another composition,
    other settings or other data (the message says what differs) or one that has more steps already, or
    examples are out of range; `CheckpointError` if its checkpoints are of another model;
    `diffkit.locks.LockedError` if another process trains there; `diffkit.training.Interrupted`, a
    `KeyboardInterrupt`, after a signal; `FloatingPointError` if the loss, its gradient or a parameter is no
    longer finite, saying which and why: the last good checkpoint then stays the newest
    (`TrainConfig.nonfinite`).

    **Warns:** if the schedule has trainable endpoints and the weighting is not `ELBO`: they are kept fixed
    (`TrainConfig.learn_endpoints`).

    ```python
    mine = dk.preset("vdm", network="mlp", train={"steps": 1000})
    fitted = dk.fit(mine, dk.data.Swirl(), key=jax.random.key(0))
    ```
    """
    if isinstance(what, Preset):
        names = ("config", "weighting", "time_sampler", "optimiser")
        beside = zip(names, (config, weighting, time_sampler, optimiser), strict=True)
        if given := [name for name, value in beside if value is not None]:
            raise ValueError(
                f"a preset chooses its own {given[0]}: use preset.replace(weighting=..., "
                "time_sampler=..., train={...}) in place of it."
            )
        preset, settings = what, settings_of(what)
    else:
        settings = config or TrainConfig()
        preset = Preset.of(
            what,
            weighting=weighting or ELBO(),
            time_sampler=time_sampler or LowDiscrepancy(),
            optimiser=optimiser or AdamW(),
            sampler=Ancestral(),
            grid=UniformT(),
            train=dataclasses.asdict(settings),
        )
    if key is not None:
        settings = dataclasses.replace(settings, seed=seed_of(key))
    if isinstance(what, Preset):
        parts = assemble(preset, data, key=key_of(settings.seed))
    else:
        parts = Assembly.around(preset, what)
    _check(parts, data, check)
    if start_from is not None and directory is None:
        raise ValueError("start_from needs a directory, where the new run is kept: give directory=...")
    directory = None if directory is None else Path(directory)
    check_start(data, settings, directory)
    with contextlib.nullcontext() if directory is None else writing(directory):
        if directory is not None:
            record = config_of(preset, data, settings)
            if start_from is not None:
                record["from"] = origin(start_from, directory)
            start_run(directory, record, parts, settings)
            if progress and (made := unregistered(record)):
                found = ", ".join(f"{kind}={name}" for kind, name in made.items())
                print(
                    f"run {directory} is for Python only, as no command can make {found}. "
                    f"Read it by dk.load_run({str(directory)!r}, like=...)."
                )
        how: dict[str, Any] = {"directory": directory, "progress": progress, "hooks": hooks}
        return train(parts, data, settings, check=False, **how)


def check_start(data: AbstractDataset, config: TrainConfig, directory: Path | None) -> None:
    """Refuse a training before it writes anything: a `ValueError` if its data do not fit in memory, or if
    the run in the directory has more steps already."""
    chunk, shape = min(config.steps_per_dispatch, config.steps), data.shape
    one = math.prod(shape) * (4 if data.levels is None or data.levels > 2**16 else 1) + 8
    taken = _READ_AHEAD * chunk * config.batch_size * one
    memory = _memory()
    if memory is not None and taken > memory:
        raise ValueError(
            f"train.steps_per_dispatch={config.steps_per_dispatch} with "
            f"train.batch_size={config.batch_size} would read {taken / 2**30:.3g} GiB of data ahead, and "
            f"this machine has {memory / 2**30:.3g} GiB: lower one of them."
        )
    if directory is None or not (directory / CHECKPOINTS).is_dir():
        return
    # Most runs have no such names, and need not be read.
    places = [int(place.name) for place in (directory / CHECKPOINTS).iterdir() if place.name.isdecimal()]
    if max(places, default=0) <= config.steps:
        return
    checkpoints = Checkpoints(directory / CHECKPOINTS)
    try:
        newest = checkpoints.latest_step()
    finally:
        checkpoints.close()
    if newest is not None and newest > config.steps:
        raise ValueError(
            f"run {directory} has {newest} steps, more than train.steps={config.steps}: ask for at least "
            f"{newest}, or name another directory; from={directory}@STEP begins there."
        )


def _memory() -> int | None:
    """The bytes of memory of this machine, if it tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def train(
    parts: Assembly,
    data: AbstractDataset,
    config: TrainConfig,
    *,
    directory: Path | None = None,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
    check: bool = True,
    command: bool = False,
) -> Fit:
    """`fit` of parts already made, in a directory with its configuration.

    **Arguments:** as for `fit`; `command`: whether a command runs it, which a second signal ends
    (`diffkit.training.interruption`).
    """
    _check(parts, data, check)
    check_start(data, config, directory)
    with contextlib.ExitStack() as stack:
        stop = Stop()
        if directory is not None:
            stack.enter_context(writing(directory))
            stop = stack.enter_context(listening(command=command))
        begun = directory is not None and any((directory / CHECKPOINTS).glob("*"))
        check_identity(directory, data, config.data_changed, begun=begun)
        watch, objective = _Watch(), objective_of(parts, config)
        try:
            return _train(parts, data, config, objective, stop, watch, directory, progress, hooks)
        except NotFinite as error:
            found = NotFinite(*error.args)  # without the frames that hold the state
        why = _reason(found, parts, data, config, objective, watch, directory, progress)
        raise FloatingPointError(why)


class _Watch:
    """The time since the last checkpoint, and the number of steps skipped since the last that was not."""

    def __init__(self):
        self.saved, self.skipped = time.monotonic(), 0

    @property
    def waited(self) -> float:
        return time.monotonic() - self.saved


def _train(
    parts: Assembly,
    data: AbstractDataset,
    config: TrainConfig,
    objective: Objective,
    stop: Stop,
    watch: _Watch,
    directory: Path | None,
    progress: bool,
    hooks: Sequence[Hook],
) -> Fit:
    model, weighting = parts.model, parts.weighting
    optimiser = parts.optimiser
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    checkpoints = None if directory is None else Checkpoints(directory / CHECKPOINTS)
    state, step, before = _newest(parts, config, checkpoints)
    if directory is not None:
        lines = JsonLines(directory / METRICS_FILE, step=step)
        records, own = lines.records, [lines, TensorBoard(directory / "tensorboard", step=step)]
    else:
        records: list[dict[str, float]] = []
        own = [lambda info: records.append(info.record)]
    if progress:
        what = "bits/dim" if isinstance(weighting, ELBO) else "weighted loss"
        own.append(ProgressBar(start=step, steps=config.steps, what=what))
    hooks = (*own, *hooks)

    chunk = min(config.steps_per_dispatch, config.steps)
    key = key_of(config.seed)
    settings = _compiled(config)
    iterator = batches(data.train, batch_size=config.batch_size, seed=config.seed, start=step, chunk=chunk)
    began = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - began

    def tell(step: int, metrics: dict[str, float], state: TrainState | None) -> None:
        info = StepInfo(step, config.steps, round(seconds(), 3), metrics, state)
        for hook in hooks:
            hook(info)

    def report(step: int, rows: jax.Array, count: int, state: TrainState | None = None) -> None:
        values, more = np.asarray(rows)[:count], {}
        if config.nonfinite == "skip":
            values, more = _kept(step - count, values, watch)
        else:
            check_rows(step - count + 1, values)
        if state is not None:
            check_parameters(step, state)
        means = zip(METRICS, map(float, values.mean(axis=0)), strict=True) if len(values) else ()
        tell(step, dict(means) | more, state)

    def due(every: int, step: int, count: int) -> bool:
        return step == config.steps or (every > 0 and step // every > (step - count) // every)

    with contextlib.ExitStack() as stack:
        stack.callback(iterator.close)
        for hook in hooks:
            if close := getattr(hook, "close", None):
                stack.callback(close)
        if checkpoints is not None:
            stack.callback(checkpoints.close)
        pending, stopped = None, stop.number
        while step < config.steps and stopped is None:
            count = min(chunk, config.steps - step)
            drawn = next(iterator)
            check_levels(jax.tree.leaves(drawn)[0], model.decoder.levels)
            stacked = jax.tree.map(jnp.asarray, drawn)
            inputs = (stacked, jnp.asarray(count), key, objective, settings, optimiser)
            state, rows = train_steps(inputs, state)
            step += count
            if pending is not None:
                report(*pending)  # waits for the previous dispatch, while this one runs
            pending = (step, rows, count)
            # Once a round: what is asked later stops the next one, and this one's state need not be saved.
            stopped = stop.number
            late = directory is not None and 0 < config.checkpoint_minutes <= watch.waited / 60
            save = due(config.checkpoint_every, step, count) or stopped is not None or late
            test = config.evaluate_every > 0 and due(config.evaluate_every, step, count)
            if save or test:
                report(*pending, state)
                pending = None
            if test:
                passes = config.evaluate_passes
                result = evaluate(state.averaged_model, data.test, key=key, passes=passes)
                tell(step, {"test_bits_per_dim": result.bits_per_dim[0]}, state)
            if save and checkpoints is not None:
                checkpoints.save(step, state, {"seconds": seconds()})
                watch.saved = time.monotonic()
        stopped = stop.number
    if stopped is not None:
        assert directory is not None
        raise Interrupted(stopped, step, config.steps, directory)
    return Fit(state.averaged_model, state, records, parts, directory)


def _compiled(config: TrainConfig) -> TrainConfig:
    """The settings of a step alone: runs that differ only in others share compiled code."""
    names = ("seed", "steps_per_dispatch", "checkpoint_every", "checkpoint_minutes")
    names += ("evaluate_every", "evaluate_passes")  # the key has the seed
    return dataclasses.replace(config, **{name: getattr(TrainConfig, name) for name in names})


def _newest(
    parts: Assembly, config: TrainConfig, checkpoints: Checkpoints | None
) -> tuple[TrainState, int, float]:
    """The state to go on from, its step, and the seconds that it took."""
    state = init_state(parts.model, config, parts.time_sampler, parts.optimiser)
    newest = None if checkpoints is None else checkpoints.latest_step()
    if checkpoints is None or newest is None:
        return state, 0, 0.0
    state, numbers = checkpoints.restore(newest, like=state)
    return state, newest, numbers["seconds"]


def _kept(step: int, rows: np.ndarray, watch: _Watch) -> tuple[np.ndarray, dict[str, float]]:
    """The metrics of the steps that were not skipped, and how many were; `step`: those taken before."""
    skipped = rows[:, -1] > 0
    for index, skips in enumerate(skipped):
        watch.skipped = watch.skipped + 1 if skips else 0
        if watch.skipped >= MANY_SKIPS:
            check_rows(step + index + 1, rows[index : index + 1])
            raise NotFinite(step + index + 1, "gradient", math.nan)  # of an interior alone
    return rows[~skipped, :-1], {SKIPPED: float(skipped.sum())}


def _reason(
    found: NotFinite,
    parts: Assembly,
    data: AbstractDataset,
    config: TrainConfig,
    objective: Objective,
    watch: _Watch,
    directory: Path | None,
    progress: bool,
) -> str:
    """Why training is not finite: it is repeated up to the step before, which gives the very same state."""
    said = f"the {found.what} is not finite ({found.value}) at step {found.step}"
    helps = " A lower train.learning_rate or a smaller train.clip may help"
    if found.what not in ("loss", "gradient"):
        helps = f".{helps}."
    elif config.nonfinite == "skip":
        helps = f", the last of {MANY_SKIPS} in a row.{helps}."
    else:
        helps = f".{helps}; train.nonfinite=skip leaves such steps out."
    if watch.waited > _PATIENCE:
        return f"{said}, and the checkpoint before it is too old to find out why{helps}"
    if progress:
        print(f"{said}: training up to the step before again, to find out why", flush=True)
    how = key_of(config.seed), objective, _compiled(config), parts.optimiser
    try:
        state, batch = _before(found.step, parts, data, config, how, directory)
        cause, _ = explain(state, batch, *how)
    except Exception as error:  # the first error is the one to tell
        return f"{said}, and cannot be run again: {error}{helps}"
    said = f"{said}, and finite when run again" if cause is None else str(cause)
    if directory is not None:
        try:
            place = write_dump(directory, found.step, state, batch, DataSpec.of(data))
        except OSError as error:
            said += f". State and batch could not be written: {error}"
        else:
            said += f". State and batch are in {place}: `diffkit replay {place}` runs the step again"
    return said + helps


def _before(
    step: int,
    parts: Assembly,
    data: AbstractDataset,
    config: TrainConfig,
    how: tuple[PRNGKey, Objective, TrainConfig, Optimiser],
    directory: Path | None,
) -> tuple[TrainState, Batch]:
    """The state before a step, and its batch."""
    checkpoints = None if directory is None else Checkpoints(directory / CHECKPOINTS)
    try:
        state, taken, _ = _newest(parts, config, checkpoints)
    finally:
        if checkpoints is not None:
            checkpoints.close()
    chunk = min(config.steps_per_dispatch, config.steps)
    given: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed}
    iterator = batches(data.train, **given, start=taken, chunk=chunk)
    try:
        while taken < step - 1:
            count = min(chunk, step - 1 - taken)
            stacked = jax.tree.map(jnp.asarray, next(iterator))
            state, _ = train_steps((stacked, jnp.asarray(count), *how), state)
            taken += count
    finally:
        iterator.close()
    iterator = batches(data.train, **given, start=step - 1, threads=0)
    try:
        return state, jax.tree.map(jnp.asarray, next(iterator))
    finally:
        iterator.close()
