"""Whether a run is whole: every checkpoint as it was written, every file readable."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffkit import registry
from diffkit.configs import (
    CHECKPOINTS,
    CONFIG_FILE,
    EVALUATION_FILE,
    KINDS,
    METRICS_FILE,
    VARIANCE_FILE,
    find,
    read_config,
)
from diffkit.training import Checkpoints
from diffkit.training.checkpoints import changed, read_checkpoint, read_manifest
from diffkit.training.manifests import Damage


@dataclass(frozen=True)
class Finding:
    """What `verify_run` found.

    **Attributes:** `name`: the file or checkpoint, within the run; `good`: whether nothing is wrong with
    it; `words`: what was found.
    """

    name: str
    good: bool
    words: str


def verify_run(path: str | Path) -> tuple[Finding, ...]:
    """Check all of a run: its configuration, every checkpoint, its metrics and results.

    Nothing is written, and the data are not read.

    **Arguments:** `path`: the directory of the run.

    **Returns:** a `Finding` for each file and checkpoint.

    **Raises:** `FileNotFoundError` if there is no run at `path`.
    """
    path = Path(path)
    if not (path / CHECKPOINTS).is_dir() and not (path / CONFIG_FILE).exists():
        raise FileNotFoundError(
            f"path must be a run directory, there is neither {CONFIG_FILE} nor {CHECKPOINTS} at {path}."
        )
    places = [path / CHECKPOINTS / str(step) for step in Checkpoints(path / CHECKPOINTS).steps()]
    found = [_finding(CONFIG_FILE, _check_config, path, _stored_config(places))]
    found += [_finding(f"{CHECKPOINTS}/{place.name}", _check_checkpoint, place) for place in places]
    for pattern, check in (
        (METRICS_FILE, _check_metrics),
        (EVALUATION_FILE, _check_evaluation),
        (VARIANCE_FILE.replace(".", "*."), _check_object),
    ):
        found += [_finding(file.name, check, file) for file in sorted(path.glob(pattern))]
    return tuple(found)


def _finding(name: str, check: Callable[..., str], *arguments: Any) -> Finding:
    try:
        return Finding(name, True, check(*arguments))
    except (Damage, OSError, ValueError, RecursionError) as error:
        return Finding(name, False, " ".join(str(error).split()))


def _stored_config(places: list[Path]) -> Mapping[str, Any] | None:
    """The configuration in the newest manifest that can be read."""
    for place in reversed(places):
        try:
            manifest = read_manifest(place)
        except Damage:
            continue
        if manifest is not None:
            return manifest.config
    return None


def _check_config(path: Path, stored: Mapping[str, Any] | None) -> str:
    config = read_config(path)
    if not config and stored is None:
        return "none: the run was started in Python by an older version"
    if not config:
        raise ValueError("is missing; the manifests of the checkpoints have it, under config")
    foreign = []
    for kind in (*KINDS, "data"):
        node = config.get(kind)
        if not isinstance(node, Mapping):
            raise ValueError(f"has no {kind}")
        registry.available(kind)  # imports the plugins
        if "_python_" in node:
            foreign.append(f"the {kind} was made in Python")
        elif registry.name_of(kind, find(str(node.get("_target_")))) is None:
            raise ValueError(f"no {kind} {node.get('_target_')} is registered: is its plugin installed?")
    if stored is not None and (differ := changed(stored, config)):
        raise ValueError(f"was changed after the newest checkpoint was written: {'; '.join(differ)}")
    return "; ".join(["readable, its parts are known", *foreign])


def _check_checkpoint(place: Path) -> str:
    stored = read_checkpoint(place)
    if stored.manifest is not None:
        stored.manifest.check_arrays(stored.arrays)
    for name, array in stored.arrays.items():
        if name.split(".")[0] in ("model", "average") and not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"{name} has values that are not finite")
    if stored.manifest is None:
        return f"{len(stored.arrays)} arrays; an older version wrote no manifest, so they are not verified"
    return f"{len(stored.arrays)} arrays, as written"


def _check_metrics(file: Path) -> str:
    lines, steps = file.read_text().splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines):
                return f"{len(steps)} records; the last line is cut short, as a killed process leaves it"
            raise ValueError(f"line {number} is not a record") from None
    if steps != sorted(steps):
        raise ValueError("its steps are not in order")
    return f"{len(steps)} records"


def _object(file: Path) -> Mapping[str, Any]:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"must hold an object, got {type(found).__name__}")
    return found


def _check_object(file: Path) -> str:
    return f"{len(_object(file))} entries"


def _check_evaluation(file: Path) -> str:
    found = _object(file)
    for name in ("prior", "reconstruction", "diffusion", "total"):
        value = found.get(f"{name}_bits_per_dim")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}_bits_per_dim must be a finite number, got {value!r}")
    return f"{found['total_bits_per_dim']:.4f} bits/dim"
