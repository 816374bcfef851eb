"""Shapes and dtypes, and the run-time checks at every boundary.

jaxtyping and beartype check every call of diffkit's functions and classes against their annotations; under
`jit` only while tracing, at no later cost. `JAXTYPING_DISABLE=1` in the environment, before `import
diffkit`, turns the checks off.

Dimension names mean the same everywhere: `batch` examples, `*shape` the shape of one, `channels height
width` an image.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Real
from jaxtyping import ArrayLike as ArrayLike

from diffkit.typechecking import check_types as check_types

Scalar = Float[Array, ""]
"""A JAX float scalar."""

ScalarLike = Real[ArrayLike, ""]
"""A Python number, or a scalar array of a real dtype."""

PRNGKey = Key[Array, ""]
"""One typed key, as made by `jax.random.key` (not the legacy `jax.random.PRNGKey`)."""

Example = Float[Array, "*shape"]
"""One example (or latent, or noise) without a batch axis."""

Condition = Float[Array, " condition"] | None
"""What describes one example (`diffkit.data.conditions`); `None` for nothing."""

MaybeKey = PRNGKey | None
"""A key where there may be none: no dropout, or no noise."""

FloatBatch = Float[Array, "batch *shape"]
"""A batch of latents or noises."""

DataBatch = Real[Array | np.ndarray, "batch *shape"]
"""A batch of data as stored: integer levels or floats."""

BatchScalar = Float[Array, " batch"]
"""One number per example."""

Flag = Bool[Array, ""]
Index = Int[Array, ""]


def check_at_least(name: str, value: float, smallest: float) -> None:
    """Raise `ValueError` for a number below `smallest`, or NaN."""
    if not value >= smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raise `ValueError` unless a number is positive and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}.")


def as_float(value: ScalarLike) -> Scalar:
    """A number as a JAX float scalar; a float array keeps its dtype."""
    return jnp.asarray(value, jnp.result_type(value, float))
