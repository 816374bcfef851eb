r"""Times that prefer the middle of the path."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import diffkit as dk
from diffkit.time_samplers import Times
from diffkit.typing import PRNGKey, Scalar, ScalarLike, as_float, check_at_least, check_positive


@dk.register("time_sampler", "logit_normal")
class LogitNormal(dk.AbstractTimeSampler):
    r"""Independent times whose logit $\log(t / (1 - t))$ is normal.

    $$p(t) = \frac{1}{s \sqrt{2 \pi}}\, \frac{1}{t (1 - t)}
      \exp\!\left(-\frac{(\mathrm{logit}\, t - m)^2}{2 s^2}\right)$$

    Esser et al. 2024 (arXiv 2403.03206, equation 19), who call their best choice rf/lognorm(0, 1). It draws
    the middle of the path, where the velocity is hardest to predict, more often, and the ends hardly ever.
    If the loss itself should prefer the middle, choose `weighting=simple weighting.times=logit_normal`.

    Choose it with weightings that vanish at the ends as its density does, such as that one. Never use it
    for a bound (`weighting=elbo`, `diffkit.vlb`): the importance 1 / p is unbounded at both ends, so the
    estimate has infinite variance, and most estimates miss the contribution of the ends.

    **Arguments:** `mean`, `std`: m and s. A negative mean prefers data, a positive one noise.

    **Raises:** `ValueError` if the mean is not finite or the deviation is not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __check_init__(self):
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}.")
        check_positive("std", self.std)

    def __call__(self, key: PRNGKey, batch_size: int) -> Times:
        check_at_least("batch_size", batch_size, 1)
        normal = jax.random.normal(key, (batch_size,))
        logit = self.mean + self.std * normal
        # From the normal variable, not from the rounded t: t (1 - t) s / p(normal).
        importance = (self.std * math.sqrt(2 * math.pi)) * jnp.exp(
            jax.nn.log_sigmoid(logit) + jax.nn.log_sigmoid(-logit) + 0.5 * jnp.square(normal)
        )
        return _inside(jax.nn.sigmoid(logit)), importance

    def density(self, t: ScalarLike) -> Scalar:
        t = _inside(as_float(t))
        log_t, log_rest = jnp.log(t), jnp.log1p(-t)
        deviation = (log_t - log_rest - self.mean) / self.std
        return jnp.exp(-0.5 * jnp.square(deviation) - log_t - log_rest) / (
            self.std * math.sqrt(2 * math.pi)
        )


def _inside(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Between the smallest and the largest float within (0, 1)."""
    limits = jnp.finfo(t.dtype)
    return jnp.clip(t, limits.tiny, 1 - limits.epsneg)
