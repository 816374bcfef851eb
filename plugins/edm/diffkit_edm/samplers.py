r"""EDM's sampler: Heun's method, with noise added before each step."""

import math

import equinox as eqx
import jax.numpy as jnp

import diffkit as dk
from diffkit.samplers import AbstractOneStepSampler, Denoise, RungeKutta2, Step
from diffkit.typing import Example, Scalar

_RANGE = (-2 * math.log(0.002), -2 * math.log(80.0))
"""The `logsnr` between which EDM samples: sigma from 80 to 0.002 (table 1)."""


class Churn(AbstractOneStepSampler):
    r"""Raises the noise before each step of a deterministic sampler (EDM, algorithm 2).

    A step from $\rho_t$ to $\rho_s$ first goes up to $\hat\rho = (1 + \gamma) \rho_t$ by adding noise of
    variance $\hat\rho^2 - \rho_t^2$, then down to $\rho_s$ with the other sampler. Going up is exact, so
    the weak order is that sampler's order, once there are enough steps to keep $\gamma$ below its cap. The
    noise washes out earlier errors. (If `noise` is not 1, a bias remains on purpose.)

    **How much.** In the paper $\gamma = \min(S_{churn} / N, \sqrt 2 - 1)$ for each of N steps on the
    grid of $\rho = 7$. A step does not know N, but on that grid each covers the same share
    $\delta = |\Delta \sigma^{1/7}| / (\sigma_{max}^{1/7} - \sigma_{min}^{1/7})$ of the way, and
    $1 / N = \delta / (1 + \delta)$, since N includes the published last step to 0. So

    $$\gamma = \min\!\left(\text{churn} \cdot \frac{\delta}{1 + \delta},\ \sqrt 2 - 1\right).$$

    Any other grid adds the same amount of noise over the same part of the way; for many steps the limit is
    the same stochastic differential equation (equation 6 of the paper).

    **Arguments:** `sampler`: a deterministic one-step sampler; `churn`: $S_{churn}$; 0 adds nothing and
    draws no random numbers; `churn_min`, `churn_max`: $S_{tmin}$ and $S_{tmax}$, the noise levels $\sigma /
    \alpha$ between which noise is added; `noise`: $S_{noise}$, the standard deviation of the noise in units
    of the exact one; `rho`, `logsnr_range`: of the grid that measures the share of the way, and (max, min),
    the whole way; diffkit fills in the ends of the model's schedule.

    **Raises:** `ValueError` for a value out of its range.
    """

    sampler: dk.AbstractSampler
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    noise: float = 1.0
    rho: float = 7.0
    logsnr_range: tuple[float, float] = eqx.field(default=_RANGE, static=True, kw_only=True)

    def __check_init__(self):
        one_step = isinstance(self.sampler, dk.samplers.AbstractOneStepSampler)
        if self.sampler.stochastic or not one_step:
            name = type(self.sampler).__name__
            raise ValueError(f"sampler must be deterministic and of one step, got {name}.")
        for name, least in (("churn", 0), ("noise", 0), ("rho", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be a number of at least {least}, got {value}.")
        if not 0 <= self.churn_min <= self.churn_max:
            got = f"churn_min={self.churn_min}, churn_max={self.churn_max}"
            raise ValueError(f"churn_min must be at least 0 and at most churn_max, got {got}.")
        if not self.logsnr_range[0] > self.logsnr_range[1]:
            raise ValueError(f"logsnr_range must be (max, min), got {self.logsnr_range}.")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    @property
    def order(self) -> int | None:
        return self.sampler.order

    @property
    def calls(self) -> int | None:
        return self.sampler.calls

    def raised(self, logsnr_t: Scalar, logsnr_s: Scalar) -> Scalar:
        r"""$\gamma$ of the step from `logsnr_t` to `logsnr_s`."""
        maximum, minimum = self.logsnr_range
        power = 1 / (2 * self.rho)
        # Differences of sigma^(1 / rho), by expm1 so that short steps keep their digits.
        covered = jnp.exp(-power * logsnr_s) * jnp.expm1(power * (logsnr_s - logsnr_t))
        way = math.exp(-power * maximum) * math.expm1(power * (maximum - minimum))
        gamma = jnp.minimum(self.churn * covered / (way + covered), math.sqrt(2) - 1)
        rho_t = jnp.exp(-logsnr_t / 2)
        return jnp.where((self.churn_min <= rho_t) & (rho_t <= self.churn_max), gamma, 0.0)

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        logsnr_t, logsnr_s, key = step
        if key is not None:
            gamma = self.raised(logsnr_t, logsnr_s)
            std = step.rho_t * jnp.sqrt(gamma * (2 + gamma))
            y = y + self.noise * std * step.noise(y)
            logsnr_t = logsnr_t - 2 * jnp.log1p(gamma)
        return self.sampler.step(denoise, y, logsnr_t, logsnr_s, self.sampler.init(y), None)[0]


@dk.register("sampler", "edm_heun")
def edm_heun(
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    noise: float = 1.0,
    rho: float = 7.0,
    *,
    logsnr_range: tuple[float, float] = _RANGE,
) -> Churn:
    r"""EDM's sampler: Heun's second-order method in $\sigma$, with optional churn.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 1 (`churn` = 0, no random numbers) and algorithm 2.
    Order 2, with two network calls per step. Choose it with the grid `rho` for deterministic samples in
    about 20 to 40 steps; add churn if a trained network leaves errors that more steps do not remove. Here
    the decoder replaces the last step to 0 of both algorithms. A step in which $\sigma$ falls to less than
    a fifth becomes two steps of DDIM, as in `diffkit.samplers.RungeKutta2`.

    (churn, churn_min, churn_max, noise) in table 5 of the paper: for CIFAR-10 with an older VP network
    (30, 0.01, 1, 1.007), with an older VE network (80, 0.05, 1, 1.007), with EDM's own no churn; for
    ImageNet-64 with an older network (80, 0.05, 50, 1.003), with EDM's own (40, 0.05, 50, 1.003).

    **Arguments:** those of `Churn`; diffkit fills in `logsnr_range`.

    **Raises:** `ValueError` for a value out of its range.
    """
    heun = RungeKutta2(form="eps", node=1.0)
    return Churn(heun, churn, churn_min, churn_max, noise, rho, logsnr_range=logsnr_range)
