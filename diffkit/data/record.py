"""What the data of a run are: recorded when it begins, compared when it goes on or is evaluated.

Of image files: their names and sizes. Of anything else: shape, dtype and a digest of the content, all of it
up to 256 MiB in memory, else of rows spread evenly over it. Of both: the split, as train and test are
recorded apart.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from diffkit.data.arrays import ArraySource
from diffkit.data.base import AbstractConditionalSource, AbstractDataset, AbstractSource, SubsetSource
from diffkit.data.conditions import LabelledSource, VectorSource
from diffkit.data.images import ImageFolderSource
from diffkit.data.reading import listed
from diffkit.files import replace_text

DATA_FILE: Final = "data.json"
"""Of a run directory."""

POLICIES: Final = ("refuse", "warn", "ignore")
"""What to do about data that are not those of the run."""

_WHOLE: Final = 2**28  # bytes that are digested, and checked, without leaving any out
_PIECE: Final = 2**24
_SAMPLE: Final = 256  # examples of a source that makes or reads each when it is asked
_MOST_FILES: Final = 10_000  # that are recorded by name; of more, the digest
_MOST_DECODED: Final = 50_000


class DataChanged(ValueError):
    """The data are not those that the run was trained on."""


class DataChangedWarning(UserWarning):
    """The data are not those that the run was trained on, and the policy is to go on."""


def identity(data: AbstractDataset) -> dict[str, Any]:
    """What tells a dataset from another, as plain containers.

    **Arguments:** `data`.

    **Returns:** for each of `train` and `test` the number of examples, their shape and dtype or, of image
    files, names (from the folder on) and sizes in bytes, up to 10,000 of them; and a digest. `sampled` says
    how many examples the digest is of, if not of all.
    """
    parts = {"train": data.train, "test": data.test}
    return {
        "levels": None if data.levels is None else int(data.levels),
        "shape": [int(length) for length in data.shape],
        **{name: _identity(source) for name, source in parts.items()},
    }


def check_identity(
    path: Path | None, data: AbstractDataset, policy: str = "refuse", *, begun: bool = True
) -> None:
    """Compare data with those that a run was trained on; check new ones (`check_examples`) and record them.

    A run of an older version has no record, and gets one.

    **Arguments:** `path`: the run directory, or `None` if there is none, where data are new; `data`;
    `policy`: what to do where they differ: `"refuse"`, `"warn"` or `"ignore"`; `begun`: whether the run has
    a checkpoint, else the record is written anew.

    **Raises:** `DataChanged`, a `ValueError`, that says what differs, under the policy `"refuse"`;
    `ValueError` as `check_examples`.

    **Warns:** `DataChangedWarning`, with the same words, under `"warn"`.
    """
    check_policy(policy)
    if path is None:
        check_examples(data)
        return
    now, known = identity(data), _recorded(path / DATA_FILE) if begun else []
    if known and known[-1] == now:
        return
    if known and policy != "ignore":
        message = _message(path, known, now)
        if policy == "refuse":
            hint = "Restore them, or name another directory; train.data_changed=warn goes on with these."
            raise DataChanged(f"{message} {hint}")
        warnings.warn(message, DataChangedWarning, stacklevel=2)
    check_examples(data)
    path.mkdir(parents=True, exist_ok=True)
    # Those before are kept: what was trained on once stays known.
    text = json.dumps({"version": 1, "data": [*known, now]}, indent=1, ensure_ascii=True)
    replace_text(path / DATA_FILE, text + "\n")


def data_changes(path: Path, data: AbstractDataset) -> str | None:
    """How data differ from those that a run was trained on, as a sentence; `None` if they do not.

    **Arguments:** `path`: the run directory; `data`.
    """
    known = _recorded(path / DATA_FILE)
    now = identity(data) if known else {}
    return None if not known or known[-1] == now else _message(path, known, now)


def _message(path: Path, known: list[dict[str, Any]], now: dict[str, Any]) -> str:
    return f"the data are not those of run {path}: {'; '.join(_differences(known, now))}."


def check_policy(policy: str) -> None:
    """Refuse an unknown policy with a `ValueError`."""
    if policy not in POLICIES:
        raise ValueError(f"train.data_changed must be one of {', '.join(POLICIES)}, got {policy!r}.")


def check_examples(data: AbstractDataset) -> None:
    """Look at the data before training begins: values out of range, and files that cannot be decoded.

    All examples in memory up to 256 MiB, all image files up to 50,000; of more, and of sources that make
    each example when it is asked for, some, spread evenly.

    **Arguments:** `data`.

    **Raises:** `ValueError` that names the files, or the first example out of range.
    """
    for name, source in (("train", data.train), ("test", data.test)):
        files, indices = _files_of(source)
        if files is not None:
            bad = files.damaged(indices[_spread(len(indices), _MOST_DECODED)])
            if bad:
                raise ValueError(
                    f"{len(bad)} of the image files to {name} on cannot be decoded: "
                    f"{listed([*bad.values()])} (skip_bad=true leaves them out)"
                )
            continue
        for at, x in _pieces(source, _chosen(source)):
            _check_values(x, at, data.levels, f"{type(data).__name__}: {name}")


def _check_values(x: np.ndarray, at: np.ndarray, levels: int | None, owner: str) -> None:
    rows = x.reshape(len(x), -1)
    if levels is None:
        wrong, wanted = ~np.isfinite(rows).all(axis=1), "be finite"
    elif not np.issubdtype(x.dtype, np.integer):
        raise TypeError(f"{owner} must hold integers with {levels=}, got {x.dtype}.")
    else:
        wrong = ((rows < 0) | (rows >= levels)).any(axis=1)
        wanted = f"have values from 0 to levels - 1 = {levels - 1}"
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        low, high = rows[first].min(), rows[first].max()
        raise ValueError(
            f"{owner}: all examples must {wanted}, got values from {low} to {high} in example {at[first]}."
        )


def _identity(source: AbstractSource) -> dict[str, Any]:
    found: dict[str, Any] = {"examples": len(source)}
    files, indices = _files_of(source)
    digest = hashlib.sha256()
    if files is not None:
        sizes = {files.names[i]: Path(files.files[i]).stat().st_size for i in indices}
        for name in sorted(sizes):
            digest.update(f"{name}\0{sizes[name]}\0".encode(errors="surrogateescape"))
        if len(sizes) <= _MOST_FILES:
            found["files"] = dict(sorted(sizes.items()))
    else:
        chosen = _chosen(source)
        if len(chosen) < len(source):
            found["sampled"] = len(chosen)
        for _, x in _pieces(source, chosen):
            found["dtype"] = x.dtype.name
            digest.update(np.ascontiguousarray(x).data)
    found["digest"] = digest.hexdigest()[:32]
    if isinstance(source, AbstractConditionalSource) and source.condition_size > 0:
        found["condition_size"] = source.condition_size
        beside = hashlib.sha256()
        for at in _runs(_spread(len(source), _WHOLE // (4 * source.condition_size)), 4096):
            beside.update(np.ascontiguousarray(source.conditions(at)).data)
        found["conditions"] = beside.hexdigest()[:32]
    return found


def _files_of(source: AbstractSource) -> tuple[ImageFolderSource | None, np.ndarray]:
    """The image files that a source is of, and its positions among them."""
    inside: list[SubsetSource] = []
    while isinstance(source, SubsetSource | LabelledSource | VectorSource):
        if isinstance(source, SubsetSource):
            inside.append(source)
        source = source.source
    if not isinstance(source, ImageFolderSource):
        return None, np.arange(0)
    indices = np.arange(len(source))
    for subset in reversed(inside):
        indices = indices[subset.indices]
    return source, indices


def _chosen(source: AbstractSource) -> np.ndarray:
    """The examples to look at: all in memory that are not too many, else some."""
    inner, count = source, len(source)
    while isinstance(inner, SubsetSource | LabelledSource | VectorSource):
        inner = inner.source
    if not isinstance(inner, ArraySource):
        return _spread(count, _SAMPLE)
    size = max(1, inner.array[:1].nbytes)
    return _spread(count, count if count * size <= _WHOLE else max(_SAMPLE, _PIECE // size))


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many positions, evenly, with the first and the last."""
    most = max(most, 2)
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _runs(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(indices), size):
        yield indices[first : first + size]


