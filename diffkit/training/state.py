"""The training state, and the compiled function that advances it by many steps."""

import dataclasses
import functools
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree, Real

from diffkit.buffers import trainable
from diffkit.checks import MOVES, endpoint_slopes
from diffkit.model import DiffusionModel
from diffkit.objectives import DiffusionLoss, Share, end_terms
from diffkit.optimisers import AbstractOptimiser, AdamW
from diffkit.schedules import AbstractSchedule, minimises_variance
from diffkit.time_samplers import AbstractAdaptiveTimeSampler, AbstractTimeSampler, LowDiscrepancy
from diffkit.training.config import TrainConfig
from diffkit.typing import BatchScalar, Index, PRNGKey, Scalar
from diffkit.weightings import ELBO, AbstractWeighting

METRICS: Final = ("loss", "prior", "reconstruction", "diffusion", "gradient_norm")
"""The metrics of each step; all but the last in bits per dimension. The norm is that of the gradient of the
loss, without an interior that follows the variance instead."""

SKIPPED: Final = "skipped"
"""How many steps of a dispatch were skipped: one more metric under `train.nonfinite=skip`."""

Optimiser = AbstractOptimiser | optax.GradientTransformation
"""A part, or a transformation that is used as it is."""


class TrainState(eqx.Module):
    """Everything that changes during training: the content of a checkpoint.

    **Attributes:** `model`, with its parameters as they are; `average`: the exponential moving average of
    trainable arrays, `None` elsewhere; `optimiser`: its state; `time_sampler`: draws the times, and may
    learn from the losses; `step`: the number of steps taken.
    """

    model: DiffusionModel
    average: PyTree
    optimiser: PyTree
    time_sampler: AbstractTimeSampler
    step: Index

    @property
    def averaged_model(self) -> DiffusionModel:
        """The model with averaged parameters. Buffers are never averaged."""
        return eqx.combine(self.average, self.model)


