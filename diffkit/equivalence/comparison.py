"""Two compositions side by side: whether model and objective are the same, and what differs."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit import registry
from diffkit.denoiser import underlying
from diffkit.files import read_yaml
from diffkit.grids import AbstractGrid
from diffkit.model import DiffusionModel
from diffkit.networks import MLP
from diffkit.parameterizations import AbstractParameterization
from diffkit.presets import MODEL_KINDS, TRAINING_KINDS, DataSpec, Preset, assemble, resolve
from diffkit.samplers import AbstractSampler
from diffkit.schedules import AbstractSchedule
from diffkit.time_samplers import AbstractTimeSampler
from diffkit.weightings import TOLERANCE, AbstractWeighting, Implied, Verdict, classify, tabulate

_POINTS = 1001

Agreement = Literal["same", "same within the common range", "different"]


@dataclass(frozen=True)
class Composition:
    """A choice of every part, made and ready to compare.

    **Attributes:** `name`: of the preset, or the path of the run; `model`: schedule, process and decoder,
    with the run's network, or a stand-in for a preset; `parameterization`, `weighting`, `time_sampler`,
    `sampler`, `grid`, `optimiser`: the parts; `data`: the shape of an example and the length of a
    condition, 0 for none, or `None` for a preset, which fits any; `data_std`: the standard deviation of the
    data, for scaling the network's input; `steps`: T of the loss, `None` for continuous time; `labels`: by
    kind, the registered name with the options that are not defaults.
    """

    name: str
    model: DiffusionModel
    parameterization: AbstractParameterization
    weighting: AbstractWeighting
    time_sampler: AbstractTimeSampler
    sampler: AbstractSampler
    grid: AbstractGrid
    optimiser: Any
    data: tuple[tuple[int, ...], int] | None
    data_std: float
    steps: int | None
    labels: Mapping[str, str]

    @property
    def range(self) -> tuple[float, float]:
        """The endpoints of `logsnr`, (max, min)."""
        maximum, minimum = self.model.schedule.endpoints
        return float(maximum), float(minimum)

    @property
    def verdict(self) -> Verdict:
        """What its loss bounds, over the range of its training."""
        if isinstance(self.weighting, Implied):
            return self.weighting.verdict
        return classify(self.weighting, self.range)


if TYPE_CHECKING:
    from diffkit.runs import Run

    Composable = str | Path | Preset | Mapping[str, Any] | Run | Composition
else:
    # Runs need the packages of training, so import them only for one.
    Composable = object


def _label(kind: str, chosen: Any) -> str:
    """The registered name of a constructor or an instance, with the options that are not defaults."""
    part, options = chosen, {}
    if isinstance(chosen, functools.partial):
        part, options = chosen.func, chosen.keywords
    name = registry.name_of(kind, part) or getattr(part, "__name__", type(part).__name__)
    known = inspect.signature(part).parameters if options else {}
    shown = [
        f"{option}={value:.4g}" if isinstance(value, float) else f"{option}={value}"
        for option, value in options.items()
        if value is not None and (option not in known or known[option].default != value)
    ]
    return f"{name}({', '.join(shown)})" if shown else name


def _composed(name: str, preset: Preset, data: DataSpec | None, levels: int | None) -> Composition:
    # Networks are not compared, and a large one takes long to make.
    small = preset.replace(network=functools.partial(MLP, width=4, depth=1))
    made = assemble(small, data or DataSpec((2,), levels), key=jax.random.key(0))
    denoiser: Any = made.model.denoiser
    kinds = [kind for kind in (*MODEL_KINDS, *TRAINING_KINDS) if kind != "network"]
    return Composition(
        name,
        made.model,
        denoiser.parameterization,
        made.weighting,
        made.time_sampler,
        made.sampler,
        made.grid,
        made.optimiser,
        data=(data.shape, data.condition_size) if data else None,
        data_std=preset.data_std,
        steps=preset.train.get("loss_steps"),
        labels={kind: _label(kind, resolve(kind, getattr(preset, kind))) for kind in kinds},
    )


def composition(what: Composable, *, levels: int = 256) -> Composition:
    """A preset, a configuration or a run, ready to compare.

    **Arguments:** `what`: the name of a preset, a `diffkit.Preset`, the directory of a run, a
    `diffkit.Run`, or a configuration, as a mapping or as a YAML file; `levels`: of the data for a preset
    with a discrete decoder.

    **Returns:** a `Composition`.

    **Raises:** `diffkit.registry.UnknownPartError` for a name that is neither a preset nor a path;
    `ValueError` for a run without a configuration, whose loss is not known, or for an incomplete
    configuration; `TypeError` for anything else.
    """
    if isinstance(what, Composition):
        return what
    if isinstance(what, Mapping):
        return _from_config("configuration", what)
    known, name = registry.available("preset"), "preset"
    if isinstance(what, str) and what in known:
        name, what = what, registry.get("preset", what)
    elif isinstance(what, Preset):
        name = next((n for n in known if registry.get("preset", n) is what), name)
    if isinstance(what, Preset):
        decoder = registry.complete(resolve("decoder", what.decoder), {"levels": levels})
        return _composed(name, what, None, decoder.levels)
    # No registered name has such a sign: a path, or RUN@STEP.
    if isinstance(what, str | Path) and not ({"/", "@"} & {*str(what)} or Path(what).exists()):
        registry.get("preset", str(what))  # says what there is
    from diffkit.runs import Run, load_run

    if isinstance(what, str | Path):
        path = Path(what)
        if path.is_file():
            return _from_config(str(path), read_yaml(path))
        what = load_run(path)
    if not isinstance(what, Run):
        raise TypeError(
            "what is compared must be the name of a preset, a diffkit.Preset, a run or its directory, or "
            f"a configuration, got {type(what).__name__}."
        )
    if not what.config:
        raise ValueError(
            f"run {what.path} has no config.yaml, so its loss is not known: compare presets or "
            "configurations."
        )
    # With the endpoints that it learned.
    return dataclasses.replace(_from_config(str(what.path), what.config), model=what.model)


def _from_config(name: str, config: Any) -> Composition:
    from diffkit.configs import checked, make, preset_of, spec_of
    from diffkit.runs import transported

    config = checked(config, f"{name}: ", building=True)
    preset, data = preset_of(config), spec_of(config)
    made = _composed(name, preset, data, data.levels)
    moved = (config.get("transport") or {}).items()
    labels = {**made.labels} | {kind: _label(kind, make(node)) for kind, node in moved if node}
    return dataclasses.replace(made, model=transported(made.model, config), labels=labels)


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    **Attributes:** `what` is compared; `a` and `b`, the values of the two; `same`, whether they agree;
    `means`, what a difference changes.
    """

    what: str
    a: str
    b: str
    same: bool
    means: str


