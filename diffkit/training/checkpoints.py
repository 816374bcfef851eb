"""Checkpoints on disk: the arrays of a state by their paths, and a few plain numbers.

CHECKPOINTS/STEP/
  state/             the arrays, by orbax
  numbers/metadata   the numbers, as JSON
  manifest.json      the checksums of the files and of the arrays, and the configuration of the run

A checkpoint is written beside its place, read back, and renamed. So a directory named by a step was whole
once, and has a manifest; only one of an older version has orbax's own record in place of it, and cannot be
verified.
"""

import contextlib
import functools
import glob
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from diffkit.configs import CONFIG_FILE, differences, read_config
from diffkit.training.manifests import Damage, Manifest, checksum_of_file, checksums, files_of
from diffkit.transport import stacklevel

_ADVICE = " If the composition is the same, another version wrote it: use that one, or train anew."
_STATE: Final = "state"
_NUMBERS: Final = "numbers/metadata"
_OLDER: Final = "_CHECKPOINT_METADATA"
"""In place of a manifest in the checkpoints of older versions."""
_SAVING, _REMOVED = ".saving-", ".removed-"
_TEMPORARY: Final = re.compile(rf"{re.escape(_SAVING)}|{re.escape(_REMOVED)}|.*\.orbax-checkpoint-tmp")


