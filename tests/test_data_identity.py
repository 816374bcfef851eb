"""What a run's data are is recorded when it begins, and compared when it goes on or is evaluated."""

import json
import os
import re
import warnings
from typing import ClassVar

import equinox as eqx
import numpy as np
import pytest
from sources import random_pixels, save

import diffkit as dk
from diffkit.data import (
    AbstractDataset,
    AbstractSource,
    ArrayData,
    ArraySource,
    DataChanged,
    DataChangedWarning,
    ImageFolder,
    LabelledSource,
    check_examples,
    check_identity,
    data_changes,
    identity,
)

SMALL = {"steps": 2, "batch_size": 4, "steps_per_dispatch": 1, "warmup": 0}


def fill(folder, count, first=0):
    for i in range(first, first + count):
        save(folder, f"{i:03}.png", random_pixels(2, 2, 3, seed=i))


def images(folder, **options):
    return ImageFolder(folder, test_fraction=0.3, **options)


def test_of_image_files_it_is_their_names_and_sizes_and_the_split(tmp_path):
    fill(tmp_path / "a", 12)
    found = identity(images(tmp_path / "a"))
    files = found["train"]["files"] | found["test"]["files"]
    assert files == {f"{i:03}.png": (tmp_path / f"a/{i:03}.png").stat().st_size for i in range(12)}
    os.rename(tmp_path / "a", tmp_path / "b")
    assert identity(images(tmp_path / "b")) == found
    assert identity(images(tmp_path / "b", seed=1)) != found
    assert json.loads(json.dumps(found)) == found


def test_of_arrays_it_is_their_content(tmp_path):
    array = np.random.default_rng(0).integers(0, 8, (40, 3)).astype(np.uint8)
    found = identity(ArrayData(array, levels=8))
    np.save(tmp_path / "x.npy", array)
    assert identity(ArrayData(tmp_path / "x.npy", levels=8)) == found
    assert identity(ArrayData(array.astype(np.int64), levels=8)) == found
    assert identity(ArrayData(array, levels=8, seed=1)) != found
    array[17, 1] ^= 1
    assert identity(ArrayData(array, levels=8)) != found
    labels = np.arange(40) % 3
    with_labels = identity(ArrayData(array, levels=8, labels=labels))
    labels[5] = 0
    assert identity(ArrayData(array, levels=8, labels=labels)) != with_labels


