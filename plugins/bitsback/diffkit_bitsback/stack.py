"""A stack of bits: push with one distribution, pop with another.

Asymmetric numeral systems (Duda 2013, arXiv 1311.2540) turn a message into a stack. Pushing a symbol of
probability p makes the stack longer by -log2 p bits. Popping with any distribution draws a symbol from it,
using the bits on top, and makes the stack shorter by as much; pushing the symbol back undoes this exactly.
Bits-back coding needs no more (Townsend, Bird and Barber 2019, arXiv 1901.04866). The coder is
constriction's, with a state of 64 bits over words of 32.

The first pops take bits from an endless source below the stack, made from a seed. They are part of the
stored words, and count.

A popped symbol is only as random as the bits on top. After pushing an unlikely symbol a pop would draw from
the same tail of its own distribution, so pseudo-random bits from the seed mask the top before a pop.
"""

import hashlib
import math
from typing import no_type_check

import constriction
import numpy as np
from jaxtyping import Float, Int, UInt32

from diffkit_bitsback.errors import DamagedData

# No modules: nothing can be imported from them.
_models = constriction.stream.model  # pyright: ignore[reportAttributeAccessIssue]
_stacks = constriction.stream.stack  # pyright: ignore[reportAttributeAccessIssue]

Ints = Int[np.ndarray, " n"]
Weights = Float[np.ndarray, "n symbols"]

TOTAL = 1 << 24
"""The sum of the frequencies of a distribution's symbols: constriction's precision."""

# A used stack keeps a state of two words; the words below are untouched.
_STATE = 2
_LEADING = 8
_BLOCK = 1024
_PIECE = 16


