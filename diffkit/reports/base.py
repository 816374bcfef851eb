"""`report`: from runs to a page."""

import shlex
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Real

from diffkit.files import replace_text
from diffkit.reports.page import at_steps_table, footnotes, main_table, markdown
from diffkit.reports.variants import (
    SAMPLES_FILE,
    RunFiles,
    Variant,
    find_runs,
    group,
    make_variants,
    read_run,
)
from diffkit.runs import EVALUATION_FILE
from diffkit.training.figures import has_picture, save_variant_curves, save_variant_samples


@dataclass(frozen=True)
class Report:
    """What `diffkit.report` found and wrote.

    **Attributes:** `path`: of the page; `baseline`: the name of the variant that the others are compared
    with; `variants`, the baseline first; `unfinished`: runs that were not evaluated yet.
    """

    path: Path
    baseline: str
    variants: tuple[Variant, ...]
    unfinished: tuple[Path, ...]

    def show(self) -> None:
        """Print the tables on the terminal."""
        from rich.console import Console
        from rich.table import Column, Table

        # As wide as it takes where there is no terminal to fit: a file, a pipe, a log. Names may have
        # brackets, which are no markup.
        width = None if sys.stdout.isatty() else 160
        console = Console(width=width, markup=False, highlight=False)
        for title, table in (
            ("test bits per dimension", main_table(self.variants)),
            ("test bits per dimension of T steps", at_steps_table(self.variants)),
        ):
            if table is not None:
                # What may be broken into lines is the name, and not a number.
                header = [textwrap.fill(n, 11, break_long_words=False) for n in table.header]
                shown = Table(
                    Column(header[0], overflow="fold"),
                    *(Column(name, no_wrap=True) for name in header[1:]),
                )
                shown.title = title
                for row in table.rows:
                    shown.add_row(*row)
                console.print(shown)
        for note in footnotes(self.variants):
            console.print(note)
        if self.unfinished:
            console.print(f"not finished: {', '.join(map(str, self.unfinished))}")


def report(
    runs: Sequence[str | Path] | str | Path,
    *,
    out: str | Path = "report.md",
    baseline: str | Path | None = None,
) -> Report:
    """Compare runs: a Markdown page with a table, curves and samples of every variant.

    A variant is the runs that are equal in every choice but `train.seed` and in what is looked at (such
    as `samples` and `evaluate_steps`). Its name is made of the settings in which the variants differ. Only
    `config.yaml`, `evaluation.json`, `metrics.jsonl`, `variance.json` and `samples.npy` are read: no model
    is built.

    Numbers are means over seeds, with the standard error over seeds. The difference to the baseline is
    taken seed by seed where both have the same seeds, two or more: the mean of the differences, and the
    standard error of that mean. Otherwise its standard error is the root of the sum of the squares of both
    standard errors. With one seed on either side there is none.

    **Arguments:**

    - `runs`: directories of runs from the command line; a directory that is none itself stands for those
      below it, sorted.
    - `out`: the page to write; the pictures go beside it.
    - `baseline`: one of the runs, whose variant the others are compared with; by default the first.

    **Returns:** a `diffkit.reports.Report`.

    **Raises:** `FileNotFoundError` for a directory that is missing or has no run in it; `ValueError` if
    `out` does not end in `.md`, if a run was started in Python, if two runs are equal in the seed too, if
    none is finished, if `baseline` is none of the runs or is not finished, or for a file that cannot be
    read. Then nothing is written.

    ```python
    found = dk.report("sweep", out="sweep/report.md")
    best = min(found.variants, key=lambda variant: variant.mean)
    ```
    """
    out = Path(out)
    if out.suffix != ".md":
        raise ValueError(f"out must be a Markdown page, a name that ends in .md, got {str(out)!r}.")
    given = [runs] if isinstance(runs, str | Path) else list(runs)
    if not given:
        raise ValueError("runs must name run directories, got none.")
    found = [read_run(path) for path in find_runs(given)]
    groups = group(found)
    first = _baseline(groups, found[0].path if baseline is None else Path(baseline))
    groups = [first, *(same for same in groups if same is not first)]
    finished = [[run for run in same if run.evaluation is not None] for same in groups]
    if not any(finished):
        raise ValueError(
            f"runs must have one that is finished, with an {EVALUATION_FILE}; "
            f"{', '.join(str(run.path) for run in found[:5])} {'has' if len(found) == 1 else 'have'} none."
        )
    if baseline is not None and not finished[0]:
        raise ValueError(
            "baseline must be a run that is finished, or one of a variant that has another seed that is, "
            f"got {str(baseline)!r}."
        )
    variants, common = make_variants([same for same in finished if same])
    made = Report(
        out,
        variants[0].name,
        variants,
        tuple(run.path for run in found if run.evaluation is None),
    )
    by_path = {run.path: run for run in found}
    curves = {v.name: [by_path[path].metrics for path in v.runs] for v in variants}
    samples = {v.name: drawn for v in variants if (drawn := _samples(v.runs)) is not None}
    words = ["diffkit", "report", *map(str, given), f"out={out}"]
    words += [] if baseline is None else [f"baseline={baseline}"]
    _write(made, common, curves, samples, shlex.join(words))
    return made


def _baseline(groups: Sequence[list[RunFiles]], path: Path) -> list[RunFiles]:
    """The group that a run belongs to."""
    for same in groups:
        if any(run.path.resolve() == path.resolve() for run in same):
            return same
    raise ValueError(f"baseline must be one of the runs, got {str(path)!r}.")


def _samples(runs: Sequence[Path]) -> Real[np.ndarray, "count *shape"] | None:
    """The samples of the first seed that has some, if a picture can be made of them."""
    for path in runs:
        file = path / SAMPLES_FILE
        if file.exists():
            try:
                drawn = np.load(file, allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{file} must be an array of samples: {error}.") from error
            return drawn if has_picture(drawn) and drawn.size else None
    return None


def _write(
    made: Report,
    common: Mapping[str, str],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    samples: Mapping[str, Real[np.ndarray, "count *shape"]],
    command: str,
) -> None:
    """Pictures and page; all are made before the first of them replaces an older one."""
    out = made.path
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = {}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}.") as place:
        if any(any(runs) for runs in curves.values()):
            pictures["curves"] = f"{out.stem}_curves.png"
            save_variant_curves(curves, Path(place) / pictures["curves"])
        if samples:
            pictures["samples"] = f"{out.stem}_samples.png"
            save_variant_samples(samples, Path(place) / pictures["samples"])
        text = markdown(made.variants, made.unfinished, common, pictures, command)
        for name in pictures.values():
            (Path(place) / name).replace(out.parent / name)
    replace_text(out, text)
