"""Laws, their violations, and how to test a part for all laws of its kind."""

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Real

from diffkit.data import AbstractDataset
from diffkit.decoders import AbstractDecoder
from diffkit.grids import AbstractGrid
from diffkit.networks import AbstractNetwork
from diffkit.optimisers import AbstractOptimiser
from diffkit.parameterizations import AbstractParameterization, Epsilon
from diffkit.presets import Preset
from diffkit.processes import AbstractProcess, VariancePreserving
from diffkit.registry import CONTEXT, KINDS, complete, name_of
from diffkit.samplers import AbstractSampler
from diffkit.schedules import AbstractSchedule, LinearLogSNR
from diffkit.time_samplers import AbstractTimeSampler
from diffkit.weightings import AbstractWeighting

LOGSNR_RANGE: Final = (13.3, -10.0)
"""The largest and the smallest `logsnr` at which every part must work in float32."""

BASES: Final[Mapping[str, type]] = {
    "schedule": AbstractSchedule,
    "process": AbstractProcess,
    "parameterization": AbstractParameterization,
    "weighting": AbstractWeighting,
    "time_sampler": AbstractTimeSampler,
    "sampler": AbstractSampler,
    "grid": AbstractGrid,
    "decoder": AbstractDecoder,
    "network": AbstractNetwork,
    "optimiser": AbstractOptimiser,
    "data": AbstractDataset,
    "preset": Preset,
}
"""The base class of each kind."""


class LawError(AssertionError):
    """A part breaks a law.

    **Attributes:** `part`: its kind and name; `law`: the law's name; `sentence`: what the law says;
    `given`: the input that breaks it; `numbers`: what came, and what was expected.
    """

    def __init__(self, part: str, law: str, sentence: str, given: str, numbers: str):
        self.part, self.law, self.sentence = part, law, sentence
        self.given, self.numbers = given, numbers
        super().__init__(
            f"{part} breaks the law {law!r}: {sentence}\n  input:   {given}\n  numbers: {numbers}"
        )


class NotApplicable(Exception):
    """A law does not apply to a part; the message is the reason."""


class Violation(Exception):
    """Raised inside a law, which turns it into a `LawError`."""

    def __init__(self, given: str, numbers: str):
        super().__init__(f"{given}: {numbers}")
        self.given, self.numbers = given, numbers


