"""Presets: a named choice of every part, and how parts are put together.

A preset is data: for each kind the name of a registered part, with options where they differ from its
defaults, and the settings of the training loop. Any choice can be replaced, in Python and on the
command line alike.
"""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jax

from diffkit.decoders import AbstractDecoder
from diffkit.denoiser import Denoiser
from diffkit.model import DiffusionModel
from diffkit.networks import AbstractNetwork
from diffkit.parameterizations import AbstractParameterization
from diffkit.processes import AbstractProcess
from diffkit.registry import get
from diffkit.schedules import AbstractSchedule
from diffkit.typing import PRNGKey

MODEL_KINDS: Final = ("schedule", "process", "parameterization", "decoder", "network")
"""The kinds that a model is made of."""

TRAINING_KINDS: Final = ("weighting", "time_sampler", "sampler", "grid")
"""The kinds that a preset chooses besides, for training and for sampling."""

CONTEXT: Final = ("shape", "levels", "logsnr_range", "key")
"""What the constructor of a part may ask for by naming it as a parameter.

`shape`: one example's; `levels`: how many values a dimension takes; `logsnr_range`: the schedule's
endpoints (max, min) before training; `key`: a key of the part's own. None of these is an option.
"""

Choice = str | tuple[str, Mapping[str, Any]]
"""A registered name, or a name with options."""


@dataclass(frozen=True)
class Preset:
    """A named choice of every part.

    **Arguments:** one choice for each kind: a name, or `(name, options)`; `train`: settings of
    `diffkit.TrainConfig` that differ from its defaults.
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
    train: Mapping[str, Any] = field(default_factory=dict)

    def choice(self, kind: str) -> tuple[str, Mapping[str, Any]]:
        """Name and options of the choice for a kind."""
        chosen: Choice = getattr(self, kind)
        return (chosen, {}) if isinstance(chosen, str) else chosen


def complete(part: Any, context: Mapping[str, Any]) -> Any:
    """Make a part: call it with those entries of `context` that its signature names.

    **Arguments:** `part`: a class, a function, a `functools.partial` of one with options; anything that
    is not callable as such a constructor, that is an instance of a part, is returned as it is.
    """
    is_partial = isinstance(part, functools.partial)
    if not (inspect.isclass(part) or inspect.isfunction(part) or is_partial):
        return part
    parameters = inspect.signature(part).parameters
    given = part.keywords if is_partial else {}
    return part(**{k: v for k, v in context.items() if k in parameters and k not in given})


def build_model(
    parts: Mapping[str, Any], *, shape: tuple[int, ...], levels: int | None, key: PRNGKey
) -> DiffusionModel:
    """Put a model together from one part for each of `MODEL_KINDS`.

    **Arguments:** `parts`: by kind, a constructor (see `complete`) or an instance; `shape`: of one
    example; `levels`: of the data, `None` for continuous data; `key`: for the initial parameters.

    **Raises:** `ValueError` if the decoder and the data do not go together; `TypeError` if a part is
    not of its kind.
    """
    bases = {
        "schedule": AbstractSchedule,
        "process": AbstractProcess,
        "parameterization": AbstractParameterization,
        "decoder": AbstractDecoder,
        "network": AbstractNetwork,
    }
    context: dict[str, Any] = {"shape": shape}
    if levels is not None:
        context["levels"] = levels
    made: dict[str, Any] = {}
    for index, kind in enumerate(MODEL_KINDS):
        context["key"] = jax.random.fold_in(key, index)
        made[kind] = complete(parts[kind], context)
        if not isinstance(made[kind], bases[kind]):
            raise TypeError(
                f"{kind} must be a diffkit.{bases[kind].__name__}, got {type(made[kind]).__name__}."
            )
        if kind == "schedule":
            maximum, minimum = made[kind].endpoints
            context["logsnr_range"] = (float(maximum), float(minimum))
        if kind == "decoder" and made[kind].levels != levels:
            raise ValueError(
                f"decoder {type(made[kind]).__name__} is for data with levels={made[kind].levels}, "
                f"but the data have levels={levels}. Choose decoder=discretized for integer levels "
                "and decoder=gaussian for continuous data (levels=None)."
            )
    denoiser = Denoiser(made["network"], made["parameterization"], made["process"])
    return DiffusionModel(denoiser, made["schedule"], made["decoder"], shape)


def resolve(kind: str, choice: Any) -> Any:
    """A choice as something that `complete` takes: a name is looked up, anything else is kept."""
    if isinstance(choice, str):
        return get(kind, choice)
    if isinstance(choice, tuple):
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
    return build_model(parts, shape=shape, levels=levels, key=key)
