"""Data in arrays: in memory, or in a `.npy` or `.npz` file."""

import os
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from diffkit.data.base import AbstractDataset, AbstractSource, SubsetSource
from diffkit.data.conditions import LabelledSource, VectorSource, finite
from diffkit.data.npy import Npz, read_npy
from diffkit.data.reading import existing_path, split_indices
from diffkit.registry import register


class ArraySource(AbstractSource):
    """The rows of one array, which may be memory-mapped (`np.load(..., mmap_mode="r")`)."""

    array: Shaped[np.ndarray, "n *shape"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, array: Shaped[np.ndarray, "n *shape"]):
        """**Arguments:** `array`: the examples along the first axis; integers or float32.

        **Raises:** `ValueError` if there are no examples, if one is a lone number or empty, or for another
        dtype.
        """
        if array.ndim < 2 or array.size == 0:
            raise ValueError(
                "ArraySource: array must have an axis of examples and at least one more, none empty, got "
                f"the shape {array.shape}."
            )
        if not np.issubdtype(array.dtype, np.integer) and array.dtype != np.float32:
            raise ValueError(
                f"ArraySource: array must hold integers or float32, got {array.dtype}; use array.astype."
            )
        self.array, self.shape = array, tuple(array.shape[1:])

    def __len__(self) -> int:
        return self.array.shape[0]

    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        return np.ascontiguousarray(self.array[indices])


_Given = str | os.PathLike[str] | Shaped[np.ndarray | Array, "..."]
_Arrays = list[tuple[str, Any]]  # each with what messages call it
_RANKS = {"first": 2, "last": 3, "add": 1}  # the fewest axes


@register("data", "array")
class ArrayData(AbstractDataset):
    """Examples of your own, in memory or from a `.npy` or `.npz` file.

    One array is split at random into training and test examples, unless `test` is given. So is a `.npy`
    file, and a `.npz` file with one array or with one named `x`; a `.npz` file with the arrays `train` and
    `test` keeps its own split. Making the dataset checks every value once. Arrays of uint8 (int32 for more
    than 256 levels) or float32 are not copied; a `.npy` file of these is mapped, not loaded. Each example
    may have a condition (`diffkit.data.conditions`): its class, or a vector of numbers.

    ```python
    data = dk.data.ArrayData(images, levels=256, channels="last", labels=classes)
    ```
    """

    def __init__(
        self,
        path: _Given,
        levels: int | None = None,
        channels_last: bool = False,
        test_fraction: float = 0.1,
        seed: int = 0,
        labels: bool | _Given = False,
        condition: bool | _Given = False,
        channels: str = "first",
        test: _Given | None = None,
        test_labels: _Given | None = None,
        test_condition: _Given | None = None,
        classes: int | None = None,
    ):
        """**Arguments:**

        - `path`: the file, whose name ends in `.npy` or `.npz`; or a NumPy or JAX array, examples along its
          first axis.
        - `levels`: the number of values of an entry, `0 ... levels - 1`, such as 256 for bytes; `None` for
          continuous data, which are floats. It is never guessed.
        - `channels_last`: the same as `channels="last"`.
        - `test_fraction`, `seed`: the share of test examples, between 0 and 1, and the seed of the random
          split, which goes by positions: an array with other rows or another order is split anew. Unused
          if the split is given.
        - `labels`: the class of each example, integers from 0, as an array or a file; or `True` for the
          array `labels` (`train_labels` and `test_labels`) in the `.npz` file of the examples.
        - `condition`: a vector for each example, given in the same ways, under the name `condition`. Not
          both.
        - `channels`: the position of the channels: `"first"`; `"last"`, which moves them to the front; or
          `"add"`, which adds an axis of one channel to examples without, such as grey images (n, height,
          width).
        - `test`, `test_labels`, `test_condition`: the same for the test examples of a split of your own.
        - `classes`: how many the labels have. By default one more than the largest label, if that is not
          more than there are examples.

        **Raises:** `FileNotFoundError`; `ValueError` for a file of another format, arrays of the wrong
        names, rank or dtype, values outside `0 ... levels - 1` or not finite, and arguments that do not go
        together.
        """
        labelled = labels is not False or test_labels is not None
        if labelled and (condition is not False or test_condition is not None):
            raise ValueError("ArrayData: labels and condition are both given; choose one of them.")
        if levels is not None and not 2 <= levels <= 2**31:
            raise ValueError(
                f"ArrayData: levels must be from 2 to 2^31, or None for float data, got {levels}."
            )
        if channels not in _RANKS or (channels_last and channels == "add"):
            raise ValueError(
                "ArrayData: channels must be 'first', 'last' or 'add', and not 'add' with "
                f"channels_last=True, got {channels=}, {channels_last=}."
            )
        if classes is not None and not labelled:
            raise ValueError(f"ArrayData: classes is for data with labels, got {classes=} without.")
        channels = "last" if channels_last else channels
        kind, beside, test_beside = (
            ("labels", labels, test_labels) if labelled else ("condition", condition, test_condition)
        )
        arrays, tables = _read(path, "the array", kind if beside is True else None)
        if test is not None:
            if len(arrays) == 2:
                raise ValueError(f"ArrayData: test is given, but {str(path)!r} has its own split.")
            arrays += _one(test, "test")
        if not isinstance(beside, bool):
            tables = _one(beside, kind)
        if test_beside is not None:
            tables += _one(test_beside, f"test_{kind}")
        if len(tables) != (beside is not False and len(arrays)):
            raise ValueError(
                f"ArrayData: give {kind} for data that are split here, {kind} and test_{kind} for a "
                f"split that is given; got {len(tables)} for {len(arrays)}."
            )
        examples = [_prepare(array, levels, channels, owner) for owner, array in arrays]
        given = [
            _prepare_conditions(table, len(array), labelled, owner)
            for (owner, table), array in zip(tables, examples, strict=bool(tables))
        ]
        if len(examples) == 2:
            expected, found = (array.shape[1:] for array in examples)
            if found != expected:
                raise ValueError(
                    f"{arrays[1][0]}: the examples of test must have the shape {expected}, got {found}."
                )
            self.train, self.test = map(ArraySource, examples)
        else:
            whole = ArraySource(examples[0])
            parts = split_indices(len(whole), test_fraction, seed, arrays[0][0])
            self.train, self.test = (SubsetSource(whole, part) for part in parts)
            given = [table[part] for table in given for part in parts]
        if given and labelled:
            count = _classes(given, classes, " and ".join(owner for owner, _ in tables))
            self.train = LabelledSource(self.train, given[0], count)
            self.test = LabelledSource(self.test, given[1], count)
        elif given:
            self.train = VectorSource(self.train, given[0])
            self.test = VectorSource(self.test, given[1])
        self.levels, self.shape = levels, self.train.shape


