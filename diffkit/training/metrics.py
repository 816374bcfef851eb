"""Where metrics go while training: a JSON Lines file, TensorBoard, the terminal."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diffkit.files import replace_text

Record = Mapping[str, int | float]
"""Metrics of one dispatch: `step`, `seconds` of training so far, and the means over its steps."""


@runtime_checkable
class Writer(Protocol):
    """Anything that wants to see the metrics. `fit` takes further ones as `writers`."""

    def write(self, record: Record) -> None:
        """Called once per dispatch, and after each evaluation."""
        ...

    def close(self) -> None:
        """Called once, when training ends, for whatever reason."""
        ...


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics file. A last line cut short by a killed process is passed over."""
    records = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            records.append({k: math.nan if v is None else v for k, v in record.items()})
    return records


def as_json(value: Any, *, indent: int | None = None) -> str:
    """Plain values as JSON, which has no NaN and no infinity: `null` in their place."""

    def known(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: known(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [known(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(value), indent=indent, allow_nan=False)


class JsonLines:
    """One JSON object a line.

    **Arguments:** `path`: the file; `step`: records after this step are dropped, those of a run that
    was killed after its last checkpoint.
    """

    def __init__(self, path: Path, *, step: int):
        kept = [record for record in read_metrics(path) if record["step"] <= step]
        replace_text(path, "".join(as_json(record) + "\n" for record in kept))
        self.records = kept
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        self.records.append(dict(record))
        self._file.write(as_json(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard; records after `step` are hidden there, as in `JsonLines`."""

    def __init__(self, directory: Path, *, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step > 0 else None)

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self._writer.close()


class ProgressBar:
    """Steps, rate, the running loss under its name and time left.

    On a terminal a live bar; elsewhere, such as in a log file, a line every few seconds.
    """

    def __init__(self, *, start: int, steps: int, what: str, every: float = 10.0):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._console = Console()
        self._steps, self._what, self._every = steps, what, every
        self._loss: float | None = None
        self._began = self._shown = time.monotonic()
        self._start = start
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=steps, completed=start, note="")

    def write(self, record: Record) -> None:
        if "loss" not in record:
            return
        # A running mean, since one dispatch is noisy.
        loss = record["loss"]
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        now, step = time.monotonic(), int(record["step"])
        rate = (step - self._start) / max(now - self._began, 1e-9)
        note = f"{rate:.1f} steps/s  {self._loss:.3f} {self._what}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif now - self._shown > self._every or step == self._steps:
            self._shown = now
            print(f"step {step}/{self._steps}  {note}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
