"""IDX files, written here byte by byte, and those of MNIST where they are there."""

import collections
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from sources import everything, labels_of

from diffkit.data import Idx, condition_size, read_idx

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


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
        (idx_bytes(0x08, (1,) * 200, b"\0"), "has 200 axes"),
        (PACKED[:-12], "damaged or was not downloaded in full"),
        (PACKED[:10] + b"\xff" * 20, "damaged or was not downloaded in full"),
        (PACKED[:-8] + bytes(8), "damaged or was not downloaded in full: CRC"),
        (
            gzip.compress(idx_bytes(0x0E, (2**32 - 1,) * 2, bytes(6)), mtime=0),
            "more than this machine",
        ),
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
