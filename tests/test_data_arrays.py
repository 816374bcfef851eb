"""Data of one's own: arrays in files and in memory."""

import collections
import io
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from sources import everything, labels_of

from diffkit.data import ArrayData, ArraySource, SubsetSource, condition_size


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_array_data_of_integers(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 17, (20, 2, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    data = ArrayData(str(tmp_path / "x.npy"), levels=17, test_fraction=0.25)
    assert (data.levels, data.shape, len(data.train), len(data.test)) == (17, (2, 3), 15, 5)
    train, test = everything(data.train), everything(data.test)
    assert train.dtype == np.uint8
    rows = collections.Counter(row.tobytes() for row in np.concatenate([train, test]))
    assert rows == collections.Counter(row.tobytes() for row in array.astype(np.uint8))


def test_array_data_of_more_levels_than_a_byte_holds(tmp_path):
    array = np.array([[0], [999], [5]], np.uint64)
    np.savez(tmp_path / "x.npz", train=array, test=array[:1])
    data = ArrayData(tmp_path / "x.npz", levels=1000)
    assert everything(data.train).tolist() == [[0], [999], [5]]
    assert everything(data.train).dtype == np.int32


def test_array_data_of_floats_keeps_its_split(tmp_path):
    train, test = np.random.default_rng(0).normal(size=(2, 4, 3))
    np.savez_compressed(tmp_path / "x.npz", train=train, test=test[:2], labels=np.arange(4))
    data = ArrayData(tmp_path / "x.npz")
    assert (data.levels, data.shape) == (None, (3,))
    assert everything(data.train).dtype == np.float32
    np.testing.assert_array_equal(everything(data.train), train.astype(np.float32))
    np.testing.assert_array_equal(everything(data.test), test[:2].astype(np.float32))


def test_array_data_moves_channels(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=array, y=np.zeros(4), z=np.zeros(4))
    data = ArrayData(tmp_path / "x.npz", levels=256, channels_last=True)
    assert data.shape == (3, 5, 6)
    train = everything(data.train)
    assert train.flags.c_contiguous
    rows = {row.tobytes() for row in array.transpose(0, 3, 1, 2)}
    assert len(train) == 4 - 1
    assert {row.tobytes() for row in train} < rows


def test_array_data_maps_a_file_that_needs_no_conversion(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 2), np.float32))
    data = ArrayData(tmp_path / "x.npy")
    assert isinstance(data.train, SubsetSource)
    assert isinstance(data.train.source, ArraySource)
    assert isinstance(data.train.source.array, np.memmap)
    assert type(everything(data.train)) is np.ndarray


