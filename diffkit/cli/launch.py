"""From the registry to Hydra: the config store, and running a command under it.

Nothing is listed here by hand. Every registered part becomes a config of its kind's group, made by
hydra-zen from the signature of its constructor; a preset becomes a config that overrides the other
groups' choices.
"""

import hashlib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from hydra_zen import builds
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from diffkit import registry
from diffkit.cli.commands import (
    convert_command,
    equivalence_command,
    evaluate_command,
    report_command,
    sample_command,
    train_command,
)
from diffkit.cli.settings import POSITIONAL, RUN_CHOICES, SETTINGS
from diffkit.presets import CONTEXT, MODEL_KINDS, TRAINING_KINDS, Preset
from diffkit.runs import MAY_CHANGE
from diffkit.training import TrainConfig

_COMMANDS: Mapping[str, Callable[..., None]] = {
    "train": train_command,
    "evaluate": evaluate_command,
    "sample": sample_command,
    "convert": convert_command,
    "equivalence": equivalence_command,
    "report": report_command,
}
_DEFAULT_PRESET = "vdm"
_PREFIX = "diffkit_"  # of the name of a command's configuration
_QUIET = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]


def _part_config(part: Any, options: Mapping[str, Any], *, partial: bool) -> Any:
    return builds(
        part,
        populate_full_signature=True,
        zen_partial=partial,
        zen_exclude=CONTEXT if partial else (),
        **options,
    )


def _named_presets(given: Sequence[str]) -> list[str]:
    """The presets that the command line asks for: more than one only with --multirun."""
    named = [
        argument.removeprefix("preset=") for argument in given if argument.startswith("preset=")
    ]
    return named[-1].split(",") if named else [_DEFAULT_PRESET]


def _fill_store(command: str, given: Sequence[str]) -> None:
    store = ConfigStore.instance()
    kinds = (*MODEL_KINDS, *TRAINING_KINDS)
    for kind in kinds:
        for name in registry.available(kind):
            store.store(name, _part_config(registry.get(kind, name), {}, partial=True), group=kind)
    for name in registry.available("data"):
        store.store(name, _part_config(registry.get("data", name), {}, partial=False), group="data")
    named = _named_presets(given)
    for preset_name in registry.available("preset"):
        preset: Preset = registry.get("preset", preset_name)
        defaults: list[Any] = ["_self_"]
        for kind in kinds:
            name, options = preset.choice(kind)
            if options and preset_name in named:
                config = _part_config(registry.get(kind, name), options, partial=True)
                # A preset's options are the part's defaults under that preset, so that naming the
                # part that it chooses anyway changes nothing. Several presets need several names.
                if len(named) > 1:
                    name = f"{name}__{preset_name}"
                store.store(name, config, group=kind)
            defaults.append({f"override /{kind}": name})
        node = {
            "defaults": defaults,
            "train": dict(preset.train),
            "data_std": preset.data_std,
        }
        store.store(preset_name, node, group="preset", package="_global_")

    settings = SETTINGS[command]
    main: dict[str, Any] = asdict(settings())
    defaults = ["_self_"]
    if command == "train":
        presets = registry.available("preset")
        main["train"] = builds(TrainConfig, populate_full_signature=True)
        chosen = {kind: Preset().choice(kind)[0] for kind in kinds}
        defaults = [{kind: name} for kind, name in chosen.items()]
        defaults += [{"data": "digits"}, "_self_"]
        defaults += [{"preset": _DEFAULT_PRESET if _DEFAULT_PRESET in presets else "???"}]
    else:
        # By default those of the run.
        defaults += [{kind: None} for kind in RUN_CHOICES.get(command, ())]
    main["defaults"] = defaults + _QUIET
    main["hydra"] = {
        "run": {"dir": "."},
        "output_subdir": None,
        "sweep": {"dir": "runs", "subdir": "."},
    }
    store.store(f"{_PREFIX}{command}", main)


