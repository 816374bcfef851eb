"""Values in words, for the `repr` of models and predictions and for error messages."""

import dataclasses
import inspect
import re
import reprlib
import textwrap
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxstring = 60
_FEW = 6


def type_name(annotation: Any) -> str:
    """An annotation without the modules of its names."""
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(type_name, get_args(annotation)))
    text = "None" if annotation is type(None) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text)


def printable(text: str) -> str:
    """Text in which what a terminal would obey, or cannot show, is written as Python writes it."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


def describe(value: Any, *, numbers: bool = True) -> str:
    """Any value in a few words: arrays and tracers, numbers, text, or another object.

    **Arguments:** `value`; `numbers`: show the numbers of an array. A tracer has none yet.

    **Returns:** few numbers as they are; many as dtype, shape, range and mean, as
    `float32[3, 32, 32] in [-1, 1], mean 0.02`; without `numbers`, only dtype and shape; the type of an
    object that is neither array nor plain Python.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value, numbers)
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return _SHORT.repr(value)
    if isinstance(value, list | tuple):
        shown = [describe(entry, numbers=numbers) for entry in value[:_FEW]]
        more = ["..."] if len(value) > _FEW else []
        inside = ", ".join([*shown, *more])
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, type) or inspect.isroutine(value):
        return str(getattr(value, "__qualname__", type(value).__name__))
    return f"{type(value).__name__}(...)"


def outline(parts: eqx.Module | Mapping[str, Any]) -> list[str]:
    """Parts by name, or those of a module, with their options, one line each.

    A denoiser's own parts are below it.
    """
    found = parts if isinstance(parts, Mapping) else _fields(parts)
    # Any optax transformation is an optimiser.
    shown = {k: v for k, v in found.items() if isinstance(v, eqx.Module) or hasattr(v, "update")}
    width, lines = max(map(len, shown), default=0), []
    for name, part in shown.items():
        lines.append(f"  {name:<{width}}  {_options(part)}")
        if name == "denoiser":
            lines += [f"  {line}" for line in outline(part)]
    return lines


def _fields(module: eqx.Module) -> dict[str, Any]:
    return {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}


def _options(part: Any) -> str:
    if not isinstance(part, eqx.Module):
        return f"{type(part).__name__}(...)"
    plain = int | float | str
    options = {
        name: describe(value)
        for name, value in _fields(part).items()
        if isinstance(value, plain | jax.Array)
        or (isinstance(value, tuple) and all(isinstance(entry, plain) for entry in value))
    }
    text = ", ".join(f"{name}={words}" for name, words in options.items())
    return textwrap.shorten(f"{type(part).__name__}({text})", 78, placeholder=" ...)")


def _array(value: Any, numbers: bool) -> str:
    kind = "" if isinstance(value, jax.Array | jax.ShapeDtypeStruct) else f"{type(value).__name__} "
    words = f"{kind}{value.dtype}{list(value.shape)}"
    if not numbers or isinstance(value, Tracer | jax.ShapeDtypeStruct):
        return words
    try:
        held = np.asarray(value)
        if held.size <= _FEW:
            return np.array2string(held, precision=4, separator=", ").replace("\n", "")
        if jnp.issubdtype(held.dtype, jnp.floating):
            held = held.astype(np.float64)
        return f"{words} in [{held.min():.4g}, {held.max():.4g}], mean {held.mean():.4g}"
    except Exception:  # keys, and arrays that were donated or are on other machines
        return words
