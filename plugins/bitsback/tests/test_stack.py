"""The stack of bits: against the arithmetic of ANS in Python's integers, and its source."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkit_bitsback.errors import DamagedData
from diffkit_bitsback.stack import TOTAL, Stack, weights_of


def random_weights(rng, rows, symbols):
    log_prob = rng.normal(size=(rows, symbols)) * rng.choice([0.1, 3.0, 30.0], size=(rows, 1))
    return weights_of(log_prob)


def ans_pop(words, frequencies):
    """Decode one symbol of each row, by the definition of streaming ANS (Duda 2013, section 5)."""
    words = [int(word) for word in words]
    state = words.pop() << 32 | words.pop()
    symbols = []
    for row in frequencies:
        low, rest = state % TOTAL, state // TOTAL
        ends = np.cumsum(row)
        symbol = int(np.searchsorted(ends, low, side="right"))
        state = rest * int(row[symbol]) + low - int(ends[symbol] - row[symbol])
        while state < 1 << 32:
            state = state << 32 | words.pop()
        symbols.append(symbol)
    return symbols, [*words, state & (1 << 32) - 1, state >> 32]


@pytest.mark.parametrize("symbols", [2, 3, 15, 256])
def test_frequencies_are_exact(symbols):
    rng = np.random.default_rng(symbols)
    weights = random_weights(rng, 200, symbols)
    words = rng.integers(1, 2**32, size=300, dtype=np.uint32)
    stack = Stack(words)
    expected, left = ans_pop(words, (weights + 1).astype(np.int64))
    np.testing.assert_array_equal(stack.pop(weights), expected)
    np.testing.assert_array_equal(stack.finish()[0], left[stack._untouched :])


def test_weights_are_the_probabilities():
    log_prob = np.log(np.array([[0.5, 0.25, 0.125, 0.125], [1e-12, 1 - 2e-12, 1e-12, 1e-300]])) + 7
    frequencies = weights_of(log_prob) + 1
    np.testing.assert_array_equal(frequencies.sum(axis=1), TOTAL)
    expected = np.exp(log_prob - 7)
    np.testing.assert_allclose(frequencies / TOTAL, expected, atol=8 / TOTAL)
    assert frequencies.min() == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**63), st.integers(1, 3000), st.integers(2, 40))
def test_what_is_pushed_is_popped(seed, entropy, rows, symbols):
    rng = np.random.default_rng(entropy)
    first, second = (random_weights(rng, rows, symbols) for _ in range(2))
    counts = rng.integers(0, 53, size=rows)
    message = rng.integers(0, symbols, size=rows)
    stack = Stack(seed=seed)
    drawn, number = stack.pop(first), stack.pop_bits(counts)
    assert (number < 2.0**counts).all()
    stack.push(message, second)
    words, initial = stack.finish()
    opened = Stack(words, seed=seed)
    np.testing.assert_array_equal(opened.pop(second), message)
    opened.push_bits(number, counts)
    opened.push(drawn, first)
    opened.check_finished()
    # Bits in less bits out: what the message costs less what was drawn.
    cost = -np.log2((np.take_along_axis(second, message[:, None], 1) + 1) / TOTAL).sum()
    back = -np.log2((np.take_along_axis(first, drawn[:, None], 1) + 1) / TOTAL).sum()
    assert stack.pushed_bits() == pytest.approx(cost - back - counts.sum(), abs=0.1 + 1e-4 * rows)
    assert 0 <= 32 * (len(words) - initial) - stack.pushed_bits() <= 64


def test_masks_make_what_is_popped_random():
    # A message that its distribution hardly expects, such as a bad model's, leaves bits that are all alike.
    unlikely = np.tile([TOTAL - 6.0, 4.0], (2000, 1))
    quarters = np.full((2000, 4), TOTAL / 4 - 1)
    counts = {}
    for masked in (False, True):
        stack = Stack(seed=5)
        stack.push(np.ones(2000, int), unlikely)
        if masked:
            stack.mask(2000, 7)
        drawn = stack.pop(quarters)
        counts[masked] = np.bincount(drawn, minlength=4)
        # And back, on a stack that lacks the words of the source that were not used.
        opened = Stack(stack.finish()[0], seed=5)
        opened.push(drawn, quarters)
        if masked:
            opened.mask(2000, 7)
        np.testing.assert_array_equal(opened.pop(unlikely), 1)
        opened.check_finished()
    # Four standard deviations of a count of 500, sqrt(2000 3/16) = 19; without masks it is far from it.
    assert np.abs(counts[True] - 500).max() < 4 * 19
    assert np.abs(counts[False] - 500).max() > 10 * 19


def test_masks_cost_nothing():
    stack = Stack()
    quarters = np.full((7, 4), TOTAL / 4 - 1)
    for number in range(3000):
        stack.mask(7, number)
        stack.pop(quarters)
    assert stack.pushed_bits() == pytest.approx(-3000 * 14, abs=0.5)


def test_bits_are_uniform():
    stack = Stack()
    counts = np.repeat([1, 5, 16, 17, 40], 4000)
    values = stack.pop_bits(counts).reshape(5, 4000) / 2.0 ** np.array([[1], [5], [16], [17], [40]])
    # A mean of 4000 uniforms has the standard deviation 0.0046; on 1 bit the mean is 1/4.
    np.testing.assert_allclose(values.mean(axis=1)[1:], 0.5, atol=0.03)
    assert values[0].mean() == pytest.approx(0.25, abs=0.03)


def test_only_what_was_taken_from_the_source_is_kept():
    stack = Stack(seed=1)
    uniform = np.full((4000, 2), TOTAL / 2 - 1)
    drawn = stack.pop(uniform)
    words, initial = stack.finish()
    # 4000 bits are 125 words; the state holds up to two words more.
    assert 125 <= initial <= 127
    stack.push(drawn, uniform)
    assert stack.pushed_bits() == pytest.approx(0, abs=1e-6)
    again = Stack(words, seed=1)
    again.push(drawn, uniform)
    again.check_finished()
    other = Stack(words, seed=2)
    other.push(drawn, uniform)
    with pytest.raises(DamagedData, match="do not end with the initial bits"):
        other.check_finished()


@pytest.mark.parametrize("words", [[], [1], [5, 0], [0, 0, 0]])
def test_words_that_are_no_stack(words):
    with pytest.raises(DamagedData, match="must hold at least 2 words and end with one that is not 0"):
        Stack(np.array(words, np.uint32))


def test_words_that_run_out():
    stack = Stack(np.array([1, 2, 3], np.uint32))
    with pytest.raises(DamagedData, match="end before the data"):
        stack.pop(np.full((1000, 2), TOTAL / 2 - 1))
