"""From the words of a command line to Hydra's overrides, the jobs of a sweep, and names of their runs.

A setting for a name or a path, by its annotation, is taken as it is typed; the rest is in Hydra's grammar.
"""

import hashlib
import inspect
import itertools
import os
import re
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.errors import HydraException

from diffkit import registry
from diffkit.cli.settings import DEFAULT_PRESET, Command, setting_of
from diffkit.configs import MAY_CHANGE
from diffkit.training import TrainConfig

_SWEEPS: Final = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\(.*\)", re.S)
_IN_QUOTES: Final = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?:,|$)""", re.S)
# A value that two names cannot share: nothing but letters, digits and a few signs, or a list of such.
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]*|\[([A-Za-z0-9._-]+(,[A-Za-z0-9._-]+)*)?\]")


def parsed(overrides: Sequence[str], loader: Any = None) -> list[Override]:
    """Overrides in Hydra's grammar; `loader`: Hydra's own, for a glob."""
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def presets(overrides: Sequence[str]) -> list[str]:
    """The presets that are chosen: more than one only with --multirun."""
    chosen = [override for override in parsed(overrides) if override.key_or_group == "preset"]
    if not chosen:
        return [DEFAULT_PRESET]
    value = cast(Any, chosen[-1].value())
    if isinstance(value, Glob):
        return value.filter([*registry.available("preset")])
    sweep = chosen[-1].is_sweep_override()
    return [*chosen[-1].sweep_string_iterator()] if sweep else [str(value)]


def literal(text: str) -> str:
    """What OmegaConf reads as this text, though it may look like an interpolation."""
    return re.sub(r"(\\*)\$\{", lambda found: rf"{found[1] * 2}\${{", text)


def _quoted(text: str) -> str:
    """A text as Hydra reads it whatever it holds."""
    return QuotedString(literal(text), Quote.single).with_quotes()


def _text(text: str) -> str:
    """The same, without quotes where Hydra reads it as it is: names of runs are made of this."""
    try:
        override = parsed([f"x={text}"])[0]
        kept = "${" not in text and not override.is_sweep_override() and override.value() == text
    except HydraException:
        kept = False
    return text if kept else _quoted(text)


def _members(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, each without its parameters."""
    if isinstance(annotation, getattr(typing, "TypeAliasType", ())):
        annotation = annotation.__value__
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        for each in arguments:
            yield from _members(each)
    elif origin is Annotated:
        yield from _members(arguments[0])
    elif origin is Literal:
        yield from map(type, arguments)
    elif origin in (list, tuple, Sequence) and any(map(_is_text, arguments)):
        yield list[str]
    else:
        yield origin or annotation


def _is_text(allowed: Any) -> bool:
    if not isinstance(allowed, type) or isinstance(allowed, types.GenericAlias):
        return False
    return issubclass(allowed, str) or hasattr(allowed, "__fspath__")


def _annotations(command: Command, key: str, words: Sequence[str]) -> list[Any]:
    """What a setting may be: the annotation of the setting, or of the option in each part that has it."""
    head, _, option = key.partition(".")
    if not option:
        hints = {setting_of(name): hint for name, hint in _hints(command.settings).items()}
        return [hints[head]] if head in hints else []
    if head == "train" and "preset" in command.kinds:
        hints = _hints(TrainConfig)
        return [hints[option]] if option in hints else []
    if head not in command.kinds or head not in registry.KINDS:
        return []
    known = registry.available(head)
    named = [word.partition("=")[2].split(",") for word in words if word.startswith(f"{head}=")]
    chosen = [name for name in (named[-1] if named else ()) if name in known]
    found = (_parameters(registry.get(head, name)).get(option) for name in chosen or known)
    return [parameter.annotation for parameter in found if parameter is not None]


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _parameters(part: Any) -> dict[str, inspect.Parameter]:
    for evaluated in (True, False):  # a stranger's annotation may not evaluate
        try:
            return {**inspect.signature(part, eval_str=evaluated).parameters}
        except Exception:
            continue
    return {}


def _value(value: str, annotations: Sequence[Any], *, multirun: bool) -> str:
    """The value of a setting in Hydra's grammar: names and paths as they were typed."""
    allowed = {member for annotation in annotations for member in _members(annotation)}
    if list[str] in allowed and (inside := re.fullmatch(r"\[(.*)\]", value, re.S)):
        items = _items(inside[1]) if inside[1].strip() else []
        return f"[{','.join(_quoted(text) for text, _ in items)}]"
    if not any(map(_is_text, allowed)):
        return value

    def taken(text: str) -> str:
        if (text == "null" and type(None) in allowed) or (bool in allowed and text in ("true", "false")):
            return text
        if {int, float} & allowed and re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", text, re.I):
            return text
        listed = {list, tuple, dict} & allowed and text[:1] in ("[", "{")
        return text if listed else _text(text)

    if not multirun:
        return taken(value)
    if _SWEEPS.fullmatch(value):
        return value
    return ",".join(_quoted(text) if quoted else taken(text) for text, quoted in _items(value))


