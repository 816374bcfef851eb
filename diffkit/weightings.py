r"""Weightings: how much a loss cares about each noise level.

A weighting is $w(\lambda)$ relative to the variational lower bound:

$$L = \tfrac12\, \mathbb E_t\!\left[ w(\lambda_t) \left(-\frac{d\lambda}{dt}\right)
      \lVert \epsilon - \hat\epsilon \rVert^2 \right].$$

$w = 1$ *is* the diffusion term of the continuous-time VLB (VDM equation 17), in nats.

**Published losses.** A published loss is the squared error of some target, averaged over times of some
density p(t), with some factor $f(\lambda)$. The target's error is that of eps times a factor of the
parameterization (`error_factor`), so the loss is the one above with

$$w(\lambda) = \frac{2\, p(t)\, f(\lambda)\, \text{error\_factor}(\lambda)}{-d\lambda / dt}
\quad\text{at } \lambda(t) = \lambda$$

(Kingma and Gao 2023, arXiv 2303.00848, section 3). `Implied` holds this formula, and every weighting that a
paper states as a loss is derived from it.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit import registry
from diffkit.parameterizations import AbstractParameterization, Epsilon
from diffkit.processes import AbstractProcess, VariancePreserving
from diffkit.registry import Context, register
from diffkit.schedules import AbstractSchedule
from diffkit.time_samplers import AbstractTimeSampler, Uniform
from diffkit.typing import Scalar, ScalarLike, as_float, check_at_least, check_positive


class AbstractWeighting(eqx.Module):
    """A non-negative function of `logsnr`."""

    @abc.abstractmethod
    def __call__(self, logsnr: ScalarLike) -> Scalar:
        """w at this `logsnr`."""


@register("weighting", "elbo")
class ELBO(AbstractWeighting):
    """w = 1: the variational lower bound itself. Choose it for likelihoods and compression."""

    def __call__(self, logsnr: ScalarLike) -> Scalar:
        return jnp.ones_like(as_float(logsnr))


@dataclass(frozen=True)
class Verdict:
    r"""What a weighted loss is a bound on.

    **Attributes:** `kind`: `"vlb"` if w is constant: the loss is the variational bound up to a factor;
    `"monotone"` if w never rises with $\lambda$: the bound on the likelihood of data with added noise,
    averaged over strengths of the noise (Kingma and Gao 2023, arXiv 2303.00848, section 4); `"neither"` if
    w rises somewhere: the loss is not a bound; `scale`: the geometric mean of w where it is not zero, for
    the VLB its factor; `rises`: the pair of `logsnr` between which w rises by the largest factor, `None` if
    nowhere.
    """

    kind: Literal["vlb", "monotone", "neither"]
    scale: float
    rises: tuple[float, float] | None

    def __str__(self) -> str:
        if self.rises is None:
            return "the VLB" if self.kind == "vlb" else "monotone: a VLB of noisy data"
        low, high = self.rises
        return f"not a bound: w rises between logsnr {low:.1f} and {high:.1f}"


TABLE_POINTS: Final = 2001
"""The points of a table of a weighting: 0.01 apart over a range of 20."""

TOLERANCE: Final = 1e-3
"""Relative: below a thousandth w counts as constant, since training runs are noisier than that."""


def tabulate(
    weighting: AbstractWeighting, logsnr_range: tuple[float, float], points: int
) -> tuple[Float[np.ndarray, " {points}"], Float[np.ndarray, " {points}"]]:
    """Evenly spaced, increasing `logsnr` over a range (max, min), and log w there, in float64.

    Values that are not positive count as zero, with the logarithm -inf: beyond its schedule the formula of
    a published loss may give anything.
    """
    if not logsnr_range[0] > logsnr_range[1]:
        raise ValueError(f"logsnr_range must be (max, min), got {logsnr_range}.")
    logsnr = np.linspace(logsnr_range[1], logsnr_range[0], points)
    with jax.enable_x64(True):
        values = np.asarray(_values(weighting, jnp.asarray(logsnr)), dtype=np.float64)
    with np.errstate(divide="ignore"):
        return logsnr, np.log(np.where(values > 0, values, 0.0))


@eqx.filter_jit
def _values(weighting, logsnr):
    return jax.vmap(weighting)(logsnr)


def classify(
    weighting: AbstractWeighting, logsnr_range: tuple[float, float], *, points: int = 1001
) -> Verdict:
    """Whether a weighted loss is the VLB, a VLB of data with added noise, or neither.

    **Arguments:** `weighting`; `logsnr_range`: (max, min), such as a schedule's endpoints; `points`: the
    number of evenly spaced values at which to compare w, to a thousandth of itself.

    **Raises:** `ValueError` for a range in the wrong order, below two points, or a weighting that is zero.

    ```python
    assert dk.weightings.classify(dk.ELBO(), (13.3, -5.0)).kind == "vlb"
    assert dk.weightings.classify(dk.Sigmoid(bias=0.0), (13.3, -5.0)).kind == "monotone"
    ```
    """
    check_at_least("points", points, 2)
    # At the very ends a density of times may be zero or, by rounding, anything.
    logsnr, log_values = (values[1:-1] for values in tabulate(weighting, logsnr_range, points + 2))
    positive = np.isfinite(log_values)
    if not positive.any():
        raise ValueError(f"weighting must be positive somewhere, it is 0 from {logsnr_range}.")
    scale = math.exp(log_values[positive].mean())
    if positive.all() and np.ptp(log_values) <= 2 * TOLERANCE:
        return Verdict("vlb", scale, None)
    # A rise from zero counts as a rise from the smallest number.
    log_values = np.maximum(log_values, np.log(np.finfo(np.float64).tiny))
    rise = log_values - np.minimum.accumulate(log_values)
    top = int(rise.argmax())
    if rise[top] <= TOLERANCE:
        return Verdict("monotone", scale, None)
    bottom = top - int(log_values[top::-1].argmin())
    return Verdict("neither", scale, (float(logsnr[bottom]), float(logsnr[top])))


class Implied(AbstractWeighting):
    """The weighting that a published loss implies (`implied_weighting`), under a schedule that stays."""

    parameterization: AbstractParameterization
    schedule: AbstractSchedule
    process: AbstractProcess
    time_sampler: AbstractTimeSampler
    factor: Callable[[Scalar], Scalar] | None
    weighting: AbstractWeighting | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the loss is a bound, over the range of its schedule."""
        maximum, minimum = self.schedule.endpoints
        return classify(self, (float(maximum), float(minimum)))

    def __call__(self, logsnr: ScalarLike) -> Scalar:
        if self.weighting is not None:
            return self.weighting(logsnr)
        logsnr = as_float(logsnr)
        t, rate = jax.jvp(self.schedule.inverse, (logsnr,), (jnp.ones_like(logsnr),))
        _, slope = jax.jvp(self.schedule, (t,), (jnp.ones_like(t),))
        # -dt / dlogsnr. Near t = 1 rounding spoils the slope at t, not the derivative of the inverse; an
        # inverse by bisection has none.
        rate = jnp.where(jnp.abs(rate * slope - 1) < 0.3, rate, 1 / slope)
        error = self.parameterization.error_factor(self.process.at(logsnr))
        factor = 1.0 if self.factor is None else self.factor(logsnr)
        return -2 * self.time_sampler.density(t) * factor * error * rate


