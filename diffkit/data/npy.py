"""The files of NumPy, `.npy` and `.npz`, with their headers checked before anything is allocated.

Python objects in them are never read, as that would run what the file says.
"""

import math
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from diffkit.data.reading import check_memory

_PACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_RATIO: Final = 1032  # how much smaller than its content deflated data can be


def read_npy(path: str | os.PathLike[str], owner: str = "read_npy") -> Any:
    """The array of a `.npy` file, mapped into memory.

    **Arguments:** `path`: the file; `owner`: what an error message begins with.

    **Raises:** `ValueError`, naming the file, if it is damaged, holds Python objects, or holds more or less
    than its header says.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            if zipfile.is_zipfile(stream):
                raise ValueError("it is a .npz archive")
            stream.seek(0)
            shape, _, dtype = _header(stream)
            place, size = stream.tell(), file.stat().st_size
        _check_size(shape, dtype, size - place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that Python 2 wrote
            return np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # by the kind of damage
        raise ValueError(
            f"{owner}: {str(file)!r} cannot be read as a .npy file of numbers: {error}"
        ) from error


class Npz:
    """The arrays of a `.npz` file by name, read when they are asked for. A context manager."""

    def __init__(self, file: Path, owner: str):
        """**Raises:** `ValueError`, naming the file, if it is not a `.npz` file."""
        self._file, self._owner = file, owner
        try:
            self._archive = zipfile.ZipFile(file)
        except Exception as error:
            raise self._error(error) from error
        members = self._archive.namelist()
        self.names = tuple(name.removesuffix(".npy") for name in members)
        if len(set(self.names)) < len(members):
            self._archive.close()
            raise self._error("two arrays have one name")
        self._members = dict(zip(self.names, members, strict=True))

    def __enter__(self) -> "Npz":
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    def __getitem__(self, name: str) -> np.ndarray:
        """**Raises:** `ValueError`, naming the file and the array, if it is damaged or holds no numbers."""
        info = self._archive.getinfo(self._members[name])
        try:
            there = self._file.stat().st_size
            if info.compress_type not in _PACKED:
                raise ValueError("it is compressed in another way than NumPy's")
            if info.compress_size > there or info.file_size > _RATIO * info.compress_size + 2**10:
                raise ValueError(
                    f"its header says {info.file_size} bytes, which {min(there, info.compress_size)} bytes "
                    "cannot hold"
                )
            check_memory(info.file_size, self._file, self._owner)
            with self._archive.open(info) as stream:
                shape, _, dtype = _header(stream)
                _check_size(shape, dtype, info.file_size - stream.tell())
            with self._archive.open(info) as stream, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return np.lib.format.read_array(stream, allow_pickle=False)
        except Exception as error:  # of zip, zlib, the header, or memory
            raise self._error(f"{name}: {error}") from error

    def _error(self, error: object) -> ValueError:
        return ValueError(
            f"{self._owner}: {str(self._file)!r} cannot be read as a .npz file of numbers: {error}"
        )


def _header(stream: BinaryIO | Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype."""
    version = np.lib.format.read_magic(stream)
    known = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in known:
        raise ValueError(f"it has the version {version} of the format, of arrays with named fields")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape, fortran, dtype = known[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if any(length < 0 for length in shape):
        raise ValueError(f"its header says the shape {shape}")
    return shape, fortran, dtype


def _check_size(shape: tuple[int, ...], dtype: np.dtype, there: int) -> None:
    expected = math.prod(shape) * dtype.itemsize
    if expected != there:
        wrong = "truncated or its header lies" if there < expected else "longer than its array"
        raise ValueError(
            f"it is {wrong}: {dtype} of the shape {shape} has {expected} bytes, there are {there}"
        )
