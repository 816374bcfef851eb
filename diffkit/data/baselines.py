"""Simple codes to compare a model's bits per dimension with."""

import lzma
import math

import numpy as np
from jaxtyping import Int

from diffkit.data.base import AbstractDataset, AbstractSource, chunks


def _counts(source: AbstractSource, levels: int) -> Int[np.ndarray, "dims levels"]:
    """How often each dimension has each value."""
    dims = math.prod(source.shape)
    counts = np.zeros(dims * levels, dtype=np.int64)
    for x in chunks(source):
        # One code for the pair of dimension and value, for a single bincount.
        codes = x.reshape(len(x), dims).astype(np.int64) + levels * np.arange(dims)
        counts += np.bincount(codes.ravel(), minlength=dims * levels)
    return counts.reshape(dims, levels)


def baselines(dataset: AbstractDataset) -> dict[str, float]:
    """The bits per dimension that simple codes need for the test data of a discrete dataset.

    **Returns:** `"uniform"`: every value equally likely; `"independent"`: each dimension by itself,
    with the frequencies of the training data, one half added to each count; `"lzma"`: LZMA over the
    bytes of all test data.

    **Raises:** `ValueError` for continuous data.
    """
    if dataset.levels is None:
        raise ValueError("baselines are for discrete data, dataset has levels=None.")
    counts = _counts(dataset.train, dataset.levels) + 0.5
    log_p = np.log2(counts / counts.sum(axis=1, keepdims=True))
    test = _counts(dataset.test, dataset.levels)
    size = len(dataset.test) * math.prod(dataset.shape)
    width = np.min_scalar_type(dataset.levels - 1)
    stored = b"".join(x.astype(width).tobytes() for x in chunks(dataset.test))
    return {
        "uniform": math.log2(dataset.levels),
        "independent": float(-(test * log_p).sum() / size),
        "lzma": 8 * len(lzma.compress(stored)) / size,
    }
