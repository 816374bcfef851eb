"""CIFAR-10 in files that are written here byte by byte."""

import collections
import os
import pickle
import struct

import numpy as np
import pytest
from sources import everything, labels_of

from diffkit.data import Cifar10, condition_size

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
    with pytest.raises(ValueError, match=r"data_batch_2' must have a list of 3 integers from 0 to 9"):
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
        (b"\x80\2Nr\xff\xff\xff\x7f.", "must be a dictionary with a uint8 array"),
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
