"""The laws of optimisers."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.networks.layers import Dense
from diffkit.testing.base import Subject, law, require

_RATES = (0.1, 0.01)
_STEPS = 100


class _Parameters(eqx.Module):
    """What a model is to an optimiser: weight decay acts on the denoiser alone."""

    denoiser: Dense
    schedule: Float[Array, "3"]


def _parameters(seed: int) -> _Parameters:
    drawn = _Parameters(Dense(6, 4, key=jax.random.key(0)), jnp.zeros(3))
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    )


def _transformation(part: Any, rate: float) -> Any:
    from diffkit.training.config import TrainConfig
    from diffkit.training.state import transformation

    config = TrainConfig(_STEPS, learning_rate=rate, warmup=0, decay="linear", weight_decay=0.1)
    return transformation(part, config)


def _loss(params: _Parameters, target: _Parameters) -> float:
    squares = jax.tree.map(lambda a, b: float(jnp.sum(jnp.square(a - b))), params, target)
    return sum(jax.tree.leaves(squares))


@law("optimiser")
def descends(subject: Subject) -> None:
    """100 steps, at a learning rate that falls from 0.1 or from 0.01 to 0, lower a quadratic to a tenth,
    weight decay of 0.1 included; parameters and state stay finite."""
    start, target = _parameters(2), _parameters(1)
    ratios = []
    for rate in _RATES:
        optimiser = _transformation(subject.part, rate)

        def step(carry: Any, _: None, optimiser: Any = optimiser) -> tuple[Any, None]:
            params, state = carry
            gradient = jax.tree.map(jnp.subtract, params, target)
            updates, state = optimiser.update(gradient, state, params)
            return (eqx.apply_updates(params, updates), state), None

        first = (start, optimiser.init(start))
        (params, state), _ = jax.jit(lambda f, s=step: jax.lax.scan(s, f, None, _STEPS))(first)
        for what, tree in (("parameters", params), ("state", state)):
            leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
            values = np.concatenate([np.zeros(1), *leaves])
            finite = np.isfinite(values)
            numbers = {what: values[~finite]}
            require(finite.all(), {"learning_rate": rate}, numbers, "finite values")
        ratios.append(_loss(params, target) / _loss(start, target))
        if ratios[-1] <= 0.1:
            return
    numbers = {"loss after / before": np.array(ratios)}
    require(False, {"learning_rate": np.array(_RATES)}, numbers, "at most 0.1 at one of them")


@law("optimiser")
def decays_the_denoiser_alone(subject: Subject) -> None:
    """Where the gradient is zero, what weight decay spares does not move, and nothing grows."""
    optimiser, start = _transformation(subject.part, 0.1), _parameters(2)
    nothing = jax.tree.map(jnp.zeros_like, start)
    updates, _ = jax.jit(optimiser.update)(nothing, optimiser.init(start), start)
    value, moved = np.asarray(start.schedule), np.asarray(updates.schedule)
    require(moved == 0, {"parameter": value}, {"update": moved}, "0")
    value, moved = (np.asarray(tree.denoiser.weight).ravel() for tree in (start, updates))
    holds = np.abs(value + moved) <= np.abs(value)
    require(holds, {"parameter": value}, {"update": moved}, "none, or one towards 0")
