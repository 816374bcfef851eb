"""Evaluation: the VLB of a whole source, with its standard error."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.data import AbstractSource, batches
from diffkit.model import DiffusionModel, check_levels
from diffkit.objectives import expected_reconstruction, prior_term, proposed_diffusion, vlb
from diffkit.presets import Assembly
from diffkit.proposals import Proposal, measured, propose
from diffkit.schedules import AbstractSchedule, minimises_variance, ordered_endpoints
from diffkit.time_samplers import AbstractTimeSampler
from diffkit.transport import transport
from diffkit.typing import PRNGKey

# A pilot takes the network calls of one batch: at most an eighth of an evaluation.
_BATCHES_FOR_A_PILOT = 8
_TERMS = ("prior", "reconstruction", "diffusion", "total")


@dataclass(frozen=True)
class Evaluation:
    """The VLB of a source in nats per example, as in `diffkit.VLB`, with standard errors.

    **Attributes:** `prior`, `reconstruction`, `diffusion`, `total`: pairs (mean over examples, standard
    error); `examples`: their number; `passes`: draws per example; `steps`: T, or `None` for continuous
    time; `draws`: how the noise levels of the diffusion term were drawn; `per_example`: the total of each
    example, in the order of the source; `dimensions`: of an example.

    `draws` is `"pilot"` if a pilot measured the errors of the model first, `"uniform_logsnr"` for draws
    uniform in `logsnr`, `"schedule"` for those of a schedule that minimises the variance, or the class of
    the given time sampler. In discrete time the same words stand for draws of steps: without a pilot, in
    proportion to the cost of an error in each.

    The standard error is that of the mean over examples, each averaged over its draws: it includes the
    spread of the data and the remaining Monte Carlo error. For one example it is NaN.
    """

    prior: tuple[float, float]
    reconstruction: tuple[float, float]
    diffusion: tuple[float, float]
    total: tuple[float, float]
    examples: int
    passes: int
    steps: int | None
    draws: str
    per_example: Float[np.ndarray, " examples"]
    dimensions: int

    @property
    def bits_per_dim(self) -> tuple[float, float]:
        """The total and its standard error in bits per dimension."""
        return self._bits(self.total)

    def _bits(self, nats: tuple[float, float]) -> tuple[float, float]:
        scale = 1 / (self.dimensions * math.log(2))
        return scale * nats[0], scale * nats[1]

    def __repr__(self) -> str:
        mean, error = self.bits_per_dim
        named = [f"{name} {self._bits(getattr(self, name))[0]:.4f}" for name in _TERMS[:3]]
        times = "continuous time" if self.steps is None else f"T = {self.steps}"
        return (
            f"Evaluation: {mean:.4f} +- {error:.4f} bits/dim ({', '.join(named)}), {times}, "
            f"{self.examples} examples, draws of each: {self.passes}"
        )

    def as_dict(self) -> dict[str, float | int | str | None]:
        """Plain values in bits per dimension, for a JSON file: `None` for an unknown standard error."""
        record: dict[str, float | int | str | None] = {}
        for name in _TERMS:
            mean, error = self._bits(getattr(self, name))
            record[f"{name}_bits_per_dim"] = mean
            record[f"{name}_standard_error"] = error if math.isfinite(error) else None
        settings = ("examples", "passes", "steps", "draws")
        return record | {name: getattr(self, name) for name in settings}


@runtime_checkable
class Trained(Protocol):
    """What `diffkit.fit` returns, a `diffkit.Fit`."""

    @property
    def model(self) -> DiffusionModel: ...
    @property
    def assembly(self) -> Assembly: ...


@eqx.filter_jit
def _ends(model: DiffusionModel, x, key) -> Float[Array, "terms batch"]:
    encoded, shifts = model.encode(x), jax.random.uniform(key, x.shape[:1])
    prior = jax.vmap(lambda x: prior_term(model, x))(encoded)
    reconstruction = jax.vmap(lambda x, shift: expected_reconstruction(model, x, shift))(x, shifts)
    return jnp.stack([prior, reconstruction])


@eqx.filter_jit
def _diffusion(
    model: DiffusionModel, x, condition, key, times: Proposal | AbstractTimeSampler, steps, passes
) -> tuple[Float[Array, " batch"], list[Float[Array, " rows"]]]:
    """The diffusion term of each example; and of each draw of a proposal the `logsnr` and the error."""
    # The passes of one example get evenly spread draws: row i of pass p has the uniform number
    # mod(u + (p batch + i) / (passes batch), 1).
    x_passes, condition_passes = jax.tree.map(
        lambda rows: jnp.tile(rows, (passes,) + (1,) * (rows.ndim - 1)), (x, condition)
    )
    found: list[Float[Array, " rows"]] = []
    if isinstance(times, Proposal):
        loss, logsnr, _, errors = proposed_diffusion(
            model, model.encode(x_passes), key, times, steps=steps, condition=condition_passes
        )
        found = [logsnr, errors]
    else:
        loss = vlb(
            model, x_passes, key=key, steps=steps, time_sampler=times, condition=condition_passes
        ).diffusion
    return loss.reshape(passes, -1).mean(axis=0), found


def evaluate(
    model: DiffusionModel | Trained,
    source: AbstractSource,
    *,
    key: PRNGKey,
    steps: int | None = None,
    passes: int = 16,
    batch_size: int = 512,
    time_sampler: AbstractTimeSampler | None = None,
    schedule: AbstractSchedule | None = None,
) -> Evaluation:
    """The VLB of every example of a source.

    The prior term is exact, and the reconstruction term nearly so
    (`diffkit.objectives.expected_reconstruction`). The noise levels of the diffusion term follow its
    integrand (`diffkit.proposals`): with eight batches or more, a pilot of one batch first measures the
    errors of the model over `logsnr`.

    **Arguments:**

    - `model`: a model, or what `fit` returned; `key`: from `jax.random.key`.
    - `source`: the examples, such as `dataset.test`. If it has conditions, the bound is on the
      likelihood given them.
    - `steps`: the number T of steps of the discrete-time model; `None` for continuous time, or for the T
      of the training if `model` is a `diffkit.Fit`.
    - `passes`: draws of time and noise per example, by `time_sampler` if there is one.
    - `batch_size`: about how many latents to pass to the network in one call.
    - `schedule`: carry the model over to this schedule first (`diffkit.equivalence.transport`).

    **Returns:** an `Evaluation`.

    **Raises:** `ValueError` for a number below 1, examples that do not have the model's shape or hold
    levels that its decoder does not have, or a schedule that does not fall.

    **Warns:** `TransportWarning` if the range of `schedule` is not the model's.
    """
    if not isinstance(model, DiffusionModel):
        steps = model.assembly.preset.train.get("loss_steps") if steps is None else steps
        model = model.model
    if schedule is not None:
        model = transport(model, schedule=schedule)
    for name, value in (("passes", passes), ("batch_size", batch_size), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    ordered_endpoints(model.schedule)
    size = min(max(batch_size // passes, 1), len(source))
    ends_key, diffusion_key, pilot_key = jax.random.split(key, 3)
    if time_sampler is not None:
        times, draws = time_sampler, type(time_sampler).__name__
    else:
        times = propose(model.schedule, steps)
        draws = "schedule" if minimises_variance(model.schedule) else "uniform_logsnr"
    pilot = time_sampler is None and len(source) >= _BATCHES_FOR_A_PILOT * size
    collected = []
    for index, batch in enumerate(
        batches(source, batch_size=size, seed=0, shuffle=False, repeat=False, drop_remainder=False)
    ):
        check_levels(jax.tree.leaves(batch)[0], model.decoder.levels)
        # The last batch is filled up, so only one function is compiled, and cut off afterwards.
        padded = jax.tree.map(lambda rows: jnp.asarray(np.resize(rows, (size, *rows.shape[1:]))), batch)
        x, condition = padded if isinstance(padded, tuple) else (padded, None)
        if pilot and index == 0:
            # Its draws are not used again: those of the estimate are independent of its result.
            _, found = _diffusion(model, x, condition, pilot_key, times, steps, passes)
            logsnr, errors = (np.asarray(rows, np.float64) for rows in found)
            times, draws = propose(model.schedule, steps, measured(logsnr, errors)), "pilot"
        ends = _ends(model, x, jax.random.fold_in(ends_key, index))
        diffusion, _ = _diffusion(
            model, x, condition, jax.random.fold_in(diffusion_key, index), times, steps, passes
        )
        terms = jnp.concatenate([ends, diffusion[None]])
        collected.append(terms[:, : len(jax.tree.leaves(batch)[0])])
    terms = np.concatenate([np.asarray(part, np.float64) for part in collected], axis=1)
    total = terms.sum(axis=0)
    count = total.size

    def summary(values: Float[np.ndarray, " examples"]) -> tuple[float, float]:
        error = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
        return float(values.mean()), float(error)

    means = summary(terms[0]), summary(terms[1]), summary(terms[2]), summary(total)
    return Evaluation(*means, count, passes, steps, draws, total, math.prod(model.shape))
