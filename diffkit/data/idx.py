"""The IDX format of MNIST and its relatives (Fashion-MNIST, KMNIST, EMNIST ...).

An IDX file, often compressed with gzip, is a header and an array in row-major order. The header's first
four bytes are 0, 0, a code for the dtype and the rank; the length of each axis follows as a big-endian
32-bit integer. Numbers of more than one byte are big-endian.
"""

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Shaped, UInt8

from diffkit.data.arrays import ArraySource
from diffkit.data.base import AbstractDataset
from diffkit.data.conditions import LabelledSource
from diffkit.data.reading import check_memory, existing_folder, existing_path
from diffkit.registry import register

_DTYPES: Final = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PIECE: Final = 2**20


def read_idx(path: str | os.PathLike[str]) -> Shaped[np.ndarray, "*shape"]:
    """The array in an IDX file, in the machine's byte order: all dtypes of the format and any rank.

    Memory grows with the content of the file, not with what its header claims.

    **Arguments:** `path`: the file, plain or gzip, as its content shows.

    **Raises:** `FileNotFoundError`; `ValueError` for another format, or a number of bytes that does
    not match the header.
    """
    file = existing_path(path, "read_idx", "an IDX file, plain or gzip")
    if not file.is_file():
        raise ValueError(f"read_idx: path={str(path)!r} is not a file; expected an IDX file.")
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            return _parse(raw, file, file.stat().st_size)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse(stream, file, None)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"read_idx: {str(file)!r} is damaged or was not downloaded in full: {error}"
            ) from error


def _parse(stream: io.BufferedIOBase, file: Path, size: int | None) -> Shaped[np.ndarray, "*shape"]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise ValueError(
            f"read_idx: {str(file)!r} is not an IDX file: it must begin with two zero bytes, a code for "
            f"the dtype ({', '.join(f'{code:02x}' for code in _DTYPES)}) and the rank, got the bytes "
            f"{magic.hex(' ') or 'of an empty file'}."
        )
    dtype, rank = np.dtype(_DTYPES[magic[2]]), magic[3]
    if rank > 32:
        raise ValueError(f"read_idx: {str(file)!r} says that it has {rank} axes, over 32.")
    header = stream.read(4 * rank)
    if len(header) < 4 * rank:
        raise ValueError(f"read_idx: {str(file)!r} ends within the header, which has {rank} axes.")
    shape = struct.unpack(f">{rank}I", header)
    expected = math.prod(shape) * dtype.itemsize
    if size is None:
        check_memory(expected, file, "read_idx")
    else:  # both checked before reading
        _check_size(size - stream.tell(), expected, shape, dtype, file)
    content = bytearray()
    while piece := stream.read(min(_PIECE, expected + 1 - len(content))):
        content += piece
        if len(content) > expected:
            break
    _check_size(len(content), expected, shape, dtype, file)
    array = np.frombuffer(content, dtype)
    return array.astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _check_size(there: int, expected: int, shape: tuple[int, ...], dtype: np.dtype, file: Path) -> None:
    said = f"{expected} bytes of data"
    if there > expected:
        raise ValueError(
            f"read_idx: {str(file)!r} holds more than the {said} that its header says (shape {shape}, "
            f"{dtype.name})."
        )
    if there < expected:
        raise ValueError(
            f"read_idx: {str(file)!r} is truncated: its header says {said} (shape {shape}, {dtype.name}), "
            f"got {there}."
        )


@register("data", "idx")
class Idx(AbstractDataset):
    """MNIST, or data in its format with their split: grey images `(1, height, width)`, 256 levels."""

    def __init__(self, path: str | os.PathLike[str], labels: bool = False):
        """**Arguments:** `path`: the folder with the files under their original names,
        `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte`, plain or with `.gz`; `labels`: whether an
        image comes with its class, from `train-labels-idx1-ubyte` and `t10k-labels-idx1-ubyte`. The largest
        label determines the number of classes.

        **Raises:** `FileNotFoundError` if the folder or one of the files is missing; `ValueError`
        for a damaged file, or one without 8-bit images or a label for each of them.
        """
        folder = existing_folder(path, "Idx", "a folder with the files of MNIST")
        train, test = (_read(folder, part)[:, None] for part in ("train", "t10k"))
        if train.shape[1:] != test.shape[1:]:
            raise ValueError(
                f"Idx: the images to train on and to test on in {str(path)!r} must have one shape, "
                f"got {train.shape[1:]} and {test.shape[1:]}."
            )
        self.train, self.test = ArraySource(train), ArraySource(test)
        if labels:
            first, second = _read(folder, "train", len(train)), _read(folder, "t10k", len(test))
            classes = 1 + int(max(first.max(), second.max()))
            self.train = LabelledSource(self.train, first, classes)
            self.test = LabelledSource(self.test, second, classes)
        self.levels, self.shape = 256, self.train.shape


def _read(folder: Path, part: str, count: int | None = None) -> UInt8[np.ndarray, "n ..."]:
    """The images of a part, or its labels, if there must be `count` of them."""
    what, rank, wanted = "images", 3, "uint8 images (n, height, width)"
    if count is not None:
        what, rank, wanted = "labels", 1, f"a uint8 label for each of the {count} images"
    names = [f"{part}-{what}{dot}idx{rank}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"Idx: {str(folder)!r} must hold the file {names[0]} or {names[1]}, got {_listing(folder)}."
        )
    array = read_idx(file)
    right = array.ndim == rank and array.dtype == np.uint8 and array.size > 0
    if not right or count not in (None, len(array)):
        raise ValueError(
            f"Idx: {str(file)!r} must hold {wanted}, got {array.dtype} with the shape {array.shape}."
        )
    return array


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir()) or ["an empty folder"]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
