r"""The straight line's own time, as a schedule."""

import math

import jax
import jax.numpy as jnp

import diffkit as dk
from diffkit.schedules import AbstractRanged
from diffkit.typing import Scalar, ScalarLike, as_float


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@dk.register("schedule", "straight_line")
class StraightLine(AbstractRanged):
    r"""$\lambda(t) = 2 \log((1 - \tau) / \tau)$: along the straight path at constant speed.

    With the process `straight`, $\tau$ is the share of noise in $z = (1 - \tau) x + \tau \epsilon$
    (Liu, Gong and Liu 2023, arXiv 2209.03003; Lipman et al. 2023, arXiv 2210.02747). Its log SNR is
    infinite at both ends, so $\tau = \tau_0 + t\,(\tau_1 - \tau_0)$ runs between the two endpoints. Choose
    it to train with the times of these papers and to sample in even steps along the path. It treats high
    and low noise alike, and spends a little more time at the ends than `cosine`.

    **Arguments:** `logsnr_max`, `logsnr_min`: log SNR at t = 0 and at t = 1; `levels`: of the data, which
    set the default of `logsnr_max` (`diffkit.schedules.check_range`).

    **Raises:** `ValueError` if `logsnr_max <= logsnr_min`, or one is not finite.
    """

    def _shares(self) -> tuple[float, float, float, float]:
        """Noise at both ends, and data at both ends, computed separately since they can be tiny."""
        first, last = self.logsnr_max / 2, self.logsnr_min / 2
        return _sigmoid(-first), _sigmoid(-last), _sigmoid(first), _sigmoid(last)

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        noise_0, noise_1, data_0, data_1 = self._shares()
        rest = 1 - t
        # log of the share of data, and of noise, relative to that at the nearer end, which so is exact.
        early = jnp.log1p(t * (data_1 / data_0 - 1)) - jnp.log1p(t * (noise_1 / noise_0 - 1))
        late = jnp.log1p(rest * (data_0 / data_1 - 1)) - jnp.log1p(rest * (noise_0 / noise_1 - 1))
        return jnp.where(t < 0.5, self.logsnr_max + 2 * early, self.logsnr_min + 2 * late)

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        noise_0, noise_1, data_0, _ = self._shares()
        logsnr = as_float(logsnr)
        # noise - noise_0, by sigmoid(a) - sigmoid(b) = (1 - exp(b - a)) sigmoid(a) sigmoid(-b).
        gone = -jnp.expm1((logsnr - self.logsnr_max) / 2) * jax.nn.sigmoid(-logsnr / 2) * data_0
        return gone / (noise_1 - noise_0)
