"""Damaged and hostile data files: every reader answers with data or with an error that names the file.

Memory is bounded: a header that lies is found before anything is allocated, so no error comes from memory.
"""

import contextlib
import gzip
import io
import pickle
import random
import struct
import zipfile
import zlib

import known
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from image_kinds import saved
from sources import chunk, png, random_pixels

from diffkit.data import ArrayData, image_header, image_pixels, read_idx, read_npy
from diffkit.data.cifar import _read_binary, _read_pickle
from diffkit.data.record import _recorded

RGB = random_pixels(12, 10, 3)


def _npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _npz(**arrays):
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _idx(shape, content):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + content


def _image(file):
    image_header(file)
    return image_pixels(file, convert=True)


def _cifar(reader):
    return lambda file: reader(file, True)[0]


FLAT = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
GREY, TWELVE = RGB[..., 0], np.arange(12)
READERS = {
    "x.npy": (read_npy, [_npy(GREY), _npy(np.zeros((3, 2), np.float32))]),
    "x.npz": (
        lambda file: ArrayData(file, levels=256, labels=True).train.gather(np.array([0])),
        [
            _npz(x=GREY, labels=TWELVE),
            _npz(train=GREY, test=GREY, train_labels=TWELVE, test_labels=TWELVE),
        ],
    ),
    "images-idx": (read_idx, [_idx((3, 4, 2), bytes(24)), gzip.compress(_idx((9, 9), bytes(81)))]),
    "batch.bin": (_cifar(_read_binary), [b"\x03" + bytes(3072) + b"\x09" + bytes(3072)]),
    "batch": (
        _cifar(_read_pickle),
        [pickle.dumps({b"labels": [1, 2], b"data": FLAT}, protocol) for protocol in (0, 2, 4, 5)],
    ),
    "a.png": (_image, [png(8, 2), png(16, 2), png(2, 3), saved(RGB, "PNG", icc_profile=b"x" * 200)]),
    "a.jpg": (_image, [saved(RGB, "JPEG"), saved(GREY, "JPEG", progressive=True)]),
    "a.gif": (_image, [saved(GREY, "GIF")]),
    "a.webp": (_image, [saved(RGB, "WEBP"), saved(RGB, "WEBP", lossless=True)]),
    "a.bmp": (_image, [saved(RGB, "BMP"), saved(GREY, "BMP")]),
    "a.tif": (_image, [saved(RGB, "TIFF"), saved(GREY, "TIFF", compression="tiff_lzw")]),
    "data.json": (_recorded, [b'{"version": 1, "data": [{"train": {"files": {"a": 1}}, "test": {}}]}']),
}
NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damaged(contents, seed):
    """One of the files with a few changes, most of them near its start, or bytes of no file at all."""
    draw = random.Random(seed)
    content = bytearray(draw.choice(contents))
    if draw.random() < 0.03:
        return draw.randbytes(draw.randrange(200))
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(len(content), 80) if draw.random() < 0.6 else len(content))
        match draw.randrange(6):
            case 0:
                content[at] ^= 1 << draw.randrange(8)
            case 1:
                content[at] = draw.randrange(256)
            case 2:
                content[at : at + 4] = struct.pack(draw.choice("<>") + "I", draw.choice(NUMBERS))
            case 3:
                content[at:at] = draw.randbytes(draw.randint(1, 9))
            case 4:
                del content[at : at + draw.randint(1, 9)]
            case 5:
                del content[max(at, 1) :]
        content = content or bytearray(1)
    return _with_checks(bytes(content)) if draw.random() < 0.7 else bytes(content)


def _with_checks(content):
    """A PNG file with right check sums, since nothing behind a wrong one is read."""
    if content[:4] != b"\x89PNG":
        return content
    out, at = content[:8], 8
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        out += content[at : at + 4] + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        at += 12 + length
    return out + content[at:]