def _source(seed: int, first: int, count: int) -> UInt32[np.ndarray, " count"]:
    """Words `first` ... `first + count - 1` of the source: SHAKE-256 of the seed in counter mode."""
    raw = b"".join(
        hashlib.shake_256(f"diffkit bits-back source {seed} {block}".encode()).digest(4 * _BLOCK)
        for block in range(first // _BLOCK, -(-(first + count) // _BLOCK))
    )
    start = first % _BLOCK
    return np.frombuffer(raw, "<u4")[start : start + count].astype(np.uint32)


def _most_words(symbols: int) -> int:
    """The most words that a pop of this many symbols can use: 24 bits for each, plus the state."""
    return symbols * 24 // 32 + _STATE


def groups(count: int, size: int) -> list[slice]:
    """Slices of `size` rows each that cover `count` rows."""
    return [slice(first, first + size) for first in range(0, count, size)]


# Not checked at run time: about ten calls per step and batch, the checks took as long as the coding.
@no_type_check
class Stack:
    """A stack of bits above an endless source of bits.

    **Arguments:** `words`: stored words to open, `None` to start above the source; `seed`: of the source.

    **Raises:** `DamagedData` for words that cannot form a stack.
    """

    def __init__(self, words: UInt32[np.ndarray, " words"] | None = None, *, seed: int = 0):
        self._seed = seed
        self._family = _models.Categorical(perfect=False)
        self._uniform = _models.Uniform()
        self._opened = words is not None
        if words is None:
            self._pulled = _BLOCK
            # Sealed with a word 1 on top, so that the state of a used stack always has two words.
            self._coder = _stacks.AnsCoder(_source(seed, 0, _BLOCK)[::-1].copy(), seal=True)
        else:
            if len(words) < _STATE or words[-1] == 0:
                got = f"{len(words)}{' that end with 0' if len(words) else ''}"
                raise DamagedData(
                    f"words must hold at least {_STATE} words and end with one that is not 0, got {got}."
                )
            self._pulled, self._coder = 0, _stacks.AnsCoder(words)
        self._untouched = self._coder.num_words() - _STATE

    def __len__(self) -> int:
        """How many words there are."""
        return self._coder.num_words()

    def mask(self, symbols: int, number: int) -> None:
        """Randomise the bits for a pop of this many symbols, or undo this.

        Call it before the pop when encoding, and after the push when decoding.

        **Arguments:** `symbols`; `number`: a different one for each call, the same on the way back.
        """
        self._reserve(symbols)
        words = self._coder.get_compressed()
        # One for each word that the pop may use, from the top down.
        count = _most_words(symbols)
        random = np.random.Philox(key=self._seed, counter=[0, 0, 0, number])
        masks = random.random_raw(count // 2 + 1).astype("<u8").view("<u4")[:count].astype("u4")
        # The top two are the state. Its leading bits stay: zeros, the likelier ones there, cost less.
        length = int(words[-1]).bit_length()
        masks[0] &= np.uint32((1 << max(length - _LEADING, 0)) - 1)
        masks[1] &= np.uint32(0xFFFFFFFF >> max(_LEADING - length, 0))
        # When decoding there may be fewer words: the rest is never used.
        count = min(count, len(words))
        words[-count:] ^= masks[:count][::-1]
        self._coder = _stacks.AnsCoder(words)

    def pop(self, weights: Weights) -> Ints:
        """Draw n symbols from the bits on top.

        **Arguments:** `weights`: the frequency of each symbol minus one: integers as float64 that add up to
        `TOTAL - symbols`.

        **Raises:** `DamagedData` if stored words run out.
        """
        self._reserve(len(weights))
        symbols = self._coder.decode(self._family, weights)
        self._popped()
        return symbols

    def push(self, symbols: Ints, weights: Weights) -> None:
        """Undo `pop`: a `pop` afterwards returns these symbols."""
        self._coder.encode_reverse(symbols.astype(np.int32), self._family, weights)

    def pop_bits(self, counts: Ints) -> Ints:
        """Draw n numbers with these numbers of bits, all values equally likely."""
        values = np.zeros(len(counts), np.int64)
        for shift in range(0, int(counts.max(initial=0)), _PIECE):
            rows, sizes = self._piece(counts, shift)
            self._reserve(len(rows))
            values[rows] += self._coder.decode(self._uniform, sizes).astype(np.int64) << shift
            self._popped()
        return values

    def push_bits(self, values: Ints, counts: Ints) -> None:
        """Undo `pop_bits`."""
        for shift in reversed(range(0, int(counts.max(initial=0)), _PIECE)):
            rows, sizes = self._piece(counts, shift)
            piece = ((values[rows] >> shift) & (sizes - 1)).astype(np.int32)
            self._coder.encode_reverse(piece, self._uniform, sizes)

    @staticmethod
    def _piece(counts: Ints, shift: int) -> tuple[Ints, Ints]:
        """Which numbers have bits from `shift` on, and how many values this piece of each has."""
        bits = np.clip(counts - shift, 0, _PIECE)
        rows = np.flatnonzero(bits)
        return rows, (1 << bits[rows]).astype(np.int32)

    def _reserve(self, symbols: int) -> None:
        """Put words of the source below the stack if this many symbols could use it up."""
        if self._opened:
            return
        missing = _most_words(symbols) + _STATE - self._coder.num_words()
        if missing > 0:
            count = -(-missing // _BLOCK) * _BLOCK
            below = _source(self._seed, self._pulled, count)[::-1]
            self._coder = _stacks.AnsCoder(np.append(below, self._coder.get_compressed()))
            self._pulled += count
            self._untouched += count

    def _popped(self) -> None:
        below = self._coder.num_words() - _STATE
        if below < 0:
            raise DamagedData("the coded words end before the data they should hold.")
        self._untouched = min(self._untouched, below)

    def finish(self) -> tuple[UInt32[np.ndarray, " words"], int]:
        """The words to store, and the number of them taken from the source instead of pushed.

        The seal does not count as taken: the difference is the pushed words, and at most two more.
        """
        words = self._coder.get_compressed()[self._untouched :]
        return words, self._pulled - self._untouched

    def pushed_bits(self) -> float:
        """The growth of the stack since it was made, to a fraction of a bit."""
        first = _source(self._seed, 0, 1)[0]
        words, state = self._coder.pos()
        return 32 * words + math.log2(state) - 32 * self._pulled - math.log2(1 + first / 2**32)

    def check_finished(self) -> None:
        """Check that only the words of the source are left.

        **Raises:** `DamagedData` otherwise.
        """
        words = self._coder.get_compressed()
        expected = np.append(_source(self._seed, 0, len(words) - 1)[::-1], np.uint32(1))
        if not np.array_equal(words, expected):
            raise DamagedData(
                "the coded words do not end with the initial bits of the source: they were changed, or "
                "written with another model."
            )


def weights_of(log_prob: Weights) -> Weights:
    """Log probabilities, normalised or not, as weights for a stack (see `Stack.pop`)."""
    weights = np.exp(log_prob.astype(np.float64) - log_prob.max(axis=1, keepdims=True))
    total = TOTAL - weights.shape[1]
    weights *= total / weights.sum(axis=1, keepdims=True)
    np.floor(weights, out=weights)
    weights[np.arange(len(weights)), log_prob.argmax(axis=1)] += total - weights.sum(axis=1)
    return weights
