"""`fit`: the training loop."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.data import AbstractDataset, batches, condition_size
from diffkit.denoiser import Denoiser, underlying
from diffkit.model import DiffusionModel, check_levels
from diffkit.networks.base import network_condition_size
from diffkit.optimisers import AdamW
from diffkit.schedules import ordered_endpoints
from diffkit.time_samplers import AbstractTimeSampler, LowDiscrepancy
from diffkit.training.checkpoints import Checkpoints
from diffkit.training.config import TrainConfig
from diffkit.training.evaluation import evaluate
from diffkit.training.metrics import Hook, JsonLines, ProgressBar, StepInfo, TensorBoard
from diffkit.training.state import (
    METRICS,
    Objective,
    Optimiser,
    TrainState,
    init_state,
    train_steps,
)
from diffkit.weightings import ELBO, AbstractWeighting

CHECKPOINTS = "checkpoints"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class Fit:
    """What training gives.

    **Attributes:** `model`: with averaged parameters, the one to use; `state`: the whole training
    state; `metrics`: the records, oldest first.
    """

    model: DiffusionModel
    state: TrainState
    metrics: list[dict[str, float]]


def check_data(model: DiffusionModel, data: AbstractDataset) -> None:
    """Refuse data that the model cannot take, with a `ValueError` that says which and why.

    And a model that cannot take any, since its schedule does not fall.
    """
    ordered_endpoints(model.schedule)
    if data.shape != model.shape:
        raise ValueError(
            f"data has examples of shape {data.shape}, but the model takes {model.shape}."
        )
    if data.levels != model.decoder.levels:
        raise ValueError(
            f"data has levels={data.levels}, but the model's decoder has "
            f"levels={model.decoder.levels}."
        )
    size = condition_size(data)
    denoiser = underlying(model.denoiser)
    network = denoiser.network if isinstance(denoiser, Denoiser) else None
    known = network_condition_size(network)
    if size > 0 and known is not None and known != size:
        raise ValueError(
            f"data has conditions of {size} numbers, but the model's network was built with "
            f"condition_size={known}. Give condition_size={size} to diffkit.preset or to the "
            "network, or take the data without conditions."
        )


def fit(
    model: DiffusionModel,
    data: AbstractDataset,
    config: TrainConfig = TrainConfig(),
    *,
    weighting: AbstractWeighting = ELBO(),
    time_sampler: AbstractTimeSampler = LowDiscrepancy(),
    directory: str | Path | None = None,
    progress: bool = True,
    optimiser: Optimiser | None = None,
    hooks: Sequence[Hook] = (),
) -> Fit:
    """Train a model.

    Minimises the weighted diffusion loss plus the prior and reconstruction terms (with the weighting
    `ELBO`: the VLB). Many steps run in one compiled call; the host reads the metrics of a
    call while the next one runs.

    **Arguments:**

    - `model`: the model to start from; it is not changed.
    - `data`: a dataset, whose `train` source is trained on, given its conditions if it has any.
    - `config`: the settings of the loop.
    - `weighting`, `time_sampler`: the parts of the objective (`diffkit.part` makes them for a model). A
      time sampler that adapts belongs to the training state.
    - `directory`: where to write metrics and checkpoints. If it holds checkpoints, training goes on
      from the newest one, exactly as if it had never stopped. Give it the parts and settings that it was
      begun with: of these only the shapes of the arrays are compared.
    - `progress`: show a progress bar.
    - `optimiser`: a part, by default `diffkit.optimisers.AdamW()`; or a gradient transformation of optax,
      used as it is, without the learning rate, weight decay and clipping of `config`. The interior of a
      schedule that minimises the variance keeps its own (`TrainConfig.interior_learning_rate`).
    - `hooks`: functions called with a `diffkit.training.StepInfo` after each dispatch and each evaluation,
      while the next dispatch runs.

    **Returns:** a `Fit`.

    **Raises:** `ValueError` if the data do not fit the model or its schedule does not fall;
    `CheckpointError` if the directory holds checkpoints of another model; `FloatingPointError` if the loss
    or its gradient is no longer finite, in which case the last good checkpoint stays the newest.
    """
    check_data(model, data)
    optimiser = AdamW() if optimiser is None else optimiser
    state = init_state(model, config, time_sampler, optimiser)
    checkpoints, step, before = None, 0, 0.0
    if directory is not None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(directory / CHECKPOINTS)
        newest = checkpoints.latest_step()
        if newest is not None:
            state, numbers = checkpoints.restore(newest, like=state)
            step, before = newest, numbers["seconds"]
        lines = JsonLines(directory / METRICS_FILE, step=step)
        records, own = lines.records, [lines, TensorBoard(directory / "tensorboard", step=step)]
    else:
        records: list[dict[str, float]] = []
        own = [lambda info: records.append(info.record)]
    if progress:
        what = "bits/dim" if isinstance(weighting, ELBO) else "weighted loss"
        own.append(ProgressBar(start=step, steps=config.steps, what=what))
    hooks = (*own, *hooks)

    chunk = config.steps_per_dispatch
    key = jax.random.key(config.seed)
    # The key has the seed: runs that differ in it alone share what is compiled.
    settings = dataclasses.replace(config, seed=0)
    objective = Objective(weighting, config.timesteps)
    iterator = batches(
        data.train, batch_size=config.batch_size, seed=config.seed, start=step, chunk=chunk
    )
    began = time.monotonic()

    def seconds() -> float:
        return before + time.monotonic() - began

    def tell(step: int, metrics: dict[str, float], state: TrainState | None) -> None:
        info = StepInfo(step, config.steps, round(seconds(), 3), metrics, state)
        for hook in hooks:
            hook(info)

    def report(step: int, rows: jax.Array, count: int, state: TrainState | None = None) -> None:
        values = np.asarray(rows)[:count].mean(axis=0)
        # The gradient too: it can be the first to go, and the parameters go with it.
        for what, value in (("loss", values[0]), ("gradient", values[-1])):
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"the {what} is not finite ({value}) near step {step}. A lower "
                    "train.learning_rate or a smaller train.clip may help."
                )
        tell(step, dict(zip(METRICS, map(float, values), strict=True)), state)

    def due(every: int, step: int, count: int) -> bool:
        return step == config.steps or (every > 0 and step // every > (step - count) // every)

    with contextlib.ExitStack() as stack:
        stack.callback(iterator.close)
        for hook in hooks:
            if close := getattr(hook, "close", None):
                stack.callback(close)
        if checkpoints is not None:
            stack.callback(checkpoints.close)
        pending = None
        while step < config.steps:
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
            save = due(config.checkpoint_every, step, count)
            test = config.evaluate_every > 0 and due(config.evaluate_every, step, count)
            if save or test:
                report(*pending, state)
                pending = None
            if test:
                result = evaluate(
                    state.averaged_model, data.test, key=key, passes=config.evaluate_passes
                )
                tell(step, {"test_bits_per_dim": result.total[0]}, state)
            if save and checkpoints is not None:
                checkpoints.save(step, state, {"seconds": seconds()})
    return Fit(state.averaged_model, state, records)
