r"""Schedules: how the noise level depends on time.

A schedule maps time $t \in [0, 1]$ to $\lambda(t) = \log \mathrm{SNR}$, strictly decreasing: $t = 0$
is data (largest `logsnr`), $t = 1$ is noise (smallest). Variational Diffusion Models (VDM,
arXiv 2107.00630) writes $\gamma(t) = -\lambda(t)$.

The process, not the schedule, determines $\alpha$ and $\sigma$. The continuous-time VLB depends on a
schedule only through its two endpoints (VDM section 5.1); between them it determines the variance of the
estimate, and the steps of a sampler uniform in $t$.
"""

import abc
import math
from typing import TypeGuard, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from diffkit.registry import Context, complete, get, register
from diffkit.typing import PRNGKey, Scalar, ScalarLike, as_float

S = TypeVar("S", bound="AbstractVarianceMinimising")


class AbstractSchedule(eqx.Module):
    """A strictly decreasing map from time to log signal-to-noise ratio."""

    @abc.abstractmethod
    def __call__(self, t: ScalarLike) -> Scalar:
        """`logsnr` at time `t` in [0, 1]."""

    @abc.abstractmethod
    def inverse(self, logsnr: ScalarLike) -> Scalar:
        """The time at which the schedule has this `logsnr`, which must lie between the endpoints."""

    @property
    def endpoints(self) -> tuple[Scalar, Scalar]:
        """`(max, min)`: `logsnr` at t = 0 and at t = 1."""
        # Arrays, so that a schedule in plain arithmetic also returns arrays.
        return self(jnp.asarray(0.0)), self(jnp.asarray(1.0))


class AbstractVarianceMinimising(AbstractSchedule):
    """A schedule whose interior can follow the variance of the estimate instead of its mean.

    In continuous time the bound does not depend on the interior (VDM section 5.1), which is free to
    minimise the variance of the estimate (section 5.3 and appendix I.2): with `minimise_variance` its
    parameters receive the gradient of the second moment of the diffusion loss over draws. In discrete time
    the bound depends on the interior too, which then no longer follows it. Inside `Truncated` such a
    schedule has ordinary gradients.
    """

    minimise_variance: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def interior_parameters(self: S) -> S:
        """A tree like the schedule: `True` for each array that moves the interior and no endpoint."""


def minimises_variance(schedule: AbstractSchedule) -> TypeGuard[AbstractVarianceMinimising]:
    """Whether the interior of a schedule follows the variance of the estimate."""
    return isinstance(schedule, AbstractVarianceMinimising) and schedule.minimise_variance


def check_range(logsnr_max: float | None, logsnr_min: float, levels: int | None) -> tuple[float, float]:
    """The endpoints `(logsnr_max, logsnr_min)` of a schedule, with a default of the first from the levels.

    VDM ends at log SNR 13.3 for 256 levels (or continuous data, `None`), where neighbouring levels are six
    standard deviations of the noise apart: the default, 13.3 + 2 log(levels / 256), keeps that distance.
    Beyond it only the grid of the levels is left to learn.

    **Raises:** `ValueError` unless they are finite and max > min.
    """
    if logsnr_max is None:
        logsnr_max = 13.3 + 2 * math.log((levels or 256) / 256)
    if not (math.isfinite(logsnr_max) and math.isfinite(logsnr_min) and logsnr_max > logsnr_min):
        raise ValueError(
            f"logsnr_max must be finite and greater than logsnr_min, got {logsnr_max=}, {logsnr_min=}."
        )
    return float(logsnr_max), float(logsnr_min)


def ordered_endpoints(schedule: AbstractSchedule) -> tuple[float, float]:
    """The endpoints (max, min) as numbers; a `ValueError` unless finite and the larger one at t = 0."""
    maximum, minimum = (float(end) for end in schedule.endpoints)
    if not (math.isfinite(maximum) and math.isfinite(minimum) and maximum > minimum):
        raise ValueError(
            "schedule must fall from a finite logsnr at t = 0, the data, to a smaller one at t = 1; got "
            f"{maximum:g} and {minimum:g} from {type(schedule).__name__}. (VDM's gamma is -logsnr.)"
        )
    return maximum, minimum


class AbstractRanged(AbstractSchedule):
    """A schedule with its endpoints as options, the first by default from the levels (`check_range`)."""

    logsnr_max: float = eqx.field(static=True)
    logsnr_min: float = eqx.field(static=True)

    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float = -5.0,
        *,
        levels: int | None = None,
    ):
        self.logsnr_max, self.logsnr_min = check_range(logsnr_max, logsnr_min, levels)


@register("schedule", "linear_logsnr")
class LinearLogSNR(AbstractRanged):
    r"""The straight line $\lambda(t) = (1 - t)\,\lambda_{\max} + t\,\lambda_{\min}$.

    VDM's fixed schedule, and a good default: every octave of noise gets the same share of time.

    **Arguments:** `logsnr_max`: log SNR at t = 0, by default VDM's for the data's levels (`check_range`);
    `logsnr_min`: log SNR at t = 1; `levels`: the number of values of a dimension of the data, `None` for
    continuous data.

    **Raises:** `ValueError` if `logsnr_max <= logsnr_min`, or one is not finite.
    """

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        # Not max + (min - max) t: two products are exact at both ends in float32.
        return (1 - t) * self.logsnr_max + t * self.logsnr_min

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        return (self.logsnr_max - as_float(logsnr)) / (self.logsnr_max - self.logsnr_min)


