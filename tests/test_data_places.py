"""Where the data of a run are: found from any working directory, and wherever they were moved."""

import os

import numpy as np
import pytest
import yaml

import diffkit as dk
from diffkit.configs import CHECKPOINTS, config_of, make, read_config, upgraded, write_config
from diffkit.data import ArrayData, check_identity, identity


def composed(**options):
    """The configuration of a run on `points.npy` in the working directory, and its data."""
    data = ArrayData("points.npy", levels=8, **options)
    return config_of(dk.preset("vdm", network="mlp"), data, dk.TrainConfig()), data


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    np.save(tmp_path / "here" / "points.npy", np.arange(40, dtype=np.uint8).reshape(20, 2) % 8)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_a_stored_configuration_finds_its_data_from_anywhere(place, monkeypatch):
    config, data = composed()
    write_config(place / "run", config)
    stored = yaml.safe_load((place / "run" / "config.yaml").read_text())["data"]
    assert stored["path"] == str(place / "here" / "points.npy")
    monkeypatch.chdir(place)
    assert identity(make(read_config(place / "run")["data"])) == identity(data)


def test_every_option_that_is_a_path_is_kept_so(place):
    np.save("labels.npy", np.arange(20) % 2)
    config, _ = composed(labels="labels.npy", test="points.npy", test_labels="labels.npy")
    write_config(place / "run", config)
    stored = read_config(place / "run")["data"]
    for name, file in (("labels", "labels.npy"), ("test", "points.npy"), ("test_labels", "labels.npy")):
        assert stored[name] == str(place / "here" / file)
    assert stored["condition"] is False


def test_a_run_of_an_older_version_goes_on_where_its_data_are(place, monkeypatch):
    config, _ = composed()
    run = place / "run"
    (run / CHECKPOINTS / "1").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))  # as it was given
    assert read_config(run)["data"]["path"] == "points.npy"
    write_config(run, config)
    assert read_config(run)["data"]["path"] == str(place / "here" / "points.npy")
    monkeypatch.chdir(place)
    os.rename("here", "there")
    elsewhere = {**config, "data": {**config["data"], "path": "there/points.npy"}}
    with pytest.raises(ValueError, match=r"holds a run with other choices: data\.path"):
        write_config(run, elsewhere)


def test_data_that_moved_are_the_same_where_the_run_knows_them(place, monkeypatch):
    config, data = composed()
    run = place / "run"
    write_config(run, config)
    (run / CHECKPOINTS / "1").mkdir(parents=True)
    check_identity(run, data)
    monkeypatch.chdir(place)
    os.rename("here", "there")
    elsewhere = {**config, "data": {**config["data"], "path": "there/points.npy"}}
    before = (run / "config.yaml").read_text()
    write_config(run, elsewhere)
    assert (run / "config.yaml").read_text() == before
    check_identity(run, make(elsewhere["data"]))
    other = {**elsewhere, "data": {**elsewhere["data"], "seed": 1}}
    with pytest.raises(ValueError, match=r"other choices: data\.seed"):
        write_config(run, other)


def test_image_folders_of_older_runs_keep_their_split():
    old = {"_target_": "diffkit.data.images.ImageFolder", "path": "photos", "size": 8}
    data = upgraded({"data": old})["data"]
    assert (data["split"], data["convert"], data["skip_bad"]) == ("positions", True, False)
    new = upgraded({"data": {**old, "split": "names", "convert": False}})["data"]
    assert (new["split"], new["convert"]) == ("names", False)
