"""Two-stage Runge-Kutta steps of the probability-flow ODE, in any of its forms."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from diffkit.denoiser import Prediction
from diffkit.samplers.base import AbstractOneStepSampler, Denoise, Step
from diffkit.samplers.forms import between, check_form, is_long
from diffkit.typing import Example, Scalar

# The midpoint rule on the straight path amplifies no more, and the 18 steps of EDM are as published.
_MOST_AMPLIFIED = 2.0


class RungeKutta2(AbstractOneStepSampler):
    r"""The two-stage methods of order 2, with the second stage anywhere in the step.

    In a form with $du / d\kappa = q$ and $\Delta = \kappa_s - \kappa_t$: $u' = u_t + c \Delta q_t$, and
    $u_s = u_t + \Delta \left((1 - \tfrac{1}{2c})\, q_t + \tfrac{1}{2c}\, q'\right)$. The node c = 1 is
    Heun's trapezoid (EDM's in form `eps`), c = 1/2 the midpoint rule (rectified flow's in form `velocity`).

    A long step (`diffkit.samplers.is_long`) becomes two steps of DDIM, with the same two calls of the
    network. So does a step that amplifies: if the data are a single point, an error $\delta$ of the inner
    $y'$ causes an error $\delta / \rho'$ in $\hat\epsilon$, and the step must turn it into at most $2
    \delta$. Heun's method in `eps` exceeds that if $\rho$ falls to less than a fifth; a single step from
    $\rho = 80$ to 0.002 would multiply by 20000.

    **Arguments:** `form`: a name in `diffkit.samplers.FORMS`; `node`: c, in (0, 1].

    **Raises:** `ValueError` for an unknown form or a node out of range.
    """

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2
    form: str = eqx.field(default="eps", static=True)
    node: float = eqx.field(default=1.0, static=True)

    def __check_init__(self):
        check_form(self.form)
        if not (math.isfinite(self.node) and 0 < self.node <= 1):
            raise ValueError(f"node must be in (0, 1], got {self.node}.")

    def advance(self, denoise: Denoise, y: Example, step: Step) -> Example:
        form, node, (logsnr_t, logsnr_s, _) = check_form(self.form), self.node, step
        delta = form.offset(logsnr_s, logsnr_t)
        if node == 1:
            place = logsnr_s
        else:
            place = form.logsnr(form.kappa(logsnr_t) + node * delta)
        share = 1 / (2 * node)
        response = form.coefficients(place)[1] * jnp.exp(place / 2)
        amplified = jnp.abs(share * delta * response / form.scale(logsnr_s))
        long = is_long(logsnr_t, logsnr_s) | (amplified > _MOST_AMPLIFIED)
        halfway = between(logsnr_t, logsnr_s, 0.5)
        first = denoise(y, logsnr_t)
        u, quantity = form.scale(logsnr_t) * y, form.quantity(first)
        inner = (u + node * delta * quantity) / form.scale(place)
        inner = jnp.where(long, _ddim(y, first, halfway), inner)
        second = denoise(inner, jnp.where(long, halfway, place))
        u = u + delta * ((1 - share) * quantity + share * form.quantity(second))
        return jnp.where(long, _ddim(inner, second, logsnr_s), u / form.scale(logsnr_s))


def _ddim(y: Example, prediction: Prediction, logsnr: Scalar) -> Example:
    """The step of DDIM from the level of a prediction to `logsnr`."""
    return y + (jnp.exp(-logsnr / 2) - prediction.level.rho) * prediction.eps
