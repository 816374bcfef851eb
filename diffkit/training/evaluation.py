"""Evaluation: the VLB of a whole source, with its standard error."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from diffkit.data import AbstractSource, batches
from diffkit.model import DiffusionModel, check_levels
from diffkit.objectives import vlb
from diffkit.schedules import ordered_endpoints
from diffkit.typing import PRNGKey


@dataclass(frozen=True)
class Evaluation:
    """The VLB of a source in bits per dimension: means over examples, with standard errors.

    **Attributes:** `prior`, `reconstruction`, `diffusion`, `total`: pairs (mean, standard error);
    `examples`: how many there were; `passes`: draws per example; `steps`: T, or `None` for continuous
    time; `per_example`: the total of each example, in the order of the source.

    The standard error is that of the mean over examples, each with the mean of its own draws: it
    counts both the spread of the data and what is left of the Monte Carlo error.
    """

    prior: tuple[float, float]
    reconstruction: tuple[float, float]
    diffusion: tuple[float, float]
    total: tuple[float, float]
    examples: int
    passes: int
    steps: int | None
    per_example: Float[np.ndarray, " examples"]

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain numbers, for a JSON file."""
        record: dict[str, float | int | None] = {}
        for name in ("prior", "reconstruction", "diffusion", "total"):
            mean, error = getattr(self, name)
            record[f"{name}_bits_per_dim"] = mean
            record[f"{name}_standard_error"] = error
        return record | {"examples": self.examples, "passes": self.passes, "steps": self.steps}


@eqx.filter_jit
def _terms(
    model: DiffusionModel,
    x: Real[Array, "batch *shape"],
    condition: Float[Array, "batch condition"] | None,
    key: PRNGKey,
    steps: int | None,
    passes: int,
) -> Float[Array, "terms batch"]:
    # The passes of one example get evenly spread times: row i of pass p has the time
    # mod(u + (p batch + i) / (passes batch), 1).
    x_passes, condition_passes = jax.tree.map(
        lambda rows: jnp.tile(rows, (passes,) + (1,) * (rows.ndim - 1)), (x, condition)
    )
    bound = vlb(model, x_passes, key=key, steps=steps, condition=condition_passes)
    terms = jnp.stack([bound.prior, bound.reconstruction, bound.diffusion])
    return terms.reshape(3, passes, x.shape[0]).mean(axis=1) / (bound.dimensions * math.log(2))


def evaluate(
    model: DiffusionModel,
    source: AbstractSource,
    *,
    key: PRNGKey,
    steps: int | None = None,
    passes: int = 16,
    batch_size: int = 512,
) -> Evaluation:
    """The VLB of every example of a source.

    **Arguments:**

    - `model`: the model.
    - `source`: the examples, such as `dataset.test`. If it has conditions, the bound is on the
      likelihood given them.
    - `key`: from `jax.random.key`.
    - `steps`: the number T of steps of the discrete-time model; `None` is continuous time.
    - `passes`: draws of time and noise per example.
    - `batch_size`: latents in one call of the network, about.

    **Returns:** an `Evaluation`.

    **Raises:** `ValueError` for a number below 1, examples that do not have the model's shape or hold
    levels that its decoder does not have, or a schedule that does not fall.
    """
    for name, value in (("passes", passes), ("batch_size", batch_size), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    ordered_endpoints(model.schedule)
    size = min(max(batch_size // passes, 1), len(source))
    collected = []
    for index, batch in enumerate(
        batches(source, batch_size=size, seed=0, shuffle=False, repeat=False, drop_remainder=False)
    ):
        check_levels(jax.tree.leaves(batch)[0], model.decoder.levels)
        # The last batch is filled up, so that one function is compiled; what is too much is cut off.
        padded = jax.tree.map(
            lambda rows: jnp.asarray(np.resize(rows, (size, *rows.shape[1:]))), batch
        )
        x, condition = padded if isinstance(padded, tuple) else (padded, None)
        terms = _terms(model, x, condition, jax.random.fold_in(key, index), steps, passes)
        collected.append(terms[:, : len(jax.tree.leaves(batch)[0])])
    terms = np.concatenate([np.asarray(part, dtype=np.float64) for part in collected], axis=1)
    total = terms.sum(axis=0)
    count = total.size

    def summary(values: Float[np.ndarray, " examples"]) -> tuple[float, float]:
        error = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
        return float(values.mean()), float(error)

    return Evaluation(
        prior=summary(terms[0]),
        reconstruction=summary(terms[1]),
        diffusion=summary(terms[2]),
        total=summary(total),
        examples=count,
        passes=passes,
        steps=steps,
        per_example=total,
    )
