"""The laws of presets: their choices work together, and their weighting is their loss."""

import dataclasses
import functools
import tempfile
from typing import Any

import jax
import numpy as np

from diffkit.data import ArrayData
from diffkit.presets import (
    MODEL_KINDS,
    TRAINING_KINDS,
    Assembly,
    DataSpec,
    Preset,
    assemble,
    part,
    resolve,
)
from diffkit.registry import complete
from diffkit.testing.base import (
    NotApplicable,
    Subject,
    Violation,
    is_plain,
    law,
    mapped,
    require,
    text,
)
from diffkit.testing.losses import check_weighting
from diffkit.testing.networks import accepted_shapes
from diffkit.weightings import ELBO

_LEVELS = 17
_NETWORK = ("mlp", {"width": 8, "depth": 1})


def _noise(shape: tuple[int, ...], levels: int | None) -> ArrayData:
    """Random examples, enough to train a model on their shape."""
    generator, size = np.random.default_rng(0), (64, *shape)
    if levels is None:
        examples = generator.standard_normal(size).astype(np.float32)
    else:
        examples = generator.integers(0, levels, size, dtype=np.uint8)
    return ArrayData(examples[:48], levels, test=examples[48:])


def _levels(preset: Preset) -> int | None:
    """The number of levels of the data for the preset's decoder."""
    return complete(resolve("decoder", preset.decoder), {"levels": _LEVELS}).levels


def _small(preset: Preset, shape: tuple[int, ...]) -> Assembly:
    """The preset with a small network."""
    spec = DataSpec(shape, _levels(preset))
    return assemble(preset.replace(network=_NETWORK), spec, key=jax.random.key(0))


def _shapes(preset: Preset) -> list[tuple[int, ...]]:
    """The shapes for which the preset's own network can be built."""
    return accepted_shapes(Subject("network", resolve("network", preset.network)))


@law("preset")
def composes(subject: Subject) -> None:
    """Every choice is a registered part that has the given options, and train has known settings."""
    preset: Preset = subject.part
    for kind in (*MODEL_KINDS, *TRAINING_KINDS):
        chosen = resolve(kind, getattr(preset, kind))
        options = chosen.keywords if isinstance(chosen, functools.partial) else {}
        expected = "a number, a string, None or a tuple, which a configuration can hold"
        for option, value in options.items():
            given = {"choice": kind, "option": option}
            require(is_plain(value), given, {"value": repr(value)}, expected)
    _small(preset, _shapes(preset)[0])
    _train_config(preset)


def _train_config(preset: Preset, **changes: Any) -> Any:
    try:
        from diffkit.training import TrainConfig
    except ImportError as error:
        raise NotApplicable(f"training needs diffkit[train]: {error}") from error
    return TrainConfig(**(dict(preset.train) | changes))


@law("preset")
def weighting_is_its_loss(subject: Subject) -> None:
    """denoising_loss with the preset's weighting is the loss that the preset states (diffkit.Loss), up to a
    constant, computed without a weighting: for denoisers that err at one noise level each."""
    preset: Preset = subject.part
    loss = preset.loss
    with jax.enable_x64(True):
        made = _small(preset, _shapes(preset)[0])
        model, weighting = made.model, made.weighting
        if loss is None:
            if not isinstance(weighting, ELBO):
                raise NotApplicable("states no loss: give the preset loss=diffkit.Loss(...)")
            maximum, minimum = (float(end) for end in model.schedule.endpoints)
            logsnr = np.linspace(minimum, maximum, 101)
            w = mapped(weighting, logsnr)
            require(w == 1, {"logsnr": logsnr}, {"w": w}, "1: the VLB")
            return
        own = preset.parameterization if loss.parameterization is None else loss.parameterization
        factor = "" if loss.factor is None else " times a factor"
        described = f"squared error of {_name(own)}{factor}, times {_name(loss.times)}"
        target = complete(resolve("parameterization", own), {"data_std": preset.data_std})
        check_weighting(
            weighting,
            parameterization=target,
            schedule=model.schedule,
            process=model.process,
            time_sampler=part("time_sampler", loss.times, model=model),
            factor=loss.factor,
            described=f"{described}; the weighting is {_name(preset.weighting)}",
        )


def _name(choice: Any) -> str:
    return choice if isinstance(choice, str) else str(choice[0])


@law("preset")
def trains_saves_loads_and_samples(subject: Subject) -> None:
    """With a small network instead of its own, for each shape that its network takes, it trains a few steps
    on random data, is saved and loaded, and samples finite values in the range of the data."""
    preset: Preset = subject.part
    short = {"steps": 4, "batch_size": 8, "steps_per_dispatch": 2, "warmup": 1}
    config = _train_config(preset, **short, checkpoint_every=0, evaluate_every=0)
    for shape in _shapes(preset):
        _train(preset, shape, config)


def _train(preset: Preset, shape: tuple[int, ...], config: Any) -> None:
    from diffkit.runs import load_run
    from diffkit.training import fit

    data, settings = _noise(shape, _levels(preset)), dataclasses.asdict(config)
    small = dataclasses.replace(preset, network=_NETWORK, train=settings)
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(small, data, directory=folder, progress=False)
        loaded = load_run(folder, like=small).model
    pairs = zip(jax.tree.leaves(fitted.model), jax.tree.leaves(loaded), strict=True)
    if not all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs):
        raise Violation(
            f"shape of the data = {text(shape)}",
            "the loaded model differs from the one that was trained; expected the same numbers",
        )
    drawn = np.asarray(fitted.sample(4, key=jax.random.key(1), steps=5))
    low, high = drawn.min(), drawn.max()
    right, expected = bool(np.isfinite(drawn).all()), "4 samples of finite values"
    if data.levels is not None:
        right = np.issubdtype(drawn.dtype, np.integer) and 0 <= low <= high < data.levels
        expected = f"4 samples of levels from 0 to {_LEVELS - 1}"
    require(
        right and drawn.shape == (4, *shape),
        {"shape of the data": text(shape)},
        {"samples from": low, "to": high, "dtype": drawn.dtype.name, "shape": text(drawn.shape)},
        expected,
    )