def _inverse_root(full: float, start: int, count: Any) -> Any:
    return full * jnp.sqrt(start / (start + count))


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """The learning rate as a function of the number of steps taken before."""
    full, warmup = config.learning_rate, config.warmup
    if config.decay in ("cosine", "linear"):
        # A run that ended within its warm-up would end at the full rate.
        warmup = min(warmup, config.steps // 2)
    left = config.steps - warmup
    match config.decay:
        case "cosine":
            after = optax.cosine_decay_schedule(full, left)
        case "linear":
            after = optax.linear_schedule(full, 0.0, left)
        case "rsqrt":
            after = functools.partial(_inverse_root, full, max(warmup, 1))
        case _:
            after = optax.constant_schedule(full)
    return optax.join_schedules([optax.linear_schedule(0.0, full, warmup), after], [warmup])


def _decays(model: PyTree, *, biases: bool) -> PyTree:
    """`True` for each leaf that weight decay acts on: those of the denoiser, with or without biases."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        names = [getattr(key, "name", None) for key in path]
        return names[0] == "denoiser" and (biases or names[-1] != "bias")

    return jax.tree_util.tree_map_with_path(decays, model)


def transformation(part: AbstractOptimiser, config: TrainConfig) -> optax.GradientTransformation:
    """The transformation of an optimiser, with the settings for learning rate, decay and `None` options."""
    unset = [k for k, v in vars(part).items() if v is None and hasattr(config, k)]
    taken = {name: getattr(config, name) for name in unset}
    decays = functools.partial(_decays, biases=config.decay_biases)
    return dataclasses.replace(part, **taken).transformation(learning_rate(config), decays)


def _transformation(config: TrainConfig, optimiser: Optimiser = AdamW()) -> optax.GradientTransformation:
    """The transformation for a whole model: the optimiser after clipping, and an interior's own."""

    def interior(tree: PyTree) -> PyTree:
        return jax.tree.map(operator.not_, follows_loss(tree))

    # The state has one structure, with and without clipping.
    clips = config.clip > 0 and isinstance(optimiser, AbstractOptimiser)
    clip = optax.clip_by_global_norm(config.clip) if clips else optax.identity()
    clipped = optax.masked(clip, follows_loss)
    # The second moment that an interior follows is of another size than the loss: it has no part in the
    # norm. Nor is it clipped: the mean of clipped gradients of draws so uneven is far from that of all.
    rate = optax.scale(config.interior_learning_rate / config.learning_rate)
    if isinstance(optimiser, AdamW):
        # Elementwise, and an interior has no weight decay: one state serves both.
        return optax.chain(clipped, transformation(optimiser, config), optax.masked(rate, interior))
    if isinstance(optimiser, AbstractOptimiser):
        optimiser = transformation(optimiser, config)
    return optax.chain(
        clipped,
        optax.masked(optimiser, follows_loss),
        optax.masked(optax.chain(transformation(AdamW(), config), rate), interior),
    )


def follows_loss(tree: PyTree) -> PyTree:
    """`True` for each leaf of a model but those of a schedule's interior that minimises the variance."""
    everything = jax.tree.map(lambda _: True, tree)
    if not minimises_variance(tree.schedule):
        return everything
    apart = jax.tree.map(operator.not_, tree.schedule.interior_parameters())
    return eqx.tree_at(lambda tree: tree.schedule, everything, apart)


def held_endpoints(
    schedule: AbstractSchedule, weighting: AbstractWeighting, learn: bool | None
) -> PyTree[bool] | None:
    """Which trainable arrays of a schedule move an endpoint that training must not move, if any.

    **Arguments:** `schedule`; `weighting`; `learn`: `TrainConfig.learn_endpoints`.

    **Warns:** if endpoints are held without `learn` saying so.
    """
    if learn or (learn is None and isinstance(weighting, ELBO)):
        return None
    held = jax.tree.map(lambda slope: bool((abs(slope) > MOVES).any()), endpoint_slopes(schedule))
    if not any(jax.tree.leaves(held)):
        return None
    if learn is None:
        warnings.warn(
            f"the endpoints of schedule {type(schedule).__name__} are kept fixed, since the loss under "
            f"weighting {type(weighting).__name__} is no bound and cannot tell where they belong: "
            "train.learn_endpoints=True trains them, False keeps them without this warning.",
            stacklevel=2,
        )
    return held


def _held(tree: PyTree, held: PyTree[bool] | None) -> PyTree:
    """A gradient or an update of a model with zeros for the arrays that are held."""
    if held is None:
        return tree
    kept = jax.tree.map(lambda leaf, hold: leaf * (not hold), tree.schedule, held)
    return eqx.tree_at(lambda tree: tree.schedule, tree, kept)


def init_state(
    model: DiffusionModel,
    config: TrainConfig,
    time_sampler: AbstractTimeSampler = LowDiscrepancy(),
    optimiser: Optimiser = AdamW(),
) -> TrainState:
    """The state before the first step. Arrays are copied: training donates the state's memory."""

    def copied(leaf: Any) -> Any:
        # With its dtype said: a weakly typed array (as `jnp.full` makes) would become an ordinary one in
        # the first step, and the second would be compiled anew.
        return jnp.array(leaf, leaf.dtype) if eqx.is_array(leaf) else leaf

    model, time_sampler = jax.tree.map(copied, (model, time_sampler))
    params = eqx.filter(model, trainable(model))
    average, moments = (
        jax.tree.map(jnp.copy, params),
        _transformation(config, optimiser).init(params),
    )
    return TrainState(model, average, moments, time_sampler, jnp.zeros((), jnp.int32))


Batch = Real[Array, "batch *shape"] | tuple[Real[Array, "batch *shape"], Float[Array, "batch condition"]]
"""A batch as `diffkit.data.batches` yields it: examples, or examples and their conditions."""

Batches = (
    Real[Array, "chunk batch *shape"]
    | tuple[Real[Array, "chunk batch *shape"], Float[Array, "chunk batch condition"]]
)
"""Several of them, stacked."""


class Objective(eqx.Module):
    """The objective of training: a `diffkit.DiffusionLoss` and the two end terms, in bits per dimension.

    With the weighting `ELBO` it is the VLB. The end terms depend only on the endpoints of the schedule,
    and matter if those are learned.

    **Arguments:** `weighting`; `steps`; `held`: arrays of the schedule to keep (`held_endpoints`).
    """

    weighting: AbstractWeighting
    steps: int | None
    held: PyTree[bool] | None = None

    def __call__(
        self,
        model: DiffusionModel,
        x: Real[Array, "batch *shape"],
        key: PRNGKey,
        time_sampler: AbstractTimeSampler = LowDiscrepancy(),
        condition: Float[Array, "batch condition"] | None = None,
        share: Share | None = None,
    ) -> tuple[Float[Array, ""], tuple[Float[Array, "terms"], tuple[BatchScalar, BatchScalar]]]:
        """The loss; prior, reconstruction and diffusion term as means over the batch; and the times
        drawn, with the diffusion loss of each before its importance.

        With a `share`, the batch is that part of a larger one and takes its draws from it.
        """
        end_key, diffusion_key = jax.random.split(key)
        encoded = model.encode(x)
        ends = end_terms(model, x, encoded, key=end_key, share=share)
        loss = DiffusionLoss(self.weighting, time_sampler, self.steps)
        drawn = loss.draw(model, encoded, key=diffusion_key, condition=condition, share=share)
        scale = 1 / (math.prod(model.shape) * math.log(2))
        terms = scale * jnp.stack([jnp.mean(term) for term in (*ends, drawn.loss)])
        return jnp.sum(terms), (terms, (drawn.t, scale * drawn.loss / drawn.importance))


def drop_conditions(
    condition: Float[Array, "batch condition"], rate: float, *, key: PRNGKey
) -> Float[Array, "batch condition"]:
    """Replace each row by zeros with probability `rate`, independently."""
    kept = jax.random.bernoulli(key, 1 - rate, condition.shape[:1])
    return jnp.where(kept[:, None], condition, 0.0)


def _accumulated(
    loss: Callable[..., tuple[Scalar, Any]], params: PyTree, batch: PyTree, parts: int
) -> tuple[tuple[Scalar, Any], PyTree]:
    """Loss and gradient of a batch, one part after another: `value_and_grad` in the memory of one part."""
    of_rows = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return of_rows(params, batch, None)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, Any]:
        index, rows = part
        (value, (terms, drawn)), gradient = of_rows(params, rows, (index, parts))
        return jax.tree.map(jnp.add, total, (value, terms, gradient)), drawn

    split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    zero = jnp.zeros(()), jnp.zeros((3,)), jax.tree.map(jnp.zeros_like, params)
    total, drawn = jax.lax.scan(add, zero, (jnp.arange(parts), split))
    value, terms, gradient = jax.tree.map(lambda sum: sum / parts, total)
    return (value, (terms, jax.tree.map(jnp.ravel, drawn))), gradient


