"""The ablations: what they vary, that every run composes, and that a sweep survives what may happen."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit import registry
from diffkit.cli import main
from diffkit.cli.launch import compose
from diffkit.configs import make

SCRIPTS = Path(__file__).parents[1] / "examples" / "ablations"
NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem != "common")

# What a sweep is shortened by where a test runs it for real.
SMALL = [
    "network=mlp",
    "network.width=8",
    "network.depth=1",
    "train.steps_per_dispatch=10",
    "train.batch_size=16",
    "train.checkpoint_every=50",
    "passes=1",
    "samples=0",
    "variance=false",
]


@pytest.fixture(scope="module")
def scripts():
    """The module of each script, and the one that they share; what they register is forgotten."""
    registry.available("preset")  # so that plugins are there before, and stay
    before = {kind: dict(parts) for kind, parts in registry._STATE.parts.items()}
    store = ConfigStore.get_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setattr(sys, "argv", ["diffkit"])
        modules = {name: importlib.import_module(name) for name in ("common", *NAMES)}
        yield modules
        for name in modules:
            del sys.modules[name]
    registry._STATE.parts.clear()
    registry._STATE.parts.update(before)
    ConfigStore.set_state(store)
    GlobalHydra.instance().clear()


def settings(scripts, name, scale, **given):
    ablation = scripts[name].ABLATION
    assert ablation.name == name
    return ablation.settings(scale, {name.replace("__", "."): v for name, v in given.items()})


@pytest.mark.parametrize("scale", ["tiny", pytest.param("paper", marks=pytest.mark.slow)])
def test_every_run_composes(scripts, scale):
    assert len(NAMES) == 6
    for name in NAMES:
        sweep = settings(scripts, name, scale)
        seeds = len(sweep["train.seed"].split(","))
        assert sweep["root"] == f"runs/ablations/{name}/{scale}"
        directories = scripts["common"].directories(sweep)
        assert len(set(directories)) == len(directories)

        one_seed = sweep | {"train.seed": "3", "data.path": "nowhere"}
        if scale == "tiny":
            del one_seed["data.path"]
        jobs = scripts["common"].jobs(one_seed)
        assert len(directories) == seeds * len(jobs) > seeds
        configs = [compose("train", job) for job in jobs]
        for job, config in zip(jobs, configs, strict=True):
            assert make(config["train"]).seed == 3
            chosen = dict(word.split("=", 1) for word in job)
            for kind in ("schedule", "time_sampler", "weighting", "parameterization"):
                if kind in chosen:
                    part = dk.get(kind, chosen[kind]).__qualname__
                    assert config[kind]["_target_"].endswith(f".{part}")
            if "network.depth" in chosen:
                assert config["network"]["depth"] == int(chosen["network.depth"])
            if scale == "paper":
                # github.com/google-research/vdm, configs/cifar10.py.
                assert config["train"]["steps"] == 10_000_000
                assert config["train"]["batch_size"] == 128
                assert config["network"]["width"] == 128
                assert name == "depth" or config["network"]["depth"] == 32
                assert config["data"]["_target_"] == "diffkit.data.cifar.Cifar10"
                assert config["data"]["path"] == "nowhere"
            else:
                assert config["train"]["steps"] <= 1000
                assert config["data"]["_target_"].endswith(".Digits")
        # What is varied is in the configuration: no two runs of one seed are the same.
        assert len({json.dumps(config, sort_keys=True) for config in configs}) == len(configs)


def test_what_is_varied(scripts):
    def values(name, key, scale="tiny"):
        jobs = scripts["common"].jobs(settings(scripts, name, scale))
        return {word.partition("=")[2] for job in jobs for word in job if word.startswith(f"{key}=")}

    for scale in ("tiny", "paper"):
        assert values("fourier_features", "network.fourier", scale) >= {"[]", "[6,7]"}
        assert len(values("fourier_features", "network.fourier", scale)) >= 4
        assert values("schedule", "schedule", scale) == {
            "linear_logsnr",
            "learned_linear",
            "learned_monotone",
            "cosine",
        }
        assert values("time_sampler", "time_sampler", scale) == {
            "uniform",
            "low_discrepancy",
            "adaptive",
        }
        times = {"10", "100", "250", "500", "1000", "null"}
        assert values("timesteps", "train.loss_steps", scale) == times
        (evaluated,) = values("timesteps", "evaluate_steps", scale)
        assert set(evaluated.strip("[]").split(",")) == times
        for key in ("parameterization", "weighting"):
            assert len(values("parameterization_weighting", key, scale)) >= 2
        assert len(values("depth", "network.depth", scale)) >= 3
        job = next(
            job
            for job in scripts["common"].jobs(settings(scripts, "schedule", scale))
            if "schedule=learned_monotone" in job
        )
        data = ["data.path=nowhere"] if scale == "paper" else []
        assert compose("train", [*job, *data])["schedule"]["minimise_variance"]


def test_settings_that_are_given_replace_ours(scripts):
    sweep = settings(scripts, "depth", "tiny", network__depth="range(1,4)", train__seed="7", passes="2")
    jobs = scripts["common"].jobs({**sweep, "hydra.sweep.dir": "x", "hydra/launcher": "joblib"})
    assert [[w for w in job if w.startswith(("network.depth=", "train.seed="))] for job in jobs] == [
        [f"network.depth={depth}", "train.seed=7"] for depth in (1, 2, 3)
    ]
    assert all("passes=2" in job and len({w.split("=")[0] for w in job}) == len(job) for job in jobs)
    # The seeds of one variant follow each other.
    assert list(settings(scripts, "schedule", "paper"))[-1] == "train.seed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "depth: it is a sweep: give --multirun"),
        (["train.seed=0"], "depth: it is a sweep: give --multirun"),
        (["--multirun", "scale=huge"], "scale must be one of tiny, paper, got 'huge'"),
        (
            ["--multirun", "launcher=pbs"],
            "launcher must be one of basic, joblib, submitit_local, slurm",
        ),
        (["--multirun", "scale=paper"], "data.path is missing"),
        (["--multirun", "train.seed=0,,1"], "train.seed=0,,1"),
        (["--multirun", "run=there"], "run=there is one directory: give root=DIR"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    scripts, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        scripts["common"].main(scripts["depth"].ABLATION, arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_and_configuration_are_shown(scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main, depth = scripts["common"].main, scripts["depth"].ABLATION
    main(depth, ["--multirun", "--help"])
    out = capsys.readouterr().out
    assert depth.question in out
    assert "scale=paper: 12 runs" in out
    main(depth, ["scale=paper", "data.path=nowhere", "--cfg=job"])
    assert re.search(r"  depth: 32\n", capsys.readouterr().out)
    main(depth, ["launcher=slurm", "hydra.launcher.partition=gpu", "--cfg=hydra"])
    out = capsys.readouterr().out
    assert "submitit_launcher.SlurmLauncher" in out
    for line in ("partition: gpu", "timeout_min: 1440", "gpus_per_node: 1", "mem_gb: 32"):
        assert line in out
    assert list(tmp_path.iterdir()) == []


def test_commands_on_the_page_compose(scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (SCRIPTS.parents[1] / "docs" / "ablations.md").read_text()
    lines = re.findall(r"^(?:[A-Z_]+=\S+ )?python examples/ablations/(\w+)\.py (.+)$", page, re.MULTILINE)
    assert len(lines) > 5
    for name, arguments in lines:
        words = shlex.split(arguments)
        scripts["common"].main(
            scripts[name].ABLATION, [*(w for w in words if w != "--multirun"), "--cfg=hydra"]
        )
        shown = capsys.readouterr().out
        for word in words:
            if word.startswith("hydra.launcher."):
                key, value = word.removeprefix("hydra.launcher.").split("=")
                assert f"{key}: {value}\n" in shown
    # Those of the table are all there are.
    assert set(re.findall(r"^\| `(\w+)\.py` \|", page, re.MULTILINE)) == set(NAMES)


@pytest.mark.slow
def test_variance_is_that_of_the_times_that_adapted(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(
        "diffkit.cli.commands._measure_variance", lambda *arguments: measured.extend(arguments)
    )
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    words = [word for word in SMALL if not word.startswith("variance=")]
    words += ["time_sampler=adaptive", "variance=true", "train.steps=20"]
    main(["train", f"run={tmp_path}", *words])
    (times,) = (part for part in measured if isinstance(part, dk.time_samplers.Adaptive))
    # 320 times fell into its 100 bins.
    assert (times.weight > 0).sum() > 90


def command(name, *arguments):
    return [sys.executable, str(SCRIPTS / f"{name}.py"), "--multirun", *SMALL, *arguments]


def evaluations(path):
    """When each finished run was evaluated, and the result."""
    found = sorted(path.glob("runs/ablations/*/tiny/*/evaluation.json"))
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


@pytest.mark.slow
def test_killed_and_started_again_in_parallel(tmp_path):
    words = command("time_sampler", "launcher=joblib", "train.steps=400")
    # A group of its own, so that the kill reaches the processes that train.
    process = subprocess.Popen(words, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 900
    while not evaluations(tmp_path):
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = evaluations(tmp_path)
    assert 0 < len(before) < 6

    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    after = evaluations(tmp_path)
    assert len(after) == 6
    # Finished runs were left alone.
    assert {file: after[file] for file in before} == before
    assert done.stdout.rstrip().endswith("6 of 6 runs are finished.")
    rows = re.findall(r"^│ (?:time_sampler=)?(\w+) +│ (\d) +│ (\d\.\d{4}) ", done.stdout, re.MULTILINE)
    assert {(name, seeds) for name, seeds, _ in rows} == {
        (name, "2") for name in ("low_discrepancy", "uniform", "adaptive")
    }
    for name, _, mean in rows:
        totals = [
            json.loads(content)["total_bits_per_dim"]
            for file, (_, content) in after.items()
            if f"time_sampler-{name}_" in file.parent.name
        ]
        assert float(mean) == pytest.approx(sum(totals) / 2, abs=1e-4)
    assert (tmp_path / "runs/ablations/time_sampler/tiny/report.md").exists()


@pytest.mark.slow
def test_jobs_of_submitit(tmp_path):
    words = command(
        "schedule",
        "launcher=submitit_local",
        "schedule=cosine",
        "train.steps=20",
    )
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs are finished." in done.stdout
    assert len(evaluations(tmp_path)) == 2
    # They ran as jobs of their own.
    jobs = list(tmp_path.glob("runs/ablations/schedule/tiny/.submitit/*/*_result.pkl"))
    assert len(jobs) == 2


@pytest.mark.slow
def test_what_a_cluster_is_asked_for(tmp_path):
    # In the place of Slurm's a command that refuses: what matters is what it was given.
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho no cluster >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    words = command("schedule", "launcher=slurm", "schedule=cosine", "hydra.launcher.partition=gpu")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 1
    assert "no cluster" in done.stderr
    assert "0 of 2 runs are finished; the same command goes on" in done.stdout
    (script,) = tmp_path.glob("runs/ablations/schedule/tiny/.submitit/*submission_file_*.sh")
    asked = set(re.findall(r"^#SBATCH --(\S+)$", script.read_text(), re.MULTILINE))
    assert {
        "partition=gpu",
        "time=1440",
        "gpus-per-node=1",
        "cpus-per-task=8",
        "mem=32GB",
        "array=0-1%2",
        "job-name=schedule",
    } <= asked


@pytest.mark.slow
def test_a_run_that_fails_does_not_take_the_others_with_it(tmp_path):
    # The second seed of three is none.
    words = command("schedule", "schedule=cosine,linear_logsnr", "train.steps=20", "train.seed=0,-1,1")
    for launcher in ("basic", "joblib"):
        done = subprocess.run(
            [*words, f"launcher={launcher}", f"root=runs/ablations/{launcher}/tiny"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 1
        assert "train.seed must be at least 0, got -1" in done.stderr
        assert "Traceback" not in done.stderr
        assert "4 of 6 runs are finished; the same command goes on with the others." in done.stdout
    assert len(evaluations(tmp_path)) == 8
