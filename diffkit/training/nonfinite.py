"""Steps that are not finite: what went first, and how to run one again.

RUN/nonfinite_STEP/
  config.yaml        that of the run
  state.npz          the training state before the step, by the names of its arrays
  batch.npz          the examples, and their conditions
  nonfinite.json     the step, and what a model must know about the data
"""

import dataclasses
import functools
import json
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from diffkit.buffers import trainable
from diffkit.configs import CONFIG_FILE, make, preset_of, read_config
from diffkit.model import DiffusionModel
from diffkit.objectives import _noise
from diffkit.presets import Assembly, DataSpec, Preset, assemble, key_of
from diffkit.training.checkpoints import _named_arrays as named_arrays
from diffkit.training.config import TrainConfig
from diffkit.training.state import (
    METRICS,
    Batch,
    Objective,
    Optimiser,
    TrainState,
    held_endpoints,
    init_state,
    prepared,
    train_step,
)
from diffkit.typing import PRNGKey

MANY_SKIPS: Final = 100
"""So many skipped steps in a row are an error."""

_TERMS: Final = METRICS[1:4]
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, EOFError, OSError, MemoryError)
_FILES: Final = ("state.npz", "batch.npz", "nonfinite.json", CONFIG_FILE)


class NotFinite(Exception):
    """A number of training is not finite. **Attributes:** `step`; `what`: the number; `value`: of it."""

    def __init__(self, step: int, what: str, value: float):
        super().__init__(step, what, value)
        self.step, self.what, self.value = step, what, value


@dataclass(frozen=True)
class Cause:
    """Why a step is not finite.

    **Attributes:** `step`; `what`: `"loss"`, `"gradient"`, or the name of an array that the step leaves not
    finite; `value`: of it; `term`: of the loss, the first that is not finite, `None` if only a gradient is
    not; `example`: the worst in the batch, with its `t` and `logsnr`; `module`: of the model, whose output
    is the first that is not finite; `parameter`: whose gradient is not finite, though all outputs are.
    """

    step: int
    what: str
    value: float
    term: str | None = None
    example: int | None = None
    t: float | None = None
    logsnr: float | None = None
    module: str | None = None
    parameter: str | None = None

    def __str__(self) -> str:
        said = f"the {self.what} is not finite ({self.value}) at step {self.step}"
        if self.term is not None:
            said += f": the {self.term} term went first"
        if self.example is not None:
            said += f", worst in example {self.example} of the batch, at t = {self.t:.6g}, "
            said += f"logsnr = {self.logsnr:.6g}"
        if self.module is not None:
            said += f"; the first output that is not finite is that of {self.module}"
        elif self.parameter is not None:
            said += f"; all outputs are finite, the gradient of {self.parameter} is not"
        elif self.term == "diffusion":
            said += "; all outputs of the network are finite"
        return said


def check_rows(step: int, rows: np.ndarray) -> None:
    """Raise `NotFinite` for the first step whose loss or gradient is not finite; `step` is the first."""
    for index, row in enumerate(rows):
        # The gradient too: it can fail first, and takes the parameters with it.
        for what, value in (("loss", row[0]), ("gradient", row[len(METRICS) - 1])):
            if not np.isfinite(value):
                raise NotFinite(step + index, what, float(value))


def check_parameters(step: int, state: TrainState) -> None:
    """Raise `NotFinite` if parameters or their averages are not finite after a step."""
    params = eqx.filter(state.model, trainable(state.model))
    for tree, trained in (("model", params), ("average", state.average)):
        for name, leaf in named_arrays(trained).items():
            values = np.asarray(leaf)
            if not (good := np.isfinite(values)).all():
                raise NotFinite(step, f"array {tree}.{name}", float(values[~good][0]))


def objective_of(parts: Assembly, config: TrainConfig) -> Objective:
    """The objective that training minimises."""
    held = held_endpoints(parts.model.schedule, parts.weighting, config.learn_endpoints)
    return Objective(parts.weighting, config.loss_steps, held)


_step = eqx.filter_jit(train_step)


