r"""EDM's placement of sampling steps."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

import diffkit as dk


@dk.register("grid", "rho")
class RhoGrid(dk.AbstractGrid):
    r"""Steps of equal size in $\sigma^{1 / \rho}$.

    $$\sigma_i = \left(\sigma_{max}^{1/\rho} + \tfrac in
      (\sigma_{min}^{1/\rho} - \sigma_{max}^{1/\rho})\right)^{\rho}, \qquad i = 0, \dots, n,$$

    with $\sigma = e^{-\lambda / 2}$ between the schedule's own endpoints (Karras et al. 2022, arXiv
    2206.00364, equation 5, where n is N - 1: here the decoder takes the published step from $\sigma_{min}$
    to 0). $\rho = 1$ is uniform in $\sigma$, and $\rho \to \infty$ in $\lambda$. Choose it to sample any
    model in few steps: of the schedule it uses only the endpoints, which are exact.

    **Arguments:** `rho`: at least 1.

    **Raises:** `ValueError` if `rho` is not finite or less than 1, or for fewer than one step.
    """

    rho: float = 7.0

    def __check_init__(self):
        if not (math.isfinite(self.rho) and self.rho >= 1):
            raise ValueError(f"rho must be a number of at least 1, got {self.rho}.")

    def __call__(self, schedule: dk.AbstractSchedule, steps: int) -> Float[Array, " {steps}+1"]:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        maximum, minimum = schedule.endpoints
        done, left = jnp.arange(steps + 1) / steps, jnp.arange(steps, -1, -1) / steps
        width = (maximum - minimum) / (2 * self.rho)
        # sigma^(1 / rho) relative to its value at the noise end and at the data end, for each half.
        from_noise = minimum - 2 * self.rho * jnp.log1p(done * jnp.expm1(-width))
        from_data = maximum - 2 * self.rho * jnp.log1p(left * jnp.expm1(width))
        return jnp.where(done < 0.5, from_noise, from_data)
