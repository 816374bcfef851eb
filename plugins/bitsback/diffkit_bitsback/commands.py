"""`diffkit compress`, `diffkit decompress` and `diffkit rate`: entry points of `diffkit.commands`."""

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import diffkit as dk
from diffkit.cli import Command
from diffkit.configs import make
from diffkit_bitsback.chain import RESOLUTION
from diffkit_bitsback.codec import Codec
from diffkit_bitsback.errors import DamagedFile
from diffkit_bitsback.images import (
    ArrayWriter,
    FolderSource,
    check_free,
    expanded,
    find_images,
    new_file,
    new_folder,
    pieces,
    write_images,
)
from diffkit_bitsback.rate import other_codes, rates, show

_SETTINGS = ("batch_size", "first_batch", "resolution")


@dataclass(frozen=True)
class _CodingSettings:
    """The settings of every command that codes images.

    **Arguments:**

    - `run`: the run directory, or RUN@STEP for an older checkpoint.
    - `input`: a folder of images, a .npy file, or `test` or `train` for the images of the run's own data or
      of data=NAME.
    - `batch_size`: images that go through the network together.
    - `first_batch`: images in a chunk's first batch; more make a longer file but take less time.
    - `resolution`: lattice points per standard deviation of a latent.
    - `count`: only this many images, from the first.
    """

    run: str | None = None
    input: str | None = None
    batch_size: int = 32
    first_batch: int = 1
    resolution: float = RESOLUTION
    count: int | None = None


@dataclass(frozen=True)
class CompressSettings(_CodingSettings):
    """Compress images without loss with the model of a run.

    Reading the file needs the same run, on a machine of the same kind with the same versions of jax.

    **Arguments:**

    - `out`: the file to write.
    - `steps`: T; more make a shorter file but take longer.
    - `chunk`: images per chunk, each coded separately.
    - `verify`: decode each chunk before writing it.
    - `overwrite`: replace an existing file.
    """

    out: str | None = None
    steps: int = 250
    chunk: int = 4096
    verify: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class DecompressSettings:
    """Restore the images of a file from `diffkit compress`.

    A folder comes back as a folder of PNG images with the same names and pixels, anything else as a .npy
    file with the same array.

    **Arguments:**

    - `run`: the run directory, or RUN@STEP for an older checkpoint.
    - `input`: the file.
    - `out`: the folder or the .npy file to write.
    - `skip_damaged`: continue after damage, and report the missing images.
    - `overwrite`: replace an existing file.
    """

    run: str | None = None
    input: str | None = None
    out: str | None = None
    skip_damaged: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class RateSettings(_CodingSettings):
    """Measure how well a run's model compresses images, in two tables.

    The first shows for each T the bound of the model, the measured net rate, the overhead of coding, the
    total rate with the initial bits, and the time; the second the rates of PNG, WebP, JPEG XL and LZMA on
    the same images, where installed.

    **Arguments:**

    - `steps`: one or more T, as `[10,50]`.
    - `passes`: draws per image for the bound.
    """

    steps: list[int] = field(default_factory=lambda: [10, 50, 100, 250, 1000])
    passes: int = 16

    def __post_init__(self):
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}.")
        if not self.steps:
            raise ValueError("steps must be one or more T, such as steps=[10,50], got none.")


def _images(given: Mapping[str, Any], run: dk.Run) -> tuple[Any, int]:
    """The images that a command names, and how many of them to code."""
    node = given.get("data") or {}
    source = find_images(given["input"], run, make(node) if "_target_" in node else None)
    count = len(source) if given["count"] is None else given["count"]
    if not 1 <= count <= len(source):
        raise ValueError(f"count must be from 1 to {len(source)}, got {count}.")
    return source, count


def _run(given: Mapping[str, Any]) -> dk.Run:
    """The run, with its data where they are now."""
    node = given.get("data") or {}
    return dk.load_run(given["run"], data=None if "_target_" in node else node)


def _codec(given: Mapping[str, Any], run: dk.Run, **settings: Any) -> Codec:
    # The averaged model of the newest checkpoint; a file names it, in case the run continues.
    label = f"step {run.step}"
    if "grid" in given:
        settings["grid"] = make(given["grid"])
        settings |= {name: given[name] for name in _SETTINGS}
    return Codec(run.model, label=label, **settings)


