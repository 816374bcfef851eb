"""The commands, given their composed configuration as plain containers."""

import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diffkit.cli.outputs import Output, asked, stem
from diffkit.cli.plugins import wide_console
from diffkit.cli.settings import EvaluateSettings, SampleSettings
from diffkit.configs import EVALUATION_FILE, VARIANCE_FILE, is_finished, make
from diffkit.data import (
    AbstractDataset,
    AbstractSource,
    baselines,
    condition_size,
    conditions_in_turn,
    data_changes,
    encode_condition,
)
from diffkit.equivalence import compare, save_comparison
from diffkit.files import new_file, replace_text
from diffkit.guidance import guide
from diffkit.locks import writing
from diffkit.model import DiffusionModel
from diffkit.presets import key_of, part
from diffkit.registry import available, name_of
from diffkit.runs import Run, assembled, convert_run, load_run, read_evaluation, transported
from diffkit.samplers import sample
from diffkit.schedules import ordered_endpoints
from diffkit.time_samplers import AbstractAdaptiveTimeSampler, AbstractTimeSampler
from diffkit.training import (
    TrainConfig,
    check_data,
    estimator_statistics,
    evaluate,
    replay,
    save_curves,
    save_samples,
    save_schedule,
    save_statistics,
)
from diffkit.training.branches import origin, split_step, start_run
from diffkit.training.figures import has_picture
from diffkit.training.loop import check_start, train
from diffkit.training.metrics import as_json
from diffkit.transport import range_losses
from diffkit.typing import PRNGKey
from diffkit.verification import verify_run
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
    if path.exists() and not path.is_dir():
        raise ValueError(f"run must be a directory, {path} is a file.")
    choices = {k: v for k, v in config.items() if k not in ("run", "root", "from")}
    if config["from"] is not None:
        choices["from"] = origin(config["from"], path)
    settings: TrainConfig = make(config["train"])
    data = make(config["data"])
    if is_finished(path, choices) and (known := _recorded(path)) is not None:
        _say_changes(path, data)
        print(f"run: {path}, which is finished; to train it anew remove the directory", flush=True)
        _show_trained(known, data)
        return
    with writing(path):
        _train(path, config, choices, settings, data)


def _recorded(path: Path) -> Mapping[str, Any] | None:
    """The evaluation of a run; `None` for one of an older version that is not finite."""
    result = read_evaluation(path / EVALUATION_FILE)
    return result if math.isfinite(result["total_bits_per_dim"]) else None


def _check_finite(result: Mapping[str, Any], path: Path) -> None:
    """Refuse an evaluation that is not finite: a `FloatingPointError` with its terms."""
    found = {name: result[f"{name}_bits_per_dim"] for name in ("prior", "reconstruction", "diffusion")}
    if not all(map(math.isfinite, found.values())):
        terms = ", ".join(f"{name} {value:.6g}" for name, value in found.items())
        raise FloatingPointError(f"the likelihood of {path} is not finite ({terms} bits/dim).")


def _train(
    path: Path,
    config: Mapping[str, Any],
    choices: Mapping[str, Any],
    settings: TrainConfig,
    data: AbstractDataset,
) -> None:
    parts = assembled(config, data)
    check_data(parts.model, data)
    check_start(data, settings, path)
    start_run(path, choices, parts, settings)
    print(f"run: {path}", flush=True)
    fitted = train(parts, data, settings, directory=path, command=True)
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
        adapts = isinstance(times, AbstractAdaptiveTimeSampler)
        made = _variance_output(
            path, seed=settings.seed, times="adapted" if adapts else None, checkpoint=settings.steps
        )
        _measure_variance(fitted.model, data.test, made, key, settings, parts.weighting, times)

    def at(steps: int | None) -> dict[str, Any]:
        # The model's: with a `Fit`, None would be the T of training.
        return evaluate(fitted.model, data.test, key=key, steps=steps, passes=config["passes"]).as_dict()

    result = at(settings.loss_steps)
    if config["evaluate_steps"]:
        result["at_steps"] = [at(steps) for steps in config["evaluate_steps"]]
    for each in (result, *result.get("at_steps", ())):
        _check_finite(each, path)
    replace_text(path / EVALUATION_FILE, as_json(result, indent=1) + "\n")
    _show_trained(result, data)


def _say_changes(path: Path, data: AbstractDataset) -> None:
    if changed := data_changes(path, data):
        print(f"diffkit: {changed}", file=sys.stderr)


def _loaded(config: Mapping[str, Any]) -> tuple[Run, AbstractDataset | None]:
    """The run of a command, with its data where they are now; and the data of `data=NAME`, if given."""
    node = config.get("data") or {}
    other = "_target_" in node
    return load_run(config["run"], data=None if other else node), make(node) if other else None


