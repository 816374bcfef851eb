r"""Weightings: which noise levels a loss cares for.

A weighting is $w(\lambda)$ relative to the variational lower bound:

$$L = \tfrac12\, \mathbb E_t\!\left[ w(\lambda_t) \left(-\frac{d\lambda}{dt}\right)
      \lVert \epsilon - \hat\epsilon \rVert^2 \right].$$

$w = 1$ *is* the diffusion term of the continuous-time VLB (VDM equation 17), in nats.
"""

import abc

import equinox as eqx
import jax.numpy as jnp

from diffkit.registry import register
from diffkit.typing import Scalar, ScalarLike, as_float


class AbstractWeighting(eqx.Module):
    """A non-negative function of `logsnr`."""

    @abc.abstractmethod
    def __call__(self, logsnr: ScalarLike) -> Scalar:
        """w at this `logsnr`."""


@register("weighting", "elbo")
class ELBO(AbstractWeighting):
    """w = 1: the variational lower bound itself. Choose it for likelihoods and compression."""

    def __call__(self, logsnr: ScalarLike) -> Scalar:
        return jnp.ones_like(as_float(logsnr))
