"""Nodes of configurations: a part by its import path and its options, made by an allow-list.

A configuration may be a stranger's. So a node names only what is known already: registered parts,
dataclasses in the annotations of their options, and what `diffkit.registry.allow` adds. All of a node is
checked before anything is made of it; nothing is imported or called because a node names it.
"""

import dataclasses
import functools
import importlib.util
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

from diffkit import registry
from diffkit.display import type_name
from diffkit.registry import CONTEXT, did_you_mean, located, name_of

FOREIGN: Final = "_python_"
"""Marks the node of a part that was made in Python, and what it was."""

_WORDS: Final = ("_target_", "_partial_")
_OF_FOREIGN: Final = (FOREIGN, "content")
_OF_FOREIGN_DATA: Final[Mapping[str, Any]] = {
    "shape": tuple[int, ...],
    "levels": int | None,
    "condition_size": int,
    "statistics": tuple[float, float] | None,
}
_MISSING: Final = "???"  # OmegaConf's word for an option without a value
# What hydra-zen writes for an option whose value is itself a class or a function.
_GET_OBJECT: Final = "hydra_zen.funcs.get_obj"
_NO_OPTION: Final = inspect.Parameter("option", inspect.Parameter.KEYWORD_ONLY, annotation=Any)
_LONGEST: Final = 4096
_DEEPEST: Final = 64


def find(target: Any) -> Any:
    """The registered part that a node names; `None` if there is none, such as that of a missing plugin."""
    return located(target) if isinstance(target, str) else None


def defaults(target: Any) -> Mapping[str, Any]:
    """The options of what a node names that have plain defaults."""
    made = find(target)
    signature = inspect.signature(made).parameters if callable(made) else {}
    return {
        name: stored(parameter.default)
        for name, parameter in signature.items()
        if is_plain(parameter.default) and name not in CONTEXT
    }


