"""One writer in a run directory."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import diffkit as dk
from diffkit.locks import LOCK_FILE, LockedError, LockWarning, writing

HERE = socket.gethostname()


def elsewhere(act):
    """Call a function in another thread, as another writer; return what it raised."""
    raised = []

    def run():
        try:
            act()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def enter(directory):
    with writing(directory):
        pass


def left(directory, host, process, *, age=0.0):
    """A lock file that nobody holds."""
    path = directory / LOCK_FILE
    path.write_text(json.dumps({"host": host, "process": process, "since": "yesterday"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def dead():
    """The number of a process that ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_writer_is_refused_and_told_who_holds_it(tmp_path):
    with writing(tmp_path):
        holder = json.loads((tmp_path / LOCK_FILE).read_text())
        assert (holder["host"], holder["process"]) == (HERE, os.getpid())
        refused = elsewhere(lambda: enter(tmp_path))
        with writing(tmp_path):  # the same writer
            assert (tmp_path / LOCK_FILE).exists()
        assert (tmp_path / LOCK_FILE).exists()
    assert isinstance(refused, LockedError)
    assert f"{tmp_path} is in use by process {os.getpid()} on host {HERE}, since 20" in str(refused)
    assert "wait for it, or end it, which frees the lock" in str(refused)
    assert not (tmp_path / LOCK_FILE).exists()
    assert elsewhere(lambda: enter(tmp_path)) is None


def test_an_error_frees_it(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_directory_in_which_nothing_was_written_is_gone(tmp_path):
    enter(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with writing(tmp_path / "kept"):
        (tmp_path / "kept" / "file").write_text("")
    assert (tmp_path / "kept" / "file").exists()


def test_kill_9_frees_it(tmp_path):
    code = f"""
import time
from diffkit.locks import writing
with writing({str(tmp_path)!r}):
    print("held", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {process.pid} on host"):
        enter(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    enter(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("process", [1, os.getpid(), 2**40], ids=["first", "this", "none"])
def test_what_a_process_of_this_host_left_is_free(tmp_path, process):
    left(tmp_path, HERE, process)
    enter(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 3, "process": "x"}', "\udcff"])
def test_a_damaged_lock_that_nobody_holds_is_free(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text, errors="surrogateescape")
    enter(tmp_path)


def test_another_host_is_believed_while_it_renews(tmp_path):
    path = left(tmp_path, "other\x1b[31m", 17)
    with pytest.raises(LockedError) as refused:
        enter(tmp_path)
    said = str(refused.value)
    assert "is in use by process 17 on host other?[31m, since yesterday" in said
    assert f"If that process no longer runs, remove {path} and try again" in said
    path.unlink()
    enter(tmp_path)
    left(tmp_path, "other", 17, age=3600)
    enter(tmp_path)


def test_it_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr("diffkit.locks._RENEWED", 0.01)
    with writing(tmp_path):
        path = tmp_path / LOCK_FILE
        os.utime(path, (0, 0))
        end = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
    assert not any(thread.name == "lock" for thread in threading.enumerate())


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("diffkit.locks.fcntl.flock", flock)
    with pytest.warns(LockWarning, match="has no locks, so nothing keeps a second training out"):
        enter(tmp_path)
    left(tmp_path, HERE, dead())
    with pytest.warns(LockWarning):
        enter(tmp_path)
    left(tmp_path, HERE, os.getppid())
    with pytest.raises(LockedError, match=f"process {os.getppid()} on host {HERE}"):
        enter(tmp_path)


def test_a_lock_that_its_holder_removes_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    import fcntl

    flock, calls = fcntl.flock, []

    def removed(file, how):
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(file)
        return flock(file, how)

    monkeypatch.setattr("diffkit.locks.fcntl.flock", removed)
    with writing(tmp_path):
        assert (tmp_path / LOCK_FILE).exists()
        assert isinstance(elsewhere(lambda: enter(tmp_path)), LockedError)
    assert len(calls) == 3


@pytest.mark.parametrize("what", ["link", "broken link", "directory", "pipe", "hard link"])
def test_nothing_is_written_through_something_else(tmp_path, what):
    target, run = tmp_path / "target", tmp_path / "run"
    run.mkdir()
    path = run / LOCK_FILE
    if what != "broken link":
        target.write_text("mine")
    if "link" in what:
        (path.hardlink_to if what == "hard link" else path.symlink_to)(target)
    elif what == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(ValueError, match=r"lock.json must be a plain file, and is not: remove it"):
        enter(run)
    assert what == "broken link" or target.read_text() == "mine"
    assert what != "broken link" or not target.exists()


def test_a_file_in_place_of_the_run(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="must be a directory"):
        enter(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_fit_is_refused_before_anything_is_written(toy, toy_model, tmp_path):
    config = dk.TrainConfig(steps=1, batch_size=2)
    with writing(tmp_path):
        refused = elsewhere(
            lambda: dk.fit(toy_model(), toy, config, directory=tmp_path, progress=False, check=False)
        )
        assert os.listdir(tmp_path) == [LOCK_FILE]
    assert isinstance(refused, LockedError)
