"""A folder of image files, decoded on demand."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import equinox as eqx
import numpy as np
from jaxtyping import Int, Shaped

from diffkit.data.base import AbstractDataset, AbstractSource, SubsetSource
from diffkit.data.image_files import image_header, image_pixels
from diffkit.data.reading import existing_folder, listed, split_by_name, split_indices
from diffkit.lazy import needed
from diffkit.registry import register

_ENDINGS: Final = (*(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),)
# Of images as well, which are not read: left out in silence, they would be missed late.
_OTHERS: Final = (
    *(".avif", ".heic", ".heif", ".jp2", ".jpe", ".jfif", ".jxl", ".tga", ".qoi", ".pbm", ".pnm", ".ico"),
    *(".apng", ".psd", ".svg", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".dcm"),
)
_THREADS: Final = 4  # each may hold the pixels of a large image


class ImageFolderSource(AbstractSource):
    """Image files as `(channels, height, width)` arrays of uint8.

    Only the headers are read at first. Gathering decodes a file each time: with a size, crops it to the
    largest centred square and resizes it with an antialiased bicubic filter; with one channel, makes it
    grey. What is not 8 bits per channel of grey or RGB, and whole in them, is refused (`image_header`), or
    taken as Pillow converts it with `convert`.

    **Attributes:** `files`: their paths; `names`: the same, from the folder on; `skipped`: names of the
    files that are left out with `skip_bad`.
    """

    files: tuple[str, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    skipped: tuple[str, ...] = eqx.field(static=True)
    size: int | None = eqx.field(static=True)
    convert: bool = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        size: int | None = None,
        channels: int = 3,
        *,
        convert: bool = False,
        skip_bad: bool = False,
        folder: str | os.PathLike[str] | None = None,
    ):
        """**Arguments:**

        - `files`: the paths of the images.
        - `size`: the height and width to resize them to, in pixels, `None` for images that all have one
          size.
        - `channels`: 3 for RGB, 1 for grey.
        - `convert`: take files with more than 8 bits of grey or RGB keep: the first frame, as stored,
          without transparency, orientation and colour profile.
        - `skip_bad`: decode every file now, and leave out those that are refused or damaged.
        - `folder`: what names begin from; by default, names are paths.

        **Raises:** `ValueError`, naming the files, if there are none, for files that are refused and,
        without `size`, for images of another size than the first; `ImportError` without Pillow.

        **Warns:** of the files that `skip_bad` leaves out.
        """
        if channels not in (1, 3):
            raise ValueError(f"channels must be 3 (RGB) or 1 (grey), got {channels}.")
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1 pixel, or None, got {size}.")
        if not files:
            raise ValueError("files must name at least one image, got none.")
        needed("PIL.Image", "images need Pillow")
        given = [os.fspath(file) for file in files]
        name = _namer(folder)
        sizes: dict[str, tuple[int, int]] = {}
        bad: dict[str, str] = {}
        for file in given:
            try:
                header = image_header(file)
                if refusal := header.refusal(convert=convert):
                    raise ValueError(f"{file!r} {refusal}.")
                sizes[file] = (header.height, header.width)
            except ValueError as error:
                bad[file] = str(error)
        if skip_bad:
            bad |= _failures([*sizes], lambda f: image_pixels(f, channels, convert=convert, size=size))
            _warn_of(bad, len(given), name)
        elif bad:
            advice = " (skip_bad=true leaves them out)"
            if any("would not be kept" in message for message in bad.values()):
                advice = " (convert=true takes what Pillow makes of them, skip_bad=true leaves them out)"
            raise ValueError(_list(bad, len(given)) + advice)
        self.files = tuple(file for file in given if file not in bad)
        if not self.files:
            raise ValueError(_list(bad, len(given)))
        self.names = tuple(map(name, self.files))
        self.skipped = tuple(map(name, bad))
        self.size, self.convert = size, convert
        height, width = sizes[self.files[0]]
        self.shape = (channels, size or height, size or width)
        others = [] if size else [file for file in self.files if sizes[file] != (height, width)]
        if others:
            more = f" and {len(others) - 1} more files have other sizes" if len(others) > 1 else ""
            raise ValueError(
                f"with size=None all images must have one size: {self.files[0]!r} has {height} x {width} "
                f"pixels (height x width), {others[0]!r} has {sizes[others[0]][0]} x "
                f"{sizes[others[0]][1]}{more}; give size=... to crop and resize them."
            )

    def __len__(self) -> int:
        return len(self.files)

    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        batch = np.empty((len(indices), *self.shape), np.uint8)
        for row, index in enumerate(indices):
            batch[row] = self._decode(self.files[index])
        return batch

    def damaged(self, indices: Int[np.ndarray, " n"]) -> dict[str, str]:
        """Decode files only to find those that cannot be: their paths, each with an error message."""
        files = [self.files[index] for index in indices]
        return _failures(files, self._decode)

    def _decode(self, file: str) -> Shaped[np.ndarray, "channels height width"]:
        pixels = image_pixels(file, self.shape[0], convert=self.convert, size=self.size)
        if pixels.shape[:2] != self.shape[1:]:
            raise ValueError(
                f"{file!r} has changed since the dataset was made: expected {self.shape[1]} x "
                f"{self.shape[2]} pixels, got {pixels.shape[0]} x {pixels.shape[1]}."
            )
        return pixels.transpose(2, 0, 1)


def _namer(folder: str | os.PathLike[str] | None) -> Callable[[str], str]:
    if folder is None:
        return lambda file: file
    return lambda file: Path(file).relative_to(folder).as_posix()


def _failures(files: Sequence[str], decode: Callable[[str], object]) -> dict[str, str]:
    """The files that cannot be decoded, each with an error message."""

    def message(file: str) -> str | None:
        try:
            decode(file)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = zip(files, pool.map(message, files), strict=True)
        return {file: error for file, error in found if error is not None}


def _list(bad: dict[str, str], count: int) -> str:
    if len(bad) == 1:
        return next(iter(bad.values()))
    return f"{len(bad)} of {count} files cannot be taken: {listed([*bad.values()])}"


def _warn_of(bad: dict[str, str], count: int, name: Callable[[str], str]) -> None:
    if bad:
        first = next(iter(bad.values()))
        warnings.warn(
            f"skip_bad leaves out {len(bad)} of {count} files: {listed([*map(name, bad)])}; {first}",
            stacklevel=3,
        )


@register("data", "image_folder")
class ImageFolder(AbstractDataset):
    """The images in a folder and in the folders below it, with 256 levels.

    Takes files that end in `.png`, `.jpg`, `.jpeg`, `.webp`, `.bmp`, `.gif`, `.tif`, `.tiff`, `.ppm` or
    `.pgm`, in small or capital letters, in the order of their names. Left out are hidden files and folders,
    and files that by their names are no images. Links to folders are followed, each folder once. What would
    be missed is an error that names it: a broken link, a folder that cannot be read, an image in a format
    that is not taken, an image that arrays of 8 bits do not keep.

    Subfolders `train` and `test` are the split. Without them each file has its own place in it, by a hash
    of its name (its path within the folder) and the seed: files that come or go move no other.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        channels: int = 3,
        test_fraction: float = 0.1,
        seed: int = 0,
        split: str = "names",
        convert: bool = False,
        skip_bad: bool = False,
    ):
        """**Arguments:**

        - `path`: the folder.
        - `size`: the height and width to resize images to, in pixels, `None` for images that all have one
          size.
        - `channels`: 3 for RGB, 1 for grey.
        - `test_fraction`: the share of test images, between 0 and 1, which the split meets on average.
        - `seed`: of the split.
        - `split`: `"names"`, as above; or `"positions"`, as older versions split: at random by the place in
          the list of files, so that every file that comes or goes moves others. Unused with subfolders.
        - `convert`: take images that 8 bits of grey or RGB do not keep, as Pillow converts them: the first
          frame, as stored, without transparency, orientation and colour profile.
        - `skip_bad`: leave out files that are refused or damaged, and count them in a warning. Decodes
          every file when the dataset is made.

        **Raises:** `FileNotFoundError` if the folder is missing; `ValueError` if it has no images, files
        that cannot be taken, images of different sizes without `size`, only one of `train` and `test`, or a
        split with an empty part; `OSError` for a folder that cannot be read; `ImportError` without Pillow.

        **Warns:** of images beside the subfolders `train` and `test`, and of files left out by `skip_bad`.
        """
        folder = existing_folder(path, "ImageFolder", "a folder of images")
        if split not in ("names", "positions"):
            raise ValueError(f"ImageFolder: split must be 'names' or 'positions', got {split!r}.")
        parts = _parts(folder)
        found, bad = _walk(folder)
        if bad and not skip_bad:
            raise ValueError(f"ImageFolder: {listed(bad)} (skip_bad=true leaves them out)")
        if bad:
            warnings.warn(f"ImageFolder: skip_bad leaves out {len(bad)} more: {listed(bad)}", stacklevel=2)
        if parts:
            beside = [name for name in found if name.partition("/")[0] not in parts]
            if beside:
                warnings.warn(
                    f"ImageFolder: {len(beside)} images in {str(folder)!r} are not in train or test, and "
                    f"not used: {listed([*map(repr, beside)])}.",
                    stacklevel=2,
                )
            names = [name for part in parts for name in found if name.partition("/")[0] == part]
        else:
            names = found
        for part in parts or [""]:
            if not any(name.startswith(f"{part}/") for name in names) if part else not names:
                raise ValueError(
                    f"ImageFolder: path={str(folder / part)!r} must hold image files "
                    f"({', '.join(_ENDINGS)}), got none."
                )
        images = ImageFolderSource(
            [folder / name for name in names],
            size,
            channels,
            convert=convert,
            skip_bad=skip_bad,
            folder=folder,
        )
        if parts:
            is_test = np.array([name.startswith("test/") for name in images.names])
            divided = np.flatnonzero(~is_test), np.flatnonzero(is_test)
        elif split == "names":
            divided = split_by_name(images.names, test_fraction, seed, "ImageFolder")
        else:
            divided = split_indices(len(images), test_fraction, seed, "ImageFolder")
        for part, indices in zip(("train", "test"), divided, strict=True):
            if len(indices) == 0:
                raise ValueError(f"ImageFolder: no image in {str(folder / part)!r} can be taken.")
        _check_apart(images, *divided)
        self.train, self.test = (SubsetSource(images, part) for part in divided)
        self.levels, self.shape = 256, images.shape


