"""`diffkit check PLUGIN`: check every part of a plugin against every law of `diffkit.testing`."""

import argparse
import collections
import itertools
import sys
import time
import traceback
from collections.abc import Sequence

from diffkit import registry
from diffkit.cli.plugins import commands_of, reports, wide_console, wrong
from diffkit.registry import KINDS, PluginReport


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diffkit check",
        description="Put every law to every part that a plugin registered: a table, law by law; then, "
        "for each law that is broken, the part, the input and the numbers. The exit status is 1 if a "
        "law is broken, 2 for wrong usage. 'diffkit' is the plugin of the core's own parts.",
    )
    parser.add_argument("plugin", nargs="+", metavar="PLUGIN", help="as 'diffkit plugins' shows it")
    parser.add_argument("--kind", choices=KINDS, metavar="KIND", help="parts of this kind only")
    parser.add_argument("--part", metavar="NAME", help="parts of this name only")
    return parser


def _chosen(
    reports: Sequence[PluginReport], kind: str | None, part: str | None
) -> list[tuple[PluginReport, str, str]]:
    return [
        (report, one_kind, name)
        for report in reports
        for one_kind in KINDS
        for name in report.parts.get(one_kind, ())
        if kind in (None, one_kind) and part in (None, name)
    ]


def check_plugin(arguments: list[str]) -> int:
    """The command, given what follows its name.

    **Returns:** the exit status: 0 if every law holds, 1 if one is broken or a plugin does not import,
    2 for wrong usage.

    **Raises:** `SystemExit` for help and wrong usage, which argparse explains.
    """
    given = _parser().parse_args(arguments)
    known = reports()
    for name in given.plugin:
        if name not in known:
            return wrong("check", f"there is no plugin {name!r}. Installed: {', '.join(known)}.")
    asked = [known[name] for name in dict.fromkeys(given.plugin)]
    broken = [report for report in asked if report.error is not None]
    for report in broken:
        print(f"plugin {report.name!r} does not import:\n{report.error}", file=sys.stderr)
    if broken:
        return 1
    chosen = _chosen(asked, given.kind, given.part)
    commands = [name for report in asked for name in commands_of(report.distribution)]
    if commands and not any(report.parts for report in asked) and not (given.kind or given.part):
        print(f"{', '.join(given.plugin)}: no parts, and so no laws; commands: {', '.join(commands)}.")
        return 0
    if not chosen:
        parts = ", ".join(f"{kind} {name}" for _, kind, name in _chosen(asked, None, None))
        what = " ".join(filter(None, (given.kind, given.part))) or "part"
        return wrong("check", f"no {what} in {', '.join(given.plugin)}. Parts: {parts or 'none'}.")
    from rich.markup import escape
    from rich.table import Table

    from diffkit.testing import check_part

    console = wide_console()
    began, results = time.perf_counter(), []
    with console.status("") as status:
        for index, (report, kind, name) in enumerate(chosen):
            status.update(f"{report.name}: {kind} {name} ({index + 1} of {len(chosen)})")
            results.append([*check_part(kind, registry.get(kind, name), name=name)])
    table = Table("part", "law", "outcome", "seconds", "reason")
    colours = {"passed": "green", "failed": "bold red", "skipped": "yellow"}
    for of_part in results:
        for result in of_part:
            table.add_row(
                f"{result.kind} {result.part}" if result is of_part[0] else "",
                result.law,
                f"[{colours[result.outcome]}]{result.outcome}[/]",
                f"{result.seconds:.2f}",
                escape(result.reason),
                end_section=result is of_part[-1],
            )
    console.print(table)
    every = list(itertools.chain.from_iterable(results))
    failures = [result.error for result in every if result.error is not None]
    for error in failures:
        print(f"\n{error}")
        if error.__cause__ is not None:  # inside the law or the part: not a wrong number
            traceback.print_exception(error.__cause__)
    counts = collections.Counter(result.outcome for result in every)
    print(
        f"\n{', '.join(given.plugin)}: {len(chosen)} parts, {counts['passed']} laws hold, "
        f"{counts['failed']} broken, {counts['skipped']} skipped, "
        f"{time.perf_counter() - began:.0f} s."
    )
    return 1 if failures else 0
