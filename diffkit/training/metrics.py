"""Hooks of the training loop: metrics to a file, to TensorBoard, to Weights & Biases, to the terminal."""

import errno
import importlib
import json
import math
import os
import socket
import struct
import time
import warnings
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


class MetricsWarning(UserWarning):
    """A metrics file has damaged lines, which are left out."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics file. Skips a last line cut short by a killed process.

    **Raises:** `ValueError` if there is something else than a file at `path`.

    **Warns:** `MetricsWarning` if other lines are no records, or repeat one: they are left out.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} must be a file of records, and is not.")
    *lines, rest = path.read_bytes().split(b"\n")
    records, wrong, seen = [], [], set()
    for number, line in enumerate([*lines, rest] if _is_record(rest) else lines, 1):
        try:
            record = _record(line)
            if (what := (record["step"], *sorted(record))) in seen:
                raise ValueError(f"step {record['step']} is there already")
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
            continue
        seen.add(what)
        records.append(record)
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        warnings.warn(
            f"{path} is damaged, and these lines are left out: {'; '.join(wrong[:5])}{more}.",
            MetricsWarning,
            stacklevel=2,
        )
    return records


def _is_record(line: bytes) -> bool:
    try:
        return bool(_record(line))
    except ValueError:
        return False


def _record(line: bytes) -> dict[str, Any]:
    """The record in a line; a `ValueError` says what is wrong."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("not an object")
    step = record.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        raise ValueError("no step" if "step" not in record else f"step is {step!r:.40}")
    for name, value in record.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{name[:40]!r} is {value!r:.40}, and no number")
    return {name: math.nan if value is None else value for name, value in record.items()}


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Plain values as JSON, with `null` for NaN and infinity, which it lacks."""

    def known(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: known(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [known(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(value), indent=indent, allow_nan=False)


class _Grown:
    """A file that grows by whole records, each written at once: closing it writes nothing."""

    def __init__(self, path: Path, mode: str):
        self._path = path
        self._file = path.open(mode, buffering=0)

    def write(self, data: bytes) -> None:
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:  # which does not name the file
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def close(self) -> None:
        self._file.close()


def _not_linked(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, and nothing is written through one: remove it.")


class JsonLines:
    """One JSON object per line.

    **Arguments:** `path`: the file; `step`: drop records after this step, left by a run that was killed
    after its last checkpoint.

    **Raises:** `ValueError` if there is a symbolic link or something else than a file at `path`.
    """

    def __init__(self, path: Path, *, step: int):
        _not_linked(path)
        self.records = [record for record in read_metrics(path) if record["step"] <= step]
        replace_text(path, "".join(as_json(record) + "\n" for record in self.records))
        self._file = _Grown(path, "ab")

    def __call__(self, info: StepInfo) -> None:
        self.records.append(info.record)
        self._file.write(f"{as_json(info.record)}\n".encode())

    def close(self) -> None:
        self._file.close()


def _event_class(name: str, module: str = "event_pb2") -> Any:
    """A class of TensorBoard's records, made at run time, which no type checker sees."""
    return getattr(importlib.import_module(f"tensorboardX.proto.{module}"), name)


class TensorBoard:
    """Event files for TensorBoard; records after `step` are hidden there, as in `JsonLines`.

    Written here and not by tensorboardX's writer, whose thread keeps records back for two minutes, and
    waits for ever once the disk is full.
    """

    def __init__(self, directory: Path, *, step: int):
        _not_linked(directory)
        directory.mkdir(exist_ok=True)
        before = any(directory.iterdir())
        now = time.time_ns()
        # TensorBoard reads the files in the order of their names.
        name = f"events.out.tfevents.{now // 10**9:010d}.{socket.gethostname()}.{now % 10**9:09d}"
        self._file = _Grown(directory / name, "xb")
        self._write(file_version="brain.Event:2")
        if before:
            start = _event_class("SessionLog")
            self._write(step=step + 1, session_log=start(status=start.START))

    def __call__(self, info: StepInfo) -> None:
        summary = _event_class("Summary", "summary_pb2")
        values = {"seconds": info.seconds, **info.metrics}
        made = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=info.step, summary=summary(value=made))

    def _write(self, **content: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        data = _event_class("Event")(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        ends = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._file.write(b"".join((length, next(ends), data, next(ends))))

    def close(self) -> None:
        self._file.close()


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
