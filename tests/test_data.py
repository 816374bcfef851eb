"""Data sets and batches, against files written here byte by byte and against published facts."""

import ast
import collections
import gzip
import io
import itertools
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest

from diffkit import registry
from diffkit.data import (
    AbstractDataset,
    AbstractSource,
    ArrayData,
    ArraySource,
    BatchIterator,
    Cifar10,
    Digits,
    Idx,
    ImageFolder,
    ImageFolderSource,
    SubsetSource,
    Swirl,
    batches,
    condition_size,
    read_idx,
)

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


def everything(source):
    return source.gather(np.arange(len(source)))


def labels_of(source):
    return source.conditions(np.arange(len(source))).argmax(axis=1).tolist()


def take(iterator, count):
    items = list(itertools.islice(iterator, count))
    iterator.close()
    return items


# --- Sources


def test_array_source_gathers_in_the_given_order_and_copies():
    array = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    source = ArraySource(array)
    assert len(source) == 4
    assert source.shape == (2, 3)
    batch = source.gather(np.array([3, 0, 3]))
    np.testing.assert_array_equal(batch, array[[3, 0, 3]])
    batch[...] = 0
    assert array[3].min() == 18


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(5, np.uint8), r"at least one more.*got the shape \(5,\)"),
        (np.zeros((0, 3), np.uint8), r"empty, got the shape \(0, 3\)"),
        (np.zeros((2, 3)), "integers or float32, got float64"),
        (np.zeros((2, 3), bool), "integers or float32, got bool"),
    ],
)
def test_array_source_refuses(array, message):
    with pytest.raises(ValueError, match=message):
        ArraySource(array)


def test_subset_source_counts_within_its_indices():
    array = np.arange(10, dtype=np.uint8)[:, None]
    source = SubsetSource(SubsetSource(ArraySource(array), np.array([9, 4, 2])), np.array([2, 0]))
    np.testing.assert_array_equal(everything(source)[:, 0], [2, 9])
    for wrong in ([], [10], [-1]):
        with pytest.raises(ValueError, match="from 0 to 9"):
            SubsetSource(ArraySource(array), np.array(wrong, dtype=int))


def test_a_dataset_of_a_plugin_is_checked():
    class Mine(AbstractDataset):
        train: AbstractSource
        test: AbstractSource
        levels: int | None = eqx.field(static=True)
        shape: tuple[int, ...] = eqx.field(static=True)

    two, three = (ArraySource(np.zeros((5, size), np.uint8)) for size in (2, 3))
    assert Mine(two, two, 4, (2,)).shape == (2,)
    with pytest.raises(ValueError, match=r"Mine: the examples of test must have the shape \(2,\)"):
        Mine(two, three, 4, (2,))
    with pytest.raises(ValueError, match="levels must be at least 2"):
        Mine(two, two, 1, (2,))


# --- The data sets that need no file


def test_every_dataset_is_registered():
    names = {
        "digits": Digits,
        "swirl": Swirl,
        "idx": Idx,
        "cifar10": Cifar10,
        "image_folder": ImageFolder,
        "array": ArrayData,
    }
    assert {name: registry.get("data", name) for name in names} == names


def test_digits_is_the_stored_order_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = Digits()
    assert (data.levels, data.shape) == (17, (1, 8, 8))
    assert (len(data.train), len(data.test)) == (1500, 297)
    flat = np.concatenate([everything(data.train), everything(data.test)]).reshape(1797, 64)
    np.testing.assert_array_equal(flat, load_digits().data)
    assert flat.dtype == np.uint8
    # Known of this split: independent categoricals per pixel, add-half smoothing, bits per pixel.
    train, test = flat[:1500], flat[1500:]
    counts = (train[:, :, None] == np.arange(17)).sum(0) + 0.5
    bits = -np.log2(counts / counts.sum(1, keepdims=True))
    assert bits[np.arange(64), test].mean() == pytest.approx(2.364, abs=5e-4)


