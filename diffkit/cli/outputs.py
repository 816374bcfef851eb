"""The files that a command writes: a name that says what was asked, and a record of it beside them.

The record, `NAME.request.json`, is what keeps another request from replacing them in silence.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit.cli.words import short
from diffkit.configs import defaults, find, flat
from diffkit.files import replace_text
from diffkit.registry import name_of
from diffkit.reports.names import written


def asked(kind: str, node: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> list[str]:
    """A part in the name of a file: its registered name, then the options that are not as expected.

    **Arguments:** `kind`; `node`: of a configuration; `own`: the run's own part, whose options are expected
    if it is the same; otherwise those of the part by default.
    """
    target = node["_target_"]
    expected = own if own is not None and own.get("_target_") == target else defaults(target)
    options = [
        f"{name}{_sign(value)}"
        for name, value in node.items()
        if not name.startswith("_") and value != expected.get(name)
    ]
    made = find(target)
    name = made and name_of(kind, made)
    return [name or target.rpartition(".")[2], *options]


def _sign(value: Any) -> str:
    return short(written(value)).strip("-") if isinstance(value, list | str) else written(value)


def stem(*parts: str | None) -> str:
    """The name of a file without its ending, made of those parts that there are."""
    return short("_".join(part for part in parts if part))


@dataclass(frozen=True)
class Output:
    """The files that a request makes.

    **Arguments:** `files`: their paths, the first of which names the record; `request`: what was asked, as
    plain containers; `checkpoint`: the step of the model that answers it; `elsewhere`: how to name other
    files, if one can.
    """

    files: Sequence[Path]
    request: Mapping[str, Any]
    checkpoint: int | None = None
    elsewhere: str = "name another file with out=FILE, or "

    @property
    def _record(self) -> Path:
        return self.files[0].with_suffix(".request.json")

    def check(self, *, overwrite: bool) -> None:
        """Refuse to replace the files of another request, before the work begins.

        **Raises:** `FileExistsError`, naming the file and what differs.
        """
        there = [file for file in self.files if os.path.lexists(file)]
        if not there or overwrite:
            return
        known = self._known()
        if known is None:
            raise FileExistsError(
                f"{there[0]} exists, and nothing says what made it: {self.elsewhere}replace it with "
                "overwrite=true."
            )
        before, now = flat(known.get("request")), flat(_plain(self.request))
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise FileExistsError(
                    f"{there[0]} is of another request ({name}: {_shown(before.get(name))} there, "
                    f"{_shown(now.get(name))} now): {self.elsewhere}replace it with overwrite=true."
                )
        if known.get("checkpoint") != self.checkpoint:
            print(
                f"{there[0]} is replaced: it was of step {known.get('checkpoint')}, the run is at "
                f"{self.checkpoint}.",
                file=sys.stderr,
            )

    def begin(self) -> None:
        """Before the first file is written: what is there has no record any more."""
        self.files[0].parent.mkdir(parents=True, exist_ok=True)
        self._record.unlink(missing_ok=True)

    def end(self) -> None:
        """After the last one: record what made them."""
        record = {"request": self.request, "checkpoint": self.checkpoint}
        replace_text(self._record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def _known(self) -> Mapping[str, Any] | None:
        try:
            known = json.loads(self._record.read_text())
        except (OSError, ValueError, RecursionError):  # none, or one that says nothing
            return None
        return known if isinstance(known, dict) and isinstance(known.get("request"), dict) else None


def _plain(request: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(request))


def _shown(value: Any) -> str:
    text = written(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
