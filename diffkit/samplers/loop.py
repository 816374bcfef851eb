"""The loop that every sampler runs in: one compiled scan over the grid, mapped over examples."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Real

from diffkit.denoiser import AbstractDenoiser, Prediction
from diffkit.grids import AbstractGrid, UniformT
from diffkit.model import DiffusionModel
from diffkit.processes import rescaled_prior_std
from diffkit.samplers.base import AbstractSampler, Denoise
from diffkit.typing import Example, PRNGKey, Scalar

Conditions = Float[Array | np.ndarray, " condition"] | Float[Array | np.ndarray, "count condition"]
"""One condition for all samples, or one for each."""


class Trajectory(eqx.Module):
    """Every latent that a sampler visited.

    **Attributes:**

    - `samples`: the decoded data, (count, *shape).
    - `logsnr`: the grid, (steps + 1,), from noise to data.
    - `z`: the latents of the model's process at those noise levels, (steps + 1, count, *shape).
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
) -> Real[Array, "..."]:
    """Draw samples from a model.

    Each example has a key of its own, derived from `key` and its index: the number of samples drawn at
    once does not change any of them.

    **Arguments:**

    - `model`: the model.
    - `sampler`: a sampler; `diffkit.samplers.Ancestral()` is the model itself.
    - `shape_or_count`: how many samples, as an integer, or as a shape that is put before the example's.
    - `key`: from `jax.random.key`.
    - `steps`: the number of steps, each one call of the network for a one-step sampler.
    - `grid`: where the steps lie.
    - `condition`: one condition for all samples, or one for each, (count, condition); see
      `diffkit.data.one_hot` and `diffkit.data.with_flag`. `diffkit.guide` makes a model follow it more
      closely.
    - `decode_noise`: draw from the decoder p(x | z_0) instead of taking its most probable value.

    **Returns:** data as stored, (count, *shape): integers under a discretised decoder.

    **Raises:** `ValueError` for a count or a number of steps below 1, or a batch of conditions whose
    length is not the count.
    """
    counts = (shape_or_count,) if isinstance(shape_or_count, int) else shape_or_count
    x, _, _ = _run(
        model, sampler, math.prod(counts), key, steps, grid, condition, decode_noise, False
    )
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
) -> Trajectory:
    """Draw samples, as `sample` does, and keep every latent on the way.

    **Arguments and errors:** those of `sample`; `count` is an integer.

    **Returns:** a `Trajectory`, whose `samples` are those of `sample` with the same arguments.
    """
    x, logsnr, z = _run(model, sampler, count, key, steps, grid, condition, decode_noise, True)
    return Trajectory(x, logsnr, z)


def _run(
    model, sampler, count, key, steps, grid, condition, decode_noise, keep
) -> tuple[Array, Array, Any]:
    if count < 1:
        raise ValueError(f"shape_or_count must ask for at least one sample, got {count}.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if condition is not None and condition.ndim == 2 and condition.shape[0] != count:
        raise ValueError(
            f"condition must have one row for each of the {count} samples, got {condition.shape[0]}."
        )
    return _compiled(model, sampler, count, key, steps, grid, condition, decode_noise, keep)


@eqx.filter_jit
def _compiled(model, sampler, count, key, steps, grid, condition, decode_noise, keep):
    logsnr = grid(model.schedule, steps)
    # fold_in rather than split: the key of example i is then the same for every count.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    alphas = jax.vmap(lambda value: model.process.at(value).alpha)(logsnr)

    def start(key: Key[Array, ""]) -> Float[Array, "..."]:
        noise = jax.random.normal(jax.random.fold_in(key, 0), model.shape)
        return rescaled_prior_std(logsnr[0]) * noise

    def step(y, state, key, condition, logsnr_t, logsnr_s, index):
        step_key = jax.random.fold_in(key, index + 2) if sampler.stochastic else None
        denoise = rescaled(model.denoiser, condition)
        return sampler.step(denoise, y, logsnr_t, logsnr_s, state, step_key)

    condition_axis = 0 if condition is not None and condition.ndim == 2 else None
    all_steps: Any = jax.vmap(step, in_axes=(0, 0, 0, condition_axis, None, None, None))

    def body(carry, at):
        y, state = all_steps(*carry, keys, condition, *at)
        return (y, state), y if keep else None

    y = jax.vmap(start)(keys)
    carry = (y, jax.vmap(sampler.init)(y))
    ys: Any
    (last, _), ys = jax.lax.scan(body, carry, (logsnr[:-1], logsnr[1:], jnp.arange(steps)))

    def decode(y: Float[Array, "..."], key: Key[Array, ""]) -> Real[Array, "..."]:
        decode_key = jax.random.fold_in(key, 1) if decode_noise else None
        level = model.process.at(logsnr[-1])
        return model.decoder.decode(level.alpha * y, level, key=decode_key)

    x = jax.vmap(decode)(last, keys)
    if not keep:
        return x, logsnr, None
    z = jnp.concatenate([y[None], ys]) * alphas.reshape((-1, 1) + (1,) * len(model.shape))
    return x, logsnr, z
