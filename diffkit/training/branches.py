"""Runs by name, `RUN` or `RUN@STEP`, and runs that begin from a checkpoint of another one."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffkit.configs import CHECKPOINTS, CONFIG_FILE, differences, read_config, write_config
from diffkit.data import DATA_FILE
from diffkit.files import replace_text
from diffkit.presets import MODEL_KINDS, Assembly
from diffkit.time_samplers import LowDiscrepancy
from diffkit.training.checkpoints import Checkpoints
from diffkit.training.config import TrainConfig
from diffkit.training.state import TrainState, init_state


def split_step(run: str | Path) -> tuple[Path, int | None]:
    """The directory and the step of `RUN@STEP`; a directory of that very name comes first."""
    found = re.fullmatch(r"(.+)@(\d+)", str(run), re.S)
    if found is None or os.path.exists(run):
        return Path(run), None
    return Path(found[1]), int(found[2])


def find_run(run: str | Path, step: int | None = None) -> tuple[Path, int | None]:
    """The directory of a run, and the step that is asked for.

    **Arguments:** `run`: the directory, or `RUN@STEP`; `step`: the step, if it is given apart.

    **Raises:** `FileNotFoundError` or `ValueError`, saying what is there instead of a run, or which
    checkpoints it has.
    """
    path, named = split_step(run)
    if named is not None and step not in (None, named):
        raise ValueError(f"step={step} is not the step of {str(run)!r}: give it once.")
    step = named if step is None else step
    if not (path / CHECKPOINTS).is_dir():
        raise FileNotFoundError(f"path must be a run directory, {_instead(path)}.")
    if step is not None and step not in (steps := saved_steps(path)):
        known = ", ".join(map(str, steps)) or "none"
        raise FileNotFoundError(f"run {path} has no checkpoint of step {step}; it has {known}.")
    return path, step


def saved_steps(path: Path) -> list[int]:
    """The steps of the checkpoints in a run directory."""
    return sorted(int(p.name) for p in (path / CHECKPOINTS).iterdir() if re.fullmatch(r"\d+", p.name))


def _instead(path: Path) -> str:
    """What there is at a path that is no run directory."""
    if not os.path.lexists(path):
        return f"there is nothing at {path}"
    place = path.absolute()
    around = next((up for up in place.parents if (up / CHECKPOINTS).is_dir()), None)
    if around is not None:
        shown = os.path.relpath(around) if not path.is_absolute() else around
        step = f" or {shown}@{path.name}" if place.parent == around / CHECKPOINTS else ""
        return f"{path} is in the run {shown}: give {shown}{step}"
    if not path.is_dir():
        return f"{path} is {'a file' if path.exists() else 'a broken link'}"
    if (path / CONFIG_FILE).exists():
        return f"there are no checkpoints at {path}: it was stopped before its first one"
    below = sorted(p.parent.name for p in path.glob(f"*/{CHECKPOINTS}"))
    if below:
        return f"{path} is a directory of runs: give one of them, such as {path / below[0]}"
    empty = next(path.iterdir(), None) is None
    return f"{path} is an empty directory" if empty else f"there are no checkpoints at {path}"


def origin(given: str | Path, directory: Path) -> str:
    """The checkpoint that a run begins from, as its configuration records it in `from`: `PATH@STEP`.

    **Arguments:** `given`: `RUN@STEP`, or `RUN` for its newest checkpoint; `directory`: of the new run. If
    it has begun, the checkpoint that it began from.

    **Raises:** as `find_run`.
    """
    path, step = split_step(given)
    place = os.path.abspath(path)
    if step is None:
        recorded = read_config(directory).get("from")
        if isinstance(recorded, str) and recorded.rpartition("@")[0] == place:
            return recorded
        find_run(path)
        checkpoints = Checkpoints(path / CHECKPOINTS)
        try:
            step = checkpoints.latest_step()
        finally:
            checkpoints.close()
        if step is None:
            raise FileNotFoundError(f"the run at {path} was stopped before its first checkpoint.")
    return f"{place}@{step}"


def start_run(directory: Path, config: Mapping[str, Any], parts: Assembly, settings: TrainConfig) -> None:
    """Write the configuration of a run, and the checkpoint that it begins from, if it has a `from`.

    The state of an optimiser or of a time sampler that is another one starts anew. On an error, nothing is
    written.

    **Arguments:** `directory`; `config`, with `from` as `origin` gives it; `parts`, `settings`: made of it.

    **Raises:** `ValueError` if the directory holds a run with other choices (`write_config`), the run to
    begin from has another model, or nothing would be left to train; as `find_run`;
    `diffkit.training.CheckpointError` if the checkpoint does not fit.
    """
    source = config.get("from")
    if source is None or ((directory / CHECKPOINTS).is_dir() and saved_steps(directory)):
        write_config(directory, config)
        return
    state, numbers = _first(source, directory, config, parts, settings)
    write_config(directory, config)
    place = Path(source.rpartition("@")[0])
    same = not differences({"data": read_config(place)["data"]}, {"data": config["data"]})
    if same and (place / DATA_FILE).is_file():
        replace_text(directory / DATA_FILE, (place / DATA_FILE).read_text())
    checkpoints = Checkpoints(directory / CHECKPOINTS)
    try:
        checkpoints.save(int(state.step), state, numbers)
    finally:
        checkpoints.close()


def _first(
    source: str, directory: Path, config: Mapping[str, Any], parts: Assembly, settings: TrainConfig
) -> tuple[TrainState, dict[str, float]]:
    """The state that a run begins from."""
    place, _, number = source.rpartition("@")
    path, step = find_run(place, int(number))
    assert step is not None
    if path.absolute() == directory.absolute():
        raise ValueError(f"from must be another run than the new one, got {str(path)!r} for both.")
    known = read_config(path)
    if not known:
        raise ValueError(f"from={source}: the run has no {CONFIG_FILE}, so its model is not known.")
    if known.get("transport"):
        raise ValueError(
            f"from={source}: `diffkit convert` made this run, and no training goes on with it: give the "
            "run that it was made from."
        )
    names = (*MODEL_KINDS, "data_std")
    there, now = ({n: c[n] for n in names if n in c} for c in (known, config))
    if differ := differences(there, now):
        raise ValueError(f"from={source} is a run of another model: {'; '.join(differ[:5])}.")
    if settings.steps <= step:
        raise ValueError(
            f"train.steps must be more than the {step} steps of from={source}, which count, got "
            f"{settings.steps}."
        )
    stateless = {"optimiser": None, "time_sampler": LowDiscrepancy()}
    anew = tuple(kind for kind in stateless if differences({kind: known[kind]}, {kind: config[kind]}))
    fresh = init_state(parts.model, settings, parts.time_sampler, parts.optimiser)
    like = dataclasses.replace(fresh, **{kind: stateless[kind] for kind in anew})
    checkpoints = Checkpoints(path / CHECKPOINTS)
    try:
        state, numbers = checkpoints.restore(step, like=like, beside=anew)
    finally:
        checkpoints.close()
    return dataclasses.replace(state, **{kind: getattr(fresh, kind) for kind in anew}), numbers
