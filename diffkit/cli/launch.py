"""From the registry to Hydra: the config store, and running a command under it.

Nothing is listed by hand. From the signature of its constructor, hydra-zen makes every registered part a
config of its kind's group; a preset becomes a config that overrides the choices of the other groups.
"""

import difflib
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
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from hydra.utils import get_object
from hydra_zen import builds
from omegaconf import OmegaConf

from diffkit import registry
from diffkit.cli.commands import (
    convert_command,
    equivalence_command,
    evaluate_command,
    report_command,
    sample_command,
    train_command,
)
from diffkit.cli.plugins import bringer, extra_of, how_to_install
from diffkit.cli.settings import (
    DEFAULT_DATA,
    DEFAULT_PRESET,
    POSITIONAL,
    RUN_CHOICES,
    SETTINGS,
)
from diffkit.configs import MAY_CHANGE, RENAMED, node_of, unregistered
from diffkit.presets import CONTEXT, MODEL_KINDS, TRAINING_KINDS, Preset
from diffkit.training import TrainConfig

_COMMANDS: Mapping[str, Callable[..., None]] = {
    "train": train_command,
    "evaluate": evaluate_command,
    "sample": sample_command,
    "convert": convert_command,
    "equivalence": equivalence_command,
    "report": report_command,
}
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


def _choice(kind: str, preset_name: str, preset: Preset) -> tuple[str, Mapping[str, Any]]:
    """A preset's choice as a registered name and the options given to it."""
    chosen = getattr(preset, kind)
    if isinstance(chosen, str | tuple):
        return preset.choice(kind)
    if unknown := unregistered({kind: (node := node_of(kind, chosen))}):
        raise ValueError(
            f"preset {preset_name!r} has a {kind} that the command line cannot name, {unknown[kind]}: "
            "register its class, and give the preset its name."
        )
    name = registry.name_of(kind, get_object(node["_target_"]))
    assert name is not None
    return name, {k: v for k, v in node.items() if not k.startswith("_")}


def _named_presets(given: Sequence[str]) -> list[str]:
    """The presets on the command line: more than one only with --multirun."""
    named = [
        argument.removeprefix("preset=") for argument in given if argument.startswith("preset=")
    ]
    return named[-1].split(",") if named else [DEFAULT_PRESET]


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
            name, options = _choice(kind, preset_name, preset)
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
            "sample_steps": preset.sample_steps,
        }
        store.store(preset_name, node, group="preset", package="_global_")

    settings = SETTINGS[command]
    main: dict[str, Any] = asdict(settings())
    defaults = ["_self_"]
    if command == "train":
        presets = registry.available("preset")
        main["train"] = builds(TrainConfig, populate_full_signature=True)
        chosen = {kind: getattr(Preset(), kind) for kind in kinds}
        defaults = [{kind: name} for kind, name in chosen.items()]
        defaults += [{"data": DEFAULT_DATA}, "_self_"]
        defaults += [{"preset": DEFAULT_PRESET if DEFAULT_PRESET in presets else "???"}]
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
    """A directory name made from the overrides, so the same command finds its run again."""
    ignored = tuple(f"{name}=" for name in (*MAY_CHANGE, "root"))
    overrides = [o for o in overrides if not o.startswith(ignored)]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(sorted(overrides)) or "default")
    if len(name) > 200:  # file systems take about 255
        name = f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def launch(command: str, given: Sequence[str]) -> None:
    """Compose the configuration of a command from the registry and the command line, and run it.

    **Arguments:** `command`: a name in the table above; `given`: the arguments after it.

    **Raises:** `SystemExit` with status 1 if the command fails. Errors in the
    request are printed without a stack trace, unless the environment has `HYDRA_FULL_ERROR=1`.
    """
    _fill_store(command, given)
    # Hydra reads its arguments from here; its own messages name the program by the first entry.
    sys.argv = [f"diffkit {command}", *_arguments(command, given)]
    _check_overrides(command, sys.argv[1:])
    hydra.main(config_path=None, config_name=f"{_PREFIX}{command}", version_base="1.3")(_run)()


