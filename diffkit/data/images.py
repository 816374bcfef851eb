"""A folder of image files, decoded on demand."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import equinox as eqx
import numpy as np
from jaxtyping import Int, Shaped

from diffkit.data.base import AbstractDataset, AbstractSource, SubsetSource
from diffkit.data.reading import existing_folder, split_indices
from diffkit.lazy import needed
from diffkit.registry import register

_ENDINGS: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class ImageFolderSource(AbstractSource):
    """Image files as `(channels, height, width)` arrays of uint8.

    Only the headers are read at first. Gathering decodes a file each time: converts it to grey or RGB
    (without transparency and the camera's orientation) and, with a size, crops it to the largest centred
    square and resizes it with an antialiased bicubic filter. An animation counts as its first frame.
    """

    files: tuple[str, ...] = eqx.field(static=True)
    size: int | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, files: Sequence[str | os.PathLike[str]], size: int | None = None, channels: int = 3):
        """**Arguments:** `files`: the paths of the images; `size`: the height and width to resize them to,
        in pixels, `None` for images that all have one size; `channels`: 3 for RGB, 1 for grey.

        **Raises:** `ValueError` if there are no files, for a file that is not an image of 8 bits per
        channel or, without `size`, for the first file of another size; `ImportError` without Pillow.
        """
        if channels not in (1, 3):
            raise ValueError(f"channels must be 3 (RGB) or 1 (grey), got {channels}.")
        if size is not None and size < 1:
            raise ValueError(f"size must be at least 1 pixel, or None, got {size}.")
        if not files:
            raise ValueError("files must name at least one image, got none.")
        self.files = tuple(os.fspath(file) for file in files)
        self.size = size
        shape = None
        for file in self.files:
            width, height = _header(file)
            if shape is None:
                shape = (channels, size or height, size or width)
            elif size is None and (height, width) != shape[1:]:
                raise ValueError(
                    f"with size=None all images must have one size: {self.files[0]!r} has "
                    f"{shape[1]} x {shape[2]} pixels (height x width), {file!r} has "
                    f"{height} x {width}; give size=... to crop and resize them."
                )
        assert shape is not None
        self.shape = shape

    def __len__(self) -> int:
        return len(self.files)

    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        batch = np.empty((len(indices), *self.shape), np.uint8)
        for row, index in enumerate(indices):
            batch[row] = _decode(self.files[index], self.size, self.shape)
        return batch


@register("data", "image_folder")
class ImageFolder(AbstractDataset):
    """The images in a folder and in the folders below it, with 256 levels.

    Takes files that end in `.png`, `.jpg`, `.jpeg`, `.webp`, `.bmp` or `.gif`, in the order of their paths,
    but no hidden ones. Subfolders `train` and `test` are the split; without them it is random but fixed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        channels: int = 3,
        test_fraction: float = 0.1,
        seed: int = 0,
    ):
        """**Arguments:** `path`: the folder; `size`, `channels`: as for `ImageFolderSource`;
        `test_fraction`: the share of test images, between 0 and 1; `seed`: of the random split. The last
        two are unused with subfolders.

        **Raises:** `FileNotFoundError` if the folder is missing; `ValueError` if it has no images,
        images of different sizes without `size`, a file that is not an image, or only one of `train`
        and `test`; `ImportError` without Pillow.
        """
        folder = existing_folder(path, "ImageFolder", "a folder of images")
        own = [name for name in ("train", "test") if (folder / name).is_dir()]
        if len(own) == 1:
            raise ValueError(
                f"ImageFolder: path={str(path)!r} must have both subfolders 'train' and 'test', or "
                f"neither, got only {own[0]!r}."
            )
        parts = [_files(folder / name) for name in own] or [_files(folder)]
        images = ImageFolderSource([file for part in parts for file in part], size, channels)
        if own:
            split = np.split(np.arange(len(images)), [len(parts[0])])
        else:
            split = split_indices(len(images), test_fraction, seed, "ImageFolder")
        self.train, self.test = (SubsetSource(images, part) for part in split)
        self.levels, self.shape = 256, images.shape


def _files(folder: Path) -> list[str]:
    found = []
    for file in folder.rglob("*"):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if file.suffix.lower() in _ENDINGS and not hidden and file.is_file():
            found.append((inside.as_posix(), str(file)))
    if not found:
        raise ValueError(
            f"ImageFolder: path={str(folder)!r} must hold image files ({', '.join(_ENDINGS)}), got none."
        )
    return [file for _, file in sorted(found)]


def _open(file: str) -> Any:
    return needed("PIL.Image", "images need Pillow").open(file)


def _header(file: str) -> tuple[int, int]:
    """Width and height in pixels, from the header alone."""
    try:
        with _open(file) as image:
            mode, size = image.mode, image.size
    except ImportError:
        raise
    except Exception as error:  # Pillow raises several kinds, by format and damage
        raise ValueError(f"{file!r} is not an image that can be read: {error}") from error
    if mode.startswith("I") or mode == "F":
        raise ValueError(f"{file!r} must have 8 bits per channel, got more (mode {mode!r}).")
    return size


def _decode(
    file: str, size: int | None, shape: tuple[int, ...]
) -> Shaped[np.ndarray, "channels height width"]:
    try:
        with _open(file) as image:
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")
            image = image.convert("L" if shape[0] == 1 else "RGB")
            if size is not None and image.size != (size, size):
                side = min(image.size)
                left, top = ((length - side) // 2 for length in image.size)
                # Not `resize(..., box=...)`, whose filter reaches over the edges of the box.
                image = image.crop((left, top, left + side, top + side))
                image = image.resize((size, size), 3)  # Pillow's number for its bicubic filter
            pixels = np.asarray(image)
    except Exception as error:
        raise ValueError(f"{file!r} cannot be decoded: {error}") from error
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape != (*shape[1:], shape[0]):
        raise ValueError(
            f"{file!r} has changed since the dataset was made: expected {shape[1]} x {shape[2]} pixels, "
            f"got {pixels.shape[0]} x {pixels.shape[1]}."
        )
    return pixels.transpose(2, 0, 1)
