"""Data in NumPy arrays: in memory, or in a `.npy` or `.npz` file."""

import os
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Int, Shaped

from diffkit.data.base import AbstractDataset, AbstractSource, SubsetSource, _existing, _split
from diffkit.data.conditions import LabelledSource, VectorSource, finite
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

    In a `.npz` file there may be a condition for each example (`diffkit.data.conditions`): its class
    in an array `labels`, or a vector of numbers in an array `condition`; with an own split in
    `train_labels` and `test_labels`, or `train_condition` and `test_condition`.
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
        labels: bool = False,
        condition: bool = False,
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
        - `labels`: whether the examples come with the classes in the file. There are as many as the
          largest label says, counted from 0.
        - `condition`: whether the examples come with the vectors in the file. Not both.

        **Raises:** `FileNotFoundError`; `ValueError` for a file that is not of the format, for
        arrays of the wrong names, rank or dtype, and for values outside of `0 ... levels - 1`, or
        not finite.
        """
        if labels and condition:
            raise ValueError("ArrayData: labels and condition are both true; choose one of them.")
        if levels is not None and not 2 <= levels <= 2**31:
            raise ValueError(
                f"ArrayData: levels must be from 2 to 2^31, or None for float data, got {levels}."
            )
        file = _existing(path, "ArrayData", "a .npy or .npz file")
        beside = "labels" if labels else "condition" if condition else None
        arrays, given = _read(file, beside)
        for name, array in arrays.items():
            owner = f"ArrayData: {name} in {str(path)!r}"
            arrays[name] = _prepare(array, levels, channels_last, owner)
        counts = [len(array) for array in arrays.values()]
        tables = [
            _prepare_conditions(array, count, labels, f"ArrayData: {name} in {str(path)!r}")
            for (name, array), count in zip(given.items(), counts, strict=beside is not None)
        ]
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
            tables = [table[part] for table in tables for part in (first, second)]
        if labels:
            classes = 1 + int(max(table.max() for table in tables))
            self.train = LabelledSource(self.train, tables[0], classes)
            self.test = LabelledSource(self.test, tables[1], classes)
        if condition:
            self.train = VectorSource(self.train, tables[0])
            self.test = VectorSource(self.test, tables[1])
        self.levels = levels
        self.shape = self.train.shape


_Arrays = dict[str, Any]


def _read(file: Path, beside: str | None) -> tuple[_Arrays, _Arrays]:
    """The arrays of the file, `train` and `test`, or one; and as many beside them, if asked for."""
    if file.suffix not in (".npy", ".npz") or not file.is_file():
        raise ValueError(f"ArrayData: path must name a .npy or .npz file, got {str(file)!r}.")
    if beside is not None and file.suffix == ".npy":
        raise ValueError(
            f"ArrayData: {beside}=True needs a .npz file with the arrays 'x' and {beside!r}, got "
            f"{str(file)!r}."
        )
    arrays, given = {}, {}
    try:
        if file.suffix == ".npy":
            return {"the array": np.load(file, mmap_mode="r", allow_pickle=False)}, {}
        # Opened here, since NumPy leaves a file open that is no archive.
        with file.open("rb") as raw, np.load(raw, allow_pickle=False) as archive:
            names = tuple(archive.files)
            if "train" in names and "test" in names:
                wanted = ("train", "test")
                asked = [f"{name}_{beside}" for name in wanted]
            else:
                wanted = ("x",) if "x" in names else tuple(n for n in names if n != beside)
                asked = [str(beside)]
            if len(wanted) < 3:
                arrays = {name: archive[name] for name in wanted}
                if beside is not None:
                    given = {name: archive[name] for name in asked if name in names}
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
    if beside is not None and len(given) < len(asked):
        raise ValueError(
            f"ArrayData: with {beside}=True a .npz file must hold {' and '.join(map(repr, asked))} "
            f"beside {' and '.join(map(repr, wanted))}; {str(file)!r} holds {', '.join(names)}."
        )
    return arrays, given


def _prepare_conditions(
    array: Any, count: int, labels: bool, owner: str
) -> Shaped[np.ndarray, "n ..."]:
    """Labels as integers, or vectors as float32, checked."""
    discrete = np.issubdtype(array.dtype, np.integer)
    if labels and not (discrete and array.shape == (count,)):
        raise ValueError(
            f"{owner} must hold an integer for each of the {count} examples, got {array.dtype} with "
            f"the shape {array.shape}."
        )
    if labels and array.min() < 0:
        raise ValueError(f"{owner} must hold integers from 0, got {array.min()}.")
    real = discrete or np.issubdtype(array.dtype, np.floating)
    if not labels and not (real and array.ndim == 2 and len(array) == count and array.size):
        raise ValueError(
            f"{owner} must hold a vector of numbers for each of the {count} examples, got "
            f"{array.dtype} with the shape {array.shape}."
        )
    return array if labels else finite(array, owner)


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