@dataclass(frozen=True)
class Comparison:
    """Two compositions side by side; see `compare`.

    **Attributes:** `a`, `b`: the two; `rows`: their parts, kind by kind; `model`, `objective`: `"same"`,
    `"different"`, or `"same within the common range"` of `logsnr`; `logsnr`: increasing values over the
    common range where neither w is zero, may be empty; `log_ratio`: log of w of a over w of b there, less
    its mean, as weightings are compared up to a factor; `reasons`: for the two verdicts, in sentences.
    """

    a: Composition
    b: Composition
    rows: tuple[Row, ...]
    model: Agreement
    objective: Agreement
    logsnr: Float[np.ndarray, " points"]
    log_ratio: Float[np.ndarray, " points"]
    reasons: tuple[str, ...]

    @property
    def same_model(self) -> bool:
        """Whether a trained network of one is a model of the other, with the same bound and samples."""
        return self.model == "same"

    @property
    def same_objective(self) -> bool:
        """Whether the losses agree up to a constant factor, for every network."""
        return self.objective == "same"

    @property
    def ratio(self) -> tuple[float, float]:
        """The least and largest ratio of the two weightings over the common range, about 1."""
        if not self.log_ratio.size:
            return math.nan, math.nan
        return math.exp(self.log_ratio.min()), math.exp(self.log_ratio.max())

    def markdown(self) -> str:
        """The comparison as a Markdown table, with its verdicts above."""
        lines = [
            f"* generative model: {self.model}",
            f"* objective: {self.objective}",
            *(f"* {reason}" for reason in self.reasons),
            f"\n| | `{self.a.name}` | `{self.b.name}` | | what a difference changes |",
            "|---|---|---|---|---|",
            *(
                f"| {row.what} | {row.a} | {row.b} | {'same' if row.same else 'differs'} | {row.means} |"
                for row in self.rows
            ),
        ]
        return "\n".join(lines) + "\n"