@register("schedule", "cosine")
class Cosine(AbstractRanged):
    r"""The cosine schedule $\lambda(t) = -2 \log \tan(\pi t' / 2)$, with truncated ends.

    Improved DDPM (Nichol and Dhariwal 2021) has $\alpha = \cos(\pi t' / 2)$ under the variance preserving
    process. Its log SNR is infinite at both ends, so $t' = t_0 + t (t_1 - t_0)$ runs over the part between
    the endpoints (Hoogeboom, Heek and Salimans 2023, simple diffusion, section 2). It spends most of its
    time at middle noise levels: good for samples, wasteful for likelihoods.

    **Arguments:** `logsnr_max`, `logsnr_min`, `levels`: as for `LinearLogSNR`; `shift`: added to the log
    SNR of the cosine, without moving the endpoints. 2 log(64 / d) makes images of d x d pixels, scaled down
    to 64 x 64, as noisy as images of that size (simple diffusion, equation 4). That paper also moves the
    endpoints: add the shift to both.

    **Raises:** `ValueError` if `logsnr_max <= logsnr_min`, or a value is not finite.
    """

    shift: float = eqx.field(static=True)

    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float = -5.0,
        *,
        levels: int | None = None,
        shift: float = 0.0,
    ):
        super().__init__(logsnr_max, logsnr_min, levels=levels)
        if not math.isfinite(shift):
            raise ValueError(f"shift must be finite, got {shift}.")
        self.shift = float(shift)

    def _angles(self) -> tuple[float, float, float, float]:
        # pi t' / 2 at both ends, and its complements to pi / 2, where a difference would lose its digits.
        tangents = [math.exp((self.shift - end) / 2) for end in (self.logsnr_max, self.logsnr_min)]
        start, end = tangents
        return math.atan(start), math.atan(end), math.atan(1 / start), math.atan(1 / end)

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        start, end, co_start, co_end = self._angles()
        angle = (1 - t) * start + t * end
        co_angle = (1 - t) * co_start + t * co_end
        return 2 * (jnp.log(jnp.sin(co_angle)) - jnp.log(jnp.sin(angle))) + self.shift

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        start, end, _, _ = self._angles()
        angle = jnp.arctan(jnp.exp((self.shift - as_float(logsnr)) / 2))
        return (angle - start) / (end - start)


class Truncated(AbstractSchedule):
    """The part of another schedule between two values of `logsnr`, over all of [0, 1].

    Its time is an affine function of the other's, so it has the same curve; the ends are exact. Choose it
    to give schedules of different papers the same range, and so the same bound (VDM section 5.1).

    **Arguments:** `schedule`: the other schedule; `logsnr_max`, `logsnr_min`: the new endpoints.

    **Raises:** `ValueError` if `logsnr_max <= logsnr_min`, or if one is outside the schedule's range.

    ```python
    schedule = dk.Truncated(dk.Cosine(15.0, -15.0), logsnr_max=13.3, logsnr_min=-5.0)
    ```
    """

    schedule: AbstractSchedule
    logsnr_max: float = eqx.field(static=True, converter=float)
    logsnr_min: float = eqx.field(static=True, converter=float)

    def __check_init__(self):
        maximum, minimum = (float(end) for end in self.schedule.endpoints)
        if not self.logsnr_max > self.logsnr_min:
            raise ValueError(
                f"logsnr_max must be greater than logsnr_min, got {self.logsnr_max=}, {self.logsnr_min=}."
            )
        # Endpoints are float32: equal numbers may differ in the seventh digit.
        slack = 1e-5 * max(abs(maximum), abs(minimum))
        if self.logsnr_max > maximum + slack or self.logsnr_min < minimum - slack:
            raise ValueError(
                f"logsnr_max={self.logsnr_max:g} and logsnr_min={self.logsnr_min:g} must be within the "
                f"schedule's endpoints, which are {maximum:g} and {minimum:g}."
            )

    def _times(self) -> tuple[Scalar, Scalar]:
        return self.schedule.inverse(self.logsnr_max), self.schedule.inverse(self.logsnr_min)

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        start, end = self._times()
        logsnr = self.schedule((1 - t) * start + t * end)
        exact = jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)
        exact = jnp.where(t == 0, self.logsnr_max, jnp.where(t == 1, self.logsnr_min, exact))
        # Exact ends, with the slope of the curve.
        return logsnr + jax.lax.stop_gradient(exact - logsnr)

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        start, end = self._times()
        return (self.schedule.inverse(logsnr) - start) / (end - start)


@register("schedule", "truncated")
def truncated(
    base: str = "cosine",
    logsnr_max: float | None = None,
    logsnr_min: float = -5.0,
    *,
    shape: tuple[int, ...] = (),
    levels: int | None = None,
    key: PRNGKey,
) -> Truncated:
    """The part of another schedule between two endpoints (`Truncated`).

    Choose it to give a schedule without options for its endpoints, such as `vp_beta` or `log_normal`, the
    range of a model that you carry over to it.

    **Arguments:** `base`: the other's registered name, used with its defaults; `logsnr_max`, `logsnr_min`:
    as for `LinearLogSNR`.

    **Raises:** `diffkit.registry.UnknownPartError` if no schedule has this name; `ValueError` if the
    endpoints are not within those of the base.
    """
    maximum, minimum = check_range(logsnr_max, logsnr_min, levels)
    context = Context(shape=shape, levels=levels, key=key)
    return Truncated(complete(get("schedule", base), context), maximum, minimum)