def prepared(
    state: TrainState, batch: Batch, key: PRNGKey, config: TrainConfig
) -> tuple[Real[Array, "batch *shape"], Float[Array, "batch condition"] | None, PRNGKey]:
    """Examples, conditions with some left out, and the key of the next step: what its objective takes."""
    x, condition = batch if isinstance(batch, tuple) else (batch, None)
    step_key = jax.random.fold_in(key, state.step)
    if condition is not None:
        # Apart from the objective's own two keys, which are split from `step_key`.
        dropout_key = jax.random.fold_in(step_key, 2)
        condition = drop_conditions(condition, config.condition_dropout, key=dropout_key)
    return x, condition, step_key


def train_step(
    state: TrainState,
    batch: Batch,
    key: PRNGKey,
    objective: Objective,
    config: TrainConfig,
    optimiser: Optimiser = AdamW(),
) -> tuple[TrainState, Float[Array, "metrics"]]:
    """One step of the optimiser: the new state, and the metrics in the order of `METRICS`.

    Under `train.nonfinite=skip` a last metric is 1 for a step that is skipped, and 0 for others.

    **Arguments:** `state`; `batch`, data as stored, with conditions or without; `key`, the same for all
    steps: each step derives its own; `objective`; `config`; `optimiser`, as for `init_state`.
    """
    x, condition, step_key = prepared(state, batch, key, config)
    params, rest = eqx.partition(state.model, trainable(state.model))

    def loss(params: PyTree, rows: Any, share: Share | None) -> tuple[Float[Array, ""], Any]:
        x, condition = rows
        model = eqx.combine(params, rest)
        return objective(model, x, step_key, state.time_sampler, condition, share)

    found = _accumulated(loss, params, (x, condition), config.accumulate)
    (value, (terms, drawn)), gradient = found
    gradient = _held(gradient, objective.held)
    updates, moments = _transformation(config, optimiser).update(gradient, state.optimiser, params)
    # Weight decay, too, must not move what is held.
    params = eqx.apply_updates(params, _held(updates, objective.held))
    step = state.step + 1
    time_sampler = state.time_sampler
    if isinstance(time_sampler, AbstractAdaptiveTimeSampler):
        time_sampler = time_sampler.update(*drawn)
    decay = jnp.asarray(config.ema)
    if config.ema_warmup:
        # As in TensorFlow's moving average with `num_updates`, which the code of several papers uses.
        decay = jnp.minimum(decay, (1 + step) / (10 + step))
    average = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), state.average, params)
    norm = optax.tree.norm(eqx.filter(gradient, follows_loss(gradient)))
    new = TrainState(eqx.combine(params, rest), average, moments, time_sampler, step)
    metrics = jnp.concatenate([value[None], terms, norm[None]])
    if config.nonfinite == "skip":
        # The norm of all: that of the metrics leaves an interior out.
        good = jnp.isfinite(metrics).all() & jnp.isfinite(optax.tree.norm(gradient))
        before = dataclasses.replace(state, step=step)
        new = jax.tree.map(
            lambda new, old: jnp.where(good, new, old) if eqx.is_array(new) else new, new, before
        )
        metrics = jnp.append(metrics, 1.0 - good)
    return new, metrics


