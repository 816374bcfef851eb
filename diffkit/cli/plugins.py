"""`diffkit plugins`: what is installed, and whether it works; and the commands that plugins bring."""

import importlib.metadata
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from diffkit import registry

if TYPE_CHECKING:
    from rich.console import Console

COMMAND_GROUP: Final = "diffkit.commands"
"""The entry-point group of commands: a name, and a function of the arguments after it."""

FIRST_PARTY: Final[Mapping[str, tuple[str, ...]]] = {
    "vdm": ("vdm", "vdm_cifar10"),
    "ddpm": ("ddpm", "iddpm", "simple_diffusion"),
    "score_sde": ("vp_sde", "subvp_sde", "ve_sde"),
    "edm": ("edm",),
    "flow": ("flow_matching", "rectified_flow"),
    "solvers": (),
    "bitsback": ("compress", "decompress", "rate"),
}
"""For each extra of ours that is a plugin, in the package `diffkit_EXTRA`, its presets and commands."""


def how_to_install(extra: str) -> str:
    """The command that installs one of our plugins."""
    return f"pip install 'diffkit[{extra}]'"


def bringer(name: str) -> str | None:
    """The extra of ours that brings a preset or a command of this name, if one does."""
    return next((extra for extra, names in FIRST_PARTY.items() if name in names), None)


def extra_of(module: str | None) -> str | None:
    """The extra of ours that a module belongs to, by its name, if it belongs to one."""
    extra = (module or "").split(".")[0].removeprefix("diffkit_")
    return extra if extra in FIRST_PARTY and extra != module else None


def plugin_commands() -> Mapping[str, importlib.metadata.EntryPoint]:
    """The commands that plugins bring, by name; nothing is imported.

    If two distributions have a command of one name, the first in the alphabet always gets it.
    """
    entries = importlib.metadata.entry_points(group=COMMAND_GROUP)
    return {entry.name: entry for entry in sorted(entries, key=_distribution, reverse=True)}


def commands_of(distribution: str) -> tuple[str, ...]:
    """The names of the commands that a distribution brings."""
    commands = plugin_commands()
    return tuple(sorted(n for n, entry in commands.items() if _distribution(entry) == distribution))


def _distribution(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


def run_plugin_command(command: str, arguments: list[str]) -> int | None:
    """Run a command of a plugin.

    **Arguments:** `command`: its name; `arguments`: those after it.

    **Returns:** its exit status, 1 if it cannot be imported, or `None` if there is no such command.
    """
    entry = plugin_commands().get(command)
    if entry is None:
        return None
    try:
        run = entry.load()
    except Exception as error:  # a stranger's module may raise anything
        print(
            f"diffkit: the command {command!r} of {_distribution(entry)} ({entry.value}) could not be "
            f"imported: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return 1
    return int(run(arguments) or 0)


def reports() -> Mapping[str, registry.PluginReport]:
    """The report on every plugin, by name; what does not import is said there, and not warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", registry.PluginWarning)
        return {report.name: report for report in registry.plugins()}


def wrong(command: str, message: str) -> int:
    """Say what is wrong about the usage of a command; return its exit status."""
    print(f"diffkit {command}: {message}", file=sys.stderr)
    return 2


def wide_console() -> "Console":
    """A console as wide as a table takes where no terminal limits it: in a file, a pipe or a log."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def show_plugins(arguments: Sequence[str] = ()) -> int:
    """Print a table of the plugins; return 1 if one could not be imported."""
    if {"-h", "--help"} & {*arguments}:
        print("usage: diffkit plugins\n\nList the plugins with their parts, and say which do not import.")
        return 0
    if arguments:
        return wrong("plugins", f"it takes no arguments, got {arguments[0]!r}.")
    found = reports().values()
    failed = [report for report in found if report.error is not None]
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:  # of the extra `train`
        for report in found:
            print(report.name, report.version, report.parts, "failed" if report.error else "ok")
        return 1 if failed else 0

    table = Table("plugin", "version", "parts", "health")
    for report in found:
        lines = [f"{kind}: {', '.join(names)}" for kind, names in report.parts.items()]
        if commands := commands_of(report.distribution):
            lines.append(f"commands: {', '.join(commands)}")
        last = "ok" if report.error is None else report.error.strip().splitlines()[-1]
        table.add_row(report.name, report.version, "\n".join(lines) or "none", last)
    Console().print(table)
    for report in failed:
        print(f"\nplugin {report.name!r} ({report.module}):\n{report.error}", file=sys.stderr)
    return 1 if failed else 0
