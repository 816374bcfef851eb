"""The command line: `diffkit train | evaluate | sample | convert | equivalence | report | ...`."""

import sys
from collections.abc import Sequence

from diffkit.cli.settings import POSITIONAL

_USAGE = """usage: diffkit COMMAND [ARGUMENTS]

commands:
  train       train a model          diffkit train preset=vdm data=digits schedule=cosine
  evaluate    its test likelihood    diffkit evaluate RUN [steps=250]
  sample      draw samples           diffkit sample RUN [sampler=ddim] [steps=50]
  convert     to another process     diffkit convert RUN OUT [process=straight] [schedule=cosine]
  equivalence compare two models     diffkit equivalence vdm edm
  report      a page about runs      diffkit report RUN RUN [out=report.md]
  plugins     what is installed      diffkit plugins
  check       the laws of its parts  diffkit check PLUGIN
  new-plugin  begin a plugin         diffkit new-plugin NAME

'diffkit COMMAND --help' shows the settings of a command.
Any choice is replaced by KIND=NAME, any option of it by KIND.OPTION=VALUE;
--multirun with KIND=NAME1,NAME2 runs all combinations.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script.

    **Arguments:** `arguments`: as after the command's name; taken from `sys.argv` by default.

    **Raises:** `SystemExit`, with status 0 for help, 1 for a failed command, 2 for wrong usage.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given else "--help"
    if command in ("-h", "--help"):
        from diffkit.cli.help import choices
        from diffkit.cli.plugins import plugin_commands

        print(_USAGE)
        if commands := plugin_commands():
            print("commands of plugins:")
            for name, entry in sorted(commands.items()):
                print(f"  {name:<11} {entry.dist.name if entry.dist else entry.module}")
            print()
        print(choices())
        return
    if command == "--version":
        from importlib.metadata import version

        print(f"diffkit {version('diffkit')}")
        return
    if command == "plugins":
        from diffkit.cli.plugins import show_plugins

        raise SystemExit(show_plugins())
    if command == "check":
        from diffkit.cli.check import check_plugin

        raise SystemExit(check_plugin(given[1:]))
    if command == "new-plugin":
        from diffkit.cli.new_plugin import new_plugin

        raise SystemExit(new_plugin(given[1:]))
    if command not in POSITIONAL:
        from diffkit.cli.plugins import FIRST_PARTY, how_to_install, run_plugin_command

        status = run_plugin_command(command, given[1:])
        if status is None:
            ours = command in FIRST_PARTY["bitsback"]
            more = f"{how_to_install('bitsback')} brings it." if ours else _USAGE
            print(f"diffkit: there is no command {command!r}.\n\n{more}", file=sys.stderr)
            raise SystemExit(2)
        raise SystemExit(status)
    if "--help" in given or "-h" in given:
        from diffkit.cli.help import command_help

        print(command_help(command))
        return
    try:
        from diffkit.cli.launch import launch
    except ModuleNotFoundError as error:
        print(
            f"diffkit: '{command}' needs the package {error.name!r}: pip install 'diffkit[train]'.",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
    launch(command, given[1:])
