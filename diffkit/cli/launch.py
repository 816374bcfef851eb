"""From the registry to Hydra: the config store, and running a command under it.

Nothing is listed by hand. From the signature of its constructor, hydra-zen makes every registered part a
config of its kind's group; a preset becomes a config that overrides the choices of the other groups.
"""

import argparse
import contextlib
import difflib
import functools
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra_zen import builds
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from diffkit import registry
from diffkit.cli.plugins import bringer, extra_of, how_to_install
from diffkit.cli.settings import COMMANDS, DEFAULT_PRESET, LAUNCHERS, Command, setting_of
from diffkit.cli.words import check_sweep, literal, overrides, parsed, presets, run_name, varied
from diffkit.configs import KINDS, RENAMED, find, flat, node_of, read_config, unregistered, upgraded
from diffkit.console import interrupted
from diffkit.presets import CONTEXT, Preset
from diffkit.training import TrainConfig

_QUIET = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]


def _part_config(kind: str, name: str, **options: Any) -> Any:
    partial = kind != "data"  # data are made at once, other parts where the rest is known
    return builds(
        registry.get(kind, name),
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
    name = registry.name_of(kind, find(node["_target_"]))
    assert name is not None
    return name, {k: v for k, v in node.items() if not k.startswith("_")}


def _fill_store(command: Command, given: Sequence[str]) -> None:
    store = ConfigStore.instance()
    for kind in registry.KINDS:
        store.repo.pop(kind, None)  # another command of this process had other kinds
    for kind in command.kinds.keys() - {"preset"}:
        for name in registry.available(kind):
            store.store(name, _part_config(kind, name), group=kind)
    main: dict[str, Any] = command.defaults
    chosen: dict[str, str | None] = {**command.kinds}
    last: list[Any] = []
    if "preset" in chosen:
        named = presets(given)
        _store_presets(store, named)
        main["train"] = builds(TrainConfig, populate_full_signature=True)
        del chosen["preset"]
        last = [{"preset": next(iter(named), DEFAULT_PRESET)}]
    main["defaults"] = [*({kind: name} for kind, name in chosen.items()), "_self_", *last, *_QUIET]
    main["hydra"] = {
        "run": {"dir": "."},
        "output_subdir": None,
        "sweep": {"dir": "runs", "subdir": "."},
    }
    store.store(_name(command), main)


def _store_presets(store: ConfigStore, named: Sequence[str]) -> None:
    for preset_name in registry.available("preset"):
        preset: Preset = registry.get("preset", preset_name)
        defaults: list[Any] = ["_self_"]
        for kind in KINDS:
            name, options = _choice(kind, preset_name, preset)
            if options and preset_name in named:
                config = _part_config(kind, name, **options)
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


def _name(command: Command) -> str:
    """The name of the command's configuration."""
    return f"diffkit_{command.name}"


def launcher_settings(name: str) -> Mapping[str, str]:
    """Hydra's settings for `launcher=NAME`; a `ValueError` for an unknown name."""
    if name not in LAUNCHERS:
        raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {name!r}.")
    return LAUNCHERS[name]


def _flags(command: Command) -> argparse.ArgumentParser:
    usage = f"{command.usage} [SETTING=VALUE ...]; 'diffkit {command.name} --help' shows more"
    parser = argparse.ArgumentParser(f"diffkit {command.name}", usage, add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    return parser


def launch(command: Command, arguments: Sequence[str]) -> int:
    """Compose the configuration of a command from the registry and the command line, and run it.

    **Arguments:** `command`; `arguments`: the words after its name.

    **Returns:** the exit status. Errors are printed without a stack trace, unless the environment has
    `HYDRA_FULL_ERROR=1`. An interrupt ends the command, or the sweep, and is a line too.

    **Raises:** `SystemExit` with status 2 for an unknown flag, and if a single run fails.
    """
    flags = _flags(command).parse_intermixed_args(arguments)
    launchers = [word[9:] for word in flags.words if word.startswith("launcher=")]
    words = [word for word in flags.words if not word.startswith("launcher=")]
    try:
        if launchers:
            if not (flags.multirun or flags.cfg):
                raise ValueError("launcher= is for several jobs: give --multirun as well.")
            # First, so that the user's own settings of Hydra replace them.
            words = [f"{k}={v}" for k, v in launcher_settings(launchers[-1]).items()] + words
        given = overrides(command, words, multirun=flags.multirun)
        sweeps = [o.input_line for o in parsed(given) if o.is_sweep_override()]
        if sweeps and not flags.multirun:
            raise ValueError(
                f"{sweeps[0]} has several values: give --multirun to run each, or write a list as [A,B]."
            )
        _fill_store(command, given)
        with hydra.initialize(config_path=None, job_name=_name(command), version_base="1.3"):
            app = GlobalHydra.instance().hydra
            assert app is not None
            if flags.cfg:
                app.show_cfg(_name(command), given, flags.cfg, flags.package, flags.resolve)
                return 0
            if flags.multirun and command.name == "train":
                check_sweep(given, command.defaults["root"], app.config_loader)
            mode = RunMode.MULTIRUN if flags.multirun else RunMode.RUN
            run = app.multirun if flags.multirun else app.run
            task = functools.partial(_run, command, varied(given))
            with _background() as errors:
                run(_name(command), task, [*given, f"hydra.mode={mode.name}"])
            if errors:  # nothing else failed, but what was written may not be whole
                raise errors[0]
    except KeyboardInterrupt as stop:
        return interrupted(command.name, stop, sweep=flags.multirun)
    except Exception as error:  # also what a launcher raises
        _show_error(command, error)
        return 1
    return 0


@contextlib.contextmanager
def _background() -> Iterator[list[BaseException]]:
    """Collect the errors of other threads, and those of files closed too late, such as on a full disk.

    Python would print a stack trace for each, beside the one line of the error that they belong to.
    """
    errors: list[BaseException] = []
    of_threads, unraisable = threading.excepthook, sys.unraisablehook

    def thread(error: Any) -> None:
        if error.exc_value is not None:
            errors.append(error.exc_value)

    def late(error: Any) -> None:
        if isinstance(error.exc_value, OSError):
            errors.append(error.exc_value)
        else:
            unraisable(error)

    threading.excepthook, sys.unraisablehook = thread, late
    try:
        yield errors
    finally:
        threading.excepthook = of_threads
        if sys.unraisablehook is late:  # else a save failed, whose writes may still end: see checkpoints.py
            sys.unraisablehook = unraisable


def _run(command: Command, varied: tuple[str, ...], config: Any) -> None:
    """The task that Hydra runs. A function of the module, so launchers can send it to a process."""
    job = HydraConfig.get()
    formatted = warnings.formatwarning
    # A line, as for an error, without the place in the source.
    warnings.formatwarning = lambda message, *_: f"diffkit {command.name}: {message}\n"
    try:
        plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        if command.name == "train" and plain["run"] is None:
            plain["run"] = _directory(plain, list(job.overrides.task), varied)
        for name in command.positional:
            if plain[name.removesuffix("...")] in (None, []):
                missing = name.removesuffix("s...").upper()
                raise ValueError(f"{missing} is missing: {command.usage}")
        status = command.run(plain | _checked(command.settings, plain))
    except Exception as error:  # a stranger's part may raise anything
        _show_error(command, error)
        status = 1
    finally:
        warnings.formatwarning = formatted
    if status and job.mode is RunMode.MULTIRUN:
        # Hydra runs the others before it fails; SystemExit would end them all.
        raise CompactHydraException("a run of the sweep failed.")
    if status:
        raise SystemExit(status)


def _directory(plain: Mapping[str, Any], given: Sequence[str], varied: Sequence[str]) -> str:
    """Where a run goes: where an older version put it, if the very same one is there."""
    new, old = (os.path.join(plain["root"], run_name(given, names)) for names in (varied, ()))
    if new == old or os.path.exists(new):
        return new
    try:
        known = read_config(Path(old))
    except ValueError:  # the damaged one of another run
        return new
    choices = {name: value for name, value in plain.items() if name not in ("run", "root")}
    there, now = (
        {name: value for name, value in flat(upgraded(config)).items() if value is not None}
        for config in (known, choices)
    )
    return old if there == now else new


def compose(command: str, given: Sequence[str]) -> dict[str, Any]:
    """The configuration of a command as plain containers, without running it.

    **Arguments:** `command`: a name in `diffkit.cli.settings.COMMANDS`; `given`: overrides, as on the
    command line.

    **Raises:** `hydra.errors.HydraException` for an override that does not fit.
    """
    found = COMMANDS[command]
    taken = overrides(found, given)
    _fill_store(found, taken)
    with hydra.initialize(config_path=None, version_base="1.3"):
        config = hydra.compose(_name(found), overrides=taken)
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _checked(settings: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The command's own settings, with values of the right types, before anything is done."""
    given = {field.name: _literal(config[setting_of(field.name)]) for field in fields(settings)}
    typed = OmegaConf.merge(OmegaConf.structured(settings), given)
    made = asdict(cast(Any, OmegaConf.to_object(typed)))
    return {setting_of(name): value for name, value in made.items()}


def _literal(value: Any) -> Any:
    """What OmegaConf reads as this value: no text in it is an interpolation, which were all resolved."""
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, list):
        return [_literal(item) for item in value]
    if isinstance(value, dict):
        return {name: _literal(item) for name, item in value.items()}
    return value


def _show_error(command: Command, error: Exception) -> None:
    """Say why a command fails; with its trace, while it is handled, on request."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    print(f"diffkit {command.name}: {_line(_reason(command, error))}", file=sys.stderr)


def _line(text: str) -> str:
    """A message as one line of printable signs, and no more than a screenful."""
    line = re.sub(r"\s*[\r\n]\s*", " ", re.sub(r"\x1b\[[0-9;]*m", "", text).strip())
    line = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)
    return line if len(line) <= 2000 else f"{line[:1997]}..."


def _reason(command: Command, error: BaseException) -> str:
    """What went wrong: of an error that Hydra wraps, the one within, in terms of our choices."""
    while (cause := error.__cause__) is not None and (
        isinstance(error, HydraException) or (isinstance(error, ImportError) and _extra(cause))
    ):
        error = cause
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        kind, _, name = error.missing_cfg_file.rpartition("/")
        if kind == "hydra/launcher":
            return f"the launcher {name!r} is not installed: {how_to_install('sweeps')}."
        if kind in registry.KINDS:
            try:
                registry.get(kind, name)
            except registry.UnknownPartError as unknown:
                extra = bringer(name) if kind == "preset" else None
                return f"{unknown} {how_to_install(extra)} brings it." if extra else str(unknown)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read: {str(error).splitlines()[0]}. In quotes a value may hold "
            f"any sign: \"NAME='VALUE'\"."
        )
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _unknown_option(command, error)
    # Some have no message, such as MemoryError.
    said = str(error) or type(error).__name__
    if type(error) in (KeyError, IndexError, AttributeError, AssertionError):
        said = f"{type(error).__name__}: {said}"  # which says too little alone
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {said.splitlines()[0]}"  # below it: OmegaConf's own types
    extra = _extra(error)
    return f"{said}: {how_to_install(extra)}." if extra else said


def _extra(error: BaseException) -> str | None:
    return extra_of(error.name) if isinstance(error, ModuleNotFoundError) else None


def _unknown_option(command: Command, error: OmegaConfBaseException) -> str:
    """An unknown option, the nearest known one, and all of them."""
    option, word = str(error.full_key), str(error.key)
    place = option.removesuffix(word)
    names = [str(name) for name in cast(DictConfig, error.parent_node) if str(name)[0] != "_"]
    if not place:
        if word in command.kinds:
            return f"the options of {word} need a choice: give {word}=NAME as well."
        names = [name for name in names if name not in ("hydra", *command.kinds)] + [*command.kinds]
    near = difflib.get_close_matches(RENAMED.get(word, word), names, n=1)
    hint = f" Did you mean '{place}{near[0]}'?" if near else ""
    options = ", ".join(f"{place}{name}" for name in names) or "none"
    return f"there is no option {option!r}.{hint} There are: {options}."
