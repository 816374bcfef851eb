"""Conditions: vectors that describe examples to a network.

A condition is a vector of `condition_size` float32 numbers. Zeros stand for no condition, like `None`, and
no real condition is all zeros:

* a class is a one-hot vector, `one_hot(label, classes)`; `condition_size` is the number of classes;
* a vector of numbers has a one appended, `with_flag(vector)`; `condition_size` is one more than its length.

A model trained with some conditions left out (`TrainConfig.condition_dropout`) learns the distribution of
all examples as well as that of each condition, as guidance needs (`diffkit.Guided`).
"""

from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Integer, Real, Shaped

from diffkit.data.base import (
    AbstractConditionalSource,
    AbstractDataset,
    AbstractSource,
    condition_size,
)


def one_hot(
    labels: int | Sequence[int] | Integer[Array | np.ndarray, "..."], classes: int
) -> Float32[np.ndarray, "... {classes}"]:
    """Class labels as conditions: for each a vector of zeros, with a one at the index of the label.

    **Arguments:** `labels`: integers from 0 to `classes - 1`, one or an array of them; `classes`: the
    number of classes.

    **Raises:** `ValueError` for a label out of range.

    ```python
    conditions = dk.data.one_hot([3, 1], 10)  # (2, 10)
    ```
    """
    labels = np.asarray(labels, np.int64 if isinstance(labels, int | Sequence) else None)
    _check_labels(labels, classes, "one_hot: labels")
    return (labels[..., None] == np.arange(classes)).astype(np.float32)


def with_flag(
    vectors: Sequence[float] | Real[Array | np.ndarray, "... n"],
) -> Float32[np.ndarray, "... size"]:
    """Vectors of numbers as conditions: with a one appended to mark that there is a condition.

    Networks see the numbers as they are, so scale them to about one first.

    **Arguments:** `vectors`: one vector, or an array of them along its last axis.

    **Raises:** `ValueError` for numbers that are not finite in float32, or empty vectors.
    """
    vectors = finite(np.asarray(vectors), "with_flag: vectors")
    if vectors.ndim == 0 or vectors.shape[-1] == 0:
        raise ValueError(f"with_flag: vectors must not be empty, got the shape {vectors.shape}.")
    return np.concatenate([vectors, np.ones_like(vectors[..., :1])], axis=-1)


class _AbstractDescribed(AbstractConditionalSource):
    """Another source, with a condition for each of its examples."""

    source: AbstractSource
    shape: tuple[int, ...] = eqx.field(static=True)
    classes: int | None = eqx.field(static=True)
    condition_size: int = eqx.field(static=True)

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n *shape"]:
        return self.source.gather(indices)


class LabelledSource(_AbstractDescribed):
    """A source whose examples have classes; the conditions are one-hot vectors."""

    labels: Integer[np.ndarray, " n"]

    def __init__(self, source: AbstractSource, labels: Integer[np.ndarray, " n"], classes: int):
        """**Arguments:** `source`: the examples; `labels`: of each, from 0 to `classes - 1`; `classes`: how
        many.

        **Raises:** `ValueError` if there is not one label for each example, or for a label out of range.
        """
        _check_count(source, len(labels), "LabelledSource: labels")
        _check_labels(labels, classes, "LabelledSource: labels")
        self.source, self.labels, self.shape = source, labels, source.shape
        self.classes = self.condition_size = classes

    def conditions(self, indices: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n size"]:
        return one_hot(self.labels[indices], self.condition_size)


class VectorSource(_AbstractDescribed):
    """A source whose examples have vectors of numbers; the conditions are the vectors `with_flag`."""

    vectors: Float32[np.ndarray, "n size"]

    def __init__(self, source: AbstractSource, vectors: Float[np.ndarray, "n k"]):
        """**Arguments:** `source`: the examples; `vectors`: one for each, without the flag.

        **Raises:** `ValueError` if there is not one for each example, or if vectors are empty or not
        finite.
        """
        _check_count(source, len(vectors), "VectorSource: vectors")
        if vectors.shape[1] == 0:
            raise ValueError(f"VectorSource: vectors must not be empty, got {vectors.shape}.")
        self.source, self.shape, self.classes = source, source.shape, None
        self.vectors = with_flag(vectors)
        self.condition_size = self.vectors.shape[1]

    def conditions(self, indices: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n size"]:
        return self.vectors[indices]


def encode_condition(data: AbstractDataset, value: int | Sequence[float]) -> Float32[np.ndarray, " size"]:
    """The condition of a class, or of a vector of numbers without its flag.

    **Arguments:** `data`: the dataset that the model was trained on; `value`: an integer for a class, a
    sequence of numbers for a vector.

    **Raises:** `ValueError` if the data have no such conditions.
    """
    size = condition_size(data)
    source = data.train
    if size == 0 or not isinstance(source, AbstractConditionalSource):
        raise ValueError(
            f"condition={value} asks for a condition, but the data of the model have none; train "
            "it on data with conditions, for example with data.labels=true."
        )
    if source.classes is not None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < size:
            raise ValueError(f"condition must be a class, an integer from 0 to {size - 1}, got {value}.")
        return one_hot(value, size)
    if isinstance(value, int) or len(value) != size - 1:
        raise ValueError(
            f"condition must be a list of {size - 1} numbers, such as "
            f"[{', '.join(['0.0'] * (size - 1))}], got {value}."
        )
    return with_flag(value)


def conditions_in_turn(data: AbstractDataset, count: int) -> Float32[np.ndarray, "count size"]:
    """`count` conditions to show: classes in turn, or those of the test examples; of length 0 if none."""
    source = data.test
    if not isinstance(source, AbstractConditionalSource):
        return np.zeros((count, 0), np.float32)
    if source.classes is not None:
        return one_hot(np.arange(count) % source.classes, source.classes)
    return source.conditions(np.arange(count) % len(source))


def finite(array: Real[np.ndarray, "..."], owner: str) -> Float32[np.ndarray, "..."]:
    """Numbers in float32, or an error in the name of `owner` if one is not finite."""
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{owner} must be finite in float32, and are not.")
    return array


def _check_count(source: AbstractSource, count: int, owner: str) -> None:
    if count != len(source):
        raise ValueError(f"{owner} must be one for each of the {len(source)} examples, got {count}.")


def _check_labels(labels: Integer[np.ndarray, "..."], classes: int, owner: str) -> None:
    if classes < 1:
        raise ValueError(f"{owner}: classes must be at least 1, got {classes}.")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"{owner} must be from 0 to classes - 1 = {classes - 1}, got values from "
            f"{labels.min()} to {labels.max()}."
        )
