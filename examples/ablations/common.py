"""Shared by the ablations: their two scales, how to launch a sweep, and the table at its end.

An ablation is `diffkit train --multirun` with its settings filled in. Each setting on the command line
replaces the one of the same name here.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from hydra.errors import OverrideParseException

import diffkit as dk
from diffkit.cli import main as diffkit
from diffkit.cli import words
from diffkit.cli.launch import launcher_settings
from diffkit.cli.settings import COMMANDS, LAUNCHERS
from diffkit.configs import EVALUATION_FILE

VDM: Final = dk.get("preset", "vdm")

dk.register("preset", "vdm_tiny")(
    dataclasses.replace(
        VDM,
        network=("vdm_unet", {"width": 16, "depth": 2, "dropout": 0.0, "groups": 2}),
        train={
            "steps": 500,
            "batch_size": 64,
            "learning_rate": 4e-3,
            "ema": 0.99,
            "steps_per_dispatch": 50,
            "checkpoint_every": 250,
        },
    )
)

SCALES: Final[Mapping[str, Mapping[str, str]]] = {
    "tiny": {
        "preset": "vdm_tiny",
        "passes": "16",
        "samples": "16",
        "sample_steps": "50",
        "train.seed": "0,1",
    },
    # Data without a path to them are refused: data.path=DIR.
    "paper": {
        "preset": "vdm_cifar10",
        "data": "cifar10",
        "sample_steps": "1000",
        "train.seed": "0,1,2",
    },
}
"""The settings of each scale: two CPU cores for minutes, and the paper's CIFAR-10 without augmentation."""


@dataclass(frozen=True)
class Ablation:
    """A sweep, and the question that it answers.

    **Arguments:** `name`: of the script and of the directory of its runs; `question`; `axes`: the settings
    to vary, with values separated by commas, the first the baseline of the others; `tiny`, `paper`:
    settings of that scale that differ from those in `SCALES` and in `axes`.
    """

    name: str
    question: str
    axes: Mapping[str, str]
    tiny: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, str] = field(default_factory=dict)

    def settings(self, scale: str, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """All settings of the sweep, the seeds last: runs of a variant then follow each other, and share
        compiled code within one process.

        **Arguments:** `scale`: a key of `SCALES`; `given`: settings of the command line.

        **Raises:** `ValueError` for an unknown scale.
        """
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}.")
        own = self.tiny if scale == "tiny" else self.paper
        chosen = {**SCALES[scale], "root": f"runs/ablations/{self.name}/{scale}"}
        chosen |= {**self.axes, **own, **(given or {})}
        seeds = {"train.seed": chosen.pop("train.seed")}
        return {**chosen, **seeds}


def overrides(settings: Mapping[str, str]) -> list[str]:
    """Hydra's overrides of a sweep."""
    given = [f"{name}={value}" for name, value in settings.items()]
    return words.overrides(COMMANDS["train"], given, multirun=True)


def jobs(settings: Mapping[str, str]) -> list[list[str]]:
    """The overrides of each run of a sweep, in Hydra's order."""
    return words.jobs(overrides(settings))


def directories(settings: Mapping[str, str]) -> list[Path]:
    """The directory of each run of a sweep."""
    names = words.varied(overrides(settings))
    return [Path(settings["root"]) / words.run_name(job, names) for job in jobs(settings)]


def _usage(ablation: Ablation) -> str:
    lines = [
        f"usage: python examples/ablations/{ablation.name}.py --multirun [scale=tiny|paper]",
        f"           [launcher={'|'.join(LAUNCHERS)}] [SETTING=VALUE ...]",
        "",
        ablation.question,
    ]
    for scale in SCALES:
        settings = ablation.settings(scale)
        lines += ["", f"scale={scale}: {len(jobs(settings))} runs"]
        lines += [f"  {name}={value}" for name, value in settings.items()]
    lines += [
        "",
        "'diffkit train --help' shows what can be set besides; scale=paper needs data.path.",
    ]
    return "\n".join(lines)


def _refuse(ablation: Ablation, message: str) -> NoReturn:
    print(f"{ablation.name}: {message}", file=sys.stderr)
    raise SystemExit(2)


def main(ablation: Ablation, arguments: Sequence[str] | None = None) -> None:
    """Run an ablation, and show the table of its finished runs.

    **Arguments:** `arguments`: of the command line, taken from `sys.argv` by default.

    **Raises:** `SystemExit`: with status 2 for wrong usage; with status 1 if a run failed, after the others
    ran and the table was shown; with status 130 after an interruption.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    given = dict(w.split("=", 1) for w in typed if "=" in w and not w.startswith("-"))
    flags = [w for w in typed if "=" not in w or w.startswith("-")]
    if "-h" in flags or "--help" in flags:
        print(_usage(ablation))
        return
    scale, launcher = given.pop("scale", "tiny"), given.pop("launcher", "basic")
    if not flags:
        _refuse(ablation, f"it is a sweep: give --multirun.\n\n{_usage(ablation)}")
    if "run" in given:
        _refuse(ablation, f"run={given['run']} is one directory: give root=DIR for those of a sweep.")
    try:
        settings = ablation.settings(scale, {**launcher_settings(launcher), **given})
        all_jobs = jobs(settings)
    except (ValueError, OverrideParseException) as error:
        _refuse(ablation, str(error))
    if not {"-m", "--multirun"} & set(flags):
        # Such as `--cfg job`: of the first run.
        hydra = [f"{name}={value}" for name, value in settings.items() if name.startswith("hydra")]
        diffkit(["train", *hydra, *all_jobs[0], *flags])
        return
    if settings.get("data") == "cifar10" and "data.path" not in settings:
        _refuse(ablation, "data.path is missing: give the folder with the files of CIFAR-10.")
    places = directories(settings)
    hydra_settings = {"hydra.sweep.dir": settings["root"], "hydra.job.name": ablation.name}
    settings = {**hydra_settings, **settings}
    try:
        diffkit(["train", *flags, *(f"{name}={value}" for name, value in settings.items())])
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        _show(ablation, places, Path(settings["root"]))


def _show(ablation: Ablation, places: Sequence[Path], root: Path) -> None:
    finished = [path for path in places if (path / EVALUATION_FILE).exists()]
    print(f"\n{ablation.question}")
    if finished:
        report = dk.report(finished, out=root / "report.md")
        report.show()
        print(report.path)
    print(f"{len(finished)} of {len(places)} runs are finished", end="")
    rest = len(places) > len(finished)
    print("; the same command goes on with the others." if rest else ".", flush=True)
