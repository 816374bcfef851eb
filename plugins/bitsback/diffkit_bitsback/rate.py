"""The measured rate of a model's code on some images, compared to its bound and to other codes."""

import contextlib
import functools
import importlib
import io
import lzma
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import Integer, UInt8

import diffkit as dk
from diffkit.data import ArraySource
from diffkit.training import Evaluation
from diffkit_bitsback.chain import RESOLUTION, Chain, ChainStatistics
from diffkit_bitsback.errors import CannotReproduce

# Modules that give Pillow the format JPEG XL, by their import names.
_JPEG_XL: Final = ("pillow_jxl", "jxlpy.JXLImagePlugin")
# WebP's limit; the others do not mind.
_LONGEST_SIDE: Final = 16383


@dataclass(frozen=True)
class Rate:
    """The rate of a model with T steps on some images.

    **Attributes:** `steps`: T; `statistics`: the cost of coding the images on one stack; `evaluation`: the
    VLB with T steps (`diffkit.evaluate`), from its own draws, `None` for a grid that is not even in time.
    """

    steps: int
    statistics: ChainStatistics
    evaluation: Evaluation | None

    @property
    def bound(self) -> float:
        """The VLB with T steps in bits per dimension; NaN without an evaluation."""
        return math.nan if self.evaluation is None else self.evaluation.bits_per_dim[0]

    @property
    def gap(self) -> tuple[float, float]:
        """The net rate minus the VLB in bits per dimension, and its standard error.

        Both vary by chance: the coded latents are one draw, and the VLB has its own. The cost of coding
        beyond the bound is `statistics.overhead_bits_per_dim`.
        """
        if self.evaluation is None:
            return math.nan, math.nan
        statistics = self.statistics
        each, count = statistics.dimensions / statistics.images, statistics.images
        differences = statistics.bounds / each - self.evaluation.per_example / (each * math.log(2))
        error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        return statistics.net_bits_per_dim - self.bound, error

    @property
    def images_per_second(self) -> float:
        """The speed of encoding."""
        taken = self.statistics.network_seconds + self.statistics.coding_seconds
        return self.statistics.images / taken


def rates(
    model: dk.DiffusionModel,
    images: Integer[np.ndarray, "count *shape"],
    steps: Sequence[int],
    *,
    grid: Any = dk.UniformT(),
    batch_size: int = 32,
    first_batch: int = 1,
    resolution: float = RESOLUTION,
    passes: int = 16,
    progress: Callable[[float], None] | None = None,
) -> list[Rate]:
    """Code some images with each number of steps, on one stack; the first batch is decoded again as a test.

    **Arguments:** `model`: a model with a discrete decoder, used without a condition; `images`: as stored;
    `steps`: the numbers T; `grid`, `batch_size`, `first_batch`, `resolution`: as in `Codec`; `passes`:
    draws per image for the VLB; `progress`: called now and then with the finished images of all T.

    **Raises:** `CannotEncode` for images or a model that cannot be coded; `CannotReproduce` if the first
    batch does not come back; `ValueError` for no images, or T below 1.
    """
    if not len(images):
        raise ValueError("images must be at least one, got none.")
    for name, values in (("steps", steps), ("passes", [passes])):
        if min(values, default=0) < 1:
            raise ValueError(f"{name} must be at least 1, got {values}.")
    settings: dict[str, Any] = {"batch_size": batch_size, "resolution": resolution}
    found, chain = [], None
    for index, number in enumerate(steps):
        logsnrs = np.asarray(grid(model.schedule, number), np.float64)[::-1]
        if chain is None:
            chain = Chain(model, logsnrs, first_batch=first_batch, **settings)
        else:
            chain = chain.with_logsnrs(logsnrs)
        # A batch first, so that the measured time contains no compilation.
        first, test = images[:batch_size], chain.with_logsnrs(logsnrs, first_batch=batch_size)
        if not np.array_equal(test.decode(test.encode(first)[0], len(first)), first):
            raise CannotReproduce(f"with steps={number} the images decode to others.")

        def told(coded: float, before: int = index * len(images)) -> None:
            if progress is not None:
                progress(before + coded)

        _, statistics = chain.encode(images, progress=told)
        evaluation, key = None, jax.random.key(0)
        if isinstance(grid, dk.UniformT):
            source = ArraySource(images)
            evaluation = dk.evaluate(model, source, key=key, steps=number, passes=passes)
        found.append(Rate(number, statistics, evaluation))
    return found


