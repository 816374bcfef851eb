r"""The weighting that EDM's training loss implies."""

import math

import diffkit as dk
from diffkit.weightings import Implied, implied_weighting
from diffkit_edm.parameterizations import F
from diffkit_edm.schedules import LogNormal


@dk.register("weighting", "edm")
def edm(
    P_mean: float = -1.2,
    P_std: float = 1.2,
    sigma_data: float | None = 0.5,
    *,
    data_std: float = 1.0,
    logsnr_range: tuple[float, float] = (-2 * math.log(0.002), -2 * math.log(80.0)),
) -> Implied:
    r"""EDM's training loss, for any schedule and parameterization of the model.

    EDM minimises the plain squared error of its F over log-normal noise levels (Karras et al. 2022,
    arXiv 2206.00364, equation 8 with $\lambda(\sigma) = 1 / c_{out}^2$). That is the weighting

    $$w(\lambda) \propto N(\lambda;\, -2 P_{mean},\, (2 P_{std})^2)\, (e^{-\lambda} + s^2)$$

    with s = `sigma_data`, as `implied_weighting` of `F` under `LogNormal` derives it. Choose it for
    samples: most of its weight is on middle noise levels.

    **Arguments:** `P_mean`, `P_std`: of $\ln \sigma$, see `LogNormal`; `sigma_data`: the standard deviation
    of the data in F (EDM's 0.5 is that of images in [-1, 1]), `None` for the model's `data_std`, which
    gives the plain error of the F that the model predicts; `data_std`, `logsnr_range`: the model's, and
    (max, min) of its schedule, which diffkit fills in.

    **Raises:** `ValueError` for a value out of its range, or a range wider than `LogNormal` takes.
    """
    sigma_min, sigma_max = (math.exp(-logsnr / 2) for logsnr in logsnr_range)
    return implied_weighting(
        parameterization=F(data_std=data_std if sigma_data is None else sigma_data),
        schedule=LogNormal(P_mean, P_std, sigma_min, sigma_max),
        process=dk.VarianceExploding(),
    )
