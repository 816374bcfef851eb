"""The input and output of the commands: folders of images, arrays, data sets.

A folder comes back with the same names, order and pixels, always as PNG. Not kept: the files' own bytes,
metadata such as EXIF and dates, and hidden files. What would change pixels or how they look is refused.
"""

import contextlib
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from jaxtyping import Int, Integer, UInt8

import diffkit as dk
from diffkit.data import AbstractDataset, AbstractSource, ArraySource
from diffkit_bitsback.errors import CannotEncode, DamagedFile

# Images read at a time.
_PIECE: Final = 64
# By the number of channels: a name, and Pillow's modes that become it without loss.
_KINDS: Final = {1: ("grey", ("L",)), 3: ("RGB", ("L", "P", "RGB"))}
# The most parts of a path: more are useless, and mkdir and rmtree are recursive.
_MAX_DEPTH: Final = 64
# Windows takes these for devices, with any extension.
_DEVICE: Final = re.compile(r"(?i)(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[1-9¹²³]) *(\..*)?")


class FolderSource(AbstractSource):
    """The images of a folder and its subfolders, by name.

    **Attributes:** `folder`; `names`: paths in it with `/`, sorted; `shape`: that all images must have.
    """

    folder: Path
    names: tuple[str, ...]
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def kept_names(self) -> tuple[str, ...]:
        """The names of the restored images, which end in .png."""
        kept: dict[str, str] = {}
        for name in self.names:
            path = PurePosixPath(name)
            png = name if path.suffix.lower() == ".png" else str(path.with_suffix(".png"))
            if png in kept:
                both = f"{kept[png]!r} and {name!r}"
                raise CannotEncode(f"{both} would both come back as {png!r}: rename one of them.")
            if not _is_safe(png):
                raise CannotEncode(f"the file name {name!r} cannot be kept in a file: rename it.")
            kept[png] = name
        return tuple(kept)

    def gather(self, indices: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n *shape"]:
        return np.stack([_pixels(self.folder / self.names[i], self.shape) for i in indices])


def pieces(source: AbstractSource, count: int) -> Iterator[Integer[np.ndarray, "images *shape"]]:
    """The first `count` images, a few at a time."""
    for first in range(0, count, _PIECE):
        yield source.gather(np.arange(first, min(first + _PIECE, count)))


def expanded(path: str) -> Path:
    """A path with the home directory for its `~`; one that is nobody's stays as it is."""
    return Path(os.path.expanduser(path))


def find_images(given: str, run: dk.Run, data: AbstractDataset | None = None) -> AbstractSource:
    """The images that an argument of a command names.

    **Arguments:** `given`: a folder, a .npy file, or `test` or `train`; an existing path takes precedence.
    `run`: the run; `data`: the dataset of `test` and `train`, by default the run's own.

    **Raises:** `ValueError` if it does not fit the model; `FileNotFoundError` if it is none of these.
    """
    path = expanded(given)
    if path.exists() and data is not None:
        raise ValueError(f"{given!r} is a path: data= is for test and train.")
    if path.is_dir():
        return _folder(path, run.model.shape)
    if path.exists():
        return ArraySource(_array(path, run.model.shape))
    if given not in ("test", "train"):
        raise FileNotFoundError(
            f"there is nothing at {given!r}. Give a folder of images, a .npy file, or test or train: of "
            f"the run's own data, or of data=NAME, one of {', '.join(dk.available('data'))}."
        )
    data = run.data() if data is None else data
    source = data.test if given == "test" else data.train
    if source.shape != run.model.shape:
        found = f"the images of {given!r} have the shape {source.shape}"
        raise ValueError(f"{found}, the model is for {run.model.shape}.")
    return source


def _array(path: Path, shape: tuple[int, ...]) -> Integer[np.ndarray, "images *shape"]:
    sizes = ", ".join(map(str, shape))
    wrong = f"{str(path)!r} must be a .npy file of integers of the shape (images, {sizes})"
    try:
        array = dk.data.read_npy(path, "array")
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}") from error
    if array.shape[1:] != shape or array.ndim < 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{wrong}, got {array.dtype} of the shape {array.shape}.")
    return array