BYTES = np.zeros((4, 2), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": BYTES}, {}, r"holds integers \(uint8\), got levels=None; .* levels=256"),
        ({"x": BYTES + 16}, {"levels": 16}, "from 0 to levels - 1 = 15, got values from 16 to 16"),
        ({"x": BYTES.astype(int) - 1}, {"levels": 16}, "got values from -1 to -1"),
        ({"x": BYTES.astype(float)}, {"levels": 16}, r"holds floats \(float64\), got levels=16"),
        ({"x": BYTES + np.nan}, {}, "must be finite in float32, got values from nan"),
        ({"x": BYTES + 1e300}, {}, "must be finite in float32"),
        ({"x": BYTES + 1j}, {}, "integers or floats, got complex128"),
        ({"x": np.array([["a"]])}, {}, "integers or floats, got <U1"),
        ({"x": np.array([[None]])}, {}, "cannot be read as a .npz file of numbers"),
        ({"x": BYTES[0]}, {"levels": 2}, r"2 axes or more.*got the shape \(2,\)"),
        ({"x": BYTES}, {"levels": 2, "channels_last": True}, "3 axes or more"),
        ({"x": BYTES[:1]}, {"levels": 2}, "needs at least 2 examples, got 1"),
        ({"x": BYTES}, {"levels": 2, "test_fraction": 0.0}, "between 0 and 1, got 0.0"),
        ({"x": BYTES}, {"levels": 1}, r"levels must be from 2 to 2\^31, or None .* got 1"),
        ({"a": BYTES, "b": BYTES}, {"levels": 2}, "'train' and 'test'.* holds a, b"),
        ({"a": BYTES, "b": BYTES, "c": BYTES}, {"levels": 2}, "holds a, b, c"),
        ({}, {"levels": 2}, "holds none"),
        (
            {"train": BYTES, "test": BYTES[:, 1:]},
            {"levels": 2},
            r"examples of test must have the shape \(2,\), got \(1,\)",
        ),
    ],
    ids=[
        "no_levels",
        "high",
        "low",
        "float_levels",
        "nan",
        "overflow",
        "complex",
        "text",
        "object",
        "rank",
        "rank_channels_last",
        "single",
        "fraction",
        "one_level",
        "two_names",
        "three_names",
        "nothing",
        "shapes",
    ],
)
def test_array_data_refuses(tmp_path, arrays, options, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ArrayData(tmp_path / "x.npz", **options)


def test_array_data_with_labels(tmp_path):
    # The example says its class; the random split must keep them together.
    array = np.arange(20, dtype=np.uint8)[:, None]
    np.savez(tmp_path / "x.npz", anything=array, labels=np.arange(20, dtype=np.uint16) % 3)
    data = ArrayData(tmp_path / "x.npz", levels=20, labels=True, test_fraction=0.25)
    assert (condition_size(data), len(data.train), len(data.test)) == (3, 15, 5)
    for source in (data.train, data.test):
        assert labels_of(source) == (everything(source)[:, 0] % 3).tolist()
    np.savez(
        tmp_path / "x.npz",
        train=array,
        test=array[:2],
        train_labels=np.arange(20) % 4,
        test_labels=np.array([5, 0]),
    )
    data = ArrayData(tmp_path / "x.npz", levels=20, labels=True)
    assert condition_size(data) == 6
    assert (labels_of(data.train)[:5], labels_of(data.test)) == ([0, 1, 2, 3, 0], [5, 0])
    assert condition_size(ArrayData(tmp_path / "x.npz", levels=20)) == 0


def test_array_data_with_vectors(tmp_path):
    array = np.arange(20, dtype=np.float32)[:, None]
    vectors = np.stack([array[:, 0] * 2, -array[:, 0]], axis=1)
    np.savez(tmp_path / "x.npz", x=array, condition=vectors)
    data = ArrayData(tmp_path / "x.npz", condition=True)
    assert (condition_size(data), data.train.classes) == (3, None)
    for source in (data.train, data.test):
        found, x = source.conditions(np.arange(len(source))), everything(source)
        np.testing.assert_array_equal(found, np.concatenate([2 * x, -x, np.ones_like(x)], axis=1))
    np.savez(tmp_path / "x.npz", train=array, test=array[:2], train_condition=vectors,
             test_condition=vectors[2:4].astype(int))  # fmt: skip
    test = ArrayData(tmp_path / "x.npz", condition=True).test
    assert test.conditions(np.array([1])).tolist() == [[6.0, -3.0, 1.0]]


FOUR = np.arange(4)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (
            {"x": BYTES},
            {"labels": True},
            "with labels=True .* hold 'labels' beside 'x'; .* holds x",
        ),
        (
            {"train": BYTES, "test": BYTES, "train_labels": FOUR, "labels": FOUR},
            {"labels": True},
            "must hold 'train_labels' and 'test_labels' beside 'train' and 'test'",
        ),
        ({"x": BYTES, "labels": FOUR[:3]}, {"labels": True}, r"each of the 4 .* shape \(3,\)"),
        ({"x": BYTES, "labels": FOUR / 1}, {"labels": True}, "an integer for .* got float64"),
        ({"x": BYTES, "labels": FOUR - 1}, {"labels": True}, "labels in .* from 0, got -1"),
        ({"x": BYTES, "condition": FOUR}, {"condition": True}, r"vector of .* shape \(4,\)"),
        ({"x": BYTES, "condition": BYTES[1:]}, {"condition": True}, r"vector .* shape \(3, 2\)"),
        ({"x": BYTES, "condition": BYTES[:, :0]}, {"condition": True}, r"vector .* shape \(4, 0\)"),
        ({"x": BYTES, "condition": BYTES + 1j}, {"condition": True}, "vector .* got complex128"),
        ({"x": BYTES, "condition": BYTES + 1e300}, {"condition": True}, "finite in float32"),
        ({"x": BYTES}, {"condition": True, "labels": True}, "are both given; choose one of them"),
        (
            {
                "train": BYTES,
                "test": BYTES,
                "train_condition": BYTES,
                "test_condition": BYTES[:, :1],
            },
            {"condition": True},
            "train and test must have conditions of one length, got 3 and 2",
        ),
        ({"labels": FOUR}, {"labels": True}, "or only one array; .* holds labels"),
    ],
)
def test_array_data_refuses_bad_conditions(tmp_path, arrays, options, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        ArrayData(tmp_path / "x.npz", levels=2, **options)


def test_a_wrong_label_does_not_choose_the_number_of_classes(tmp_path):
    labels = np.array([0, 1, 10**9, 0])
    np.savez(tmp_path / "x.npz", x=BYTES, labels=labels)
    with pytest.raises(
        ValueError, match=r"labels in .*x\.npz.* label 1000000000 .* of 4 examples.* classes="
    ):
        ArrayData(tmp_path / "x.npz", levels=2, labels=True)
    with pytest.raises(ValueError, match="labels must hold labels from 0 to classes - 1 = 9, got 1000"):
        ArrayData(BYTES, levels=2, labels=labels, classes=10)
    assert condition_size(ArrayData(BYTES, levels=2, labels=FOUR * 2, classes=10)) == 10
    with pytest.raises(ValueError, match="classes is for data with labels, got classes=3 without"):
        ArrayData(BYTES, levels=2, classes=3)


def test_array_data_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing at path='absent.npy'; expected a .npy or"):
        ArrayData("absent.npy")
    np.save(tmp_path / "y.npy", BYTES)
    with pytest.raises(ValueError, match=r"labels=True needs a .npz file .* got '.*y.npy'"):
        ArrayData(tmp_path / "y.npy", levels=2, labels=True)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"must name a \.npy or \.npz file, got '.*x\.csv'"):
        ArrayData(tmp_path / "x.csv")
    content = io.BytesIO()
    np.save(content, BYTES)
    for name, damaged in (
        ("x.npy", content.getvalue()[:-1]),
        ("x.npy", b"\x93NUMPY"),
        ("x.npy", b""),
        ("x.npz", b"PK\3\4 and nothing more"),
        ("x.npz", content.getvalue()),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"x\.np[yz]' cannot be read as a \.{name[2:]} file"):
            ArrayData(tmp_path / name, levels=2)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content.getvalue()[:-1])
    with pytest.raises(ValueError, match=r"cannot be read as a \.npz file"):
        ArrayData(tmp_path / "x.npz", levels=2)


