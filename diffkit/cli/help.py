"""The help texts: settings of each command, and what can be chosen for each kind."""

import dataclasses
import inspect

from diffkit import registry
from diffkit.cli.settings import (
    RUN_CHOICES,
    ConvertSettings,
    EquivalenceSettings,
    EvaluateSettings,
    SampleSettings,
    TrainSettings,
)
from diffkit.presets import CONTEXT

_COMMANDS = {
    "train": (
        "usage: diffkit train [--multirun] [KIND=NAME ...] [KIND.OPTION=VALUE ...] "
        "[train.SETTING=VALUE ...]",
        TrainSettings,
    ),
    "evaluate": ("usage: diffkit evaluate RUN [SETTING=VALUE ...]", EvaluateSettings),
    "sample": ("usage: diffkit sample RUN [SETTING=VALUE ...]", SampleSettings),
    "convert": (
        "usage: diffkit convert RUN OUT [process=NAME] [schedule=NAME] [KIND.OPTION=VALUE ...]",
        ConvertSettings,
    ),
    "equivalence": ("usage: diffkit equivalence A B [SETTING=VALUE ...]", EquivalenceSettings),
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
        f"{option}={parameter.default}" if parameter.default is not parameter.empty else option
        for option, parameter in inspect.signature(part).parameters.items()
        if option not in CONTEXT
    ]
    return "  ".join(options)


def _fields(settings: type, prefix: str = "") -> list[str]:
    return [f"  {prefix}{f.name}={f.default}" for f in dataclasses.fields(settings)]


def command_help(command: str) -> str:
    """The help of one command."""
    usage, settings = _COMMANDS[command]
    lines = [usage, "", "settings:", *_fields(settings)]
    if command == "train":
        from diffkit.training.config import TrainConfig

        lines += _fields(TrainConfig, "train.")
        kinds = registry.KINDS
    else:
        kinds = RUN_CHOICES.get(command, ())
    for kind in kinds:
        lines += ["", f"{kind}:"]
        lines += [f"  {name}  {_options(kind, name)}".rstrip() for name in registry.available(kind)]
    return "\n".join(lines)
