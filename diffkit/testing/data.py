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


@law("data")
def shape(subject: Subject) -> None:
    """train and test hold examples, all of the stated shape."""
    for name, source, indices, x in _sources(subject):
        expected = (len(indices), *subject.part.shape)
        require(
            len(source) > 0 and x.shape == expected,
            {"source": name, "examples asked for": len(indices)},
            {"examples": len(source), "shape of the batch": text(x.shape)},
            text(expected),
        )


@law("data")
def values_in_range(subject: Subject) -> None:
    """Values are integers from 0 to levels - 1, or finite float32 where levels is None."""
    for name, _, indices, x in _sources(subject):
        levels = subject.part.levels
        given = {"source": name, "levels": str(levels)}
        right = np.issubdtype(x.dtype, np.integer) if levels else x.dtype == np.float32
        expected = "integers" if levels else "float32"
        require(bool(right), given, {"dtype": x.dtype.name}, expected)
        flat = x.reshape(len(x), -1)
        low, high = flat.min(axis=1), flat.max(axis=1)
        if levels is None:
            holds, expected = np.isfinite(flat).all(axis=1), "finite values"
        else:
            holds, expected = (low >= 0) & (high < levels), f"values from 0 to {levels - 1}"
        require(holds, given | {"example": indices}, {"smallest": low, "largest": high}, expected)


@law("data")
def gathers_alike(subject: Subject) -> None:
    """The same indices give the same examples, also one at a time."""
    for name, source, indices, x in _sources(subject):
        chosen = np.arange(0, len(indices), max(1, len(indices) // 8))
        alone = np.concatenate([source.gather(indices[i : i + 1]) for i in chosen])
        same = (alone == x[chosen]).reshape(len(chosen), -1).all(axis=1)
        given = {"source": name, "example": indices[chosen]}
        require(same, given, {"the same": same}, "True")


@law("data")
def conditions_are_vectors(subject: Subject) -> None:
    """Conditions, if any, are finite vectors of the stated length, and not zeros."""
    applied = False
    for name, source, indices, _ in _sources(subject):
        if not isinstance(source, AbstractConditionalSource) or source.condition_size == 0:
            continue
        applied = True
        conditions = source.conditions(indices)
        expected = (len(indices), source.condition_size)
        require(
            conditions.shape == expected and conditions.dtype == np.float32,
            {"source": name},
            {"shape": text(conditions.shape), "dtype": conditions.dtype.name},
            f"{text(expected)} in float32",
        )
        require(
            np.isfinite(conditions).all(axis=1) & (conditions != 0).any(axis=1),
            {"source": name, "example": indices},
            {"largest": np.abs(conditions).max(axis=1)},
            "a finite vector that is not zeros, which stand for no condition",
        )
    if not applied:
        raise NotApplicable("the data have no conditions")
