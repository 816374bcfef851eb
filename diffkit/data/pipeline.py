"""Batches: the order of examples, and an iterator that reads ahead.

The examples of all epochs form one endless stream: a permutation of the source, then another, and so on.
Batch $i$ of size $B$ is the part $[iB, (i + 1)B)$ of the stream: it may span two epochs, and no example is
left out. It is a function of the seed and its number: a run that goes on needs only the number of batches
taken.
"""

import functools
import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Shaped

from diffkit.data.base import AbstractConditionalSource, AbstractSource
from diffkit.data.reading import check_seed, permutation
from diffkit.lazy import needed
from diffkit.typing import check_at_least

Batch = (
    Shaped[np.ndarray, "*items"]
    | tuple[Shaped[np.ndarray, "*items"], Float32[np.ndarray, "*rows condition_size"]]
)
"""Examples; or, from a source with conditions, the pair of examples and conditions."""


@runtime_checkable
class BatchIterator(Protocol):
    """The part of the grain `DatasetIterator` from `batches` on which diffkit relies.

    Orbax can save and restore it through `grain.checkpoint`.
    """

    def __iter__(self) -> Iterator[Batch]:
        """The iterator itself."""
        ...

    def __next__(self) -> Batch:
        """The next batch, or the next `chunk` of them."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position, as a dictionary for JSON: it counts the items taken, not those read ahead."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position from `get_state` of this iterator or one made alike."""
        ...

    def close(self) -> None:
        """Stop reading ahead. The iterator cannot be used afterwards."""
        ...


def batches(
    source: AbstractSource,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    repeat: bool = True,
    start: int = 0,
    drop_remainder: bool = True,
    chunk: int | None = None,
    threads: int = 2,
    prefetch: int = 4,
) -> BatchIterator:
    """Batches of a source, in an order that depends only on the seed, read ahead by threads.

    The defaults are for training. To see every example once and in order, as in an evaluation, pass
    `shuffle=False, repeat=False, drop_remainder=False`.

    **Arguments:**

    - `source`: the examples, such as `dataset.train`; `batch_size`: examples per batch.
    - `seed`: of the order, from 0 to 2^64 - 1; `shuffle`: a new permutation for every epoch, else the
      stored order.
    - `repeat`: never end. A batch may then hold examples of two epochs, or of more if the source is small.
    - `start`: the number of the first batch: the iterator begins where one without it is after `start`
      batches, for every `chunk`.
    - `drop_remainder`: whether to leave out a smaller last batch. No effect with `repeat`.
    - `chunk`: return this many batches at a time, stacked along a new first axis, for a training loop with
      several steps per call. Without `repeat`, batches that do not fill a last chunk are left out.
    - `threads`: how many gather; `prefetch`: how many items (batches, or chunks of them) to keep ready. 0
      of either gathers on demand, in the calling thread. They do not change the batches.

    **Returns:** an iterator over arrays `(batch_size, *shape)`, or `(chunk, batch_size, *shape)`; for a
    source with conditions over pairs of such an array and the conditions, with `condition_size` in place of
    `*shape`. Its state counts items from `start`: restore it into an iterator made with the same arguments.

    **Raises:** `ValueError` for a number out of range, for `chunk` together with `drop_remainder=False,
    repeat=False`, or if there are too few examples for one item; `ImportError` without grain.

    ```python
    data = dk.data.Digits()
    for x in dk.data.batches(data.train, batch_size=128, seed=0):
        ...  # x: uint8, (128, 1, 8, 8)
    ```
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("chunk", 1 if chunk is None else chunk, 1),
        ("start", start, 0),
        ("threads", threads, 0),
        ("prefetch", prefetch, 0),
    ):
        check_at_least(f"batches: {name}", value, least)
    check_seed(seed, "batches")
    length = len(source)
    if length == 0:
        raise ValueError("batches: source must hold at least one example, got none.")
    items = sys.maxsize if repeat else _items(length, batch_size, start, drop_remainder, chunk)
    grain: Any = needed("grain", "batches need grain")

    stream = _Stream(length, seed, shuffle, None if repeat else length)
    size = batch_size * (chunk or 1)

    def stacked(rows: Shaped[np.ndarray, "n *row"]) -> Shaped[np.ndarray, "*items"]:
        return rows if chunk is None else rows.reshape(chunk, batch_size, *rows.shape[1:])

    def item(index: int) -> Batch:
        first = start * batch_size + index * size
        indices = stream.indices(first, first + size)
        examples = stacked(source.gather(indices))
        if isinstance(source, AbstractConditionalSource) and source.condition_size > 0:
            return examples, stacked(source.conditions(indices))
        return examples

    threads, prefetch = (threads, prefetch) if threads and prefetch else (0, 0)
    options = grain.ReadOptions(num_threads=min(threads, prefetch), prefetch_buffer_size=prefetch)
    return grain.MapDataset.range(items).map(item).to_iter_dataset(options).__iter__()


def _items(length: int, batch_size: int, start: int, drop_remainder: bool, chunk: int | None) -> int:
    """How many items a single pass over `length` examples has, from batch `start` on."""
    if chunk is not None and not drop_remainder:
        raise ValueError(
            "batches: with repeat=False and drop_remainder=False the last batch may be smaller, so "
            f"batches cannot be stacked; got {chunk=}, leave it out."
        )
    count = length // batch_size if drop_remainder else -(-length // batch_size)
    if count < (chunk or 1):
        raise ValueError(
            f"batches: the source holds {length} examples, fewer than one item of "
            f"{batch_size * (chunk or 1)}; lower batch_size or chunk, or pass repeat=True or "
            "drop_remainder=False."
        )
    if start > count:
        raise ValueError(f"batches: start must be at most {count}, the end of the pass, got {start}.")
    return (count - start) // (chunk or 1)


class _Stream:
    """The order of the examples of all epochs. Any number of threads may ask."""

    def __init__(self, length: int, seed: int, shuffle: bool, end: int | None):
        self._length, self._seed, self._shuffle, self._end = length, seed, shuffle, end
        # Concurrent threads usually need two neighbouring epochs.
        self._order = functools.lru_cache(maxsize=4)(self._compute_order)

    def _compute_order(self, epoch: int) -> Int[np.ndarray, " n"]:
        if self._shuffle:
            return permutation(self._length, self._seed, epoch)
        return np.arange(self._length)

    def indices(self, first: int, stop: int) -> Int[np.ndarray, " n"]:
        """The indices from position `first` up to `stop`, or up to the end if there is one."""
        stop = stop if self._end is None else min(stop, self._end)
        pieces = []
        while first < stop:
            epoch, offset = divmod(first, self._length)
            piece = self._order(epoch)[offset : offset + stop - first]
            pieces.append(piece)
            first += len(piece)
        return np.concatenate(pieces)