def evaluate_command(config: Mapping[str, Any]) -> None:
    """The likelihood of a run's model on its data: `diffkit evaluate RUN`."""
    run, other = _loaded(config)
    step = split_step(config["run"])[1]
    schedule, time_sampler = config.get("schedule"), config.get("time_sampler")
    if time_sampler is not None and not config["variance"]:
        raise ValueError("time_sampler changes nothing but the variance: give variance=true as well.")
    moved = {**run.config, "transport": {"schedule": schedule}} if schedule else {}
    model = transported(run.model, moved)
    made = chosen = None
    if config["variance"]:
        chosen = part("time_sampler", make(time_sampler or run.config["time_sampler"]), model=model)
        adapts = time_sampler is None and isinstance(chosen, AbstractAdaptiveTimeSampler)
        made = _variance_output(
            run.path,
            schedule=schedule,
            own=run.config,
            time_sampler=time_sampler,
            times="anew" if adapts else None,
            data=config["data"] if other is not None else None,
            split=config["split"],
            seed=config["seed"],
            step=step,
            checkpoint=run.step,
        )
        made.check(overwrite=config["overwrite"])
    ends = (ordered_endpoints(each.schedule) for each in (run.model, model))
    for sentence in range_losses(*ends):
        print(sentence)
    data = run.data() if other is None else other
    if other is None:
        _say_changes(run.path, data)
    source = data.test if config["split"] == "test" else data.train
    result = evaluate(
        model,
        source,
        key=jax.random.key(config["seed"]),
        steps=config["steps"],
        passes=config["passes"],
        batch_size=config["batch_size"],
    )
    _check_finite(result.as_dict(), run.path)
    time = "continuous time" if result.steps is None else f"T = {result.steps}"
    _show(result.as_dict(), {}, config["split"], note=f", {time}", digits=4)
    trained = run.config["train"]
    own = config["split"] == "test" and not schedule and config["steps"] == trained["loss_steps"]
    record = run.path / EVALUATION_FILE
    if own and other is None and run.step >= trained["steps"] and not record.exists():
        # Of a run from Python, which is complete with it.
        replace_text(record, as_json(result.as_dict(), indent=1) + "\n")
    if made is not None and chosen is not None:
        before = assembled(run.config, data)
        key = jax.random.key(config["seed"])
        _measure_variance(model, source, made, key, make(run.config["train"]), before.weighting, chosen)


def _variance_output(
    path: Path,
    *,
    checkpoint: int,
    schedule: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
    time_sampler: Mapping[str, Any] | None = None,
    times: str | None = None,
    data: Mapping[str, Any] | None = None,
    split: str = EvaluateSettings.split,
    seed: int = EvaluateSettings.seed,
    step: int | None = None,
) -> Output:
    """The files of a measurement: those of the run itself have the plain name, which a report reads.

    **Arguments:** `path`: of the run; `checkpoint`: its step; the others as asked, `None` for the run's
    own; `own`: its configuration; `times`: how the state of adaptive times came about, if not by default.
    """
    nodes = {"schedule": schedule, "time_sampler": time_sampler, "data": data}
    name = stem(
        Path(VARIANCE_FILE).stem,
        *("_".join(asked(k, node, own and own[k])) for k, node in nodes.items() if node is not None),
        "anew" if times == "anew" else None,
        split if split != EvaluateSettings.split else None,
        f"at{step}" if step is not None else None,
        # Of training, it is the seed of the run.
        f"seed{seed}" if seed != EvaluateSettings.seed and own is not None else None,
    )
    request = {**nodes, "times": times, "split": split, "seed": seed, "step": step}
    files = [path / f"{name}.json", path / f"{name}.png"]
    return Output(files, request, checkpoint, elsewhere="")


