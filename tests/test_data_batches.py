"""Batches: order, resumption, and iterators that read ahead."""

import collections
import json
import math
import os

import numpy as np
import pytest
from sources import counting, random_pixels, save, take

from diffkit.data import ArraySource, BatchIterator, ImageFolderSource, batches


def test_every_epoch_is_another_permutation_and_nothing_is_dropped():
    stream = np.concatenate(take(batches(counting(10), batch_size=4, seed=0), 25)).ravel()
    epochs = stream.reshape(10, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 10


def test_orders_are_uniform():
    # All 24 orders of 4 things, 2,400 epochs: chi-squared with 23 degrees of freedom.
    (stream,) = take(batches(counting(4), batch_size=9600, seed=5), 1)
    counts = collections.Counter(map(tuple, stream.reshape(2400, 4).tolist()))
    assert len(counts) == 24
    statistic = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert statistic < 23 + 4 * math.sqrt(2 * 23)


def test_the_order_is_fixed_for_good():
    # A change of these numbers breaks the resumption of every run that exists.
    # Independent of NumPy's own sorting and of its Generator: raw Philox output, sorted by Python.
    for epoch, batch in enumerate(take(batches(counting(6), batch_size=6, seed=7), 3)):
        raw = np.random.Philox(key=[7, epoch]).random_raw(6)
        assert batch.ravel().tolist() == sorted(range(6), key=lambda i: int(raw[i]))
    first = next(batches(counting(6), batch_size=6, seed=7, threads=0))
    assert first.ravel().tolist() == [4, 1, 3, 2, 5, 0]


def test_seeds_differ():
    one, same, two = (
        np.concatenate(take(batches(counting(50), batch_size=25, seed=seed), 4)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("chunk", [None, 3])
def test_threads_and_prefetch_change_nothing(chunk):
    def first(**options):
        return np.stack(take(batches(counting(11), batch_size=5, seed=3, chunk=chunk, **options), 40))

    plain = first(threads=0)
    for options in (
        {},
        {"prefetch": 0},
        {"threads": 8, "prefetch": 32},
        {"threads": 8, "prefetch": 2},
    ):
        np.testing.assert_array_equal(first(**options), plain)


def test_chunks_are_the_same_batches_stacked():
    single = take(batches(counting(11), batch_size=5, seed=3), 12)
    stacked = take(batches(counting(11), batch_size=5, seed=3, chunk=4), 3)
    assert stacked[0].shape == (4, 5, 1)
    np.testing.assert_array_equal(np.concatenate(stacked), np.stack(single))


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize(("chunk", "start"), [(None, 0), (3, 0), (3, 7)])
def test_a_restored_iterator_goes_on(threads, chunk, start):
    def make():
        return batches(counting(11), batch_size=5, seed=3, chunk=chunk, start=start, threads=threads)

    original = make()
    for _ in range(6):
        next(original)
    state = json.loads(json.dumps(original.get_state()))
    rest = [next(original) for _ in range(5)]
    other = make()
    next(other)  # has read ahead from the wrong place
    other.set_state(state)
    for one, two in zip(rest, take(other, 5), strict=True):
        np.testing.assert_array_equal(one, two)
    original.set_state(state)  # back in time
    np.testing.assert_array_equal(next(original), rest[0])
    original.close()


@pytest.mark.parametrize("chunk", [None, 2, 5])
def test_start_is_enough_to_go_on(chunk):
    whole = take(batches(counting(11), batch_size=5, seed=3), 27)
    later = np.stack(take(batches(counting(11), batch_size=5, seed=3, start=7, chunk=chunk), 4))
    later = later.reshape(-1, 5, 1)
    np.testing.assert_array_equal(later, np.stack(whole)[7 : 7 + len(later)])
    # As far on as a long run gets: no pass over what comes before.
    (far,) = take(batches(counting(11), batch_size=11, seed=3, start=10**12), 1)
    assert sorted(far.ravel().tolist()) == list(range(11))


def test_a_source_smaller_than_a_batch():
    first, second = take(batches(counting(3), batch_size=8, seed=0), 2)
    stream = np.concatenate([first, second]).ravel()[:15].reshape(5, 3)
    assert all(sorted(epoch) == [0, 1, 2] for epoch in stream.tolist())
    (ordered,) = take(batches(counting(3), batch_size=8, seed=0, shuffle=False), 1)
    assert ordered.ravel().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("batch_size", "drop", "sizes"),
    [(4, False, [4, 4, 3]), (4, True, [4, 4]), (11, False, [11]), (20, False, [11])],
)
def test_one_pass_in_order(batch_size, drop, sizes):
    items = list(
        batches(
            counting(11), batch_size=batch_size, seed=0, shuffle=False, repeat=False,
            drop_remainder=drop,
        )
    )  # fmt: skip
    assert [len(item) for item in items] == sizes
    assert np.concatenate(items).ravel().tolist() == list(range(sum(sizes)))


def test_one_pass_shuffled_chunked_and_resumed():
    def one(**options):
        return list(batches(counting(11), batch_size=2, seed=9, repeat=False, **options))

    whole = one()
    assert len(whole) == 5
    assert len(set(np.concatenate(whole).ravel().tolist())) == 10
    np.testing.assert_array_equal(np.concatenate(one(chunk=2)), np.stack(whole[:4]))
    np.testing.assert_array_equal(np.stack(one(start=3)), np.stack(whole[3:]))
    assert one(start=5) == []


def test_batches_keep_dtype_and_shape():
    array = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    iterator = batches(ArraySource(array), batch_size=4, seed=0)
    assert isinstance(iterator, BatchIterator)
    assert iter(iterator) is iterator
    batch = next(iterator)
    assert (batch.shape, batch.dtype) == ((4, 2, 3), np.float32)
    iterator.close()


def test_an_error_while_reading_reaches_the_caller(tmp_path):
    file = save(tmp_path, "a.png", random_pixels(4, 5, 3))
    source = ImageFolderSource([file])
    os.remove(file)
    iterator = batches(source, batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"a\.png' cannot be decoded"):
        next(iterator)
    iterator.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"start": -1}, "start must be at least 0, got -1"),
        ({"threads": -1}, "threads must be at least 0, got -1"),
        ({"prefetch": -1}, "prefetch must be at least 0, got -1"),
        ({"seed": 2**64}, "seed must be from 0 to 18446744073709551615"),
        ({"repeat": False, "start": 4}, "start must be at most 3, the end of the pass, got 4"),
        ({"repeat": False, "batch_size": 12}, "holds 11 examples, fewer than one item of 12"),
        ({"repeat": False, "chunk": 4}, "fewer than one item of 12"),
        ({"repeat": False, "chunk": 2, "drop_remainder": False}, "got chunk=2, leave it out"),
    ],
)
def test_batches_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        batches(counting(11), **({"batch_size": 3, "seed": 0} | options))
