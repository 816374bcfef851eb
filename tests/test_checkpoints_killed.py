"""kill -9 while `diffkit train` runs, also within a save: the same command goes on to bitwise the same end.

DIFFKIT_KILLS=30 python -m pytest -n 0 -s -m slow tests/test_checkpoints_killed.py
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import diffkit as dk
from diffkit.training import Checkpoints

KILLS = int(os.environ.get("DIFFKIT_KILLS", "4"))

# Says when it is within a save, which takes longer than usual, and from which step it went on.
SLOWLY = """
import sys, time
from pathlib import Path
from diffkit.cli import main
from diffkit.training import checkpoints

inside, resumed, *words = sys.argv[1:]
save, restore = checkpoints.Checkpoints.save, checkpoints.Checkpoints.restore

def slow(function):
    def called(*arguments):
        time.sleep(0.02)
        return function(*arguments)
    return called

def marked(self, *arguments):
    Path(inside).touch()
    save(self, *arguments)
    Path(inside).unlink()

def recorded(self, step, *arguments, **options):
    Path(resumed).write_text(str(step))
    return restore(self, step, *arguments, **options)

for name in ("_sync", "_write", "_read_arrays", "_remove", "_delete"):
    setattr(checkpoints, name, slow(getattr(checkpoints, name)))
checkpoints.Checkpoints.save, checkpoints.Checkpoints.restore = marked, recorded
main(words)
"""


def train(run):
    """The words after `diffkit`: a small model, trained for long enough to be killed that often."""
    return [
        *("train", "preset=vdm", "data=swirl", "data.points=64", "network=mlp", "network.width=8"),
        *("network.depth=1", "schedule=learned_linear", "samples=0", "passes=1", "train.batch_size=8"),
        *(f"train.steps={150 * KILLS}", "train.checkpoint_every=20", "train.steps_per_dispatch=5"),
        f"run={run}",
    ]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_end(tmp_path):
    rng = random.Random(0)
    run, inside, resumed = (tmp_path / name for name in ("killed", "inside", "resumed"))
    step, within = None, 0
    for kill in range(KILLS):
        inside.unlink(missing_ok=True)
        resumed.unlink(missing_ok=True)
        command = [sys.executable, "-c", SLOWLY, inside, resumed, *train(run)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 300
        if kill % 2:  # within one of the first saves
            for _ in range(rng.randint(1, 3)):
                while inside.exists() and time.monotonic() < end:
                    time.sleep(0.001)
                while not inside.exists() and time.monotonic() < end:
                    assert process.poll() is None, "training ended before it could be killed"
                    time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.4))
        else:
            time.sleep(rng.uniform(0, 15))
        assert process.poll() is None, "training ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        within += inside.exists()
        if resumed.exists():
            assert int(resumed.read_text()) == step
        # A damaged checkpoint would be a warning, which is an error here.
        newest = Checkpoints(run / "checkpoints").latest_step()
        assert newest is None if step is None and newest is None else newest >= (step or 0)
        step = newest
    print(f"killed {KILLS} times, {within} of them within a save, at last with step {step} saved")
    assert within >= KILLS // 6
    whole = tmp_path / "whole"
    for path in (run, whole):
        command = [sys.executable, "-m", "diffkit.cli", *train(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    ends = []
    for path in (run, whole):
        assert all(finding.good for finding in dk.verify_run(path))
        stored = Checkpoints(path / "checkpoints").read(150 * KILLS)
        records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert [record["step"] for record in records] == [*range(5, 150 * KILLS + 1, 5)]
        metrics = [{k: v for k, v in record.items() if k != "seconds"} for record in records]
        ends.append((stored.arrays, metrics, (path / "evaluation.json").read_text()))
        assert len(os.listdir(path / "checkpoints")) == 2  # and nothing that a save left
    (one, *rest), (other, *others) = ends
    assert rest == others
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
