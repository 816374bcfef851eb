"""The help texts: settings of each command, and the choices for each kind."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from diffkit import registry
from diffkit.cli.settings import DEFAULT_PRESET, LAUNCHERS, Command, setting_of
from diffkit.configs import KINDS
from diffkit.presets import CONTEXT


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
        f"{option}={_as_typed(parameter.default)}" if parameter.default is not parameter.empty else option
        for option, parameter in inspect.signature(part).parameters.items()
        if option not in CONTEXT
    ]
    return "  ".join(options)


def described(settings: type) -> dict[str, str]:
    """What the docstrings of a settings class say of each setting: the first sentence of its line."""
    found: dict[str, str] = {}
    text = "\n\n".join(cls.__doc__ or "" for cls in reversed(settings.__mro__))
    for names, words in re.findall(
        r"^ *- (`\w+`(?:, `\w+`)*): (.*?)(?=^ *- `|^\s*$|\Z)", text, re.M | re.S
    ):
        sentence = re.split(r"\.(?:\s|$)", re.sub(r"\s+\(`[^)]*\)", "", words))[0]
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
        name = setting_of(field.name)
        setting = f"  {prefix}{name}={_as_typed(getattr(values, field.name))}"
        lines += textwrap.wrap(
            f"{setting:<36}  {words.get(name, '')}".rstrip(),
            width=100,
            subsequent_indent=" " * 38,
            break_on_hyphens=False,
        )
    return lines


def command_help(command: Command) -> str:
    """The help of one command."""
    kinds, defaults = command.kinds, {**command.kinds}
    lines = [f"usage: {command.usage}{' [KIND=NAME ...]' if kinds else ''} [SETTING=VALUE ...]"]
    for paragraph in inspect.cleandoc(command.settings.__doc__ or "").split("\n\n"):
        if not paragraph.startswith(("**Arguments:**", "- ")):
            lines += ["", *textwrap.wrap(paragraph.replace("`", ""), width=100)]
    lines += ["", "settings:", *_fields(command.settings)]
    if command.name == "train":
        from diffkit.training.config import TrainConfig

        if DEFAULT_PRESET in registry.available("preset"):
            preset = registry.get("preset", DEFAULT_PRESET)
            defaults |= {kind: preset.choice(kind)[0] for kind in KINDS}
        lines += [
            *_fields(TrainConfig, "train."),
            "",
            "A preset's parts and settings replace these: 'diffkit train preset=NAME --cfg job' shows",
            f"what a run uses. Parts marked * are those of preset={DEFAULT_PRESET}, the default.",
        ]
    lines += [
        "",
        "flags:",
        "  --cfg job          show the settings, and do nothing",
        "  --multirun, -m     run a job for each combination of values, as in NAME=VALUE1,VALUE2",
        f"  launcher=NAME      with --multirun: {', '.join(LAUNCHERS)};",
        "                     settings as hydra.launcher.SETTING=VALUE, shown by --cfg hydra",
    ]
    for kind in kinds:
        lines += ["", f"{kind}:"]
        for name in registry.available(kind):
            mark = "*" if defaults[kind] == name else " "
            lines.append(f"{mark} {name}  {_options(kind, name)}".rstrip())
    return "\n".join(lines)
