r"""Run directories of an older version: read, evaluated and continued.

Those in fixtures/old_run are from commit 49f6b77, without pictures and logs, by the commands

    diffkit train preset=vdm data=swirl data.points=64 SMALL train.steps=20 train.timesteps=10 run=swirl
    diffkit train FLOATS SMALL train.steps=20 run=floats

with SMALL and FLOATS as below. `verified`, of commit a0602df, has manifests and the record of its data:

    diffkit train preset=vdm data=swirl data.points=64 SMALL train.steps=20 train.checkpoint_every=10 \
        run=verified

They printed the numbers here: for these, for `diffkit evaluate`, for `floats` continued to train.steps=40
and `verified` to 30.
"""

import re
import shutil
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import main
from diffkit.configs import make, read_config
from diffkit.runs import assembled
from diffkit.training import CheckpointError, Checkpoints, init_state

SMALL = (
    *("network=mlp", "network.width=8", "network.depth=1", "train.batch_size=16"),
    *("train.steps_per_dispatch=10", "train.checkpoint_every=0", "train.warmup=2"),
    *("samples=0", "passes=4"),
)
FLOATS = (
    *("preset=vdm", "schedule=linear_logsnr", "decoder=gaussian"),
    *("data=array", "data.path=points.npy"),
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A copy of the runs, as the working directory."""
    shutil.copytree(Path(__file__).parent / "fixtures" / "old_run", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    state = ConfigStore.get_state()
    yield
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


def bits(capfd):
    """The last line: mean and standard error."""
    last = capfd.readouterr().out.strip().splitlines()[-1]
    return [float(number) for number in re.findall(r"-?\d+\.\d+", last)]


def test_an_old_run_with_a_learned_schedule(capfd):
    words = ["train", "preset=vdm", "data=swirl", "data.points=64", *SMALL, "run=swirl"]
    main([*words, "train.steps=20", "train.loss_steps=10"])
    assert bits(capfd) == [25.88, 1.70]  # which is finished
    main(["evaluate", "swirl", "steps=10", "passes=4"])
    assert bits(capfd) == pytest.approx([25.8792, 1.6989], rel=1e-4)
    # The whole state has today's structure.
    config = read_config(Path("swirl"))
    made = assembled(config)
    state = init_state(made.model, make(config["train"]), made.time_sampler, made.optimiser)
    checkpoints = Checkpoints(Path("swirl/checkpoints"))
    assert checkpoints.restore(20, like=state)[0].step == 20
    checkpoints.close()


def test_a_run_with_manifests(capfd):
    # Two checkpoints, whose manifests and files are as they were written.
    names = {finding.name for finding in dk.verify_run("verified") if "as written" in finding.words}
    assert names == {"checkpoints/10", "checkpoints/20"}
    assert all(finding.good for finding in dk.verify_run("verified"))
    words = ["train", "preset=vdm", "data=swirl", "data.points=64", *SMALL, "train.checkpoint_every=10"]
    main([*words, "train.steps=20", "run=verified"])
    assert bits(capfd) == [9.86, 0.62]  # which is finished
    main(["evaluate", "verified@20", "steps=10", "passes=4"])
    assert bits(capfd) == pytest.approx([26.0025, 1.7217], rel=1e-4)
    main([*words, "train.steps=30", "run=verified"])
    assert bits(capfd) == pytest.approx([9.85, 0.62], abs=0.011)
    assert all(finding.good for finding in dk.verify_run("verified"))


def test_an_old_run_on_floats_goes_on_without_standardising(capfd):
    assert dk.load_run("floats").model.decoder == dk.GaussianDecoder(0.0, 1.0)
    words = ["train", *FLOATS, *SMALL, "train.steps=40", "run=floats"]
    with pytest.raises(SystemExit):
        main(words)
    assert (
        "decoder.mean (0.0 there, None now); decoder.std (1.0 there, None now). Choose as there to "
        "continue it" in capfd.readouterr().err
    )
    main([*words, "decoder.mean=0", "decoder.std=1"])
    assert bits(capfd) == pytest.approx([125.84, 44.35], abs=0.011)


def test_a_run_whose_parts_have_changed_says_what_to_do():
    file = Path("floats/config.yaml")
    file.write_text(file.read_text().replace("width: 8", "width: 9"))
    with pytest.raises(CheckpointError, match=r"shape \(8.*expected \(9.*another version wrote it"):
        dk.load_run("floats")


def test_an_old_run_goes_on_training_its_endpoints():
    file = Path("swirl/config.yaml")
    assert read_config(Path("swirl"))["train"]["learn_endpoints"] is None  # as good under the bound
    file.write_text(file.read_text().replace("weightings.ELBO", "weightings.Sigmoid"))
    assert read_config(Path("swirl"))["train"]["learn_endpoints"] is True


def test_an_old_setting_is_named_anew(capfd):
    with pytest.raises(SystemExit):
        main(["train", "train.timesteps=10", "run=swirl"])
    assert "Did you mean 'train.loss_steps'?" in capfd.readouterr().err
    with pytest.raises(ValueError, match=r"'timesteps'. Did you mean 'loss_steps'\?"):
        dk.fit(dk.preset("vdm", train={"timesteps": 3}), dk.data.Swirl())
