"""The laws of data."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from diffkit.data.base import AbstractConditionalSource
from diffkit.testing.base import NotApplicable, Subject, law, require, text

_EXAMPLES = 256


def _sources(subject: Subject) -> Iterator[tuple[str, Any, np.ndarray, np.ndarray]]:
    """Name, source, and some of its examples with their indices."""
    try:
        data = subject.part
    except ImportError as error:
        raise NotApplicable(str(error)) from error
    for name in ("train", "test"):
        source = getattr(data, name)
        count = min(len(source), _EXAMPLES)
        # Evenly over the whole source, from the last one to the first.
        indices = np.linspace(len(source) - 1, 0, count).astype(int)
        yield name, source, indices, source.gather(indices)


@law("data", "train and test hold examples, all of the stated shape.")
def shape(subject: Subject) -> None:
    for name, source, indices, x in _sources(subject):
        require(
            len(source) > 0 and x.shape == (len(indices), *subject.part.shape),
            given={"source": name, "examples asked for": len(indices)},
            numbers={"examples": len(source), "shape of the batch": text(x.shape)},
            expected=f"{text((len(indices), *subject.part.shape))}",
        )


@law("data", "Values are integers from 0 to levels - 1, or finite float32 where levels is None.")
def values_in_range(subject: Subject) -> None:
    for name, _, indices, x in _sources(subject):
        levels = subject.part.levels
        given = {"source": name, "levels": str(levels), "example": indices}
        right = np.issubdtype(x.dtype, np.integer) if levels else x.dtype == np.float32
        require(
            bool(right),
            given={"source": name, "levels": str(levels)},
            numbers={"dtype": x.dtype.name},
            expected="integers" if levels else "float32",
        )
        flat = x.reshape(len(x), -1)
        low, high = flat.min(axis=1), flat.max(axis=1)
        if levels is None:
            require(
                np.isfinite(flat).all(axis=1),
                given=given,
                numbers={"smallest": low, "largest": high},
                expected="finite values",
            )
        else:
            require(
                (low >= 0) & (high < levels),
                given=given,
                numbers={"smallest": low, "largest": high},
                expected=f"values from 0 to {levels - 1}",
            )


@law("data", "The same indices give the same examples, also one at a time.")
def gathers_alike(subject: Subject) -> None:
    for name, source, indices, x in _sources(subject):
        chosen = np.arange(0, len(indices), max(1, len(indices) // 8))
        alone = np.concatenate([source.gather(indices[i : i + 1]) for i in chosen])
        same = (alone == x[chosen]).reshape(len(chosen), -1).all(axis=1)
        require(
            same,
            given={"source": name, "example": indices[chosen]},
            numbers={"the same": same},
            expected="True",
        )


@law(
    "data",
    "Conditions, if any, are finite vectors of the stated length, and not zeros.",
)
def conditions_are_vectors(subject: Subject) -> None:
    applied = False
    for name, source, indices, _ in _sources(subject):
        if not isinstance(source, AbstractConditionalSource) or source.condition_size == 0:
            continue
        applied = True
        conditions = source.conditions(indices)
        expected = (len(indices), source.condition_size)
        require(
            conditions.shape == expected and conditions.dtype == np.float32,
            given={"source": name},
            numbers={"shape": text(conditions.shape), "dtype": conditions.dtype.name},
            expected=f"{text(expected)} in float32",
        )
        require(
            np.isfinite(conditions).all(axis=1) & (conditions != 0).any(axis=1),
            given={"source": name, "example": indices},
            numbers={"largest": np.abs(conditions).max(axis=1)},
            expected="a finite vector that is not zeros, which stand for no condition",
        )
    if not applied:
        raise NotApplicable("the data have no conditions")
