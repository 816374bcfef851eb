"""Buffers: arrays of a model, neither trained nor averaged."""

from typing import Generic, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

T = TypeVar("T")


class Buffer(eqx.Module, Generic[T]):
    """Marks the arrays in `value` as state of the model, not parameters.

    `trainable` leaves them out: no optimiser moves them, and no exponential moving average mixes them
    with older values. Read them through `get`, which also stops gradients.
    """

    value: T

    def get(self) -> T:
        """The value, without its gradient."""
        return jax.tree.map(
            lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, self.value
        )


def _is_buffer(node: object) -> bool:
    return isinstance(node, Buffer)


def trainable(tree: PyTree) -> PyTree[bool]:
    """A filter specification: `True` for each floating-point array of `tree` outside any `Buffer`.

    Use it with `equinox.partition(model, trainable(model))`.
    """

    def mark(node):
        if _is_buffer(node):
            return jax.tree.map(lambda _: False, node)
        return eqx.is_inexact_array(node)

    return jax.tree.map(mark, tree, is_leaf=_is_buffer)
