r"""Learned schedules with exact endpoints (VDM section 3.2 and appendix H).

Both schedules are $\lambda(t) = (1 - s)\,\lambda_{\max} + s\,\lambda_{\min}$ with $s = s(t)$
increasing. The endpoints, on which the VLB depends, have their own parameters.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import diffkit as dk
from diffkit.schedules import check_range
from diffkit.typing import PRNGKey, Scalar, ScalarLike, as_float, check_at_least


class Endpoints(eqx.Module):
    """`logsnr` at t = 0, and the distance down to t = 1: by its absolute value, so their order is kept."""

    start: Scalar
    gap: Scalar

    def values(self) -> tuple[Scalar, Scalar]:
        """`(max, min)`."""
        return self.start, self.start - jnp.abs(self.gap)


def _endpoints(
    logsnr_max: float | None, logsnr_min: float, levels: int | None, learn: bool
) -> Endpoints | dk.Buffer:
    maximum, minimum = check_range(logsnr_max, logsnr_min, levels)
    ends = Endpoints(as_float(maximum), as_float(maximum - minimum))
    return ends if learn else dk.Buffer(ends)


def _values(ends: Endpoints | dk.Buffer) -> tuple[Scalar, Scalar]:
    return ends.get().values() if isinstance(ends, dk.Buffer) else ends.values()


@dk.register("schedule", "learned_linear")
class LearnedLinear(dk.AbstractSchedule):
    """A straight line between two learned endpoints.

    The published VDM checkpoints use it. The endpoints find the noise level at which the decoder costs
    least, and the one at which nothing is left of the data.

    **Arguments:** `logsnr_max`, `logsnr_min`: the endpoints before training; the first by default VDM's for
    the `levels` of the data (`diffkit.schedules.check_range`); `learn_endpoints`: `False` keeps them.

    **Raises:** `ValueError` if `logsnr_max <= logsnr_min`, or one is not finite.
    """

    ends: Endpoints | dk.Buffer

    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float = -5.0,
        *,
        levels: int | None = None,
        learn_endpoints: bool = True,
    ):
        self.ends = _endpoints(logsnr_max, logsnr_min, levels, learn_endpoints)

    def __call__(self, t: ScalarLike) -> Scalar:
        t = as_float(t)
        maximum, minimum = _values(self.ends)
        return (1 - t) * maximum + t * minimum

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        maximum, minimum = _values(self.ends)
        return (maximum - as_float(logsnr)) / (maximum - minimum)


# A tenth of logsnr's range may deserve only a thousandth of the time, in which the schedule must cross it.
_SHARPEST = 200.0
_FLOOR = 0.01


class MonotoneNetwork(eqx.Module):
    r"""An increasing function of t.

    $$h(t) = t + \tfrac1n \sum_i e^{a_i} \tanh(\tfrac12\, e^{b_i} (2t - 1 - c_i))$$

    The three linear layers of VDM appendix H. The first, which goes straight to the output, has weight 1,
    since only the shape of h matters. The logarithms let the other weights span orders of magnitude.
    """

    log_slope: Float[Array, " hidden"]
    centre: Float[Array, " hidden"]
    log_height: Float[Array, " hidden"]

    def __init__(self, hidden: int, *, key: PRNGKey):
        # Nearly a straight line at the start, but with units of all sharpnesses to bend every part of it.
        centre_key, slope_key = jax.random.split(key)
        self.centre = jax.random.uniform(centre_key, (hidden,), minval=-1.0, maxval=1.0)
        self.log_slope = jax.random.uniform(slope_key, (hidden,), maxval=math.log(_SHARPEST))
        self.log_height = jnp.full((hidden,), math.log(0.1))

    def __call__(self, t: Scalar) -> Scalar:
        logs = (self.log_slope, self.log_height)
        slope, height = (jnp.exp(jnp.minimum(log, 20.0)) for log in logs)  # far from overflow
        return t + jnp.mean(height * jnp.tanh(0.5 * slope * (2 * t - 1 - self.centre)))


@dk.register("schedule", "learned_monotone")
class LearnedMonotone(dk.AbstractVarianceMinimising):
    r"""A monotone neural network between two exact endpoints.

    $s(t) = (1 - f) (h(t) - h(0)) / (h(1) - h(0)) + f t$ with h a `MonotoneNetwork` and f = 0.01: the
    endpoints are exact for any weights, and s is strictly monotone even in float32.

    **Arguments:** `logsnr_max`, `logsnr_min`, `levels`, `learn_endpoints`: as in `LearnedLinear`; `hidden`:
    the number of hidden units; `minimise_variance`: train the interior to minimise the variance of the
    estimate of the diffusion loss instead of its mean (VDM section 5.3 and appendix I.2); `normalize`:
    `False` uses s = h, which drifts off its endpoints, only for checkpoints of the reference; `key`: for
    the initial weights.

    **Raises:** `ValueError` as `LearnedLinear`, if `hidden < 1`, or with `minimise_variance` and not
    `normalize`.
    """

    ends: Endpoints | dk.Buffer
    interior: MonotoneNetwork
    normalize: bool = eqx.field(static=True)
    minimise_variance: bool = eqx.field(static=True)

    def __init__(
        self,
        logsnr_max: float | None = None,
        logsnr_min: float = -5.0,
        *,
        levels: int | None = None,
        learn_endpoints: bool = True,
        hidden: int = 1024,
        minimise_variance: bool = False,
        normalize: bool = True,
        key: PRNGKey,
    ):
        check_at_least("hidden", hidden, 1)
        if minimise_variance and not normalize:
            raise ValueError("minimise_variance=True needs normalize=True, which fixes the endpoints.")
        self.ends = _endpoints(logsnr_max, logsnr_min, levels, learn_endpoints)
        self.interior = MonotoneNetwork(hidden, key=key)
        self.normalize, self.minimise_variance = normalize, minimise_variance

    def interior_parameters(self) -> "LearnedMonotone":
        nothing, all_of_it = jax.tree.map(lambda _: False, self), jax.tree.map(lambda _: True, self)
        return eqx.tree_at(lambda s: s.interior, nothing, all_of_it.interior)

    def _position(self, t: Scalar) -> Scalar:
        if not self.normalize:
            return self.interior(t)
        # One vectorised call, so that h(t) at t = 0 and t = 1 rounds like h(0) and h(1).
        start, here, end = jax.vmap(self.interior)(jnp.stack([jnp.zeros_like(t), t, jnp.ones_like(t)]))
        position = (here - start) / (end - start)
        # In this form exact at both ends.
        return position + _FLOOR * (t - position)

    def __call__(self, t: ScalarLike) -> Scalar:
        maximum, minimum = _values(self.ends)
        s = self._position(as_float(t))
        return (1 - s) * maximum + s * minimum

    def inverse(self, logsnr: ScalarLike) -> Scalar:
        """The time of a `logsnr`, by bisection to the last digit."""
        logsnr = as_float(logsnr)
        halvings = jnp.finfo(logsnr.dtype).nmant + 7

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            later = self(middle) > logsnr
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        ends = (jnp.zeros_like(logsnr), jnp.ones_like(logsnr))
        low, high = jax.lax.fori_loop(0, halvings, halve, ends)
        t = jax.lax.stop_gradient(0.5 * (low + high))
        # A bisection has no derivative. One step of Newton's method has the right one, and no other effect.
        reached, slope = jax.jvp(self, (t,), (jnp.ones_like(t),))
        return t - (reached - logsnr) / jax.lax.stop_gradient(slope)
