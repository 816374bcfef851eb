"""Files that are written whole or not at all."""

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a file in one go: a process that is killed meanwhile leaves the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
