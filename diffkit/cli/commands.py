"""The commands, given their composed configuration as plain containers."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from diffkit.cli.plugins import wide_console
from diffkit.configs import EVALUATION_FILE, VARIANCE_FILE, is_finished, make, write_config
from diffkit.data import AbstractDataset, AbstractSource, baselines, condition_size, conditions_in_turn
from diffkit.equivalence import compare, save_comparison
from diffkit.files import replace_text
from diffkit.guidance import guide
from diffkit.model import DiffusionModel
from diffkit.presets import key_of, part
from diffkit.registry import name_of
from diffkit.runs import assembled, convert_run, load_run, transported
from diffkit.samplers import sample
from diffkit.schedules import ordered_endpoints
from diffkit.time_samplers import AbstractTimeSampler
from diffkit.training import (
    TrainConfig,
    check_data,
    estimator_statistics,
    evaluate,
    save_curves,
    save_samples,
    save_schedule,
    save_statistics,
)
from diffkit.training.figures import has_picture
from diffkit.training.loop import train
from diffkit.training.metrics import as_json
from diffkit.transport import range_losses
from diffkit.typing import PRNGKey
from diffkit.weightings import AbstractWeighting


def _show(
    result: Mapping[str, Any], others: Mapping[str, float], split: str, *, note="", digits: int
) -> None:
    """Print an evaluation, as `Evaluation.as_dict` gives it, and others. One example has no error."""
    table = Table("", "bits/dim", "standard error", title=f"{split}, {result['examples']} examples{note}")
    for name in ("prior", "reconstruction", "diffusion", "total"):
        mean, error = result[f"{name}_bits_per_dim"], result[f"{name}_standard_error"]
        shown = "unknown" if error is None else f"{error:.4f}"
        table.add_row(name, f"{mean:.4f}", shown, end_section=name == "total")
    for name, value in others.items():
        table.add_row(name, f"{value:.4f}", "")
    Console().print(table)
    mean, error = result["total_bits_per_dim"], result["total_standard_error"]
    known = "" if error is None else f" +- {error:.{digits}f}"
    print(f"{split} bits/dim: {mean:.{digits}f}{known}", flush=True)


def _show_trained(result: Mapping[str, Any], data: AbstractDataset) -> None:
    _show(result, baselines(data) if data.levels is not None else {}, "test", digits=2)


def train_command(config: Mapping[str, Any]) -> None:
    """Train, evaluate on the test data, draw samples: `diffkit train`.

    For a complete run of the same configuration, only shows its results.
    """
    path = Path(config["run"])
    choices = {k: v for k, v in config.items() if k not in ("run", "root")}
    settings: TrainConfig = make(config["train"])
    data = make(config["data"])
    if is_finished(path, choices):
        print(f"run: {path}, which is finished; to train it anew remove the directory", flush=True)
        _show_trained(json.loads((path / EVALUATION_FILE).read_text()), data)
        return
    parts = assembled(config, data)
    check_data(parts.model, data)
    write_config(path, choices)
    print(f"run: {path}", flush=True)
    fitted = train(parts, data, settings, directory=path)
    save_curves(fitted.metrics, path / "curves.png")
    save_schedule(fitted.model, path / "schedule.png")
    key = key_of(settings.seed)
    if config["samples"] > 0:
        drawn = fitted.sample(
            config["samples"],
            key=key,
            condition=conditions_in_turn(data, config["samples"]) if condition_size(data) else None,
        )
        _save_samples(drawn, path / "samples.png", data.levels)
    if config["variance"]:
        # Times of one that adapts, as it has become.
        times = fitted.state.time_sampler
        _measure_variance(fitted.model, data.test, path, key, settings, parts.weighting, times)

    def at(steps: int | None) -> dict[str, Any]:
        # The model's: with a `Fit`, None would be the T of training.
        return evaluate(fitted.model, data.test, key=key, steps=steps, passes=config["passes"]).as_dict()

    result = at(settings.loss_steps)
    if config["evaluate_steps"]:
        result["at_steps"] = [at(steps) for steps in config["evaluate_steps"]]
    replace_text(path / EVALUATION_FILE, as_json(result, indent=1) + "\n")
    _show_trained(result, data)


def evaluate_command(config: Mapping[str, Any]) -> None:
    """The likelihood of a run's model on its data: `diffkit evaluate RUN`."""
    run = load_run(config["run"])
    schedule, time_sampler = config.get("schedule"), config.get("time_sampler")
    if time_sampler is not None and not config["variance"]:
        raise ValueError("time_sampler changes nothing but the variance: give variance=true as well.")
    moved = {**run.config, "transport": {"schedule": schedule}} if schedule else {}
    model = transported(run.model, moved)
    ends = (ordered_endpoints(each.schedule) for each in (run.model, model))
    for sentence in range_losses(*ends):
        print(sentence)
    data = run.data()
    source = data.test if config["split"] == "test" else data.train
    result = evaluate(
        model,
        source,
        key=jax.random.key(config["seed"]),
        steps=config["steps"],
        passes=config["passes"],
        batch_size=config["batch_size"],
    )
    time = "continuous time" if result.steps is None else f"T = {result.steps}"
    _show(result.as_dict(), {}, config["split"], note=f", {time}", digits=4)
    trained = run.config["train"]
    own = config["split"] == "test" and not schedule and config["steps"] == trained["loss_steps"]
    record = run.path / EVALUATION_FILE
    if own and run.step >= trained["steps"] and not record.exists():
        # Of a run from Python, which is complete with it.
        replace_text(record, as_json(result.as_dict(), indent=1) + "\n")
    if config["variance"]:
        chosen = time_sampler or run.config["time_sampler"]
        before = assembled(run.config, data)
        _measure_variance(
            model,
            source,
            run.path,
            jax.random.key(config["seed"]),
            make(run.config["train"]),
            before.weighting,
            part("time_sampler", make(chosen), model=model),
            # Those of the run itself keep their place.
            suffix="".join(
                f"_{name_of(kind, make(node).func)}"
                for kind, node in (("schedule", schedule), ("time_sampler", time_sampler))
                if node
            ),
        )


