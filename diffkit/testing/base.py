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
from diffkit.parameterizations import Epsilon
from diffkit.presets import BASES as PARTS
from diffkit.presets import Preset
from diffkit.processes import VariancePreserving
from diffkit.registry import CONTEXT, KINDS, complete, is_constructor, name_of
from diffkit.schedules import LinearLogSNR

LOGSNR_RANGE: Final = (13.3, -10.0)
"""The largest and the smallest `logsnr` at which every part must work in float32."""

BASES: Final[Mapping[str, type]] = {**PARTS, "data": AbstractDataset, "preset": Preset}
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
    """Raised inside a law with the input and the numbers, which turns it into a `LawError`."""


class Subject:
    """A part to test.

    **Attributes:** `kind`; `given`: the constructor or the instance; `name`, as messages show it;
    `context`: what a constructor may take (`diffkit.registry.CONTEXT`); `made`: what laws share.
    """

    def __init__(
        self,
        kind: str,
        given: Any,
        name: str | None = None,
        context: Mapping[str, Any] | None = None,
    ):
        self.kind, self.given = kind, given
        self.name = name or name_of(kind, given) or _describe(given)
        self.made: dict[Any, Any] = {}
        self.is_constructor = is_constructor(given)
        if unknown := [key for key in context or {} if key not in CONTEXT]:
            raise ValueError(
                f"context has entries {', '.join(CONTEXT)}, got {', '.join(map(repr, unknown))}."
            )
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
            **(context or {}),
        }

    @functools.cached_property
    def part(self) -> Any:
        """The part, constructed."""
        return self.make()

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of the constructor; none for an instance."""
        return inspect.signature(self.given).parameters if self.is_constructor else {}

    def make(self, **options: Any) -> Any:
        """Construct the part, with options or other entries of the context.

        **Raises:** `NotApplicable` for options of an instance, or if an argument has no default.
        """
        if not self.is_constructor:
            if options:
                raise NotApplicable(_INSTANCE)
            return self.given
        context = {} if self.kind == "data" else self.context
        missing = [
            name
            for name, parameter in self.parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in _UNNAMED
            and name not in context | options
        ]
        if missing:
            raise NotApplicable(f"needs {', '.join(missing)}: there is no default to check it with")
        own = {k: v for k, v in options.items() if k not in CONTEXT}
        part = functools.partial(self.given, **own) if own else self.given
        return complete(part, context | {k: v for k, v in options.items() if k in CONTEXT})


_INSTANCE = "given as an instance: there is no constructor to ask"
_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _describe(given: Any) -> str:
    if isinstance(given, functools.partial):
        options = ", ".join(f"{name}={value!r}" for name, value in given.keywords.items())
        return f"{_describe(given.func)}({options})"
    return (given if is_constructor(given) else type(given)).__qualname__


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
        self.on(Subject(self.kind, part, name, context))

    def on(self, subject: Subject) -> None:
        """The same for a `Subject`, so that laws share one construction of the part."""
        cause = None
        try:
            return self.function(subject)
        except NotApplicable:
            raise
        except Violation as found:
            given, numbers = found.args
        except Exception as error:
            given, cause = "see above", error
            numbers = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        label = f"{subject.kind} {subject.name!r}"
        raise LawError(label, self.name, self.sentence, given, numbers) from cause


_LAWS: dict[str, list[Law]] = {kind: [] for kind in KINDS}


def law(*kinds: str) -> Callable[[Callable[[Subject], None]], Law]:
    """Make a law of a function that raises `Violation`: its name, and its docstring as the sentence."""

    def add(function: Callable[[Subject], None]) -> Law:
        sentence = " ".join((function.__doc__ or "").split())
        for kind in kinds:
            said = sentence.replace("{base}", BASES[kind].__name__)
            _LAWS[kind].append(Law(kind, function.__name__, said, function))
        return _LAWS[kinds[0]][-1]

    return add


def laws(kind: str) -> tuple[Law, ...]:
    """The laws of a kind, in the order of checking. `interface` is the first.

    **Raises:** `ValueError` for an unknown kind.
    """
    if kind not in _LAWS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    return tuple(_LAWS[kind])


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
    kind: str, part: Any, *, name: str | None = None, context: Mapping[str, Any] | None = None
) -> Iterator[Result]:
    """Test a part for every law of a kind, one after another.

    **Arguments:** as for `Law`, with the kind before the part.

    **Returns:** an iterator over a `Result` for each law. If the part cannot be constructed, or is
    not of the kind, all laws but the first are skipped.

    **Raises:** `ValueError` for an unknown kind.
    """
    known, usable = laws(kind), True
    subject = Subject(kind, part, name, context)
    for one in known:
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
            usable = usable and one is not known[0]
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
    index = int(np.argmin(holds))
    if worst is not None:
        # NaN is the worst of all.
        size = np.nan_to_num(np.float64(worst), nan=np.inf, posinf=1e300)
        index = int(np.argmax(np.where(holds, -np.inf, size)))

    def show(items: Mapping[str, Any]) -> str:
        arrays = {name: np.asarray(value) for name, value in items.items()}
        at = {n: a[index] if a.ndim and len(a) == len(holds) else a for n, a in arrays.items()}
        return ", ".join(f"{name} = {text(value)}" for name, value in at.items())

    raise Violation(show(given) or "none", f"{show(numbers)}; expected {expected}")


def require_close(
    found: Real[np.ndarray, " n"],
    expected: Real[np.ndarray, " n"] | float,
    tolerance: Float[np.ndarray, " n"] | float,
    given: Mapping[str, Any],
    what: str,
    should: str = "it should be",
) -> None:
    """Raise a `Violation` where numbers differ by more than a tolerance, at the worst place.

    **Arguments:** `found`, `expected`; `tolerance`; `given`: as for `require`; `what`, `should`: the names
    of the two.
    """
    found, expected, tolerance = np.broadcast_arrays(found, np.float64(expected), np.float64(tolerance))
    difference = np.abs(found - expected)
    even = np.ptp(tolerance) == 0
    limit = f"of at most {text(tolerance.max())}" if even else "within the tolerance there"
    require(
        difference <= tolerance,
        given,
        {what: found, should: expected, "difference": difference},
        f"a difference {limit}",
        difference / np.maximum(tolerance, 1e-300),
    )


def draws_numbers(function: Callable[..., Any], *inputs: Any) -> bool:
    """Whether a function draws random numbers."""
    program = str(jax.make_jaxpr(function)(*inputs))
    return any(word in program for word in ("random_bits", "threefry2x32", "rng_bit_generator"))


def is_plain(value: Any) -> bool:
    """Whether a configuration can hold a value: a number, a string, `None`, or a tuple of such."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    # Not `isinstance`: YAML does not know NumPy's numbers.
    return type(value) in (bool, int, float, str, type(None))


# Laws of all kinds.


@law(*KINDS)
def interface(subject: Subject) -> None:
    """The part, constructed, is a diffkit.{base}."""
    base, made = BASES[subject.kind], type(subject.part)
    if not issubclass(made, base):
        raise Violation("the part, constructed", f"it is a {made.__name__}; expected a {base.__name__}")


@law(*(kind for kind in KINDS if kind != "preset"))
def options(subject: Subject) -> None:
    """Its options are named, and have defaults that a configuration can hold."""
    if not subject.is_constructor:
        raise NotApplicable(_INSTANCE)
    for name, parameter in subject.parameters.items():
        if parameter.kind in _UNNAMED:
            raise Violation(
                f"the argument {parameter}",
                "a configuration cannot name what it holds; expected named options only",
            )
        default = parameter.default
        if default is not parameter.empty and name not in CONTEXT and not is_plain(default):
            raise Violation(
                f"the option {name!r}",
                f"default {default!r}; expected a number, a string, None, or a tuple of such, which a "
                "configuration can hold",
            )