def test_digits_with_labels():
    from sklearn.datasets import load_digits

    plain, data = Digits(), Digits(labels=True)
    assert (condition_size(plain), condition_size(data), data.train.classes) == (0, 10, 10)
    assert labels_of(data.train) + labels_of(data.test) == load_digits().target.tolist()
    np.testing.assert_array_equal(everything(data.test), everything(plain.test))


def test_swirl_has_the_entropy_of_the_reference():
    data = Swirl()
    points = everything(data.train)
    assert (points.shape, points.dtype) == ((1024, 2), np.uint8)
    assert (data.levels, data.shape) == (256, (2,))
    share = np.array(list(collections.Counter(map(tuple, points.tolist())).values())) / 1024
    assert -(share * np.log2(share)).sum() / 2 == pytest.approx(4.7353, abs=5e-5)


def test_swirl_tests_on_the_next_seed():
    assert eqx.tree_equal(Swirl(seed=3).test, Swirl(seed=4).train)
    assert not eqx.tree_equal(Swirl(seed=3).test, Swirl(seed=3).train)
    assert len(Swirl(points=7).test) == 7
    with pytest.raises(ValueError, match="points must be at least 1, got 0"):
        Swirl(points=0)
    with pytest.raises(ValueError, match="seed must be from 0 to 4294967294, got -1"):
        Swirl(seed=-1)


# --- IDX


def idx_bytes(code, shape, content):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, code, len(shape), *shape) + content


@pytest.mark.parametrize(
    ("code", "letter", "dtype"),
    [
        (0x08, "B", np.uint8),
        (0x09, "b", np.int8),
        (0x0B, "h", np.int16),
        (0x0C, "i", np.int32),
        (0x0D, "f", np.float32),
        (0x0E, "d", np.float64),
    ],
)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 3, 1, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_read_idx_reads_every_dtype_and_rank(tmp_path, code, letter, dtype, shape, packed):
    values = [0, 1, 2, 100, 5, 127]
    content = idx_bytes(code, shape, struct.pack(f">6{letter}", *values))
    file = tmp_path / "file"  # whether it is gzip is not told by the name
    file.write_bytes(gzip.compress(content) if packed else content)
    array = read_idx(file)
    assert array.dtype == dtype
    assert array.dtype.isnative
    assert array.shape == shape
    assert array.ravel().tolist() == values


PLAIN = idx_bytes(0x08, (2, 3), bytes(6))
PACKED = gzip.compress(PLAIN, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file.*empty file"),
        (b"\x89PNG\r\n", "not an IDX file.*89 50 4e 47"),
        (b"\0\0\x0a\x01\0\0\0\0", "not an IDX file.*00 00 0a 01"),
        (PLAIN[:10], "ends within the header, which has 2 axes"),
        (PLAIN[:-1], r"truncated: its header says 6 bytes.*\(2, 3\), uint8\), got 5"),
        (PLAIN + b"\0", "more than the 6 bytes"),
        (idx_bytes(0x08, (2**32 - 1,) * 3, bytes(6)), "truncated.*got 6"),
        (idx_bytes(0x08, (1,) * 200, b"\0"), "says that it has 200 axes"),
        (PACKED[:-12], "damaged or was not downloaded in full"),
        (PACKED[:10] + b"\xff" * 20, "damaged or was not downloaded in full"),
        (PACKED[:-8] + bytes(8), "damaged or was not downloaded in full: CRC"),
        (gzip.compress(idx_bytes(0x0E, (2**32 - 1,) * 2, bytes(6)), mtime=0), "truncated.*got 6"),
    ],
    ids=[
        "empty",
        "png",
        "dtype",
        "header",
        "short",
        "long",
        "lie",
        "rank",
        "gzip_short",
        "gzip_block",
        "gzip_crc",
        "gzip_lie",
    ],
)
def test_read_idx_refuses_damaged_files(tmp_path, content, message):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(file)


def write_mnist(folder, train=None, test=None, ending=""):
    open_ = gzip.open if ending else open
    for part, images in (("train", train), ("t10k", test)):
        if images is not None:
            with open_(folder / f"{part}-images-idx3-ubyte{ending}", "wb") as file:
                file.write(idx_bytes(0x08, images.shape, images.tobytes()))


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx(tmp_path, ending):
    train = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    test = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_mnist(tmp_path, train, test, ending)
    data = Idx(str(tmp_path))
    assert (data.levels, data.shape) == (256, (1, 3, 4))
    np.testing.assert_array_equal(everything(data.train), train[:, None])
    np.testing.assert_array_equal(everything(data.test), test[:, None])