def _one(given: _Given, name: str) -> _Arrays:
    """The one array that is given, or that a file holds."""
    arrays, _ = _read(given, name)
    if len(arrays) != 1:
        raise ValueError(f"ArrayData: {name} must be one array, but {str(given)!r} holds a split.")
    return arrays


def _read(given: _Given, name: str, beside: str | None = None) -> tuple[_Arrays, _Arrays]:
    """The arrays of a file, train and test, or one; and as many beside them, if asked for."""
    if not isinstance(given, str | os.PathLike):
        if beside is not None:
            raise ValueError(
                f"ArrayData: {beside}=True is for a .npz file; beside an array give {beside}=ARRAY."
            )
        return [(f"ArrayData: {name}", np.asarray(given))], []
    file = existing_path(given, "ArrayData", "a .npy or .npz file")
    if file.suffix not in (".npy", ".npz") or not file.is_file():
        raise ValueError(f"ArrayData: path must name a .npy or .npz file, got {str(file)!r}.")
    if beside is not None and file.suffix == ".npy":
        raise ValueError(
            f"ArrayData: {beside}=True needs a .npz file with 'x' and {beside!r}, got {str(file)!r}."
        )
    where = repr(str(file))
    if file.suffix == ".npy":
        return [(f"ArrayData: the array in {where}", read_npy(file, "ArrayData"))], []
    arrays, beside_them = {}, {}
    with Npz(file, "ArrayData") as archive:
        names = archive.names
        if "train" in names and "test" in names:
            wanted, asked = ["train", "test"], [f"train_{beside}", f"test_{beside}"]
        else:
            wanted = ["x"] if "x" in names else [name for name in names if name != beside]
            asked = [str(beside)]
        if len(wanted) < 3:
            arrays = {name: archive[name] for name in wanted}
            if beside is not None:
                beside_them = {name: archive[name] for name in asked if name in names}
    if not arrays or (len(arrays) == 2 and set(arrays) != {"train", "test"}):
        raise ValueError(
            "ArrayData: a .npz file must hold the arrays 'train' and 'test', or one array named "
            f"'x', or only one array; {where} holds {', '.join(names) or 'none'}."
        )
    if beside is not None and len(beside_them) < len(asked):
        raise ValueError(
            f"ArrayData: with {beside}=True a .npz file must hold {' and '.join(map(repr, asked))} "
            f"beside {' and '.join(map(repr, wanted))}; {where} holds {', '.join(names)}."
        )

    def named(found: dict[str, Any]) -> _Arrays:
        return [(f"ArrayData: {name} in {where}", array) for name, array in found.items()]

    return named(arrays), named(beside_them)


