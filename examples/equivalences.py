"""Two published losses with one objective, and a third with another, on the digits.

    python examples/equivalences.py                 # trains six small models, writes a figure
    python examples/equivalences.py --steps 300     # a short look

`v_cosine` predicts v under the cosine schedule (Salimans and Ho 2022, arXiv 2202.00512), `flow` the
velocity along the straight line (Lipman et al. 2023, arXiv 2210.02747). Path, time and target are not
the same, and each paper minimises the plain squared error of its own target over its own uniform
times. Yet both losses weigh log SNR by exp(-logsnr / 2), so they are one objective (Kingma and Gao
2023, arXiv 2303.00848). `bound` is the bound of VDM (arXiv 2107.00630), for a network that predicts v
like the first: another objective.

It shows the verdict of `diffkit.equivalence.compare`; the three published losses of one network,
carried from paper to paper (the ratio of the first two is known in advance, that of the third depends
on the network); and the losses of networks trained with each of the three.

One objective has one minimum, but the target decides how a network gets there, which dominates early
on: after 100 steps the shared loss differs by 8 %, after 300 by less than 1 %. Under the weighting of
the bound, which emphasises levels that their own loss hardly sees, they are 5 % apart after 300 steps
and agree after 1,000 too.
"""

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import diffkit as dk
from diffkit.typing import PRNGKey, Scalar

# The endpoints are the defaults, and so the same: one range of logsnr.
PRESETS = {
    "v_cosine": dk.Preset(schedule="cosine", parameterization="v", weighting="simple"),
    "flow": dk.Preset(
        schedule="straight_line",
        process="straight",
        parameterization="velocity",
        weighting="simple",
    ),
    "bound": dk.Preset(schedule="linear_logsnr", parameterization="v", weighting="elbo"),
}
FIRST, SAME, OTHER = PRESETS
# Whose squared error the papers minimise, over uniform times.
TARGETS = {
    FIRST: dk.V(),
    SAME: dk.get("parameterization", "velocity")(),
    OTHER: dk.Epsilon(),
}
STYLES = {FIRST: ("-", "tab:blue"), SAME: ("--", "tab:orange"), OTHER: ("-", "tab:green")}

Models = Mapping[str, dk.DiffusionModel]