# --- In memory


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_array_data_from_memory_is_that_of_a_file(tmp_path, of):
    array = np.random.default_rng(0).integers(0, 256, (9, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=array, labels=np.arange(9))
    file = ArrayData(tmp_path / "x.npz", levels=256, labels=True, test_fraction=0.3, seed=2)
    data = ArrayData(of(array), levels=256, labels=of(np.arange(9)), test_fraction=0.3, seed=2)
    for source, same in ((data.train, file.train), (data.test, file.test)):
        np.testing.assert_array_equal(everything(source), everything(same))
        assert labels_of(source) == labels_of(same)
    assert data.statistics is None


def test_array_data_puts_channels_in_front():
    array = np.random.default_rng(0).normal(size=(6, 4, 5, 3))
    options = {"test": array[:2], "condition": np.ones((6, 1)), "test_condition": np.zeros((2, 1))}
    for channels, shape in (("first", (4, 5, 3)), ("last", (3, 4, 5)), ("add", (1, 4, 5, 3))):
        data = ArrayData(array, channels=channels, **options)
        assert (data.shape, len(data.train), len(data.test)) == (shape, 6, 2)
        assert data.test.conditions(np.array([1])).tolist() == [[0, 1]]
    moved = ArrayData(array, channels_last=True, test=array)
    np.testing.assert_array_equal(everything(moved.train), array.transpose(0, 3, 1, 2).astype("f4"))
    scalars = ArrayData(jnp.ones(4, jnp.bfloat16), channels="add")
    assert (scalars.shape, everything(scalars.train).dtype) == ((1,), np.float32)


def test_array_data_splits_over_files(tmp_path):
    for name, array in (("x", BYTES), ("y", FOUR), ("t", BYTES[:1] + 1)):
        np.save(tmp_path / f"{name}.npy", array)
    data = ArrayData(
        tmp_path / "x.npy",
        2,
        test=tmp_path / "t.npy",
        labels=tmp_path / "y.npy",
        test_labels=FOUR[2:3],
    )
    assert (everything(data.test).tolist(), labels_of(data.test)) == ([[1, 1]], [2])
    assert labels_of(data.train) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": None}, r"the array holds integers \(uint8\), .* levels=256 for bytes"),
        ({"channels": "back"}, "must be 'first', 'last' or 'add', .* got channels='back'"),
        ({"channels": "add", "channels_last": True}, "got channels='add', channels_last=True"),
        ({"labels": True}, "labels=True is for a .npz file; beside an array give labels=ARRAY"),
        ({"labels": FOUR[:2]}, r"labels must hold an integer for each of the 4 .* shape \(2,\)"),
        ({"labels": FOUR, "test": BYTES}, "labels and test_labels for a split .* got 1 for 2"),
        (
            {"labels": FOUR, "test_labels": FOUR},
            "labels for data that are split here.* got 2 for 1",
        ),
        ({"test_condition": BYTES}, "give condition for data that .* got 1 for 1"),
        ({"test": BYTES + 2}, "test must hold integers from 0 to levels - 1 = 1"),
    ],
)
def test_array_data_refuses_arrays_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        ArrayData(BYTES, **({"levels": 2} | options))