def common_range(*schedules: AbstractSchedule) -> tuple[float, float]:
    """The common range of `logsnr` of these schedules, (max, min).

    **Raises:** `ValueError` if there is none.
    """
    ends = [tuple(map(float, schedule.endpoints)) for schedule in schedules]
    maximum, minimum = min(end[0] for end in ends), max(end[1] for end in ends)
    if not maximum > minimum:
        raise ValueError(f"schedules must have a range of logsnr in common, their endpoints are {ends}.")
    return maximum, minimum


def compare(a: Composable, b: Composable, *, levels: int | None = None) -> Comparison:
    """Whether two compositions are one generative model and one objective, and what differs.

    In continuous time, a generative model is a range of `logsnr` and a decoder: the process rescales
    latents, the schedule changes time, and the target scales the errors of the network; none of them
    changes the bound or the samples of the network's function (VDM section 5.1). An objective is a
    weighting over that range, up to a constant factor (Kingma and Gao 2023, arXiv 2303.00848). This
    compares descriptions, not networks or their parameters.

    **Arguments:** `a`, `b`: names of presets, `diffkit.Preset`s, runs or their directories, or
    configurations; `levels`: of the data for presets, by default those of the other's run, or 256.

    **Returns:** a `Comparison`.

    **Raises:** as `composition`.

    ```python
    comparison = dk.equivalence.compare("vdm", "edm")
    print(comparison.markdown())
    assert not comparison.same_objective
    ```
    """
    one, other = _pair(a, b, levels)
    same_range = _close(one.range, other.range)
    common, logsnr, log_ratio, same_weighting = _weighed(one, other, same_range)
    # Process and target are functions of logsnr over any range.
    rows = _rows(one, other, same_range, same_weighting, jnp.linspace(*(common or one.range), 101))
    same = {row.what: row.same for row in rows}

    reasons = []
    if common is None:
        reasons.append("The two have no noise level in common.")
    elif not same_range:
        reasons.append(
            "The ranges of logsnr differ: what follows holds from {:.4g} to {:.4g}.".format(*common)
        )
    if not same["data"]:
        reasons.append("They are models of data of other shapes or conditions.")
    if not same["decoder"]:
        reasons.append("The decoders read the last latent differently.")
    if not same["variances"]:
        reasons.append(
            "One predicts the variances of its reverse steps: in discrete time another model, with a "
            "term of its own in the loss."
        )
    if common is not None and not log_ratio.size:
        reasons.append("There is no noise level that both losses weigh.")
    elif log_ratio.size and not same_weighting:
        low, high = math.exp(log_ratio.min()), math.exp(log_ratio.max())
        reasons.append(
            f"The ratio of the weightings runs from {low:.2g} to {high:.2g} over the common range (about "
            f"its geometric mean): {one.name} is {one.verdict}, {other.name} {other.verdict}."
        )
    if not same["steps of the loss"]:
        reasons.append("The losses have other steps in time.")

    def agreement(*within: bool) -> Agreement:
        if not all(within):
            return "different"
        return "same" if same_range else "same within the common range"

    both = same["data"] and same["variances"]
    model = agreement(both, same["decoder"], common is not None)
    objective = agreement(both, same_weighting, same["steps of the loss"])
    return Comparison(one, other, rows, model, objective, logsnr, log_ratio, tuple(reasons))


def _pair(a: Composable, b: Composable, levels: int | None) -> tuple[Composition, Composition]:
    """Both, a preset with the number of levels of the other's data."""
    given = {} if levels is None else {"levels": levels}
    one, other = composition(a, **given), composition(b, **given)
    if levels is None and one.data is None and other.data is not None:
        one = composition(a, levels=other.model.decoder.levels or 256)
    elif levels is None and other.data is None and one.data is not None:
        other = composition(b, levels=one.model.decoder.levels or 256)
    return one, other


def _weighed(
    one: Composition, other: Composition, same_range: bool
) -> tuple[tuple[float, float] | None, Float[np.ndarray, " points"], Float[np.ndarray, " points"], bool]:
    """The common range, logsnr and log ratio of the weightings over it, and whether it is constant."""
    try:
        common = one.range if same_range else common_range(one.model.schedule, other.model.schedule)
    except ValueError:
        return None, np.zeros(0), np.zeros(0), False
    # Without the very ends, as in `classify`.
    logsnr, log_a = (column[1:-1] for column in tabulate(one.weighting, common, _POINTS))
    log_b = tabulate(other.weighting, common, _POINTS)[1][1:-1]
    positive = np.isfinite(log_a) & np.isfinite(log_b)
    same_support = bool(np.all(np.isfinite(log_a) == np.isfinite(log_b)))
    logsnr, log_ratio = logsnr[positive], log_a[positive] - log_b[positive]
    if not log_ratio.size:
        return common, logsnr, log_ratio, False
    log_ratio = log_ratio - log_ratio.mean()
    return common, logsnr, log_ratio, same_support and bool(np.ptp(log_ratio) <= 2 * TOLERANCE)


