"""Helpers of datasets that read files or draw a split: existing paths, seeds, fixed random orders."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Int


def existing_path(path: str | os.PathLike[str], owner: str, expected: str) -> Path:
    """The path with `~` expanded; a `FileNotFoundError` that says what should be there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise FileNotFoundError(f"{owner}: there is nothing at path={str(path)!r}; expected {expected}.")
    return found


def existing_folder(path: str | os.PathLike[str], owner: str, expected: str) -> Path:
    """An existing folder, or an error that says what should be there."""
    found = existing_path(path, owner, expected)
    if not found.is_dir():
        raise ValueError(f"{owner}: path={str(path)!r} is a file; expected {expected}.")
    return found


def permutation(n: int, seed: int, stream: int) -> Int[np.ndarray, " n"]:
    """A random order of `n` things that depends only on the arguments.

    It sorts the raw 64-bit output of the counter-based generator Philox, keyed with `seed` and `stream`,
    which NumPy guarantees for all its versions, unlike `Generator.permutation`.
    """
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    return np.argsort(bits.random_raw(n))


def check_seed(seed: int, owner: str, below: int = 2**64) -> None:
    """Refuse a seed out of range with a `ValueError`."""
    if not 0 <= seed < below:
        raise ValueError(f"{owner}: seed must be from 0 to {below - 1}, got {seed}.")


def split_indices(
    n: int, test_fraction: float, seed: int, owner: str
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Indices of a random but fixed split, each part in stored order and neither empty."""
    check_seed(seed, owner)
    if not 0 < test_fraction < 1:
        raise ValueError(f"{owner}: test_fraction must lie between 0 and 1, got {test_fraction}.")
    if n < 2:
        raise ValueError(f"{owner}: a split needs at least 2 examples, got {n}.")
    size = min(max(1, round(n * test_fraction)), n - 1)
    order = permutation(n, seed, 2**64 - 1)  # a stream that no epoch reaches
    return np.sort(order[size:]), np.sort(order[:size])
