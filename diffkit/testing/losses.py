r"""A published loss and a weighted loss, computed side by side.

A loss $\mathbb E_{t \sim p}[f \lVert \text{target} - \widehat{\text{target}} \rVert^2]$ and
`diffkit.denoising_loss` under a weighting are the same up to a constant if and only if they are so for
every denoiser. The denoisers here are right except for a bump of error around one noise level: the ratio of
the two losses must be the same for all. Both are sums over the same times, so they agree to rounding,
however few times a steep schedule leaves within a bump. No formula for the implied weighting is used.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.decoders import GaussianDecoder
from diffkit.denoiser import AbstractDenoiser, Prediction
from diffkit.model import DiffusionModel
from diffkit.objectives import denoising_loss
from diffkit.parameterizations import AbstractParameterization
from diffkit.processes import AbstractProcess
from diffkit.schedules import AbstractSchedule
from diffkit.testing.base import require
from diffkit.time_samplers import AbstractTimeSampler, AbstractUniform
from diffkit.typing import Example, PRNGKey, Scalar, ScalarLike
from diffkit.weightings import AbstractWeighting

_TIMES = 4096
_BUMPS = 25
_TOLERANCE = 1e-3


class _Midpoints(AbstractUniform):
    """Deterministic: the midpoints of equal parts of [0, 1]."""

    def draw(self, key: PRNGKey, n: int) -> Float[Array, " {n}"]:
        return (jnp.arange(n) + 0.5) / n


class _Probe(AbstractDenoiser):
    """Right for data that are zero, except for a bump of error in eps around one noise level."""

    process: AbstractProcess
    centre: Scalar
    width: Scalar

    def __call__(
        self,
        z: Example,
        logsnr: ScalarLike,
        condition: Float[Array, " condition"] | None = None,
        *,
        key: PRNGKey | None = None,
    ) -> Prediction:
        del condition, key
        level = self.process.at(logsnr)
        bump = jnp.exp(-0.5 * jnp.square((level.logsnr - self.centre) / self.width))
        eps = z / level.sigma - bump
        return Prediction((z - level.sigma * eps) / level.alpha, eps, level)


def check_weighting(
    weighting: AbstractWeighting,
    *,
    parameterization: AbstractParameterization,
    schedule: AbstractSchedule,
    process: AbstractProcess,
    time_sampler: AbstractTimeSampler,
    factor: Callable[[Any], Any] | None,
    described: str,
) -> None:
    """Raise a `Violation` unless `denoising_loss` with the weighting is the stated loss, up to a constant.

    Everything is computed in float64.

    **Arguments:** the weighting; the stated loss; `described`: the loss in words.
    """

    @eqx.filter_jit
    def both(centre, width, weighting):
        denoiser = _Probe(process, centre, width)
        model = DiffusionModel(denoiser, schedule, GaussianDecoder(), (1,))
        key, x, times = jax.random.key(0), jnp.zeros((_TIMES, 1)), _Midpoints()
        weighted = denoising_loss(model, x, key=key, weighting=weighting, time_sampler=times)

        def plain(t, eps):
            logsnr = schedule(t)
            level = process.at(logsnr)
            predicted = denoiser(process.perturb(jnp.zeros(1), eps, level), logsnr)
            target = parameterization.target(jnp.zeros(1), eps, level)
            error = target - predicted.as_target(parameterization)
            scale = 1.0 if factor is None else factor(logsnr)
            return time_sampler.density(t) * scale * jnp.sum(jnp.square(error))

        t, _ = times(key, _TIMES)
        return jnp.mean(jax.vmap(plain)(t, jnp.ones((_TIMES, 1)))), jnp.mean(weighted)

    with jax.enable_x64(True):
        maximum, minimum = (float(end) for end in schedule.endpoints)
        width = (maximum - minimum) / _BUMPS
        centres = np.linspace(minimum, maximum, _BUMPS)
        found = [both(jnp.asarray(c), jnp.asarray(width), weighting) for c in centres]
    plain, weighted = np.array(found, np.float64).T
    with np.errstate(all="ignore"):
        ratio = weighted / plain
        ratio = ratio / np.median(ratio)
    require(
        np.abs(ratio - 1) <= _TOLERANCE,
        {"a denoiser with an error in eps around logsnr": centres, "the loss is": described},
        {
            "weighted loss": weighted,
            "stated loss": plain,
            "their ratio, by its median over logsnr": ratio,
        },
        f"the same ratio everywhere, within {_TOLERANCE}",
        np.abs(ratio - 1),
    )
