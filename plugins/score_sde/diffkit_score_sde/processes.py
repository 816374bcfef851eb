"""The sub-VP process."""

import jax.numpy as jnp

import diffkit as dk
from diffkit.typing import ScalarLike, as_float


@dk.register("process", "sub_vp")
class SubVP(dk.AbstractProcess):
    r"""$\sigma = 1 - \alpha^2$: less noise than the variance preserving process at every time.

    Song et al. 2021 (arXiv 2011.13456, equation 29) state it by time, $\alpha = e^{-B/2}$ and
    $\sigma = 1 - e^{-B}$. By $\lambda$ alone: with $\rho = e^{-\lambda/2}$ the definition is
    $\alpha^2 + \rho\,\alpha - 1 = 0$, whose positive root is

    $$\alpha = \frac{2}{\rho + \sqrt{\rho^2 + 4}} = e^{-\operatorname{arsinh}(\rho / 2)},
      \qquad \sigma = \rho\,\alpha.$$

    Choose it, with the schedule `sub_vp_beta`, to reproduce that paper, or for the latent that a network of
    that paper expects. At equal $\lambda$ neither likelihoods nor samples depend on the choice.
    """

    def at(self, logsnr: ScalarLike) -> dk.NoiseLevel:
        logsnr = as_float(logsnr)
        rho, inverse_rho = jnp.exp(-logsnr / 2), jnp.exp(logsnr / 2)
        # Without differences, and finite where rho overflows.
        return dk.NoiseLevel(
            logsnr,
            alpha=2 / (rho + jnp.hypot(rho, 2.0)),
            sigma=2 / (1 + jnp.hypot(1.0, 2 * inverse_rho)),
        )
