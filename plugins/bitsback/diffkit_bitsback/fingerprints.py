"""The identity of a model in a few bytes: its parts and their parameters, the same on every machine."""

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from diffkit import DiffusionModel

_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True)
class Fingerprint:
    """Two BLAKE2b digests of a model, in hexadecimal.

    **Attributes:** `structure`: of the names of its parts' classes, their options, and the places, dtypes
    and shapes of all arrays; `parameters`: of the contents of the arrays, bit by bit.
    """

    structure: str
    parameters: str

    def __str__(self) -> str:
        return f"{self.structure}-{self.parameters}"


def fingerprint(model: DiffusionModel) -> Fingerprint:
    """The fingerprint of a model: a changed bit or option, or a part of another class, changes it."""
    structure = hashlib.blake2b(digest_size=8)
    parameters = hashlib.blake2b(digest_size=16)
    _walk(model, "", structure, parameters)
    return Fingerprint(structure.hexdigest(), parameters.hexdigest())


def _walk(node: Any, path: str, structure: Any, parameters: Any) -> None:
    def note(*words: object) -> None:
        # Lengths first, so that no two trees give the same text.
        for word in (path, *map(str, words)):
            raw = word.encode(errors="surrogatepass")
            structure.update(len(raw).to_bytes(8, "little") + raw)

    def inside(name: str, child: Any) -> None:
        _walk(child, f"{path}{name}", structure, parameters)

    if isinstance(node, jax.Array | np.ndarray | np.generic):
        if isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
            note("key", jax.random.key_impl(node))
            node = jax.random.key_data(node)
        array = np.asarray(node)
        note("array", array.dtype.name, array.shape)
        parameters.update(np.ascontiguousarray(array).tobytes())
    elif is_dataclass(node) and not isinstance(node, type):
        note("module", _name(type(node)))
        for each in fields(node):
            inside(f".{each.name}", getattr(node, each.name, None))
    elif isinstance(node, tuple | list):
        note(_name(type(node)), len(node))
        for index, child in enumerate(node):
            inside(f"[{index}]", child)
    elif isinstance(node, Mapping):
        note("mapping", len(node))
        for key in sorted(node, key=repr):
            inside(f"[{key!r}]", node[key])
    elif isinstance(node, functools.partial):
        note("partial")
        for name in ("func", "args", "keywords"):
            inside(f".{name}", getattr(node, name))
    elif hasattr(node, "__qualname__"):  # a class or a function, which no process places alike
        note("named", _name(node))
    else:
        note(_name(type(node)), _ADDRESS.sub("", repr(node)))


def _name(thing: Any) -> str:
    # Without the module: a class that a script defines is the same when the script is imported.
    return getattr(thing, "__qualname__", "")