def _folder(folder: Path, shape: tuple[int, ...]) -> FolderSource:
    if len(shape) != 3 or shape[0] not in _KINDS:
        expected = "a folder of images is for models of grey or RGB images"
        raise ValueError(f"{expected}, got a model of the shape {shape}: give a .npy file.")
    found = sorted(file.relative_to(folder).as_posix() for file in _files(folder))
    if not found:
        raise ValueError(f"there are no files in the folder {str(folder)!r}.")
    source = FolderSource(folder=folder, names=tuple(found), shape=shape)
    source.kept_names()
    for name in source.names:  # headers first, before any work begins
        _check(folder / name, shape)
    for index in range(len(source)):  # what is damaged would else be found after hours of coding
        source.gather(np.array([index]))
    return source


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, except hidden ones; none is silently skipped."""

    def fail(error: OSError) -> None:  # os.walk skips what it cannot read
        raise error

    for top, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]  # where it goes on
        for below in (Path(top, name) for name in folders):
            if below.is_symlink():
                raise ValueError(f"{str(below)!r} is a link to a folder: give the real folder.")
        for file in (Path(top, name) for name in files if not name.startswith(".")):
            if not file.is_file():
                raise ValueError(f"{str(file)!r} is not a file: a broken link, a pipe or the like.")
            yield file


def _check(file: Path, shape: tuple[int, ...]) -> None:
    """Refuse an image file whose pixels do not fit an array of this shape without loss."""
    header = dk.data.image_header(file)
    kind, modes = _KINDS[shape[0]]
    lost = list(header.losses)
    if not lost and header.mode not in modes:
        lost.append("colours")
    if lost:
        raise ValueError(
            f"{str(file)!r} must be one {kind} image with 8 bits per channel and without transparency, "
            f"upright and in the colours of sRGB, so that no pixel changes, got {', '.join(lost)}."
        )
    if (header.height, header.width) != shape[1:]:
        wrong = f"{str(file)!r} must have {shape[1]} x {shape[2]} pixels (height x width)"
        raise ValueError(f"{wrong} as the model has, got {header.height} x {header.width}.")


def _pixels(file: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "channels height width"]:
    _check(file, shape)
    pixels = dk.data.image_pixels(file, shape[0])
    if pixels.shape[:2] != shape[1:]:  # changed in between
        raise ValueError(f"{str(file)!r} has {pixels.shape[0]} x {pixels.shape[1]} pixels.")
    return pixels.transpose(2, 0, 1)


def _is_safe(name: str) -> bool:
    """Whether a name leads to a PNG file inside a folder on every operating system."""
    parts = name.split("/")
    try:
        lengths = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:  # bytes that are not text
        return False
    return (
        name.lower().endswith(".png")
        and len(parts) <= _MAX_DEPTH
        and all(0 < length <= 255 for length in lengths)
        and sum(lengths) <= 2048
        and not any(part in (".", "..") or part.endswith((" ", ".")) for part in parts)
        and not any(_DEVICE.fullmatch(part) for part in parts)
        and not any(ord(letter) < 32 or letter in '\\:*?"<>|\x7f' for letter in name)
    )


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to replace what exists.

    **Raises:** `FileExistsError`.
    """
    if out.is_dir():
        raise FileExistsError(f"OUT must not exist yet, {str(out)!r} is a folder.")
    if out.exists() and not overwrite:
        found = f"there is a file at {str(out)!r}"
        raise FileExistsError(f"OUT must not exist yet, {found}: name another, or add overwrite=true.")


def _check_free_for_folder(out: Path) -> None:
    if out.exists():
        found = f"{str(out)!r} is a {'folder' if out.is_dir() else 'file'}"
        raise FileExistsError(
            f"OUT must not exist yet, {found}, which a folder never replaces: name another."
        )


def _temporary(out: Path) -> Path:
    """A hidden name beside `out`, until all is written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent / f".diffkit-{secrets.token_hex(4)}.part"


@contextlib.contextmanager
def new_file(out: Path, *, overwrite: bool) -> Iterator[io.BufferedRandom]:
    """A file that appears only when it is complete.

    **Raises:** `FileExistsError` if something is in its place, at the beginning or at the end.
    """
    check_free(out, overwrite)
    place = _temporary(out)
    try:
        with place.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        check_free(out, overwrite)
        place.replace(out)
    finally:
        place.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that appears only when it is complete.

    **Raises:** `FileExistsError` as `new_file`; a folder never replaces anything.
    """
    _check_free_for_folder(out)
    place = _temporary(out)
    place.mkdir()
    try:
        yield place
        _check_free_for_folder(out)
        place.rename(out)
    finally:
        shutil.rmtree(place, ignore_errors=True)


class ArrayWriter:
    """Writes a .npy file a few images at a time.

    **Arguments:** `file`: open for writing, at its start; `shape`: of one image; `dtype`.
    """

    def __init__(self, file: BufferedIOBase, shape: tuple[int, ...], dtype: np.dtype):
        self._file, self._shape, self._dtype = file, shape, dtype.newbyteorder("<")
        self._count = 0
        self._length = len(self._start())
        file.write(self._start())

    def _start(self) -> bytes:
        # NumPy leaves room in it, so its length does not change when the number of images grows.
        start, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self._dtype)
        header = {"shape": (self._count, *self._shape), "fortran_order": False, "descr": descr}
        np.lib.format.write_array_header_1_0(start, header)
        return start.getvalue()

    def write(self, images: Integer[np.ndarray, "images *shape"]) -> None:
        """Append images."""
        self._file.write(np.ascontiguousarray(images, dtype=self._dtype).tobytes())
        self._count += len(images)

    def close(self) -> None:
        """Write the number of images at the start of the file; the file stays open."""
        start = self._start()
        if len(start) != self._length:
            raise RuntimeError("NumPy's header of a .npy file has changed its length.")
        self._file.seek(0)
        self._file.write(start)
        self._file.seek(0, os.SEEK_END)


def write_images(
    folder: Path, images: Integer[np.ndarray, "images *shape"], names: tuple[str, ...]
) -> None:
    """Write images into a new folder, as PNG.

    **Raises:** `DamagedFile` for names that lead out of the folder, are repeated or missing, and for values
    above 255.
    """
    from PIL import Image

    if len(names) != len(images) or images.ndim != 4 or images.shape[1] not in _KINDS:
        raise DamagedFile("the file says that it holds a folder of images, but gives no names.")
    if images.max(initial=0) > 255:
        raise DamagedFile(f"a folder of images has values from 0 to 255, got {images.max()}.")
    for name, image in zip(names, images, strict=True):
        if not _is_safe(name):
            raise DamagedFile(f"{name!r:.200} cannot be the name of an image in a folder.")
        path = folder / name
        pixels = image.astype(np.uint8).transpose(1, 2, 0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(file, "PNG")
        except (FileExistsError, NotADirectoryError) as error:
            raise DamagedFile(f"the name {name!r:.200} stands for two things.") from error