def implied_weighting(
    *,
    parameterization: AbstractParameterization = Epsilon(),
    schedule: AbstractSchedule,
    process: AbstractProcess = VariancePreserving(),
    time_sampler: AbstractTimeSampler = Uniform(),
    factor: Callable[[Scalar], Scalar] | None = None,
    weighting: AbstractWeighting | None = None,
) -> Implied:
    r"""The weighting of the loss $\mathbb E_{t \sim p}[f(\lambda) \lVert$ target error $\rVert^2]$.

    **Arguments:** `parameterization`: the target of the squared error; `schedule`: from time to `logsnr`;
    `process`: of the target, for targets that depend on it; `time_sampler`: has the density p of times;
    `factor`: f, a function of `logsnr`, 1 by default; `weighting`: instead of a factor, w itself, for a
    loss stated as a weighted bound. `diffkit.denoising_loss` minimises this bound whatever the target and
    the times.

    **Returns:** a function of `logsnr` wherever `schedule.inverse` is defined. Its `verdict` says whether
    the loss is a bound.

    **Raises:** `ValueError` if both a factor and a weighting are given.

    ```python
    w = dk.weightings.implied_weighting(
        parameterization=dk.V(), schedule=dk.Cosine(10.0, -10.0), process=dk.VariancePreserving()
    )
    assert jnp.allclose(w(2.0) / w(0.0), jnp.exp(-1.0), rtol=1e-4)  # exp(-logsnr / 2)
    assert w.verdict.kind == "monotone"
    ```
    """
    if factor is not None and weighting is not None:
        raise ValueError("factor and weighting are two ways to say one thing: give only one.")
    return Implied(parameterization, schedule, process, time_sampler, factor, weighting)


@register("weighting", "simple")
def simple(
    times: str = "uniform",
    *,
    schedule: AbstractSchedule,
    process: AbstractProcess,
    parameterization: AbstractParameterization,
) -> Implied:
    """The unweighted mean squared error of what the network predicts, over the schedule's own times.

    Most papers minimise it: L_simple of DDPM (predicting eps), the losses of flow matching (the velocity)
    and of EDM (its F, over log-normal noise levels). Choose it for samples that look good.

    **Arguments:** `times`: the name of the time sampler that gives the density of the mean; training may
    use another, which corrects for its own density.

    **Raises:** `diffkit.registry.UnknownPartError` if no time sampler has this name.
    """
    time_sampler = registry.get("time_sampler", times)()
    return Implied(parameterization, schedule, process, time_sampler, None)


