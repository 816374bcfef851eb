r"""Two-stage Runge-Kutta steps of the probability-flow ODE, in any of its forms."""

import math
from typing import Any

import equinox as eqx

from diffkit.samplers.base import AbstractSampler, Denoise
from diffkit.samplers.forms import check_form
from diffkit.typing import Example, PRNGKey, Scalar


class RungeKutta2(AbstractSampler):
    r"""The two-stage methods of order 2, with the second stage anywhere in the step.

    In a form with $du / d\kappa = q$ and $\Delta = \kappa_s - \kappa_t$: $u' = u_t + c \Delta q_t$, and
    $u_s = u_t + \Delta \left((1 - \tfrac{1}{2c})\, q_t + \tfrac{1}{2c}\, q'\right)$. The node c = 1 is
    Heun's trapezoid, c = 1/2 the midpoint rule. Plugins register the well-known ones: EDM's Heun
    (form `eps`, node 1), rectified flow's midpoint rule (form `velocity`, node 1/2).

    **Arguments:** `form`: a name in `diffkit.samplers.FORMS`; `node`: c, in (0, 1].

    **Raises:** `ValueError` for an unknown form or a node out of range.
    """

    form: str = eqx.field(default="eps", static=True)
    node: float = eqx.field(default=1.0, static=True)

    def __check_init__(self):
        check_form(self.form)
        if not (math.isfinite(self.node) and 0 < self.node <= 1):
            raise ValueError(f"node must be in (0, 1], got {self.node}.")

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def order(self) -> int:
        return 2

    @property
    def calls(self) -> int:
        return 2

    def init(self, y: Example) -> None:
        return None

    def step(
        self,
        denoise: Denoise,
        y: Example,
        logsnr_t: Scalar,
        logsnr_s: Scalar,
        state: Any,
        key: PRNGKey | None,
    ) -> tuple[Example, None]:
        form, node = check_form(self.form), self.node
        delta = form.offset(logsnr_s, logsnr_t)
        if node == 1:
            between = logsnr_s
        else:
            between = form.logsnr(form.kappa(logsnr_t) + node * delta)
        first = form.quantity(denoise(y, logsnr_t))
        u = form.scale(logsnr_t) * y
        inner = (u + node * delta * first) / form.scale(between)
        second = form.quantity(denoise(inner, between))
        share = 1 / (2 * node)
        u = u + delta * ((1 - share) * first + share * second)
        return u / form.scale(logsnr_s), None
