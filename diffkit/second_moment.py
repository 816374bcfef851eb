"""The gradient of a schedule that minimises the variance of a loss (VDM, appendix I.2)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from diffkit.buffers import Buffer
from diffkit.schedules import AbstractSchedule, AbstractVarianceMinimising
from diffkit.typing import BatchScalar


def with_second_moment(
    losses: Callable[[PyTree, PyTree], BatchScalar],
    denoiser: PyTree,
    schedule: AbstractVarianceMinimising,
    visit: Callable[[AbstractSchedule], PyTree],
) -> BatchScalar:
    """The losses of a batch. Interior parameters receive the gradient of their squares instead.

    That gradient is 2 loss times the gradient of the loss, so one pass through the network gives both.

    **Arguments:** `losses`: a function of a denoiser and the noise levels of a batch, a pytree that holds
    every array it needs; `denoiser`; `schedule`; `visit`: the noise levels of the batch under a schedule.
    """
    inner, outer = eqx.partition(schedule, schedule.interior_parameters())
    by_outer = visit(eqx.combine(outer, Buffer(inner).get()))
    by_inner = visit(eqx.combine(Buffer(outer).get(), inner))
    return _losses((denoiser, by_outer, by_inner), losses)


@eqx.filter_custom_vjp
def _losses(arguments: Any, losses: Any) -> Any:
    """Two equal sets of noise levels: `outer` gets the gradient of the losses, `inner` of their squares."""
    denoiser, outer, _ = arguments
    return losses(denoiser, outer)


@_losses.def_fwd
def _forward(perturbed, arguments, losses):
    denoiser, outer, _ = arguments
    moved, fixed = eqx.partition(denoiser, perturbed[0])
    values, pullback = jax.vjp(
        lambda moved, levels: losses(eqx.combine(moved, fixed), levels), moved, outer
    )
    return values, (values, pullback)


@_losses.def_bwd
def _backward(residuals, grad, perturbed, arguments, losses):
    values, pullback = residuals
    by_denoiser, by_levels = pullback(grad)
    return by_denoiser, by_levels, jax.tree.map(lambda leaf: 2 * values * leaf, by_levels)
