"""The codec: images to a file and back, bit by bit, or an error with the reason.

Decoding depends on every float of the network. So a file records how it was written, and the reader checks
this before it begins:

* the *fingerprint* of the model, its parts and its parameters;
* the *probe*: the digest of a few made-up images, coded through some of the steps. A machine with a
  different probe rounds differently and cannot read the file. A model with the same parameters and the same
  probe reads it, though a version of diffkit may name its parts otherwise.

Each chunk's images are compared with the digest of the encoded ones before any is returned.
"""

import copy
import hashlib
import io
import itertools
import json
import math
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from io import BufferedIOBase
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import Float64

import diffkit as dk
from diffkit_bitsback.chain import RESOLUTION, Chain, ChainStatistics, Images
from diffkit_bitsback.container import Chunk, Damaged, Reader, Writer, digest, packed_names
from diffkit_bitsback.errors import (
    CannotEncode,
    CannotReproduce,
    CodecError,
    DamagedFile,
    WrongModel,
)
from diffkit_bitsback.fingerprints import Fingerprint, fingerprint

Progress = Callable[[float, float | None], None]
"""Called with the number of finished images, and the bits per dimension of finished chunks, if any."""

# Limits on what a file may ask for before any of it is decoded.
_MAX_STEPS: Final = 2**16
_MAX_BATCH_DIMENSIONS: Final = 2**20
_MAX_CHUNK_DIMENSIONS: Final = 2**26
_MAX_LABEL: Final = 1000

_DTYPES: Final = tuple(np.dtype(f"{kind}{size}").name for kind in "ui" for size in (1, 2, 4, 8))
_SOFTWARE: Final = ("diffkit", "diffkit-bitsback", "jax", "jaxlib", "numpy", "constriction")
_PROBE_STEPS: Final = 6
_SOURCES: Final = ("array", "folder")
# Of a codec, and as such in a file's header.
_SETTINGS: Final = ("batch_size", "first_batch", "chunk", "resolution", "seed")