class CheckpointError(ValueError):
    """A checkpoint is damaged, cannot be written, or does not fit what it should be restored into."""


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, and an older one is used."""


def _named_arrays(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@dataclass(frozen=True)
class Stored:
    """What a checkpoint holds.

    **Attributes:** `arrays`, by name; `numbers`; `manifest`, `None` for one of an older version, whose
    content cannot be verified.
    """

    arrays: Mapping[str, np.ndarray]
    numbers: Mapping[str, float]
    manifest: Manifest | None


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint is believed only when it is whole: files and arrays as they were written, none missing and
    none added. A process killed at any moment leaves the previous one in force.

    **Arguments:** `directory`: where they are, in the directory of the run; created by the first save;
    `keep`: how many of the newest whole ones to keep. Damaged ones stay until a save at the same step.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        self._directory, self._keep = directory, keep
        self._whole: set[int] = set()  # those that this object wrote or read
        self._newest: tuple[int, Stored] | None = None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or not, in order."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or `None` if there is no checkpoint at all.

        **Raises:** `CheckpointError` if there are some and none is whole, naming what is wrong with each.

        **Warns:** `CheckpointWarning` if there are newer ones that are damaged.
        """
        damaged: dict[int, str] = {}
        while left := [step for step in self.steps() if step not in damaged]:
            step = left[-1]
            try:
                self._newest = step, read_checkpoint(self._directory / str(step))
            except Damage as damage:
                # One that is gone was removed by a training meanwhile, for a newer one.
                if os.path.lexists(self._directory / str(step)):
                    damaged[step] = str(damage)
                continue
            self._whole.add(step)
            if newer := [f"{self._directory / str(n)}: {why}" for n, why in damaged.items() if n > step]:
                warnings.warn(
                    f"damaged checkpoint {'; '.join(newer)}. The one of step {step} is used.",
                    CheckpointWarning,
                    stacklevel=stacklevel(sys._getframe()),
                )
            return step
        if damaged:
            said = "; ".join(f"{step}: {why}" for step, why in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {self._directory} is whole: {said}. Put one back from a copy; to train "
                "anew, name another directory."
            )
        return None

    def read(self, step: int) -> Stored:
        """What a checkpoint holds, verified.

        **Raises:** `CheckpointError` if it is damaged, naming the file and what is wrong.
        """
        try:
            stored = read_checkpoint(self._directory / str(step))
        except Damage as damage:
            raise CheckpointError(f"damaged checkpoint {self._directory / str(step)}: {damage}.") from None
        self._whole.add(step)
        return stored

    def save(self, step: int, state: PyTree, numbers: Mapping[str, float]) -> None:
        """Write a checkpoint, unless there is a whole one for this step already.

        **Raises:** `CheckpointError` if it cannot be written, with the reason. The others stay as they are.
        """
        if step in self.steps() and self._is_whole(step):
            return
        # Copied because training reuses the memory of the state.
        arrays = {name: np.array(leaf) for name, leaf in _named_arrays(state).items()}
        new, place = self._directory / f"{_SAVING}{step}", self._directory / str(step)
        config = self._config
        try:
            self._prepare()
            new.mkdir()
            _write(new, step, arrays, numbers, config)
            if os.path.lexists(place):
                _remove(place)
            new.rename(place)
            _sync(self._directory)
            self._whole.add(step)
            self._remove_old(step)
        except Exception as error:  # orbax passes on those of TensorStore, of any class
            # What it takes, where space is short. TensorStore's other writes may still add to it.
            for _ in range(50):
                with contextlib.suppress(OSError):
                    _delete(new)
                if not os.path.lexists(new):
                    break
                time.sleep(0.02)
            left = [whole for whole in self._whole if os.path.lexists(self._directory / str(whole))]
            raise CheckpointError(
                f"cannot save the checkpoint of step {step} in {self._directory}: {_reason(error)}. "
                + (f"That of step {max(left)} is whole: t" if left else "T")
                + "he same command goes on once this is mended."
            ) from error

    def restore(
        self, step: int, like: PyTree, *, beside: tuple[str, ...] = ()
    ) -> tuple[PyTree, dict[str, float]]:
        """The state of a checkpoint.

        **Arguments:** `step`; `like`: a state of the same structure, whose arrays are replaced;
        `beside`: fields of the checkpoint to ignore.

        **Raises:** `CheckpointError` if it is damaged, if the configuration of the run was changed since,
        or naming the first array that is missing or has another shape.
        """
        newest, self._newest = self._newest, None
        stored = newest[1] if newest is not None and newest[0] == step else self.read(step)
        self._check_config(step, stored.manifest)
        wanted = _named_arrays(like)
        found = {name: a for name, a in stored.arrays.items() if name.split(".")[0] not in beside}
        missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
        if missing or extra:
            apart = all(name.startswith("optimiser.") for name in missing | extra)
            raise CheckpointError(
                f"the checkpoint of step {step} holds another {'optimiser' if apart else 'model'}: "
                f"missing {sorted(missing)[:3]}, not expected {sorted(extra)[:3]}.{_ADVICE}"
            )
        for name, leaf in wanted.items():
            if found[name].shape != leaf.shape:
                raise CheckpointError(
                    f"the checkpoint of step {step} holds another model: {name} has shape "
                    f"{found[name].shape}, expected {leaf.shape}.{_ADVICE}"
                )
        leaves = [jnp.asarray(found[name], leaf.dtype) for name, leaf in wanted.items()]
        dynamic, static = eqx.partition(like, eqx.is_array)
        dynamic = jax.tree.unflatten(jax.tree.structure(dynamic), leaves)
        return eqx.combine(dynamic, static), dict(stored.numbers)

    def close(self) -> None:
        """Free what was read and not restored."""
        self._newest = None

    def _is_whole(self, step: int) -> bool:
        with contextlib.suppress(CheckpointError):
            return step in self._whole or self.read(step) is not None
        return False

    def _prepare(self) -> None:
        """Make the directory, and remove what a process that was killed left in it."""
        if self._directory.is_symlink():
            raise OSError("it is a symbolic link, and nothing is written through one")
        # Not its parents: where the run is gone, a checkpoint without its configuration is no run.
        self._directory.mkdir(exist_ok=True)
        for entry in self._directory.iterdir():
            if _TEMPORARY.match(entry.name):
                _delete(entry)

    def _remove_old(self, step: int) -> None:
        others = [other for other in self.steps() if other != step and self._is_whole(other)]
        for old in others[: max(len(others) + 1 - self._keep, 0)]:
            _remove(self._directory / str(old))

    @functools.cached_property
    def _config(self) -> dict[str, Any] | None:
        """The configuration of the run, if it has one: as it was when this process first asked."""
        return read_config(self._directory.parent) or None

    def _check_config(self, step: int, manifest: Manifest | None) -> None:
        now = self._config
        if manifest is None or manifest.config is None or now is None:
            return
        if differ := changed(manifest.config, now):
            raise CheckpointError(
                f"{self._directory.parent / CONFIG_FILE} was changed after the checkpoint of step {step} "
                f"was written: {'; '.join(differ[:3])}. Put it back."
            )


