r"""Proposals: where to draw noise levels for the diffusion term of the bound.

In continuous time the term is an integral over $\lambda$ between the endpoints of the schedule; in
discrete time it is a sum over T steps (VDM equations 13 and 18):

$$\tfrac12 \int_{\lambda_{\min}}^{\lambda_{\max}}
    \mathbb E\, \lVert \epsilon - \hat\epsilon \rVert^2 \, d\lambda, \qquad
  \tfrac12 \sum_k \mathrm{expm1}(\lambda_{k-1} - \lambda_k)\,
    \mathbb E\, \lVert \epsilon - \hat\epsilon \rVert^2.$$

Neither contains time. Uniform times estimate both without bias, but under schedules such as `log_normal`,
which hardly visit the ends of the range, most estimates are too good and a few far too bad. A proposal
draws noise levels in proportion to the integrand and divides by their density.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffkit.schedules import AbstractSchedule, minimises_variance
from diffkit.typing import BatchScalar

CELLS = 32
"""Cells of a proposal in continuous time."""

_DEFENSIVE, _DEFENSIVE_PILOT = 0.25, 0.5
"""The share of draws that are always uniform in `logsnr` (a defensive mixture; Hesterberg 1995,
Technometrics 37). No importance exceeds that of uniform draws by more than one over the share. A pilot is
small and misses rare large errors: half of the draws do not follow it."""


class Proposal(eqx.Module):
    """A distribution over cells of `logsnr`, each with a part of the diffusion term.

    In continuous time a draw is uniform within its cell; in discrete time each cell is a step, and a draw
    visits its noisy end.

    **Attributes:** `logsnr`: the edges of the cells, increasing; `ends`: the probability below each edge,
    from 0 to 1; `discrete`: whether the cells are steps.
    """

    logsnr: Float[Array, " edges"]
    ends: Float[Array, " edges"]
    discrete: bool = eqx.field(static=True)

    def draw(self, u: BatchScalar) -> tuple[BatchScalar, BatchScalar, BatchScalar]:
        """Noise levels for uniform numbers in [0, 1), (batch,).

        **Returns:** the `logsnr` to visit; the less noisy edge of each cell; and the inverse of the
        density, over `logsnr` in continuous time and over steps in discrete time.
        """
        index = jnp.searchsorted(self.ends, u, side="right") - 1
        index = jnp.clip(index, 0, self.logsnr.shape[0] - 2)
        low, high = self.logsnr[index], self.logsnr[index + 1]
        share = self.ends[index + 1] - self.ends[index]
        if self.discrete:
            return low, high, 1 / share
        inside = (u - self.ends[index]) / share
        return (1 - inside) * low + inside * high, high, (high - low) / share


def propose(
    schedule: AbstractSchedule,
    steps: int | None,
    errors: tuple[Float[Array, " known"], Float[Array, " known"]] | None = None,
) -> Proposal:
    r"""The proposal for a bound, from the errors of eps if they are known.

    The variance is least if the density is proportional to the root mean square of the integrand. Unknown
    errors are assumed equal at every `logsnr`: in continuous time the draws are then uniform in `logsnr`,
    unless the schedule minimises the variance (`diffkit.AbstractVarianceMinimising`): then they follow it.
    The density has no gradient, so a mean over draws has the gradient of the term.

    **Arguments:** `schedule`; `steps`: T, or `None` for continuous time; beyond about 10^6, float32 rounds
    some probabilities to zero; `errors`: values of `logsnr`, increasing, and the root mean square of
    $\lVert \epsilon - \hat\epsilon \rVert^2$ there.
    """
    cells = CELLS if steps is None else steps
    # k / T rather than differences of times: each edge is the same number for both of its steps.
    times = jnp.arange(cells, -1, -1) / cells
    own = minimises_variance(schedule)
    if steps is None and not own:
        maximum, minimum = schedule.endpoints
        edges = times * minimum + (1 - times) * maximum
    else:
        edges = _values(schedule, times)
    fixed = jax.lax.stop_gradient(edges)
    widths = jnp.maximum(jnp.diff(fixed), 0.0)
    parts = widths if steps is None else jnp.expm1(widths)
    if errors is not None:
        at = fixed[:-1] if steps is not None else (fixed[1:] + fixed[:-1]) / 2
        parts = parts * jnp.interp(at, *errors)
    elif own:
        parts = jnp.where(widths > 0, parts / widths, 0.0)
    tiny = jnp.finfo(widths.dtype).tiny  # no division by zero without errors
    uniform = _DEFENSIVE if errors is None else _DEFENSIVE_PILOT
    shares = (1 - uniform) * parts / jnp.maximum(jnp.sum(parts), tiny)
    shares = shares + uniform * widths / jnp.maximum(jnp.sum(widths), tiny)
    ends = jnp.concatenate([jnp.zeros(1), jnp.cumsum(shares)])
    return Proposal(edges, ends / ends[-1], steps is not None)


@eqx.filter_jit
def _values(schedule: AbstractSchedule, times: Float[Array, " edges"]) -> Float[Array, " edges"]:
    # Compiled because a learned schedule may make large arrays of many times.
    return jax.vmap(schedule)(times)


def measured(
    logsnr: Float[np.ndarray, " draws"], squares: Float[np.ndarray, " draws"]
) -> tuple[Float[Array, " known"], Float[Array, " known"]]:
    """The errors of a pilot, as an argument of `propose`.

    **Arguments:** `logsnr`: where the pilot's draws fell; `squares`: the squared error of each.

    **Returns:** mean `logsnr` and root mean square over groups of neighbouring draws, with some overlap; or
    over each value of `logsnr`, if there are few with many draws each.
    """
    distinct, group = np.unique(logsnr, return_inverse=True)
    # Steps, each with many draws.
    few = len(distinct) <= CELLS and len(logsnr) >= 8 * len(distinct)
    if not few:
        group = group * min(CELLS, len(distinct)) // len(distinct)
    count = np.bincount(group)
    at, moment = (np.bincount(group, values) / count for values in (logsnr, squares**2))
    if not few:
        # A rare large error speaks for its neighbours too.
        padded = np.pad(moment, 1, mode="edge")
        moment = np.maximum(moment, (padded[:-2] + padded[1:-1] + padded[2:]) / 3)
    dtype = jnp.result_type(float)
    return jnp.asarray(at, dtype), jnp.asarray(np.sqrt(moment), dtype)