@eqx.filter_jit(donate="all-except-first")
def train_steps(
    inputs: tuple[Batches, Index, PRNGKey, Objective, TrainConfig, Optimiser], state: TrainState
) -> tuple[TrainState, Float[Array, "chunk metrics"]]:
    """Many steps in one dispatch. The memory of `state` is reused for the result.

    **Arguments:** `inputs`: those of `train_step`, with the batches stacked, as by `diffkit.data.batches`
    with `chunk`, of which the first `count` are used. `count` is an array, so a last, shorter dispatch
    compiles nothing.

    **Returns:** the new state, and a row of metrics for each step taken (further rows are zero).
    """
    batches, count, key, objective, config, optimiser = inputs
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(index, carry):
        dynamic, rows = carry
        batch = jax.tree.map(lambda stacked: stacked[index], batches)
        state = eqx.combine(dynamic, static)
        state, row = train_step(state, batch, key, objective, config, optimiser)
        return eqx.filter(state, eqx.is_array), rows.at[index].set(row)

    columns = len(METRICS) + (config.nonfinite == "skip")
    rows = jnp.zeros((jax.tree.leaves(batches)[0].shape[0], columns))
    dynamic, rows = jax.lax.fori_loop(0, count, body, (dynamic, rows))
    return eqx.combine(dynamic, static), rows