@register("weighting", "sigmoid")
class Sigmoid(AbstractWeighting):
    r"""$w = \mathrm{sigmoid}(b - \lambda)$: less weight towards the finest details.

    Kingma and Gao 2023 (arXiv 2303.00848, section 5), Hoogeboom et al. 2024 (simpler diffusion,
    arXiv 2410.19324). Monotone, and so a bound on the likelihood of data with added noise. Choose it for
    images with many pixels, with a `bias` b from -3 to 3: a larger one keeps more detail.

    **Raises:** `ValueError` if `bias` is not finite.
    """

    bias: float = 0.0

    def __check_init__(self):
        if not math.isfinite(self.bias):
            raise ValueError(f"bias must be a finite number, got {self.bias}.")

    def __call__(self, logsnr: ScalarLike) -> Scalar:
        return jax.nn.sigmoid(self.bias - as_float(logsnr))


class _Clip(eqx.Module):
    """min(1, gamma / SNR)."""

    gamma: float

    def __call__(self, logsnr: Scalar) -> Scalar:
        return jnp.exp(jnp.minimum(math.log(self.gamma) - logsnr, 0.0))


class _Damp(eqx.Module):
    """1 / (k + SNR)^gamma, from softplus so that it does not overflow."""

    k: float
    gamma: float

    def __call__(self, logsnr: Scalar) -> Scalar:
        return jnp.exp(-self.gamma * jnp.logaddexp(math.log(self.k), logsnr))


@register("weighting", "min_snr")
def min_snr(gamma: float = 5.0, *, schedule: AbstractSchedule) -> Implied:
    r"""Min-SNR-$\gamma$: L_simple with the factor $\min(1, \gamma / \mathrm{SNR})$ on the error of eps.

    Hang et al. 2023 (arXiv 2303.09556) write it as $\min(\mathrm{SNR}, \gamma)$ times the error of x.
    Choose it to train faster than with L_simple, at the same quality. diffkit fills in the model's
    schedule.

    **Raises:** `ValueError` if `gamma` is not positive.
    """
    check_positive("gamma", gamma)
    return implied_weighting(parameterization=Epsilon(), schedule=schedule, factor=_Clip(gamma))


@register("weighting", "p2")
def p2(k: float = 1.0, gamma: float = 1.0, *, schedule: AbstractSchedule) -> Implied:
    r"""P2: L_simple with the factor $(k + \mathrm{SNR})^{-\gamma}$ on the error of eps.

    Choi et al. 2022 (arXiv 2204.00227, equation 8): less weight on cleaning up nearly clean data. A `gamma`
    of 0 is L_simple. diffkit fills in the model's schedule.

    **Raises:** `ValueError` unless `k` is positive and `gamma` at least 0.
    """
    check_positive("k", k)
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma must be a number of at least 0, got {gamma}.")
    return implied_weighting(parameterization=Epsilon(), schedule=schedule, factor=_Damp(k, gamma))


class Monotone(AbstractWeighting):
    r"""The smallest non-increasing function of $\lambda$ that is nowhere below another weighting.

    $w(\lambda) = \max_{\lambda' \ge \lambda} w_0(\lambda')$: a non-increasing weighting bounds the
    likelihood of data with added noise of various strengths (Kingma and Gao 2023, section 4 and
    "EDM-monotonic" there), so the loss is maximum likelihood with data augmentation. Beyond the range w is
    constant.

    **Arguments:** `base`: $w_0$; `logsnr_range`: (max, min), the range to tabulate.

    **Raises:** `ValueError` for a range in the wrong order.
    """

    logsnr: Float[Array, " points"]
    log_values: Float[Array, " points"]

    def __init__(self, base: AbstractWeighting, logsnr_range: tuple[float, float]):
        logsnr, log_values = tabulate(base, logsnr_range, TABLE_POINTS)
        dtype = jnp.result_type(float)
        self.logsnr = jnp.asarray(logsnr, dtype)
        # Zero becomes the smallest float, whose logarithm is finite.
        log_values = np.maximum(log_values, np.log(np.finfo(np.float32).tiny))
        self.log_values = jnp.asarray(np.maximum.accumulate(log_values[::-1])[::-1], dtype)

    def __call__(self, logsnr: ScalarLike) -> Scalar:
        return jnp.exp(jnp.interp(as_float(logsnr), self.logsnr, self.log_values))


@register("weighting", "monotone")
def monotone(
    base: str = "simple",
    *,
    schedule: AbstractSchedule,
    process: AbstractProcess,
    parameterization: AbstractParameterization,
    logsnr_range: tuple[float, float],
    data_std: float = 1.0,
) -> Monotone:
    """Another weighting, made monotone (`Monotone`): `base` is its registered name, used with its defaults.

    **Raises:** `diffkit.registry.UnknownPartError` if no weighting has this name.
    """
    context = Context(
        schedule=schedule,
        process=process,
        parameterization=parameterization,
        logsnr_range=logsnr_range,
        data_std=data_std,
    )
    return Monotone(registry.complete(registry.get("weighting", base), context), logsnr_range)
