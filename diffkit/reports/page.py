"""Tables of variants, and the Markdown page."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from diffkit.reports.variants import TERMS, Estimate, Variant, in_order

DASH: Final = "–"
"""For a missing number."""


@dataclass(frozen=True)
class Table:
    """Cells as text: the first column names and settings, the others Markdown."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a Markdown table, with the first column as code."""
        cells = [[code(first), *rest] for first, *rest in self.rows]
        lines = [self.header, ["---"] * len(self.header), *cells]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """Any text as code within a line or a cell of a table, and as nothing else.

    What could end it, a backtick, or confuse the cells, a backslash, is written as HTML by numbers.
    """
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", " ", text)
    if line.strip() and not {"`", "\\"} & {*line}:
        return f"`{line}`".replace("|", "\\|")
    safe = "".join(sign if sign.isalnum() or sign == " " else f"&#{ord(sign)};" for sign in line)
    return f"<code>{safe}</code>"


def _block(text: str, language: str) -> str:
    """Any text as a block of code: its fence is longer than any within."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}\n"


def _number(value: float | None, *, sign: bool = False) -> str:
    """Four decimals, or two digits where four decimals do not suffice."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2g}"
    return f"+{text}" if sign and value > 0 else text


def _short(value: float | None) -> str:
    """Four digits."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.4g}"


def time_name(steps: int | None) -> str:
    """T as the head of a column."""
    return "continuous" if steps is None else f"T = {steps}"


def main_table(variants: Sequence[Variant]) -> Table:
    """A row for each variant."""
    first = variants[0]
    columns = {
        "variant": lambda v: v.name,
        "seeds": lambda v: str(len(v.seeds)),
        "time": lambda v: time_name(v.steps),
        "test bits/dim": lambda v: _number(v.mean),
        "s.e.": lambda v: _number(v.standard_error),
        **{term: lambda v, term=term: _number(v.terms[term]) for term in TERMS},
        "difference": lambda v: "baseline" if v is first else _number(v.difference, sign=True),
        "s.e. of difference": lambda v: _number(v.difference_error),
        "compared": lambda v: v.compared or DASH,
        "seconds": lambda v: _short(v.seconds),
        "variance of a draw": lambda v: _short(v.variance),
        "of a batch x size": lambda v: _short(v.batch_variance),
    }
    if len({variant.steps for variant in variants}) == 1:
        del columns["time"]
    if all(variant.variance is None for variant in variants):
        del columns["variance of a draw"], columns["of a batch x size"]
    rows = (tuple(show(variant) for show in columns.values()) for variant in variants)
    return Table(tuple(columns), tuple(rows))


def at_steps_table(variants: Sequence[Variant]) -> Table | None:
    """The bound by the number of steps, if any run has it."""
    columns = in_order({steps for variant in variants for steps in variant.at_steps})
    if not columns:
        return None

    def cell(variant: Variant, found: Estimate | None) -> str:
        if found is None:
            return DASH
        text = f"{_number(found.mean)} ± {_number(found.standard_error)}"
        return text if found.count == len(variant.seeds) else f"{text} (n = {found.count})"

    return Table(
        ("variant", *map(time_name, columns)),
        tuple((v.name, *(cell(v, v.at_steps.get(steps)) for steps in columns)) for v in variants),
    )


def footnotes(variants: Sequence[Variant], *, show: Callable[[str], str] = str) -> list[str]:
    """Notes on variants with one seed, and on what cannot be compared; `show` writes their names."""
    notes = [
        f"{show(variant.name)}: one seed, so the spread over seeds is unknown and differences to it have "
        f"no error; the standard error over the {variant.examples} examples of the test set is "
        f"{_number(variant.test_errors[0])}."
        for variant in variants
        if len(variant.seeds) == 1
    ]
    if any(name.split(".")[0] == "data" for name in variants[0].settings):
        notes.append("The variants have different data: do not compare their bits per dimension.")
    return notes


def _how(variants: Sequence[Variant]) -> list[str]:
    """How the numbers of the main table are computed."""
    lines = [
        "**test bits/dim**: `total_bits_per_dim` in `evaluation.json`, mean over seeds; the sum of prior, "
        "reconstruction and diffusion.",
        "**s.e.**: the standard error of that mean, the standard deviation over seeds (n - 1) over the "
        "root of n. All seeds share the test set, so the error of sampling the test set is not included.",
    ]
    if len(variants) > 1:
        lines.append("**difference**: variant minus baseline; negative is better.")
    ways = {
        "paired": "both have the same seeds; differences are taken seed by seed, and the standard error is "
        "that of their mean.",
        "independent": "the two have different seeds; the standard error is the root of the sum of both "
        "squared standard errors.",
    }
    used = {variant.compared for variant in variants}
    lines += [f"**{way}**: {meaning}" for way, meaning in ways.items() if way in used] + [
        "**seconds**: wall time from the first step to the last, with compilation and evaluations, mean "
        "over seeds. Among the runs of one process only the first compiles."
    ]
    if any(variant.variance is not None for variant in variants):
        lines.append(
            "**variance of a draw**: of the diffusion loss of one example, time and noise, nats squared. "
            "**of a batch x size**: of the mean over a batch, times the batch size; the two are equal for "
            "independent times, and a smaller second one is the gain of spreading the times. From "
            "`variance.json`, mean over the seeds that have one."
        )
    return lines


def markdown(
    variants: Sequence[Variant],
    unfinished: Sequence[Path],
    common: Mapping[str, str],
    pictures: Mapping[str, str],
    command: str,
) -> str:
    """The page, with the settings `common` to all variants, the file names of the `pictures` named `curves`
    and `samples`, if any, and the `command` that makes it again.
    """
    runs, steps = sum(len(variant.seeds) for variant in variants), variants[0].steps
    phrase = "in continuous time" if steps is None else f"of T = {steps} steps"
    time = f" ({phrase})" if all(variant.steps == steps for variant in variants) else ""
    parts = [
        "# Report\n",
        f"Test bits per dimension{time}, less is better: {_count(runs, 'run')}, "
        f"{_count(len(variants), 'variant')}. A variant is a set of runs that differ only in their seed; "
        "its name lists the settings in which the variants differ, and dots stand for further ones, "
        "listed below.\n",
        _block(command, "bash"),
        main_table(variants).markdown(),
        _bullets(_how(variants)),
    ]
    if notes := footnotes(variants, show=code):
        parts.append(_bullets(notes))
    if (table := at_steps_table(variants)) is not None:
        parts += [
            "## By the number of steps\n",
            "Test bits per dimension of the discrete-time model of T steps, mean over seeds ± standard "
            "error over seeds.\n",
            table.markdown(),
        ]
    if "curves" in pictures:
        parts += [
            "## Curves\n",
            f"![Training curves]({quote(pictures['curves'])})\n",
            "The training loss in bits per dimension, as a running mean over about a hundredth of the run: "
            "the mean over seeds, in a band from the smallest to the largest. It cannot be compared "
            "between variants with different weightings. Dashed: the bound on test data during training, "
            "if recorded.\n",
        ]
    if "samples" in pictures:
        parts += [
            "## Samples\n",
            f"![Samples]({quote(pictures['samples'])})\n",
            "From the first seed of each variant that has samples.\n",
        ]
    if differing := variants[0].settings:
        rows = [
            (name, *(DASH if (t := v.settings[name]) is None else code(t) for v in variants))
            for name in differing
        ]
        header = ("setting", *(code(variant.name) for variant in variants))
        parts += ["## Settings that differ\n", Table(header, tuple(rows)).markdown()]
    if common:
        listed = "\n".join(f"{name}={text}" for name, text in common.items())
        parts += [
            "## Settings that all have\n",
            f"<details><summary>{_count(len(common), 'setting')}</summary>\n\n{_block(listed, 'text')}\n"
            "</details>\n",
        ]
    rows = [
        (str(path), code(v.name), str(seed), _number(total), _number(error))
        for v in variants
        for path, seed, total, error in zip(v.runs, v.seeds, v.totals, v.test_errors, strict=True)
    ]
    header = ("run", "variant", "seed", "test bits/dim", "s.e. over the test set")
    parts += ["## Runs\n", Table(header, tuple(rows)).markdown()]
    if unfinished:
        parts += ["## Not finished\n", _bullets([code(str(path)) for path in unfinished])]
    return "\n".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _bullets(lines: Sequence[str]) -> str:
    return "".join(f"* {line}\n" for line in lines)