def _pieces(source: AbstractSource, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions and their examples, so many that memory is no matter."""
    one = source.gather(indices[:1]).nbytes
    for at in _runs(indices, max(1, _PIECE // max(1, one))):
        yield at, source.gather(at)


def _recorded(file: Path) -> list[dict[str, Any]]:
    """The data of a run, those it was trained on last at the end."""
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text())
        known = content["data"] if content["version"] == 1 else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}. Remove it to record the data anew.") from None
    if not isinstance(known, list) or not all(_is_identity(each) for each in known):
        raise ValueError(f"{file} is damaged or of a newer version. Remove it to record the data anew.")
    return known


def _is_identity(each: Any) -> bool:
    parts = [each.get(name) for name in ("train", "test")] if isinstance(each, dict) else [None]
    return all(isinstance(p, dict) and isinstance(p.get("files", {}), dict) for p in parts)


def _differences(known: list[dict[str, Any]], now: dict[str, Any]) -> list[str]:
    """How data differ from those of a run, in words."""
    there, found = known[-1], list[str]()
    for name in ("shape", "levels"):
        if there.get(name) != now[name]:
            found.append(f"{name} {there.get(name)} there, {now[name]} now")
    for name in ("train", "test"):
        before, after = there[name], now[name]
        if before == after:
            continue
        if "files" in before and "files" in after:
            files = _file_differences(before["files"], after["files"], name)
            found += files or _part_differences(before, after, name)
        else:
            found += _part_differences(before, after, name)
    trained = {file for each in known for file in each["train"].get("files", {})}
    leaked = [file for file in now["test"].get("files", {}) if file in trained]
    if leaked:
        found.append(f"{_files(leaked)} to test on had been trained on")
    return found


def _file_differences(before: dict[str, int], after: dict[str, int], name: str) -> list[str]:
    sets = (
        ("added", [file for file in after if file not in before]),
        ("removed", [file for file in before if file not in after]),
        ("changed", [file for file in after if file in before and before[file] != after[file]]),
    )
    return [f"{_files(files)} {how} in {name}" for how, files in sets if files]


def _files(names: list[str]) -> str:
    return f"{len(names)} file{'s' * (len(names) > 1)} ({listed([*map(repr, names)], 5)})"


def _part_differences(before: dict[str, Any], after: dict[str, Any], name: str) -> list[str]:
    words = {"examples": "examples", "dtype": "dtype", "condition_size": "numbers in a condition"}
    found = [
        f"{name} has {after.get(key)} {what} in place of {before.get(key)}"
        for key, what in words.items()
        if before.get(key) != after.get(key)
    ]
    if not found and before.get("digest") != after.get("digest"):
        found.append(f"{name} has other examples")
    if not found and before.get("conditions") != after.get("conditions"):
        found.append(f"{name} has other conditions")
    return found or [f"{name} is another"]