def _prepare_conditions(array: Any, count: int, labels: bool, owner: str) -> Shaped[np.ndarray, "n ..."]:
    """Labels as integers, or vectors as float32, checked."""
    discrete = np.issubdtype(array.dtype, np.integer)
    if labels and not (discrete and array.shape == (count,)):
        raise ValueError(
            f"{owner} must hold an integer for each of the {count} examples, got {array.dtype} with "
            f"the shape {array.shape}."
        )
    if labels and array.min() < 0:
        raise ValueError(f"{owner} must hold integers from 0, got {array.min()}.")
    real = discrete or jnp.issubdtype(array.dtype, np.floating)
    if not labels and not (real and array.ndim == 2 and len(array) == count and array.size):
        raise ValueError(
            f"{owner} must hold a vector of numbers for each of the {count} examples, got "
            f"{array.dtype} with the shape {array.shape}."
        )
    return array if labels else finite(array, owner)


def _classes(tables: list[Any], stated: int | None, owner: str) -> int:
    """The number of classes: conditions are as long, so a wrong label must not choose it."""
    most, examples = int(max(table.max() for table in tables)), sum(map(len, tables))
    if stated is None and most >= examples:
        raise ValueError(
            f"{owner}: the label {most} would make {most + 1} classes of {examples} examples; if that is "
            "right, give classes=..."
        )
    if stated is not None and most >= stated:
        raise ValueError(f"{owner} must hold labels from 0 to classes - 1 = {stated - 1}, got {most}.")
    return most + 1 if stated is None else stated


def _prepare(array: Any, levels: int | None, channels: str, owner: str) -> Shaped[np.ndarray, "n *shape"]:
    """The array with its channels in front, checked, as uint8, int32 or float32."""
    rank = _RANKS[channels]
    if array.ndim < rank or array.size == 0:
        raise ValueError(
            f"{owner} must have {rank} axes or more, examples first, and none of them empty, "
            f"got the shape {array.shape}" + (", or channels='add'." if array.ndim == 1 else ".")
        )
    discrete = array.dtype == bool or np.issubdtype(array.dtype, np.integer)
    if not discrete and not jnp.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{owner} must hold integers or floats, got {array.dtype}.")
    if discrete and levels is None:
        raise ValueError(
            f"{owner} holds integers ({array.dtype}), got levels=None; say how many values an entry can "
            "take, levels=256 for bytes. levels=None is for floats."
        )
    if not discrete and levels is not None:
        raise ValueError(
            f"{owner} holds floats ({array.dtype}), got {levels=}; store integers or leave levels out."
        )
    # In pieces: the array may be mapped from a file larger than memory.
    limit = np.finfo(np.float32).max
    least, most, wanted = -limit, limit, "be finite in float32"
    if levels is not None:
        least, most, wanted = 0, levels - 1, f"hold integers from 0 to levels - 1 = {levels - 1}"
    rows = max(1, 2**24 // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        piece = array[start : start + rows]
        low, high = piece.min(), piece.max()
        if not (least <= low and high <= most):  # true for NaN as well
            raise ValueError(f"{owner} must {wanted}, got values from {low} to {high}.")
    whole = np.uint8 if levels is not None and levels <= 256 else np.int32
    array = array.astype(np.float32 if levels is None else whole, copy=False)
    if channels == "add":
        return array[:, None]
    return np.moveaxis(array, -1, 1) if channels == "last" else array
