"""The noise of the Monte Carlo estimate of a loss, and its least value under the best schedule."""

import contextlib
import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.data import AbstractSource
from diffkit.data import batches as read
from diffkit.model import DiffusionModel
from diffkit.objectives import DiffusionLoss, extra_parameterization, proposed_diffusion
from diffkit.proposals import Proposal, propose
from diffkit.schedules import ordered_endpoints
from diffkit.time_samplers import AbstractTimeSampler, LowDiscrepancy
from diffkit.typing import PRNGKey
from diffkit.weightings import ELBO, AbstractWeighting


@dataclass(frozen=True)
class Profile:
    """Mean and second moment of the loss of a draw, by the bin of the draw.

    **Attributes:** `edges` of the bins, increasing; `share` of the draws in each; `mean` and
    `second_moment` of their losses, in nats per example and its square; NaN for an empty bin.
    """

    edges: Float[np.ndarray, " edges"]
    share: Float[np.ndarray, " bins"]
    mean: Float[np.ndarray, " bins"]
    second_moment: Float[np.ndarray, " bins"]


@dataclass(frozen=True)
class EstimatorStatistics:
    r"""The distribution of the estimate of a diffusion loss.

    **Attributes:**

    - `mean`: of the loss, in nats per example, and its standard error `mean_error`.
    - `variance`: of the loss of one draw (one example, time and noise).
    - `batch_variance`: of the mean of a batch, in the same unit: with independent times it is
      `variance / batch_size` for a large source, and less with times that cover [0, 1] evenly.
    - `best_variance`: the `variance` under the best schedule or, equivalently, the best times. For draws
      with the density $p(\lambda)$ the second moment is
      $\tfrac14 \int w^2\, \mathbb E \lVert \epsilon - \hat\epsilon \rVert^4 / p\; d\lambda$, least where p
      is as the root of the numerator. Estimated over the bins of `by_logsnr`; NaN in discrete time, where
      the loss itself depends on the schedule.
    - `by_t`, `by_logsnr`: a `Profile` over time, and over the logsnr.
    - `batch_size`, `batches`: draws per batch, and the number of batches.
    """

    mean: float
    mean_error: float
    variance: float
    batch_variance: float
    best_variance: float
    by_t: Profile
    by_logsnr: Profile
    batch_size: int
    batches: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain numbers, for a JSON file: `None` for an unknown one."""
        names = ("mean", "mean_error", "variance", "batch_variance", "best_variance")
        found = {name: getattr(self, name) for name in (*names, "batch_size", "batches")}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def estimator_statistics(
    model: DiffusionModel,
    source: AbstractSource,
    *,
    key: PRNGKey,
    weighting: AbstractWeighting = ELBO(),
    time_sampler: AbstractTimeSampler = LowDiscrepancy(),
    steps: int | None = None,
    batch_size: int = 128,
    batches: int = 256,
    bins: int = 50,
) -> EstimatorStatistics:
    """The distribution of training's estimate of the diffusion loss.

    The variance of a batch is measured over batches drawn as in training. For the bound, all else comes
    from as many draws of a proposal (`diffkit.proposals`), reweighted to the times of training: times that
    hardly visit the ends of the range usually show too small a variance themselves. Other losses, with
    another weighting or with predicted variances, are measured at their own times.

    **Arguments:** `model`, whose schedule decides the variance; `source`: the examples, such as
    `dataset.test`, in a new order for each pass through them; `key`; `weighting`, `time_sampler`, `steps`:
    the loss and its times, as in `diffkit.denoising_loss`; `batch_size`, `batches`: draws in one estimate,
    and estimates; `bins`: of the profiles.

    **Returns:** an `EstimatorStatistics`.

    **Raises:** `ValueError` for fewer than two batches, another number below 1, or examples that do not
    have the model's shape.
    """
    given = (("batch_size", batch_size, 1), ("batches", batches, 2), ("bins", bins, 1))
    for name, value, least in (*given, ("steps", steps, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    maximum, minimum = ordered_endpoints(model.schedule)
    how = DiffusionLoss(weighting, time_sampler, steps), batch_size, batches
    drawn = as_trained = _draws(model, source, key, None, *how)
    if isinstance(weighting, ELBO) and extra_parameterization(model) is None:
        key = jax.random.fold_in(key, batches)
        drawn = _draws(model, source, key, propose(model.schedule, steps), *how)
    weighted, weight, t, logsnr = drawn
    mean, second = weighted.mean(), _squares(weighted, weight).mean()
    by_logsnr = _profile(logsnr, weighted, weight, minimum, maximum, bins)
    seen = by_logsnr.share > 0
    root = np.sum(by_logsnr.share[seen] * np.sqrt(by_logsnr.second_moment[seen]))
    means = weighted.mean(axis=1)
    return EstimatorStatistics(
        mean=float(mean),
        mean_error=float(means.std(ddof=1) / math.sqrt(batches)),
        variance=float(second - mean**2),
        batch_variance=float(as_trained[0].mean(axis=1).var(ddof=1)),
        best_variance=float(root**2 - mean**2) if steps is None else math.nan,
        by_t=_profile(t, weighted, weight, 0.0, 1.0, bins),
        by_logsnr=by_logsnr,
        batch_size=batch_size,
        batches=batches,
    )


def _draws(
    model, source, key, proposal, loss: DiffusionLoss, batch_size: int, count: int
) -> tuple[Float[np.ndarray, "count batch"], ...]:
    """Weighted losses, weights, times and logsnr, a row for each batch.

    Drawn by the time sampler, or by a proposal if there is one. The weight is the density of the first over
    that of the second. A weighted loss is the weight times the loss in training there.
    """
    chunk = min(16, count)  # batches in one call of the compiled function
    collected = []
    with contextlib.closing(read(source, batch_size=batch_size, seed=0, chunk=chunk)) as iterator:
        for first in range(0, count, chunk):
            stacked = jax.tree.map(jnp.asarray, next(iterator))
            x, condition = stacked if isinstance(stacked, tuple) else (stacked, None)
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(chunk))
            rows = _draw(model, x, condition, keys, loss, proposal)
            collected.append([np.asarray(row, np.float64)[: count - first] for row in rows])
    return tuple(np.concatenate(rows) for rows in zip(*collected, strict=True))


@eqx.filter_jit
def _draw(
    model: DiffusionModel, x, condition, keys, loss: DiffusionLoss, proposal: Proposal | None
) -> tuple[Float[Array, "chunk batch"], ...]:
    def one(inputs):
        x, condition, key = inputs
        if proposal is not None:
            return _proposed(model, x, condition, key, loss, proposal)
        drawn = loss.draw(model, model.encode(x), key=key, condition=condition, inference=True)
        t = drawn.t
        if loss.steps is not None:  # the time that is visited
            t = (jnp.floor(t * loss.steps) + 1) / loss.steps
        return drawn.loss, jnp.ones_like(drawn.loss), t, jax.vmap(model.schedule)(t)

    return jax.lax.map(one, (x, condition, keys))


def _proposed(
    model: DiffusionModel, x, condition, key, loss: DiffusionLoss, proposal: Proposal
) -> tuple[Float[Array, " batch"], ...]:
    key, offset_key = jax.random.split(key)
    steps = loss.steps
    weighted, logsnr, importance, _ = proposed_diffusion(
        model, model.encode(x), key, proposal, steps=steps, condition=condition
    )
    t = drawn = jax.vmap(model.schedule.inverse)(logsnr)
    if steps is None:
        _, slope = jax.vmap(lambda t: jax.jvp(model.schedule, (t,), (jnp.ones_like(t),)))(t)
    else:
        # The time sampler draws anywhere in a step; so does this.
        t = jnp.round(steps * t) / steps
        drawn = t - jax.random.uniform(offset_key, t.shape) / steps
        slope = -jnp.full(t.shape, steps)
    # Densities of logsnr, or in discrete time of t, whose cells have the size 1 / T.
    weight = jax.vmap(loss.time_sampler.density)(drawn) / -slope * importance
    return weighted, weight, t, logsnr


def _squares(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weighted squares of the losses: infinite where the bound has a part but training never draws."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weighted == 0, 0.0, weighted**2 / weight)


def _profile(at: np.ndarray, weighted, weight, low: float, high: float, bins: int) -> Profile:
    edges = np.linspace(low, high, bins + 1)
    index = np.clip(np.searchsorted(edges, at.ravel(), side="right") - 1, 0, bins - 1)
    share = np.bincount(index, weight.ravel(), minlength=bins)
    values = weighted, _squares(weighted, weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        moments = (np.bincount(index, v.ravel(), minlength=bins) / share for v in values)
        return Profile(edges, share / share.sum(), *moments)
