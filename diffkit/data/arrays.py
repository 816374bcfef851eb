"""Data in NumPy arrays: in memory, or in a `.npy` or `.npz` file."""

import os
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Int, Shaped

from diffkit.data.base import AbstractDataset, AbstractSource, SubsetSource, _existing, _split
from diffkit.registry import register


class ArraySource(AbstractSource):
    """The rows of one array.

    The array may be memory-mapped (`np.load(..., mmap_mode="r")`) where it is larger than memory.
    """

    array: Shaped[np.ndarray, "n *shape"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, array: Shaped[np.ndarray, "n *shape"]):
        """**Arguments:** `array`: the examples along the first axis; integers or float32.

        **Raises:** `ValueError` if there are no examples, if an example is a lone number or empty,
        or for another dtype.
        """
        if array.ndim < 2 or array.size == 0:
            raise ValueError(
                "ArraySource: array must have an axis of examples and at least one more, none of "
                "them "
                f"empty, got the shape {array.shape}."
            )
        if not np.issubdtype(array.dtype, np.integer) and array.dtype != np.float32:
            raise ValueError(
                f"ArraySource: array must hold integers or float32, got {array.dtype}; "
                "convert it with array.astype(...)."
            )
        self.array = array
        self.shape = tuple(array.shape[1:])

    def __len__(self) -> int:
        return self.array.shape[0]

    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        return np.ascontiguousarray(self.array[indices])


@register("data", "array")
class ArrayData(AbstractDataset):
    """Examples of your own from a `.npy` or `.npz` file.

    A `.npy` file holds one array, which is split at random into training and test examples; so
    does a `.npz` file with one array, or with one named `x`. A `.npz` file with the arrays `train`
    and `test` keeps its own split. Give `levels` for integers and leave it out for floats. Every
    value is checked once, when the dataset is made; a `.npy` file is then mapped, not loaded, if
    it holds uint8, int32 or float32.
    """

    train: AbstractSource
    test: AbstractSource
    levels: int | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        path: str | os.PathLike[str],
        levels: int | None = None,
        channels_last: bool = False,
        test_fraction: float = 0.1,
        seed: int = 0,
    ):
        """**Arguments:**

        - `path`: the file; its name ends in `.npy` or `.npz`.
        - `levels`: how many values an entry can take, `0 ... levels - 1`; `None` for continuous
          data.
        - `channels_last`: whether the file holds `(n, ..., channels)`, for which the last axis is
          moved to the second place.
        - `test_fraction`: the share of the examples to test on, between 0 and 1. Unused if the file
          holds `train` and `test`.
        - `seed`: which random split. Unused if the file holds `train` and `test`.

        **Raises:** `FileNotFoundError`; `ValueError` for a file that is not of the format, for
        arrays of the wrong names, rank or dtype, and for values outside of `0 ... levels - 1`, or
        not finite.
        """
        if levels is not None and not 2 <= levels <= 2**31:
            raise ValueError(
                f"ArrayData: levels must be from 2 to 2^31, or None for float data, got {levels}."
            )
        file = _existing(path, "ArrayData", "a .npy or .npz file")
        arrays = {
            name: _prepare(array, levels, channels_last, f"ArrayData: {name} in {str(path)!r}")
            for name, array in _read(file).items()
        }
        if len(arrays) == 2:
            self.train = ArraySource(arrays["train"])
            self.test = ArraySource(arrays["test"])
            if self.train.shape != self.test.shape:
                raise ValueError(
                    f"ArrayData: train and test in {str(path)!r} must hold examples of one shape, "
                    f"got {self.train.shape} and {self.test.shape}."
                )
        else:
            (array,) = arrays.values()
            first, second = _split(len(array), test_fraction, seed, "ArrayData")
            self.train = SubsetSource(ArraySource(array), first)
            self.test = SubsetSource(ArraySource(array), second)
        self.levels = levels
        self.shape = self.train.shape


def _read(file: Path) -> dict[str, Any]:
    """The arrays of the file: `train` and `test`, or one."""
    if file.suffix not in (".npy", ".npz") or not file.is_file():
        raise ValueError(f"ArrayData: path must name a .npy or .npz file, got {str(file)!r}.")
    try:
        if file.suffix == ".npy":
            return {"the array": np.load(file, mmap_mode="r", allow_pickle=False)}
        # Opened here, since NumPy leaves a file open that is no archive.
        with file.open("rb") as raw, np.load(raw, allow_pickle=False) as archive:
            names = tuple(archive.files)
            if "train" in names and "test" in names:
                wanted = ("train", "test")
            elif "x" in names:
                wanted = ("x",)
            else:
                wanted = names
            arrays = {name: archive[name] for name in wanted} if len(wanted) < 3 else {}
    except Exception as error:  # zip, zlib, header and memory errors, by the kind of damage
        raise ValueError(
            f"ArrayData: path={str(file)!r} cannot be read as a {file.suffix} file of numbers: "
            f"{error}"
        ) from error
    if not arrays or (len(arrays) == 2 and set(arrays) != {"train", "test"}):
        raise ValueError(
            "ArrayData: a .npz file must hold the arrays 'train' and 'test', or one array named "
            f"'x', or only one array; {str(file)!r} holds {', '.join(names) or 'none'}."
        )
    return arrays


def _prepare(
    array: Any, levels: int | None, channels_last: bool, owner: str
) -> Shaped[np.ndarray, "n *shape"]:
    """The array with its channels in front, checked, as uint8, int32 or float32."""
    rank = 3 if channels_last else 2
    if array.ndim < rank or array.size == 0:
        raise ValueError(
            f"{owner} must have {rank} axes or more, examples first, and none of them empty, "
            f"got the shape {array.shape}."
        )
    discrete = array.dtype == bool or np.issubdtype(array.dtype, np.integer)
    if not discrete and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{owner} must hold integers or floats, got {array.dtype}.")
    if discrete and levels is None:
        raise ValueError(
            f"{owner} holds integers ({array.dtype}), got levels=None; say how many values an "
            "entry can take, such as levels=256, or store floats."
        )
    if not discrete and levels is not None:
        raise ValueError(
            f"{owner} holds floats ({array.dtype}), got {levels=}; store integers 0 ... "
            f"{levels - 1}, or leave levels out."
        )
    # In pieces: the array may be mapped from a file that is larger than memory.
    limit = np.finfo(np.float32).max
    rows = max(1, 2**24 // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        piece = array[start : start + rows]
        low, high = piece.min(), piece.max()
        if levels is None:
            # False for NaN as well.
            if not (-limit <= low and high <= limit):
                raise ValueError(
                    f"{owner} must be finite in float32, got values from {low} to {high}."
                )
        elif low < 0 or high >= levels:
            raise ValueError(
                f"{owner} must hold integers from 0 to levels - 1 = {levels - 1}, "
                f"got values from {low} to {high}."
            )
    if levels is None:
        target = np.float32
    else:
        target = np.uint8 if levels <= 256 else np.int32
    array = array if array.dtype == target else array.astype(target)
    return np.moveaxis(array, -1, 1) if channels_last else array
