"""The command line: `diffkit train | evaluate | sample | convert | equivalence | report | ...`."""

import pkgutil
import sys
from collections.abc import Sequence

from diffkit.cli.plugins import FIRST_PARTY, how_to_install, plugin_commands, run_plugin_command
from diffkit.cli.settings import COMMANDS
from diffkit.cli.settings import Command as Command
from diffkit.console import heard, interrupted

_USAGE = """usage: diffkit COMMAND [ARGUMENTS]

commands:
  train       train a model          diffkit train preset=vdm data=digits schedule=cosine
  evaluate    its test likelihood    diffkit evaluate RUN [steps=250]
  sample      draw samples           diffkit sample RUN [sampler=ddim] [steps=50]
  convert     to another process     diffkit convert RUN OUT [process=straight] [schedule=cosine]
  equivalence compare two models     diffkit equivalence vdm edm
  report      a page about runs      diffkit report RUN RUN [out=report.md]
  verify      is a run whole         diffkit verify RUN
  replay      why it was not finite  diffkit replay RUN/nonfinite_STEP
  plugins     what is installed      diffkit plugins
  check       the laws of its parts  diffkit check PLUGIN
  new-plugin  begin a plugin         diffkit new-plugin NAME

'diffkit COMMAND --help' shows the settings of a command.
Any choice is replaced by KIND=NAME, any option of it by KIND.OPTION=VALUE;
--multirun with KIND=NAME1,NAME2 runs all combinations, launcher=NAME several at once.
"""

_OTHERS = {
    "plugins": "diffkit.cli.plugins:show_plugins",
    "check": "diffkit.cli.check:check_plugin",
    "new-plugin": "diffkit.cli.new_plugin:new_plugin",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script.

    **Arguments:** `arguments`: as after the command's name; taken from `sys.argv` by default.

    **Raises:** `SystemExit`, with status 0 for help, 1 for a failed command, 2 for wrong usage, 130 for
    Ctrl-C, and 143 or 138 for a training that SIGTERM or SIGUSR1 stopped.
    """
    command, *given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with heard():
            _run(command, given)
    except KeyboardInterrupt as stop:
        raise SystemExit(interrupted(command, stop)) from None


def _run(command: str, given: list[str]) -> None:
    if command in ("-h", "--help"):
        from diffkit.cli.help import choices

        print(_USAGE)
        if commands := plugin_commands():
            print("commands of plugins:")
            for name, entry in sorted(commands.items()):
                print(f"  {name:<11} {entry.dist.name if entry.dist else entry.module}")
            print()
        print(choices())
    elif command == "--version":
        from importlib.metadata import version

        print(f"diffkit {version('diffkit')}")
    else:
        ours = command in FIRST_PARTY["bitsback"]
        try:
            if command in COMMANDS or command in _OTHERS:
                run = COMMANDS.get(command) or pkgutil.resolve_name(_OTHERS[command])
                status = run(given)
            else:
                status = run_plugin_command(command, given)
        except ModuleNotFoundError as error:
            how = how_to_install("bitsback" if ours else "train")
            print(f"diffkit: {command!r} needs the package {error.name!r}: {how}.", file=sys.stderr)
            raise SystemExit(1) from error
        if status is None:
            more = f"{how_to_install('bitsback')} brings it." if ours else _USAGE
            print(f"diffkit: there is no command {command!r}.\n\n{more}", file=sys.stderr)
            raise SystemExit(2)
        if status or command not in COMMANDS:
            raise SystemExit(status)