def test_idx_refuses(tmp_path):
    images = np.zeros((2, 3, 4), np.uint8)
    with pytest.raises(FileNotFoundError, match=r"Idx: there is nothing at path='.*absent'"):
        Idx(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.gz, got an empty folder"):
        Idx(tmp_path)
    write_mnist(tmp_path, train=images)
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte or .*, got train-images"):
        Idx(tmp_path)
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        Idx(tmp_path / "train-images-idx3-ubyte")
    write_mnist(tmp_path, test=images[:, :, 1:])
    with pytest.raises(ValueError, match=r"one shape, got \(1, 3, 4\) and \(1, 3, 3\)"):
        Idx(tmp_path)
    write_mnist(tmp_path, test=np.zeros(10, np.uint8))  # labels under the name of images
    with pytest.raises(ValueError, match=r"must hold uint8 images .* shape \(10,\)"):
        Idx(tmp_path)


def write_mnist_labels(folder, train, test, dtype=">u1", code=0x08):
    for part, labels in (("train", train), ("t10k", test)):
        content = idx_bytes(code, (len(labels),), np.asarray(labels).astype(dtype).tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(content)


def test_idx_with_labels(tmp_path):
    write_mnist(tmp_path, np.zeros((5, 3, 4), np.uint8), np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(FileNotFoundError, match=r"must hold the file train-labels-idx1-ubyte or"):
        Idx(tmp_path, labels=True)
    write_mnist_labels(tmp_path, [2, 0, 1, 1, 0], [3, 0])
    data = Idx(tmp_path, labels=True)
    # A class that only the test images have counts as well.
    assert (condition_size(data), data.train.classes, data.test.classes) == (4, 4, 4)
    assert (labels_of(data.train), labels_of(data.test)) == ([2, 0, 1, 1, 0], [3, 0])
    assert condition_size(Idx(tmp_path)) == 0
    for wrong, message in (
        (([2, 0], [3, 0]), r"train-labels.* for each of the 5 images, got uint8 .* shape \(2,\)"),
        (([2, 0, 1, 1, 0], [3]), r"t10k-labels.* for each of the 2 images"),
    ):
        write_mnist_labels(tmp_path, *wrong)
        with pytest.raises(ValueError, match=message):
            Idx(tmp_path, labels=True)
    write_mnist_labels(tmp_path, [0] * 5, [0] * 2, ">f4", 0x0D)
    with pytest.raises(ValueError, match=r"must hold a uint8 label for each .* got float32"):
        Idx(tmp_path, labels=True)


@pytest.mark.parametrize(("name", "first"), [("mnist", 5923), ("fashion_mnist", 6000)])
def test_real_idx_labels(name, first):
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"the files of {name} are not on this machine")
    data = Idx(folder, labels=True)
    counts = collections.Counter(labels_of(data.train))
    assert (len(counts), counts[0], counts.total()) == (10, first, 60000)


@pytest.mark.parametrize(("name", "mean"), [("mnist", 33.3184), ("fashion_mnist", 72.9404)])
def test_real_idx_files(name, mean):
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"the files of {name} are not on this machine")
    data = Idx(folder)
    assert (len(data.train), len(data.test), data.shape) == (60000, 10000, (1, 28, 28))
    total = sum(int(part.sum()) for part in np.array_split(everything(data.train), 10))
    assert total / (60000 * 784) == pytest.approx(mean, abs=5e-5)


# --- CIFAR-10

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def cifar_images(count=3):
    """Six parts of `count` images: part, image, channel, row, column."""
    return np.random.default_rng(0).integers(0, 256, (6, count, 3, 32, 32), dtype=np.uint8)


def check_cifar(data, images):
    assert (data.levels, data.shape) == (256, (3, 32, 32))
    np.testing.assert_array_equal(everything(data.train), images[:5].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(everything(data.test), images[5])


def write_binary(folder, images):
    for name, part in zip(BATCHES, images, strict=True):
        records = [bytes([i % 10]) + image.tobytes() for i, image in enumerate(part)]
        (folder / f"{name}.bin").write_bytes(b"".join(records))


def python2_batch(flat):
    """The bytes of a batch as Python 2 wrote it: every string is of the type that is bytes now."""

    def text(value):
        return b"T" + struct.pack("<I", len(value)) + value

    def name(module, attribute):
        return b"c" + module + b"\n" + attribute + b"\n"

    count, size = flat.shape
    dtype = name(b"numpy", b"dtype") + text(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = name(b"numpy.core.multiarray", b"_reconstruct") + name(b"numpy", b"ndarray")
    array += b"K\0\x85" + text(b"b") + b"\x87R"
    array += b"(K\1" + b"M" + struct.pack("<H", count) + b"M" + struct.pack("<H", size) + b"\x86"
    array += dtype + b"\x89" + text(flat.tobytes()) + b"tb"
    labels = b"](" + b"K\1" * count + b"e"
    items = text(b"labels") + labels + text(b"data") + array
    return b"\x80\2}(" + items + b"u."


def write_python(folder, images, encode):
    for name, part in zip(BATCHES, images, strict=True):
        (folder / name).write_bytes(encode(part.reshape(len(part), -1)))


def python3_batch(protocol):
    return lambda flat: pickle.dumps({b"labels": [1] * len(flat), b"data": flat}, protocol)


@pytest.mark.parametrize("inside", [False, True])
def test_cifar10_binary(tmp_path, inside):
    images, folder = cifar_images(), tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    write_binary(folder, images)
    check_cifar(Cifar10(folder if inside else tmp_path), images)


@pytest.mark.parametrize(
    "encode",
    [python2_batch, *(python3_batch(p) for p in range(6)), None],
    ids=["python2", *(f"protocol{p}" for p in range(6)), "fortran"],
)
def test_cifar10_python(tmp_path, encode):
    images, folder = cifar_images(), tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    if encode is None:
        write_python(folder, images, lambda flat: python3_batch(4)(np.asfortranarray(flat)))
    else:
        write_python(folder, images, encode)
    check_cifar(Cifar10(tmp_path), images)


def test_cifar10_with_labels(tmp_path):
    images = cifar_images()
    write_binary(tmp_path, images)
    data = Cifar10(tmp_path, labels=True)
    assert (condition_size(data), condition_size(Cifar10(tmp_path))) == (10, 0)
    assert (labels_of(data.train), labels_of(data.test)) == ([0, 1, 2] * 5, [0, 1, 2])
    check_cifar(data, images)
    python = tmp_path / "python"
    python.mkdir()
    write_python(python, images, python2_batch)
    data = Cifar10(python, labels=True)
    assert (labels_of(data.train), labels_of(data.test)) == ([1] * 15, [1] * 3)
    check_cifar(data, images)


@pytest.mark.parametrize(
    "labels", [None, [1, 2], [1, 2, 10], [1, 2, -1], [1, 2, True], [1, 2, 1.0], np.arange(3)]
)
def test_cifar10_refuses_bad_labels_in_pickles(tmp_path, labels):
    write_python(tmp_path, cifar_images(), python2_batch)
    batch = {b"data": cifar_images()[0].reshape(3, -1)}
    batch |= {} if labels is None else {b"labels": labels}
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(batch))
    assert condition_size(Cifar10(tmp_path)) == 0  # not read, so not refused
    with pytest.raises(
        ValueError, match=r"data_batch_2' must have a list of 3 integers from 0 to 9"
    ):
        Cifar10(tmp_path, labels=True)


def test_what_the_python2_bytes_mean():
    flat = cifar_images()[0].reshape(3, -1)
    batch = pickle.loads(python2_batch(flat), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], flat)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


FLAT = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a batch of CIFAR-10's python version"),
        (python2_batch(FLAT)[:-20], "cannot be read as a batch"),
        (b"\x80\2T\xff\xff\xff\x7fabc.", "cannot be read as a batch"),
        (b"\x80\2Nr\xff\xff\xff\x7f.", "cannot be read as a batch.*numbers its"),
        (b"\x80\4\x96" + b"\xff" * 7 + b"\0abc.", "cannot be read as a batch"),
        (pickle.dumps({b"data": FLAT.tolist()}), "must be a dictionary with a uint8 array"),
        (pickle.dumps([FLAT]), "must be a dictionary with a uint8 array"),
        (pickle.dumps({b"data": FLAT.astype(np.int16)}), "must be a dictionary with a uint8 array"),
        (pickle.dumps({b"data": FLAT[:, :-1]}), r"uint8 array \(n, 3072\)"),
        (python2_batch(FLAT).replace(b"M\2\0M", b"M\3\0M"), "must be a dictionary with a uint8"),
        (pickle.dumps({b"data": np.array([None])}), "must be a dictionary with a uint8 array"),
        (pickle.dumps({b"data": collections.OrderedDict()}), "refers to collections.OrderedDict"),
        (pickle.dumps({b"data": np.random.RandomState(0)}), r"refers to numpy\.random"),
    ],
    ids=[
        "empty",
        "short",
        "lie_string",
        "lie_memo",
        "lie_bytearray",
        "list_of_rows",
        "no_dictionary",
        "dtype",
        "width",
        "count",
        "objects",
        "ordered_dict",
        "random_state",
    ],
)
def test_cifar10_refuses_damaged_pickles(tmp_path, content, message):
    write_python(tmp_path, cifar_images(), python2_batch)
    (tmp_path / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=f"data_batch_3.*{message}"):
        Cifar10(tmp_path)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar10_runs_nothing_from_a_pickle(tmp_path, protocol):
    mark = tmp_path / "mark"
    write_python(tmp_path, cifar_images(), python2_batch)
    content = pickle.dumps({b"data": FLAT, b"labels": Evil(mark)}, protocol)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="mkdir, which is refused"):
        Cifar10(tmp_path)
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # the file does run a program where it is loaded in the usual way


