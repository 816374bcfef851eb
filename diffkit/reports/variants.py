"""Runs read from their directories, and the variants they form."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float

from diffkit.configs import (
    CHECKPOINTS,
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    VARIANCE_FILE,
    read_config,
)
from diffkit.reports.names import Naming, identity, read_settings
from diffkit.runs import TERMS, TOO_LARGE, read_evaluation, read_record
from diffkit.training import read_metrics

SAMPLES_FILE: Final = "samples.npy"

Method = Literal["paired", "independent"]


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, except its checkpoints.

    **Attributes:** `path`, as given; `seed`; `settings`, from `read_settings`; `evaluation` and `variance`,
    as stored, or `None`; `metrics`, oldest first.
    """

    path: Path
    seed: int
    settings: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    variance: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, float]]

    @property
    def bits_per_dim(self) -> float:
        """Test bits per dimension of a finished run."""
        assert self.evaluation is not None
        return float(self.evaluation["total_bits_per_dim"])


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    **Attributes:** `mean`; `standard_error`: the standard deviation over the seeds (n - 1) over the root of
    their number, `None` for one seed; `count`: the number of seeds.
    """

    mean: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class Variant:
    """Finished runs that differ only in their seed.

    **Attributes:**

    - `name`: the settings in which it differs from the other variants of the report.
    - `seeds`, increasing, and `runs`, the directories in that order.
    - `mean`, `standard_error`: test bits per dimension, over seeds; `None` for the error of one seed.
    - `terms`: the means of `prior`, `reconstruction` and `diffusion`, which add up to `mean`.
    - `totals`: the test bits per dimension of each run; `test_errors`: the standard error of each over the
      `examples` examples of its test set; `None` for one example.
    - `steps`: T of the evaluation, `None` for continuous time.
    - `difference`: to the baseline, negative for fewer bits, with its standard error `difference_error`
      (`None` if either has one seed) by the method `compared` (`diffkit.report`); `None` for the baseline.
    - `seconds`: of training, mean over seeds; `None` without metrics.
    - `variance`: of the loss of one draw, and `batch_variance`: of the mean of a batch, times the batch
      size; nats squared, means over the seeds with measurements, `None` without any.
    - `at_steps`: the bound of the model of T steps, by T, `None` for continuous time.
    - `settings`: those in which variants differ, as on the command line; `None` if it lacks one.
    """

    name: str
    seeds: tuple[int, ...]
    runs: tuple[Path, ...]
    mean: float
    standard_error: float | None
    terms: Mapping[str, float]
    totals: tuple[float, ...]
    test_errors: tuple[float | None, ...]
    examples: int
    steps: int | None
    difference: float | None
    difference_error: float | None
    compared: Method | None
    seconds: float | None
    variance: float | None
    batch_variance: float | None
    at_steps: Mapping[int | None, Estimate]
    settings: Mapping[str, str | None]


def find_runs(given: Sequence[str | Path]) -> list[Path]:
    """The run directories among and below those given, each once, in the order given.

    **Raises:** `FileNotFoundError` for a path that is not a directory or contains no run.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, given):
        if not path.is_dir():
            raise FileNotFoundError(f"runs must be run directories, there is no directory {path}.")
        below = []
        for place, folders, files in os.walk(path):
            if {CONFIG_FILE, METRICS_FILE} & set(files) or CHECKPOINTS in folders:
                below.append(Path(place))
                folders.clear()  # nothing below a run is one
        if not below:
            raise FileNotFoundError(
                f"runs must be run directories, or directories of them: there is no {CONFIG_FILE} in or "
                f"below {path}."
            )
        for run in sorted(below):
            found.setdefault(run.resolve(), run)
    return list(found.values())


def read_run(path: Path) -> RunFiles:
    """Read the files of a run.

    **Raises:** `ValueError` if the run was started in Python, or for an invalid file.
    """
    config = read_config(path)
    if not config:
        raise ValueError(
            f"run {path} has no {CONFIG_FILE}, so its choices are not known: give the other runs."
        )
    evaluation, variance = path / EVALUATION_FILE, path / VARIANCE_FILE
    measured = ("variance", "batch_variance")
    return RunFiles(
        path,
        config["train"]["seed"],
        read_settings(config),
        read_evaluation(evaluation) if os.path.lexists(evaluation) else None,
        read_record(variance, measured, counts=("batch_size",)) if os.path.lexists(variance) else None,
        [_finite(record) for record in read_metrics(path / METRICS_FILE)],
    )


