"""The registry of parts, by kind and name.

A *kind* is one of the words of the library (`schedule`, `process`, `parameterization`, ...); a *part* is
anything registered under a kind and a name, usually a class. Parts of diffkit are in the modules named
after their kinds; plugins are other distributions, found through the entry-point group `diffkit.plugins`.
The first look-up imports both. `diffkit plugins` shows a plugin that fails to import; the rest works.
"""

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, TypeVar

ENTRY_POINT_GROUP: Final = "diffkit.plugins"

KINDS: Final = (
    "schedule",
    "process",
    "parameterization",
    "weighting",
    "time_sampler",
    "sampler",
    "grid",
    "decoder",
    "network",
    "optimiser",
    "data",
    "preset",
)


@dataclass(frozen=True)
class Context:
    """What the constructor of a part may request as a parameter of the same name. `None` means unknown.

    **Attributes:** `shape`: of one example; `levels`: the number of values of a dimension, unknown for
    continuous data; `statistics`: mean and standard deviation of continuous training data; `outputs`: how
    many maps of that shape the parameterization needs from the network; `condition_size`: the length of a
    condition, 0 for none; `data_std`: the standard deviation of the encoded data that the model assumes;
    `logsnr_range`: the schedule's endpoints (max, min) before training; `schedule`, `process`,
    `parameterization`: the model's, before training, for parts made after them; `key`: the part's own key.
    """

    shape: tuple[int, ...] | None = None
    levels: int | None = None
    statistics: tuple[float, float] | None = None
    outputs: int | None = None
    condition_size: int | None = None
    data_std: float | None = None
    logsnr_range: tuple[float, float] | None = None
    schedule: Any = None
    process: Any = None
    parameterization: Any = None
    key: Any = None


CONTEXT: Final = tuple(each.name for each in fields(Context))
"""The names that the constructor of a part may request."""

T = TypeVar("T")
Named = TypeVar("Named", bound=Callable[..., Any])


class RegistryError(LookupError):
    """Base class of the registry's errors."""


class UnknownKindError(RegistryError):
    """There is no such kind of part."""


class UnknownPartError(RegistryError):
    """No part of this kind is registered under this name."""


class DuplicatePartError(RegistryError):
    """Two parts of one kind claim the same name."""


class PluginWarning(UserWarning):
    """A plugin could not be imported; the other plugins work."""


@dataclass(frozen=True)
class PluginReport:
    """A report on one plugin.

    **Attributes:** `name`: the entry point's (`"diffkit"` for the core); `module`; `distribution`,
    `version`: what declares it; `parts`: the registered names, by kind; `error`: `None` if it imported,
    else the traceback as text.
    """

    name: str
    module: str
    distribution: str
    version: str
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    error: str | None = None


@dataclass
class _Part:
    value: Any
    origin: str  # module and qualified name, for error messages
    plugin: str  # the package that registered it, until the plugin of that package is known


