"""The published solvers, each a choice of `Multistep` or of the core's `RungeKutta2`."""

import diffkit as dk
from diffkit.samplers import RungeKutta2
from diffkit_solvers.multistep import Multistep


@dk.register("sampler", "dpmpp_2m")
def dpmpp_2m() -> Multistep:
    r"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), of order 2.

    Extrapolates the predicted data along a straight line in logsnr to the middle of the step. Choose it to
    compare with published samples, or under strong guidance, where higher orders are less stable.
    """
    return Multistep(form="x", points=2, corrector=False, midpoint=True)


@dk.register("sampler", "dpmpp_3m")
def dpmpp_3m() -> Multistep:
    r"""The third-order multistep DPM-Solver++ (arXiv 2211.01095, appendix), of order 3.

    The predicted data are a parabola in logsnr. Choose it to compare, from some twenty calls on. (With half
    of the second derivative, as in two well-known implementations, the order is 2.)
    """
    return Multistep(form="x", points=3, corrector=False)


@dk.register("sampler", "dpmpp_2m_sde")
def dpmpp_2m_sde(eta: float = 1.0) -> Multistep:
    r"""SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, appendix), of weak order 2.

    Choose it for random sampling in fewer steps than ancestral sampling.

    **Arguments:** `eta`: the strength of the noise; 1 is the SDE of ancestral sampling, 0 is `dpmpp_2m`.

    **Raises:** `ValueError` for a negative eta.
    """
    return Multistep(form="x", points=2, corrector=False, midpoint=True, eta=eta)


@dk.register("sampler", "unipc")
def unipc(order: int = 3, variable: str = "logsnr") -> Multistep:
    r"""UniPC (Zhao et al. 2023, arXiv 2302.04867): DPM-Solver++ with a corrector that costs no call.

    `order` is that of the predictor, as in the paper's UniPC-p; with the corrector it converges with order
    p + 1. The coefficients are the exact integrals. Choose it instead of `multistep` to compare with
    published samples. With `variable="rho"` it is more accurate below forty calls.

    **Arguments:** `order`, 1 to 4; `variable`: that of the interpolating polynomial, as in `Multistep`.

    **Raises:** `ValueError` for an order out of range or an unknown variable.
    """
    return Multistep(form="x", variable=variable, points=order, corrector=True)


@dk.register("sampler", "deis")
def deis(order: int = 3, variable: str = "logsnr") -> Multistep:
    r"""DEIS: the exponential Adams-Bashforth method (Zhang and Chen 2023, arXiv 2204.13902, section 3).

    The predicted noise is a polynomial in `variable`. With `rho` it is the paper's rhoAB-DEIS
    (k-diffusion's LMS), which was less accurate in all our measurements. Choose it below twenty calls on
    grids even in logsnr or in a power of rho (`uniform_logsnr`, `rho`).

    **Arguments:** `order`, 1 to 4 (1 is DDIM); `variable`, as in `Multistep`.

    **Raises:** `ValueError` for an order out of range or an unknown variable.
    """
    return Multistep(form="eps", variable=variable, points=order, corrector=False)


@dk.register("sampler", "ab_v")
def ab_v(order: int = 3) -> Multistep:
    r"""The Adams-Bashforth method for v in the angle $\varphi = \arctan \rho$.

    In the angle the probability-flow ODE of the variance preserving process is $dz / d\varphi = v$
    (Salimans and Ho 2022, arXiv 2202.00512, appendix D). Choose it on grids uniform in time (`uniform_t`)
    from twenty calls on. On `uniform_logsnr` and `rho` it is less accurate than `multistep`.

    **Arguments:** `order`, 1 to 4.

    **Raises:** `ValueError` for an order out of range.
    """
    return Multistep(form="v", variable="kappa", points=order, corrector=False)


@dk.register("sampler", "heun")
def heun() -> RungeKutta2:
    r"""Heun's method for $dy / d\rho = \hat\epsilon$, of order 2 with two calls a step.

    EDM's deterministic sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 1). Choose it as a
    reference: it is robust and needs no history; the multistep methods reach its accuracy in half the calls
    or less. A step in which rho falls to less than a fifth becomes two steps of DDIM.
    """
    return RungeKutta2(form="eps", node=1.0)
