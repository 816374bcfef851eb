"""`report`: from runs to a page."""

import os
import shlex
import stat
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Real

from diffkit.configs import EVALUATION_FILE
from diffkit.display import printable
from diffkit.files import replace_text
from diffkit.reports.figures import save_variant_curves, save_variant_samples
from diffkit.reports.page import at_steps_table, footnotes, main_table, markdown
from diffkit.reports.variants import (
    SAMPLES_FILE,
    Variant,
    find_runs,
    group,
    make_variants,
    read_run,
)
from diffkit.runs import TOO_LARGE
from diffkit.training.figures import has_picture

_LARGEST: Final = 2**30
_SIDE: Final = 4096


@dataclass(frozen=True)
class Report:
    """What `diffkit.report` found and wrote.

    **Attributes:** `path`: of the page; `baseline`: the name of the baseline variant; `variants`, the
    baseline first; `unfinished`: runs without an evaluation.
    """

    path: Path
    baseline: str
    variants: tuple[Variant, ...]
    unfinished: tuple[Path, ...]

    def show(self) -> None:
        """Print the tables on the terminal."""
        from rich.console import Console
        from rich.table import Table

        # As wide as needed outside a terminal: a file, a pipe, a log. Brackets in names are not markup.
        width = None if sys.stdout.isatty() else 160
        console = Console(width=width, markup=False, highlight=False)
        for title, table in (
            ("test bits per dimension", main_table(self.variants)),
            ("test bits per dimension of T steps", at_steps_table(self.variants)),
        ):
            if table is not None:
                # Only the name may be broken into lines, not a number.
                shown = Table(title=title)
                for name in table.header:
                    head = textwrap.fill(name, 11, break_long_words=False)
                    first = name == table.header[0]
                    shown.add_column(head, overflow="fold" if first else "ellipsis", no_wrap=not first)
                for row in table.rows:
                    shown.add_row(*map(printable, row))
                console.print(shown)
        for note in footnotes(self.variants):
            console.print(printable(note))
        if self.unfinished:
            console.print(printable(f"not finished: {', '.join(map(str, self.unfinished))}"))


def report(
    runs: Sequence[str | Path] | str | Path,
    *,
    out: str | Path = "report.md",
    baseline: str | Path | None = None,
) -> Report:
    """Compare runs: a Markdown page with a table, curves and samples of every variant.

    A variant is a set of runs that differ only in `train.seed` and in what is evaluated and drawn (such as
    `samples` and `evaluate_steps`). Its name lists the settings in which the variants differ. The report
    reads only `config.yaml`, `evaluation.json`, `metrics.jsonl`, `variance.json` and `samples.npy`, and
    builds no model.

    Numbers are means over seeds, with standard errors over seeds. If two variants have the same seeds, two
    or more, their difference is taken seed by seed: the mean of the differences, and its standard error.
    Otherwise its standard error is the root of the sum of both squared standard errors. With one seed on
    either side it has none.

    **Arguments:** `runs`: directories of runs; any other directory stands for the runs below it, sorted;
    `out`: the page to write, with the pictures next to it; `baseline`: a run of the variant to compare the
    others with, by default the first run.

    **Returns:** a `diffkit.reports.Report`.

    **Raises:** `FileNotFoundError` for a directory that is missing or contains no run; `ValueError` if
    `out` does not end in `.md`, a run has no `config.yaml`, two runs also have the same seed, no run is
    finished, `baseline` is not one of the runs or not finished, or a file cannot be read. Then nothing is
    written.

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
    chosen = (found[0].path if baseline is None else Path(baseline)).resolve()
    groups.sort(key=lambda same: all(run.path.resolve() != chosen for run in same))
    if all(run.path.resolve() != chosen for run in groups[0]):
        raise ValueError(f"baseline must be one of the runs, got {str(baseline)!r}.")
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
    unfinished = tuple(run.path for run in found if run.evaluation is None)
    made = Report(out, variants[0].name, variants, unfinished)
    by_path = {run.path: run for run in found}
    curves = {v.name: [by_path[path].metrics for path in v.runs] for v in variants}
    samples = {v.name: drawn for v in variants if (drawn := _samples(v.runs)) is not None}
    last = [] if baseline is None else [f"baseline={baseline}"]
    command = shlex.join(["diffkit", "report", *map(str, given), f"out={out}", *last])
    _write(made, common, curves, samples, command)
    return made


def _samples(runs: Sequence[Path]) -> Real[np.ndarray, "count *shape"] | None:
    """The samples of the first seed that has some, if they can be drawn."""
    file = next((file for path in runs if os.path.lexists(file := path / SAMPLES_FILE)), None)
    if file is None:
        return None
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            raise ValueError(f"it must be a file of at most {_LARGEST} bytes")
        # Mapped: it allocates nothing by what the header says, and must be as long as that.
        drawn = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(drawn, np.ndarray):
            drawn.close()
            raise ValueError("it is an archive")
        parts = (drawn[first : first + 256] for first in range(0, len(drawn), 256)) if drawn.ndim else ()
        if drawn.dtype.kind not in "iuf" or not all((np.abs(part) < TOO_LARGE).all() for part in parts):
            raise ValueError(f"its numbers must be finite, got {drawn.dtype}")
        if drawn.ndim == 4 and max(drawn.shape[2:]) > _SIDE:
            raise ValueError(
                f"its pictures must be at most {_SIDE} pixels wide and high, got {drawn.shape}"
            )
    except Exception as error:  # by the kind of damage
        raise ValueError(f"{file} must be an array of samples: {error}.") from error
    return np.asarray(drawn) if has_picture(drawn) and drawn.size else None


def _write(
    made: Report,
    common: Mapping[str, str],
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    samples: Mapping[str, Real[np.ndarray, "count *shape"]],
    command: str,
) -> None:
    """Pictures and page; all are made before the first one replaces an older one."""
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
            (Path(place) / name).replace(out.parent / name)  # of a link, the link itself
    replace_text(out, text)
