"""Data: sources of examples, and datasets of two sources.

A *source* is a sequence of examples of one shape that returns many at a time. A *dataset* is a training
source and a test source, with what a model must know about them: the shape of an example and the number of
levels.

Data is as stored: integers `0 ... levels - 1`, which the model's decoder encodes, or float32 with `levels =
None`. Images are `(channels, height, width)`.
"""

import abc
import functools
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float32, Int, Shaped


class AbstractSource(eqx.Module):
    """A sequence of examples of one shape, in memory or read on demand.

    Several threads call `gather` at once; it must return the same values for the same indices every time.

    **Attributes:** `shape`: the shape of one example, without a batch axis.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of examples."""

    @abc.abstractmethod
    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        """The examples at these positions, in this order, as one new array.

        **Arguments:** `indices`: from 0 to `len(source) - 1`; one may occur several times.

        **Returns:** integers if the data are discrete, else float32.

        **Raises:** `IndexError` for a position past the end.
        """


class AbstractConditionalSource(AbstractSource):
    """A source whose examples have conditions: vectors that describe them (`diffkit.data.conditions`).

    For such a source `batches` yields pairs of examples and conditions, and a model is trained and
    evaluated given them. `conditions` must return the same values every time, as `gather`.

    **Attributes:** those of `AbstractSource`, and `condition_size`: the length of a condition, 0 for none;
    `classes`: the number of classes if the conditions are one-hot vectors, else `None`.
    """

    condition_size: eqx.AbstractVar[int]
    classes: eqx.AbstractVar[int | None]

    @abc.abstractmethod
    def conditions(self, indices: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n size"]:
        """The conditions of the examples at these positions, in this order, as one new array."""


class SubsetSource(AbstractConditionalSource):
    """Some examples of another source, without copying it, with their conditions."""

    source: AbstractSource
    indices: Int[np.ndarray, " n"]
    shape: tuple[int, ...] = eqx.field(static=True)
    condition_size: int = eqx.field(static=True)
    classes: int | None = eqx.field(static=True)

    def __init__(self, source: AbstractSource, indices: Int[np.ndarray, " n"]):
        """**Arguments:** `source`: the other source; `indices`: positions in it, in order.

        **Raises:** `ValueError` if there are none, or for a position out of range.
        """
        if len(indices) == 0 or indices.min() < 0 or indices.max() >= len(source):
            last = len(source) - 1
            raise ValueError(
                f"SubsetSource: indices must be positions from 0 to {last}, one or more, got {indices}."
            )
        self.source, self.indices, self.shape = source, indices, source.shape
        self.condition_size = condition_size(source)
        self.classes = classes_of(source)

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

    To add one, subclass it, set these four attributes in `__init__`, and register the class under the
    kind `"data"`: the arguments of its `__init__` become its options on the command line.

    **Attributes:** `train`, `test`: the two sources, of examples of one shape; `levels`: the number of
    values of an entry, `0 ... levels - 1`, `None` for continuous data; `shape`: of one example, `(channels,
    height, width)` for images.
    """

    train: AbstractSource
    test: AbstractSource
    levels: int | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __new__(cls, *args: Any, **kwargs: Any):
        # Kept so that a run can record how its data were made.
        made = super().__new__(cls)
        object.__setattr__(made, "made_with", (args, kwargs))
        return made

    def __check_init__(self):
        name = type(self).__name__
        for part, source in (("train", self.train), ("test", self.test)):
            if source.shape != self.shape:
                raise ValueError(
                    f"{name}: the examples of {part} must have the shape {self.shape}, got {source.shape}."
                )
            if len(source) == 0:
                raise ValueError(f"{name}: {part} must hold at least one example, got none.")
        sizes = condition_size(self.train), condition_size(self.test)
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{name}: train and test must have conditions of one length, got {sizes[0]} and {sizes[1]}."
            )
        classes = {classes_of(self.train), classes_of(self.test)}
        if len(classes) > 1:
            raise ValueError(
                f"{name}: train and test must both have labels of the same classes or both have vectors, "
                f"got classes={sorted(map(str, classes))}."
            )
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"{name}: levels must be at least 2, or None, got {self.levels}.")

    @functools.cached_property
    def statistics(self) -> tuple[float, float] | None:
        """Mean and standard deviation of all training data, read once; `None` if discrete."""
        if self.levels is not None:
            return None
        count, shift, first, second = 0, 0.0, 0.0, 0.0
        for x in chunks(self.train, 256):
            x = x.astype(np.float64)
            if count == 0:
                shift = float(x.mean())  # near the mean, so that the squares cancel little
            count += x.size
            first += float(np.sum(x - shift))
            second += float(np.sum(np.square(x - shift)))
        mean = first / count
        return shift + mean, max(second / count - mean**2, 0.0) ** 0.5


def chunks(source: AbstractSource, size: int = 4096) -> Iterator[Shaped[np.ndarray, "n *shape"]]:
    """All examples of a source in order, `size` at a time."""
    for first in range(0, len(source), size):
        yield source.gather(np.arange(first, min(first + size, len(source))))


def condition_size(data: AbstractDataset | AbstractSource) -> int:
    """The length of a condition of a dataset or a source, 0 if they have none."""
    source = data.train if isinstance(data, AbstractDataset) else data
    return source.condition_size if isinstance(source, AbstractConditionalSource) else 0


def classes_of(source: AbstractSource) -> int | None:
    """The number of classes of a source with labels, else `None`."""
    return source.classes if isinstance(source, AbstractConditionalSource) else None