def untrained(name: str, data: dk.data.AbstractDataset, width: int, seed: int) -> dk.DiffusionModel:
    """A model of a preset with a small VDM U-Net."""
    options = {"width": width, "depth": 1, "dropout": 0.0, "groups": max(width // 8, 1)}
    preset = PRESETS[name].replace(network=("vdm_unet", options))
    return preset.model(data, key=jax.random.key(seed))


def weighting_of(name: str, model: dk.DiffusionModel) -> dk.AbstractWeighting:
    """The weighting of a preset."""
    return dk.part("weighting", PRESETS[name].weighting, model=model)


def canonical_times(
    weighting: dk.AbstractWeighting, model: dk.DiffusionModel
) -> dk.equivalence.CanonicalTimes:
    """The times under which a weighted loss is the plain average of the error of v.

    One weighting is one distribution of `logsnr` under every schedule; with one key, one draw.
    """
    return dk.equivalence.canonical_time_sampling(weighting, model.schedule, parameterization=dk.V())


def train(
    name: str, model: dk.DiffusionModel, data: dk.data.AbstractDataset, *, steps: int, seed: int
) -> dk.DiffusionModel:
    """Train with a preset's weighting.

    `v_cosine` and `flow` with one seed see the same images at the same noise levels with the same noise.
    """
    weighting = weighting_of(name, model)
    config = dk.TrainConfig(
        steps=steps,
        batch_size=64,
        learning_rate=4e-3,
        clip=0.0,  # to clip at a norm would be to heed the constant factor of a loss
        ema=0.995,
        seed=seed,
        steps_per_dispatch=50,
    )
    times = canonical_times(weighting, model)
    return dk.fit(model, data, config, weighting=weighting, time_sampler=times, progress=False).model


@eqx.filter_jit
def errors(
    denoiser: dk.AbstractDenoiser,
    target: dk.AbstractParameterization,
    x: Float[Array, "batch *shape"],
    logsnr: Float[Array, " batch"],
    key: PRNGKey,
) -> Float[Array, " batch"]:
    """The squared error of a target, as a mean over the dimensions of each example."""

    def error(x: Float[Array, "*shape"], eps: Float[Array, "*shape"], logsnr: Scalar) -> Scalar:
        level = denoiser.process.at(logsnr)
        z = denoiser.process.perturb(x, eps, level)
        predicted = denoiser(z, logsnr).as_target(target)
        return jnp.mean(jnp.square(predicted - target.target(x, eps, level)))

    return jax.vmap(error)(x, jax.random.normal(key, x.shape), logsnr)


def errors_over_times(
    model: dk.DiffusionModel,
    target: dk.AbstractParameterization,
    times: dk.AbstractTimeSampler,
    x: Float[Array, "batch *shape"],
    passes: int,
) -> Float[np.ndarray, "{passes} batch"]:
    """`errors` at times drawn anew in each pass; the draws are the same in every call."""
    rows = []
    for key in jax.random.split(jax.random.key(0), passes):
        time_key, eps_key = jax.random.split(key)
        t, _ = times(time_key, len(x))
        logsnr = jax.vmap(model.schedule)(t)
        rows.append(np.asarray(errors(model.denoiser, target, x, logsnr, eps_key)))
    return np.stack(rows)


def ratio_range(papers: Models, name: str) -> tuple[float, float]:
    """The bounds, for any network, on the published loss of a preset over that of the first.

    A published loss is the average of its implied weighting times the same error: its ratio to another
    lies between the least and the largest ratio of the two weightings.
    """
    maximum, minimum = map(float, papers[FIRST].schedule.endpoints)
    # Without the very ends, at which times round.
    logsnr = jnp.linspace(minimum, maximum, 403)[1:-1]
    first, other = (
        jax.vmap(
            dk.weightings.implied_weighting(
                parameterization=TARGETS[each],
                schedule=papers[each].schedule,
                process=papers[each].process,
            )
        )(logsnr)
        for each in (FIRST, name)
    )
    return float((other / first).min()), float((other / first).max())


def show_verdicts(levels: int | None) -> None:
    """The verdict of `compare` on the presets."""
    for name in (SAME, OTHER):
        comparison = dk.equivalence.compare(PRESETS[FIRST], PRESETS[name], levels=levels or 256)
        low, high = comparison.ratio
        print(f"{FIRST} and {name}: generative model {comparison.model}, ", end="")
        print(f"objective {comparison.objective}")
        print(f"    ratio of the weightings, about its mean: {low:.3f} to {high:.3f}")
        differing = ", ".join(row.what for row in comparison.rows if not row.same)
        print(f"    what differs: {differing}")


def show_published(papers: Models, networks: Models, x: Float[Array, "batch *shape"], passes: int) -> None:
    """The published losses of networks, carried to the process and the schedule of each paper."""
    print("\nThe published losses: the mean squared error of each paper's target over its times")
    columns = (f"{SAME} / {FIRST}", f"{OTHER} / {FIRST}")
    print(f"{'network':20s}", *(f"{name:>9s}" for name in PRESETS), *(f"{c:>19s}" for c in columns))
    for label, network in networks.items():
        # One number for each pass.
        losses = {}
        for name, paper in papers.items():
            model = dk.equivalence.transport(network, to=paper.process, schedule=paper.schedule)
            drawn = errors_over_times(model, TARGETS[name], dk.LowDiscrepancy(), x, passes)
            losses[name] = drawn.mean(axis=1)
        first = losses[FIRST]
        cells = [f"{loss.mean():9.4f}" for loss in losses.values()]
        for name in (SAME, OTHER):
            ratio = losses[name].mean() / first.mean()
            # Of a ratio of two means over the same passes.
            rest = (losses[name] - ratio * first).std(ddof=1) / first.mean()
            cells.append(f"{f'{ratio:.4f} +- {rest / math.sqrt(passes):.4f}':>19s}")
        print(f"{label:20s}", *cells)
    limits = (ratio_range(papers, name) for name in (SAME, OTHER))
    cells = [f"{f'{low:.4f} to {high:.4f}':>19s}" for low, high in limits]
    print(f"{'any, by theory':20s}", " " * 29, *cells)


def show_trained(
    papers: Models,
    models: Mapping[tuple[str, int], dk.DiffusionModel],
    x: Float[Array, "batch *shape"],
    passes: int,
) -> None:
    """The weighted test losses of all models under both weightings, all with the same draws."""
    table, summary = [], []
    for judge in (FIRST, OTHER):
        weighting = weighting_of(judge, papers[judge])
        losses = {}
        for which, model in models.items():
            times = canonical_times(weighting, model)
            drawn = errors_over_times(model, dk.V(), times, x, passes)
            losses[which] = times.scale * drawn.mean(axis=0)
        means = {
            name: np.mean([loss for (each, _), loss in losses.items() if each == name], axis=0)
            for name in PRESETS
        }
        base = means[FIRST]
        cells = []
        for loss in losses.values():
            change = 100 * (loss - base) / base.mean()
            error = change.std(ddof=1) / math.sqrt(len(change))
            cells.append(f"{loss.mean():10.4f}{change.mean():+8.2f} % +- {error:.2f} %")
        table.append(cells)
        spread = max(
            np.ptp([loss.mean() for (each, _), loss in losses.items() if each == name]) for name in PRESETS
        )
        relative = [100 * (means[name].mean() / base.mean() - 1) for name in (SAME, OTHER)]
        summary.append([*relative, 100 * spread / base.mean()])

    print("\nThe trained models: test losses in nats per dimension, and against the mean of")
    print(f"{FIRST}, with the standard error of the difference")
    print(f"{'trained as':12s}{'seed':>5s}", *(f"{f'weighting of {n}':>29s}" for n in (FIRST, OTHER)))
    for (name, seed), one, other in zip(models, *table, strict=True):
        print(f"{name:12s}{seed:5d}", f"{one:>29s}", f"{other:>29s}")
    same, different, spread = zip(*summary, strict=True)
    print(f"one objective, {SAME} against {FIRST}: {same[0]:+.2f} % and {same[1]:+.2f} %")
    print(f"another, {OTHER} against {FIRST}: {different[0]:+.2f} % and {different[1]:+.2f} %")
    print(f"one preset, between its seeds: up to {spread[0]:.2f} % and {spread[1]:.2f} %")


def save_figure(
    papers: Models,
    models: Mapping[tuple[str, int], dk.DiffusionModel],
    x: Float[Array, "batch *shape"],
    path: Path,
) -> None:
    """Write the weightings over `logsnr`, and the errors of the trained models there."""
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    maximum, minimum = map(float, papers[FIRST].schedule.endpoints)
    logsnr = jnp.linspace(minimum, maximum, 203)[1:-1]
    for name, model in papers.items():
        log_w = jnp.log(jax.vmap(weighting_of(name, model))(logsnr))
        line, colour = STYLES[name]
        left.plot(logsnr, jnp.exp(log_w - log_w.mean()), line, color=colour, label=name)

    logsnr = jnp.linspace(minimum, maximum, 26)
    curves = {
        which: np.array(
            [
                errors(model.denoiser, dk.V(), x, jnp.full(len(x), value), jax.random.key(0)).mean()
                for value in logsnr
            ]
        )
        for which, model in models.items()
    }
    base = np.mean([curve for (name, _), curve in curves.items() if name == FIRST], axis=0)
    for (name, seed), curve in curves.items():
        line, colour = STYLES[name]
        label = name if seed == 0 else None
        right.plot(logsnr, curve / base, line, color=colour, label=label)
    left.set(xlabel="logsnr", ylabel="w / its geometric mean", yscale="log", title="weighting")
    right.set(xlabel="logsnr", ylabel=f"test error / that of {FIRST}", title="trained models, each seed")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Losses that are one objective, and others")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2, help="models of each preset")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--passes", type=int, default=16, help="draws for each test image")
    parser.add_argument("--out", type=Path, default=Path("runs/equivalences/equivalences.png"))
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.passes < 2:
        parser.error("--seeds must be at least 1, and --passes at least 2")

    data = dk.get("data", "digits")()
    papers = {name: untrained(name, data, arguments.width, seed=0) for name in PRESETS}
    show_verdicts(data.levels)

    began = time.monotonic()
    models = {}
    for seed in range(arguments.seeds):
        for name in PRESETS:
            model = untrained(name, data, arguments.width, seed)
            models[name, seed] = train(name, model, data, steps=arguments.steps, seed=seed)
    print(f"\ntrained {len(models)} models for {arguments.steps} steps", end=" ")
    print(f"in {time.monotonic() - began:.0f} s")

    x = papers[FIRST].encode(data.test.gather(np.arange(len(data.test))))
    networks = {"untrained": papers[FIRST]}
    networks |= {f"trained as {name}": models[name, 0] for name in (FIRST, OTHER)}
    show_published(papers, networks, x, arguments.passes)
    show_trained(papers, models, x, arguments.passes)
    save_figure(papers, models, x, arguments.out)


if __name__ == "__main__":
    main()
