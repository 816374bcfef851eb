"""The help texts: settings of each command, and the choices for each kind."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from diffkit import registry
from diffkit.cli.settings import DEFAULT_DATA, DEFAULT_PRESET, RUN_CHOICES, SETTINGS
from diffkit.presets import CONTEXT

_USAGE = {
    "train": "[--multirun] [KIND=NAME ...] [KIND.OPTION=VALUE ...] [train.SETTING=VALUE ...]",
    "evaluate": "RUN [KIND=NAME ...] [SETTING=VALUE ...]",
    "sample": "RUN [KIND=NAME ...] [SETTING=VALUE ...]",
    "convert": "RUN OUT [process=NAME] [schedule=NAME] [KIND.OPTION=VALUE ...]",
    "equivalence": "A B [SETTING=VALUE ...]",
    "report": "RUN [RUN ...] [SETTING=VALUE ...]",
}


def choices() -> str:
    """The registered names of every kind, a line each."""
    width = max(map(len, registry.KINDS))
    lines = [f"  {kind:<{width}}  {', '.join(registry.available(kind))}" for kind in registry.KINDS]
    return "\n".join(["choices:", *lines])


def _options(kind: str, name: str) -> str:
    part = registry.get(kind, name)
    if not callable(part):
        return ""
    options = [
        f"{option}={_as_typed(parameter.default)}"
        if parameter.default is not parameter.empty
        else option
        for option, parameter in inspect.signature(part).parameters.items()
        if option not in CONTEXT
    ]
    return "  ".join(options)


def described(settings: type) -> dict[str, str]:
    """What the docstring of a settings class says of each setting: the first sentence of its line."""
    found: dict[str, str] = {}
    for names, words in re.findall(
        r"^ *- (`\w+`(?:, `\w+`)*): (.*?)(?=^ *- `|^\s*$|\Z)", settings.__doc__ or "", re.M | re.S
    ):
        sentence = re.split(r"\.(?:\s|$)", re.sub(r"\s+\([^)]*\)", "", words))[0]
        line = " ".join(sentence.replace("`", "").split())
        found |= dict.fromkeys(re.findall(r"\w+", names), line)
    return found


def _as_typed(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fields(settings: type, prefix: str = "") -> list[str]:
    """The settings with their defaults and descriptions."""
    values, words, lines = settings(), described(settings), []
    for field in dataclasses.fields(settings):
        setting = f"  {prefix}{field.name}={_as_typed(getattr(values, field.name))}"
        lines += textwrap.wrap(
            f"{setting:<36}  {words.get(field.name, '')}".rstrip(),
            width=100,
            subsequent_indent=" " * 38,
            break_on_hyphens=False,
        )
    return lines


def _default_parts() -> Mapping[str, str]:
    """The name that `diffkit train` chooses for each kind, if the default preset is installed."""
    chosen = {"preset": DEFAULT_PRESET, "data": DEFAULT_DATA}
    if DEFAULT_PRESET in registry.available("preset"):
        preset = registry.get("preset", DEFAULT_PRESET)
        chosen |= {kind: preset.choice(kind)[0] for kind in registry.KINDS if kind not in chosen}
    return chosen


def command_help(command: str) -> str:
    """The help of one command."""
    usage = f"usage: diffkit {command} {_USAGE[command]}"
    lines = [usage, "", "settings:"]
    kinds, defaults = RUN_CHOICES.get(command, ()), {}
    if command == "train":
        from diffkit.training.config import TrainConfig

        kinds, defaults = registry.KINDS, _default_parts()
        lines += [f"  preset={DEFAULT_PRESET}  data={DEFAULT_DATA}", *_fields(SETTINGS[command])]
        lines += [
            *_fields(TrainConfig, "train."),
            "",
            "A preset's parts and settings replace these: 'diffkit train preset=NAME --cfg job' shows",
            f"what a run uses. Parts marked * are those of preset={DEFAULT_PRESET}, the default.",
        ]
    else:
        lines += _fields(SETTINGS[command])
    for kind in kinds:
        lines += ["", f"{kind}:"]
        for name in registry.available(kind):
            mark = "*" if defaults.get(kind) == name else " "
            lines.append(f"{mark} {name}  {_options(kind, name)}".rstrip())
    return "\n".join(lines)
