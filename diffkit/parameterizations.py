r"""Parameterizations: what the network predicts.

Every target in the literature is a row $(a, b)$: target $= a\,x + b\,\epsilon$, with $a$ and $b$
functions of the noise level. Together with $z = \alpha x + \sigma \epsilon$ it is a 2x2 system

$$\begin{pmatrix} \alpha & \sigma \\ a & b \end{pmatrix}
  \begin{pmatrix} x \\ \epsilon \end{pmatrix} =
  \begin{pmatrix} z \\ \text{target} \end{pmatrix},
  \qquad d = \alpha b - \sigma a,$$

so that one solve turns any prediction into $x$ and $\epsilon$, and from there into any other. At
fixed $z$, $\partial\,\text{target} / \partial\,\epsilon = d / \alpha$: its square is the factor
between the squared error of the target and that of $\epsilon$.
"""

import abc

import equinox as eqx
import jax.numpy as jnp

from diffkit.processes import NoiseLevel
from diffkit.registry import register
from diffkit.typing import Example, Scalar


class AbstractParameterization(eqx.Module):
    """A target a x + b eps."""

    @abc.abstractmethod
    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        """The row `(a, b)` at this noise level."""

    def target(self, x: Example, eps: Example, level: NoiseLevel) -> Example:
        """What a perfect network returns: a x + b eps."""
        a, b = self.coefficients(level)
        return a * x + b * eps

    def solve(self, prediction: Example, z: Example, level: NoiseLevel) -> tuple[Example, Example]:
        """`(x, eps)` from a prediction of the target and the latent: the 2x2 solve.

        **Arguments:** `prediction` and `z` of one shape; `level`, the noise level of `z`.
        """
        a, b = self.coefficients(level)
        det = level.alpha * b - level.sigma * a
        x = (b * z - level.sigma * prediction) / det
        eps = (level.alpha * prediction - a * z) / det
        return x, eps

    def error_factor(self, level: NoiseLevel) -> Scalar:
        """|target error|^2 = error_factor |eps error|^2 at this noise level."""
        a, b = self.coefficients(level)
        return jnp.square(b - a * level.rho)


class AbstractRangeParameterization(AbstractParameterization):
    r"""A target, and the variance of the reverse step within its range.

    The network predicts, beside its target, where the log variance of each reverse step lies between
    the posterior's and the forward step's (improved DDPM, arXiv 2102.09672, equation 15). The squared
    error of the target says nothing of it, so `denoising_loss` adds `vlb_weight` times the bound of the
    discrete-time model with `steps` steps, in bits, through whose means no gradient flows (equation
    16, the hybrid loss).

    **Attributes:** `steps`: T, for which the variances are learnt; `vlb_weight`: the weight of its
    bound.
    """

    steps: eqx.AbstractVar[int]
    vlb_weight: eqx.AbstractVar[float]


@register("parameterization", "epsilon")
class Epsilon(AbstractParameterization):
    """The network predicts the noise (Ho, Jain and Abbeel 2020; VDM).

    Precise in x at high SNR, where likelihoods are decided. At low SNR its errors are amplified by
    sigma / alpha in x, so it cannot start at zero SNR.
    """

    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        return jnp.zeros_like(level.alpha), jnp.ones_like(level.alpha)


@register("parameterization", "x")
class X(AbstractParameterization):
    """The network predicts the data.

    Bounded at low SNR; at high SNR its errors are amplified by alpha / sigma in eps.
    """

    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        return jnp.ones_like(level.alpha), jnp.zeros_like(level.alpha)


@register("parameterization", "v")
class V(AbstractParameterization):
    r"""The network predicts $v = (\alpha \epsilon - \sigma x) / \sqrt{\alpha^2 + \sigma^2}$.

    Introduced for the variance preserving process, where the root is 1 (Salimans and Ho 2022,
    progressive distillation, appendix D). The root makes it the same target under every process. Well
    conditioned at both ends: it is eps at high SNR turned into -x at low SNR.
    """

    def coefficients(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        # hypot, since sigma^2 overflows long before sigma does.
        norm = jnp.hypot(level.alpha, level.sigma)
        return -level.sigma / norm, level.alpha / norm