@dataclass(frozen=True)
class Header:
    """The header of a file.

    **Attributes:** `model`: the fingerprint of the model; `label`: its owner's name for it; `shape`,
    `levels`, `dtype`: of an image as stored; `steps`, `grid`, `logsnrs`: T, the grid's name with its
    options, and the digest of its values; `batch_size`, `first_batch`, `chunk`, `resolution`, `seed`: as
    given to the `Codec`; `probe`: the digest of the probe; `device`, `software`: used for writing;
    `images`: their number, or `None` if unknown when writing began; `source`: what the images were read
    from, and become again: `"array"` or `"folder"`.
    """

    model: Fingerprint
    label: str
    shape: tuple[int, ...]
    levels: int
    dtype: str
    steps: int
    grid: str
    logsnrs: str
    batch_size: int
    first_batch: int
    chunk: int
    resolution: float
    seed: int
    probe: str
    device: str
    software: Mapping[str, str]
    images: int | None
    source: str

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "Header":
        """From the header of a file.

        **Raises:** `DamagedFile` for a header that no `Codec` writes.
        """
        names = {each.name for each in fields(cls)}
        if set(found) != names:
            raise DamagedFile(f"the header must say {sorted(names)}; got {sorted(found)!r:.500}.")

        def check(name: str, good: bool) -> None:
            if not good:
                got = f"{name}={found[name]!r:.100}"
                raise DamagedFile(f"the header says {got}, which no codec writes.")

        model, shape, resolution = found["model"], found["shape"], found["resolution"]
        check("model", _is_texts(model, ("parameters", "structure")))
        check("model", all(re.fullmatch("[0-9a-f]{1,64}", text) for text in model.values()))
        check("software", _is_texts(found["software"], None))
        for name in ("label", "dtype", "grid", "logsnrs", "probe", "device", "source"):
            check(name, isinstance(found[name], str))
        check("shape", isinstance(shape, list) and 0 < len(shape) <= 8)
        check("shape", all(_is_integer(n, 1, 2**28) for n in shape))
        size = math.prod(shape)
        check("shape", size <= _MAX_CHUNK_DIMENSIONS)
        most = {
            "levels": (2, 2**31),
            "steps": (1, _MAX_STEPS),
            "batch_size": (1, max(1, _MAX_BATCH_DIMENSIONS // size)),
            "chunk": (1, max(1, _MAX_CHUNK_DIMENSIONS // size)),
            "seed": (0, 2**64 - 1),
            "first_batch": (1, found["batch_size"]),  # which is checked before
        }
        for name, limits in most.items():
            check(name, _is_integer(found[name], *limits))
        check("resolution", isinstance(resolution, float) and 0.5 <= resolution <= 1024)
        check("images", found["images"] is None or _is_integer(found["images"], 0, 2**48))
        check("dtype", found["dtype"] in _DTYPES)
        check("dtype", np.iinfo(found["dtype"]).max >= found["levels"] - 1)
        check("source", found["source"] in _SOURCES)
        return cls(**{**found, "model": Fingerprint(**model), "shape": tuple(shape)})


def _check_number(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} must be from 1 to {most}, got {value}.")


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_texts(value: Any, names: tuple[str, ...] | None) -> bool:
    return (
        isinstance(value, dict)
        and names in (None, tuple(sorted(value)))
        and all(isinstance(text, str) for text in value.values())
    )


@dataclass(frozen=True)
class Decoded:
    """Decoded images, compared with the digest of the encoded ones.

    **Attributes:** `first`: the index of the first one in the file; `images`; `names`: one each, or none.
    """

    first: int
    images: Images
    names: tuple[str, ...]


class Codec:
    """Codes images losslessly with a model: the better its likelihood, the shorter the file.

    Bits-back coding over all latents of the discrete-time model (`diffkit_bitsback.Chain`), chunk by chunk,
    so that files can exceed memory and damage is confined. Only the model that wrote a file can read it, on
    the same kind of processor or accelerator, with the same versions of jax. So a file is no archive: keep
    the run and the environment, or the images.

    **Arguments:**

    - `model`: any model with a discrete decoder, used without a condition.
    - `steps`: T, the number of coded steps. More make a shorter file but take longer.
    - `grid`: the placement of the steps, by default even in time.
    - `batch_size`: images that go through the network together.
    - `first_batch`: the size of a chunk's first batch, whose latents take the initial bits. 1 makes the
      smallest file, but takes about 15 more batches than `batch_size`.
    - `chunk`: images per chunk, each with its own initial bits.
    - `resolution`, `seed`: as in `diffkit_bitsback.Chain`.
    - `label`: describes the model, such as its checkpoint's step, in the error for a wrong model.

    **Attributes:** the arguments; `fingerprint`: of the model; `logsnrs`: from data to noise.

    **Raises:** `CannotEncode` for a model without discrete levels; `ValueError` for a number out of range
    or a label that is too long.
    """

    def __init__(
        self,
        model: dk.DiffusionModel,
        steps: int = 250,
        *,
        grid: Any = dk.UniformT(),
        batch_size: int = 32,
        first_batch: int = 1,
        chunk: int = 4096,
        resolution: float = RESOLUTION,
        seed: int = 0,
        label: str = "",
    ):
        size = math.prod(model.shape)
        _check_number("steps", steps, _MAX_STEPS)
        _check_number("batch_size", batch_size, max(1, _MAX_BATCH_DIMENSIONS // size))
        _check_number("chunk", chunk, max(1, _MAX_CHUNK_DIMENSIONS // size))
        if len(label) > _MAX_LABEL:
            raise ValueError(f"label must have {_MAX_LABEL} characters at most, got {len(label)}.")
        self.model, self.steps, self.grid = model, steps, dk.part("grid", grid, model=model)
        self.batch_size, self.first_batch, self.chunk = batch_size, first_batch, chunk
        self.resolution, self.seed, self.label = float(resolution), seed, label
        self.logsnrs = _logsnrs(model, self.grid, steps)
        self._chain = Chain(
            model,
            self.logsnrs,
            batch_size=batch_size,
            first_batch=first_batch,
            resolution=self.resolution,
            seed=seed,
        )
        assert model.decoder.levels is not None  # or the chain would have refused it
        self.levels: int = model.decoder.levels
        self.fingerprint = fingerprint(model)
        self._known_probe: str | None = None
        self._other: Codec | None = None

    def with_steps(self, steps: int, *, grid: Any = None) -> "Codec":
        """The same with other steps, and with another grid if given; both share the compiled functions."""
        _check_number("steps", steps, _MAX_STEPS)
        other = copy.copy(self)
        other.steps = steps
        other.grid = self.grid if grid is None else dk.part("grid", grid, model=self.model)
        other.logsnrs = _logsnrs(self.model, other.grid, steps)
        other._chain = self._chain.with_logsnrs(other.logsnrs)
        other._known_probe = other._other = None
        return other

    def encode(self, images: Images) -> bytes:
        """Images, as stored, to the bytes of a file.

        **Raises:** `CannotEncode` for images that do not fit the model; `CannotReproduce` if the network
        does not give the same floats twice.
        """
        file = io.BytesIO()
        self.encode_stream([images], file, count=len(images))
        return file.getvalue()

    def decode(self, data: bytes) -> Images:
        """The images in the bytes of a file, in their original dtype.

        **Raises:** a `CodecError`: `NotACodecFile`, `WrongVersion`, `DamagedFile`, `WrongModel` or
        `CannotReproduce`.
        """
        decoding = self.open(io.BytesIO(data))
        nothing = np.zeros((0, *decoding.header.shape), decoding.header.dtype)
        return np.concatenate([nothing, *(part.images for part in decoding.chunks())])

    def encode_stream(
        self,
        images: Iterable[Images],
        file: BufferedIOBase,
        *,
        names: Iterable[str] | None = None,
        count: int | None = None,
        source: str = "array",
        verify: bool = False,
        progress: Progress | None = None,
    ) -> ChainStatistics:
        """Code a stream of images, one chunk at a time; return the bits of all chunks.

        **Arguments:** `images`: arrays with any number of images each, all of one dtype; `file`: open for
        writing in binary, and left open; `names`: of the images, in their order, to store with them;
        `count`: the number of images, if known, so that a reader of a truncated file can name the missing;
        `source`: what they were read from, `"array"` or `"folder"`; `verify`: decode each chunk before
        writing it, which doubles the time; `progress`: called with the progress.

        **Raises:** as `encode`, and `ValueError` if `count` or `names` does not match the number of images,
        for another `source`, or for a folder without names.
        """
        if source not in _SOURCES:
            raise ValueError(f"source must be one of {', '.join(_SOURCES)}, got {source!r}.")
        if source == "folder" and names is None:
            raise ValueError("names must be given for source='folder', one for each image.")
        arrays = iter(images)
        head = list(itertools.islice(arrays, 1))
        dtype = head[0].dtype.newbyteorder("=") if head else self._chain.dtype
        writer = Writer(file, self._header(dtype, images=count, source=source))
        supply = None if names is None else iter(names)
        total = ChainStatistics.nothing()
        tell = _Offset(progress, math.prod(self.model.shape))
        one_by_one = self._checked(itertools.chain(head, arrays), dtype)
        while taken := list(itertools.islice(one_by_one, self.chunk)):
            chunk, first = np.stack(taken).astype(dtype), writer.images
            named = () if supply is None else tuple(itertools.islice(supply, len(chunk)))
            if supply is not None and len(named) < len(chunk):
                raise ValueError(f"names must be one for each image, got {first + len(named)}.")
            packed_names(named)  # refuses early what would be refused at the end
            words, statistics = self._chain.encode(chunk, progress=tell)
            coded = Chunk(first, len(chunk), words, _images_digest(chunk), named)
            if verify:
                self._decoded(coded, dtype)
            writer.write(coded)
            total += statistics
            tell.chunk_done(coded)
        if count is not None and writer.images != count:
            raise ValueError(f"count says {count} images, got {writer.images}.")
        if supply is not None and next(supply, None) is not None:
            raise ValueError(f"names must be one for each of the {writer.images} images, got more.")
        writer.close()
        return total

    def decode_stream(
        self,
        file: BufferedIOBase,
        *,
        damaged: Damaged | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Images]:
        """The images of a file, one chunk at a time.

        **Arguments:** `file`: open for reading in binary, and seekable; `damaged`: if given, chunks that
        cannot be decoded are skipped, and it is called with the missing images and the reason; `progress`:
        called with the progress.

        **Raises:** as `decode`. Chunks yielded before are correct.
        """
        decoding = self.open(file)
        return (part.images for part in decoding.chunks(damaged=damaged, progress=progress))

    def open(self, file: BufferedIOBase) -> "Decoding":
        """The checked header and the chunks of a file, open for reading in binary, and seekable.

        **Raises:** as `decode`, before any image is read.
        """
        reader = Reader(file)
        header = Header.read(reader.header)
        return Decoding(reader, header, self._for(header))

    def _header(self, dtype: np.dtype, *, images: int | None, source: str) -> dict[str, Any]:
        if dtype.name not in _DTYPES or np.iinfo(dtype).max < self.levels - 1:
            most = self.levels - 1
            raise CannotEncode(f"images must be integers 0 ... {most}, got the dtype {dtype}.")
        header = Header(
            model=self.fingerprint,
            label=self.label,
            shape=self.model.shape,
            levels=self.levels,
            dtype=dtype.name,
            steps=self.steps,
            grid=_describe(self.grid),
            logsnrs=_digest(self.logsnrs),
            **_settings(self),
            probe=self._probe(),
            device=_device(),
            software=_software(),
            images=images,
            source=source,
        )
        return asdict(header)

    def _for(self, header: Header) -> "Codec":
        """A codec with the settings of a file, after checking that it can read the file."""
        if header.shape != self.model.shape or header.levels != self.levels:
            raise WrongModel(
                f"the file has images of the shape {header.shape} with {header.levels} levels; this "
                f"model is for {self.model.shape} with {self.levels}."
            )
        apart = None
        if header.model != self.fingerprint:
            named = f" ({header.label!r:.80})" if header.label else ""
            own = f" ({self.label!r})" if self.label else ""
            differs = f"other parts or options than this one{own}"
            if header.model.structure == self.fingerprint.structure:
                differs = (
                    f"the same parts as this one{own}, but other parameters: another run, or another "
                    "checkpoint of it"
                )
            apart = WrongModel(
                f"the file was written with a model{named} with {differs}. Its fingerprint is "
                f"{header.model}, this one's is {self.fingerprint}."
            )
            # A version of diffkit may give the same parts other names: then grid and probe decide.
            if header.model.parameters != self.fingerprint.parameters:
                raise apart
        fit = self._with_settings(header)
        if _digest(fit.logsnrs) != header.logsnrs:
            raise apart or CannotReproduce(
                f"the grid {header.grid!r:.200} comes out differently here: this machine "
                f"rounds differently from the one that wrote the file. {_differences(header)}"
            )
        try:
            probe = fit._probe()
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            raise CannotReproduce(
                f"the network cannot be run here with {header.batch_size} images together: {error}"
            ) from error
        if probe != header.probe:
            raise apart or CannotReproduce(
                "the network gives other floats here than where the file was written, so it cannot "
                f"decode it. {_differences(header)}"
            )
        return fit

    def _with_settings(self, header: Header) -> "Codec":
        theirs = _settings(header)
        for known in filter(None, (self, self._other)):
            place = (known.steps, _describe(known.grid))
            if place == (header.steps, header.grid) and _settings(known) == theirs:
                return known
        try:
            grid = self.grid
            if _describe(grid) != header.grid:
                name, _, options = header.grid.partition(" ")
                grid = (name, json.loads(options or "{}"))
            if _settings(self) == theirs:
                self._other = self.with_steps(header.steps, grid=grid)
            else:
                self._other = Codec(self.model, header.steps, grid=grid, label=self.label, **theirs)
        except Exception as error:  # from anything in a file, and any part of a stranger
            raise CannotReproduce(
                f"the file was written with {header.steps} steps on the grid {header.grid!r:.200}, which "
                f"cannot be made here ({error!s:.500}): make the Codec with it, grid=..."
            ) from error
        return self._other

    def _probe(self) -> str:
        """The digest of a coded batch of made-up images, which is decoded once as a test.

        It includes NumPy's functions, which another processor rounds differently too rarely for a batch.
        """
        if self._known_probe is None:
            places = np.linspace(0, self.steps, min(self.steps, _PROBE_STEPS) + 1).round()
            logsnrs = self.logsnrs[np.unique(places.astype(int))]
            chain = self._chain.with_logsnrs(logsnrs, first_batch=self.batch_size)
            shape = (self.batch_size, *self.model.shape)
            # Numbers that are the same in every version of NumPy.
            raw = hashlib.shake_256(b"diffkit bitsback probe").digest(4 * math.prod(shape))
            images = (np.frombuffer(raw, "<u4").reshape(shape) % self.levels).astype(chain.dtype)
            words, _ = chain.encode(images)
            try:
                good = np.array_equal(chain.decode(words, len(images)), images)
            except CodecError:
                good = False
            if not good:
                raise CannotReproduce(
                    "a batch encoded just now does not decode: the network does not give the same floats "
                    f"twice on this machine ({_device()}). Encode on the processor, with JAX_PLATFORMS=cpu."
                )
            x = np.linspace(0.001, 60, 2**16)
            functions = (np.exp(-x), np.expm1(-x), np.log2(x), np.sqrt(x))
            self._known_probe = _digest(np.concatenate([words, *functions]).astype("<f8"))
        return self._known_probe

    def _checked(self, arrays: Iterable[Images], dtype: np.dtype) -> Iterator[np.ndarray]:
        """The images one by one."""
        first = 0
        for array in arrays:
            if array.dtype.newbyteorder("=") != dtype:
                both = f"{dtype} and then {array.dtype}"
                raise CannotEncode(f"all images must have one dtype, got {both}.")
            self._chain.check(array, first)
            first += len(array)
            yield from array

    def _decoded(
        self, chunk: Chunk, dtype: np.dtype, progress: "_Offset | None" = None, hint: str = ""
    ) -> Decoded:
        last = chunk.first + chunk.count - 1
        what = f"images {chunk.first} to {last} were read as they were written"
        try:
            images = self._chain.decode(chunk.words, chunk.count, progress=progress)
        except CodecError as error:
            raise CannotReproduce(f"{what}, but do not decode: {error} {hint}".rstrip()) from error
        images = images.astype(dtype)
        if _images_digest(images) != chunk.images_digest:
            raise CannotReproduce(f"{what}, but decode to other images. {hint}".rstrip())
        return Decoded(chunk.first, images, chunk.names)


class Decoding:
    """A file being decoded, made by `Codec.open`.

    **Attributes:** `header`: the file's `Header`.
    """

    def __init__(self, reader: Reader, header: Header, codec: Codec):
        self.header = header
        self._reader, self._codec = reader, codec

    def chunks(
        self, *, damaged: Damaged | None = None, progress: Progress | None = None
    ) -> Iterator[Decoded]:
        """The chunks of images, each with its names.

        **Arguments:** `damaged` and `progress` as in `Codec.decode_stream`.

        **Raises:** as `Codec.decode`.
        """
        header = self.header
        dtype, hint = np.dtype(header.dtype), _differences(header)
        tell = _Offset(progress, math.prod(header.shape))
        for chunk in self._reader.chunks(most=header.chunk, total=header.images, damaged=damaged):
            tell.first = chunk.first
            try:
                decoded = self._codec._decoded(chunk, dtype, tell, hint)
            except CodecError as error:
                if damaged is None:
                    raise
                damaged(range(chunk.first, chunk.first + chunk.count), error)
                continue
            tell.chunk_done(chunk)
            yield decoded


class _Offset:
    """Progress inside a chunk as progress of the whole."""

    def __init__(self, progress: Progress | None, size: int):
        self._progress, self._size = progress, size
        self.first = self._bits = self._done = 0

    def __call__(self, images: float) -> None:
        if self._progress is not None:
            self._progress(self.first + images, self._bits / self._done if self._done else None)

    def chunk_done(self, chunk: Chunk) -> None:
        self._bits += 32 * chunk.words.size
        self._done += chunk.count * self._size
        self.first = chunk.first + chunk.count
        self(0)


def _logsnrs(model: dk.DiffusionModel, grid: Any, steps: int) -> Float64[np.ndarray, " levels"]:
    logsnrs = np.asarray(grid(model.schedule, steps), np.float64)[::-1]
    if not (np.isfinite(logsnrs).all() and (np.diff(logsnrs) < 0).all()):
        raise CannotEncode(
            f"the grid {_describe(grid)} of {steps} steps must be finite and strictly monotone in "
            "float32: use fewer steps or another grid."
        )
    return logsnrs


def _describe(grid: Any) -> str:
    """A grid's registered name with its options, or the name of an unregistered class."""
    name = dk.registry.name_of("grid", grid) or type(grid).__qualname__
    options = {field.name: getattr(grid, field.name) for field in fields(grid)}
    try:
        return f"{name} {json.dumps(options, sort_keys=True)}"
    except TypeError:  # options that are arrays, or parts
        return f"{name} {options!r}"


def _digest(array: np.ndarray) -> str:
    return digest(np.ascontiguousarray(array).tobytes()).hex()


def _images_digest(images: Images) -> bytes:
    little = images.dtype.newbyteorder("<")
    return digest(np.ascontiguousarray(images, dtype=little).tobytes())


def _settings(owner: Codec | Header) -> dict[str, Any]:
    return {name: getattr(owner, name) for name in _SETTINGS}


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.platform} {device.device_kind} {platform.machine()}"


def _software() -> dict[str, str]:
    return {name: version(name) for name in _SOFTWARE}


def _differences(header: Header) -> str:
    """What differed where the file was written."""
    there = {"device": header.device, **header.software}
    here = {"device": _device(), **_software()}
    differ = [
        f"{name!r:.80} was {there.get(name)!r:.80}, is {here.get(name)!r}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if differ:
        return f"Since then, {'; '.join(differ)}."
    return (
        f"The versions and the kind of device ({here['device']}) are the same: the processor, the "
        "number of its cores, jax's settings or, in a checkout, diffkit's own code must differ."
    )
