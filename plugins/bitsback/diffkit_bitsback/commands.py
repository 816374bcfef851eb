"""`diffkit compress`, `diffkit decompress` and `diffkit rate`.

Entry points of the group `diffkit.commands`: each takes the words after its name and returns the exit
status. Settings have the form of diffkit's command line, `steps=250`; `--steps 250` works too.
"""

import argparse
import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import diffkit as dk
from diffkit_bitsback.chain import RESOLUTION
from diffkit_bitsback.codec import Codec
from diffkit_bitsback.errors import DamagedFile
from diffkit_bitsback.images import (
    ArrayWriter,
    FolderSource,
    check_free,
    find_images,
    new_file,
    new_folder,
    pieces,
    write_images,
)
from diffkit_bitsback.rate import other_codes, rates, show


@dataclass(frozen=True)
class _Setting:
    default: Any
    kind: Callable[[str], Any]
    help: str


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


def _steps(text: str) -> list[int]:
    try:
        return [int(word) for word in text.strip("[]").split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be numbers such as 10,50, got {text!r}") from error


_CODEC: Final = {
    "grid": _Setting("uniform_t", str, "placement of the steps; its options as grid.OPTION=VALUE"),
    "batch_size": _Setting(32, int, "images that go through the network together"),
    "first_batch": _Setting(
        1, int, "images in a chunk's first batch; more make a longer file but take less time"
    ),
    "resolution": _Setting(RESOLUTION, float, "lattice points per standard deviation of a latent"),
}
_OVERWRITE: Final = _Setting(False, _truth, "whether to replace an existing file")
_INPUT: Final = (
    "INPUT is a folder of images, a .npy file, the name of a data set (its test images; options as "
    "data.OPTION=VALUE), or 'test' or 'train' for the run's own data."
)

_COMMANDS: Final[Mapping[str, tuple[str, tuple[str, ...], Mapping[str, _Setting], str]]] = {
    "compress": (
        "RUN INPUT OUT",
        ("run", "input", "out"),
        {
            "steps": _Setting(250, int, "T: more make a shorter file but take longer"),
            **_CODEC,
            "chunk": _Setting(4096, int, "images per chunk, each coded separately"),
            "count": _Setting(None, int, "only this many images, from the first"),
            "verify": _Setting(False, _truth, "decode each chunk before writing it"),
            "overwrite": _OVERWRITE,
        },
        f"Compress images without loss with the model of a run. {_INPUT} Reading the file needs the same "
        "run, on a machine of the same kind with the same versions of jax.",
    ),
    "decompress": (
        "RUN IN OUT",
        ("run", "input", "out"),
        {
            "skip_damaged": _Setting(
                False, _truth, "continue after damage, and report the missing images"
            ),
            "overwrite": _OVERWRITE,
        },
        "Restore the images of a file from 'diffkit compress': a folder as a folder of PNG images with the "
        "same names and pixels, anything else as a .npy file with the same array.",
    ),
    "rate": (
        "RUN INPUT",
        ("run", "input"),
        {
            "steps": _Setting([10, 50, 100, 250, 1000], _steps, "one or more T"),
            **_CODEC,
            "passes": _Setting(16, int, "draws per image for the bound"),
            "count": _Setting(None, int, "only this many images, from the first"),
        },
        "Print two tables: for each T the bound of the model, the measured net rate, the overhead of "
        "coding, the total rate with the initial bits, and the time; and the rates of PNG, WebP, JPEG XL "
        "and LZMA on the same images, where installed. "
        f"{_INPUT}",
    ),
}
_NESTED: Final = ("data", "grid")


def compress(arguments: list[str]) -> int:
    """Compress images without loss with the model of a run: `diffkit compress RUN INPUT OUT`."""
    return _run("compress", arguments, _compress)


def decompress(arguments: list[str]) -> int:
    """Restore the images of a compressed file: `diffkit decompress RUN IN OUT`."""
    return _run("decompress", arguments, _decompress)


def rate(arguments: list[str]) -> int:
    """The rate of a run's model on some images, compared to other codes: `diffkit rate RUN INPUT`."""
    return _run("rate", arguments, _rate)


def _parse(command: str, arguments: list[str]) -> dict[str, Any]:
    """The settings from the words.

    **Raises:** `SystemExit` for help and wrong usage, like argparse.
    """
    usage, positional, settings, description = _COMMANDS[command]
    parser = argparse.ArgumentParser(
        prog=f"diffkit {command}",
        usage=f"diffkit {command} {usage} [SETTING=VALUE ...]",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for name in positional:
        parser.add_argument(name)
    for name, setting in settings.items():
        parser.add_argument(
            f"--{name}",
            type=setting.kind,
            default=setting.default,
            metavar="VALUE",
            help=setting.help,
        )
    parser.add_argument("--cfg", choices=("job",), help="show the settings, and do nothing")
    words, nested = [], {}
    for word in arguments:
        match = re.fullmatch(r"(?:--)?([a-z_]+)(?:\.([a-z_]+))?=(.*)", word, re.DOTALL)
        if match is None:
            words.append(word)
            continue
        name, option, value = match.groups()
        if option is None and name in (*settings, "cfg"):
            words.append(f"--{name}={value}")
        elif option is not None and name in _NESTED and command != "decompress":
            import yaml

            try:
                nested.setdefault(name, {})[option] = yaml.safe_load(value)
            except Exception:  # of YAML itself, or of the type that the text seems to have
                parser.error(f"the value of {word!r:.200} cannot be read as YAML")
        # Only words that are not settings can be paths: a sweep makes folders named like settings.
        elif not word.startswith("--") and os.path.exists(word):
            words.append(word)
        else:
            parser.error(f"there is no setting {name if option is None else f'{name}.{option}'}")
    found = vars(parser.parse_intermixed_args(words))
    given = {name: found[name] for name in (*positional, *settings, "cfg")}
    if "grid" in given:
        given["grid"] = [given["grid"], nested.get("grid", {})]
        given["data"] = nested.get("data", {})
    return given


def _run(command: str, arguments: list[str], task: Callable[[Mapping[str, Any]], int]) -> int:
    try:
        given = _parse(command, arguments)
    except SystemExit as stopped:  # help, or wrong usage, which argparse has explained
        return stopped.code if isinstance(stopped.code, int) else 2
    if given.pop("cfg") == "job":
        import yaml

        print(yaml.safe_dump(given, sort_keys=False), end="")
        return 0
    try:
        return task(given)
    except ModuleNotFoundError as error:
        print(
            f"diffkit: '{command}' needs the package {error.name!r}: pip install 'diffkit[bitsback]'.",
            file=sys.stderr,
        )
        return 1
    except Exception as error:  # also what a stranger's part and Pillow raise
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        # Some have no message, such as MemoryError.
        print(f"diffkit {command}: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1


def _codec(given: Mapping[str, Any], run: dk.Run, **settings: Any) -> Codec:
    # The averaged model of the newest checkpoint; a file names it, in case the run continues.
    label = f"step {run.step}"
    if "grid" in given:
        settings["grid"] = tuple(given["grid"])
        settings |= {name: given[name] for name in ("batch_size", "first_batch", "resolution")}
    return Codec(run.model, label=label, **settings)


def _first(given: Mapping[str, Any], available: int) -> int:
    count = available if given["count"] is None else given["count"]
    if not 1 <= count <= available:
        raise ValueError(f"count must be from 1 to {available}, got {count}.")
    return count


def _compress(given: Mapping[str, Any]) -> int:
    out = Path(given["out"]).expanduser()
    check_free(out, given["overwrite"])
    run = dk.load_run(given["run"])
    source = find_images(given["input"], run, given["data"])
    count = _first(given, len(source))
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
    return 0


def _decompress(given: Mapping[str, Any]) -> int:
    out = Path(given["out"]).expanduser()
    check_free(out, given["overwrite"])
    run = dk.load_run(given["run"])
    missing: list[tuple[range, str]] = []
    count = 0

    def damaged(images: range, error: Exception) -> None:
        missing.append((images, str(error)))

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Path(given["input"]).expanduser().open("rb"))
        # Steps and grid are those of the file.
        decoding = _codec(given, run, steps=1).open(file)
        header = decoding.header
        if header.source == "folder" and header.levels > 256:
            raise DamagedFile(
                "the file says that it holds a folder of images, which have at most 256 levels, got "
                f"{header.levels}."
            )
        if header.source == "folder":
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


def _rate(given: Mapping[str, Any]) -> int:
    if given["passes"] < 1:
        raise ValueError(f"passes must be at least 1, got {given['passes']}.")
    run = dk.load_run(given["run"])
    source = find_images(given["input"], run, given["data"])
    count = _first(given, len(source))
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
            grid=dk.part("grid", tuple(given["grid"]), model=run.model),
            batch_size=given["batch_size"],
            first_batch=given["first_batch"],
            resolution=given["resolution"],
            passes=given["passes"],
            progress=lambda done: bar(done, None),
        )
    show(found, codes)
    return 0


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
