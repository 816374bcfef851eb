"""The run-time checks of annotations: jaxtyping and beartype, with errors that say what was expected.

Light to import: neither JAX nor any part is needed before the first call that is wrong.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import (
    BeartypeCallHintReturnViolation,
    BeartypeCallHintViolation,
    BeartypeException,
)

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
    from diffkit.display import describe, type_name

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
    jaxtyping.install_import_hook(package, "diffkit.typechecking.typechecker")