def other_codes(images: Integer[np.ndarray, "count *shape"], levels: int) -> dict[str, tuple[float, float]]:
    """The rates of codes without a model on the same images, in bits per dimension.

    **Arguments:** `images`: as stored; `levels`: the number of values of a dimension. Up to 256 levels are
    stored unchanged in 8 bits, whatever grey or colour they stand for.

    **Returns:** by the code's name, the bits with a file for each image, and with one file for all (sheets
    of images side by side): LZMA over the bytes; image formats, for grey or RGB images of at most 256
    levels; JPEG XL, with a plugin for Pillow.
    """
    stored = images.astype(np.min_scalar_type(levels - 1))

    def bits_per_dim(size: Callable[[Any], int], together: Iterable[Any]) -> tuple[float, float]:
        each, one = (8 * sum(map(size, files)) / images.size for files in (stored, together))
        return each, one

    codes = {"LZMA": bits_per_dim(lambda image: len(lzma.compress(image.tobytes())), [stored])}
    if stored.dtype == np.uint8 and images.ndim == 4 and images.shape[1] in (1, 3):
        sheets = _sheets(stored)
        for name, options in _formats().items():
            codes[name] = bits_per_dim(functools.partial(_file_size, options=options), sheets)
    return codes


def _formats() -> dict[str, Mapping[str, Any]]:
    """Options of Pillow that save without loss, as small as possible."""
    from PIL import Image, features

    formats: dict[str, Mapping[str, Any]] = {"PNG": {"format": "PNG", "optimize": True}}
    if features.check("webp"):
        smallest = {"quality": 100, "method": 6, "exact": True}
        formats["WebP lossless"] = {"format": "WEBP", "lossless": True, **smallest}
    for module in _JPEG_XL:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    if "JXL" in Image.SAVE:
        formats["JPEG XL lossless"] = {"format": "JXL", "lossless": True, "effort": 9}
    return formats


def _file_size(image: UInt8[np.ndarray, "channels height width"], options: Mapping[str, Any]) -> int:
    from PIL import Image

    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, **options)
    return file.getbuffer().nbytes


def _sheets(
    images: UInt8[np.ndarray, "count channels height width"],
) -> list[UInt8[np.ndarray, "channels sheet_height sheet_width"]]:
    """All images side by side on sheets: full rectangles, since empty places would cost bits."""
    _, channels, height, width = images.shape
    sheets = []
    while len(images):
        columns = min(math.isqrt(len(images)), _LONGEST_SIDE // width)
        rows = min(len(images) // columns, _LONGEST_SIDE // height)
        taken, images = images[: rows * columns], images[rows * columns :]
        grid = taken.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
        sheets.append(grid.reshape(channels, rows * height, columns * width))
    return sheets


def _with_error(value: tuple[float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.4f} +- {value[1]:.4f}"


def show(found: Sequence[Rate], codes: Mapping[str, tuple[float, float]]) -> None:
    """Print the rates of a model and of other codes as tables in bits per dimension."""
    from rich.console import Console
    from rich.table import Table

    # As wide as needed outside a terminal: a file, a pipe, a log.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    names = ("T", "VLB", "net", "gap", "overhead", "total", "images/s", "network")
    table = Table(*names, title="bits per dimension")
    for column in table.columns:
        column.justify, column.no_wrap = "right", True
    for rate in found:
        taken = rate.statistics
        network = taken.network_seconds / (taken.network_seconds + taken.coding_seconds)
        table.add_row(
            str(rate.steps),
            _with_error(rate.evaluation.bits_per_dim if rate.evaluation else None),
            f"{taken.net_bits_per_dim:.4f}",
            _with_error(rate.gap if rate.evaluation else None),
            f"{taken.overhead_bits_per_dim:.5f}",
            f"{taken.total_bits_per_dim:.4f}",
            f"{rate.images_per_second:.3g}",
            f"{network:.0%}",
        )
    console.print(table)
    console.print(
        f"{found[0].statistics.images} images on one stack. VLB: the bound with T steps, from its own "
        "draws. net: stored minus initial bits. gap: net minus VLB, with the error of both draws. "
        "overhead: the exact cost of coding, net minus the bound along the same latents. total: with the "
        "initial bits. network: its share of the time.",
        highlight=False,
    )
    other = Table("code", "a file for each image", "one for all")
    for column in other.columns[1:]:
        column.justify = "right"
    for name, (each, one) in codes.items():
        other.add_row(name, f"{each:.4f}", f"{one:.4f}")
    console.print(other)
