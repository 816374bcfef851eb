"""Presets: a choice of every part, and the one place where parts are put together."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.checks import check_target
from diffkit.data import AbstractDataset, condition_size
from diffkit.decoders import AbstractDecoder
from diffkit.denoiser import Denoiser, underlying
from diffkit.grids import AbstractGrid
from diffkit.model import DiffusionModel, check_network
from diffkit.networks import AbstractNetwork
from diffkit.optimisers import AbstractOptimiser
from diffkit.parameterizations import AbstractParameterization
from diffkit.processes import AbstractProcess
from diffkit.registry import CONTEXT as CONTEXT
from diffkit.registry import Context, did_you_mean, get, is_constructor
from diffkit.registry import complete as complete
from diffkit.samplers import AbstractSampler
from diffkit.schedules import AbstractSchedule
from diffkit.time_samplers import AbstractTimeSampler
from diffkit.typing import PRNGKey, Scalar, ScalarLike
from diffkit.weightings import AbstractWeighting

_IN_A_DENOISER: Final = ("parameterization", "data_std")

MODEL_KINDS: Final = ("schedule", "process", "parameterization", "decoder", "network")
"""The kinds that make up a model."""

TRAINING_KINDS: Final = ("weighting", "time_sampler", "sampler", "grid", "optimiser")
"""The other kinds of a preset, for training and sampling."""

Choice = Any
"""A registered name, a name with options, a constructor, or an instance."""


@dataclass(frozen=True)
class Loss:
    r"""A loss as its paper writes it: $\mathbb E_{t \sim p}[f(\lambda) \lVert$ target error $\rVert^2]$.

    `diffkit.testing` checks a preset's weighting against its stated loss.

    **Arguments:** `times`: the time sampler with density p; `parameterization`: the target, by default the
    preset's own; `factor`: f up to a constant, a function of `logsnr`, by default 1.
    """

    times: Choice = "uniform"
    parameterization: Choice | None = None
    factor: Callable[[ScalarLike], Scalar] | None = None


@dataclass(frozen=True)
class DataSpec:
    """What a model must know about its data.

    **Arguments:** `shape`: of one example, images as (channels, height, width); `levels`: the number of
    values of a dimension, `None` for continuous data; `condition_size`: the length of a condition, 0 for
    none; `statistics`: mean and standard deviation of continuous training data, if known.
    """

    shape: tuple[int, ...]
    levels: int | None = 256
    condition_size: int = 0
    statistics: tuple[float, float] | None = None

    @classmethod
    def of(cls, data: "AbstractDataset | DataSpec") -> "DataSpec":
        """The specification of a dataset."""
        if isinstance(data, DataSpec):
            return data
        return cls(data.shape, data.levels, condition_size(data), data.statistics)


@dataclass(frozen=True)
class Preset:
    """A composition: a choice of every part, and the settings of training.

    Presets are immutable. `replace` returns a changed one, `model` builds the untrained model, and
    `diffkit.fit(preset, data)` trains it with the preset's weighting, times and settings.

    **Arguments:** one choice for each kind: a registered name, `(name, options)`, a class, or an instance;
    `train`: settings of `diffkit.TrainConfig` that differ from its defaults; `sample_steps`: the number of
    steps for sampling; `data_std`: the standard deviation of the encoded data, for scaling the network's
    input (`diffkit.Denoiser`); `loss`: the loss behind the weighting, as the paper states it.
    """

    schedule: Choice = "linear_logsnr"
    process: Choice = "variance_preserving"
    parameterization: Choice = "epsilon"
    decoder: Choice = "discretized"
    network: Choice = "mlp"
    weighting: Choice = "elbo"
    time_sampler: Choice = "low_discrepancy"
    sampler: Choice = "ancestral"
    grid: Choice = "uniform_t"
    optimiser: Choice = "adamw"
    train: Mapping[str, Any] = field(default_factory=dict)
    sample_steps: int = 250
    data_std: float = 1.0
    loss: Loss | None = None

    def choice(self, kind: str) -> tuple[str, Mapping[str, Any]]:
        """The registered name of the choice for a kind, and the options given with it.

        **Raises:** `ValueError` for a part without a name: a class of your own, or an instance.
        """
        chosen = getattr(self, kind)
        if isinstance(chosen, str):
            return chosen, {}
        if not isinstance(chosen, tuple):
            raise ValueError(f"the preset's {kind} must be a registered name, got {chosen!r}.")
        return chosen

    def replace(self, **changes: Any) -> "Preset":
        """This preset with other choices.

        **Arguments:** `changes`: any arguments of `Preset`. `train` is merged: other settings stay. Another
        weighting drops the stated `loss`, which no longer holds.

        **Raises:** `ValueError` for an unknown choice, or an unknown option of a part;
        `diffkit.registry.UnknownPartError`; `TypeError` for a part of another kind.

        ```python
        mine = dk.preset("edm").replace(schedule=dk.Cosine(), train={"steps": 1000})
        ```
        """
        known = [each.name for each in dataclasses.fields(self)]
        for name, value in changes.items():
            if name not in known:
                hint = did_you_mean(name, known)
                if name in ("shape", "levels", "condition_size", "key"):
                    hint = f" {name} is for the model: preset.model(shape=..., key=...)."
                raise ValueError(f"a preset has no {name!r}.{hint} It has: {', '.join(known)}.")
            if name in BASES and not is_constructor(chosen := resolve(name, value)):
                _checked(name, chosen)
        if "train" in changes:
            changes["train"] = {**self.train, **changes["train"]}
        if "weighting" in changes:
            changes.setdefault("loss", None)
        return dataclasses.replace(self, **changes)

    def model(
        self,
        data: AbstractDataset | DataSpec | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        levels: int | None = 256,
        condition_size: int = 0,
        key: PRNGKey,
    ) -> DiffusionModel:
        """The untrained model.

        **Arguments:** `data`: a dataset to build it for; or instead `shape`, `levels` and `condition_size`
        (see `DataSpec`); `key`: for the initial parameters.

        **Raises:** `ValueError` if the decoder does not fit the data, or the target does not determine x or
        eps at an end of the schedule; `TypeError` if a part is not of its kind.

        ```python
        model = dk.preset("vdm", schedule="cosine").model(dk.data.Digits(), key=jax.random.key(0))
        ```
        """
        if (data is None) == (shape is None):
            raise ValueError("a model is built for data or for a shape: give one of data= and shape=.")
        spec = DataSpec(shape or (), levels, condition_size) if data is None else DataSpec.of(data)
        return _build(self, spec, key)

    @classmethod
    def of(cls, model: DiffusionModel, **choices: Any) -> "Preset":
        """The composition of a model assembled by hand.

        **Arguments:** `model`; `choices`: the remaining kinds, as for `Preset`.
        """
        denoiser = underlying(model.denoiser)
        own: dict[str, Any] = {"network": denoiser, "process": denoiser.process}
        if isinstance(denoiser, Denoiser):
            own |= {name: getattr(denoiser, name) for name in ("network", *_IN_A_DENOISER)}
        return cls(schedule=model.schedule, decoder=model.decoder, **own, **choices)


@dataclass(frozen=True)
class Assembly:
    """A preset with its parts made.

    **Attributes:** `preset`; `model`, untrained; and one part for each of `TRAINING_KINDS`.
    """

    preset: Preset
    model: DiffusionModel
    weighting: AbstractWeighting
    time_sampler: AbstractTimeSampler
    sampler: AbstractSampler
    grid: AbstractGrid
    optimiser: Any

    @classmethod
    def around(cls, preset: Preset, model: DiffusionModel) -> "Assembly":
        """A model that exists already, with the other parts of a preset."""
        made = (part(kind, getattr(preset, kind), model=model) for kind in TRAINING_KINDS)
        return cls(preset, model, *made)


def assemble(preset: Preset, data: AbstractDataset | DataSpec, *, key: PRNGKey) -> Assembly:
    """Make every part of a preset for these data. All of diffkit makes models here.

    **Arguments:** `preset`; `data`: a dataset or its specification; `key`: for the initial parameters.

    **Raises:** as `Preset.model`.
    """
    return Assembly.around(preset, _build(preset, DataSpec.of(data), key))


def key_of(seed: int) -> PRNGKey:
    """The key of a seed: `jax.random.key(seed)`, for every 64-bit number."""
    words = jnp.array([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def seed_of(key: PRNGKey) -> int:
    """The seed of a key: `key_of(seed_of(key))` is the key, however it was made.

    **Raises:** `ValueError` unless the key is of JAX's default generator.
    """
    words = np.asarray(jax.random.key_data(key))
    if words.shape != (2,):
        raise ValueError(
            f"key must be one key of threefry2x32, as jax.random.key(0) makes it, got {key.dtype} with "
            f"shape {key.shape}."
        )
    return (int(words[0]) << 32) + int(words[1])


BASES: Final[Mapping[str, type]] = {
    "schedule": AbstractSchedule,
    "process": AbstractProcess,
    "parameterization": AbstractParameterization,
    "decoder": AbstractDecoder,
    "network": AbstractNetwork,
    "weighting": AbstractWeighting,
    "time_sampler": AbstractTimeSampler,
    "sampler": AbstractSampler,
    "grid": AbstractGrid,
    "optimiser": AbstractOptimiser,
}
"""The base class of each kind of a preset."""


def _checked(kind: str, made: Any) -> Any:
    # Any optax gradient transformation is an optimiser too.
    of_optax = kind == "optimiser" and hasattr(made, "init") and hasattr(made, "update")
    if not (isinstance(made, BASES[kind]) or of_optax):
        raise TypeError(f"{kind} must be a diffkit.{BASES[kind].__name__}, got {type(made).__name__}.")
    return made


def make_part(kind: str, choice: Any, context: Context) -> Any:
    """Make a part of a kind from a choice and a context.

    **Raises:** `diffkit.registry.UnknownPartError`; `ValueError` for an unknown option; `TypeError` for a
    part of another kind.
    """
    return _checked(kind, complete(resolve(kind, choice), context))


def _build(preset: Preset, data: DataSpec, key: PRNGKey) -> DiffusionModel:
    context = Context(**vars(data), data_std=preset.data_std)
    made: dict[str, Any] = {}
    for index, kind in enumerate(MODEL_KINDS):
        context = dataclasses.replace(context, key=jax.random.fold_in(key, index))
        made[kind] = make_part(kind, getattr(preset, kind), context)
        if kind == "schedule":
            maximum, minimum = made[kind].endpoints
            context = dataclasses.replace(context, logsnr_range=(float(maximum), float(minimum)))
        if kind == "parameterization":
            assert context.logsnr_range is not None
            check_target(made[kind], made["process"], context.logsnr_range)
            context = dataclasses.replace(context, outputs=made[kind].outputs)
        if kind == "decoder" and made[kind].levels != data.levels:
            raise ValueError(
                f"decoder {type(made[kind]).__name__} is for data with levels={made[kind].levels}, "
                f"but the data have levels={data.levels}. Choose decoder=discretized for integer levels "
                "and decoder=gaussian for continuous data (levels=None)."
            )
    denoiser = Denoiser(
        made["network"], made["parameterization"], made["process"], data_std=preset.data_std
    )
    # Also for learned endpoints, which have not moved yet.
    check_network(denoiser, data.shape, data.levels, made["schedule"].endpoints)
    return DiffusionModel(denoiser, made["schedule"], made["decoder"], data.shape)


def part(kind: str, choice: Any, *, model: DiffusionModel) -> Any:
    """Make a part for a model, such as a weighting or a sampler.

    **Arguments:** `kind`: one of `TRAINING_KINDS`; `choice`: a registered name, `(name, options)`, a
    constructor, or an instance; `model`: before training, because a weighting such as `simple` keeps its
    schedule.

    **Returns:** an instance of the kind.

    **Raises:** `ValueError` for another kind or an unknown option; `diffkit.registry.UnknownPartError`;
    `TypeError` for an instance of the wrong kind.

    ```python
    model = dk.preset("vdm", network="mlp").model(shape=(2,), key=jax.random.key(0))
    weighting = dk.part("weighting", ("min_snr", {"gamma": 5.0}), model=model)
    ```
    """
    if kind not in TRAINING_KINDS:
        raise ValueError(f"kind must be one of {', '.join(TRAINING_KINDS)}, got {kind!r}.")
    maximum, minimum = model.schedule.endpoints
    # A target belongs to the process under which the network was trained.
    denoiser = underlying(model.denoiser)
    context = Context(
        shape=model.shape,
        levels=model.decoder.levels,
        logsnr_range=(float(maximum), float(minimum)),
        schedule=model.schedule,
        process=denoiser.process,
        **{name: getattr(denoiser, name, None) for name in _IN_A_DENOISER},
    )
    return make_part(kind, choice, context)


def resolve(kind: str, choice: Any) -> Any:
    """A choice as an argument of `complete`: look up a name, keep anything else."""
    if isinstance(choice, str):
        return get(kind, choice)
    if type(choice) is tuple:  # and no gradient transformation, which is one by inheritance
        if len(choice) != 2 or not isinstance(choice[1], Mapping):
            raise ValueError(
                f"{kind} must be a name, (name, options) with a mapping of options, a constructor or an "
                f"instance, got {choice!r}."
            )
        name, options = choice
        part = get(kind, name)
        known = inspect.signature(part).parameters
        if unknown := [option for option in options if option not in known]:
            raise ValueError(f"{kind} {name!r} has no option {unknown[0]!r}. It has: {', '.join(known)}.")
        return functools.partial(part, **options)
    return choice


def preset(name: str, **changes: Any) -> Preset:
    """A registered preset, with any of its choices replaced.

    **Arguments:** `name`: for example `"vdm"`; `changes`: as for `Preset.replace`.

    **Returns:** a `Preset`, not yet a model: `diffkit.fit(preset, data)` trains one, `preset.model` builds
    one.

    **Raises:** `diffkit.registry.UnknownPartError`; and as `Preset.replace`.

    ```python
    mine = dk.preset("vdm", schedule="cosine", network=("mlp", {"width": 64}))
    model = mine.model(shape=(2,), levels=256, key=jax.random.key(0))
    ```
    """
    chosen: Preset = get("preset", name)
    return chosen.replace(**changes) if changes else chosen
