"""What a command says when a signal stops it."""

import sys


def interrupted(command: str, stop: KeyboardInterrupt, *, sweep: bool = False) -> int:
    """Say in a line what stopped a command, and how to go on.

    **Arguments:** `command`: its name; `stop`: Ctrl-C, or `diffkit.training.Interrupted`; `sweep`: whether
    others would have followed.

    **Returns:** the exit status: 128 and the number of the signal.
    """
    # Importing the class itself would import all of training.
    said = getattr(stop, "reason", "stopped by SIGINT")
    said += "; the sweep ends here" if sweep else ""
    goes_on = ". The same command goes on from there." if sweep or hasattr(stop, "reason") else "."
    print(f"diffkit {command}: {said}{goes_on}", file=sys.stderr)
    return getattr(stop, "status", 130)
