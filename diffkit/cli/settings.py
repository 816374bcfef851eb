"""The commands and their settings, apart from parts, data and the training loop.

These docstrings are also the text of `diffkit COMMAND --help`.
"""

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from diffkit.configs import KINDS, LOOKS
from diffkit.presets import Preset

DEFAULT_PRESET: Final = "vdm"


@dataclass(frozen=True)
class Command:
    """A command that takes settings and choices in Hydra's grammar: the object of an entry point.

    **Arguments:**

    - `name`: the word after `diffkit`.
    - `task`: what it does, given the composed configuration as plain containers; may return an exit status.
      Or its place, `module:function`, imported when it runs.
    - `settings`: a dataclass with defaults, whose docstring describes the command and each setting. A
      setting for a name or a path, annotated `str` or `Path`, is taken as it is typed. A field that ends in
      `_` is a setting that is a word of Python: `from_` is `from`.
    - `positional`: settings that may be given without their names; one with dots takes all.
    - `kinds`: the kinds to choose from, with the default; `None` for a choice that may be absent. Options
      of absent data, a mapping without `_target_`, are for `diffkit.load_run(data=...)`.
    """

    name: str
    task: Callable[[Mapping[str, Any]], int | None] | str
    settings: type
    positional: tuple[str, ...] = ()
    kinds: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def usage(self) -> str:
        """The command with its positional settings, as a user types it."""
        shown = [f"{p[:-4].upper()} ..." if p.endswith("...") else p.upper() for p in self.positional]
        return " ".join(["diffkit", self.name, *shown])

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run the command.

        **Arguments:** `arguments`: the words after its name.

        **Returns:** the exit status.
        """
        if "--help" in arguments or "-h" in arguments:
            from diffkit.cli.help import command_help

            print(command_help(self))
            return 0
        from diffkit.cli.launch import launch

        return launch(self, arguments)

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings, by their names on the command line."""
        return {setting_of(name): value for name, value in asdict(self.settings()).items()}

    def run(self, config: Mapping[str, Any]) -> int | None:
        """Do it, with a composed configuration."""
        task = pkgutil.resolve_name(self.task) if isinstance(self.task, str) else self.task
        return task(config)


def setting_of(name: str) -> str:
    """What a field of a settings class is called on the command line."""
    return name.removesuffix("_")


def _at_least(settings: object, **least: int) -> None:
    for name, value in least.items():
        given = getattr(settings, name)
        if given is not None and given < value:
            raise ValueError(f"{name} must be at least {value}, got {given}.")


def _not_empty(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) == "":
            raise ValueError(f"{setting_of(name)} must be a path, got nothing.")


def _check_png(out: str | None) -> None:
    if out is not None and not out.endswith(".png"):
        raise ValueError(f"out must end in .png, got {out!r}.")


