"""Helpers of datasets that read files or draw a split: existing paths, seeds, fixed random orders."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int


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


def listed(items: Sequence[str], most: int = 10) -> str:
    """The first of many items, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(item.removesuffix(".") for item in items[:most]) + more


def memory() -> int:
    """The bytes of memory that this process can ask for at most."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, AttributeError, ValueError, OSError):  # not on every system
        return 2**48
    return whole if limit == resource.RLIM_INFINITY else min(whole, limit)


def check_memory(size: int, file: str | os.PathLike[str], owner: str) -> None:
    """Refuse to read more than memory holds, before anything is allocated."""
    if size > memory():
        raise ValueError(
            f"{owner}: {str(file)!r} says that it holds {size} bytes, more than this machine's memory."
        )


def split_by_name(
    names: Sequence[str], test_fraction: float, seed: int, owner: str
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Indices of a split in which the place of each name depends on nothing but the name and the seed.

    A name is in the test part if its hash, as a number from 0 to 1, is below the fraction.
    """
    _check_split(len(names), test_fraction, seed, owner)

    def part(seed: int) -> Bool[np.ndarray, " n"]:
        key = seed.to_bytes(8, "little")
        hashes = (
            hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=key).digest()
            for name in names
        )
        limit = test_fraction * 2.0**64
        return np.array([int.from_bytes(digest, "big") < limit for digest in hashes])

    is_test = part(seed)
    if is_test.all() or not is_test.any():
        empty = "train" if is_test.all() else "test"
        tried = (other for other in range(1000) if 0 < part(other).sum() < len(names))
        other = next(tried, None) if len(names) < 1000 else None
        hint = "" if other is None else f" another seed, such as seed={other},"
        raise ValueError(
            f"{owner}: the split by names leaves no image of {len(names)} for {empty}, with "
            f"{test_fraction=}, {seed=}: give{hint} another test_fraction, or subfolders train and test."
        )
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def _check_split(n: int, test_fraction: float, seed: int, owner: str) -> None:
    check_seed(seed, owner)
    if not 0 < test_fraction < 1:
        raise ValueError(f"{owner}: test_fraction must lie between 0 and 1, got {test_fraction}.")
    if n < 2:
        raise ValueError(f"{owner}: a split needs at least 2 examples, got {n}.")


def split_indices(
    n: int, test_fraction: float, seed: int, owner: str
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]:
    """Indices of a random but fixed split, each part in stored order and neither empty."""
    _check_split(n, test_fraction, seed, owner)
    size = min(max(1, round(n * test_fraction)), n - 1)
    order = permutation(n, seed, 2**64 - 1)  # a stream that no epoch reaches
    return np.sort(order[size:]), np.sort(order[:size])
