"""The score as what the network predicts."""

import jax.numpy as jnp

import diffkit as dk
from diffkit.typing import Scalar


@dk.register("parameterization", "score")
class Score(dk.AbstractParameterization):
    r"""The network predicts the score of the latent, $\nabla_z \log p(z) = -\epsilon / \sigma$.

    Its mean squared error is that of denoising score matching (Vincent 2011), which Song et al. 2021
    (arXiv 2011.13456, equation 7) minimise with a weight $\lambda(t)$ in front. The score is of the
    size of $1 / \sigma$: no network can put out 1 and 1000 equally well, and so the published code
    never asks it to. It divides the output by $\sigma$ (the option `scaled`), which is the
    parameterization `epsilon` up to a sign. Choose the score itself for low noise levels that are
    bounded, or for comparisons.

    **Arguments:** `scaled`: the network predicts $\sigma$ times the score, $-\epsilon$.
    """

    scaled: bool = False

    def coefficients(self, level: dk.NoiseLevel) -> tuple[Scalar, Scalar]:
        one = jnp.ones_like(level.sigma)
        return jnp.zeros_like(level.sigma), -one if self.scaled else -one / level.sigma
