"""Presets: a named choice of every part, and how parts are put together.

A preset is data: for each kind the name of a registered part, with options where they differ from its
defaults, and the settings of the training loop. Any choice can be replaced, in Python and on the
command line alike.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jax
import jax.numpy as jnp

from diffkit.decoders import AbstractDecoder
from diffkit.denoiser import Denoiser, underlying
from diffkit.grids import AbstractGrid
from diffkit.model import DiffusionModel
from diffkit.networks import AbstractNetwork
from diffkit.parameterizations import AbstractParameterization, AbstractRangeParameterization
from diffkit.processes import AbstractProcess
from diffkit.registry import CONTEXT as CONTEXT
from diffkit.registry import complete as complete
from diffkit.registry import get
from diffkit.samplers import AbstractSampler
from diffkit.schedules import AbstractSchedule
from diffkit.time_samplers import AbstractTimeSampler
from diffkit.typing import PRNGKey, Scalar, ScalarLike
from diffkit.weightings import AbstractWeighting

MODEL_KINDS: Final = ("schedule", "process", "parameterization", "decoder", "network")
"""The kinds that a model is made of."""

TRAINING_KINDS: Final = ("weighting", "time_sampler", "sampler", "grid")
"""The kinds that a preset chooses besides, for training and for sampling."""

Choice = str | tuple[str, Mapping[str, Any]]
"""A registered name, or a name with options."""


@dataclass(frozen=True)
class Loss:
    r"""A loss as its paper writes it: $\mathbb E_{t \sim p}[f(\lambda) \lVert$ target error $\rVert^2]$.

    A preset that states it has its weighting checked against it (`diffkit.testing`).

    **Arguments:** `times`: the time sampler whose density p is; `parameterization`: whose error it is, by
    default the preset's own; `factor`: f, a function of `logsnr`, by default 1. Up to a constant factor.
    """

    times: Choice = "uniform"
    parameterization: Choice | None = None
    factor: Callable[[ScalarLike], Scalar] | None = None


@dataclass(frozen=True)
class Preset:
    """A named choice of every part.

    **Arguments:** one choice for each kind: a name, or `(name, options)`; `train`: settings of
    `diffkit.TrainConfig` that differ from its defaults; `data_std`: the standard deviation of the
    encoded data that the network's input scaling assumes (`diffkit.Denoiser`); `loss`: the loss that the
    weighting stands for, as the paper states it.
    """

    schedule: Choice = "linear_logsnr"
    process: Choice = "variance_preserving"
    parameterization: Choice = "epsilon"
    weighting: Choice = "elbo"
    time_sampler: Choice = "low_discrepancy"
    sampler: Choice = "ancestral"
    grid: Choice = "uniform_t"
    decoder: Choice = "discretized"
    network: Choice = "mlp"
    optimiser: Choice = "adamw"
    train: Mapping[str, Any] = field(default_factory=dict)
    data_std: float = 1.0
    loss: Loss | None = None

    def choice(self, kind: str) -> tuple[str, Mapping[str, Any]]:
        """Name and options of the choice for a kind."""
        chosen: Choice = getattr(self, kind)
        return (chosen, {}) if isinstance(chosen, str) else chosen


_BASES: Final[Mapping[str, type]] = {
    "schedule": AbstractSchedule,
    "process": AbstractProcess,
    "parameterization": AbstractParameterization,
    "decoder": AbstractDecoder,
    "network": AbstractNetwork,
    "weighting": AbstractWeighting,
    "time_sampler": AbstractTimeSampler,
    "sampler": AbstractSampler,
    "grid": AbstractGrid,
}


def _checked(kind: str, made: Any) -> Any:
    if not isinstance(made, _BASES[kind]):
        raise TypeError(
            f"{kind} must be a diffkit.{_BASES[kind].__name__}, got {type(made).__name__}."
        )
    return made


def build_model(
    parts: Mapping[str, Any],
    *,
    shape: tuple[int, ...],
    levels: int | None,
    key: PRNGKey,
    data_std: float = 1.0,
    condition_size: int = 0,
) -> DiffusionModel:
    """Put a model together from one part for each of `MODEL_KINDS`.

    **Arguments:** `parts`: by kind, a constructor (see `complete`) or an instance; `shape`: of one
    example; `levels`: of the data, `None` for continuous data; `key`: for the initial parameters;
    `data_std`: of the encoded data (`diffkit.Denoiser`); `condition_size`: the length of a condition, 0
    for none.

    **Raises:** `ValueError` if the decoder and the data do not go together, or for a target that means
    nothing at an end of the schedule; `TypeError` if a part is not of its kind.
    """
    context: dict[str, Any] = {
        "shape": shape,
        "data_std": data_std,
        "condition_size": condition_size,
    }
    if levels is not None:
        context["levels"] = levels
    made: dict[str, Any] = {}
    for index, kind in enumerate(MODEL_KINDS):
        context["key"] = jax.random.fold_in(key, index)
        if kind == "network" and isinstance(
            made["parameterization"], AbstractRangeParameterization
        ):
            # Beside the target, the network predicts variances.
            if not shape:
                raise ValueError(
                    f"parameterization {type(made['parameterization']).__name__} doubles the first axis "
                    "of the network, but shape=() has none."
                )
            context["shape"] = (2 * shape[0], *shape[1:])
        made[kind] = _checked(kind, complete(parts[kind], context))
        if kind == "schedule":
            maximum, minimum = made[kind].endpoints
            context["logsnr_range"] = (float(maximum), float(minimum))
        if kind == "parameterization":
            check_target(made[kind], made["process"], context["logsnr_range"])
        if kind == "decoder" and made[kind].levels != levels:
            raise ValueError(
                f"decoder {type(made[kind]).__name__} is for data with levels={made[kind].levels}, "
                f"but the data have levels={levels}. Choose decoder=discretized for integer levels "
                "and decoder=gaussian for continuous data (levels=None)."
            )
    denoiser = Denoiser(
        made["network"], made["parameterization"], made["process"], data_std=data_std
    )
    return DiffusionModel(denoiser, made["schedule"], made["decoder"], shape)


def build_schedule(
    choice: Any, *, shape: tuple[int, ...], levels: int | None, key: PRNGKey
) -> AbstractSchedule:
    """A schedule for data of a shape and a number of levels, made as `build_model` makes it.

    **Arguments:** `choice`: a registered name, `(name, options)`, a constructor or an instance; the rest
    as `build_model`.

    **Raises:** `diffkit.registry.UnknownPartError`; `ValueError` for an option that it does not have;
    `TypeError` if it is no schedule.
    """
    context: dict[str, Any] = {"shape": shape, "key": key}
    if levels is not None:
        context["levels"] = levels
    return _checked("schedule", complete(resolve("schedule", choice), context))


# Networks return numbers of order one. In float32, with its seven digits, an error that counts this many
# times leaves two of them.
_LARGEST_AMPLIFICATION = 1e5


def check_target(
    parameterization: AbstractParameterization,
    process: AbstractProcess,
    logsnr_range: tuple[float, float],
) -> None:
    """Refuse a target from which x cannot be told at the noise end, or eps at the data end.

    **Arguments:** the target; the process that it is meant under; the endpoints of the schedule, (max,
    min).

    **Raises:** `ValueError` that names the end and by how much an error of the network would count there,
    or says that an end is infinite.
    """
    for end, logsnr, wanted in zip(("data", "noise"), logsnr_range, ("eps", "x"), strict=True):
        if not math.isfinite(logsnr):
            raise ValueError(
                f"schedule must have finite endpoints, got logsnr = {logsnr} at the {end} end: with "
                "zero terminal SNR (or no noise at all) the rescaled latent z / alpha and the bound "
                "do not exist. Truncate the schedule, for example with logsnr_min=-20."
            )
        level = process.at(logsnr)
        # d target / d eps at fixed z is det / alpha, and d target / d x is -det / sigma.
        slope = jnp.sqrt(parameterization.error_factor(level))
        amplification = float((1.0 if wanted == "eps" else level.rho) / slope)
        if not amplification <= _LARGEST_AMPLIFICATION:
            raise ValueError(
                f"parameterization {type(parameterization).__name__} says nothing of {wanted} at "
                f"the {end} end of the schedule, logsnr = {logsnr:.4g}: an error of the network would "
                f"count {amplification:.1e} times. Choose parameterization=v, or a schedule that "
                "ends earlier."
            )


def part(kind: str, choice: Any, *, model: DiffusionModel) -> Any:
    """A part that is chosen for a model: a weighting, a time sampler, a sampler or a grid.

    **Arguments:** `kind`: one of `TRAINING_KINDS`; `choice`: a registered name, `(name, options)`, a
    constructor, or an instance; `model`: before training, since a weighting such as `simple` keeps the
    schedule that it is given.

    **Returns:** an instance of the kind.

    **Raises:** `ValueError` for another kind or an option that the part does not have;
    `diffkit.registry.UnknownPartError`; `TypeError` for an instance of the wrong kind.

    ```python
    model = dk.preset("vdm", shape=(2,), network="mlp", key=jax.random.key(0), schedule="cosine")
    weighting = dk.part("weighting", ("min_snr", {"gamma": 5.0}), model=model)
    ```
    """
    if kind not in TRAINING_KINDS:
        raise ValueError(f"kind must be one of {', '.join(TRAINING_KINDS)}, got {kind!r}.")
    maximum, minimum = model.schedule.endpoints
    # A target is meant under the process that the network was trained under.
    denoiser = underlying(model.denoiser)
    context: dict[str, Any] = {
        "shape": model.shape,
        "logsnr_range": (float(maximum), float(minimum)),
        "schedule": model.schedule,
        "process": denoiser.process,
    }
    if model.decoder.levels is not None:
        context["levels"] = model.decoder.levels
    if isinstance(denoiser, Denoiser):
        context |= {
            "parameterization": denoiser.parameterization,
            "data_std": denoiser.data_std,
        }
    return _checked(kind, complete(resolve(kind, choice), context))


def resolve(kind: str, choice: Any) -> Any:
    """A choice as something that `complete` takes: a name is looked up, anything else is kept."""
    if isinstance(choice, str):
        return get(kind, choice)
    if isinstance(choice, tuple):
        if len(choice) != 2 or not isinstance(choice[1], Mapping):
            raise ValueError(
                f"{kind} must be a name, (name, options) with a mapping of options, a constructor or an "
                f"instance, got {choice!r}."
            )
        name, options = choice
        part = get(kind, name)
        known = inspect.signature(part).parameters
        if unknown := [option for option in options if option not in known]:
            raise ValueError(
                f"{kind} {name!r} has no option {unknown[0]!r}. It has: {', '.join(known)}."
            )
        return functools.partial(part, **options)
    return choice


def preset(
    name: str,
    *,
    shape: tuple[int, ...],
    key: PRNGKey,
    levels: int | None = 256,
    condition_size: int = 0,
    schedule: Any = None,
    process: Any = None,
    parameterization: Any = None,
    decoder: Any = None,
    network: Any = None,
) -> DiffusionModel:
    """A model by the name of its preset, with any of its parts replaced.

    **Arguments:**

    - `name`: a registered preset, for example `"vdm"`.
    - `shape`: the shape of one example, images as (channels, height, width).
    - `key`: for the initial parameters.
    - `levels`: how many values a dimension takes; `None` for continuous data.
    - `condition_size`: the length of the vector that the model is conditioned on, 0 for none.
    - `schedule`, `process`, `parameterization`, `decoder`, `network`: what to use instead of the
      preset's choice: a registered name, `(name, options)`, or an instance.

    **Returns:** an untrained `DiffusionModel`.

    **Raises:** `diffkit.registry.UnknownPartError`; `ValueError` for an option that a part does not
    have, or if the decoder and `levels` do not go together; `TypeError` for an instance of the wrong
    kind.

    ```python
    model = dk.preset("vdm", shape=(1, 8, 8), levels=17, key=jax.random.key(0), schedule="cosine")
    ```
    """
    chosen: Preset = get("preset", name)
    replaced = {
        "schedule": schedule,
        "process": process,
        "parameterization": parameterization,
        "decoder": decoder,
        "network": network,
    }
    parts = {
        kind: resolve(kind, getattr(chosen, kind) if other is None else other)
        for kind, other in replaced.items()
    }
    return build_model(
        parts,
        shape=shape,
        levels=levels,
        key=key,
        data_std=chosen.data_std,
        condition_size=condition_size,
    )
