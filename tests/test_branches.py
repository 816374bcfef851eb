"""Runs that begin from a checkpoint of another run, and the words for a run and a checkpoint."""

import re
import shutil

import equinox as eqx
import jax
import numpy as np
import pytest
import yaml

import diffkit as dk
from diffkit.training.branches import find_run, origin, saved_steps, split_step

SMALL = {
    "steps": 8,
    "batch_size": 16,
    "steps_per_dispatch": 4,
    "warmup": 2,
    "decay": "constant",
    "checkpoint_every": 4,
}


def preset(train=None, **parts):
    parts = {"network": ("mlp", {"width": 8, "depth": 1}), "schedule": "linear_logsnr"} | parts
    return dk.preset("vdm", **parts, train={**SMALL, **(train or {})})


def fit(toy, directory, train=None, *, start_from=None, **parts):
    options = {"directory": directory, "start_from": start_from, "progress": False, "check": False}
    return dk.fit(preset(train, **parts), toy, **options)


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def assert_same(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


def contents(path):
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def source(toy, tmp_path_factory):
    """A run of 8 steps with checkpoints of 4 and 8, and its result."""
    path = tmp_path_factory.mktemp("runs") / "source"
    return path, fit(toy, path)


def config_of(path):
    return yaml.safe_load((path / "config.yaml").read_text())


def test_a_branch_with_the_same_settings_is_the_run_itself(source, toy, tmp_path):
    path, whole = source
    before = contents(path)
    new = tmp_path / "new"
    branch = fit(toy, new, start_from=f"{path}@4")
    assert_same(branch.state, whole.state)
    assert config_of(new)["from"] == f"{path}@4"
    assert saved_steps(new) == [4, 8]
    assert [record["step"] for record in branch.metrics] == [8]
    assert contents(path) == before
    assert_same(dk.load_run(new, step=4).model, dk.load_run(path, step=4).model)


def test_a_branch_takes_other_settings_and_goes_on_as_a_run_does(source, toy, tmp_path):
    path, _ = source
    new, other = tmp_path / "new", {"steps": 12, "learning_rate": 1e-2, "seed": 3}
    branch = fit(toy, new, other, start_from=path)
    assert config_of(new)["from"] == f"{path}@8"
    assert int(branch.state.step) == 12
    again = fit(toy, new, other, start_from=path)
    assert_same(again.state, branch.state)
    # Without it, or from elsewhere, it is another run.
    with pytest.raises(ValueError, match=r"from \('.*source@8' there, None now\)"):
        fit(toy, new, other)
    with pytest.raises(ValueError, match=r"from \('.*source@8' there, '.*source@4' now\)"):
        fit(toy, new, other, start_from=f"{path}@4")
    # Once begun, it keeps to that checkpoint and needs its source no more.
    gone = tmp_path / "gone"
    shutil.copytree(new, gone)
    changed(gone, **{"from": "/nowhere@8"})
    assert origin("/nowhere", gone) == "/nowhere@8"


def test_another_optimiser_and_adaptive_times_start_anew(source, toy, tmp_path):
    path, whole = source
    new = tmp_path / "new"
    fitted = fit(toy, new, {"steps": 12}, optimiser="adam", time_sampler="adaptive", start_from=path)
    assert int(fitted.state.step) == 12
    assert (fitted.state.time_sampler.weight > 0).any()
    assert_same(dk.load_run(new, step=8).model, whole.model)


def changed(path, **entries):
    config = config_of(path)
    (path / "config.yaml").write_text(yaml.safe_dump({**config, **entries}))


def test_what_cannot_be_gone_on_with_is_refused_and_nothing_is_written(source, toy, tmp_path):
    path, _ = source
    new = tmp_path / "new"

    def refused(start_from, match, *, error=ValueError, steps=12, **parts):
        with pytest.raises(error, match=match):
            fit(toy, new, {"steps": steps}, start_from=start_from, **parts)
        assert not new.exists()

    wide = ("mlp", {"width": 16, "depth": 1})
    refused(path, r"of another model: network.width \(8 there, 16 now\)", network=wide)
    refused(path, r"of another model: schedule", schedule="cosine")
    refused(path, "train.steps must be more than the 8 steps", steps=8)
    refused(f"{path}@5", r"no checkpoint of step 5; it has 4, 8\.", error=FileNotFoundError)
    refused(tmp_path / "nowhere", "there is nothing at .*nowhere", error=FileNotFoundError)
    refused(new, "there are no checkpoints at .*new", error=FileNotFoundError)
    with pytest.raises(ValueError, match="start_from needs a directory"):
        fit(toy, None, start_from=path)
    converted, bare = tmp_path / "converted", tmp_path / "bare"
    for other in (converted, bare):
        shutil.copytree(path, other)
    changed(converted, transport={"process": None, "schedule": None})
    refused(converted, "`diffkit convert` made this run")
    (bare / "config.yaml").unlink()
    refused(bare, "has no config.yaml, so its model is not known")


def test_a_run_is_loaded_at_any_of_its_checkpoints(source):
    path, whole = source
    assert dk.load_run(path).step == 8
    old = dk.load_run(path, step=4)
    assert old.step == dk.load_run(f"{path}@4").step == 4
    assert_same(dk.load_run(f"{path}/@8").model, whole.model)
    assert not np.array_equal(arrays(old.model)[0], arrays(whole.model)[0])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 6; it has 4, 8\."):
        dk.load_run(path, step=6)
    with pytest.raises(ValueError, match="is not the step of"):
        dk.load_run(f"{path}@4", step=8)


def test_what_is_no_run_is_named(source, tmp_path, monkeypatch):
    path, _ = source
    monkeypatch.chdir(path.parent)
    for where, said in (
        ("nowhere", "there is nothing at nowhere"),
        ("source/config.yaml", "source/config.yaml is in the run source: give source"),
        ("source/checkpoints", "source/checkpoints is in the run source: give source"),
        ("source/checkpoints/4", "give source or source@4"),
        (path / "checkpoints/4/", f"give {path} or {path}@4"),
        ("source/nowhere", "there is nothing at source/nowhere"),
        (path.parent, "is a directory of runs: give one of them, such as "),
    ):
        with pytest.raises(FileNotFoundError, match=f"path must be a run directory, .*{re.escape(said)}"):
            find_run(where)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text("")
    (tmp_path / "other/figures").mkdir(parents=True)
    for where, said in (
        ("empty", "empty is an empty directory"),
        ("empty/", "empty is an empty directory"),
        ("file", "file is a file"),
        ("link", "link is a broken link"),
        ("begun", "at begun: it was stopped before its first one"),
        ("other", "there are no checkpoints at other"),
        ("empty@3", "empty is an empty directory"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"path must be a run directory, .*{said}\.$"):
            find_run(where)


def test_run_at_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b@2").mkdir()
    cases = {
        "a@12": ("a", 12),
        "a": ("a", None),
        "a@": ("a@", None),
        "a@b": ("a@b", None),
        "a@1@2": ("a@1", 2),
        "@3": ("@3", None),
        "b@2": ("b@2", None),
        "b@2@7": ("b@2", 7),
    }
    for run, (path, step) in cases.items():
        assert (str(split_step(run)[0]), split_step(run)[1]) == (path, step)
