r"""EDM's distribution of noise levels in training, as a schedule."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp

import diffkit as dk
from diffkit.typing import Scalar, ScalarLike, as_float, check_positive

# exp(z^2 / 2), the slope of the quantile function, is finite in float32 up to z = 13.3.
_LARGEST_DEVIATION = 12.0


def _upper_tail(z: float) -> float:
    """The probability that a standard normal variable is above z."""
    return 0.5 * math.erfc(z / math.sqrt(2))


@dk.register("schedule", "log_normal")
class LogNormal(dk.AbstractSchedule):
    r"""Log-normal noise levels: $\ln \sigma$ is the quantile function of a truncated normal at t.

    $$\ln \sigma(t) = P_{mean} + P_{std}\, \Phi^{-1}\!\left(\Phi(z_{min}) +
      t\, (\Phi(z_{max}) - \Phi(z_{min}))\right), \qquad
      z = \frac{\ln \sigma - P_{mean}}{P_{std}}$$

    with $\lambda = -2 \ln \sigma$ and $\Phi$ the standard normal distribution, so that a uniform t *is*
    EDM's training distribution (Karras et al. 2022, arXiv 2206.00364, table 1), cut off at the noise levels
    between which EDM samples. Choose it for good samples: it spends nearly all of its time at middle noise
    levels, which is wasteful for likelihoods. To sample, use the grid `rho`.

    It computes the smaller of the two probabilities, so both tails keep their digits in float32.

    **Arguments:** `P_mean`, `P_std`: mean and standard deviation of $\ln \sigma$; `sigma_min`, `sigma_max`:
    the noise levels at t = 0 and at t = 1.

    **Raises:** `ValueError` if a value is not finite, `P_std` not positive, the noise levels not positive
    and increasing, or one more than 12 standard deviations from the mean.
    """

    P_mean: float = eqx.field(default=-1.2, converter=float, static=True)
    P_std: float = eqx.field(default=1.2, converter=float, static=True)
    sigma_min: float = eqx.field(default=0.002, converter=float, static=True)
    sigma_max: float = eqx.field(default=80.0, converter=float, static=True)

    def __check_init__(self):
        if not math.isfinite(self.P_mean):
            raise ValueError(f"P_mean must be finite, got {self.P_mean}.")
        check_positive("P_std", self.P_std)
        if not (math.isfinite(self.sigma_max) and self.sigma_max > self.sigma_min > 0):
            got = f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            raise ValueError(
                f"sigma_min must be positive and sigma_max finite and greater than it, got {got}."
            )
        for name, z in zip(("sigma_min", "sigma_max"), self._ends(), strict=True):
            if abs(z) > _LARGEST_DEVIATION:
                raise ValueError(
                    f"{name} must be within {_LARGEST_DEVIATION:.0f} standard deviations of the mean, got "
                    f"{getattr(self, name)}, {z:.1f} from P_mean={self.P_mean} with P_std={self.P_std}."
                )

    def _ends(self) -> tuple[float, float]:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (low - self.P_mean) / self.P_std, (high - self.P_mean) / self.P_std

    def _tails(self) -> tuple[float, float, float]:
        """The probabilities below, above, and between the two ends."""
        low, high = self._ends()
        if low > 0:  # each from the side without a difference of numbers near 1
            mass = _upper_tail(low) - _upper_tail(high)
        else:
            mass = _upper_tail(-high) - _upper_tail(-low)
        return _upper_tail(-low), _upper_tail(high), mass

    def __call__(self, t: ScalarLike) -> Scalar:
        ends = (-2 * math.log(self.sigma_min), -2 * math.log(self.sigma_max))
        return _quantile(as_float(t), self.P_mean, self.P_std, self._tails(), ends)

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        below, above, mass = self._tails()
        z = (-0.5 * as_float(logsnr) - self.P_mean) / self.P_std
        start = (jax.scipy.special.ndtr(z) - below) / mass
        rest = (jax.scipy.special.ndtr(-z) - above) / mass
        return jnp.where(z < 0, start, 1 - rest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _quantile(
    t: Scalar, mean: float, std: float, tails: tuple[float, float, float], ends: tuple[float, float]
) -> Scalar:
    """`logsnr` at t, for the probabilities `tails` and the values `ends` at t = 0 and t = 1."""
    below, above, mass = tails
    t = jnp.clip(t, 0, 1)
    # Two products, not `above + (1 - t) * mass`: where the mass rounds to 1, XLA would turn this into
    # (above + 1) - t, which loses the tail.
    lower = (1 - t) * below + t * (below + mass)
    upper = (1 - t) * (above + mass) + t * above
    z = jax.scipy.special.ndtri(jnp.minimum(lower, upper))
    logsnr = -2 * (mean + std * jnp.where(lower < upper, z, -z))
    start, end = ends
    # Rounding must not lead beyond the exact ends.
    return jnp.where(t == 0, start, jnp.where(t == 1, end, jnp.clip(logsnr, end, start)))


@_quantile.defjvp
def _quantile_jvp(mean, std, tails, ends, primals, tangents):
    """The slope from the density: that of `ndtri` would be zero or infinite at the ends."""
    logsnr = _quantile(*primals, mean, std, tails, ends)
    z = (-0.5 * logsnr - mean) / std
    slope = -2 * std * tails[2] * math.sqrt(2 * math.pi) * jnp.exp(0.5 * jnp.square(z))
    return logsnr, slope * tangents[0]