def _run(config: Any) -> None:
    """The task that Hydra runs. A function of the module, so launchers can send it to a process."""
    job = HydraConfig.get()
    command = str(job.job.config_name).removeprefix(_PREFIX)
    try:
        plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        if command == "train" and plain["run"] is None:
            plain["run"] = os.path.join(plain["root"], run_name(job.overrides.task))
        plain |= _checked(SETTINGS[command], plain)
        _COMMANDS[command](plain)
    except Exception as error:  # a stranger's part may raise anything
        _show_error(command, _reason(error))
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
    config = _composed(command, _arguments(command, given))
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _composed(command: str, overrides: Sequence[str]) -> Any:
    with hydra.initialize(config_path=None, version_base="1.3"):
        return hydra.compose(f"{_PREFIX}{command}", overrides=list(overrides))


def _check_overrides(command: str, arguments: Sequence[str]) -> None:
    """Compose once before Hydra does, to say in our words which override does not fit.

    Checks only the first combination of a sweep, and leaves the others to Hydra.

    **Raises:** `SystemExit` with status 1 if an override does not fit.
    """
    if any(re.match(r"--config-|-c[pnd]\b|.*=glob\(", word) for word in arguments):
        return  # configurations of the user's own and all that fit a pattern: only Hydra finds them
    overrides = [w for w in arguments if w[0:1] not in ("-", "") and ("=" in w or w[0] == "~")]
    try:
        if any(word in ("-m", "--multirun") for word in arguments):
            overrides = _first_of_sweep(overrides)
        _composed(command, overrides)
    except HydraException as error:
        _show_error(command, _misfit(command, overrides, error))
        raise SystemExit(1) from error


def _first_of_sweep(overrides: Sequence[str]) -> list[str]:
    """The first value of each override that has several."""
    first = []
    for word, override in zip(
        overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True
    ):
        if not override.is_sweep_override():
            first.append(word)
        elif override.is_discrete_sweep():
            first.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
    return first


def _misfit(command: str, overrides: Sequence[str], error: HydraException) -> str:
    """Why a command line does not compose: Hydra's error in terms of our choices."""
    said = str(error)
    absent = re.search(r"Could not find '(\w+)/([^']*)'", said)
    kind, name = absent.groups() if absent else ("preset", _named_presets(overrides)[0])
    if (absent and kind in registry.KINDS) or said.startswith("You must specify 'preset'"):
        try:
            registry.get(kind, name)
        except registry.UnknownPartError as unknown:
            extra = bringer(name) if kind == "preset" else None
            return f"{unknown} {how_to_install(extra)} brings it." if extra else str(unknown)
    if match := re.match(r"Could not override '([^']+)'", said):
        return _unknown_option(command, match[1], overrides)
    return "\n".join([said, *([str(error.__cause__)] if error.__cause__ else [])])


def _unknown_option(command: str, option: str, overrides: Sequence[str]) -> str:
    """An unknown option, the nearest known one, and all of them."""
    kinds = registry.KINDS if command == "train" else RUN_CHOICES.get(command, ())
    choices = [word for word in overrides if word.partition("=")[0] in kinds]
    try:
        node, place = OmegaConf.to_container(_composed(command, choices), resolve=False), ""
    except HydraException as error:
        return str(error).splitlines()[0]
    assert isinstance(node, dict)
    word = ""
    for word in option.split("."):
        if not isinstance(node.get(word), dict):
            break
        node, place = node[word], f"{place}{word}."
    if not place and word != option and word in kinds:
        return f"{option} is an option of another {word}: give {word}=NAME as well."
    names = [str(name) for name in node if not str(name).startswith("_")]
    if not place:
        names += [kind for kind in kinds if kind not in names]
    near = difflib.get_close_matches(RENAMED.get(word, word), names, n=1)
    hint = f" Did you mean '{place}{near[0]}'?" if near else ""
    options = ", ".join(f"{place}{name}" for name in names) or "none"
    return f"there is no option {option!r}.{hint} There are: {options}."


def _show_error(command: str, message: str) -> None:
    """Say why a command fails; with its trace, while it is handled, on request."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    print(f"diffkit {command}: {message}", file=sys.stderr)


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
    # Some have no message, such as MemoryError.
    said = str(cause) or type(cause).__name__
    extra = extra_of(cause.name) if isinstance(cause, ModuleNotFoundError) else None
    return f"{said}: {how_to_install(extra)}." if extra else said
