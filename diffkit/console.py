"""The console script, and Ctrl-C, which it hears from its first line on.

Python raises `KeyboardInterrupt` wherever it is. Within an import an extension may turn it into another
error, and within a callback of the garbage collector, such as JAX's, it is lost. `interrupt` waits there.
This module is imported before JAX, and so before the run-time checks of types.
"""

import contextlib
import gc
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

_WAIT = 0.02  # seconds


class _Interrupt:
    """A handler of SIGINT. **Attributes:** `waits`: for a place to raise; `ours`: it sent the signal."""

    def __init__(self):
        self.waits = self.ours = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        ours, self.ours = self.ours, False
        if not _is_deaf(frame):
            self.waits = False
            raise KeyboardInterrupt
        if self.waits and not ours:  # a second Ctrl-C
            os.write(2, b"stopped at once\n")
            os._exit(128 + number)
        self.waits = True
        threading.Thread(target=self._send_later, args=(number,), daemon=True).start()

    def _send_later(self, number: int) -> None:
        time.sleep(_WAIT)
        self.ours = True
        os.kill(os.getpid(), number)


def _is_deaf(frame: FrameType | None) -> bool:
    """Whether what is raised here would not reach the program as it is."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks or frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


interrupt = _Interrupt()
"""What `heard` has SIGINT call."""


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Hear Ctrl-C, within a command, and put the handler back afterwards.

    Does nothing in another thread than the main one, nor where the program handles or ignores SIGINT.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


def script() -> None:
    """`diffkit`, as installed: `diffkit.cli.main`, with Ctrl-C heard also while that is imported."""
    with heard():
        try:
            pkgutil.resolve_name("diffkit.cli:main")()
        except KeyboardInterrupt as stop:
            raise SystemExit(interrupted(" ".join(sys.argv[1:2]), stop)) from None
