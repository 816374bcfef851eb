r"""The straight path from data to noise."""

import jax

import diffkit as dk
from diffkit.typing import ScalarLike, as_float


@dk.register("process", "straight")
class Straight(dk.AbstractProcess):
    r"""$\alpha + \sigma = 1$: the latent is $z = (1 - \tau)\, x + \tau\, \epsilon$ with $\tau = \sigma$.

    $\sigma = \mathrm{sigmoid}(-\lambda / 2)$ and $\alpha = \mathrm{sigmoid}(\lambda / 2)$. This is the path
    of rectified flow (Liu, Gong and Liu 2023, arXiv 2209.03003, equation 1) and of flow matching with
    optimal transport and $\sigma_{min} = 0$ (Lipman et al. 2023, arXiv 2210.02747, section 4.1). Papers
    that count time from noise to data write 1 - t for t.

    Choose it for its velocity, whose predictions and starting points both have the scale of the data, and
    to load a model of one of these papers. With the same schedule and target it gives the same model as any
    other process.
    """

    def at(self, logsnr: ScalarLike) -> dk.NoiseLevel:
        logsnr = as_float(logsnr)
        return dk.NoiseLevel(logsnr, alpha=jax.nn.sigmoid(logsnr / 2), sigma=jax.nn.sigmoid(-logsnr / 2))