def test_of_large_arrays_it_is_a_sample(monkeypatch):
    monkeypatch.setattr("diffkit.data.record._WHOLE", 1000)
    monkeypatch.setattr("diffkit.data.record._SAMPLE", 16)
    monkeypatch.setattr("diffkit.data.record._PIECE", 64)
    array = np.zeros((2000, 1), np.float32)
    found = identity(ArrayData(array, test=array[:10]))
    assert (found["train"]["sampled"], found["train"]["examples"]) == (16, 2000)
    assert "sampled" not in found["test"]
    array[-1] = 1.0
    assert identity(ArrayData(array, test=array[:10])) != found


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "photos"
    fill(folder, 12, first=100)
    check_identity(run, images(folder), begun=False)
    before = (run / "data.json").read_bytes()
    check_identity(run, images(folder))
    assert data_changes(run, images(folder)) is None
    fill(folder, 1)
    old = images(folder)
    with pytest.raises(DataChanged, match=r"not those of run .*: 1 file \('000\.png'\) added in t"):
        check_identity(run, old)
    assert (run / "data.json").read_bytes() == before
    assert "1 file ('000.png') added in" in data_changes(run, old)
    with pytest.warns(DataChangedWarning, match="added"):
        check_identity(run, old, "warn")
    check_identity(run, old)  # which now are its own
    os.remove(folder / "104.png")
    save(folder, "105.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataChanged) as error:
        check_identity(run, images(folder))
    assert "('104.png') removed" in str(error.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_identity(run, images(folder), "ignore")
        check_identity(run, images(folder, seed=7), begun=False)  # a run that has not begun
    assert len(json.loads((run / "data.json").read_text())["data"]) == 1
    with pytest.raises(ValueError, match=r"train\.data_changed must be one of refuse, warn, ignore"):
        check_identity(run, old, "stop")


def test_a_file_of_another_size_is_named(tmp_path):
    fill(tmp_path / "a", 12)
    check_identity(tmp_path, images(tmp_path / "a"))
    save(tmp_path / "a", "003.png", np.zeros((2, 2, 3), np.uint8), compress_level=0)
    with pytest.raises(DataChanged, match=r"1 file \('003\.png'\) changed in (train|test)"):
        check_identity(tmp_path, images(tmp_path / "a"))


def test_test_images_that_were_trained_on_are_named(tmp_path):
    folder = tmp_path / "a"
    fill(folder, 12)
    check_identity(tmp_path, images(folder))
    trained = set(identity(images(folder))["train"]["files"])
    other = images(folder, seed=7)
    leaked = trained & set(identity(other)["test"]["files"])
    assert leaked
    with pytest.raises(DataChanged, match=rf"{len(leaked)} files? \(.*\) to test on had been trained on"):
        check_identity(tmp_path, other)
    # Also long after, and with the files back where they were.
    apart = tmp_path / "b"
    fill(apart, 12, first=20)
    check_identity(tmp_path, images(apart), "ignore")
    assert "had been trained on" in data_changes(tmp_path, other)


def test_arrays_say_what_differs(tmp_path):
    array = np.zeros((40, 3), np.uint8)
    check_identity(tmp_path, ArrayData(array, levels=8))
    for other, words in (
        (ArrayData(array[:30], levels=8), "train has 27 examples in place of 36"),
        (ArrayData(array + 1, levels=8), "train has other examples; test has other examples"),
        (ArrayData(array[:, :2], levels=8), r"shape \[3\] there, \[2\] now"),
        (ArrayData(array, levels=9), "levels 8 there, 9 now"),
        (ArrayData(array, levels=8, labels=np.zeros(40, int)), "1 numbers in a condition in place of None"),
    ):
        with pytest.raises(DataChanged, match=words):
            check_identity(tmp_path, other)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2, "data": []}', '{"version": 1, "data": [3]}'])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=r"data\.json is damaged.* Remove it to record"):
        check_identity(tmp_path, ArrayData(np.zeros((4, 2), np.uint8), levels=2))


class Own(AbstractDataset):
    def __init__(self, train, levels):
        self.train = self.test = train
        self.levels, self.shape = levels, train.shape


class Lazy(AbstractSource):
    shape: tuple[int, ...] = eqx.field(static=True, default=(2,))
    asked: ClassVar[list[int]] = []

    def __len__(self):
        return 10**9

    def gather(self, indices):
        self.asked.extend(indices.tolist())
        return np.stack([indices, indices], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "levels", "message"),
    [
        (
            np.array([[0, 1], [0, 8]], np.uint8),
            8,
            r"Own: train.* levels - 1 = 7, .* 0 to 8 in example 1",
        ),
        (np.array([[0, -1]], np.int32), 8, "got values from -1 to 0 in example 0"),
        (np.array([[0, 1], [2, np.nan]], np.float32), None, "must be finite, .* in example 1"),
        (np.array([[0, np.inf]], np.float32), None, "must be finite"),
    ],
)
def test_values_out_of_range_are_found_before_training(array, levels, message):
    with pytest.raises(ValueError, match=message):
        check_examples(Own(ArraySource(array), levels))


def test_of_examples_made_on_demand_some_are_looked_at():
    data = Own(Lazy(), None)
    check_examples(data)
    found = identity(data)
    assert found["train"]["sampled"] == 256
    assert {0, 10**9 - 1} < set(Lazy.asked)
    assert len(set(Lazy.asked)) == 256


def test_files_that_cannot_be_decoded_are_all_named_before_training(tmp_path):
    fill(tmp_path, 12)
    data = images(tmp_path)
    for name in ("002.png", "007.png"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:50] + bytes(len(content) - 50))
    data = images(tmp_path)  # headers are right
    with pytest.raises(ValueError, match="cannot be decoded") as error:
        check_examples(data)
    assert len(re.findall(r"00[27]\.png", str(error.value))) > 0


def test_fit_goes_on_with_the_same_data_alone(tmp_path, toy, toy_model):
    values, file, run = toy.train.array.copy(), tmp_path / "x.npy", tmp_path / "run"
    config = dk.TrainConfig(**SMALL)

    def fit():
        data = ArrayData(file, levels=8)
        dk.fit(toy_model(), data, config, directory=run, progress=False)
        return json.loads((run / "data.json").read_text())["data"], identity(data)

    np.save(file, values)
    recorded, now = fit()
    assert recorded == [now]
    values[3, 0] ^= 1
    np.save(file, values)
    with pytest.raises(DataChanged, match=r"(train|test) has other examples\. .*data_changed=warn goes on"):
        fit()
    (run / "data.json").unlink()  # as in a run of an older version
    recorded, now = fit()
    assert recorded == [now]


def test_fit_refuses_values_out_of_range_without_a_directory(toy_model):
    values = np.full((16, 2), 3, np.uint8)
    values[11, 0] = 9
    data = Own(ArraySource(values), 8)
    with pytest.raises(ValueError, match=r"Own: train: .* got values from 3 to 9 in example 11"):
        dk.fit(toy_model(), data, dk.TrainConfig(**SMALL), progress=False)


def test_conditions_belong_to_the_data():
    source = ArraySource(np.zeros((6, 2), np.uint8))
    one, two = (Own(LabelledSource(source, np.array(labels), 3), 8) for labels in ([0, 1] * 3, [1, 0] * 3))
    assert identity(one) != identity(two)
    assert identity(one)["train"]["condition_size"] == 3
