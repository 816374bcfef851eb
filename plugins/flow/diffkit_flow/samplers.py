r"""The solvers of rectified flow: two of diffkit's, by their names along the straight path."""

import diffkit as dk
from diffkit.samplers import DDIM, RungeKutta2


@dk.register("sampler", "euler")
def euler() -> DDIM:
    r"""Euler's method along the straight path: $z_s = z_t + (\tau_s - \tau_t)\, v(z_t, \tau_t)$.

    With $v = \hat\epsilon - \hat x$ it gives $z_s = (1 - \tau_s)\, \hat x + \tau_s\, \hat\epsilon$, which
    is DDIM with $\eta = 0$, and EDM's Euler method in $\sigma$. It is the sampler of rectified flow (Liu,
    Gong and Liu 2023, arXiv 2209.03003) and of Esser et al. 2024 (arXiv 2403.03206). Order 1, one network
    call per step, deterministic. Choose it for nearly straight flows, such as those after reflow; otherwise
    a higher-order method needs fewer calls.
    """
    return DDIM()


@dk.register("sampler", "midpoint")
def midpoint() -> RungeKutta2:
    r"""The midpoint rule along the straight path: a step with the velocity in its middle.

    $z_m = z_t + \tfrac12 \Delta\, v(z_t, \tau_t)$ and $z_s = z_t + \Delta\, v(z_m, \tau_t + \tfrac12
    \Delta)$ with $\Delta = \tau_s - \tau_t$, one of the fixed-step solvers of Lipman et al. 2023 (arXiv
    2210.02747, section 6.2). Order 2, two network calls per step, deterministic. Choose it if the flow is
    not straight, from about twenty calls. A long step becomes two steps of DDIM, as in
    `diffkit.samplers.RungeKutta2`.
    """
    return RungeKutta2(form="velocity", node=0.5)