@dataclass
class _State:
    parts: dict[str, dict[str, _Part]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    plugins: dict[str, PluginReport] = field(default_factory=dict)
    discovered: bool = False


_STATE = _State()

_ALLOWED: dict[str, Any] = {}
"""What `allow` lets configurations name, by its import path."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, after a space; empty if there is none."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UnknownKindError(
            f"there is no kind {kind!r}.{did_you_mean(kind, KINDS)} The kinds are: {', '.join(KINDS)}."
        )


def _import_core(kind: str) -> None:
    """Import the module of a kind, which registers the parts that ship with diffkit."""
    plural = {"data": "data", "process": "processes"}.get(kind, f"{kind}s")
    importlib.import_module(f"diffkit.{plural}")


def _caller() -> str:
    """The module that called `register`, past this one and the wrappers that check types."""
    frame, skipped = sys._getframe(), (f"{__name__}.", "jaxtyping.", "beartype.")
    while f"{(name := frame.f_globals.get('__name__', ''))}.".startswith(skipped):
        if frame.f_back is None:
            break
        frame = frame.f_back
    return name


def _import_path(part: Any) -> str | None:
    if inspect.isclass(part) or inspect.isfunction(part):
        return f"{part.__module__}.{part.__qualname__}"
    return None


def _origin(part: Any, caller: str) -> str:
    if path := _import_path(part):
        return path
    # An instance, such as a preset, does not record where it was made.
    return f"{type(part).__qualname__} in {caller}"


def register(kind: str, name: str) -> Callable[[T], T]:
    """Register a part: a decorator for a class or function, or a call for an instance.

    **Arguments:** `kind`: one of `diffkit.registry.KINDS`; `name`: the part's name in Python and on the
    command line, a lower-case Python identifier.

    **Returns:** a decorator that returns its argument unchanged.

    **Raises:** `UnknownKindError`; `ValueError` for a name that is not a lower-case identifier;
    `DuplicatePartError`, naming both, if another part has this kind and name.

    ```python
    @dk.register("schedule", "steep")
    class Steep(dk.AbstractSchedule):
        ...
    ```
    """
    _check_kind(kind)
    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"name must be a lower-case identifier such as 'cosine', got {name!r}.")

    caller = _caller()
    if caller.split(".")[0] != "diffkit":
        _import_core(kind)  # so names of the core are taken first

    def add(part: T) -> T:
        here, known = _origin(part, caller), _STATE.parts[kind].get(name)
        # The same definition again (a reloaded module, a notebook cell run twice) replaces itself.
        if known is not None and known.origin != here:
            raise DuplicatePartError(
                f"{kind} {name!r} is registered twice: by {known.origin} (plugin {known.plugin!r}) "
                f"and by {here}. Rename one of them."
            )
        plugin = known.plugin if known is not None else caller.split(".")[0]
        _STATE.parts[kind][name] = _Part(part, here, plugin)
        return part

    return add


def allow(value: Named) -> Named:
    """A decorator: let a configuration name a class or a function that is no part, as an option's value.

    Whoever writes a configuration that you open, such as that of a run you were sent, can call what is
    allowed, with any plain values. Registered parts need no `allow`, nor do dataclasses in the annotations
    of their options.

    **Arguments:** `value`: a class or a function of a module.

    **Returns:** its argument unchanged.

    **Raises:** `ValueError` for something without an import path.

    ```python
    @dk.registry.allow
    def smooth(x):
        ...
    ```
    """
    path = _import_path(value)
    if path is None:
        raise ValueError(f"value must be a class or a function of a module, got {type(value).__name__}.")
    _ALLOWED[path] = value
    return value


def _called(part: Any) -> Any:
    """What a configuration names: of a partial, what it calls."""
    return part.func if isinstance(part, functools.partial) else part


def kinds_of(value: Any) -> tuple[str, ...]:
    """The kinds under which a class or a function is registered."""
    return tuple(
        kind
        for kind, parts in _STATE.parts.items()
        if any(_called(part.value) is value for part in parts.values())
    )


def located(path: str) -> Any:
    """The registered part of an import path, or what `allow` lets configurations name; `None` for neither.

    Nothing is imported because of the path. It may also be that of a package above the module, such as
    `diffkit.Cosine`.
    """
    _discover()
    parts = [part for parts in _STATE.parts.values() for part in parts.values()]
    for part in parts:
        if part.origin == path and _import_path(part.value) == path:
            return part.value
    if path in _ALLOWED:
        return _ALLOWED[path]
    package, _, name = path.rpartition(".")
    above = {}
    for value in (*(_called(part.value) for part in parts), *_ALLOWED.values()):
        own = _import_path(value)
        if own == path:
            return value
        if own and package and own.startswith(f"{package}.") and own.endswith(f".{name}"):
            above[own] = value
    return next(iter(above.values())) if len(above) == 1 else None


def _discover() -> None:
    """Import the parts of the core, and every plugin once, keeping the failures."""
    if _STATE.discovered:
        return
    _STATE.discovered = True
    for kind in KINDS:
        _import_core(kind)
    importlib.import_module("diffkit.training.config")  # which configurations name beside the parts
    failures = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)):
        dist = entry.dist
        made_by = (dist.name, dist.version) if dist is not None else ("unknown", "unknown")
        # Two distributions may give their plugins one name.
        taken = f" ({made_by[0]})" if entry.name in _STATE.plugins else ""
        plugin = PluginReport(entry.name + taken, entry.value, *made_by)
        package = entry.value.split(":")[0].split(".")[0]
        try:
            entry.load()
        except Exception as error:  # a stranger's module may raise anything
            plugin = replace(plugin, error=traceback.format_exc())
            failures.append((plugin, error))
        _STATE.plugins[plugin.name] = plugin
        # By package, since a plugin may have been imported before: by hand, or by another plugin.
        for parts in _STATE.parts.values():
            for name, part in list(parts.items()):
                if part.plugin != package:
                    continue
                if plugin.error is None:
                    part.plugin = plugin.name
                else:
                    del parts[name]  # what it registered before it failed: half a plugin is none
    # Only now: if warnings are errors, the other plugins are still there.
    for plugin, error in failures:
        warnings.warn(
            f"plugin {plugin.name!r} (module {plugin.module!r}) could not be imported and is "
            f"skipped: {type(error).__name__}: {error}. 'diffkit plugins' shows more.",
            PluginWarning,
            stacklevel=3,
        )


def get(kind: str, name: str) -> Any:
    """The part registered under this kind and name: usually a class, to call with its options.

    **Raises:** `UnknownKindError`; `UnknownPartError`, which lists the names, the nearest match and failed
    plugins.
    """
    _check_kind(kind)
    _discover()
    part = _STATE.parts[kind].get(name)
    if part is None:
        names = available(kind)
        broken = [p.name for p in _STATE.plugins.values() if p.error is not None]
        failed = f" Plugins that failed to import: {', '.join(broken)}." if broken else ""
        raise UnknownPartError(
            f"there is no {kind} {name!r}.{did_you_mean(name, names)} Available: "
            f"{', '.join(names) or 'none'}.{failed}"
        )
    return part.value


def available(kind: str) -> tuple[str, ...]:
    """The registered names of a kind, sorted; an `UnknownKindError` if there is no such kind."""
    _check_kind(kind)
    _discover()
    return tuple(sorted(_STATE.parts[kind]))


def plugins() -> tuple[PluginReport, ...]:
    """A report on the core and on every installed plugin, by name."""
    _discover()
    try:
        version = importlib.metadata.version("diffkit")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree without installing
        version = "unknown"
    known = {"diffkit": PluginReport("diffkit", "diffkit", "diffkit", version)} | _STATE.plugins
    # Parts from a script or a notebook belong to no distribution.
    for part in (part for parts in _STATE.parts.values() for part in parts.values()):
        known.setdefault(part.plugin, PluginReport(part.plugin, part.plugin, "none", "none"))
    return tuple(
        replace(
            plugin,
            parts={
                kind: names
                for kind, parts in _STATE.parts.items()
                if (names := tuple(sorted(n for n, p in parts.items() if p.plugin == plugin.name)))
            },
        )
        for plugin in known.values()
    )


def is_constructor(part: Any) -> bool:
    """Whether this makes a part (a class, a function, a `functools.partial`) rather than being one."""
    return inspect.isclass(part) or inspect.isfunction(part) or isinstance(part, functools.partial)


def complete(part: Any, context: Context | Mapping[str, Any] = Context()) -> Any:
    """Make a part: call it with the entries of the context that its signature names.

    **Arguments:** `part`: a class, a function, or a `functools.partial` of one with options; an instance is
    returned as it is; `context`: what is known, as a `Context` or by name.
    """
    if not is_constructor(part):
        return part
    if isinstance(context, Context):
        context = {name: value for name, value in vars(context).items() if value is not None}
    parameters = inspect.signature(part).parameters
    given = part.keywords if isinstance(part, functools.partial) else {}
    return part(**{k: v for k, v in context.items() if k in parameters and k not in given})


def name_of(kind: str, part: Any) -> str | None:
    """The registered name of a part (or an instance of it), or `None`."""
    _check_kind(kind)
    for name, known in _STATE.parts[kind].items():
        if known.value is part or known.value is type(part):
            return name
    return None
