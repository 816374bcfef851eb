"""One writer in a run directory: a lock that the system frees when its process ends, however it ends."""

import contextlib
import contextvars
import errno
import json
import os
import socket
import stat
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK_FILE: Final = "lock.json"
"""In a run directory while a process writes there: its host, its number and when it began."""

_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_RENEWED = 30.0  # seconds between renewals
_STALE = 120.0
_HELD: contextvars.ContextVar[frozenset[Path]] = contextvars.ContextVar("held", default=frozenset())


class LockedError(RuntimeError):
    """Another process writes in a run directory."""


class LockWarning(UserWarning):
    """A file system has no locks, so nothing keeps a second writer out."""


@contextlib.contextmanager
def writing(directory: str | Path) -> Iterator[None]:
    """Be the only one that writes in a run directory. Readers need no lock.

    The system frees the lock of a process that died, so the next one takes it without a word. Not every
    file system shares locks between hosts: the file that another host left counts until it was not renewed
    for two minutes. Within the block, the same thread may ask again.

    **Arguments:** `directory`: created if missing, and removed again if nothing was written.

    **Raises:** `LockedError`, saying who writes there and what to do; `ValueError` if the directory or the
    lock is something else, such as a symbolic link.

    **Warns:** `LockWarning` on a file system without locks.
    """
    directory = Path(directory)
    place = directory.absolute()
    if place in _HELD.get():
        yield
        return
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"a run must be a directory, {directory} is a file.")
    new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK_FILE
    try:
        file, done = _taken(path), threading.Event()
        renewal = threading.Thread(target=_renew, args=(file, done), name="lock", daemon=True)
        renewal.start()
        token = _HELD.set(_HELD.get() | {place})
        try:
            yield
        finally:
            _HELD.reset(token)
            done.set()
            renewal.join()
            # While it is still locked: a process that opened it meanwhile sees that it is gone.
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(file)
    finally:
        if new:
            with contextlib.suppress(OSError):  # something was written
                directory.rmdir()


def _renew(file: int, done: threading.Event) -> None:
    while not done.wait(_RENEWED):
        with contextlib.suppress(OSError):
            os.utime(file)


def _taken(path: Path) -> int:
    """Open and lock the file, and write who holds it."""
    while True:
        file = _opened(path)
        try:
            if _locked(file, path):
                os.ftruncate(file, 0)
                holder = {
                    "host": socket.gethostname(),
                    "process": os.getpid(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
                }
                with contextlib.suppress(OSError):  # on a full disk the lock holds without words
                    os.pwrite(file, json.dumps(holder).encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise ValueError(f"{path} must be a plain file, and is not: remove it.") from None
        raise
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise ValueError(f"{path} must be a plain file, and is not: remove it.")
    return file


def _locked(file: int, path: Path) -> bool:
    """Whether the open file is locked now, and is still the one in the directory."""
    ours, known = True, False
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        known = True
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            ours = False
        elif error.errno not in _UNSUPPORTED:
            raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        if not os.path.samestat(os.fstat(file), os.lstat(path)):
            return False
    except FileNotFoundError:  # its holder ended meanwhile
        return False
    holder = _holder(file)
    fresh = time.time() - os.fstat(file).st_mtime < _STALE
    if not ours or (fresh and _may_run(holder, known=known)):
        raise LockedError(_refusal(path, holder, sure=not ours))
    if not known:
        warnings.warn(
            f"the file system of {path.parent} has no locks, so nothing keeps a second training out of it.",
            LockWarning,
            stacklevel=6,
        )
    return True


def _holder(file: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except (ValueError, RecursionError):  # not yet written, or damaged
        return {}
    return found if isinstance(found, dict) else {}


def _may_run(holder: dict[str, Any], *, known: bool) -> bool:
    """Whether the process that left a lock which is free may run: on another host that is not known."""
    host, process = holder.get("host"), holder.get("process")
    if not isinstance(host, str) or not isinstance(process, int):
        return False
    if host != socket.gethostname():
        return True
    if known or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _refusal(path: Path, holder: dict[str, Any], *, sure: bool) -> str:
    who = "another process"
    if holder.keys() >= {"host", "process"}:
        who = f"process {holder['process']} on host {holder['host']}, since {holder.get('since')}"
    who = "".join(sign if sign.isprintable() else "?" for sign in who)[:200]
    if sure:
        return f"{path.parent} is in use by {who}: wait for it, or end it, which frees the lock."
    return (
        f"{path.parent} is in use by {who}. If that process no longer runs, remove {path} and try again; "
        "what it has not renewed for two minutes is free."
    )
