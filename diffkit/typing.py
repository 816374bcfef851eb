"""Shapes and dtypes, and the run-time checks at every boundary.

jaxtyping and beartype check every call of diffkit's functions and classes against their annotations; under
`jit` only while tracing, at no later cost. `JAXTYPING_DISABLE=1` in the environment, before `import
diffkit`, turns the checks off.

Dimension names mean the same everywhere: `batch` examples, `*shape` the shape of one, `channels height
width` an image.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import (
    BeartypeCallHintReturnViolation,
    BeartypeCallHintViolation,
    BeartypeException,
)
from jaxtyping import Array, Bool, Float, Int, Key, Real, install_import_hook
from jaxtyping import ArrayLike as ArrayLike

from diffkit.display import describe, type_name

Scalar = Float[Array, ""]
"""A JAX float scalar."""

ScalarLike = Real[ArrayLike, ""]
"""A Python number, or a scalar array of a real dtype."""

PRNGKey = Key[Array, ""]
"""One typed key, as made by `jax.random.key` (not the legacy `jax.random.PRNGKey`)."""

Example = Float[Array, "*shape"]
"""One example (or latent, or noise) without a batch axis."""

Condition = Float[Array, " condition"] | None
"""What describes one example (`diffkit.data.conditions`); `None` for nothing."""

MaybeKey = PRNGKey | None
"""A key where there may be none: no dropout, or no noise."""

FloatBatch = Float[Array, "batch *shape"]
"""A batch of latents or noises."""

DataBatch = Real[Array | np.ndarray, "batch *shape"]
"""A batch of data as stored: integer levels or floats."""

BatchScalar = Float[Array, " batch"]
"""One number per example."""

Flag = Bool[Array, ""]
Index = Int[Array, ""]


# An `int` is accepted as a `float`, as by static checkers.
_CONF = BeartypeConf(is_pep484_tower=True)
_beartype = beartype(conf=_CONF)


class TypeCheckError(jaxtyping.TypeCheckError, jaxtyping.AnnotationError):
    """An argument or a result does not match its annotation: jaxtyping's error, in three lines.

    jaxtyping adds all arguments to the message of any error but an `AnnotationError`.
    """


def typechecker(function: Callable) -> Callable:
    """beartype, compiling the check of a function on its first call rather than on import."""
    check = None

    def checked(*args, **kwargs):
        nonlocal check
        if check is None:
            check = _beartype(function)
        try:
            return check(*args, **kwargs)
        except BeartypeCallHintViolation as violation:
            raise _explained(violation, function, args, kwargs) from None

    return checked


def _fits(value: Any, hint: Any) -> bool:
    try:
        return is_bearable(value, hint, conf=_CONF)
    except BeartypeException:  # a type variable, whose bound is unknown here
        return True


def _explained(
    violation: BeartypeCallHintViolation, function: Callable, args: tuple, kwargs: dict
) -> TypeCheckError:
    """An error that says where a call is wrong, what it got, and what it expected."""
    hints = function.__annotations__
    signature = inspect.signature(function)
    given = []  # of each argument the name, the value and the hint
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        values = {name: value}
        if kind is inspect.Parameter.VAR_POSITIONAL:
            values = {f"{name}[{i}]": entry for i, entry in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            values = value
        given += [(called, entry, hints[name]) for called, entry in values.items()]
    if isinstance(violation, BeartypeCallHintReturnViolation):
        # jaxtyping's function takes the result as its last argument.
        wrong, given = [("", given[-1][1], hints["return"])], given[:-1]
    else:
        wrong = [one for one in given if not _fits(one[1], one[2])]
    where = f"{function.__module__}.{function.__qualname__}"
    if not wrong:
        return TypeCheckError(f"{where}: {violation}")
    name, value, hint = wrong[0]
    got = describe(value, numbers=False)
    with jaxtyping.jaxtyped("context"):
        # Right by itself: its sizes differ from those of the other arguments.
        if _fits(value, hint):
            beside = [
                f"{other} {describe(entry, numbers=False)}"
                for other, entry, _ in given
                if other != name and hasattr(entry, "shape")
            ]
            got += f", beside {', '.join(beside)}"
    what = f"parameter {name!r}" if name else "result"
    lines = f"{where}: wrong {what}.", f"  got       {got}", f"  expected  {type_name(hint)}"
    return TypeCheckError("\n".join(lines))


def check_types(package: str) -> None:
    """Check the annotations of a package at run time: a call with its name, first in its `__init__.py`."""
    install_import_hook(package, "diffkit.typing.typechecker")


def check_at_least(name: str, value: float, smallest: float) -> None:
    """Raise `ValueError` for a number below `smallest`, or NaN."""
    if not value >= smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raise `ValueError` unless a number is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}.")


def as_float(value: ScalarLike) -> Scalar:
    """A number as a JAX float scalar; a float array keeps its dtype."""
    return jnp.asarray(value, jnp.result_type(value, float))