def _finite(record: Mapping[str, float]) -> dict[str, float]:
    return {name: value if abs(value) < TOO_LARGE else math.nan for name, value in record.items()}


def group(runs: Sequence[RunFiles]) -> list[list[RunFiles]]:
    """Groups of runs that differ only in their seed, by first appearance; each sorted by seed.

    **Raises:** `ValueError` if two finished runs also have the same seed: they are not two draws.
    """
    groups: dict[Any, list[RunFiles]] = {}
    known: dict[Any, RunFiles] = {}
    for run in runs:
        key = identity(run.settings)
        groups.setdefault(key, []).append(run)
        other = known.setdefault((key, run.seed), run) if run.evaluation is not None else run
        if other is not run:
            raise ValueError(
                f"runs must differ in something: {other.path} and {run.path} have the same choices and the "
                f"same train.seed={run.seed}. Give one of them."
            )
    return [sorted(same, key=lambda run: run.seed) for same in groups.values()]


def estimate(values: Float[np.ndarray, " seeds"]) -> Estimate:
    """The mean over seeds and its standard error."""
    count = len(values)
    error = float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return Estimate(float(values.mean()), error, count)


def difference(
    one: Mapping[int, float], other: Mapping[int, float]
) -> tuple[float, float | None, Method | None]:
    """The first mean minus the second, its standard error, and the method.

    Seed by seed if both have the same seeds, so that what the seeds share (the order of the data, the
    noise, the draws of the evaluation) cancels; otherwise as for independent means (Welch).

    **Arguments:** `one`, `other`: a number for each seed.
    """
    a, b = (np.array([values[seed] for seed in sorted(values)]) for values in (one, other))
    if one.keys() == other.keys() and len(one) > 1:
        found = estimate(a - b)
        return found.mean, found.standard_error, "paired"
    first, second = estimate(a), estimate(b)
    less = first.mean - second.mean
    if first.standard_error is None or second.standard_error is None:
        return less, None, None
    return less, math.hypot(first.standard_error, second.standard_error), "independent"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def make_variants(
    groups: Sequence[Sequence[RunFiles]],
) -> tuple[tuple[Variant, ...], Mapping[str, str]]:
    """Variants from the finished runs of each, the baseline first.

    **Returns:** the variants, and the settings common to all.
    """
    naming = Naming([same[0].settings for same in groups])
    by_seed = [{run.seed: run.bits_per_dim for run in same} for same in groups]
    made = []
    for index, same in enumerate(groups):
        total = estimate(np.array([run.bits_per_dim for run in same]))
        less, error, method = difference(by_seed[index], by_seed[0])
        evaluations = [run.evaluation for run in same if run.evaluation is not None]
        measured = [run.variance for run in same if run.variance is not None]
        batches = [found["batch_variance"] * found["batch_size"] for found in measured]
        made.append(
            Variant(
                name=naming.names[index],
                seeds=tuple(run.seed for run in same),
                runs=tuple(run.path for run in same),
                mean=total.mean,
                standard_error=total.standard_error,
                terms={
                    term: float(np.mean([e[f"{term}_bits_per_dim"] for e in evaluations])) for term in TERMS
                },
                totals=tuple(run.bits_per_dim for run in same),
                test_errors=tuple(e["total_standard_error"] for e in evaluations),
                examples=evaluations[0]["examples"],
                steps=evaluations[0]["steps"],
                difference=less if index else None,
                difference_error=error if index else None,
                compared=method if index else None,
                seconds=_mean([run.metrics[-1].get("seconds", math.nan) for run in same if run.metrics]),
                variance=_mean([found["variance"] for found in measured]),
                batch_variance=_mean(batches),
                at_steps=_at_steps(evaluations),
                settings={name: texts[index] for name, texts in naming.differing.items()},
            )
        )
    return tuple(made), naming.common


def _at_steps(evaluations: Sequence[Mapping[str, Any]]) -> dict[int | None, Estimate]:
    found: dict[int | None, list[float]] = {}
    for evaluation in evaluations:
        # A T given twice counts once.
        totals = {at["steps"]: at["total_bits_per_dim"] for at in evaluation.get("at_steps", ())}
        for steps, total in totals.items():
            found.setdefault(steps, []).append(total)
    return {steps: estimate(np.array(found[steps])) for steps in in_order(found)}


def in_order(every: Iterable[int | None]) -> list[int | None]:
    """Numbers of steps in increasing order, `None` for continuous time at the end."""
    return sorted(every, key=lambda steps: math.inf if steps is None else steps)