def _measure_variance(
    model: DiffusionModel,
    source: AbstractSource,
    made: Output,
    key: PRNGKey,
    settings: TrainConfig,
    weighting: AbstractWeighting,
    time_sampler: AbstractTimeSampler,
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
    file, picture = made.files
    record = statistics.as_dict() | {
        "schedule": name_of("schedule", model.schedule),
        "time_sampler": name_of("time_sampler", time_sampler),
        "weighting": name_of("weighting", weighting),
        "steps": settings.loss_steps,
    }
    made.begin()
    replace_text(file, as_json(record, indent=1) + "\n")
    shown = save_statistics(statistics, picture)
    made.end()
    print(shown, flush=True)


def sample_command(config: Mapping[str, Any]) -> None:
    """Samples of a run's model: `diffkit sample RUN`."""
    run, other = _loaded(config)
    step = split_step(config["run"])[1]
    # A constructor with its options: that of the run where the command names none.
    nodes = {kind: config.get(kind) or run.config[kind] for kind in ("sampler", "grid")}
    chosen = {kind: part(kind, make(node), model=run.model) for kind, node in nodes.items()}
    given, interval = config["condition"], config["guidance_interval"]
    model, condition = run.model, None
    if given is None and other is not None:
        raise ValueError("data=NAME is for the meaning of a condition: give condition=... as well.")
    if given is not None:
        data = run.data() if other is None else other
        condition = jnp.asarray(encode_condition(data, given))
        model = guide(model, config["guidance"], None if interval is None else tuple(interval))
    name = _samples_name(config, nodes, run.config, step)
    out = Path(config["out"] or run.path / f"{name}.png")
    wanted = ("steps", "count", "seed", "condition", "guidance", "guidance_interval")
    request = {"run": _seen_from(out, run.path), "step": step, **nodes} | {n: config[n] for n in wanted}
    made = Output([out, out.with_suffix(".npy")], request, run.step)
    made.check(overwrite=config["overwrite"])
    drawn = sample(
        model,
        chosen["sampler"],
        config["count"],
        key=jax.random.key(config["seed"]),
        steps=config["steps"],
        grid=chosen["grid"],
        condition=condition,
    )
    made.begin()
    shown = _save_samples(drawn, out, run.model.decoder.levels)
    made.end()
    print(shown, flush=True)


def _samples_name(
    config: Mapping[str, Any], nodes: Mapping[str, Any], own: Mapping[str, Any], step: int | None
) -> str:
    """Sampler, steps and condition; and what else is not as by default or as in the run."""
    given, interval = config["condition"], config["guidance_interval"]
    sampler, *options = asked("sampler", nodes["sampler"], own["sampler"])
    of_condition = []
    if given is not None:
        numbers = given if isinstance(given, list) else [given]
        of_condition = [f"condition{'_'.join(map(str, numbers))}", f"guidance{config['guidance']:g}"]
    return stem(
        "samples",
        sampler,
        str(config["steps"]),
        *of_condition,
        None if interval is None else f"interval{'_'.join(f'{end:g}' for end in interval)}",
        *options,
        *(asked("grid", nodes["grid"], own["grid"]) if nodes["grid"] != own["grid"] else ()),
        *(f"{n}{config[n]}" for n in ("count", "seed") if config[n] != getattr(SampleSettings, n)),
        None if step is None else f"at{step}",
    )


def _seen_from(out: Path, path: Path) -> str:
    """A path as it is from the directory of a file: both may move together."""
    return os.path.relpath(path, out.parent)


def convert_command(config: Mapping[str, Any]) -> None:
    """A run's model under another process or schedule: `diffkit convert RUN OUT`."""
    moved = {kind: config.get(kind) for kind in ("process", "schedule")}
    run, losses = convert_run(Path(config["run"]), Path(config["out"]), **moved)
    for sentence in losses:
        print(sentence)
    print(f"run: {run.path}", flush=True)


def equivalence_command(config: Mapping[str, Any]) -> None:
    """Two presets, configurations or runs side by side: `diffkit equivalence A B`."""
    both, levels = (config["a"], config["b"]), config["levels"]
    name = stem(
        "equivalence",
        *(re.sub(r"[^A-Za-z0-9.-]+", "-", each) for each in both),
        None if levels is None else f"levels{levels}",
    )
    out = Path(config["out"] or f"{name}.png")
    sides = [each if each in available("preset") else _seen_from(out, Path(each)) for each in both]
    made = Output([out], {"a": sides[0], "b": sides[1], "levels": levels})
    made.check(overwrite=config["overwrite"])
    comparison = compare(*both, levels=levels)
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
    made.begin()
    save_comparison(comparison, out)
    made.end()
    print(out, flush=True)


def report_command(config: Mapping[str, Any]) -> None:
    """A page about a set of runs: `diffkit report RUN ...`."""
    from diffkit.reports import report

    out, baseline = Path(config["out"]), config["baseline"]
    request = {
        "runs": [_seen_from(out, Path(run)) for run in config["runs"]],
        "baseline": None if baseline is None else _seen_from(out, Path(baseline)),
    }
    pictures = [out.with_name(f"{out.stem}_{what}.png") for what in ("curves", "samples")]
    page = Output([out, *pictures], request)
    page.check(overwrite=config["overwrite"])
    made = report(config["runs"], out=out, baseline=baseline)
    page.end()
    made.show()
    print(made.path, flush=True)


def verify_command(config: Mapping[str, Any]) -> int:
    """Whether all of a run is whole: `diffkit verify RUN`."""
    findings = verify_run(config["run"])
    table = Table("", "", "what was found", title=str(config["run"]))
    for finding in findings:
        table.add_row(Text(finding.name), "good" if finding.good else "WRONG", Text(finding.words))
    wide_console().print(table)
    wrong = sum(not finding.good for finding in findings)
    print(f"{config['run']} is whole" if not wrong else f"{wrong} of {len(findings)} are wrong", flush=True)
    return int(wrong > 0)


def replay_command(config: Mapping[str, Any]) -> int:
    """A step that was not finite, once more: `diffkit replay RUN/nonfinite_STEP`."""
    cause, metrics = replay(config["dump"])
    for name, value in metrics.items():
        print(f"{name}: {value:.6g}")
    print("the step is finite" if cause is None else cause, flush=True)
    return int(cause is None)


def _save_samples(drawn: jax.Array, path: Path, levels: int | None) -> Path:
    """Write the samples as stored, and a picture if their shape allows one; return the best."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width = np.float32 if levels is None else np.min_scalar_type(levels - 1)
    with new_file(path.with_suffix(".npy")) as file:
        np.save(file, np.asarray(jnp.asarray(drawn), dtype=width))
    if has_picture(drawn):
        save_samples(drawn, path, levels=levels)
        return path
    return path.with_suffix(".npy")