def explain(
    state: TrainState,
    batch: Batch,
    key: PRNGKey,
    objective: Objective,
    config: TrainConfig,
    optimiser: Optimiser,
) -> tuple[Cause | None, dict[str, float]]:
    """Why the next step of a state is not finite: `None` if it is; and its metrics.

    **Arguments:** as for `diffkit.training.state.train_step`.
    """
    after, row = _step(state, batch, key, objective, config, optimiser)
    row, step = np.asarray(row), int(state.step) + 1
    metrics: dict[str, float] = dict(zip(METRICS, map(float, row), strict=False))
    try:
        check_rows(step, row[None])
        check_parameters(step, after)
    except NotFinite as bad:
        cause = Cause(bad.step, bad.what, bad.value)
        if bad.what not in ("loss", "gradient"):
            return cause, metrics
    else:
        return None, metrics
    terms, times, finite = _examples(state, batch, key, objective, config)
    terms, times = np.asarray(terms), np.asarray(times)
    bad_terms = ~np.isfinite(terms)
    flags = {name: np.asarray(flag) for name, flag in named_arrays(finite).items()}
    bad_gradients = ~np.stack([*flags.values()], axis=1)
    term = None
    if bad_terms.any():
        column = int(bad_terms.any(axis=0).argmax())
        term, example = _TERMS[column], int(bad_terms[:, column].argmax())
    elif bad_gradients.any():
        example = int(bad_gradients.any(axis=1).argmax())
    else:  # only their sum, or its norm, is out of range
        example = int(np.abs(terms.sum(axis=1)).argmax())
    t = jnp.asarray(times[example])
    if objective.steps is not None:
        t = (jnp.floor(t * objective.steps) + 1) / objective.steps
    logsnr = state.model.schedule(t)
    module = None
    if term in (None, "diffusion"):
        module = _first_module(state, batch, key, config, example, t)
    parameter = None
    if term is None and module is None and bad_gradients.any():
        parameter = [*flags][int(bad_gradients[example].argmax())]
    cause = dataclasses.replace(
        cause,
        term=term,
        example=example,
        t=float(t),
        logsnr=float(logsnr),
        module=module,
        parameter=parameter,
    )
    return cause, metrics


@eqx.filter_jit
def _examples(state, batch, key, objective, config):
    """Of each example the terms, the time, and of each array whether its gradient is finite."""
    x, condition, step_key = prepared(state, batch, key, config)
    params, rest = eqx.partition(state.model, trainable(state.model))

    def one(item):
        index, (x, condition) = item

        def loss(params):
            # With its draws in the batch.
            share = index, count
            model = eqx.combine(params, rest)
            return objective(model, x, step_key, state.time_sampler, condition, share)

        (_, (terms, (t, _))), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return terms, t[0], jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), gradient)

    count = x.shape[0]
    rows = jax.tree.map(lambda each: each[:, None], (x, condition))
    return jax.lax.map(one, (jnp.arange(count), rows))


def _first_module(state, batch, key, config, example: int, t: jax.Array) -> str | None:
    """The module of the denoiser whose output is the first that is not finite, for one example."""
    model = state.model
    x, condition, step_key = prepared(state, batch, key, config)
    # As in `Objective` and `DiffusionLoss`.
    _, diffusion_key = jax.random.split(step_key)
    encoded = model.encode(x)
    _, eps, keys = _noise(encoded, diffusion_key, False)
    assert keys is not None
    level = model.level(t)
    z = model.process.perturb(encoded[example], eps[example], level)
    own = None if condition is None else condition[example]
    if not bool(jnp.isfinite(z).all()):
        return "the process, the latent itself"
    try:
        call = functools.partial(model.denoiser, z, level.logsnr, own, key=keys[example])
        return _watched(model, call)
    except Exception:  # a stranger's network may not run without being compiled
        return None


def _watched(model: DiffusionModel, call: Callable[[], Any]) -> str | None:
    """The first module of a model whose `__call__` returns something not finite, while a function runs."""
    names = {id(model.denoiser): "denoiser", **dict(_children(model.denoiser, "denoiser"))}
    classes: dict[type, set[str]] = {}
    for module, name in _modules(model.denoiser, "denoiser"):
        classes.setdefault(type(module), set()).add(name)
    found: list[str] = []

    def name_of(module: eqx.Module) -> str | None:
        # A scan makes modules anew from their stacked arrays.
        alike = classes.get(type(module), set())
        return names.get(id(module), next(iter(alike)) if len(alike) == 1 else None)

    def watch(frame: FrameType, event: str, value: Any) -> None:
        if found or event not in ("call", "return") or frame.f_code.co_name != "__call__":
            return
        module = frame.f_locals.get("self")
        if not isinstance(module, eqx.Module) or (name := name_of(module)) is None:
            return
        if event == "call":
            names.update(_children(module, name))
        elif not _is_finite(value):
            found.append(name)

    before = sys.getprofile()
    with jax.disable_jit():
        sys.setprofile(watch)
        try:
            call()
        finally:
            sys.setprofile(before)
    return found[0] if found else None


def _children(module: eqx.Module, name: str) -> Iterator[tuple[int, str]]:
    for child, called in _modules(module, name, deep=False):
        yield id(child), called