@dataclass(frozen=True)
class TrainSettings:
    """Train a model, evaluate it on the test data, and draw samples.

    **Arguments:**

    - `run`: the run directory; by default one under `root` named after the overrides, so the same command
      continues the same run.
    - `root`: the parent of such directories.
    - `from`: the run to begin from, as RUN@STEP, or RUN for its newest checkpoint. The new run goes on with
      its model under other settings.
    - `data_std`: the standard deviation of the encoded data that the model assumes.
    - `passes`: draws per test example in the evaluation at the end.
    - `evaluate_steps`: additional numbers of steps T to evaluate at the end, as `[10,100,null]`; `null` is
      continuous time.
    - `variance`: also measure how noisy the estimate of the loss is, as `diffkit evaluate` does.
    - `samples`: how many samples to draw at the end; 0 draws none.
    - `sample_steps`: how many steps to draw them in.
    """

    run: str | None = None
    root: str = "runs"
    from_: str | None = None
    data_std: float = 1.0
    passes: int = LOOKS["passes"]
    evaluate_steps: list[int | None] = field(default_factory=lambda: [*LOOKS["evaluate_steps"]])
    variance: bool = LOOKS["variance"]
    samples: int = LOOKS["samples"]
    sample_steps: int = 250

    def __post_init__(self):
        _not_empty(self, "run", "root", "from_")
        _at_least(self, passes=1, samples=0, sample_steps=1)
        for steps in self.evaluate_steps:
            if steps is not None and steps < 1:
                raise ValueError(
                    "evaluate_steps must be a list of numbers of at least 1, or null for continuous "
                    f"time, got {self.evaluate_steps}."
                )


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluate the likelihood of a run's model on its data.

    **Arguments:**

    - `run`: the run directory, or RUN@STEP for an older checkpoint.
    - `steps`: T of the discrete-time bound; `null` is continuous time.
    - `passes`: draws per example.
    - `batch_size`: latents per call of the network.
    - `seed`: of the draws.
    - `split`: the examples: `test` or `train`.
    - `variance`: also measure how noisy the estimate of the diffusion loss is, with the weighting, the T
      and the batch size of the run.
    - `overwrite`: replace the files of another measurement of the same name.

    With schedule=NAME the model is carried over to another schedule first; time_sampler=NAME is only for
    `variance` (one that adapts starts anew). data.path=PATH says where the run's data are now; data=NAME
    takes others.
    """

    run: str | None = None
    steps: int | None = None
    passes: int = 16
    batch_size: int = 512
    seed: int = 0
    split: str = "test"
    variance: bool = False
    overwrite: bool = False

    def __post_init__(self):
        _at_least(self, steps=1, passes=1, batch_size=1, seed=0)
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {self.split!r}.")


@dataclass(frozen=True)
class SampleSettings:
    """Draw samples from a run's model.

    **Arguments:**

    - `run`: the run directory, or RUN@STEP for an older checkpoint.
    - `count`: how many samples.
    - `steps`: of the sampler.
    - `condition`: for a model trained with conditions, a class, such as `3`, or a vector of numbers, such
      as `[0.1,0.2]`; by default none.
    - `guidance`: how closely the samples follow the condition: 1 as in the model, larger for closer.
    - `guidance_interval`: the range of `logsnr` to guide in, as `[min,max]`; by default everywhere.
    - `seed`: of the draws.
    - `out`: the PNG to write, by default in the run directory, named after what is asked; the samples as
      stored go beside it as .npy.
    - `overwrite`: replace the samples of another request.

    data.path=PATH says where the run's data are now.
    """

    run: str | None = None
    count: int = 64
    steps: int = 250
    condition: Any = None
    guidance: float = 1.0
    guidance_interval: list[float] | None = None
    seed: int = 0
    out: str | None = None
    overwrite: bool = False

    def __post_init__(self):
        _at_least(self, count=1, steps=1, seed=0)
        _check_png(self.out)
        condition, interval = self.condition, self.guidance_interval
        if condition is not None and not (
            _is_number(condition, int)
            or (isinstance(condition, list) and all(_is_number(n, int, float) for n in condition))
        ):
            raise ValueError(
                "condition must be a class, such as condition=3, or a list of numbers, such as "
                f"condition=[0.1,0.2], got {condition!r}."
            )
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}.")
        if interval is not None and not (len(interval) == 2 and interval[0] < interval[1]):
            raise ValueError(
                "guidance_interval must be [min,max] of logsnr, such as "
                f"guidance_interval=[-3.0,5.0], got {interval}."
            )
        if condition is None and (self.guidance != 1 or interval is not None):
            raise ValueError(
                f"guidance={self.guidance} needs a condition to follow: give one, such as condition=3."
            )


@dataclass(frozen=True)
class ConvertSettings:
    """Write a run's model under another process or schedule as a new run, without training.

    **Arguments:**

    - `run`: the run directory.
    - `out`: the new one.

    Give process=NAME, schedule=NAME or both.
    """

    run: str | None = None
    out: str | None = None


@dataclass(frozen=True)
class EquivalenceSettings:
    """Compare two presets, runs or configurations: are they the same model, with the same objective?

    **Arguments:**

    - `a`, `b`: presets, run directories or configuration files.
    - `levels`: of the data for presets; by default those of the other's run, or 256.
    - `out`: the PNG to write; by default named after the two.
    - `overwrite`: replace the picture of another comparison.
    """

    a: str | None = None
    b: str | None = None
    levels: int | None = None
    out: str | None = None
    overwrite: bool = False

    def __post_init__(self):
        _at_least(self, levels=2)
        _check_png(self.out)


@dataclass(frozen=True)
class ReportSettings:
    """Write a page about a set of runs.

    **Arguments:**

    - `runs`: run directories, or directories of them.
    - `out`: the Markdown page to write; its pictures go beside it.
    - `baseline`: the run, or a run of the variant, that the others are compared with; by default the first.
    - `overwrite`: replace a page about other runs.
    """

    runs: list[str] = field(default_factory=list)
    out: str = "report.md"
    baseline: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class VerifySettings:
    """Check all of a run: its configuration, every checkpoint, its metrics and results.

    Nothing is written. The exit status is 1 if something is wrong.

    **Arguments:**

    - `run`: the run directory.
    """

    run: str | None = None


@dataclass(frozen=True)
class ReplaySettings:
    """Run a step that was not finite again, and say what went first.

    Training leaves such a step as RUN/nonfinite_STEP: its state, batch and configuration. The exit status
    is 1 if the step is finite now.

    **Arguments:**

    - `dump`: that directory.
    """

    dump: str | None = None


def _is_number(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _command(name: str, settings: type, *positional: str, **kinds: str | None) -> Command:
    return Command(name, f"diffkit.cli.commands:{name}_command", settings, positional, kinds)


_PARTS: Final = {kind: getattr(Preset(), kind) for kind in KINDS}

COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        _command("train", TrainSettings, **_PARTS, data="digits", preset=DEFAULT_PRESET),
        _command("evaluate", EvaluateSettings, "run", schedule=None, time_sampler=None, data=None),
        _command("sample", SampleSettings, "run", sampler=None, grid=None, data=None),
        _command("convert", ConvertSettings, "run", "out", process=None, schedule=None),
        _command("equivalence", EquivalenceSettings, "a", "b"),
        _command("report", ReportSettings, "runs..."),
        _command("verify", VerifySettings, "run"),
        _command("replay", ReplaySettings, "dump"),
    )
}
"""The commands of diffkit that take settings."""

LAUNCHERS: Final[Mapping[str, Mapping[str, str]]] = {
    "basic": {"hydra/launcher": "basic"},
    "joblib": {"hydra/launcher": "joblib", "hydra.launcher.n_jobs": "2"},
    "submitit_local": {"hydra/launcher": "submitit_local", "hydra.launcher.timeout_min": "600"},
    # Only the user of a cluster knows its partition, hydra.launcher.partition=NAME. A job that runs out of
    # time is queued again and resumes from its checkpoint.
    "slurm": {
        "hydra/launcher": "submitit_slurm",
        "hydra.launcher.timeout_min": "1440",
        "hydra.launcher.gpus_per_node": "1",
        "hydra.launcher.cpus_per_task": "8",
        "hydra.launcher.mem_gb": "32",
        "hydra.launcher.max_num_timeout": "100",
    },
}
"""How `launcher=NAME` runs several jobs: one after the other, some at once, or on a cluster."""
