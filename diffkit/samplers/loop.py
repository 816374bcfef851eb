"""The loop of every sampler: one compiled scan over the grid, mapped over examples."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key, Real

from diffkit.checks import check_grid, check_model
from diffkit.denoiser import AbstractDenoiser, Prediction
from diffkit.grids import AbstractGrid, UniformT
from diffkit.model import DiffusionModel
from diffkit.processes import VarianceExploding, rescaled_prior_std
from diffkit.samplers.base import AbstractSampler, Denoise, take_step
from diffkit.schedules import Truncated, ordered_endpoints
from diffkit.typing import DataBatch, Example, FloatBatch, PRNGKey, Scalar, ScalarLike, as_float

Start = tuple[Float[Array | np.ndarray, "..."], ScalarLike]
"""A batch of latents of the model's process and their `logsnr`, as returned by `noised` and `invert`."""

Conditions = Float[Array | np.ndarray, " condition"] | Float[Array | np.ndarray, "count condition"]
"""One condition for all samples, or one for each."""


class Trajectory(eqx.Module):
    """Every latent visited by a sampler.

    **Attributes:** `samples`: the decoded data, (count, *shape); `logsnr`: the grid, (steps + 1,), from
    noise to data; `z`: the latents of the model's process there, (steps + 1, count, *shape).
    """

    samples: Real[Array, "count *shape"]
    logsnr: Float[Array, " points"]
    z: Float[Array, "points count *shape"]


def rescaled(denoiser: AbstractDenoiser, condition: Float[Array, " condition"] | None) -> Denoise:
    """A denoiser as a function of the rescaled latent y = z / alpha."""

    def denoise(y: Example, logsnr: Scalar) -> Prediction:
        return denoiser(denoiser.process.at(logsnr).alpha * y, logsnr, condition)

    return denoise


def sample(
    model: DiffusionModel,
    sampler: AbstractSampler,
    shape_or_count: int | tuple[int, ...],
    *,
    key: PRNGKey,
    steps: int = 250,
    grid: AbstractGrid = UniformT(),
    condition: Conditions | None = None,
    decode_noise: bool = False,
    start: Start | None = None,
    check: bool = True,
) -> Real[Array, "..."]:
    """Draw samples from a model.

    Each example has its own key, derived from `key` and its index: the number of samples drawn at once
    does not change any of them.

    **Arguments:**

    - `model`; `sampler`: `diffkit.samplers.Ancestral()` is the model itself; `key`: from `jax.random.key`.
    - `shape_or_count`: how many samples: an integer, or a shape to put before the example's.
    - `steps`: how many, each one call of the network for a one-step sampler; `grid`: where they lie.
    - `condition`: one condition for all samples, or one for each, (count, condition); see
      `diffkit.data.one_hot` and `diffkit.data.with_flag`. `diffkit.guide` makes a model follow it more
      closely.
    - `decode_noise`: draw from the decoder p(x | z_0) instead of taking its most probable value.
    - `start`: where to start instead of the prior: a pair (z, logsnr) of latents of the model's process,
      (count, *shape), and their noise level. `noised` (SDEdit, arXiv 2108.01073) and `invert` make it from
      data; a `Trajectory` has it. All steps then lie between that level and the data: the grid sees
      `diffkit.Truncated`.
    - `check`: check the parts before work begins, on a few hundred numbers (`diffkit.checks`): the schedule
      falls, the target determines x and eps, the grid rises from end to end.

    **Returns:** data as stored, (count, *shape): integers under a discretised decoder.

    **Raises:** `ValueError` for a wrong part (`check`), a count or a number of steps below 1, a batch of
    conditions whose length is not the count, or a start of another shape or outside the range of the
    schedule. `FloatingPointError` if the samples are not finite (not checked within a compiled function).
    `TypeError` for a sampler whose `step` does not return a latent and a state like its
    arguments.

    ```python
    model = dk.preset("vdm", network="mlp").model(shape=(2,), key=jax.random.key(0))
    x = jnp.zeros((4, 2), int)
    start = dk.noised(model, x, 0.0, key=jax.random.key(1))
    edited = dk.sample(model, dk.samplers.DDIM(), 4, start=start, steps=20, key=jax.random.key(2))
    ```
    """
    counts = (shape_or_count,) if isinstance(shape_or_count, int) else shape_or_count
    how = (key, steps, grid, condition, decode_noise, start, check)
    x, _, _ = _run(model, sampler, counts, *how, keep=False)
    return x.reshape(counts + model.shape)


