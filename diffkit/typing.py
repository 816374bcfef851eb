"""Shapes and dtypes, and the run-time checks at every boundary.

Every function and class of diffkit is checked when it is called, by jaxtyping and beartype, against
the same annotations that a static type checker reads. Under `jit` a check runs while tracing, so its
steady cost is nil. One switch turns the checks off: the environment variable `JAXTYPING_DISABLE=1`,
set before `diffkit` is imported.

Names of dimensions mean the same everywhere: `batch` examples, `*shape` the shape of one example,
`channels height width` an image.
"""

import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype
from jaxtyping import Array, Bool, Float, Int, Key, Real, install_import_hook
from jaxtyping import ArrayLike as ArrayLike

Scalar = Float[Array, ""]
"""A JAX float scalar."""

ScalarLike = Real[ArrayLike, ""]
"""A Python number, or a scalar array of a real dtype."""

PRNGKey = Key[Array, ""]
"""One typed key, as made by `jax.random.key` (not the legacy `jax.random.PRNGKey`)."""

Example = Float[Array, "*shape"]
"""One example (or latent, or noise) without a batch axis."""

FloatBatch = Float[Array, "batch *shape"]
"""A batch of latents or noises."""

DataBatch = Real[Array | np.ndarray, "batch *shape"]
"""A batch of data as stored: integer levels or floats."""

BatchScalar = Float[Array, " batch"]
"""One number per example."""

Flag = Bool[Array, ""]
Index = Int[Array, ""]


typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype, taking an `int` where a `float` is meant, as static checkers do."""


def check_types(package: str) -> None:
    """Check the annotations of every module of a package at run time.

    Call it at the top of the package's `__init__.py`, before its submodules are imported. diffkit and
    its plugins do.

    **Arguments:** `package`: the package's import name.
    """
    install_import_hook(package, "diffkit.typing.typechecker")


def as_float(value: ScalarLike) -> Scalar:
    """A number as a JAX float scalar; the dtype of a float array is kept."""
    return jnp.asarray(value, jnp.result_type(value, float))
