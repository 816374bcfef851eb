"""The command line, as a user types it."""

import json
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import main

SMALL = [
    "network=mlp",
    "network.width=8",
    "network.depth=1",
    "schedule=learned_linear",
    "train.steps=6",
    "train.steps_per_dispatch=3",
    "train.batch_size=8",
    "passes=1",
    "samples=4",
    "sample_steps=3",
]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    state = ConfigStore.get_state()
    yield tmp_path
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


def fails(arguments, capfd):
    """The command's message: it must fail without a stack trace."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    message = capfd.readouterr().err
    assert "Traceback" not in message
    return message


def test_train_evaluate_sample(workplace, capfd):
    main(["train", "preset=vdm", "data=digits", "run=r", *SMALL])
    out = capfd.readouterr().out
    assert re.fullmatch(r"test bits/dim: \d+\.\d\d \+- \d+\.\d\d", out.strip().splitlines()[-1])
    for known in ("uniform", "4.0875", "independent", "2.3643", "lzma"):
        assert known in out
    run = workplace / "r"
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints",
        "tensorboard",
    } <= names
    for picture in ("samples.png", "curves.png", "schedule.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert np.load(run / "samples.npy").shape == (4, 1, 8, 8)

    # The run read again gives the number that was written.
    loaded = dk.load_run(run)
    assert loaded.step == 6
    assert loaded.data().levels == 17
    stored = json.loads((run / "evaluation.json").read_text())
    again = dk.evaluate(loaded.model, loaded.data().test, key=jax.random.key(0), passes=1)
    assert again.total[0] == pytest.approx(stored["total_bits_per_dim"], rel=1e-5)

    main(["evaluate", "r", "steps=10", "passes=1"])
    out = capfd.readouterr().out
    assert "T = 10" in out
    assert re.search(r"test bits/dim: \d+\.\d{4} \+- \d", out)
    main(["sample", "r", "sampler=ddim", "sampler.eta=0.5", "steps=3", "count=5"])
    assert capfd.readouterr().out.strip() == "r/samples_ddim_3.png"
    assert np.load(run / "samples_ddim_3.npy").shape == (5, 1, 8, 8)

    # Named after the choice, not after the class, of which several samplers may be cases.
    main(["sample", "r", "sampler=deis", "steps=2", "count=2"])
    assert capfd.readouterr().out.strip() == "r/samples_deis_2.png"

    # Other choices in the same place are refused, and nothing is changed; the same ones go on.
    config = (run / "config.yaml").read_text()
    message = fails(["train", "preset=vdm", "run=r", *SMALL, "train.seed=1"], capfd)
    assert "holds a run with other choices: train.seed (0 there, 1 now)" in message
    assert (run / "config.yaml").read_text() == config
    records = (run / "metrics.jsonl").read_text()
    main(["train", "preset=vdm", "run=r", *SMALL, "samples=0"])
    assert "step" not in capfd.readouterr().out.split("test,")[0].replace("run: r", "")
    assert (run / "metrics.jsonl").read_text() == records


def test_choices_and_multirun(workplace, capfd):
    main(
        [
            "train",
            "--multirun",
            "schedule=cosine,linear_logsnr",
            "parameterization=v",
            *(argument for argument in SMALL if not argument.startswith("schedule=")),
        ]
    )
    runs = sorted(path.parent for path in workplace.glob("runs/*/config.yaml"))
    assert len(runs) == 2
    kinds = {type(dk.load_run(path).model.schedule) for path in runs}
    assert kinds == {dk.Cosine, dk.LinearLogSNR}
    assert all(isinstance(dk.load_run(p).model.denoiser.parameterization, dk.V) for p in runs)
    assert capfd.readouterr().out.count("test bits/dim:") == 2


def test_naming_the_presets_own_part_changes_nothing(workplace, capfd):
    # `--cfg job` prints the composed configuration.
    for arguments in (["network=vdm_unet"], []):
        main(["train", "preset=vdm", *arguments, "--cfg=job"])
    one, other = capfd.readouterr().out.split("data:\n")[1:3]
    assert re.search(r"  width: 32\n", one) or re.search(r"  width: 32\n", other)
    main(["train", "preset=vdm", "network=vdm_unet", "--cfg=job", "--package=network"])
    assert "width: 32" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "schedule=cosin"], "Could not find 'schedule/cosin'"),
        (["train", "train.stpes=5"], "Could not override 'train.stpes'"),
        (["train", "network=mlp", "network.widht=5"], "Could not override 'network.widht'"),
        (["train", "train.steps=many"], "could not be converted to Integer"),
        (["train", "train.steps=0"], "train.steps must be at least 1, got 0"),
        (["train", "decoder=gaussian"], "Choose decoder=discretized for integer levels"),
        (["train", "data=idx", "data.path=nowhere"], "nowhere"),
        (["evaluate"], "RUN is missing"),
        (["evaluate", "nowhere"], "path must be a run directory"),
        (["sample", "nowhere", "steps=0"], "steps must be at least 1, got 0"),
        (["trian"], "there is no command 'trian'"),
        (["train", "run=${nope}"], "nope"),
        (["new-plugin", "fine", "--path", "/proc/nope/fine"], "cannot be written"),
    ],
)
def test_mistakes_are_named_without_a_stack_trace(workplace, capfd, arguments, message):
    assert message in fails(arguments, capfd)
    assert not (workplace / "runs").exists() or not list(workplace.glob("runs/*/checkpoints"))


@pytest.mark.parametrize(
    "rest",
    [["steps=3", "--cfg=job"], ["--cfg=job", "steps=3"], ["--cfg", "job", "steps=3"]],
)
def test_run_may_stand_beside_flags_in_any_order(capfd, rest):
    main(["evaluate", "runs/a b", *rest])
    out = capfd.readouterr().out
    assert "run: runs/a b" in out
    assert "steps: 3" in out


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_lists_the_choices_of_every_kind(capfd, arguments):
    main(arguments)
    out = capfd.readouterr().out
    for kind in dk.registry.KINDS:
        assert kind in out
        for name in dk.available(kind):
            assert name in out


def test_plugins_lists_what_is_installed(capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["plugins"])
    assert stopped.value.code == 0
    out = capfd.readouterr().out
    assert "learned_monotone" in out
    assert "ok" in out


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    # Bitwise the same parameters as a run that was never stopped, the order of the data included.
    arguments = ["train", "preset=vdm", "data=swirl", *SMALL, "samples=0", "train.steps=400"]
    arguments += ["train.checkpoint_every=30", "train.steps_per_dispatch=10"]
    command = [sys.executable, "-m", "diffkit.cli", *arguments]
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, f"run={killed}"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(killed.glob("checkpoints/[0-9]*"))) < 2:
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (killed, tmp_path / "whole"):
        subprocess.run([*command, f"run={path}"], check=True, stdout=subprocess.DEVNULL)
    steps = [
        json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(10, 401, 10))
    one, other = (dk.load_run(path) for path in (killed, tmp_path / "whole"))
    assert one.step == other.step == 400
    for a, b in zip(jax.tree.leaves(one.model), jax.tree.leaves(other.model), strict=True):
        np.testing.assert_array_equal(a, b)
