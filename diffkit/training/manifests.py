"""Manifests: what a checkpoint held when it was written, so that damage is noticed before it is used.

The checksums are CRC-32, which notices every flipped bit and costs loading least. They are no seal: who can
write a checkpoint can write its manifest.
"""

import hashlib
import json
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

MANIFEST_FILE: Final = "manifest.json"
_VERSION: Final = 1
_BLOCK: Final = 1 << 20  # bytes
_FIELDS: Final[Mapping[str, Any]] = {"step": int, "files": dict, "arrays": dict, "config": dict | None}
_CHECKSUMS: Final = ("files", "arrays")


class Damage(Exception):
    """What is wrong with a checkpoint, in words that begin with the file."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint held when it was written.

    **Attributes:** `step`; `files`: the checksum of every file, by its path within the checkpoint;
    `arrays`: the checksum of every array, by its name; `config`: the configuration of the run, `None` if it
    had none. Whole, so that a difference can be named, and compared in the words of a later version.
    """

    step: int
    files: Mapping[str, str]
    arrays: Mapping[str, str]
    config: Mapping[str, Any] | None

    def write(self, place: Path) -> None:
        """Write it into the directory of a checkpoint."""
        (place / MANIFEST_FILE).write_text(_signed({"version": _VERSION, **asdict(self)}))

    @staticmethod
    def read(place: Path) -> "Manifest | None":
        """The manifest in the directory of a checkpoint, `None` if there is none.

        **Raises:** `Damage` if it is not as it was written, or is another checkpoint's.
        """
        file = place / MANIFEST_FILE
        if not os.path.lexists(file):
            return None
        if not stat.S_ISREG(file.lstat().st_mode):
            raise Damage(f"{MANIFEST_FILE} is not a file of its own")
        text = file.read_bytes()
        try:
            content = json.loads(text)
            # To the byte: any other spelling of the same content is damage too.
            whole = _signed({k: v for k, v in content.items() if k != "digest"}).encode() == text
        except (ValueError, AttributeError, RecursionError):
            whole, content = False, {}
        if not whole:
            raise Damage(f"{MANIFEST_FILE} is not as it was written")
        if content.get("version") != _VERSION:
            raise Damage(
                f"{MANIFEST_FILE} is of version {content.get('version')!r}, this diffkit reads {_VERSION}"
            )
        known: dict[str, Any] = {name: content.get(name) for name in _FIELDS}
        for name, kind in _FIELDS.items():
            good = isinstance(known[name], kind)
            if good and name in _CHECKSUMS:
                good = all(isinstance(checksum, str) for checksum in known[name].values())
            if not good:
                raise Damage(f"{MANIFEST_FILE} has no {name}")
        if str(known["step"]) != place.name:
            raise Damage(f"{MANIFEST_FILE} is that of step {known['step']}")
        return Manifest(**known)

    def check_files(self, place: Path) -> None:
        """Raise `Damage` if the files of a checkpoint are not those that were written, all and no other."""
        found = files_of(place)
        for names, what in (
            (self.files.keys() - found.keys(), "is missing"),
            (found.keys() - self.files.keys(), "was not written with it"),
        ):
            if names:
                raise Damage(f"{shown(min(names))} {what}")
        for name, path in found.items():
            if checksum_of_file(path) != self.files[name]:
                raise Damage(f"{shown(name)} is not as it was written")

    def check_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise `Damage` if the arrays read from a checkpoint are not those that were written."""
        found = checksums(arrays)
        for name in sorted(found.keys() | self.arrays.keys()):
            if found.get(name) != self.arrays.get(name):
                raise Damage(f"the array {shown(name)} is not as it was written")


def _signed(content: Mapping[str, Any]) -> str:
    """The text of a manifest, the digest of its content included."""
    digest = hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()
    return json.dumps({**content, "digest": digest}, indent=1, default=str) + "\n"


def shown(name: str) -> str:
    """A name found on disk as it may be shown on a terminal."""
    return name if name.isprintable() else ascii(name)


def files_of(place: Path) -> dict[str, Path]:
    """The files of a checkpoint except its manifest, by their paths within it, in order.

    An empty directory, which stands for lost files, counts as one, with a slash at the end.

    **Raises:** `Damage` for a symbolic link and for what is neither file nor directory.
    """
    found = {}
    for folder, folders, files in os.walk(place, onerror=_raise):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode, relative = path.lstat().st_mode, path.relative_to(place).as_posix()
            if stat.S_ISLNK(mode):
                raise Damage(f"{shown(relative)} is a symbolic link")
            if stat.S_ISREG(mode):
                found[relative] = path
            elif not stat.S_ISDIR(mode):
                raise Damage(f"{shown(relative)} is neither a file nor a directory")
            elif not any(path.iterdir()):
                found[f"{relative}/"] = path
    found.pop(MANIFEST_FILE, None)
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    raise error


def checksum_of_file(path: Path) -> str:
    """The size and the CRC-32 of a file; those of nothing for a directory."""
    size = found = 0
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                size, found = size + len(block), zlib.crc32(block, found)
    return f"{size}:{found:08x}"


def checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The CRC-32 of each array: of its dtype, its shape and its bytes."""
    found = {}
    for name, array in arrays.items():
        head = zlib.crc32(f"{array.dtype}{list(array.shape)}".encode())
        found[name] = f"{zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, head):08x}"
    return found
