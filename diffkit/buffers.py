"""Buffers: arrays of a model, neither trained nor averaged."""

from typing import Generic, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

T = TypeVar("T")


class Buffer(eqx.Module, Generic[T]):
    """Marks the arrays in `value` as state of the model, not parameters.

    `trainable` leaves them out: no optimiser moves them, and no average mixes them with older values.
    """

    value: T

    def get(self) -> T:
        """The value, without its gradient."""
        arrays, rest = eqx.partition(self.value, eqx.is_array)
        return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def trainable(tree: PyTree) -> PyTree[bool]:
    """A specification for `equinox.partition`: `True` for each floating-point array outside a `Buffer`."""

    def mark(node):
        inside = isinstance(node, Buffer)
        return jax.tree.map(lambda _: False, node) if inside else eqx.is_inexact_array(node)

    return jax.tree.map(mark, tree, is_leaf=lambda node: isinstance(node, Buffer))