def _items(value: str) -> Iterator[tuple[str, bool]]:
    """What commas separate, and whether it stands in quotes, which then are no part of it."""
    rest: str | None = value
    while rest is not None:
        if found := _IN_QUOTES.match(rest):
            yield str(parsed([f"x={found[1]}"])[0].value()), True
            rest = rest[found.end() :] if found[0].endswith(",") else None
        else:
            text, comma, after = rest.partition(",")
            yield text.strip(), False
            rest = after if comma else None


def _is_setting(command: Command, word: str) -> bool:
    """Whether a word is SETTING=VALUE, rather than a path with an equals sign."""
    name, equals, _ = word.partition("=")
    key = name.lstrip("+~")
    head = re.split(r"[./@]", key, maxsplit=1)[0]
    if not equals:
        return False
    if head == "hydra":
        return True
    if "/" in key:
        return False
    if head in {*command.defaults, *command.kinds} or (head == "train" and "preset" in command.kinds):
        return True
    return not os.path.exists(word) and re.fullmatch(r"[^\W\d]\w*([.@]\w+)*", key) is not None


def overrides(command: Command, words: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Hydra's overrides of a command line: positional words become settings.

    **Arguments:** `command`; `words`; `multirun`: whether a comma separates the values of several jobs, in
    a name or a path too; quotes then keep it.

    **Raises:** `ValueError` for a word that stands for no setting.
    """
    named, rest, first = [], [], []
    changes = "data" in command.kinds and command.kinds["data"] is None
    for word in words:
        if not _is_setting(command, word):
            rest.append(word)
            continue
        name, _, value = word.partition("=")
        annotations = _annotations(command, name.lstrip("+"), words)
        if changes and name.startswith("data.") and not any(w.startswith("data=") for w in words):
            name = f"+{name}"  # of the data that the run names
        named.append(f"{name}={_value(value, annotations, multirun=multirun)}")
    for name in command.positional:
        if name.endswith("...") and rest:
            first.append(f"{name[:-3]}=[{','.join(map(_quoted, rest))}]")
            rest = []
        elif rest:
            first.append(f"{name}={_quoted(rest.pop(0))}")
    if wrong := [word for word in rest if not word.startswith("~")]:
        raise ValueError(f"{wrong[0]!r} must be SETTING=VALUE: {command.usage} [SETTING=VALUE ...].")
    return [*first, *named, *rest]


def varied(given: Sequence[str]) -> tuple[str, ...]:
    """The settings that have several values in the overrides of a sweep."""
    return tuple(o.get_key_element() for o in parsed(given) if o.is_sweep_override())


def jobs(given: Sequence[str], loader: Any = None) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper makes them.

    **Arguments:** `given`: the overrides of the sweep; `loader`: Hydra's own, for a glob.
    """
    choices: dict[str, list[str]] = {}  # given twice, the last one counts
    for override in parsed(given, loader):
        if not override.is_hydra_override():
            key = override.get_key_element()
            choices[key] = (
                list(override.sweep_string_iterator())
                if override.is_sweep_override()
                else [override.get_value_element_as_str()]
            )
    combined = itertools.product(*choices.values())
    return [[f"{key}={value}" for key, value in zip(choices, job, strict=True)] for job in combined]


def run_name(given: Sequence[str], varied: Collection[str] = ()) -> str:
    """A directory name made from the overrides, so the same command finds its run again.

    Settings that may change when a run goes on have no part in it, unless the sweep varies them: its jobs
    then are different runs.

    **Arguments:** `given`: the overrides of one job; `varied`: the settings in which the jobs of its sweep
    differ.
    """
    ignored = {"root", *(set(MAY_CHANGE) - set(varied))}
    kept = sorted(o for o in given if o.partition("=")[0] not in ignored)
    name = short("_".join(kept) or "default")
    # Signs that a name cannot have may be all that two jobs differ in.
    values = [o for o in kept if o.partition("=")[0] in varied]
    if any(not _PLAIN.fullmatch(o.partition("=")[2]) for o in values):
        name = f"{name}-{_digest(' '.join(values))[:8]}"
    return name


def short(text: str) -> str:
    """A text as the name of a file: other signs become hyphens, and what is too long is cut."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    # File systems take about 255.
    return name if len(name) <= 200 else f"{name[:180]}-{_digest(name)[:12]}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def check_sweep(given: Sequence[str], root: str, loader: Any = None) -> None:
    """Refuse a sweep of which two jobs would write the same run.

    **Arguments:** `given`: the overrides of `diffkit train --multirun`; `root`: the default of that
    setting; `loader`: Hydra's own.

    **Raises:** `ValueError`, naming the directory.
    """
    if any(override.key_or_group == "hydra/sweeper" for override in parsed(given)):
        return  # what it tries is not known beforehand
    names, places = varied(given), set[Path]()
    for job in jobs(given, loader):
        chosen = {str(o.key_or_group): o.value() for o in parsed(job)}
        run = chosen.get("run") or os.path.join(str(chosen.get("root") or root), run_name(job, names))
        place = Path(os.path.abspath(str(run)))
        if place in places:
            how = "give root=DIR in place of run=DIR" if chosen.get("run") else "give each value only once"
            raise ValueError(f"two jobs of this sweep would write the same run, {run}: {how}.")
        places.add(place)
