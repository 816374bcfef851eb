"""Files: written whole or not at all, and never through a link; read within limits.

Errors name the file.
"""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

LARGEST: Final = 2**18
"""The bytes of a configuration or a record at most: many times what diffkit writes."""

_DEEPEST: Final = 64


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes its place in one go when it is complete.

    A process that is killed meanwhile leaves the old file or the new one. A link at `path` is replaced, and
    not followed.

    **Arguments:** `path`: in a directory that exists.

    **Raises:** `OSError`, naming the file, if it cannot be written.
    """
    path = Path(path)
    place = path.with_name(f".diffkit-{secrets.token_hex(6)}.new")
    try:
        # Not an existing file, nor a link that waits there.
        with open(place, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        place.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(place)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        place.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file as `new_file` does."""
    with new_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def refuse_links(directory: Path) -> None:
    """Refuse to write into a directory that is a link, or has one in it: it leads elsewhere.

    **Raises:** `ValueError`, naming the link.
    """
    if directory.is_symlink():
        raise ValueError(f"{directory} is a symbolic link, and nothing is written through one: remove it.")
    for place, folders, files in os.walk(directory):
        for name in (*folders, *files):
            if os.path.islink(found := os.path.join(place, name)):
                raise ValueError(
                    f"{found} is a symbolic link, and nothing is written through one: remove it."
                )


def read_limited(file: Path, *, most: int = LARGEST) -> bytes:
    """The bytes of a file.

    **Raises:** `ValueError`, naming it, if it is too large or something else, such as a pipe;
    `FileNotFoundError`.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file} must be a file, and is something else.")
    with file.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{file} must have at most {most} bytes, got {max(found.st_size, most + 1)}.")
    return content


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    **Raises:** `ValueError`, naming the file, if it is damaged, too large or too deep.
    """
    content = read_limited(file)
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError:
        raise ValueError(f"{file} is damaged: it is not UTF-8.") from None
    except ValueError as error:
        raise ValueError(f"{file} must be a JSON file: {error}.") from None
    except RecursionError:
        raise ValueError(f"{file} must be a JSON file: it is nested too deep.") from None


def read_yaml(file: Path, *, whole: bool = False) -> Any:
    """The value in a YAML file of plain values: no aliases, no tags, no key twice, no depth without end.

    **Arguments:** `file`; `whole`: refuse a file that does not end with a newline: it was cut short.

    **Raises:** `ValueError`, naming the file and the line.
    """
    import yaml

    content = read_limited(file)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is damaged: it is not UTF-8.") from None
    if whole and not text.endswith("\n"):
        raise ValueError(f"{file} is cut short: its last line does not end.")
    try:
        return _loader()(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{file} is damaged{line}: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}.") from None
    except (ValueError, OverflowError) as error:  # such as a number of thousands of digits
        raise ValueError(f"{file} is damaged: {error}.") from None


def _loader() -> Any:
    """PyYAML's safe loader, without what needs more memory or time than the text is long."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise _refused(event, "aliases are refused")
            if getattr(event, "anchor", None) is not None:
                raise _refused(event, "anchors are refused")
            if getattr(event, "tag", None) is not None:
                raise _refused(event, f"the tag {event.tag:.60} is refused")
            if self.depth >= _DEEPEST:
                raise _refused(event, f"it is nested more than {_DEEPEST} deep")
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                    raise _refused(key, "a key must be text")
                if key.value in seen:
                    raise _refused(key, f"the key {key.value[:60]!r} is there twice")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    def _refused(at: Any, problem: str) -> Any:
        return yaml.constructor.ConstructorError(problem=problem, problem_mark=at.start_mark)

    return Loader
