"""`diffkit plugins`: what is installed, and whether it works."""

import sys
import warnings

from diffkit import registry


def show_plugins() -> int:
    """Print a table of the plugins; return 1 if one of them could not be imported, else 0."""
    with warnings.catch_warnings():
        # The table itself says it.
        warnings.simplefilter("ignore", registry.PluginWarning)
        reports = registry.plugins()
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        for report in reports:
            health = "ok" if report.error is None else "failed"
            print(report.name, report.version, dict(report.parts), health)
        return int(any(report.error for report in reports))
    table = Table("plugin", "version", "parts", "health")
    for report in reports:
        parts = "\n".join(f"{kind}: {', '.join(names)}" for kind, names in report.parts.items())
        last = "ok" if report.error is None else report.error.strip().splitlines()[-1]
        table.add_row(report.name, report.version, parts or "none", last)
    Console().print(table)
    failed = [report for report in reports if report.error is not None]
    for report in failed:
        print(f"\nplugin {report.name!r} ({report.module}):\n{report.error}", file=sys.stderr)
    return 1 if failed else 0