class Subject:
    """A part to test.

    **Attributes:** `kind`; `name`, as messages show it; `given`: the constructor or the instance;
    `context`: what a constructor may take (`diffkit.registry.CONTEXT`); `made`: what laws share.
    """

    def __init__(
        self,
        kind: str,
        given: Any,
        *,
        name: str | None = None,
        context: Mapping[str, Any] | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        self.kind, self.given = kind, given
        self.made: dict[Any, Any] = {}
        self.name = name or name_of(kind, given) or _describe(given)
        self.context: dict[str, Any] = {
            "shape": (1, 8, 8),
            "levels": 256,
            "statistics": None,
            "condition_size": 0,
            "data_std": 1.0,
            "logsnr_range": LOGSNR_RANGE,
            "schedule": LinearLogSNR(*LOGSNR_RANGE),
            "process": VariancePreserving(),
            "parameterization": Epsilon(),
            "key": jax.random.key(0),
        }
        if unknown := [key for key in context or {} if key not in CONTEXT]:
            raise ValueError(
                f"context has entries {', '.join(CONTEXT)}, got {', '.join(map(repr, unknown))}."
            )
        self.context |= context or {}

    @property
    def label(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name!r}"

    @property
    def is_constructor(self) -> bool:
        """Whether a constructor was given, not an instance."""
        is_partial = isinstance(self.given, functools.partial)
        return inspect.isclass(self.given) or inspect.isfunction(self.given) or is_partial

    @functools.cached_property
    def part(self) -> Any:
        """The part, constructed."""
        return self.make()

    def make(self, **options: Any) -> Any:
        """Construct the part, with options or other entries of the context.

        **Raises:** `NotApplicable` for options of an instance, or if an argument has no default.
        """
        if not self.is_constructor:
            if options:
                raise NotApplicable("given as an instance: there is no constructor to ask")
            return self.given
        parameters = inspect.signature(self.given).parameters
        context = {} if self.kind == "data" else self.context
        missing = [
            parameter.name
            for parameter in parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and parameter.name not in context
            and parameter.name not in options
        ]
        if missing:
            raise NotApplicable(f"needs {', '.join(missing)}: there is no default to check it with")
        own = {k: v for k, v in options.items() if k not in CONTEXT}
        part = functools.partial(self.given, **own) if own else self.given
        return complete(part, context | {k: v for k, v in options.items() if k in CONTEXT})


def _describe(given: Any) -> str:
    if isinstance(given, functools.partial):
        options = ", ".join(f"{name}={value!r}" for name, value in given.keywords.items())
        return f"{_describe(given.func)}({options})"
    if inspect.isclass(given) or inspect.isfunction(given):
        return given.__qualname__
    return type(given).__qualname__


@dataclass(frozen=True)
class Law:
    """What every part of a kind must obey.

    Call it with a part: an instance, or a constructor, which gets its context.

    **Attributes:** `kind`; `name`; `sentence`: the law in words; `function`: the test.
    """

    kind: str
    name: str
    sentence: str
    function: Callable[[Subject], None]

    def __call__(
        self, part: Any, *, name: str | None = None, context: Mapping[str, Any] | None = None
    ) -> None:
        """Test a part for the law.

        **Arguments:** `part`; `name`: for messages, by default the registered one or that of the class;
        `context`: for the constructor, instead of the defaults.

        **Raises:** `LawError` if the part breaks the law; `NotApplicable`, with the reason, if the law
        does not apply to it.
        """
        self.on(Subject(self.kind, part, name=name, context=context))

    def on(self, subject: Subject) -> None:
        """The same for a `Subject`, so that laws share one construction of the part."""
        try:
            self.function(subject)
        except NotApplicable:
            raise
        except Violation as found:
            raise self._error(subject, found.given, found.numbers) from None
        except Exception as error:
            text = str(error).strip() or "no message"
            raise self._error(subject, "see above", f"{type(error).__name__}: {text}") from error

    def _error(self, subject: Subject, given: str, numbers: str) -> LawError:
        return LawError(subject.label, self.name, self.sentence, given, numbers)


_LAWS: dict[str, list[Law]] = {kind: [] for kind in KINDS}


def law(kind: str, sentence: str) -> Callable[[Callable[[Subject], None]], Law]:
    """Make a law from a function of a `Subject` that raises `Violation`, named after the function."""

    def add(function: Callable[[Subject], None]) -> Law:
        made = Law(kind, function.__name__, sentence, function)
        _LAWS[kind].append(made)
        return made

    return add


def laws(kind: str) -> tuple[Law, ...]:
    """The laws of a kind, in the order of checking.

    **Raises:** `ValueError` for an unknown kind.
    """
    if kind not in _LAWS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    return tuple(_LAWS[kind])


_INTERFACE = "interface"
"""The first law of every kind; the others are meaningless for a part that breaks it."""


@dataclass(frozen=True)
class Result:
    """The result of one law for one part.

    **Attributes:** `kind`, `part`, `law`: their names; `outcome`: `"passed"`, `"failed"` or
    `"skipped"`; `reason`: why it was skipped; `error`: of a failure; `seconds`: its duration.
    """

    kind: str
    part: str
    law: str
    outcome: str
    reason: str
    error: LawError | None
    seconds: float


def check_part(
    kind: str,
    part: Any,
    *,
    name: str | None = None,
    context: Mapping[str, Any] | None = None,
) -> Iterator[Result]:
    """Test a part for every law of a kind, one after another.

    **Arguments:** as for `Law`, with the kind before the part.

    **Returns:** an iterator over a `Result` for each law. If the part cannot be constructed, or is
    not of the kind, all laws but the first are skipped.

    **Raises:** `ValueError` for an unknown kind.
    """
    subject = Subject(kind, part, name=name, context=context)
    usable = True
    for one in laws(kind):
        began = time.perf_counter()
        outcome, reason, error = "passed", "", None
        try:
            if not usable:
                raise NotApplicable("the part cannot be used, see interface")
            one.on(subject)
        except NotApplicable as skipped:
            outcome, reason = "skipped", str(skipped)
        except LawError as broken:
            outcome, error = "failed", broken
            usable = usable and one.name != _INTERFACE
        seconds = time.perf_counter() - began
        yield Result(kind, subject.name, one.name, outcome, reason, error, seconds)


# Tools for writing laws.


def mapped(function: Callable[..., Any], *inputs: ArrayLike) -> Any:
    """A function of scalars at many inputs, in one compiled call, as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(*inputs))


def text(value: Any) -> str:
    """A number, or an array of a few, for a message."""
    array = np.asarray(value)
    if array.ndim == 0:
        return f"{array.item():.9g}" if np.issubdtype(array.dtype, np.number) else str(array)
    return "(" + ", ".join(text(one) for one in array.ravel()[:8]) + ")"


def require(
    holds: Bool[np.ndarray, " n"] | np.bool_ | bool,
    *,
    given: Mapping[str, Any],
    numbers: Mapping[str, Any],
    expected: str,
    worst: Float[np.ndarray, " n"] | None = None,
) -> None:
    """Raise a `Violation` at the first input (or the worst one) at which `holds` is false.

    **Arguments:** `holds`: by input; `given`, `numbers`: what to show, by name; arrays of the length of
    `holds` are shown at the broken input; `expected`: in words; `worst`: larger at worse inputs.
    """
    holds = np.atleast_1d(np.asarray(holds))
    if holds.all():
        return
    broken = np.flatnonzero(~holds)
    if worst is None:
        index = int(broken[0])
    else:
        # NaN is the worst of all.
        size = np.nan_to_num(np.float64(worst[broken]), nan=np.inf, posinf=1e300)
        index = int(broken[np.argmax(size)])

    def show(items: Mapping[str, Any]) -> str:
        shown = []
        for name, value in items.items():
            array = np.asarray(value)
            at = array[index] if array.ndim and len(array) == len(holds) else array
            shown.append(f"{name} = {text(at)}")
        return ", ".join(shown)

    raise Violation(show(given) or "none", f"{show(numbers)}; expected {expected}")


def require_close(
    found: Real[np.ndarray, " n"],
    expected: Real[np.ndarray, " n"],
    tolerance: Float[np.ndarray, " n"] | float,
    *,
    given: Mapping[str, Any],
    what: str,
    should: str,
) -> None:
    """Raise a `Violation` where two arrays differ by more than a tolerance, at the worst place."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    tolerance = np.broadcast_to(np.asarray(tolerance, np.float64), found.shape)
    difference = np.abs(found - expected)
    require(
        difference <= tolerance,
        given=given,
        numbers={what: found, should: expected, "difference": difference},
        expected=f"a difference of at most {text(tolerance.max())}"
        if np.ptp(tolerance) == 0
        else "a difference within the tolerance there",
        worst=difference / np.maximum(tolerance, 1e-300),
    )


# Laws of all kinds.


def _interface(subject: Subject) -> None:
    base = BASES[subject.kind]
    if not isinstance(subject.part, base):
        raise Violation(
            "the part, constructed",
            f"it is a {type(subject.part).__name__}; expected a {base.__name__}",
        )


def is_plain(value: Any) -> bool:
    """Whether a configuration can hold a value: a number, a string, `None`, or a tuple of such."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    # Not `isinstance`: YAML does not know NumPy's numbers.
    return type(value) in (bool, int, float, str, type(None))


def _options(subject: Subject) -> None:
    if not subject.is_constructor:
        raise NotApplicable("given as an instance: there is no constructor to ask")
    for parameter in inspect.signature(subject.given).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Violation(
                f"the argument {parameter}",
                "a configuration cannot name what it holds; expected named options only",
            )
        has_default = parameter.default is not parameter.empty
        if has_default and parameter.name not in CONTEXT and not is_plain(parameter.default):
            raise Violation(
                f"the option {parameter.name!r}",
                f"default {parameter.default!r}; expected a number, a string, None, or a tuple of "
                "such, which a configuration can hold",
            )


for _kind in KINDS:
    _LAWS[_kind].append(
        Law(
            _kind,
            _INTERFACE,
            f"The part, constructed, is a diffkit.{BASES[_kind].__name__}.",
            _interface,
        )
    )
    if _kind != "preset":
        _LAWS[_kind].append(
            Law(
                _kind,
                "options",
                "Its options are named, and have defaults that a configuration can hold.",
                _options,
            )
        )
