"""Hooks of the training loop: metrics to a file, to TensorBoard, to Weights & Biases, to the terminal."""

import importlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit.files import replace_text
from diffkit.model import DiffusionModel
from diffkit.training.state import TrainState


@dataclass(frozen=True)
class StepInfo:
    """The argument of a hook of `diffkit.fit`.

    **Attributes:** `step`, `steps`: the number of steps taken, and of all steps; `seconds`: of training so
    far; `metrics`: means over the steps of a dispatch, by the names in `diffkit.training.METRICS`, or
    `test_bits_per_dim` after an evaluation; `state`: the training state at checkpoints, evaluations and the
    end, else `None`. The next step reuses its memory: copy what you keep.
    """

    step: int
    steps: int
    seconds: float
    metrics: Mapping[str, float]
    state: TrainState | None = None

    @property
    def last(self) -> bool:
        """Whether all steps are taken."""
        return self.step == self.steps

    @property
    def model(self) -> DiffusionModel | None:
        """The model with averaged parameters, if there is a `state`."""
        return None if self.state is None else self.state.averaged_model

    @property
    def record(self) -> dict[str, int | float]:
        """Step, seconds and metrics, as returned by `diffkit.training.read_metrics`."""
        return {"step": self.step, "seconds": self.seconds, **self.metrics}


Hook = Callable[[StepInfo], None]
"""Called after each dispatch and each evaluation. A method `close`, if there is one, is called when
training ends or fails."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics file. Skips a last line cut short by a killed process."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        records.append({k: math.nan if v is None else v for k, v in record.items()})
    return records


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Plain values as JSON, with `null` for NaN and infinity, which it lacks."""

    def known(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: known(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [known(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(value), indent=indent, allow_nan=False)


class JsonLines:
    """One JSON object per line.

    **Arguments:** `path`: the file; `step`: drop records after this step, left by a run that was killed
    after its last checkpoint.
    """

    def __init__(self, path: Path, *, step: int):
        self.records = [record for record in read_metrics(path) if record["step"] <= step]
        replace_text(path, "".join(as_json(record) + "\n" for record in self.records))
        self._file = path.open("a", buffering=1)  # writes each line at once

    def __call__(self, info: StepInfo) -> None:
        self.records.append(info.record)
        self._file.write(as_json(info.record) + "\n")

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard; records after `step` are hidden there, as in `JsonLines`."""

    def __init__(self, directory: Path, *, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step > 0 else None)

    def __call__(self, info: StepInfo) -> None:
        for name, value in {"seconds": info.seconds, **info.metrics}.items():
            self._writer.add_scalar(name, value, info.step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Metrics to a run of Weights & Biases; needs the extra `wandb`.

    **Arguments:** `project`, and any others of `wandb.init`, such as `name`, `config` or `mode`.

    **Raises:** `ImportError` without the package.
    """

    def __init__(self, project: str, **options: Any):
        try:
            # Optional, so a type checker may not find it.
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ImportError(
                "WeightsAndBiases needs the package wandb: pip install 'diffkit[wandb]'."
            ) from error
        self._run = wandb.init(project=project, **options)

    def __call__(self, info: StepInfo) -> None:
        self._run.log({"seconds": info.seconds, **info.metrics}, step=info.step)

    def close(self) -> None:
        self._run.finish()


class ProgressBar:
    """Steps, rate, the running loss by name and time left.

    A live bar on a terminal; elsewhere, such as in a log file, a line every few seconds.
    """

    def __init__(self, *, start: int, steps: int, what: str, every: float = 10.0):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console()
        self._start, self._what, self._every = start, what, every
        self._loss: float | None = None
        self._began = self._shown = time.monotonic()
        self._bar = None
        if console.is_terminal:
            bar = BarColumn(), MofNCompleteColumn(), "{task.fields[note]}", TimeRemainingColumn()
            self._bar = Progress("training", *bar, console=console)
            self._bar.start()
            self._task = self._bar.add_task("training", total=steps, completed=start, note="")

    def __call__(self, info: StepInfo) -> None:
        if "loss" not in info.metrics:
            return
        # A running mean because one dispatch is noisy.
        loss, step = info.metrics["loss"], info.step
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        now = time.monotonic()
        rate = (step - self._start) / max(now - self._began, 1e-9)
        note = f"{rate:.1f} steps/s  {self._loss:.3f} {self._what}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif now - self._shown > self._every or info.last:
            self._shown = now
            print(f"step {step}/{info.steps}  {note}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