def sample_trajectory(
    model: DiffusionModel,
    sampler: AbstractSampler,
    count: int,
    *,
    key: PRNGKey,
    steps: int = 250,
    grid: AbstractGrid = UniformT(),
    condition: Conditions | None = None,
    decode_noise: bool = False,
    start: Start | None = None,
    check: bool = True,
) -> Trajectory:
    """Draw samples, as `sample` does, and keep every latent on the way.

    **Arguments and errors:** those of `sample`; `count` is an integer.

    **Returns:** a `Trajectory`, whose `samples` are those of `sample` with the same arguments.
    """
    how = (key, steps, grid, condition, decode_noise, start, check)
    return Trajectory(*_run(model, sampler, (count,), *how, keep=True))


def check_sampler(sampler: AbstractSampler, shape: tuple[int, ...], *, spread: bool) -> None:
    """Refuse a step with other shapes, by a `TypeError`, evaluating nothing. `spread`: is it predicted?"""

    def step(y, logsnr_t, logsnr_s, key):
        def denoise(y, logsnr):
            return Prediction(y, y, VarianceExploding().at(logsnr), spread=y if spread else None)

        given = sampler.init(y), key if sampler.stochastic else None
        return take_step(sampler, denoise, y, logsnr_t, logsnr_s, *given)

    eqx.filter_eval_shape(step, jnp.zeros(shape), jnp.zeros(()), jnp.ones(()), jax.random.key(0))


def noised(
    model: DiffusionModel, x: DataBatch, logsnr: ScalarLike, *, key: PRNGKey
) -> tuple[FloatBatch, Scalar]:
    """Data noised to a level: a `start` for `sample`.

    **Arguments:** `x`: a batch of data as stored; `logsnr`: the level; `key`: from `jax.random.key`. Each
    example has its own noise, the same with which `sample` starts from the prior. No step of `sample`
    draws it again, so both may share a key.

    **Returns:** draws of q(z | x), (batch, *shape), and `logsnr`.

    **Raises:** `ValueError` for data that are not the model's (`DiffusionModel.encode`).
    """
    level, eps = model.process.at(logsnr), _noises(model, _keys(key, x.shape[0]))
    return model.process.perturb(model.encode(jnp.asarray(x)), eps, level), level.logsnr


def invert(
    model: DiffusionModel,
    sampler: AbstractSampler,
    x: DataBatch,
    *,
    steps: int = 250,
    grid: AbstractGrid = UniformT(),
    condition: Conditions | None = None,
    logsnr: ScalarLike | None = None,
    check: bool = True,
) -> tuple[FloatBatch, Scalar]:
    """The latents from which a deterministic sampler makes given data: its steps the other way.

    Solves the probability-flow ODE from data to noise (DDIM, arXiv 2010.02502, section 4.3). Sampling
    from the result returns the data, up to the error of the sampler.

    **Arguments:** those of `sample`; `x`: a batch of data as stored; `logsnr`: the final noise level, by
    default the end of the schedule.

    **Returns:** the latents of the model's process, (batch, *shape), and their `logsnr`: a `start` for
    `sample`.

    **Raises:** those of `sample`; `ValueError` for a stochastic sampler, or data that are not the model's.
    """
    if sampler.stochastic:
        raise ValueError(
            f"sampler must be deterministic, got {type(sampler).__name__}, which adds noise: its steps "
            "have no inverse. Take an ODE's, such as diffkit.samplers.DDIM()."
        )
    _check(model, grid, x.shape[0], steps, condition, check)
    y = model.encode(jnp.asarray(x)).astype(float)
    if logsnr is None:
        logsnr = model.schedule.endpoints[1]
    logsnrs = _rest(model, grid, steps, logsnr, "logsnr")[::-1]
    return _inverted(model, sampler, y, logsnrs, condition), logsnrs[-1]