def test_cifar10_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing at path=.*cifar-10-batches-bin"):
        Cifar10(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"must hold data_batch_1.bin .* got neither"):
        Cifar10(tmp_path)
    write_binary(tmp_path, cifar_images())
    batch = tmp_path / "data_batch_2.bin"
    content = batch.read_bytes()
    for wrong in (content[:-1], b"", content + b"\0"):
        batch.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"multiple of 3073 bytes, got {len(wrong)}"):
            Cifar10(tmp_path)
    batch.write_bytes(b"\x0b" + content[1:])
    with pytest.raises(ValueError, match=r"labels .*data_batch_2.bin' must be from 0 to 9, got 11"):
        Cifar10(tmp_path)
    batch.unlink()
    with pytest.raises(FileNotFoundError, match=r"missing: data_batch_2\.bin\."):
        Cifar10(tmp_path)


# --- Folders of images


def save(folder, name, pixels, **options):
    from PIL import Image

    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **options)
    return str(file)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_image_folder_splits_once_and_for_all(tmp_path):
    pixels = [random_pixels(4, 5, 3, seed=i) for i in range(10)]
    for i, image in enumerate(pixels):
        save(tmp_path, f"{'ab'[i % 2]}/{i}.{'png' if i < 5 else 'BMP'}", image)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_bytes(b"not an image either, and hidden")
    data = ImageFolder(tmp_path, test_fraction=0.3)
    assert (data.levels, data.shape) == (256, (3, 4, 5))
    assert (len(data.train), len(data.test)) == (7, 3)
    found = np.concatenate([everything(data.train), everything(data.test)])
    assert found.dtype == np.uint8
    assert {image.tobytes() for image in found} == {
        image.transpose(2, 0, 1).tobytes() for image in pixels
    }
    again, other = (ImageFolder(tmp_path, test_fraction=0.3, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(everything(again.test), everything(data.test))
    assert not np.array_equal(everything(other.test), everything(data.test))


def test_image_folder_keeps_its_own_split(tmp_path):
    pixels = [random_pixels(4, 4, seed=i) for i in range(3)]
    save(tmp_path, "train/z.png", pixels[0])
    save(tmp_path, "train/deep/er.png", pixels[1])
    save(tmp_path, "test/0.png", pixels[2])
    data = ImageFolder(tmp_path, channels=1)
    np.testing.assert_array_equal(everything(data.train)[:, 0], [pixels[1], pixels[0]])
    np.testing.assert_array_equal(everything(data.test)[:, 0], [pixels[2]])
    save(tmp_path, "test/0.png", pixels[2][1:])
    with pytest.raises(ValueError, match=r"0\.png' has 3 x 4; give size"):
        ImageFolder(tmp_path, channels=1)
    os.remove(tmp_path / "test/0.png")
    with pytest.raises(ValueError, match=r"test' must hold image files .* got none"):
        ImageFolder(tmp_path)
    os.rmdir(tmp_path / "test")
    with pytest.raises(ValueError, match=r"both subfolders .* got only 'train'"):
        ImageFolder(tmp_path)


def test_images_are_cropped_to_the_centre_and_resized(tmp_path):
    # A white margin left and right falls away; of the square, the halves are 40 and 200.
    wide = np.full((32, 56), 255, np.uint8)
    wide[:16, 12:44], wide[16:, 12:44] = 40, 200
    small = random_pixels(8, 8)
    files = [save(tmp_path, "wide.png", wide), save(tmp_path, "tall.png", wide.T)]
    source = ImageFolderSource([*files, save(tmp_path, "small.png", small)], size=8, channels=1)
    assert source.shape == (1, 8, 8)
    first, second, third = source.gather(np.arange(3))[:, 0]
    # The bicubic filter reaches over two pixels of the result, so rows away from the edge are
    # exact, and all columns are alike: nothing comes in from the margins.
    np.testing.assert_array_equal(first[:2], np.full((2, 8), 40))
    np.testing.assert_array_equal(first[-2:], np.full((2, 8), 200))
    np.testing.assert_array_equal(first, np.repeat(first[:, :1], 8, axis=1))
    np.testing.assert_array_equal(second, first.T)
    np.testing.assert_array_equal(third, small)


def test_images_of_other_modes(tmp_path):
    from PIL import Image

    colour = random_pixels(3, 3, 4)
    files = [save(tmp_path, "rgba.png", colour), save(tmp_path, "grey.png", colour[..., 0])]
    palette = Image.fromarray((np.arange(9) % 3).astype(np.uint8).reshape(3, 3)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90] + [0] * 759)
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128, 255]))
    files.append(str(tmp_path / "palette.png"))
    got = ImageFolderSource(files).gather(np.arange(3))
    np.testing.assert_array_equal(got[0], colour[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(got[1], np.stack([colour[..., 0]] * 3))
    np.testing.assert_array_equal(got[2][:, 0], [[10, 40, 70], [20, 50, 80], [30, 60, 90]])


def test_image_folder_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing at path=.*a folder of images"):
        ImageFolder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"must hold image files \(\.png.*got none"):
        ImageFolder(tmp_path)
    first = save(tmp_path, "a.png", random_pixels(4, 5, 3))
    with pytest.raises(ValueError, match="needs at least 2 examples, got 1"):
        ImageFolder(tmp_path)
    save(tmp_path, "b.png", random_pixels(4, 5, 3))
    for option, message in (
        ({"channels": 2}, r"channels must be 3 \(RGB\) or 1 \(grey\), got 2"),
        ({"size": 0}, "size must be at least 1 pixel, or None, got 0"),
        ({"test_fraction": 1.0}, r"test_fraction must lie between 0 and 1, got 1\.0"),
        ({"seed": -1}, "seed must be from 0 .* got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageFolder(tmp_path, **option)
    other = save(tmp_path, "c.png", random_pixels(6, 5, 3))
    with pytest.raises(ValueError, match=r"a\.png' has 4 x 5 .*c\.png' has 6 x 5; give size"):
        ImageFolder(tmp_path)
    assert ImageFolder(tmp_path, size=4).shape == (3, 4, 4)
    save(tmp_path, "c.png", random_pixels(4, 5).astype(np.uint16) * 257)
    with pytest.raises(ValueError, match=r"c\.png' must have 8 bits per channel"):
        ImageFolder(tmp_path)
    Path(other).write_text("no image")
    with pytest.raises(ValueError, match=r"c\.png' is not an image that can be read"):
        ImageFolder(tmp_path)
    # Only headers are read at first: what is damaged further on is named when it is gathered.
    source = ImageFolderSource([first])
    content = Path(first).read_bytes()
    Path(first).write_bytes(content[:60])
    with pytest.raises(ValueError, match=r"a\.png' cannot be decoded"):
        source.gather(np.array([0]))
    save(tmp_path, "a.png", random_pixels(2, 2, 3))
    with pytest.raises(ValueError, match=r"a\.png' has changed .* 4 x 5 pixels, got 2 x 2"):
        source.gather(np.array([0]))


# --- Arrays in files


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
            r"one shape, got \(2,\) and \(1,\)",
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
        ({"x": BYTES}, {"condition": True, "labels": True}, "are both true; choose one of them"),
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


def test_array_data_refuses_other_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nothing at path='absent.npy'; expected a .npy or"
    ):
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


# --- Batches


def counting(n):
    """Examples that are their own positions."""
    return ArraySource(np.arange(n, dtype=np.int32)[:, None])


def test_every_epoch_is_another_permutation_and_nothing_is_dropped():
    stream = np.concatenate(take(batches(counting(10), batch_size=4, seed=0), 25)).ravel()
    epochs = stream.reshape(10, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 10


def test_orders_are_uniform():
    # All 24 orders of 4 things, 2,400 epochs: chi-squared with 23 degrees of freedom.
    (stream,) = take(batches(counting(4), batch_size=9600, seed=5), 1)
    counts = collections.Counter(map(tuple, stream.reshape(2400, 4).tolist()))
    assert len(counts) == 24
    statistic = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert statistic < 23 + 4 * math.sqrt(2 * 23)


def test_the_order_is_fixed_for_good():
    # A change of these numbers breaks the resumption of every run that exists.
    # Independent of NumPy's own sorting and of its Generator: raw Philox output, sorted by Python.
    for epoch, batch in enumerate(take(batches(counting(6), batch_size=6, seed=7), 3)):
        raw = np.random.Philox(key=[7, epoch]).random_raw(6)
        assert batch.ravel().tolist() == sorted(range(6), key=lambda i: int(raw[i]))
    first = next(batches(counting(6), batch_size=6, seed=7, threads=0))
    assert first.ravel().tolist() == [4, 1, 3, 2, 5, 0]


def test_seeds_differ():
    one, same, two = (
        np.concatenate(take(batches(counting(50), batch_size=25, seed=seed), 4))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("chunk", [None, 3])
def test_threads_and_prefetch_change_nothing(chunk):
    def first(**options):
        return np.stack(
            take(batches(counting(11), batch_size=5, seed=3, chunk=chunk, **options), 40)
        )

    plain = first(threads=0)
    for options in (
        {},
        {"prefetch": 0},
        {"threads": 8, "prefetch": 32},
        {"threads": 8, "prefetch": 2},
    ):
        np.testing.assert_array_equal(first(**options), plain)


def test_chunks_are_the_same_batches_stacked():
    single = take(batches(counting(11), batch_size=5, seed=3), 12)
    stacked = take(batches(counting(11), batch_size=5, seed=3, chunk=4), 3)
    assert stacked[0].shape == (4, 5, 1)
    np.testing.assert_array_equal(np.concatenate(stacked), np.stack(single))


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(("chunk", "start"), [(None, 0), (3, 0), (3, 7)])
def test_a_restored_iterator_goes_on(threads, chunk, start):
    def make():
        return batches(
            counting(11), batch_size=5, seed=3, chunk=chunk, start=start, threads=threads
        )

    original = make()
    for _ in range(6):
        next(original)
    state = json.loads(json.dumps(original.get_state()))
    rest = [next(original) for _ in range(5)]
    other = make()
    next(other)  # has read ahead from the wrong place
    other.set_state(state)
    for one, two in zip(rest, take(other, 5), strict=True):
        np.testing.assert_array_equal(one, two)
    original.set_state(state)  # back in time
    np.testing.assert_array_equal(next(original), rest[0])
    original.close()


@pytest.mark.parametrize("chunk", [None, 2, 5])
def test_start_is_enough_to_go_on(chunk):
    whole = take(batches(counting(11), batch_size=5, seed=3), 27)
    later = np.stack(take(batches(counting(11), batch_size=5, seed=3, start=7, chunk=chunk), 4))
    later = later.reshape(-1, 5, 1)
    np.testing.assert_array_equal(later, np.stack(whole)[7 : 7 + len(later)])
    # As far on as a long run gets: no pass over what comes before.
    (far,) = take(batches(counting(11), batch_size=11, seed=3, start=10**12), 1)
    assert sorted(far.ravel().tolist()) == list(range(11))


def test_a_source_smaller_than_a_batch():
    first, second = take(batches(counting(3), batch_size=8, seed=0), 2)
    stream = np.concatenate([first, second]).ravel()[:15].reshape(5, 3)
    assert all(sorted(epoch) == [0, 1, 2] for epoch in stream.tolist())
    (ordered,) = take(batches(counting(3), batch_size=8, seed=0, shuffle=False), 1)
    assert ordered.ravel().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("batch_size", "drop", "sizes"),
    [(4, False, [4, 4, 3]), (4, True, [4, 4]), (11, False, [11]), (20, False, [11])],
)
def test_one_pass_in_order(batch_size, drop, sizes):
    items = list(
        batches(
            counting(11), batch_size=batch_size, seed=0, shuffle=False, repeat=False,
            drop_remainder=drop,
        )
    )  # fmt: skip
    assert [len(item) for item in items] == sizes
    assert np.concatenate(items).ravel().tolist() == list(range(sum(sizes)))


def test_one_pass_shuffled_chunked_and_resumed():
    def one(**options):
        return list(batches(counting(11), batch_size=2, seed=9, repeat=False, **options))

    whole = one()
    assert len(whole) == 5
    assert len(set(np.concatenate(whole).ravel().tolist())) == 10
    np.testing.assert_array_equal(np.concatenate(one(chunk=2)), np.stack(whole[:4]))
    np.testing.assert_array_equal(np.stack(one(start=3)), np.stack(whole[3:]))
    assert one(start=5) == []


def test_batches_keep_dtype_and_shape():
    array = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    iterator = batches(ArraySource(array), batch_size=4, seed=0)
    assert isinstance(iterator, BatchIterator)
    assert iter(iterator) is iterator
    batch = next(iterator)
    assert (batch.shape, batch.dtype) == ((4, 2, 3), np.float32)
    iterator.close()


def test_an_error_while_reading_reaches_the_caller(tmp_path):
    file = save(tmp_path, "a.png", random_pixels(4, 5, 3))
    source = ImageFolderSource([file])
    os.remove(file)
    iterator = batches(source, batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"a\.png' cannot be decoded"):
        next(iterator)
    iterator.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"start": -1}, "start must be at least 0, got -1"),
        ({"threads": -1}, "threads must be at least 0, got -1"),
        ({"prefetch": -1}, "prefetch must be at least 0, got -1"),
        ({"seed": 2**64}, "seed must be from 0 to 18446744073709551615"),
        ({"repeat": False, "start": 4}, "start must be at most 3, the end of the pass, got 4"),
        ({"repeat": False, "batch_size": 12}, "holds 11 examples, fewer than one item of 12"),
        ({"repeat": False, "chunk": 4}, "fewer than one item of 12"),
        ({"repeat": False, "chunk": 2, "drop_remainder": False}, "got chunk=2, leave it out"),
    ],
)
def test_batches_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        batches(counting(11), **({"batch_size": 3, "seed": 0} | options))


def test_nothing_heavy_is_imported():
    code = (
        "import sys, diffkit.data; "
        "print([m for m in ('grain', 'sklearn', 'PIL') if m in sys.modules])"
    )
    root = str(Path(sys.modules["diffkit.data"].__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout) == []