def stored(value: Any) -> Any:
    """A plain value as a configuration holds it."""
    if isinstance(value, tuple | list):
        return [stored(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


def is_plain(value: Any) -> bool:
    """Whether a configuration can hold a value: numbers, text, paths, and lists of them."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    return isinstance(value, bool | int | float | str | os.PathLike | None)


def make(node: Any, key: str = "") -> Any:
    """Make what a node of a configuration describes.

    **Arguments:** `node`: a mapping with `_target_`, the import path of a registered part; `key`: its place
    in the configuration, for error messages.

    **Returns:** an instance; or, for `_partial_: true`, a `functools.partial` with the options.
    Sequences become tuples, as the constructors of parts expect.

    **Raises:** `ValueError` for a part made in Python, an option without a value, and whatever `check_node`
    refuses; `ModuleNotFoundError` for the part of a plugin that is not installed.
    """
    if not isinstance(node, Mapping):
        raise wrong("", key or "a node", "be a mapping with _target_", node)
    if FOREIGN in node:
        raise ValueError(
            f"the run has a part that was made in Python, {node[FOREIGN]}, and no command can make it: "
            "dk.load_run(path, like=...), with the preset or the model that was trained."
        )
    part = find(node.get("_target_", ""))
    kinds = registry.kinds_of(part)
    for option, value in node.items():
        if kinds and value == _MISSING:
            text = f"{part.__doc__}\n\n{part.__init__.__doc__}\n\n"
            said = re.search(rf"`{option}`: (.*?)(?:[.;]\s|\n\s*\n)", text, re.S)
            raise ValueError(
                f"{kinds[0]}={name_of(kinds[0], part)} needs {kinds[0]}.{option}=..."
                + (f", {' '.join(said[1].split())}." if said else ".")
            )
    check_node(node, key or next(iter(kinds), "a node"), building=True)
    return _made(node)


def _made(node: Mapping[str, Any], option: inspect.Parameter = _NO_OPTION) -> Any:
    """Make a node that was checked, the value of an option."""
    if node["_target_"] == _GET_OBJECT:
        return _object(node["path"], option.default)
    part = _callable(node["_target_"], option.annotation)
    parameters = _parameters(part)
    options = {name: _value(value, parameters.get(name, _NO_OPTION)) for name, value in _options(node)}
    if node.get("_partial_", False):
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
        return functools.partial(part, **options)
    return part(**options)


def _value(value: Any, option: inspect.Parameter = _NO_OPTION) -> Any:
    if isinstance(value, Mapping):
        return _made(value, option) if "_target_" in value else {k: _value(v) for k, v in value.items()}
    return [_value(item) for item in value] if isinstance(value, list | tuple) else value


def _callable(target: str, hint: Any) -> Any:
    """What a node may call: what is registered, or a dataclass in the annotation of the option."""
    own = (cls for cls in _classes(hint) if dataclasses.is_dataclass(cls) and _path(cls) == target)
    return find(target) or next(own, None)


def _object(path: Any, default: Any) -> Any:
    """What an option may name: what is registered, or the option's default."""
    return find(path) or (default if path == _path(default) else None)


def _path(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"


def _parameters(part: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(part).parameters
    except ValueError:  # a class in C
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}


def wrong(where: str, key: str, must: str, got: Any) -> ValueError:
    """An error about an entry of a configuration: the file, the key, what is expected, and what came."""
    return ValueError(f"{where}{key} must {must}, got {short(got)}.")


def short(value: Any) -> str:
    """A value in a few printable words."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list without end
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown(where: str, place: str, name: Any, known: Iterable[str]) -> ValueError:
    """An error about a key that is none: the nearest known one, and all of them."""
    known = list(known)
    hint = did_you_mean(name, known) if isinstance(name, str) else ""
    return ValueError(f"{where}{place} has no {short(name)}.{hint} It has: {', '.join(known)}.")


def check_node(
    node: Any,
    key: str,
    *,
    kind: str | None = None,
    where: str = "",
    building: bool = False,
    option: inspect.Parameter = _NO_OPTION,
) -> None:
    """Check all of a node before anything is made of it: no import and no call.

    **Arguments:** `node`; `key`: its place in the configuration; `kind`: of the part that it must name, if
    any; `where`: what an error begins with, such as the name of a file; `building`: refuse a part whose
    plugin is not installed; `option`: whose value the node is, if it is within another.

    **Raises:** `ValueError` for a target that is not registered or of another kind, a word that begins with
    an underscore, an unknown or missing option, or a value that does not fit its annotation;
    `ModuleNotFoundError` for the part of a plugin that is not installed (`building`).
    """
    check_values(node, key, where=where)
    if not isinstance(node, Mapping):
        raise wrong(where, key, "be a mapping with _target_", node)
    if FOREIGN in node:
        _check_foreign(node, key, where)
        return
    target, partial = node.get("_target_"), node.get("_partial_", False)
    if not isinstance(target, str):
        got = "nothing" if target is None else short(target)
        raise ValueError(
            f"{where}{key}._target_ must be the import path of a registered {kind or 'part'}, got {got}."
        )
    if not isinstance(partial, bool):
        raise wrong(where, f"{key}._partial_", "be true or false", partial)
    if words := [name for name in node if name.startswith("_") and name not in _WORDS]:
        raise ValueError(
            f"{where}{key}.{words[0]} must not be there: of words with an underscore a node has "
            f"{' and '.join(_WORDS)}."
        )
    part = _callable(target, option.annotation)
    if part is None:
        _refuse(target, key, kind, where, building)
        for name, value in _options(node):  # whose annotations are not known
            _check_option(value, f"{key}.{name}", _NO_OPTION, where, building)
        return
    if kind is not None and kind not in registry.kinds_of(part):
        raise wrong(where, f"{key}._target_", f"be a registered {kind}", target)
    parameters = _parameters(part)
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for name, value in _options(node):
        if name not in parameters and not open_ended:
            raise unknown(where, key, name, (n for n in parameters if n not in CONTEXT))
        _check_option(value, f"{key}.{name}", parameters.get(name, _NO_OPTION), where, building)
    for name, each in parameters.items():
        needed = each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        if needed and name not in node and name not in CONTEXT:
            raise ValueError(f"{where}{key}.{name} is missing, which {short(target)} needs.")


def _options(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in node.items() if name not in _WORDS)


def _check_foreign(node: Mapping[str, Any], key: str, where: str) -> None:
    """The node of a part that was made in Python: a record, of which nothing is made."""
    known = (*_OF_FOREIGN, *(_OF_FOREIGN_DATA if key == "data" else ()))
    for name in node:
        if name not in known:
            raise unknown(where, key, name, known)
    if not isinstance(node[FOREIGN], str):
        raise wrong(where, f"{key}.{FOREIGN}", "be the name of what was made", node[FOREIGN])
    for name, hint in _OF_FOREIGN_DATA.items() if key == "data" else ():
        if name not in node:
            raise ValueError(f"{where}{key}.{name} is missing.")
        if not fits(node[name], hint):
            raise wrong(where, f"{key}.{name}", f"be {type_name(hint)}", node[name])


def _refuse(target: str, key: str, kind: str | None, where: str, building: bool) -> None:
    """Refuse a target that is not registered, unless it may be of a plugin that is not installed."""
    package = target.partition(".")[0]
    broken = [p for p in registry.plugins() if p.error is not None and p.module.split(".")[0] == package]
    if broken:
        if building:
            raise ValueError(
                f"{where}{key}._target_ is {short(target)}, of the plugin {broken[0].name!r}, which could "
                "not be imported: 'diffkit plugins' shows why."
            )
    elif not ("." in target and all(map(str.isidentifier, target.split("."))) and _is_absent(package)):
        must = f"be a registered {kind or 'part'}, as nothing else is imported"
        raise wrong(where, f"{key}._target_", must, target)
    elif building:
        raise ModuleNotFoundError(
            f"{where}{key} is {short(target)}, of the package {package!r}, which is not installed",
            name=package,
        )


def _is_absent(package: str) -> bool:
    """Whether there is no package or module of this name, without importing it."""
    try:
        return importlib.util.find_spec(package) is None
    except (ImportError, ValueError):  # a module without a specification, such as __main__
        return False


def _check_option(value: Any, key: str, option: inspect.Parameter, where: str, building: bool) -> None:
    """The value of an option, with the nodes within it."""
    if isinstance(value, Mapping) and "_target_" in value:
        _check_nested(value, key, option, where, building)
        return
    if isinstance(value, Mapping):
        if words := [name for name in value if name.startswith("_")]:
            raise ValueError(f"{where}{key}.{words[0]} must not be there.")
        for name, item in value.items():
            _check_option(item, f"{key}.{name}", _NO_OPTION, where, building)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_option(item, f"{key}[{index}]", _NO_OPTION, where, building)
    if not fits(value, option.annotation):
        raise wrong(where, key, f"be {type_name(option.annotation)}", value)


def _check_nested(
    node: Mapping[str, Any], key: str, option: inspect.Parameter, where: str, building: bool
) -> None:
    """A node that is the value of an option."""
    if node["_target_"] == _GET_OBJECT:
        path = node.get("path")
        if set(node) != {"_target_", "path"} or _object(path, option.default) is None:
            raise wrong(where, f"{key}.path", "name what is registered", path)
        return
    check_node(node, key, where=where, building=building, option=option)
    hint = option.annotation
    part, classes = _callable(node["_target_"], hint), [*_classes(hint)]
    suits = Any in classes or not isinstance(part, type) or issubclass(part, tuple(classes))
    if not suits or (classes and set(classes) <= {bool, int, float, str, type(None)}):
        raise wrong(where, key, f"be {type_name(hint)}", dict(node))


def _classes(hint: Any) -> Iterator[Any]:
    """The classes that a value may be of, `Any` for any."""
    if get_origin(hint) in (Union, UnionType, Annotated):
        for inner in get_args(hint):
            yield from _classes(inner)
    else:
        kind = get_origin(hint) or hint
        yield kind if isinstance(kind, type) and kind is not inspect.Parameter.empty else Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits an annotation: a list is any sequence, a whole number is a float too."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is inspect.Parameter.empty or isinstance(hint, TypeVar | str):
        return True
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Annotated:
        return fits(value, inner[0])
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    kind = origin or hint
    if value is None or kind is type(None) or kind is None:
        return value is None and kind in (None, type(None))
    if not isinstance(kind, type):  # an annotation of another sort
        return not isinstance(value, Mapping)
    if isinstance(value, bool):
        return kind in (bool, object)
    if isinstance(value, int | float):
        return kind is object or isinstance(value, kind) or (kind is float and isinstance(value, int))
    if isinstance(value, str):
        return kind in (str, object) or kind is os.PathLike or issubclass(kind, PurePath)
    if isinstance(value, Mapping):
        if "_target_" in value:  # in a list; what it names is checked by itself
            return True
        return issubclass(kind, Mapping) and all(fits(v, inner[1]) for v in value.values() if inner)
    if isinstance(value, list | tuple):
        if kind is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(fits, value, inner))
        if issubclass(kind, str | bytes | Mapping) or not issubclass(kind, Iterable):
            return False
        return not inner or all(fits(item, inner[0]) for item in value)
    return False


def check_values(value: Any, key: str, *, where: str = "", depth: int = 0) -> None:
    """Refuse what no configuration holds: keys that are no text, and values that are not plain.

    **Raises:** `ValueError`, naming the key.
    """
    if depth > _DEEPEST:
        raise ValueError(f"{where}{key} must be nested at most {_DEEPEST} deep.")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
                raise wrong(where, f"a key of {key}", "be a short printable text", name)
            check_values(item, f"{key}.{name}", where=where, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_values(item, f"{key}[{index}]", where=where, depth=depth + 1)
    elif isinstance(value, str):
        if len(value) > _LONGEST or any(_is_control(sign) for sign in value):
            must = f"be a text of at most {_LONGEST} characters, without control characters"
            raise wrong(where, key, must, value)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**64:
            raise wrong(where, key, "be below 2^64 in size", value)
    elif not is_plain(value):
        raise wrong(where, key, "be a number, a text, a list or a mapping", value)


def _is_control(sign: str) -> bool:
    return (sign < " " and sign not in "\t\n") or "\x7f" <= sign <= "\x9f"
