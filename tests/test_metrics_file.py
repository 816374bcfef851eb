"""metrics.jsonl: damaged lines cost themselves alone, and a file that cannot be written is an error."""

import dataclasses
import errno
import json
import math
import os
import shutil

import pytest

import diffkit as dk
from diffkit.training import MetricsWarning, StepInfo, read_metrics
from diffkit.training.metrics import JsonLines, TensorBoard

GOOD = [{"step": step, "seconds": 0.5 * step, "loss": 1 / step} for step in (2, 4, 6, 8)]
LINES = [json.dumps(record).encode() for record in GOOD]

DAMAGE = {
    "cut": (LINES[1][:20], "line 2: not JSON"),
    "two in one": (LINES[1] + LINES[2], "line 2: not JSON"),
    "empty": (b"", "line 2: not JSON"),
    "not UTF-8": (b'{"step": 4, "loss\xff": 1}', "line 2: not UTF-8"),
    "zeros": (b"\0" * 50, "line 2: not JSON"),
    "deep": (b"[" * 100_000, "line 2: not JSON"),
    "a list": (b"[4, 2]", "line 2: not an object"),
    "a number": (b"4", "line 2: not an object"),
    "no step": (b'{"seconds": 1.0, "loss": 2.0}', "line 2: no step"),
    "a step in words": (b'{"step": "4"}', "line 2: step is '4'"),
    "half a step": (b'{"step": 4.5}', "line 2: step is 4.5"),
    "a step that is NaN": (b'{"step": NaN}', "line 2: step is nan"),
    "no number of a step": (b'{"step": null}', "line 2: step is None"),
    "a step that is true": (b'{"step": true}', "line 2: step is True"),
    "before the first": (b'{"step": -4}', "line 2: step is -4"),
    "a loss in words": (b'{"step": 4, "loss": "low"}', "line 2: 'loss' is 'low', and no number"),
    "a loss of many": (b'{"step": 4, "loss": [1, 2]}', r"line 2: 'loss' is \[1, 2\], and no number"),
    "twice": (LINES[0], "line 2: step 2 is there already"),
}


def written(path, *lines, end=b"\n"):
    path.write_bytes(b"\n".join(lines) + end)
    return path


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_costs_itself_alone(tmp_path, name):
    line, said = DAMAGE[name]
    path = written(tmp_path / "metrics.jsonl", LINES[0], line, LINES[2], LINES[3])
    good = [GOOD[0], GOOD[2], GOOD[3]]
    with pytest.warns(MetricsWarning, match=rf"metrics.jsonl is damaged.* left out: {said}"):
        assert read_metrics(path) == good
    with pytest.warns(MetricsWarning):
        lines = JsonLines(path, step=6)
    lines.close()
    assert lines.records == good[:2] == read_metrics(path)


def test_many_damaged_lines_are_one_warning(tmp_path):
    path = written(tmp_path / "metrics.jsonl", *[b"{"] * 9, LINES[0])
    with pytest.warns(
        MetricsWarning, match=r"line 1: not JSON; .*line 5: not JSON; and 4 more\."
    ) as warned:
        assert read_metrics(path) == GOOD[:1]
    assert len(warned) == 1


def test_what_is_not_damaged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    assert read_metrics(written(path, end=b"")) == []
    # A process was killed: within a line, or before its end.
    assert read_metrics(written(path, LINES[0], LINES[1][:20], end=b"")) == GOOD[:1]
    assert read_metrics(written(path, LINES[0], LINES[1], end=b"")) == GOOD[:2]
    # An evaluation at the step of another record, and numbers that are not known.
    more = {"step": 2, "seconds": 1.0, "test_bits_per_dim": math.nan}
    text = json.dumps(more).replace("NaN", "null").encode()
    assert read_metrics(written(path, LINES[0], text))[1].keys() == more.keys()
    assert math.isnan(read_metrics(path)[1]["test_bits_per_dim"])
    # As older versions wrote it.
    assert math.isnan(read_metrics(written(path, b'{"step": 3, "loss": NaN}'))[0]["loss"])


def test_something_else_in_its_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    for read in (read_metrics, lambda path: JsonLines(path, step=0)):
        with pytest.raises(ValueError, match=r"metrics.jsonl must be a file of records, and is not"):
            read(path)
    path.rmdir()
    target = written(tmp_path / "target", *LINES)
    path.symlink_to(target)
    with pytest.raises(ValueError, match=r"metrics.jsonl is a symbolic link, and nothing is written"):
        JsonLines(path, step=0)
    assert target.read_bytes().splitlines() == LINES
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="tensorboard is a symbolic link, and nothing is written"):
        TensorBoard(tmp_path / "tensorboard", step=0)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
@pytest.mark.parametrize("make", [JsonLines, TensorBoard])
def test_a_full_disk_is_one_error(tmp_path, make):
    path = tmp_path / "place"
    hook = make(path, step=0)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, hook._file._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match=r"No space left on device: .*place") as error:
        hook(StepInfo(1, 2, 0.0, {"loss": 1.0}))
    assert error.value.errno == errno.ENOSPC
    hook.close()


def test_a_full_disk_stops_training(toy, toy_model, tmp_path, monkeypatch):
    def full(self, info):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(JsonLines, "__call__", full)
    config = dk.TrainConfig(steps=2, batch_size=4)
    with pytest.raises(OSError, match=r"No space left on device: 'metrics.jsonl'"):
        dk.fit(toy_model(), toy, config, directory=tmp_path, progress=False, check=False)
    assert not (tmp_path / "lock.json").exists()


CONFIG = dk.TrainConfig(steps=8, batch_size=4, steps_per_dispatch=2, decay="constant")


@pytest.fixture(scope="module")
def run(toy, toy_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    dk.fit(toy_model(), toy, CONFIG, directory=path, progress=False, check=False)
    return path


def fit(toy, toy_model, path, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return dk.fit(toy_model(), toy, config, directory=path, progress=False, check=False)


def test_the_records_after_a_damaged_line_are_kept(toy, toy_model, run, tmp_path):
    path = shutil.copytree(run, tmp_path / "run")
    lines = (path / "metrics.jsonl").read_bytes().splitlines()
    written(path / "metrics.jsonl", lines[0], lines[1][:9], *lines[2:])
    with pytest.warns(MetricsWarning, match="line 2: not JSON"):
        fitted = fit(toy, toy_model, path)
    assert [record["step"] for record in fitted.metrics] == [2, 6, 8]
    assert (path / "metrics.jsonl").read_bytes().splitlines() == [lines[0], *lines[2:]]


@pytest.mark.parametrize("left", ["metrics.jsonl", "tensorboard", "evaluation.json", "checkpoints"])
def test_a_run_without_its_configuration_is_refused(toy, toy_model, run, tmp_path, left):
    path = tmp_path / "run"
    path.mkdir()
    (run / "evaluation.json").write_text("{}")
    copy = shutil.copytree if (run / left).is_dir() else shutil.copy
    copy(run / left, path / left)
    before = sorted(path.rglob("*"))
    with pytest.raises(ValueError, match=rf"holds .*{left}.* and no config.yaml"):
        fit(toy, toy_model, path)
    assert sorted(path.rglob("*")) == before


def test_a_target_that_is_passed_is_refused(toy, toy_model, run):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"has 8 steps, more than train.steps=6: ask for at least 8"):
        fit(toy, toy_model, run, steps=6)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