def _compress(given: Mapping[str, Any]) -> None:
    out = expanded(given["out"])
    check_free(out, given["overwrite"])
    run = _run(given)
    source, count = _images(given, run)
    codec = _codec(given, run, steps=given["steps"], chunk=given["chunk"])
    is_folder = isinstance(source, FolderSource)
    with new_file(out, overwrite=given["overwrite"]) as file, _Bar("coding", count) as bar:
        statistics = codec.encode_stream(
            pieces(source, count),
            file,
            names=source.kept_names()[:count] if is_folder else None,
            count=count,
            source="folder" if is_folder else "array",
            verify=given["verify"],
            progress=bar,
        )
        size = file.tell()
    dimensions = statistics.dimensions
    print(
        f"{out}: {count} images, {size} bytes, {8 * size / dimensions:.4f} bits/dim; net of the initial "
        f"bits {statistics.net_bits_per_dim:.4f} (T = {codec.steps})"
    )
    if is_folder:
        print("names, order and pixels are kept; the images come back as PNG without metadata")


def _decompress(given: Mapping[str, Any]) -> int:
    out = expanded(given["out"])
    check_free(out, given["overwrite"])
    run = dk.load_run(given["run"])
    missing: list[tuple[range, str]] = []
    count = 0

    def damaged(images: range, error: Exception) -> None:
        missing.append((images, str(error)))

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(expanded(given["input"]).open("rb"))
        # Steps and grid are those of the file.
        decoding = _codec(given, run, steps=1).open(file)
        header = decoding.header
        if header.source == "folder":
            if header.levels > 256:
                raise DamagedFile(
                    "the file says that it holds a folder of images, which have at most 256 levels, "
                    f"got {header.levels}."
                )
            folder, array = stack.enter_context(new_folder(out)), None
        else:
            place = stack.enter_context(new_file(out, overwrite=given["overwrite"]))
            folder, array = None, ArrayWriter(place, header.shape, np.dtype(header.dtype))
        bar = stack.enter_context(_Bar("decoding", header.images))
        chunks = decoding.chunks(damaged=damaged if given["skip_damaged"] else None, progress=bar)
        for chunk in chunks:
            if folder is not None:
                write_images(folder, chunk.images, chunk.names)
            if array is not None:
                array.write(chunk.images)
            count += len(chunk.images)
        if array is not None:
            array.close()
    print(f"{out}: {count} images, {len(missing)} gaps" if missing else f"{out}: {count} images")
    for images, reason in missing:
        which = f"images {images.start} to {images.stop - 1} are missing" if images else "damage"
        print(f"diffkit decompress: {which}: {reason}", file=sys.stderr)
    return 1 if missing else 0


def _rate(given: Mapping[str, Any]) -> None:
    run = _run(given)
    source, count = _images(given, run)
    images = np.concatenate(list(pieces(source, count)))
    # Refuses numbers out of range before any work begins.
    codec = _codec(given, run, steps=given["steps"][0])
    for steps in given["steps"][1:]:
        codec.with_steps(steps)
    # Before the long part, whose rates would be lost if this failed.
    codes = other_codes(images, codec.levels)
    with _Bar("coding", count * len(given["steps"])) as bar:
        found = rates(
            run.model,
            images,
            given["steps"],
            grid=codec.grid,
            **{name: given[name] for name in (*_SETTINGS, "passes")},
            progress=lambda done: bar(done, None),
        )
    show(found, codes)


_CODING = {"grid": "uniform_t", "data": None}

compress = Command("compress", _compress, CompressSettings, ("run", "input", "out"), _CODING)
decompress = Command("decompress", _decompress, DecompressSettings, ("run", "input", "out"))
rate = Command("rate", _rate, RateSettings, ("run", "input"), _CODING)


class _Bar:
    """Finished images, their rate, bits per dimension and the time left.

    A live bar on a terminal; elsewhere, such as in a log file, a line every few seconds.
    """

    def __init__(self, what: str, count: int | None, *, every: float = 10.0):
        self._what, self._count, self._every = what, count, every
        self._began = self._shown = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "_Bar":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._count, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, images: float, bits_per_dim: float | None) -> None:
        now = time.monotonic()
        rate = images / max(now - self._began, 1e-9)
        note = f"{rate:.3g} images/s"
        if bits_per_dim is not None:
            note += f"  {bits_per_dim:.3f} bits/dim"
        if self._count is not None and images:
            left = (self._count - images) / rate
            note += f"  {left // 3600:.0f}:{left % 3600 // 60:02.0f}:{left % 60:02.0f} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=int(images), note=note)
        elif now - self._shown > self._every:
            self._shown = now
            of = "" if self._count is None else f"/{self._count}"
            print(f"{self._what} {int(images)}{of}  {note}", file=sys.stderr, flush=True)