def changed(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the configuration of a run differs from the one in a checkpoint, in words.

    Apart from what may change when a run continues, and from the data, which may move.
    """
    return [words for words in differences(there, now) if not words.startswith("data.")]


def copy_checkpoint(source: Path, place: Path, config: Mapping[str, Any]) -> None:
    """Copy a checkpoint into another run.

    **Arguments:** `source`, `place`: the directories of the checkpoint, named by its step; `config`: the
    configuration of the other run.

    **Raises:** `CheckpointError` if it is damaged.
    """
    try:
        manifest = read_manifest(source)
        shutil.copytree(source, place, symlinks=True)
        if manifest is not None:
            manifest.check_files(place)
            Manifest(manifest.step, manifest.files, manifest.arrays, config).write(place)
    except Damage as damage:
        raise CheckpointError(f"damaged checkpoint {source}: {damage}.") from None


def read_manifest(place: Path) -> Manifest | None:
    """The manifest of a checkpoint; `None` for one of an older version.

    **Raises:** `Damage` if it is missing or not as it was written.
    """
    if place.is_symlink():
        raise Damage("it is a symbolic link")
    if not place.is_dir():
        raise Damage("it is not a directory")
    manifest = Manifest.read(place)
    if manifest is None and not (place / _OLDER).is_file():
        raise Damage("manifest.json is missing")
    return manifest


def read_checkpoint(place: Path) -> Stored:
    """Read a checkpoint from its directory, named by its step, after verifying every byte of its files.

    The arrays that come of these bytes were compared when they were written, and are by `verify_run`.

    **Raises:** `Damage`, naming the file and what is wrong.
    """
    try:
        manifest = read_manifest(place)
        if manifest is None:
            files_of(place)  # no link, and nothing that would block
        else:
            manifest.check_files(place)
        numbers = _read_numbers(place)
        arrays = _read_arrays(place / _STATE)
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else "it"
        raise Damage(f"{name} cannot be read: {error.strerror or error}") from error
    return Stored(arrays, numbers, manifest)


def _read_numbers(place: Path) -> dict[str, float]:
    try:
        numbers = json.loads((place / _NUMBERS).read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damage(f"{_NUMBERS} is not JSON: {error}") from error
    if not isinstance(numbers, dict) or not all(isinstance(n, int | float) for n in numbers.values()):
        raise Damage(f"{_NUMBERS} must hold numbers by name")
    return {name: float(number) for name, number in numbers.items()}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    # Heavy, so imported when the first run needs it.
    import orbax.checkpoint as ocp

    if not path.is_dir():
        raise Damage(f"{path.name} is missing")
    try:
        with _quiet_orbax():
            checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
            restored = checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore())
    except Exception as error:  # those of TensorStore, of any class
        raise Damage(f"{path.name} cannot be read: {_reason(error)}") from error
    if not isinstance(restored, dict) or not all(isinstance(a, np.ndarray) for a in restored.values()):
        raise Damage(f"{path.name} must hold arrays by name")
    return restored


def _write(
    new: Path,
    step: int,
    arrays: Mapping[str, np.ndarray],
    numbers: Mapping[str, float],
    config: Mapping[str, Any] | None,
) -> None:
    """Write all of a checkpoint, and prove by reading that it is on disk."""
    import orbax.checkpoint as ocp

    with _quiet_orbax(), _without_pattern(new.absolute()) as place:
        checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        checkpointer.save(place / _STATE, args=ocp.args.StandardSave(dict(arrays)))
    (new / _NUMBERS).parent.mkdir()
    (new / _NUMBERS).write_text(json.dumps(numbers))
    written = {name: checksum_of_file(path) for name, path in files_of(new).items()}
    manifest = Manifest(step, written, checksums(arrays), config)
    manifest.check_arrays(_read_arrays(new / _STATE))
    manifest.write(new)
    for folder, _, files in os.walk(new, topdown=False):
        for name in (*files, "."):
            _sync(Path(folder, name))


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Let orbax fail by its exception alone: no log, no thread that outlives it, no word from callbacks."""
    logger, before, hook = logging.getLogger("absl"), set(threading.enumerate()), sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    disabled, logger.disabled, sys.unraisablehook = logger.disabled, True, quiet
    try:
        yield
        # After a failure it stays: TensorStore's other writes end later, and call back into a loop that
        # orbax has closed.
        sys.unraisablehook = hook
    finally:
        for thread in set(threading.enumerate()) - before:
            if type(thread).__module__.startswith("orbax.") or thread.name.startswith("asyncio_"):
                with contextlib.suppress(BaseException):
                    thread.join(timeout=10)  # which raises what orbax's did
        logger.disabled = disabled


@contextlib.contextmanager
def _without_pattern(path: Path) -> Iterator[Path]:
    """The directory by a name in which orbax, which looks for files by a pattern, sees none."""
    if not glob.has_magic(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "link"
        link.symlink_to(path, target_is_directory=True)
        yield link


def _sync(path: Path) -> None:
    """Have a file, or the names in a directory, on disk and not in memory alone."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove(place: Path) -> None:
    """Remove a checkpoint at once: one that is half removed would look damaged."""
    removed = place.with_name(f"{_REMOVED}{place.name}")
    place.rename(removed)
    _delete(removed)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _reason(error: BaseException) -> str:
    """Why a file could not be written or read, in a line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if code := re.search(r"(?:os_error_code='|OS error )(\d+)", str(cause)):  # as TensorStore says it
            return os.strerror(int(code[1]))
        cause = cause.__cause__ or cause.__context__
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else f"{lines[0][:197]}..."
