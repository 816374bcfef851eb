"""Signals that stop training: it saves first.

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 let the dispatch end, save a checkpoint and raise `Interrupted`. A
second one stops at once. A signal that the program handles itself, or ignores, is left to it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from diffkit.console import interrupt

SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """A signal stopped training, after a checkpoint was saved. The same call goes on from there.

    **Attributes:** `number`: of the signal; `step`, `steps`: the number of steps taken, and of all steps;
    `directory`: of the run.
    """

    def __init__(self, number: int, step: int, steps: int, directory: Path):
        super().__init__(number, step, steps, directory)
        self.number, self.step, self.steps, self.directory = number, step, steps, directory

    @property
    def status(self) -> int:
        """The exit status of a command: 128 and the number of the signal, as shells count."""
        return 128 + self.number

    @property
    def reason(self) -> str:
        """What happened, without how to go on."""
        name = signal.Signals(self.number).name
        return f"stopped by {name} after {self.step} of {self.steps} steps, saved in {self.directory}"

    def __str__(self) -> str:
        return f"{self.reason}. The same call goes on from there."


class Stop:
    """A wish to stop training. **Attributes:** `number`: of the signal that asked for it, or `None`."""

    def __init__(self):
        self.number: int | None = None


def _promise(number: int) -> str:
    name = signal.Signals(number).name
    return f"{name}: the steps under way end and a checkpoint is saved; a second signal stops at once.\n"


@contextlib.contextmanager
def listening(*, command: bool) -> Iterator[Stop]:
    """Take signals as a wish to stop, and put the handlers back afterwards.

    Only the main thread can; in another one this does nothing.

    **Arguments:** `command`: of the command line. A second signal then ends the process even within a
    compiled function, where Python runs no handler.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    usual = (signal.SIG_DFL, signal.default_int_handler, interrupt)
    before = {number: found for number in SIGNALS if (found := signal.getsignal(number)) in usual}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def asked(number: int, _: FrameType | None) -> None:
        first, stop.number = stop.number is None, stop.number or number
        if command:
            return  # `_watching` does the rest
        if not first:
            put_back()
            signal.raise_signal(number)
            return
        with contextlib.suppress(RuntimeError):  # within another print
            print(_promise(number), end="", file=sys.stderr, flush=True)

    with _watching({*before}) if command else contextlib.nullcontext():
        for number in before:
            signal.signal(number, asked)
        try:
            yield stop
        finally:
            put_back()


@contextlib.contextmanager
def _watching(numbers: set[int]) -> Iterator[None]:
    """Answer signals at once from a thread: C writes their numbers to it, whatever Python does."""
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        seen = 0
        while came := os.read(read, 1):
            if came[0] in numbers:
                seen += 1
                if seen == 1:
                    os.write(2, _promise(came[0]).encode())
                else:
                    shown = "\x1b[?25h" if os.isatty(1) else ""  # a progress bar hides the cursor
                    os.write(2, f"{shown}stopped at once\n".encode())
                    os._exit(128 + came[0])

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)
        thread.join()
        os.close(read)
