r"""Bits-back coding along the forward chain of a diffusion model.

The latents are the rescaled ones, $y = z / \alpha$, which are the same under every process. The forward
chain $q(y_0 \mid x)\, q(y_1 \mid y_0) \cdots q(y_T \mid y_{T-1})$ factorises the posterior as well as the
bound does, and pays back each step at once (Bit-Swap: Kingma, Abbeel and Ho 2019, arXiv 1905.06845):

1. pop $y_0$ by $q(y_0 \mid x)$, push $x$ by $p(x \mid y_0)$;
2. for i = 1 ... T: pop $y_i$ by $q(y_i \mid y_{i-1})$, push $y_{i-1}$ by $p(y_{i-1} \mid y_i)$;
3. push $y_T$ by the prior $p(y_T)$.

The stack grows by a one-sample estimate of the VLB of the discrete-time model with T steps, whose
distributions these are. The initial bits are those of one latent. Decoding runs backwards and restores the
stack. Each latent has its own lattice (`diffkit_bitsback.gaussians`), scaled to the narrower of its two
coding distributions.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Integer, UInt32

import diffkit as dk
from diffkit.processes import rescaled_forward_std, rescaled_posterior, rescaled_prior_std
from diffkit_bitsback.errors import CannotEncode, DamagedData
from diffkit_bitsback.gaussians import Floats, LatticeGaussians
from diffkit_bitsback.stack import Ints, Stack, groups, weights_of

Images = Integer[np.ndarray, "images *shape"]
"""Images as stored: integers 0 ... levels - 1, stacked along the first axis."""

Words = UInt32[np.ndarray, " words"]

_Progress = Callable[[float], None]

RESOLUTION = 1.0
"""Default lattice points per standard deviation: `diffkit_bitsback.gaussians` explains why so few."""

# How much finer than for q(y_0 | x) the lattice of y_0 must be, for sums of log p(x | y_0) over it to equal
# integrals: to 2e-5 nats, with levels six standard deviations apart; with 1 it would be 7e-4.
_BEND = 2.0
# So many images pay back about as many bits as the latents of one image take at the beginning.
_PAYS_BACK = 4
# Words per dimension of a batch that decoding may add to a stack by chance, since single draws vary.
_REGROWTH = 4
# The entries of a table of p(x | y_0) at a time.
_ENTRIES = 1 << 18


@dataclass(frozen=True)
class ChainStatistics:
    """The cost of coding some images.

    **Attributes:** `images`, and `dimensions` of all images together; `total_bits`: the stored bits;
    `initial_bits`: those of them taken from the source instead of pushed, which decoding returns;
    `pushed_bits`: the growth of the stack, to a fraction of a bit (the stored bits minus the initial ones
    are at most 64 more, since both are whole words); `bounds`: for each image, in bits, the one-sample
    bound along the coded latents, that is the net rate without overhead; `network_seconds`,
    `coding_seconds`: time in the network, and elsewhere.
    """

    images: int
    dimensions: int
    total_bits: int
    initial_bits: int
    pushed_bits: float
    bounds: Float64[np.ndarray, " images"]
    network_seconds: float
    coding_seconds: float

    @classmethod
    def nothing(cls) -> "ChainStatistics":
        """For no images."""
        return cls(0, 0, 0, 0, 0.0, np.zeros(0), 0.0, 0.0)

    @property
    def bound_bits(self) -> float:
        """The one-sample bound of all images together."""
        return float(self.bounds.sum())

    @property
    def net_bits(self) -> int:
        """Stored bits minus the initial ones."""
        return self.total_bits - self.initial_bits

    @property
    def total_bits_per_dim(self) -> float:
        """Stored bits per dimension."""
        return self.total_bits / self.dimensions

    @property
    def net_bits_per_dim(self) -> float:
        """Stored bits per dimension minus the initial ones."""
        return self.net_bits / self.dimensions

    @property
    def bound_bits_per_dim(self) -> float:
        """The one-sample bound per dimension."""
        return self.bound_bits / self.dimensions

    @property
    def overhead_bits_per_dim(self) -> float:
        """The growth of the stack beyond the bound along the same latents, per dimension."""
        return (self.pushed_bits - self.bound_bits) / self.dimensions

    def __add__(self, other: "ChainStatistics") -> "ChainStatistics":
        """For the images of both."""
        added = {n: value + getattr(other, n) for n, value in vars(self).items() if n != "bounds"}
        return ChainStatistics(bounds=np.append(self.bounds, other.bounds), **added)


class Chain:
    """Codes batches of images on one stack, with the latents of a model.

    **Arguments:** `model`: a model with a discrete decoder, used without a condition; `logsnrs`: the T + 1
    noise levels of the chain, decreasing, the data end first; `batch_size`: the number of images that go
    through the network together; `first_batch`: the size of the first batch, whose latents take the initial
    bits, by default `batch_size`, which is the fastest (later batches grow about as fast as images pay
    back, up to `batch_size`); `resolution`: lattice points per standard deviation; `seed`: of the source of
    initial bits, from 0 to 2^64 - 1.

    **Raises:** `CannotEncode` for a decoder that is not discrete, noise levels that do not decrease, or a
    number out of range.
    """

    def __init__(
        self,
        model: dk.DiffusionModel,
        logsnrs: Floats,
        *,
        batch_size: int = 32,
        first_batch: int | None = None,
        resolution: float = RESOLUTION,
        seed: int = 0,
    ):
        if model.decoder.levels is None:
            name = type(model.decoder).__name__
            raise CannotEncode(
                f"model must have a discrete decoder; got {name}, which is for continuous data."
            )
        self._logsnrs = logsnrs.astype(np.float32)
        if not (len(logsnrs) > 1 and np.isfinite(logsnrs).all() and (np.diff(self._logsnrs) < 0).all()):
            raise CannotEncode(
                "logsnrs must be at least two finite numbers, strictly decreasing from the data end, in "
                f"float32 too, got {logsnrs}."
            )
        if batch_size < 1:
            raise CannotEncode(f"batch_size must be at least 1, got {batch_size}.")
        first_batch = batch_size if first_batch is None else first_batch
        if not 1 <= first_batch <= batch_size:
            raise CannotEncode(
                f"first_batch must be from 1 to batch_size, which is {batch_size}, got {first_batch}."
            )
        if not 0.5 <= resolution <= 1024:
            raise CannotEncode(f"resolution must be between 0.5 and 1024, got {resolution}.")
        if not 0 <= seed < 2**64:
            raise CannotEncode(f"seed must be from 0 to {2**64 - 1}, got {seed}.")
        self._model = model
        self._levels: int = model.decoder.levels
        self._batch_size, self._first_batch = batch_size, first_batch
        self._resolution, self._seed = resolution, seed
        self._size = math.prod(model.shape)
        self._compiled = _Compiled(model, batch_size)
        self._forward, self._prior, self._spacing = _scales(self._logsnrs, resolution)

    @property
    def steps(self) -> int:
        """T."""
        return len(self._logsnrs) - 1

    def with_logsnrs(self, logsnrs: Floats, *, first_batch: int | None = None) -> "Chain":
        """The same with other noise levels or another first batch; both share the compiled functions."""
        other = Chain(
            self._model,
            logsnrs,
            batch_size=self._batch_size,
            first_batch=self._first_batch if first_batch is None else first_batch,
            resolution=self._resolution,
            seed=self._seed,
        )
        other._compiled = self._compiled
        return other

    @property
    def dtype(self) -> np.dtype:
        """The dtype of decoded images: the smallest that holds the levels."""
        return np.min_scalar_type(self._levels - 1)

    def encode(self, images: Images, *, progress: _Progress | None = None) -> tuple[Words, ChainStatistics]:
        """Code images as the words of one stack.

        **Arguments:** `images`: as stored; `progress`: called now and then with the number of finished
        images, including fractions of a batch.

        **Returns:** the words, and the cost of coding.

        **Raises:** `CannotEncode` for images of another shape or with other levels, or if the network's
        output is not finite.
        """
        self.check(images)
        clock = _Clock()
        stack = Stack(seed=self._seed)
        bounds = [np.zeros(0)]
        for rows in _Batches(len(images), self._first_batch, self._batch_size):
            told = _from(progress, rows.start, rows.stop - rows.start)
            bounds.append(self._encode_batch(stack, images[rows], rows.start, clock, told))
        words, initial = stack.finish()
        return words, ChainStatistics(
            images=len(images),
            dimensions=len(images) * self._size,
            total_bits=32 * len(words),
            initial_bits=32 * initial,
            pushed_bits=stack.pushed_bits(),
            bounds=np.concatenate(bounds) / math.log(2),
            network_seconds=clock.network,
            coding_seconds=clock.other(),
        )

    def decode(self, words: Words, count: int, *, progress: _Progress | None = None) -> Images:
        """The images that `encode` turned into these words.

        **Arguments:** `words`, and the `count` of images in them; `progress` as in `encode`.

        **Raises:** `DamagedData` if the words run out, grow in number, do not end with the source's initial
        bits, or decode to impossible values, perhaps since the network does not repeat the floats of
        encoding; `CannotEncode` for a negative count.
        """
        if count < 0:
            raise CannotEncode(f"count must be 0 or more, got {count}.")
        stack = Stack(words, seed=self._seed)
        images = np.empty((count, *self._model.shape), self.dtype)
        most = len(words) + _REGROWTH * self._batch_size * self._size + _REGROWTH
        try:
            for rows in reversed(_Batches(count, self._first_batch, self._batch_size)):
                told = _from(progress, count - rows.stop, rows.stop - rows.start)
                self._decode_batch(stack, images[rows], rows.start, _Clock(), told)
                if len(stack) > most:
                    raise DamagedData(
                        f"the coded words are not those of an encoder: of {len(words)} words "
                        f"{len(stack)} are left."
                    )
        except CannotEncode as error:
            raise DamagedData(f"the coded words do not decode: {error}") from error
        stack.check_finished()
        return images

    def reverse(
        self, y: Float[np.ndarray, "batch size"], step: int
    ) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """Mean and standard deviation of p(y_{step - 1} | y_step), from the network.

        **Arguments:** `y`: at most `batch_size` rescaled latents, flattened; `step` from 1 to T.

        **Returns:** float32 arrays like `y`; the standard deviation may be one for all, a scalar.
        """
        padded = self._padded(y.reshape(len(y), *self._model.shape), np.float32)
        mean, std = self._compiled.reverse(padded, self._logsnrs[step], self._logsnrs[step - 1])
        mean, std = np.asarray(mean)[: len(y)].reshape(y.shape), np.asarray(std)
        return mean, np.asarray(std[0]) if std.ndim == 1 else std[: len(y)].reshape(y.shape)

    def _padded(self, examples: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
        """The examples, padded with zeros to a batch."""
        padded = np.zeros((self._batch_size, *self._model.shape), dtype)
        padded[: len(examples)] = examples
        return padded

    def check(self, images: Integer[np.ndarray, "..."], first: int = 0) -> None:
        """Check the shape and the levels of images; the message counts them from `first`.

        **Raises:** `CannotEncode`.
        """
        shape = self._model.shape
        if images.shape[1:] != shape:
            expected = f"the model's shape {shape}, shape (count, {', '.join(map(str, shape))})"
            raise CannotEncode(f"images must have {expected}, got {images.shape}.")
        # Piece by piece, since the array may be mapped from a file larger than memory.
        for rows in groups(len(images), max(1, 2**24 // max(1, self._size))):
            piece = images[rows]
            if piece.size and (piece.min() < 0 or piece.max() >= self._levels):
                begin = first + rows.start
                raise CannotEncode(
                    f"images must hold levels from 0 to {self._levels - 1}, got {piece.min()} to "
                    f"{piece.max()} in images {begin} to {begin + len(piece) - 1}."
                )

    def _encode_batch(
        self, stack: Stack, batch: Images, first_image: int, clock: "_Clock", progress: _Progress
    ) -> Float64[np.ndarray, " images"]:
        """Push a batch; return the one-sample bound of each image in nats."""
        first = self._first(batch)
        stack.mask(batch.size, self._mask(first_image, 0))
        k = first.pop(stack)
        bound = first.log_prob(k)
        bound -= self._push_data(stack, batch, self._spacing[0] * k)
        for step in range(1, self.steps + 1):
            forward = self._step(k, step)
            stack.mask(batch.size, self._mask(first_image, step))
            noisier = forward.pop(stack)
            reverse = self._reverse(noisier, step, clock)
            reverse.push(stack, k)
            bound += forward.log_prob(noisier) - reverse.log_prob(k)
            k = noisier
            progress(step / self.steps)
        last = self._last(len(k))
        last.push(stack, k)
        bound -= last.log_prob(k)
        return bound.reshape(len(batch), -1).sum(axis=1)

    def _decode_batch(
        self, stack: Stack, batch: Images, first_image: int, clock: "_Clock", progress: _Progress
    ) -> None:
        """Pop a batch into the given array."""
        k = self._last(batch.size).pop(stack)
        for step in range(self.steps, 0, -1):
            cleaner = self._reverse(k, step, clock).pop(stack)
            self._step(cleaner, step).push(stack, k)
            stack.mask(batch.size, self._mask(first_image, step))
            k = cleaner
            progress(1 - (step - 1) / self.steps)
        self._pop_data(stack, batch, self._spacing[0] * k)
        self._first(batch).push(stack, k)
        stack.mask(batch.size, self._mask(first_image, 0))

    def _mask(self, first_image: int, step: int) -> int:
        """A different number for each latent of each batch."""
        return first_image * (self.steps + 1) + step

    def _first(self, batch: Images) -> LatticeGaussians:
        """q(y_0 | x)."""
        # One shape, since each is compiled.
        values = self._model.encode(self._padded(batch, batch.dtype))
        x = np.asarray(values, np.float64)[: len(batch)].ravel()
        return LatticeGaussians(x, float(self._forward[0]), float(self._spacing[0]))

    def _step(self, k: Ints, step: int) -> LatticeGaussians:
        """q(y_step | y_{step - 1})."""
        y = self._spacing[step - 1] * k
        return LatticeGaussians(y, float(self._forward[step]), float(self._spacing[step]))

    def _reverse(self, k: Ints, step: int, clock: "_Clock") -> LatticeGaussians:
        """p(y_{step - 1} | y_step)."""
        with clock:
            mean, std = self.reverse((self._spacing[step] * k).reshape(-1, self._size), step)
        std = std.ravel() if std.ndim else float(std)
        return LatticeGaussians(mean.ravel(), std, float(self._spacing[step - 1]))

    def _last(self, count: int) -> LatticeGaussians:
        """p(y_T)."""
        return LatticeGaussians(np.zeros(count), self._prior, float(self._spacing[-1]))

    def _push_data(self, stack: Stack, batch: Images, y: Floats) -> Floats:
        """Push x by p(x | y_0); return the log probability of each dimension in nats."""
        x = batch.ravel().astype(np.int64)
        found = np.empty(len(x))
        for rows in reversed(groups(len(y), self._compiled.rows)):
            log_prob = self._data_log_prob(y[rows])
            stack.push(x[rows], weights_of(log_prob))
            found[rows] = np.take_along_axis(log_prob, x[rows, None], axis=1)[:, 0]
        return found

    def _pop_data(self, stack: Stack, batch: Images, y: Floats) -> None:
        parts = [y[rows] for rows in groups(len(y), self._compiled.rows)]
        x = [stack.pop(weights_of(self._data_log_prob(part))) for part in parts]
        batch[...] = np.concatenate(x).reshape(batch.shape)

    def _data_log_prob(self, y: Floats) -> Float[np.ndarray, "n levels"]:
        """log p(x | y_0) of every value, for each dimension separately."""
        padded = np.zeros(self._compiled.rows, np.float32)
        padded[: len(y)] = y
        found = self._compiled.data_log_prob(padded, self._logsnrs[0])
        log_prob = np.asarray(found, np.float64)[: len(y)]
        if not np.isfinite(log_prob.max(axis=1)).all():
            raise CannotEncode("the model's decoder gives probabilities that are not finite.")
        return log_prob


class _Batches:
    """Which images are coded together. No list, since a file states the number of images."""

    def __init__(self, count: int, first_batch: int, batch_size: int):
        self._count, self._first_batch, self._batch_size = count, first_batch, batch_size
        self._small, start = [], 0
        while start < count and self._size(start) < batch_size:
            self._small.append(start)
            start += self._size(start)
        self._full = range(start, count, batch_size)

    def _size(self, start: int) -> int:
        return min(self._first_batch + start // _PAYS_BACK, self._batch_size)

    def __len__(self) -> int:
        return len(self._small) + len(self._full)

    def __getitem__(self, index: int) -> slice:
        small = len(self._small)
        start = self._small[index] if index < small else self._full[index - small]
        return slice(start, min(start + self._size(start), self._count))


class _Compiled:
    """The two functions of a model that run on the device, each compiled once, for one shape."""

    def __init__(self, model: dk.DiffusionModel, batch_size: int):
        assert model.decoder.levels is not None
        self._model, self._levels = model, model.decoder.levels
        self._shape = (batch_size, *model.shape)
        # The number of dimensions of one table.
        self.rows = min(max(_ENTRIES // self._levels, 1), math.prod(self._shape))

    @functools.cached_property
    def reverse(self) -> Callable[..., tuple[Float[Array, "..."], Float[Array, "..."]]]:
        """Of a batch of y_t and the logsnr of t and s: mean and standard deviation of p(y_s | y_t)."""
        arrays, rest = eqx.partition(self._model.denoiser, eqx.is_array)

        def reverse(arrays, y, logsnr_t, logsnr_s):
            denoiser = eqx.combine(arrays, rest)
            alpha = denoiser.process.at(logsnr_t).alpha
            return jax.vmap(lambda y: denoiser(alpha * y, logsnr_t).reverse(logsnr_s))(y)

        y, logsnr = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (self._shape, ()))
        compiled = _compile(jax.jit(reverse).lower(arrays, y, logsnr, logsnr))
        return functools.partial(compiled, arrays)

    @functools.cached_property
    def data_log_prob(self) -> Callable[..., Float[Array, "rows levels"]]:
        """Of y_0 in `rows` dimensions and its logsnr: log p(x | y_0) for every level."""
        model, levels = self._model, jnp.arange(self._levels)

        def log_prob(y, logsnr):
            level = model.process.at(logsnr)
            return jax.vmap(lambda x: model.decoder.log_prob(x, level.alpha * y, level))(levels)

        y, logsnr = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((self.rows,), ()))
        return _compile(jax.jit(jax.vmap(log_prob, (0, None))).lower(y, logsnr))


def _compile(lowered: jax.stages.Lowered) -> Callable:
    """Compile so that the same input gives the same bits in every process."""
    # On a GPU: no autotuning, and no operations with an undefined order of summation.
    tpu = jax.default_backend() == "tpu"  # whose compiler does not know the option
    return lowered.compile({} if tpu else {"xla_gpu_deterministic_ops": True})


def _scales(logsnrs: Floats, resolution: float) -> tuple[Floats, float, Floats]:
    """Standard deviations of the chain into each latent, that of the prior, and the lattices' spacings."""
    first = float(dk.VarianceExploding().at(logsnrs[0]).rho)
    prior = float(rescaled_prior_std(logsnrs[-1]))
    both = [[float(std) for std in _step_stds(s, t)] for s, t in itertools.pairwise(logsnrs)]
    into = np.array([first, *(forward for forward, _ in both)])
    back = np.array([*(reverse for _, reverse in both), prior])
    narrower = np.minimum(into, back)
    # As a function of y_0, p(x | y_0) has a bend between two levels, which is narrower than q(y_0 | x).
    narrower[0] = min(into[0] / _BEND, back[0])
    return into, prior, narrower / resolution


@jax.jit
def _step_stds(logsnr_s: Array, logsnr_t: Array) -> tuple[Array, Array]:
    """The standard deviations of q(y_t | y_s) and of q(y_s | y_t, x)."""
    zero = jnp.zeros(())
    _, std = rescaled_posterior(zero, zero, logsnr_t, logsnr_s)
    return rescaled_forward_std(logsnr_s, logsnr_t), std


class _Clock:
    """Time since its creation, and the time spent inside."""

    def __init__(self):
        self._began = time.perf_counter()
        self._entered = 0.0
        self.network = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.network += time.perf_counter() - self._entered

    def other(self) -> float:
        return time.perf_counter() - self._began - self.network


def _from(progress: _Progress | None, first: int, count: int) -> _Progress:
    """Progress within a batch, as progress in images."""
    if progress is None:
        return lambda share: None
    return lambda share: progress(first + share * count)