def _rows(
    one: Composition,
    other: Composition,
    same_range: bool,
    same_weighting: bool,
    logsnr: Float[Array, " points"],
) -> tuple[Row, ...]:
    same_curve = _same_curve(one, other)
    any_data = one.data is None or other.data is None
    # In discrete time the noise levels are part of the loss.
    same_time = one.steps == other.steps and (one.steps is None or same_curve)

    def equal(get: Callable[[Composition], Any]) -> bool:
        return _same(get(one), get(other))

    def row(what: str, show: Callable[[Composition], str], same: bool, means: str) -> Row:
        return Row(what, show(one), show(other), same, means)

    def chosen(kind: str, same: bool, means: str) -> Row:
        return row(kind, lambda made: f"`{made.labels[kind]}`", same, means)

    return (
        row("data", _show_data, any_data or one.data == other.data, "the model"),
        row("logsnr", lambda made: "{:.4g} to {:.4g}".format(*made.range), same_range, "the model"),
        row("decoder", _show_decoder, equal(lambda made: made.model.decoder), "the model"),
        row("variances", _show_variances, equal(_variances), "the model in discrete time"),
        chosen("schedule", same_range and same_curve, "time alone, and so the variance of the estimate"),
        chosen("process", _same_process(one, other, logsnr), "the scale of the latent alone"),
        chosen(
            "parameterization",
            _same_target(one, other, logsnr),
            "how errors of the network count, not the model",
        ),
        row(
            "input for data of std",
            lambda made: f"{made.data_std:g}",
            one.data_std == other.data_std,
            "what the network sees, not the model",
        ),
        chosen("weighting", same_weighting, "the objective"),
        row("its loss is", lambda made: str(made.verdict), same_weighting, "the objective"),
        row("steps of the loss", _show_time, same_time, "the objective"),
        chosen(
            "time_sampler",
            equal(lambda made: made.time_sampler),
            "the variance of the estimate alone",
        ),
        chosen("optimiser", equal(lambda made: made.optimiser), "how training finds the weights alone"),
        chosen("sampler", equal(lambda made: made.sampler), "the path of samples, not the model"),
        chosen("grid", equal(lambda made: made.grid), "where the sampler places its steps"),
    )


def _show_data(made: Composition) -> str:
    shape, condition_size = made.data or ("any", 0)
    return f"{shape}, conditions of {condition_size}" if condition_size else f"{shape}"


def _show_decoder(made: Composition) -> str:
    levels = made.model.decoder.levels
    return f"`{made.labels['decoder']}`" + ("" if levels is None else f", {levels} levels")


def _show_variances(made: Composition) -> str:
    return "of the posterior" if _variances(made) is None else "predicted"


def _show_time(made: Composition) -> str:
    return "continuous" if made.steps is None else f"T = {made.steps}"


def _close(a: Any, b: Any) -> bool:
    return np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(eqx.tree_equal(a, b))


def _variances(made: Composition) -> AbstractParameterization | None:
    part = made.parameterization
    return part if part.outputs > 1 else None


def _same_curve(a: Composition, b: Composition) -> bool:
    t = jnp.linspace(0.0, 1.0, 101)
    return _close(jax.vmap(a.model.schedule)(t), jax.vmap(b.model.schedule)(t))


def _same_process(a: Composition, b: Composition, logsnr: Float[Array, " points"]) -> bool:
    alphas = (jax.vmap(made.model.process.at)(logsnr).alpha for made in (a, b))
    return _close(*alphas)


def _same_target(a: Composition, b: Composition, logsnr: Float[Array, " points"]) -> bool:
    """Whether the rows are proportional: a constant factor or a sign does not matter to a network."""

    def rows(made: Composition) -> Float[Array, "row points"]:
        # A target belongs to the process under which the network was trained.
        levels = jax.vmap(underlying(made.model.denoiser).process.at)(logsnr)
        return jnp.stack(jax.vmap(made.parameterization.coefficients)(levels))

    one, other = rows(a), rows(b)
    factor = jnp.sum(one * other) / jnp.sum(other * other)
    return _close(one, factor * other)