def _measure_variance(
    model: DiffusionModel,
    source: AbstractSource,
    path: Path,
    key: PRNGKey,
    settings: TrainConfig,
    weighting: AbstractWeighting,
    time_sampler: AbstractTimeSampler,
    suffix: str = "",
) -> None:
    """Show how noisy training's estimate of the loss is, and write it into the run."""
    statistics = estimator_statistics(
        model,
        source,
        key=key,
        weighting=weighting,
        time_sampler=time_sampler,
        steps=settings.loss_steps,
        batch_size=settings.batch_size,
    )
    table = Table("", "nats^2", title="diffusion loss, in nats per example")
    table.add_row("variance of one draw", f"{statistics.variance:.4g}")
    table.add_row("the same under the best schedule", f"{statistics.best_variance:.4g}")
    batch = f"variance of a batch of {statistics.batch_size}"
    table.add_row(batch, f"{statistics.batch_variance:.4g}")
    Console().print(table)
    print(f"mean: {statistics.mean:.4f} +- {statistics.mean_error:.4f} nats")
    file = (path / VARIANCE_FILE).with_stem(f"{Path(VARIANCE_FILE).stem}{suffix}")
    record = statistics.as_dict() | {
        "schedule": name_of("schedule", model.schedule),
        "time_sampler": name_of("time_sampler", time_sampler),
        "weighting": name_of("weighting", weighting),
        "steps": settings.loss_steps,
    }
    replace_text(file, as_json(record, indent=1) + "\n")
    print(save_statistics(statistics, file.with_suffix(".png")), flush=True)


def sample_command(config: Mapping[str, Any]) -> None:
    """Samples of a run's model: `diffkit sample RUN`."""
    run = load_run(config["run"])
    # A constructor with its options: that of the run where the command names none.
    made = {kind: make(config.get(kind) or run.config[kind]) for kind in ("sampler", "grid")}
    chosen = {kind: part(kind, choice, model=run.model) for kind, choice in made.items()}
    given, interval = config["condition"], config["guidance_interval"]
    model, condition, suffix = run.model, None, ""
    if given is not None:
        condition = run.condition(given)
        model = guide(model, config["guidance"], None if interval is None else tuple(interval))
        numbers = given if isinstance(given, list) else [given]
        suffix = f"_condition{'_'.join(map(str, numbers))}_guidance{config['guidance']:g}"
    drawn = sample(
        model,
        chosen["sampler"],
        config["count"],
        key=jax.random.key(config["seed"]),
        steps=config["steps"],
        grid=chosen["grid"],
        condition=condition,
    )
    name = f"{name_of('sampler', made['sampler'].func)}_{config['steps']}{suffix}"
    out = Path(config["out"] or run.path / f"samples_{name}.png")
    print(_save_samples(drawn, out, run.model.decoder.levels), flush=True)


def convert_command(config: Mapping[str, Any]) -> None:
    """A run's model under another process or schedule: `diffkit convert RUN OUT`."""
    moved = {kind: config.get(kind) for kind in ("process", "schedule")}
    run, losses = convert_run(Path(config["run"]), Path(config["out"]), **moved)
    for sentence in losses:
        print(sentence)
    print(f"run: {run.path}", flush=True)


def equivalence_command(config: Mapping[str, Any]) -> None:
    """Two presets, configurations or runs side by side: `diffkit equivalence A B`."""
    comparison = compare(config["a"], config["b"], levels=config["levels"])
    names = (comparison.a.name, comparison.b.name)
    table = Table("", *names, "", "what a difference changes", show_lines=False)
    for column, side in zip(table.columns[1:3], ("a", "b"), strict=True):
        # Names and values are broken between words only.
        words = " ".join(getattr(row, side) for row in comparison.rows).split()
        column.min_width = max(map(len, words))
    for row in comparison.rows:
        table.add_row(row.what, row.a, row.b, "same" if row.same else "differs", row.means)
    wide_console().print(table, markup=False)
    for reason in comparison.reasons:
        print(reason)
    print(f"generative model: {comparison.model}")
    print(f"objective: {comparison.objective}")
    stem = "_".join(["equivalence", *(re.sub(r"[^A-Za-z0-9.-]+", "-", n) for n in names)])
    out = Path(config["out"] or f"{stem}.png")
    save_comparison(comparison, out)
    print(out, flush=True)


def report_command(config: Mapping[str, Any]) -> None:
    """A page about a set of runs: `diffkit report RUN ...`."""
    from diffkit.reports import report

    made = report(config["runs"], out=config["out"], baseline=config["baseline"])
    made.show()
    print(made.path, flush=True)


def _save_samples(drawn: jax.Array, path: Path, levels: int | None) -> Path:
    """Write the samples as stored, and a picture if their shape allows one; return the best."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = np.float32 if levels is None else np.min_scalar_type(levels - 1)
    np.save(path.with_suffix(".npy"), np.asarray(jnp.asarray(drawn), dtype=width))
    if has_picture(drawn):
        save_samples(drawn, path, levels=levels)
        return path
    return path.with_suffix(".npy")