def _modules(module: eqx.Module, name: str, *, deep: bool = True) -> Iterator[tuple[eqx.Module, str]]:
    """The modules within one, with their paths."""
    inner, _ = jax.tree_util.tree_flatten_with_path(
        module, is_leaf=lambda node: isinstance(node, eqx.Module) and node is not module
    )
    for path, child in inner:
        if isinstance(child, eqx.Module):
            called = f"{name}.{jax.tree_util.keystr(path, simple=True, separator='.')}"
            yield child, called
            if deep:
                yield from _modules(child, called)


def _is_finite(value: Any) -> bool:
    arrays = [leaf for leaf in jax.tree.leaves(value) if eqx.is_inexact_array(leaf)]
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in arrays if not isinstance(leaf, Tracer))


def write_dump(directory: Path, step: int, state: TrainState, batch: Batch, spec: DataSpec) -> Path:
    """Write what `replay` takes into a run.

    **Arguments:** `directory`: of the run; `step`: that is not finite; `state`: before it; `batch`; `spec`:
    of the data.

    **Returns:** the directory of the dump.

    **Raises:** `OSError` if it cannot be written.
    """
    place = directory / f"nonfinite_{step}"
    if place.is_symlink():
        raise OSError(f"{place} is a symbolic link, and nothing is written through one")
    if place.exists():
        shutil.rmtree(place)  # of the same step, before some setting changed
    place.mkdir()
    x, condition = batch if isinstance(batch, tuple) else (batch, None)
    arrays: dict[str, Any] = {name: np.asarray(a) for name, a in named_arrays(state).items()}
    np.savez(place / "state.npz", **arrays)
    arrays = {"x": np.asarray(x)} | ({} if condition is None else {"condition": np.asarray(condition)})
    np.savez(place / "batch.npz", **arrays)
    (place / CONFIG_FILE).write_bytes((directory / CONFIG_FILE).read_bytes())
    record = {"step": step, "data": dataclasses.asdict(spec)}
    (place / "nonfinite.json").write_text(json.dumps(record, indent=1) + "\n")
    return place


def replay(path: str | Path, *, like: Preset | None = None) -> tuple[Cause | None, dict[str, float]]:
    """Run a step that was not finite again.

    **Arguments:** `path`: of the dump, RUN/nonfinite_STEP; `like`: the preset that was trained, needed only
    if the run has a part that was made in Python.

    **Returns:** the `Cause`, `None` if the step is finite now; and its metrics.

    **Raises:** `FileNotFoundError` if there is no dump at `path`; `ValueError`, naming the file, if it is
    damaged or does not fit the configuration.
    """
    path = Path(path)
    if missing := [name for name in _FILES if not (path / name).is_file()]:
        raise FileNotFoundError(
            f"path must be what a training left of a step that is not finite, RUN/nonfinite_STEP; there is "
            f"no {missing[0]} in {path}."
        )
    config, spec = read_config(path), _spec(path / "nonfinite.json")
    if "train" not in config:
        raise ValueError(f"{path / CONFIG_FILE} must be that of a run, and has no train.")
    preset = preset_of(config) if like is None else like
    settings: TrainConfig = make(config["train"])
    parts = assemble(preset, spec, key=key_of(settings.seed))
    fresh = init_state(parts.model, settings, parts.time_sampler, parts.optimiser)
    arrays, dynamic = _arrays(path / "state.npz"), eqx.filter(fresh, eqx.is_array)
    leaves = []
    for name, leaf in named_arrays(fresh).items():
        array = arrays.get(name)
        if array is None or array.shape != leaf.shape:
            got = "nothing" if array is None else f"the shape {array.shape}"
            raise ValueError(f"{path / 'state.npz'} must hold {name} of shape {leaf.shape}, got {got}.")
        # NumPy writes bfloat16 as bytes.
        leaves.append(jnp.asarray(array.view(leaf.dtype) if array.dtype.kind == "V" else array, leaf.dtype))
    state = eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), leaves), fresh)
    stored = {name: jnp.asarray(array) for name, array in _arrays(path / "batch.npz").items()}
    if "x" not in stored or stored["x"].shape[1:] != parts.model.shape:
        raise ValueError(f"{path / 'batch.npz'} must hold x, examples of shape {parts.model.shape}.")
    batch = (stored["x"], stored["condition"]) if "condition" in stored else stored["x"]
    how = dataclasses.replace(settings, seed=0)
    return explain(state, batch, key_of(settings.seed), objective_of(parts, settings), how, parts.optimiser)


def _spec(file: Path) -> DataSpec:
    try:
        data = json.loads(file.read_bytes())["data"]
        statistics = data["statistics"] and tuple(data["statistics"])
        return DataSpec(tuple(data["shape"]), data["levels"], data["condition_size"], statistics)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file} is damaged.") from None


def _arrays(file: Path) -> Mapping[str, np.ndarray]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
