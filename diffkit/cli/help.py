"""The help texts: settings of each command, and what can be chosen for each kind."""

import dataclasses
import inspect

from diffkit import registry
from diffkit.cli.settings import RUN_CHOICES, SETTINGS
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
        f"{option}={parameter.default}" if parameter.default is not parameter.empty else option
        for option, parameter in inspect.signature(part).parameters.items()
        if option not in CONTEXT
    ]
    return "  ".join(options)


def _fields(settings: type, prefix: str = "") -> list[str]:
    values = settings()
    return [f"  {prefix}{f.name}={getattr(values, f.name)}" for f in dataclasses.fields(settings)]


def command_help(command: str) -> str:
    """The help of one command."""
    usage = f"usage: diffkit {command} {_USAGE[command]}"
    lines = [usage, "", "settings:", *_fields(SETTINGS[command])]
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
