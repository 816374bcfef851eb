"""Whether long training and long sweeps grow: memory, threads, open files, compilations.

    python benchmarks/endurance.py                  # 20,000 steps, then 100 runs in one process
    python benchmarks/endurance.py --steps 2000 --runs 20

The steps are those of a small network on the swirl, with checkpoints, evaluations, metrics and TensorBoard.
The runs are sweeps of ten seeds each on the command line, one after the other in this process. Reads /proc,
so it needs Linux.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

import diffkit as dk
from diffkit.cli import main as diffkit

_COMPILED = "/jax/core/compile/backend_compile_duration"
_TOGETHER = 10


@dataclass(frozen=True)
class Row:
    """What this process holds at a moment.

    **Attributes:** `done`: steps or runs; `memory`: resident, in MiB; `threads`; `files`: open ones;
    `compiled`: compilations so far; `seconds` since the beginning.
    """

    done: int
    memory: float
    threads: int
    files: int
    compiled: int
    seconds: float


class Meter:
    """Makes rows; counts compilations while it is open."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._compiled, self._began = 0, time.monotonic()

    def __enter__(self) -> "Meter":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration: float, **more: object) -> None:
        self._compiled += event == _COMPILED

    def read(self, done: int) -> None:
        """Add a row."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.rows.append(
            Row(
                done,
                pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                len(os.listdir("/proc/self/task")),
                len(os.listdir("/proc/self/fd")),
                self._compiled,
                time.monotonic() - self._began,
            )
        )


def steps(count: int, directory: Path, *, rows: int = 10) -> list[Row]:
    """Train one run for that many steps.

    **Arguments:** `count`; `directory`: of the run; `rows`: how many to make, at even distances.
    """
    every = max(count // rows, 1)
    preset = dk.preset(
        "vdm",
        network=("mlp", {"width": 32, "depth": 2}),
        train={
            "steps": count,
            "batch_size": 64,
            "decay": "constant",
            "checkpoint_every": every // 4,
            "evaluate_every": every // 2,
        },
    )
    with Meter() as meter:

        def read(info: dk.training.StepInfo) -> None:
            if info.step % every == 0 and "loss" in info.metrics:
                meter.read(info.step)

        dk.fit(preset, dk.data.Swirl(points=512), directory=directory, progress=False, hooks=[read])
    return meter.rows


def runs(count: int, directory: Path) -> list[Row]:
    """Sweeps of ten tiny runs each, that many runs in all, in this process."""
    small = ["preset=vdm", "data=swirl", "data.points=64", "network=mlp", "network.width=8"]
    small += ["network.depth=1", "train.steps=20", "train.batch_size=16", "samples=4", "sample_steps=3"]
    small += ["passes=1", f"root={directory}"]
    with Meter() as meter:
        for first in range(0, count, _TOGETHER):
            seeds = ",".join(map(str, range(first, min(first + _TOGETHER, count))))
            with _quiet():
                diffkit(["train", "--multirun", *small, f"train.seed={seeds}"])
            meter.read(min(first + _TOGETHER, count))
    return meter.rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def show(what: str, rows: list[Row]) -> None:
    """Print the rows as a table."""
    print(f"{what:>8}{'MiB':>8}{'threads':>9}{'files':>7}{'compiled':>10}{'seconds':>9}")
    for row in rows:
        counts = f"{row.threads:9}{row.files:7}{row.compiled:10}"
        print(f"{row.done:8}{row.memory:8.0f}{counts}{row.seconds:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=100)
    given = parser.parse_args()
    sys.argv = sys.argv[:1]  # Hydra reads it too
    with tempfile.TemporaryDirectory() as place:
        show("steps", steps(given.steps, Path(place) / "run"))
        print()
        show("runs", runs(given.runs, Path(place) / "sweep"))


if __name__ == "__main__":
    main()