@contextlib.contextmanager
def bounded_memory(more=2**30):
    """At most so many bytes of address space beyond those that the process has."""
    resource = pytest.importorskip("resource")
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        pytest.skip("the size of the process is not known on this system")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def answer(read, file, content):
    """Read a file: nothing but an error that names it comes out, and none of memory."""
    file.write_bytes(content)
    found = None
    try:
        read(file)
    except (ValueError, OSError) as error:
        found = error
    assert found is None or file.name in str(found)
    while found is not None:
        assert not isinstance(found, MemoryError)
        found = found.__cause__ or found.__context__


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("count", [40, pytest.param(known.INPUTS, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_named(tmp_path, name, count):
    read, contents = READERS[name]
    for content in contents[:1]:
        (tmp_path / name).write_bytes(content)
        read(tmp_path / name)  # which is whole

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(st.integers(0, 2**62))
    def check(seed):
        answer(read, tmp_path / name, damaged(contents, seed))

    # Of an image, its most pixels with the copies that Pillow makes.
    with bounded_memory(2**31 if name.startswith("a.") else 2**28):
        check()


def _lying_npy(shape, descr="|u1", there=b"abc"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n" + there


def _zip(method=zipfile.ZIP_DEFLATED, **members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return content.getvalue()


OBJECTS = _npy(np.array([[None, "a"]], dtype=object))
ZEROS = 2**22


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("o.npy", OBJECTS, "Python objects, which are not read"),
        ("l.npy", _lying_npy((2**40, 3)), "its header lies: uint8 of the shape"),
        ("l.npy", _lying_npy((-1, 3)), r"its header says the shape \(-1, 3\)"),
        ("l.npy", _lying_npy((2, 1)), "longer than its array: .* has 2 bytes, there are 3"),
        ("l.npy", _lying_npy((10**30, 10**30)), "its header lies"),
        ("t.npy", b"1.0 2.0\n", "cannot be read as a .npy file"),
        ("z.npy", _npz(x=GREY), "is a .npz archive"),
        ("o.npz", _zip(x_npy=OBJECTS), "x: it holds Python objects, which are not read"),
        ("l.npz", _zip(x_npy=_lying_npy((2**40, 3))), "x: it is truncated or its header lies"),
        ("b.npz", _zip(x_npy=_lying_npy((ZEROS, 64), there=bytes(ZEROS))), "its header lies"),
        ("m.npz", _zip(zipfile.ZIP_BZIP2, x_npy=_npy(GREY)), "compressed in another way than NumPy's"),
        ("t.npz", _zip(x_txt="no array"), "x.txt: the magic string is not correct"),
        ("p.npz", _zip(x_npy=pickle.dumps([1])), "x: the magic string is not correct"),
    ],
)
def test_headers_are_checked_before_allocating(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with bounded_memory(2**28), pytest.raises(ValueError, match=rf"{name}' .*{message}"):
        ArrayData(tmp_path / name, levels=256)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_idx((2**31, 2**31), b"abc"), "truncated: its header says 4611686018427387904 bytes .* got 3"),
        (gzip.compress(_idx((2**31, 2**31), b"abc")), "says that it holds 4611686018427387904 bytes, more"),
        (gzip.compress(_idx((2**28,), b"abc")), "truncated: .* got 3"),
        (gzip.compress(_idx((2, 2), bytes(2**24))), "holds more than the 4 bytes"),
        (gzip.compress(_idx((2, 2), bytes(4)))[:-9], "damaged or was not downloaded in full"),
    ],
    ids=["huge", "huge.gz", "cut.gz", "long.gz", "damaged.gz"],  # gzip stores the time
)
def test_idx_files_that_lie(tmp_path, content, message):
    (tmp_path / "images").write_bytes(content)
    with bounded_memory(2**27), pytest.raises(ValueError, match=f"images' .*{message}"):
        read_idx(tmp_path / "images")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\2Np4000000000\n.",  # the number of a value, for which the standard reader makes room
        b"\x80\2Nr\xff\xff\xff\xff.",
        b"(" * 10**5 + b".",
        b"\x80\2}" + b"(" + b")" + b"\x85" * 10**5 + b"Ns.",  # a key of nested tuples
        b"\x80\2" + b")" + b"q\0h\0h\0\x86" * 60 + b".",
        b"\x80\2}cbuiltins\neval\n(S'1'\ntRs.",
        b"\x80\2cnumpy\nndarray\n(lb.",
        b"\x80\2}U\4dataccopy_reg\n_reconstructor\ns.",
        b"\x82\1.",
        b"P1\n.",
    ],
)
def test_no_opcode_of_a_pickle_acts(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with bounded_memory(2**28), pytest.raises(ValueError, match=r"data_batch_1' (cannot be read|must be)"):
        _read_pickle(tmp_path / "data_batch_1", True)


def test_text_in_an_image_is_no_bomb(tmp_path):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))
    answer(_image, tmp_path / "a.png", png(8, 2, text))