def _arguments(command: str, given: Sequence[str]) -> list[str]:
    """Hydra's arguments: the positional ones, which come first, become overrides."""

    def quoted(value: str) -> str:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"

    # A leading ~ means something else in Hydra's grammar.
    rest = [
        f"{name}={quoted(value)}" if value.startswith("~") else argument
        for argument in given
        for name, _, value in [argument.partition("=")]
    ]

    def is_positional(word: str) -> bool:
        return "=" not in word and not word.startswith("-")

    named = []
    for name in POSITIONAL[command]:
        taken = list(itertools.takewhile(is_positional, given))
        if name.endswith("..."):
            if taken:
                named.append(f"{name[:-3]}=[{','.join(map(quoted, taken))}]")
        else:
            taken = taken[:1]
            named += [f"{name}={quoted(word)}" for word in taken]
        given, rest = given[len(taken) :], rest[len(taken) :]
    # Beside the other overrides: argparse wants all of them in one place among Hydra's flags.
    overrides = [i for i, word in enumerate(rest) if "=" in word and not word.startswith("-")]
    place = overrides[0] if overrides else len(rest)
    return [*rest[:place], *named, *rest[place:]]


def run_name(overrides: Sequence[str]) -> str:
    """A directory name made of the overrides, so that the same command finds its run again."""
    ignored = tuple(f"{name}=" for name in (*MAY_CHANGE, "root"))
    overrides = [o for o in overrides if not o.startswith(ignored)]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(sorted(overrides)) or "default")
    if len(name) > 200:  # file systems take about 255
        name = f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def launch(command: str, given: Sequence[str]) -> None:
    """Compose the configuration of a command from the registry and the command line, and run it.

    **Arguments:** `command`: a name in the table above; `given`: the arguments after it.

    **Raises:** `SystemExit` with status 1 if the command fails. Errors in what was asked for are
    printed without a stack trace, unless the environment has `HYDRA_FULL_ERROR=1`.
    """
    _fill_store(command, given)
    # Hydra reads its arguments from here; its own messages name the program by the first entry.
    sys.argv = [f"diffkit {command}", *_arguments(command, given)]
    hydra.main(config_path=None, config_name=f"{_PREFIX}{command}", version_base="1.3")(_run)()


def _run(config: Any) -> None:
    """The task that Hydra runs. A function of the module, so that launchers can send it to a process."""
    job = HydraConfig.get()
    command = str(job.job.config_name).removeprefix(_PREFIX)
    try:
        plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        if command == "train" and plain["run"] is None:
            plain["run"] = os.path.join(plain["root"], run_name(job.overrides.task))
        plain |= _checked(SETTINGS[command], plain)
        _COMMANDS[command](plain)
    except (
        ValueError,
        TypeError,
        LookupError,
        OSError,
        ImportError,
        FloatingPointError,
        HydraException,
        OmegaConfBaseException,
        RuntimeError,  # of a part, inside compiled code
    ) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        print(f"diffkit {command}: {_reason(error)}", file=sys.stderr)
        if job.mode is RunMode.MULTIRUN:
            # Hydra runs the others before it fails; SystemExit would end them all.
            raise CompactHydraException("a run of the sweep failed.") from error
        raise SystemExit(1) from error


def compose(command: str, given: Sequence[str]) -> dict[str, Any]:
    """The configuration of a command as plain containers, without running it.

    **Arguments:** `command`: a name in the table above; `given`: overrides, as on the command line.

    **Raises:** `hydra.errors.HydraException` for an override that does not fit.
    """
    _fill_store(command, given)
    with hydra.initialize(config_path=None, version_base="1.3"):
        config = hydra.compose(f"{_PREFIX}{command}", overrides=_arguments(command, given))
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _checked(settings: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The command's own settings, with values of the right types, before anything is done."""
    names = [field.name for field in fields(settings)]
    typed = OmegaConf.merge(OmegaConf.structured(settings), {name: config[name] for name in names})
    return asdict(cast(Any, OmegaConf.to_object(typed)))


def _reason(error: BaseException) -> str:
    """What went wrong: of an error that Hydra wraps while making a part, the part's own."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause)
