r"""Exact denoisers of known distributions.

For data from a known distribution $\mathbb E[x \mid z]$ has a closed form. Such a denoiser is called like a
trained one and is the independent answer in tests: its VLB is the entropy plus known terms, and its
probability-flow ODE has a known map. All work in the rescaled latent $y = x + \rho\,\epsilon$ and so run
under every process.

**Conditions.** The denoiser of k components takes a condition of k non-negative numbers, which multiply the
components' weights. A one-hot vector (`diffkit.data.one_hot`) selects one component, ones at several places
a class of several, and zeros or `None` keep all: exact class-conditional denoisers to test guidance
against.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from diffkit.denoiser import AbstractDenoiser, Prediction
from diffkit.processes import AbstractProcess, NoiseLevel, VariancePreserving
from diffkit.typing import Condition, Example, MaybeKey, Scalar, ScalarLike, as_float


class _MixtureDenoiser(AbstractDenoiser):
    """Components N(mean_k, U_k diag(variance_k) U_k^T); a point is a component of variance 0."""

    process: AbstractProcess
    log_weights: Float[Array, " k"]
    means: Float[Array, "k *shape"]
    variances: Float[Array, "k dim"]
    # Eigenvectors in columns; None if every covariance is a multiple of the identity, as for points.
    bases: Float[Array, "k dim dim"] | None

    def __call__(
        self, z: Example, logsnr: ScalarLike, condition: Condition = None, *, key: MaybeKey = None
    ) -> Prediction:
        del key
        level = self.process.at(as_float(logsnr))
        y = z / level.alpha
        delta, total = self._distances(y, level)
        log_p = self._log_shares(condition) - 0.5 * jnp.sum(delta**2 / total + jnp.log(total), axis=-1)
        # y - E[x | y, k] = rho^2 (C_k + rho^2)^-1 (y - m_k), computed directly: the difference of y and
        # E[x] would lose the digits of eps at high SNR.
        residual = jnp.square(level.rho) / total * delta
        if self.bases is not None:
            residual = jnp.einsum("kij,kj->ki", self.bases, residual)
        responsibility = jax.nn.softmax(log_p)
        eps = (responsibility @ residual / level.rho).reshape(y.shape)
        return Prediction(y - level.rho * eps, eps, level)

    def log_density(self, z: Example, logsnr: ScalarLike, condition: Condition = None) -> Scalar:
        """The log density of the latent z at a noise level, given the condition, in nats."""
        level = self.process.at(as_float(logsnr))
        delta, total = self._distances(z / level.alpha, level)
        log_p = -0.5 * jnp.sum(delta**2 / total + jnp.log(2 * jnp.pi * total), axis=-1)
        log_p = self._log_shares(condition) + log_p
        return jax.nn.logsumexp(log_p) - z.size * jnp.log(level.alpha)

    def _distances(self, y: Example, level: NoiseLevel) -> tuple[Array, Array]:
        """The distance to each mean, in the eigenbasis of its covariance, and the variances there."""
        delta = (y - self.means).reshape(self.variances.shape[0], -1)
        if self.bases is not None:
            delta = jnp.einsum("kij,ki->kj", self.bases, delta)
        return delta, self.variances + jnp.square(level.rho)

    def _log_shares(self, condition: Condition) -> Float[Array, " k"]:
        """The log weights of the components given the condition, normalised."""
        if condition is None:
            return self.log_weights
        if condition.shape != self.log_weights.shape:
            raise ValueError(
                "condition must have a weight for each of the "
                f"{self.log_weights.size} components, got the shape {condition.shape}."
            )
        # Zeros mean no condition, as everywhere.
        factors = jnp.where(jnp.any(condition > 0), condition, 1.0)
        return jax.nn.log_softmax(self.log_weights + jnp.log(factors))


def gaussian(
    mean: Real[ArrayLike, " dim"],
    cov: Real[ArrayLike, "dim dim"],
    *,
    process: AbstractProcess = VariancePreserving(),
) -> _MixtureDenoiser:
    """The exact denoiser of data with the distribution N(mean, cov): `mixture` of one component.

    **Raises:** `ValueError` if `cov` is not symmetric or has a negative eigenvalue.
    """
    return mixture(jnp.ones(1), jnp.asarray(mean)[None], jnp.asarray(cov)[None], process=process)


def mixture(
    weights: Real[ArrayLike, " k"] | Sequence[float],
    means: Real[ArrayLike, "k dim"],
    covs: Real[ArrayLike, "k dim dim"],
    *,
    process: AbstractProcess = VariancePreserving(),
) -> _MixtureDenoiser:
    """The exact denoiser of a mixture of Gaussians.

    **Arguments:** `weights`, (k,), positive, normalised here; `means`, (k, dim); `covs`,
    (k, dim, dim), each symmetric and positive semi-definite; `process`.

    **Raises:** `ValueError` for weights that are not positive, or a matrix that is not a covariance.
    """
    covs = np.asarray(covs, dtype=np.float64)
    if not np.allclose(covs, covs.swapaxes(-1, -2)):
        raise ValueError("covs must be symmetric matrices; one of them is not.")
    # Once, on the host, in float64: everything after it depends on the decomposition's precision.
    variances, bases = np.linalg.eigh(covs)
    if variances.min() < -1e-9 * max(1.0, variances.max()):
        raise ValueError(f"covs must be positive semi-definite, got the eigenvalue {variances.min():.3g}.")
    return _MixtureDenoiser(
        process=process,
        log_weights=_log_weights(weights),
        means=_floats(means),
        variances=_floats(np.maximum(variances, 0.0)),
        bases=_floats(bases),
    )


def empirical(
    points: Real[ArrayLike, "k *shape"],
    weights: Real[ArrayLike, " k"] | Sequence[float] | None = None,
    *,
    process: AbstractProcess = VariancePreserving(),
) -> _MixtureDenoiser:
    """The exact denoiser of a distribution on finitely many points, such as a data set.

    **Arguments:** `points`, (k, *shape), *encoded* values; `weights`, (k,), positive, normalised here,
    equal by default; `process`.

    **Raises:** `ValueError` for weights that are not positive.
    """
    points = _floats(points)
    count = points.shape[0]
    return _MixtureDenoiser(
        process=process,
        log_weights=_log_weights(np.ones(count) if weights is None else weights),
        means=points,
        variances=jnp.zeros((count, points[0].size)),
        bases=None,
    )


def _floats(values: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    return jnp.asarray(values, jnp.result_type(float))


def _log_weights(weights: Real[ArrayLike, " k"] | Sequence[float]) -> Float[Array, " k"]:
    values = np.asarray(weights, dtype=np.float64)
    if not (np.all(np.isfinite(values)) and np.all(values > 0)):
        raise ValueError(f"weights must be positive and finite, got {values}.")
    return _floats(np.log(values / values.sum()))
