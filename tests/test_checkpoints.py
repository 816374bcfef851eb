"""Checkpoints are believed only when they are whole, and a save that fails leaves the ones before."""

import contextlib
import dataclasses
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import main
from diffkit.configs import config_of, write_config
from diffkit.presets import assemble, key_of
from diffkit.training import CheckpointError, Checkpoints, CheckpointWarning, TrainState, init_state
from diffkit.training import checkpoints as module
from diffkit.training.manifests import MANIFEST_FILE, _signed, files_of

MANY = int(os.environ.get("DIFFKIT_FLIPS", "1000"))
OLD = Path(__file__).parent / "fixtures" / "old_run" / "swirl"


@dataclass(frozen=True)
class Saved:
    """A run that was not trained: its directory, and the states of its checkpoints by step."""

    path: Path
    states: dict[int, TrainState]

    def copy(self, path):
        shutil.copytree(self.path, path, symlinks=True)
        return Saved(path, dict(self.states))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 4 and 8. Tests put back what they change."""
    path = tmp_path_factory.mktemp("saved") / "run"
    preset = dk.preset("vdm", network=("mlp", {"width": 8, "depth": 1}), schedule="linear_logsnr")
    data, settings = dk.data.Swirl(points=16), dk.TrainConfig(steps=8, batch_size=8)
    write_config(path, config_of(preset, data, settings))
    parts = assemble(preset, data, key=key_of(0))
    begun = init_state(parts.model, settings, parts.time_sampler, parts.optimiser)
    states = {step: moved(begun, step) for step in (4, 8)}
    checkpoints = Checkpoints(path / "checkpoints")
    for step, state in states.items():
        checkpoints.save(step, state, {"seconds": 0.5 * step})
    return Saved(path, states)


def moved(state, step):
    """Another state of the same structure."""
    numbers, rest = eqx.partition(state, eqx.is_inexact_array)
    state = eqx.combine(jax.tree.map(lambda a: a + 0.1 * step, numbers), rest)
    return dataclasses.replace(state, step=jnp.asarray(step, state.step.dtype))


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs if eqx.is_array(a))


def taken(saved, like=None):
    """The newest whole checkpoint of a run: its step, and whether it holds what was saved."""
    checkpoints = Checkpoints(saved.path / "checkpoints")
    step = checkpoints.latest_step()
    state, numbers = checkpoints.restore(step, like=like or saved.states[8])
    return step, same(state, saved.states[step]) and numbers == {"seconds": 0.5 * step}


def warned(saved):
    """The warning of a run whose newest checkpoint is damaged, while the one before it is used."""
    with pytest.warns(CheckpointWarning) as said:
        assert taken(saved) == (4, True)
    (text,) = [str(warning.message) for warning in said]
    assert "\n" not in text
    assert text.endswith("The one of step 4 is used.")
    return text


def damages(place, flips, cuts):
    """Random damages to a checkpoint: the file, and what it holds then."""
    files = [*files_of(place).values(), place / MANIFEST_FILE]
    files = [file for file in files if file.stat().st_size]
    sizes = [file.stat().st_size for file in files]
    rng = random.Random(0)
    for index in range(flips + cuts):
        # Some files are small, and all of them count.
        (file,) = rng.choices(files, sizes if index % 2 else None)
        content = bytearray(file.read_bytes())
        if index < flips:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        yield file, bytes(content)


@contextlib.contextmanager
def holding(file, content):
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize(
    ("flips", "cuts"), [(50, 10), pytest.param(MANY, MANY // 5, marks=pytest.mark.slow)]
)
def test_no_damage_goes_unnoticed(saved, flips, cuts):
    place = saved.path / "checkpoints" / "8"
    for file, content in damages(place, flips, cuts):
        with holding(file, content):
            assert f"8: {file.relative_to(place).as_posix()} is not as it was written." in warned(saved)
    assert taken(saved) == (8, True)


def fifo(place):
    os.mkfifo(place / "pipe")


def of_version(place, **changes):
    content = json.loads((place / MANIFEST_FILE).read_text())
    del content["digest"]
    (place / MANIFEST_FILE).write_text(_signed({**content, **changes}))


def replaced(place, kind):
    shutil.move(place, place.parent / "away")
    if kind == "link":
        place.symlink_to("away")
    elif kind == "file":
        place.write_text("")
    elif kind == "copy":
        shutil.copytree(place.parent / "4", place)
    else:
        place.mkdir()


def linked(place):
    file = place / "numbers" / "metadata"
    file.rename(place.parent / "away")
    file.symlink_to(place.parent / "away")


FAULTS = {
    "state/manifest.ocdbt is missing": lambda place: (place / "state/manifest.ocdbt").unlink(),
    "state/more was not written with it": lambda place: (place / "state/more").write_text(""),
    "state/more/ was not written with it": lambda place: (place / "state/more").mkdir(),
    "numbers/metadata is a symbolic link": linked,
    "numbers/metadata is not as it was written": lambda p: (p / "numbers/metadata").write_text("{"),
    "numbers/metadata is missing": lambda place: shutil.rmtree(place / "numbers"),
    "pipe is neither a file nor a directory": fifo,
    r"'a\x1b[2Jb' was not written with it": lambda place: (place / "a\x1b[2Jb").write_text(""),
    "manifest.json is missing": lambda place: (place / MANIFEST_FILE).unlink(),
    "manifest.json is not as it was written": lambda p: (p / MANIFEST_FILE).write_text("[" * 100_000),
    "manifest.json is of version 2, this diffkit reads 1": lambda place: of_version(place, version=2),
    "manifest.json has no files": lambda place: of_version(place, files=None),
    "manifest.json has no arrays": lambda place: of_version(place, arrays={"model": 1}),
    "manifest.json is that of step 4": lambda place: replaced(place, "copy"),
    "it is a symbolic link": lambda place: replaced(place, "link"),
    "it is not a directory": lambda place: replaced(place, "file"),
    ": manifest.json is missing": lambda place: replaced(place, "empty"),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_damaged_checkpoint_is_named_and_stays_until_it_is_written_again(saved, tmp_path, words):
    run = saved.copy(tmp_path / "run")
    FAULTS[words](run.path / "checkpoints" / "8")
    assert words in warned(run)
    assert (run.path / "checkpoints" / "8").exists()
    found = {finding.name: finding for finding in dk.verify_run(run.path)}
    assert words.removeprefix(": ") in found["checkpoints/8"].words
    assert [name for name, finding in found.items() if not finding.good] == ["checkpoints/8"]
    Checkpoints(run.path / "checkpoints").save(8, saved.states[8], {"seconds": 4.0})
    assert taken(run) == (8, True)
    assert all(finding.good for finding in dk.verify_run(run.path))


def test_arrays_are_compared_by_verify(saved, tmp_path):
    # Loading verifies every byte of the files; what comes of them was read back when it was written.
    run, name = saved.copy(tmp_path / "run"), "average.denoiser.network.blocks.dense1.bias"
    place = run.path / "checkpoints" / "8"
    of_version(place, arrays={**json.loads((place / MANIFEST_FILE).read_text())["arrays"], name: "0"})
    (found,) = (finding for finding in dk.verify_run(run.path) if not finding.good)
    assert (found.name, found.words) == ("checkpoints/8", f"the array {name} is not as it was written")


def test_without_a_whole_checkpoint_nothing_begins_anew(saved, tmp_path):
    run = saved.copy(tmp_path / "run")
    for step in (4, 8):
        (run.path / "checkpoints" / str(step) / "state" / "manifest.ocdbt").write_bytes(b"")
    said = (
        r"no checkpoint in .*run/checkpoints is whole: 8: state/manifest.ocdbt is not as it was "
        r"written; 4: state/manifest.ocdbt is not as it was written. Put one back"
    )
    with pytest.raises(CheckpointError, match=said):
        dk.load_run(run.path)
    with pytest.raises(CheckpointError, match=said):
        Checkpoints(run.path / "checkpoints").latest_step()
    with pytest.raises(CheckpointError, match=r"damaged checkpoint .*/4: state/manifest.ocdbt is not"):
        Checkpoints(run.path / "checkpoints").restore(4, like=saved.states[4])
    assert Checkpoints(run.path / "nothing").latest_step() is None


def test_training_goes_on_from_the_one_before(toy, toy_model, tmp_path):
    config = dk.TrainConfig(steps=6, batch_size=8, decay="constant", checkpoint_every=2)
    config = dataclasses.replace(config, warmup=1, steps_per_dispatch=2)
    options = {"progress": False, "check": False}
    whole = dk.fit(toy_model(), toy, config, directory=tmp_path / "whole", **options)
    shorter = dataclasses.replace(config, steps=4)
    cut = dk.fit(toy_model(), toy, shorter, directory=tmp_path / "cut", **options)
    assert not same(cut.state, whole.state)
    (tmp_path / "cut" / "checkpoints" / "4" / "numbers" / "metadata").write_text("")
    with pytest.warns(CheckpointWarning, match="The one of step 2 is used"):
        resumed = dk.fit(toy_model(), toy, config, directory=tmp_path / "cut", **options)
    assert same(resumed.state, whole.state)
    assert sorted(os.listdir(tmp_path / "cut" / "checkpoints")) == ["4", "6"]
    assert all(finding.good for finding in dk.verify_run(tmp_path / "cut"))
    losses = [[record["loss"] for record in run.metrics] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_a_checkpoint_that_a_training_removes_meanwhile_is_not_damaged(saved, tmp_path, monkeypatch):
    run = saved.copy(tmp_path / "run")
    read = module.read_checkpoint

    def removed(place):
        if place.name == "8":
            shutil.rmtree(place)
            shutil.copytree(place.parent / "4", place.parent / "9")
            of_version(place.parent / "9", step=9)
        return read(place)

    monkeypatch.setattr(module, "read_checkpoint", removed)
    assert Checkpoints(run.path / "checkpoints").latest_step() == 9


def test_the_newest_whole_ones_are_kept(saved, tmp_path):
    run = saved.copy(tmp_path / "run")
    place, state = run.path / "checkpoints", saved.states[8]
    (place / "8" / MANIFEST_FILE).unlink()
    for leftover in (".saving-9", ".removed-3", "7.orbax-checkpoint-tmp-0"):
        (place / leftover / "state").mkdir(parents=True)
    (place / ".saving-1").symlink_to(saved.path)
    checkpoints = Checkpoints(place)
    for step, kept in ((12, ["12", "4", "8"]), (16, ["12", "16", "8"]), (20, ["16", "20", "8"])):
        checkpoints.save(step, state, {"seconds": 1.0})
        assert sorted(os.listdir(place)) == kept
    assert saved.path.exists()
    # One that is there already is not written again.
    before = (place / "20" / MANIFEST_FILE).stat()
    checkpoints.save(20, saved.states[4], {"seconds": 2.0})
    assert (place / "20" / MANIFEST_FILE).stat() == before


@pytest.mark.parametrize("name", ["a b,c=d", 'it\'s "so" [1] {x} (*) 100%?#&;', "фото\n", "x" * 200])
def test_a_run_may_have_any_name(saved, tmp_path, name):
    run = saved.copy(tmp_path / name / "run")
    Checkpoints(run.path / "checkpoints").save(12, saved.states[8], {"seconds": 6.0})
    run.states[12] = run.states[8]
    assert taken(run) == (12, True)


class Killed(BaseException):
    """In place of SIGKILL: nothing is put in order after it."""


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_save_may_be_cut_short_at_any_moment(saved, tmp_path, monkeypatch, every):
    """Before each operation on files; then what is there is whole, and the next save succeeds."""
    moments = 0
    for moment in range(0, 1000, every):
        run = saved.copy(tmp_path / str(moment))
        place = run.path / "checkpoints"
        left = moment

        def cut(operation):
            def done(*arguments, **options):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return operation(*arguments, **options)

            return done

        killed = False
        with monkeypatch.context() as patch:
            for owner, names in (
                (Path, ("mkdir", "rename", "write_text", "unlink")),
                (module.shutil, ("rmtree",)),
                (module, ("_sync",)),
            ):
                for name in names:
                    patch.setattr(owner, name, cut(getattr(owner, name)))
            try:
                Checkpoints(place).save(12, saved.states[8], {"seconds": 4.0})
            except Killed:
                killed = True
        moments += killed
        steps = {int(name) for name in os.listdir(place) if name.isdecimal()}
        assert 8 in steps
        assert steps <= {4, 8, 12}
        checkpoints = Checkpoints(place)
        assert checkpoints.latest_step() == max(steps)
        checkpoints.save(16, saved.states[8], {"seconds": 4.0})
        assert sorted(map(int, os.listdir(place))) == [max(steps), 16]
        if not killed:
            break
    assert moments * every > 20


@contextlib.contextmanager
def small_files(size):
    """No file may be larger: a stand-in for a full disk that any process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def disk(tmp_path):
    """A function that makes a directory a disk of its own, by the options of `mount`."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip("this user may not mount a disk")
        return place

    yield mount
    while os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


def refused(checkpoints, saved, step, why, capfd):
    """A save fails by one error, and leaves neither threads, output nor files."""
    before, place = set(threading.enumerate()), checkpoints._directory
    there = sorted(os.listdir(place)) if place.exists() else None
    with pytest.raises(CheckpointError) as error:
        checkpoints.save(step, saved.states[8], {"seconds": 4.0})
    assert "\n" not in str(error.value)
    assert f"cannot save the checkpoint of step {step} in {place}: {why}" in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert set(threading.enumerate()) <= before
    assert (sorted(os.listdir(place)) if place.exists() else None) == there
    return str(error.value)


def test_a_file_that_cannot_grow_stops_the_save(saved, tmp_path, capfd):
    run = saved.copy(tmp_path / "run")
    checkpoints = Checkpoints(run.path / "checkpoints")
    for size in (0, 1000, 4000):
        with small_files(size):
            refused(checkpoints, saved, 12, "File too large", capfd)
    assert taken(run) == (8, True)
    assert checkpoints.latest_step() == 8
    with small_files(0):
        said = refused(checkpoints, saved, 12, "File too large", capfd)
    assert said.endswith("That of step 8 is whole: the same command goes on once this is mended.")
    checkpoints.save(12, saved.states[8], {"seconds": 4.0})
    assert checkpoints.latest_step() == 12


@pytest.mark.parametrize("size", ["0", "20k", "60k"])
def test_a_full_disk_stops_the_save(saved, disk, capfd, size):
    place = disk("size=10m")
    run = saved.copy(place / "run")
    used = int(subprocess.check_output(["du", "-sk", run.path]).split()[0])
    more = int(size.removesuffix("k"))
    subprocess.run(["mount", "-o", f"remount,size={used + 8 + more}k", place], check=True)
    with (place / "filler").open("wb") as filler, contextlib.suppress(OSError):
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize - more * 1024
        filler.write(bytes(max(free, 0)))
    checkpoints = Checkpoints(run.path / "checkpoints")
    refused(checkpoints, saved, 12, "No space left on device", capfd)
    assert taken(run) == (8, True)
    subprocess.run(["mount", "-o", "remount,size=10m", place], check=True)
    checkpoints.save(12, saved.states[8], {"seconds": 4.0})
    assert checkpoints.latest_step() == 12


@pytest.mark.slow
def test_a_full_disk_stops_training_which_goes_on_once_there_is_space(disk, commands, capfd):
    place, hook = disk("size=300k"), sys.unraisablehook
    words = ["train", "data=swirl", "data.points=64", "network=mlp", "network.width=32", "network.depth=1"]
    words += ["schedule=learned_linear", "train.steps=80", "train.steps_per_dispatch=10", "samples=0"]
    words += ["train.checkpoint_every=20", "train.batch_size=8", "passes=1", f"run={place / 'run'}"]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "cannot save the checkpoint of step 40" in line
    assert "No space left on device. That of step 20 is whole: the same command goes on" in line
    assert sys.unraisablehook is not hook  # writes that end later stay without a word
    subprocess.run(["mount", "-o", "remount,size=10m", place], check=True)
    main(words)
    assert (place / "run" / "evaluation.json").exists()
    records = map(json.loads, (place / "run" / "metrics.jsonl").read_text().splitlines())
    assert [record["step"] for record in records] == [*range(10, 81, 10)]
    assert all(finding.good for finding in dk.verify_run(place / "run"))


def test_a_disk_that_may_not_be_written_stops_the_save(saved, disk, capfd):
    place = disk("size=10m")
    run = saved.copy(place / "run")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    refused(Checkpoints(run.path / "checkpoints"), saved, 12, "Read-only file system", capfd)
    assert taken(run) == (8, True)


def test_a_directory_that_vanishes_stops_the_save(saved, tmp_path, capfd):
    run = saved.copy(tmp_path / "run")
    checkpoints = Checkpoints(run.path / "checkpoints")
    assert checkpoints.latest_step() == 8
    shutil.rmtree(run.path)
    refused(checkpoints, saved, 12, "No such file or directory", capfd)
    assert not run.path.exists()  # one without its configuration would be no run


def test_nothing_is_written_through_a_link(saved, tmp_path, capfd):
    run = saved.copy(tmp_path / "run")
    shutil.move(run.path / "checkpoints", tmp_path / "away")
    (run.path / "checkpoints").symlink_to(tmp_path / "away")
    refused(Checkpoints(run.path / "checkpoints"), saved, 12, "it is a symbolic link", capfd)


def test_a_changed_configuration_is_refused(saved, tmp_path):
    run = saved.copy(tmp_path / "run")
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    for path, value, fine in (
        ("train.steps", 100, True),
        ("data.points", 32, True),  # which may move
        ("schedule.logsnr_min", -4.0, False),
        ("train.seed", 1, False),
    ):
        kind, option = path.split(".")
        changed = {**config, kind: {**config[kind], option: value}}
        (run.path / "config.yaml").write_text(yaml.safe_dump(changed))
        (finding,) = [f for f in dk.verify_run(run.path) if f.name == "config.yaml"]
        assert finding.good == fine
        if fine:
            assert dk.load_run(run.path).step == 8
            continue
        with pytest.raises(
            CheckpointError, match=rf"config.yaml was changed after .* step 8 .*: {path} \("
        ):
            dk.load_run(run.path)
        assert f"was changed after the newest checkpoint was written: {path} (" in finding.words


def test_checkpoints_of_an_older_version_are_read_unverified(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD, run)
    place = run / "checkpoints" / "20"
    assert dk.load_run(run).step == 20
    (finding,) = [f for f in dk.verify_run(run) if f.name == "checkpoints/20"]
    assert finding.good
    assert "an older version wrote no manifest, so they are not verified" in finding.words
    for file, content, words in (
        ("numbers/metadata", b"{", "numbers/metadata is not JSON"),
        ("numbers/metadata", b'{"seconds": "x"}', "numbers/metadata must hold numbers by name"),
        ("state/manifest.ocdbt", b"", "state cannot be read: "),
        ("state/_METADATA", b"{", "state cannot be read: "),
    ):
        with holding(place / file, content):
            with pytest.raises(CheckpointError, match=f"is whole: 20: {words}") as error:
                dk.load_run(run)
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 600
    (place / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(CheckpointError, match=r"20: manifest.json is missing"):
        dk.load_run(run)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Work in an empty directory; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    state = ConfigStore.get_state()
    yield
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


def run_command(capfd, *words):
    """The exit status of a command, its output and its messages."""
    status = 0
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        # As without pytest, which collects them.
        warnings.showwarning = lambda *about: sys.stderr.write(warnings.formatwarning(*about[:4]))
        try:
            main(words)
        except SystemExit as stopped:
            status = stopped.code
    return status, *capfd.readouterr()


def test_on_the_command_line(saved, tmp_path, commands, capfd):
    saved.copy(tmp_path / "run")
    status, out, _ = run_command(capfd, "verify", "run")
    assert status == 0
    assert re.search(r"config.yaml +│ good +│ readable, its parts are known", out)
    assert re.search(r"checkpoints/8 +│ good +│ \d+ arrays, as written", out)
    assert out.splitlines()[-1] == "run is whole"

    Path("run/checkpoints/8/state/manifest.ocdbt").unlink()
    Path("run/metrics.jsonl").write_text('{"step": 4}\n{"st\n{"step": 8}\n')
    Path("run/evaluation.json").write_text("{")
    status, out, said = run_command(capfd, "verify", "run")
    assert (status, said) == (1, "")
    assert re.search(r"checkpoints/8 +│ WRONG +│ state/manifest.ocdbt is missing", out)
    assert re.search(r"metrics.jsonl +│ WRONG +│ line 2 is not a record", out)
    assert re.search(r"evaluation.json +│ WRONG", out)
    assert out.splitlines()[-1] == "3 of 5 are wrong"

    # Others go on with the one before, and say so in a line.
    Path("run/metrics.jsonl").unlink()
    status, _, said = run_command(capfd, "convert", "run", "out", "process=variance_exploding")
    assert status == 0
    assert said == (
        "diffkit convert: damaged checkpoint run/checkpoints/8: state/manifest.ocdbt is missing. "
        "The one of step 4 is used.\n"
    )
    assert run_command(capfd, "verify", "out")[0] == 0
    assert os.listdir("out/checkpoints") == ["4"]
    shutil.rmtree("run/checkpoints/4/state")
    status, _, said = run_command(capfd, "convert", "run", "more", "process=variance_exploding")
    assert status == 1
    assert said.startswith("diffkit convert: no checkpoint in run/checkpoints is whole: 8: ")
    assert said.count("\n") == 1
    assert not Path("more").exists()
    assert "path must be a run directory" in run_command(capfd, "verify", "nowhere")[2]
    assert "RUN is missing" in run_command(capfd, "verify")[2]


def test_the_rest_of_a_run_is_verified(saved, tmp_path):
    run = saved.copy(tmp_path / "run").path
    bounds = {f"{name}_bits_per_dim": 1.0 for name in ("prior", "reconstruction", "diffusion", "total")}

    def words(name):
        (finding,) = [finding for finding in dk.verify_run(run) if finding.name == name]
        return finding.good, finding.words

    for name, content, good, said in (
        ("metrics.jsonl", '{"step": 4}\n{"step": 8}\n', True, "2 records"),
        ("metrics.jsonl", '{"step": 4}\n{"st', True, "1 records; the last line is cut short"),
        ("metrics.jsonl", '{"step": 8}\n{"step": 4}\n', False, "its steps are not in order"),
        ("metrics.jsonl", '[1]\n{"step": 4}\n', False, "line 1 is not a record"),
        ("evaluation.json", json.dumps(bounds), True, "1.0000 bits/dim"),
        ("evaluation.json", json.dumps({**bounds, "total_bits_per_dim": None}), False, "total_bits"),
        ("evaluation.json", "[]", False, "must hold an object"),
        ("variance_cosine.json", '{"variance": 1}', True, "1 entries"),
        ("variance.json", "{", False, "Expecting"),
        ("config.yaml", "", False, "config.yaml is cut short"),
        ("config.yaml", "train: [\n", False, "config.yaml is damaged"),
    ):
        (run / name).write_text(content)
        found, text = words(name)
        assert found == good, text
        assert said in text
    (run / "config.yaml").unlink()
    assert words("config.yaml") == (
        False,
        "is missing; the manifests of the checkpoints have it, under config",
    )
    broken = dataclasses.replace(
        saved.states[8], average=jax.tree.map(lambda a: a * np.nan, saved.states[8].average)
    )
    Checkpoints(run / "checkpoints").save(9, broken, {"seconds": 1.0})
    assert not words("checkpoints/9")[0]
    assert "has values that are not finite" in words("checkpoints/9")[1]