def _parts(folder: Path) -> list[str]:
    """The subfolders `train` and `test`, or none."""
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    own = [name for name in ("train", "test") if name in there]
    if alike := [name for name in there if name not in own and name.lower() in ("train", "test")]:
        raise ValueError(
            f"ImageFolder: write the names of the subfolders as 'train' and 'test', got {alike[0]!r} in "
            f"{str(folder)!r}."
        )
    if len(own) == 1:
        raise ValueError(
            f"ImageFolder: path={str(folder)!r} must have both subfolders 'train' and 'test', or "
            f"neither, got only {own[0]!r}."
        )
    return own


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the image files, sorted, and what is there but cannot be taken, in words.

    Every folder is read once, under its own name before that of a link: so a link to a folder above ends.
    """
    found, bad, known = list[str](), list[str](), set[tuple[int, int]]()
    folders, links = [""], list[str]()
    while folders or links:
        inside = folders.pop() if folders else links.pop(0)
        there = os.stat(folder / inside)
        if (there.st_dev, there.st_ino) in known:
            continue
        known.add((there.st_dev, there.st_ino))
        for entry in _entries(folder / inside):
            name = f"{inside}/{entry.name}" if inside else entry.name
            ending = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(name)
            elif not os.path.exists(entry.path):
                bad.append(f"{entry.path!r} is a broken link.")
            elif ending in _OTHERS:
                bad.append(f"{entry.path!r} is an image in a format that is not taken: convert it.")
            elif ending not in _ENDINGS:
                continue
            elif not entry.is_file():
                bad.append(f"{entry.path!r} is not a file, but a pipe or the like.")
            else:
                found.append(name)
    return sorted(found), sorted(bad)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _check_apart(
    images: ImageFolderSource, train: Int[np.ndarray, " n"], test: Int[np.ndarray, " m"]
) -> None:
    """Refuse a test image that is a training image by another name, through a link."""
    places = [os.stat(file) for file in images.files]
    trained = {(places[i].st_dev, places[i].st_ino): i for i in train}
    for i in test:
        same = trained.get((places[i].st_dev, places[i].st_ino))
        if same is not None and places[i].st_ino:
            raise ValueError(
                f"ImageFolder: {images.files[same]!r}, to train on, and {images.files[i]!r}, to test on, "
                "are one file: remove one of the names."
            )
