r"""EDM's preconditioning (Karras, Aittala, Aila and Laine 2022, arXiv 2206.00364, section 5).

EDM writes a denoiser as $D(z; \sigma) = c_{skip}\, z + c_{out}\, F(c_{in}\, z;\, c_{noise})$. The
`Denoiser` scales the latent by $c_{in}$, a network takes the noise level, and F is one more target.
"""

import equinox as eqx
import jax.numpy as jnp

import diffkit as dk
from diffkit.typing import Scalar, ScalarLike, as_float, check_positive


def _check_data_std(data_std: float) -> float:
    check_positive("data_std", data_std)
    return float(data_std)


class Preconditioning(eqx.Module):
    """The scalars of EDM's denoiser at one noise level.

    **Attributes:** `c_skip`, the share of the latent in the output; `c_out`, the scale of the network's
    output; `c_in`, the scale of its input; `c_noise`, its input for the noise level.
    """

    c_skip: Scalar
    c_out: Scalar
    c_in: Scalar
    c_noise: Scalar


def preconditioning(sigma: ScalarLike, data_std: float = 0.5) -> Preconditioning:
    r"""EDM's preconditioning as published (table 1 of the paper, column "Ours").

    With $h = \sqrt{\sigma^2 + s^2}$ and s the standard deviation of the data: $c_{skip} = s^2 / h^2$,
    $c_{out} = \sigma s / h$, $c_{in} = 1 / h$, $c_{noise} = \tfrac14 \ln \sigma$. So input and target of
    the network have unit variance, and $c_{skip}$ minimises $c_{out}$ (appendix B.6).

    It is here for comparison: a `diffkit.Denoiser` with the parameterization `F`, the variance exploding
    process and this `data_std` is the published formula.

    **Arguments:** `sigma`: the noise level, positive; `data_std`: s.

    **Raises:** `ValueError` if `data_std` is not positive.
    """
    data_std, sigma = _check_data_std(data_std), as_float(sigma)
    norm = jnp.hypot(sigma, data_std)
    return Preconditioning(
        c_skip=jnp.square(data_std / norm),
        c_out=sigma * (data_std / norm),
        c_in=1 / norm,
        c_noise=0.25 * jnp.log(sigma),
    )


@dk.register("parameterization", "edm_f")
class F(dk.AbstractParameterization):
    r"""The network predicts EDM's F: the latent's part that is neither data nor known, at unit variance.

    Solving $x = c_{skip}\, z + c_{out} F$ for F under $z = x + \rho\,\epsilon$ gives the row

    $$a = \frac{\rho}{s \sqrt{\rho^2 + s^2}}, \qquad b = -\frac{s}{\sqrt{\rho^2 + s^2}},$$

    a function only of $\rho = \sigma / \alpha$ and the standard deviation s of the data, so F is the same
    target under every process (Karras et al. 2022, arXiv 2206.00364, equations 7 and 8). For s = 1 it is
    -v. Choose it if the standard deviation of the data is known and not 1: images in [-1, 1] have about
    0.5. Like v, it is well conditioned at both ends. EDM's input for the noise level,
    $c_{noise} = -\lambda / 8$, is what diffkit's networks see up to an affine map.

    **Arguments:** `data_std`: s. In a model diffkit fills it in, equal to that of the input's scale; by
    hand, give the `Denoiser` the same number.

    **Raises:** `ValueError` if `data_std` is not positive.
    """

    data_std: float = eqx.field(default=1.0, converter=_check_data_std, static=True, kw_only=True)

    def coefficients(self, level: dk.NoiseLevel) -> tuple[Scalar, Scalar]:
        rho = level.rho
        norm = jnp.hypot(rho, self.data_std)
        return rho / (self.data_std * norm), -self.data_std / norm
