"""The distribution of times under which a weighted loss is a plain average."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.parameterizations import AbstractParameterization, Epsilon
from diffkit.processes import AbstractProcess, VariancePreserving
from diffkit.schedules import AbstractSchedule, ordered_endpoints
from diffkit.time_samplers import AbstractTimeSampler, LowDiscrepancy
from diffkit.typing import PRNGKey, Scalar, ScalarLike, as_float
from diffkit.weightings import TABLE_POINTS, AbstractWeighting, tabulate


class CanonicalTimes(AbstractTimeSampler):
    r"""Times at which $\lambda$ has a given density; see `canonical_time_sampling`.

    The density of $\lambda$ is linear between the points of a table, and draws follow it exactly. The times
    of a batch cover the distribution evenly, like those of `diffkit.LowDiscrepancy`; the same key draws the
    same `logsnr` under every schedule with the same endpoints.

    **Attributes:** `schedule`: from time to `logsnr`; `logsnr`, increasing, and `values`: the table;
    `scale`: C, with the weighted loss = C times the plain average, in nats.
    """

    schedule: AbstractSchedule
    logsnr: Float[Array, " points"]
    values: Float[Array, " points"]
    scale: float

    def __call__(
        self, key: PRNGKey, batch_size: int
    ) -> tuple[Float[Array, " {batch_size}"], Float[Array, " {batch_size}"]]:
        u, _ = LowDiscrepancy()(key, batch_size)
        width = jnp.diff(self.logsnr)
        first, second = self.values[:-1], self.values[1:]
        ends = jnp.cumsum(width * (first + second) / 2)
        rest = u * ends[-1]
        index = jnp.minimum(jnp.searchsorted(ends, rest, side="right"), len(width) - 1)
        rest = jnp.maximum(rest - jnp.where(index > 0, ends[index - 1], 0.0), 0.0)
        p, width = first[index], width[index]
        # The root of p s + (q - p) s^2 / (2 width) = rest, in the form that does not cancel.
        root = jnp.sqrt(jnp.maximum(p**2 + 2 * rest * (second[index] - p) / width, 0.0))
        step = jnp.clip(2 * rest / jnp.maximum(p + root, jnp.finfo(p.dtype).tiny), 0.0, width)
        logsnr = self.logsnr[index] + step
        # Rounding can give 1, which is not a time.
        t = jnp.clip(jax.vmap(self.schedule.inverse)(logsnr), 0.0, 1 - jnp.finfo(p.dtype).epsneg)
        return t, 1 / jax.vmap(self.density)(t)

    def density(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        logsnr, slope = jax.jvp(self.schedule, (t,), (jnp.ones_like(t),))
        return -slope * jnp.interp(logsnr, self.logsnr, self.values)


def canonical_time_sampling(
    weighting: AbstractWeighting,
    schedule: AbstractSchedule,
    *,
    parameterization: AbstractParameterization = Epsilon(),
    process: AbstractProcess = VariancePreserving(),
) -> CanonicalTimes:
    r"""The times under which a weighted loss is the plain mean of a squared error.

    $$\tfrac12\, \mathbb E_{t \sim U}\left[w\,(-\lambda')\, \lVert \epsilon - \hat\epsilon \rVert^2\right]
      = C\; \mathbb E_{t \sim p}\left[\lVert \text{target} - \widehat{\text{target}} \rVert^2\right],
      \qquad p(\lambda) \propto \frac{w(\lambda)}{\text{error\_factor}(\lambda)}$$

    (Kingma and Gao 2023, arXiv 2303.00848, section 3.3): every weighting is a distribution of noise levels,
    and vice versa. For the weighting of a published loss and its target these are the paper's times, under
    any schedule. For `diffkit.ELBO` and the target eps they are uniform in `logsnr`.

    **Arguments:** `weighting`: w; `schedule`: has the endpoints; `parameterization`, `process`: the target
    of the averaged error.

    **Returns:** a time sampler, `CanonicalTimes`.

    **Raises:** `ValueError` if the weighting is zero everywhere.

    ```python
    schedule = dk.Cosine(10.0, -10.0)
    times = dk.equivalence.canonical_time_sampling(dk.ELBO(), schedule)
    t, _ = times(jax.random.key(0), 1000)
    assert jnp.abs(jax.vmap(schedule)(t).mean()) < 0.1  # evenly from 10 to -10
    ```
    """
    ends = ordered_endpoints(schedule)
    logsnr, log_values = tabulate(weighting, ends, TABLE_POINTS)
    with jax.enable_x64(True):
        levels = jax.vmap(process.at)(jnp.asarray(logsnr))
        factors = np.asarray(jax.vmap(parameterization.error_factor)(levels), dtype=np.float64)
    log_values = log_values - np.log(factors)
    largest = log_values.max()
    if not np.isfinite(largest):
        raise ValueError(
            "weighting must be positive somewhere between the endpoints of the schedule, "
            "logsnr {:.4g} and {:.4g}.".format(*ends)
        )
    values = np.exp(log_values - largest)
    mass = np.trapezoid(values, logsnr)
    dtype, scale = jnp.result_type(float), float(0.5 * mass * np.exp(largest))
    table = jnp.asarray(logsnr, dtype), jnp.asarray(values / mass, dtype)
    return CanonicalTimes(schedule, *table, scale)
