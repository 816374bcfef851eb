"""The laws of presets: their choices work together, and their weighting is their loss."""

import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from diffkit.data import AbstractDataset, ArraySource
from diffkit.presets import (
    MODEL_KINDS,
    TRAINING_KINDS,
    Assembly,
    DataSpec,
    Loss,
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


class _Noise(AbstractDataset):
    """Random examples, enough to train a model on their shape."""

    train: ArraySource
    test: ArraySource
    levels: int | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], levels: int | None):
        generator = np.random.default_rng(0)
        if levels is None:
            examples = generator.standard_normal((64, *shape)).astype(np.float32)
        else:
            examples = generator.integers(0, levels, (64, *shape), dtype=np.uint8)
        self.train, self.test = ArraySource(examples[:48]), ArraySource(examples[48:])
        self.levels, self.shape = levels, shape


def _levels(preset: Preset) -> int | None:
    """The number of levels of the data for the preset's decoder."""
    return complete(resolve("decoder", preset.decoder), {"levels": _LEVELS}).levels


def _small(preset: Preset, shape: tuple[int, ...]) -> Assembly:
    """The preset with a small network."""
    small = preset.replace(network=_NETWORK)
    return assemble(small, DataSpec(shape, _levels(preset)), key=jax.random.key(0))


def _shapes(preset: Preset) -> list[tuple[int, ...]]:
    """The shapes for which the preset's own network can be built."""
    return accepted_shapes(Subject("network", resolve("network", preset.network)))


@law(
    "preset",
    "Every choice is a registered part that has the given options, and train has known settings.",
)
def composes(subject: Subject) -> None:
    preset: Preset = subject.part
    for kind in (*MODEL_KINDS, *TRAINING_KINDS):
        chosen = resolve(kind, getattr(preset, kind))
        options = chosen.keywords if isinstance(chosen, functools.partial) else {}
        for option, value in options.items():
            require(
                is_plain(value),
                given={"choice": kind, "option": option},
                numbers={"value": repr(value)},
                expected="a number, a string, None or a tuple, which a configuration can hold",
            )
    _small(preset, _shapes(preset)[0])
    _train_config(preset)


def _train_config(preset: Preset, **changes: Any) -> Any:
    try:
        from diffkit.training import TrainConfig
    except ImportError as error:
        raise NotApplicable(f"training needs diffkit[train]: {error}") from error
    return TrainConfig(**(dict(preset.train) | changes))


@law(
    "preset",
    "denoising_loss with the preset's weighting is the loss that the preset states (diffkit.Loss), up "
    "to a constant, computed without a weighting: for denoisers that err at one noise level each.",
)
def weighting_is_its_loss(subject: Subject) -> None:
    preset: Preset = subject.part
    with jax.enable_x64(True):
        made = _small(preset, _shapes(preset)[0])
        model, weighting = made.model, made.weighting
        if preset.loss is None:
            if isinstance(weighting, ELBO):
                maximum, minimum = (float(end) for end in model.schedule.endpoints)
                logsnr = np.linspace(minimum, maximum, 101)
                w = mapped(weighting, logsnr)
                require(w == 1, given={"logsnr": logsnr}, numbers={"w": w}, expected="1: the VLB")
                return
            raise NotApplicable("states no loss: give the preset loss=diffkit.Loss(...)")
        loss: Loss = preset.loss
        own = preset.parameterization if loss.parameterization is None else loss.parameterization
        parameterization = complete(resolve("parameterization", own), {"data_std": preset.data_std})
        time_sampler = part("time_sampler", loss.times, model=model)
        factor = "" if loss.factor is None else " times a factor"
        check_weighting(
            weighting,
            parameterization=parameterization,
            schedule=model.schedule,
            process=model.process,
            time_sampler=time_sampler,
            factor=loss.factor,
            described=(
                f"squared error of {_name(own)}{factor}, times {_name(loss.times)}; the weighting is "
                f"{_name(preset.weighting)}"
            ),
        )


def _name(choice: Any) -> str:
    return choice if isinstance(choice, str) else str(choice[0])


@law(
    "preset",
    "With a small network instead of its own, for each shape that its network takes, it trains a few "
    "steps on random data, is saved and loaded, and samples finite values in the range of the data.",
)
def trains_saves_loads_and_samples(subject: Subject) -> None:
    preset: Preset = subject.part
    config = _train_config(
        preset,
        steps=4,
        batch_size=8,
        steps_per_dispatch=2,
        checkpoint_every=0,
        evaluate_every=0,
        warmup=1,
    )
    for shape in _shapes(preset):
        _train(preset, shape, config, {"shape of the data": text(shape)})


def _train(preset: Preset, shape: tuple[int, ...], config: Any, given: Mapping[str, Any]) -> None:
    from diffkit.runs import load_run
    from diffkit.training import fit

    data, small = _Noise(shape, _levels(preset)), preset.replace(network=_NETWORK)
    small = dataclasses.replace(small, train=dataclasses.asdict(config))
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(small, data, directory=folder, progress=False)
        loaded = load_run(folder, like=small).model
    pairs = zip(jax.tree.leaves(fitted.model), jax.tree.leaves(loaded), strict=True)
    if not all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs):
        raise Violation(
            ", ".join(f"{name} = {value}" for name, value in given.items()),
            "the loaded model differs from the one that was trained; expected the same numbers",
        )
    drawn = np.asarray(fitted.sample(4, key=jax.random.key(1), steps=5))
    wrong = not np.isfinite(drawn).all()
    if data.levels is not None:
        wrong = wrong or not np.issubdtype(drawn.dtype, np.integer)
        wrong = wrong or drawn.min() < 0 or drawn.max() >= data.levels
    require(
        not wrong and drawn.shape == (4, *shape),
        given=given,
        numbers={
            "samples from": drawn.min(),
            "to": drawn.max(),
            "dtype": drawn.dtype.name,
            "shape": text(drawn.shape),
        },
        expected=f"4 samples of levels from 0 to {_LEVELS - 1}"
        if data.levels is not None
        else "4 samples of finite values",
    )