def _check(model, grid, count: int, steps: int, condition: Conditions | None, check: bool) -> None:
    if count < 1:
        raise ValueError(f"shape_or_count must ask for at least one sample, got {count}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if condition is not None and condition.ndim == 2 and condition.shape[0] != count:
        raise ValueError(
            f"condition must have one row for each of the {count} samples, got {condition.shape[0]}."
        )
    if check:
        check_model(model)
        check_grid(grid, model.schedule, steps)


def _rest(
    model: DiffusionModel, grid: AbstractGrid, steps: int, logsnr: ScalarLike, argument: str
) -> Float[Array, " points"]:
    """The grid over the rest of the schedule, from a level to the data."""
    maximum, minimum = ordered_endpoints(model.schedule)
    # Endpoints come as float32: the same number may differ in the seventh digit.
    slack = 1e-5 * max(abs(maximum), abs(minimum))
    if not minimum - slack <= (value := float(as_float(logsnr))) < maximum - slack:
        raise ValueError(
            f"{argument} must be a noise level of the schedule below its end at the data: from logsnr "
            f"{minimum:g} to {maximum:g}, got {value:g}."
        )
    if value <= minimum + slack:
        return grid(model.schedule, steps)
    return grid(Truncated(model.schedule, maximum, value), steps)


def _run(
    model, sampler, counts, key, steps, grid, condition, decode_noise, start, check, keep
) -> tuple[Array, Array, Any]:
    count = math.prod(counts)
    _check(model, grid, count, steps, condition, check)
    if start is not None:
        z, logsnr = start
        if z.shape != counts + model.shape:
            raise ValueError(
                f"start must hold latents of shape {counts + model.shape}, as many as shape_or_count asks "
                f"for, got {tuple(z.shape)}."
            )
        z = jnp.asarray(z, float).reshape(count, *model.shape)
        start = z, _rest(model, grid, steps, logsnr, "start")
    x, logsnrs, z, finite = _compiled(
        model, sampler, count, key, steps, grid, condition, decode_noise, start, keep
    )
    # A decoder makes integers of anything.
    if not (isinstance(finite, Tracer) or finite):
        raise FloatingPointError(
            "the samples are not finite: the denoiser, or the sampler with these steps, left the range of "
            "float32."
        )
    return x, logsnrs, z


def _keys(key: PRNGKey, count: int) -> Key[Array, " {count}"]:
    # fold_in, not split: the key of example i is then the same for every count.
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))


def _noises(model: DiffusionModel, keys: Key[Array, " count"]) -> FloatBatch:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), model.shape))(keys)


def _scan(model, sampler, y, keys, logsnr, condition, keep) -> tuple[Array, Any]:
    """The last rescaled latents along a grid, and, if kept, all but the first."""

    def step(y, state, key, condition, logsnr_t, logsnr_s, index):
        step_key = jax.random.fold_in(key, index + 2) if sampler.stochastic else None
        denoise = rescaled(model.denoiser, condition)
        return take_step(sampler, denoise, y, logsnr_t, logsnr_s, state, step_key)

    condition_axis = 0 if condition is not None and condition.ndim == 2 else None
    all_steps: Any = jax.vmap(step, in_axes=(0, 0, 0, condition_axis, None, None, None))

    def body(carry, at):
        y, state = all_steps(*carry, keys, condition, *at)
        return (y, state), y if keep else None

    at = (logsnr[:-1], logsnr[1:], jnp.arange(len(logsnr) - 1))
    (last, _), ys = jax.lax.scan(body, (y, jax.vmap(sampler.init)(y)), at)
    return last, ys


@eqx.filter_jit
def _inverted(model, sampler, y, logsnr, condition):
    y, _ = _scan(model, sampler, y, None, logsnr, condition, False)
    return model.process.at(logsnr[-1]).alpha * y


@eqx.filter_jit
def _compiled(model, sampler, count, key, steps, grid, condition, decode_noise, start, keep):
    keys = _keys(key, count)
    if start is None:
        logsnr = grid(model.schedule, steps)
        y = rescaled_prior_std(logsnr[0]) * _noises(model, keys)
    else:
        z, logsnr = start
        y = z / model.process.at(logsnr[0]).alpha
    last, ys = _scan(model, sampler, y, keys, logsnr, condition, keep)

    def decode(y: Float[Array, "..."], key: Key[Array, ""]) -> Real[Array, "..."]:
        decode_key = jax.random.fold_in(key, 1) if decode_noise else None
        level = model.process.at(logsnr[-1])
        return model.decoder.decode(level.alpha * y, level, key=decode_key)

    x = jax.vmap(decode)(last, keys)
    finite = jnp.isfinite(last).all()
    if not keep:
        return x, logsnr, None, finite
    alphas = jax.vmap(lambda value: model.process.at(value).alpha)(logsnr)
    z = jnp.concatenate([y[None], ys]) * alphas.reshape((-1, 1) + (1,) * len(model.shape))
    return x, logsnr, z, finite
