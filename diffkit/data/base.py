"""What data is: a source of examples, and a dataset made of two of them.

A *source* is a sequence of examples of one shape that hands out many at a time. A *dataset* is a
training source and a test source, with what a model has to know about them: the shape of an example
and the number of levels.

Data is as stored. Discrete data are integers `0 ... levels - 1`, and the model's decoder maps them
to the values that it works with; continuous data are float32 and have `levels = None`. Images are
`(channels, height, width)`.
"""

import abc
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float32, Int, Shaped


class AbstractSource(eqx.Module):
    """A sequence of examples of one shape.

    A source may hold its examples in memory or read them when they are asked for. `gather` is
    called from several threads at once and must return the same values for the same indices every
    time.

    **Attributes:** `shape`: the shape of one example, without a batch axis.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        """The examples at these positions, in this order, as one new array.

        **Arguments:** `indices`: positions from 0 to `len(source) - 1`; one may occur several
        times.

        **Returns:** integers if the data are discrete, else float32.

        **Raises:** `IndexError` for a position past the end.
        """


class AbstractConditionalSource(AbstractSource):
    """A source whose examples have conditions: vectors that say what each of them is.

    `diffkit.data.conditions` says what a condition is. `batches` yields pairs of examples and
    conditions for such a source, and a model is then trained and evaluated given them. As `gather`
    does, `conditions` must return the same values for the same indices every time.

    **Attributes:** those of `AbstractSource`, and

    - `condition_size`: the length of a condition; 0 if there are none after all.
    - `classes`: how many classes there are, if the conditions are one-hot vectors; else `None`.
    """

    condition_size: eqx.AbstractVar[int]
    classes: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def conditions(self, indices: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n size"]:
        """The conditions of the examples at these positions, in this order, as one new array."""


class SubsetSource(AbstractConditionalSource):
    """Some of the examples of another source, which is not copied, with their conditions."""

    source: AbstractSource
    indices: Int[np.ndarray, " n"]
    shape: tuple[int, ...] = eqx.field(static=True)
    condition_size: int = eqx.field(static=True)
    classes: int | None = eqx.field(static=True)

    def __init__(self, source: AbstractSource, indices: Int[np.ndarray, " n"]):
        """**Arguments:**

        - `source`: the other source.
        - `indices`: positions in it, in the order in which they are to be counted.

        **Raises:** `ValueError` if there are none, or for a position that `source` does not have.
        """
        if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(source):
            raise ValueError(
                f"SubsetSource: indices must be positions from 0 to {len(source) - 1}, one or "
                f"more, got {indices}."
            )
        self.source = source
        self.indices = indices
        self.shape = source.shape
        self.condition_size = condition_size(source)
        self.classes = source.classes if isinstance(source, AbstractConditionalSource) else None

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        return self.source.gather(self.indices[indices])

    def conditions(self, indices: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n size"]:
        if not isinstance(self.source, AbstractConditionalSource):
            return np.zeros((len(indices), 0), np.float32)
        return self.source.conditions(self.indices[indices])


class AbstractDataset(eqx.Module):
    """A training source and a test source of the same kind.

    To add one, subclass it with these four attributes as fields, and register the class under the
    kind `"data"`; the arguments of its `__init__` are then its options on the command line.

    **Attributes:**

    - `train`, `test`: the two sources, of examples of one shape.
    - `levels`: how many values an entry can take, `0 ... levels - 1`; `None` for continuous data.
    - `shape`: the shape of one example; `(channels, height, width)` for images.
    """

    train: eqx.AbstractVar[AbstractSource]
    test: eqx.AbstractVar[AbstractSource]
    levels: eqx.AbstractVar[int | None]
    shape: eqx.AbstractVar[tuple[int, ...]]

    def __new__(cls, *args: Any, **kwargs: Any):
        # Kept beside the fields, so that a run can record how its data were made.
        made = super().__new__(cls)
        object.__setattr__(made, "made_with", (args, kwargs))
        return made

    def __check_init__(self):
        name = type(self).__name__
        for part, source in (("train", self.train), ("test", self.test)):
            if source.shape != self.shape:
                raise ValueError(
                    f"{name}: the examples of {part} must have the shape {self.shape}, "
                    f"got {source.shape}."
                )
            if len(source) == 0:
                raise ValueError(f"{name}: {part} must hold at least one example, got none.")
        if condition_size(self.train) != condition_size(self.test):
            raise ValueError(
                f"{name}: train and test must have conditions of one length, got "
                f"{condition_size(self.train)} and {condition_size(self.test)}."
            )
        classes = {
            source.classes if isinstance(source, AbstractConditionalSource) else None
            for source in (self.train, self.test)
        }
        if len(classes) > 1:
            raise ValueError(
                f"{name}: train and test must both have labels of the same classes or both have vectors, "
                f"got classes={sorted(map(str, classes))}."
            )
        if self.levels is not None and self.levels < 2:
            raise ValueError(
                f"{name}: levels must be at least 2, or None for continuous data, got "
                f"{self.levels}."
            )


def condition_size(data: AbstractDataset | AbstractSource) -> int:
    """The length of a condition of these data, 0 if they have none.

    **Arguments:** `data`: a dataset, or a source.
    """
    source = data.train if isinstance(data, AbstractDataset) else data
    return source.condition_size if isinstance(source, AbstractConditionalSource) else 0


def _existing(path: str | os.PathLike[str], owner: str, expected: str) -> Path:
    """The path with `~` expanded; a `FileNotFoundError` that says what should be there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(
            f"{owner}: there is nothing at path={str(path)!r}; expected {expected}."
        )
    return found


def _folder(path: str | os.PathLike[str], owner: str, expected: str) -> Path:
    """An existing folder, or an error that says what should be there."""
    found = _existing(path, owner, expected)
    if not found.is_dir():
        raise ValueError(f"{owner}: path={str(path)!r} is a file; expected {expected}.")
    return found


def _permutation(n: int, seed: int, stream: int) -> Int[np.ndarray, " n"]:
    """A random order of `n` things that depends on nothing but the arguments.

    The order sorts the raw 64-bit output of the counter-based generator Philox, keyed with `seed`
    and `stream`. NumPy promises that output for all its versions, which it does not for
    `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    return np.argsort(bits.random_raw(n))


def _check_seed(seed: int, owner: str, below: int = 2**64) -> None:
    if not 0 <= seed < below:
        raise ValueError(f"{owner}: seed must be from 0 to {below - 1}, got {seed}.")


def _split(
    n: int, test_fraction: float, seed: int, owner: str
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Indices of a random but fixed split, each part in stored order and neither empty."""
    _check_seed(seed, owner)
    if not 0 < test_fraction < 1:
        raise ValueError(f"{owner}: test_fraction must lie between 0 and 1, got {test_fraction}.")
    if n < 2:
        raise ValueError(f"{owner}: a split needs at least 2 examples, got {n}.")
    size = min(max(1, round(n * test_fraction)), n - 1)
    order = _permutation(n, seed, 2**64 - 1)  # a stream that no epoch reaches
    return np.sort(order[size:]), np.sort(order[:size])
