"""Training that a signal stops: it saves, says so, and goes on to bitwise the same end."""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import equinox as eqx
import jax
import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from tensorboardX.proto.event_pb2 import Event

import diffkit as dk
from diffkit.cli import main
from diffkit.console import heard
from diffkit.training import Checkpoints, Interrupted
from diffkit.training.interruption import SIGNALS
from diffkit.training.metrics import ProgressBar

CONFIG = dk.TrainConfig(
    steps=24, batch_size=16, steps_per_dispatch=8, warmup=4, decay="constant", checkpoint_every=0
)

SMALL = [
    *("train", "data=swirl", "data.points=64", "network=mlp", "network.width=8", "network.depth=1"),
    *("train.steps=6", "train.steps_per_dispatch=2", "train.batch_size=8", "passes=1", "samples=0"),
]


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def assert_same(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


def newest(run):
    checkpoints = Checkpoints(run / "checkpoints")
    try:
        return checkpoints.latest_step()
    finally:
        checkpoints.close()


def at(step, act):
    """A hook that does something once, at a step."""

    def hook(info):
        if info.step == step:
            act()

    return hook


def events(run):
    """The steps of every loss in the files for TensorBoard, in order, as it shows them."""
    steps = []
    for file in sorted((run / "tensorboard").iterdir()):
        rest = file.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            event = Event.FromString(rest[12 : 12 + length])
            if event.HasField("session_log"):  # hides what a process left that ended later than its save
                steps = [step for step in steps if step < event.step]
            steps += [event.step for value in event.summary.value if value.tag == "loss"]
            rest = rest[16 + length :]
    return steps


@pytest.fixture(autouse=True)
def usual_handlers():
    """Those of a program in the foreground, though the tests may run in the background."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(toy, toy_model, tmp_path_factory):
    """A run that nothing stopped."""
    path = tmp_path_factory.mktemp("whole")
    return dk.fit(toy_model(), toy, CONFIG, directory=path, progress=False)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_the_same_call_goes_on(toy, toy_model, whole, tmp_path, capfd, number):
    before = [signal.getsignal(each) for each in SIGNALS]
    given = toy_model(), toy, CONFIG
    # Told of the first dispatch while the second runs, which ends.
    hook = at(8, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted) as stopped:
        dk.fit(*given, directory=tmp_path, progress=False, hooks=[hook])
    assert isinstance(stopped.value, KeyboardInterrupt)
    name = signal.Signals(number).name
    assert str(stopped.value) == (
        f"stopped by {name} after 16 of 24 steps, saved in {tmp_path}. The same call goes on from there."
    )
    assert stopped.value.status == 128 + number
    assert capfd.readouterr().err.startswith(f"{name}: the steps under way end and a checkpoint is saved")
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert newest(tmp_path) == 16
    resumed = dk.fit(*given, directory=tmp_path, progress=False)
    assert_same(resumed.state, whole.state)
    for one, other in zip(resumed.metrics, whole.metrics, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [8, 16, 24] == events(tmp_path)


def test_a_signal_at_the_end_is_no_success(toy, toy_model, whole, tmp_path):
    # A command would evaluate next, which takes long too.
    hook = at(24, lambda: signal.raise_signal(signal.SIGTERM))
    given = toy_model(), toy, CONFIG
    with pytest.raises(Interrupted, match="after 24 of 24 steps"):
        dk.fit(*given, directory=tmp_path, progress=False, hooks=[hook])
    assert_same(dk.fit(*given, directory=tmp_path, progress=False).state, whole.state)


def test_a_second_signal_stops_at_once(toy, toy_model, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        dk.fit(toy_model(), toy, CONFIG, directory=tmp_path, progress=False, hooks=[at(8, twice)])
    assert not isinstance(stopped.value, Interrupted)
    assert newest(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_directory_signals_are_left_alone(toy, toy_model):
    hook = at(8, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stopped:
        dk.fit(toy_model(), toy, CONFIG, progress=False, hooks=[hook])
    assert not isinstance(stopped.value, Interrupted)


def test_the_programs_own_handler_stays(toy, toy_model, whole, tmp_path):
    came = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        hook = at(8, lambda: signal.raise_signal(signal.SIGUSR1))
        fitted = dk.fit(toy_model(), toy, CONFIG, directory=tmp_path, progress=False, hooks=[hook])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came == [signal.SIGUSR1]
    assert_same(fitted.state, whole.state)


def test_another_thread_trains_too(toy, toy_model, whole, tmp_path):
    made = []

    def run():
        made.append(dk.fit(toy_model(), toy, CONFIG, directory=tmp_path, progress=False))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert_same(made[0].state, whole.state)


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, [8, 16, 24]), (0.0, [24]), (10.0, [24])])
def test_checkpoints_by_time(toy, toy_model, tmp_path, minutes, saved):
    found = []

    def hook(info):
        if info.state is not None:
            found.append(info.step)

    config = dataclasses.replace(CONFIG, checkpoint_minutes=minutes)
    dk.fit(toy_model(), toy, config, directory=tmp_path, progress=False, hooks=[hook])
    assert found == saved


# On the command line.


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    state = ConfigStore.get_state()
    yield tmp_path
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


@contextlib.contextmanager
def signalled(number, step=2):
    """Let the progress bar of a command raise a signal at a step."""
    call = ProgressBar.__call__

    def called(self, info):
        call(self, info)
        if info.step == step:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", called)
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_says_how_to_go_on(workplace, capfd, number, status):
    with signalled(number), pytest.raises(SystemExit) as stopped:
        main([*SMALL, "run=r"])
    assert stopped.value.code == status
    promise, said = capfd.readouterr().err.splitlines()
    name = signal.Signals(number).name
    assert promise.startswith(f"{name}: the steps under way end")
    assert said.strip() == (
        f"diffkit train: stopped by {name} after 4 of 6 steps, saved in r. "
        "The same command goes on from there."
    )
    assert newest(workplace / "r") == 4
    assert not (workplace / "r" / "evaluation.json").exists()
    main([*SMALL, "run=r"])
    assert (workplace / "r" / "evaluation.json").exists()
    assert not (workplace / "r" / "lock.json").exists()
    assert events(workplace / "r") == [2, 4, 6]


@pytest.mark.slow
def test_a_sweep_ends(workplace, capfd):
    with signalled(signal.SIGINT), pytest.raises(SystemExit) as stopped:
        main([*SMALL, "--multirun", "train.seed=0,1"])
    assert stopped.value.code == 130
    said = capfd.readouterr().err.splitlines()[-1]
    assert "after 4 of 6 steps" in said
    assert "; the sweep ends here. The same command goes on from there." in said
    assert len(list((workplace / "runs").glob("*/config.yaml"))) == 1


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["evaluate", "r"], "diffkit.cli.commands.load_run"),
        (["sample", "r"], "diffkit.cli.commands.load_run"),
        (["convert", "r", "o"], "diffkit.cli.commands.convert_run"),
        (["equivalence", "a", "b"], "diffkit.cli.commands.compare"),
        (["report", "r"], "diffkit.reports.report"),
        (["replay", "r"], "diffkit.cli.commands.replay"),
        (["check", "diffkit"], "diffkit.cli.check.reports"),
        (["plugins"], "diffkit.cli.plugins.reports"),
        (["new-plugin", "mine"], "diffkit.cli.new_plugin.skeleton"),
        (["compress", "r", "test", "o"], "diffkit.load_run"),
        (["--help"], "diffkit.cli.help.choices"),
    ],
)
def test_ctrl_c_is_a_line(workplace, monkeypatch, capfd, words, place):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 130
    assert capfd.readouterr().err.strip() == f"diffkit {words[0]}: stopped by SIGINT."


def test_ctrl_c_is_heard_where_python_would_lose_it(tmp_path, monkeypatch):
    def callback(phase, info):
        signal.raise_signal(signal.SIGINT)
        gc.callbacks.remove(callback)

    def collect():  # as JAX, which has a callback
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(10)

    def load():  # as extensions, which turn it into another error
        importlib.import_module("deaf")
        time.sleep(10)

    module = "import signal\ntry: signal.raise_signal(2)\nexcept BaseException: raise ImportError"
    (tmp_path / "deaf.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with heard():
        for lose in (collect, load, lambda: signal.raise_signal(signal.SIGINT)):
            with pytest.raises(KeyboardInterrupt):
                lose()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_process_that_is_signalled(tmp_path, name):
    # Also while it starts and compiles, and twice; then bitwise the same end.
    number, run, undisturbed = getattr(signal, name), tmp_path / "run", tmp_path / "whole"
    words = [*SMALL, "train.steps=4000", "train.steps_per_dispatch=10", "train.evaluate_every=500"]
    command = [sys.executable, "-m", "diffkit.cli", *words]

    def started():
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, f"run={run}"], **pipes)

    for files in (1, 2):  # of events: written where training begins
        process = started()
        end = time.monotonic() + 300
        while len([*run.glob("tensorboard/*")]) < files:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 128 + number, said
        assert "Traceback" not in said
        assert f"diffkit train: stopped by {name} after" in said.splitlines()[-1]
    process = started()
    while not (run / "lock.json").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (128 + number, -number)
    assert "Traceback" not in said
    for path in (run, undisturbed):
        done = subprocess.run([*command, f"run={path}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert events(run) == [*range(10, 4001, 10)] == events(undisturbed)
    records = []
    for path in (run, undisturbed):
        lines = (path / "metrics.jsonl").read_text().splitlines()
        records.append([{**json.loads(line), "seconds": 0} for line in lines])
    assert records[0] == records[1]
    assert_same(dk.load_run(run).model, dk.load_run(undisturbed).model)
    assert (run / "evaluation.json").read_bytes() == (undisturbed / "evaluation.json").read_bytes()
    assert sorted(os.listdir(run)) == sorted(os.listdir(undisturbed))
