r"""Semilinear forms of the probability-flow ODE.

In the rescaled latent the ODE of every process is $dy / d\rho = \hat\epsilon(y, \rho)$. Multiplying y with
a factor and changing the variable gives $u = s(\lambda)\, y$ with $du / d\kappa(\lambda) = q$:

| form | $s$ | $\kappa$ | $q$ |
|---|---|---|---|
| `eps` | $1$ | $\rho$ | $\hat\epsilon$ |
| `x` | $1/\rho$ | $1/\rho$ | $\hat x$ |
| `v` | $\cos\varphi$ | $\varphi = \arctan \rho$ | $\cos\varphi\,\hat\epsilon - \sin\varphi\,\hat x$ |
| `velocity` | $1/(1+\rho)$ | $\rho/(1+\rho)$ | $\hat\epsilon - \hat x$ |

DDIM, EDM's Heun and DEIS use `eps`; DPM-Solver++ and UniPC `x`; Adams-Bashforth in v `v`; the solvers of
rectified flow `velocity`. A solution that bends in one form can be nearly straight in another: with the
noise in `eps`, with the data in `x`, with both in `v` and `velocity`, where u stays bounded at both ends.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from diffkit.denoiser import Prediction
from diffkit.processes import VariancePreserving
from diffkit.typing import Example, Scalar


@dataclass(frozen=True)
class Form:
    """One semilinear form: u = scale y obeys du / dkappa = quantity.

    **Attributes:** functions of `logsnr`: `scale`; `kappa`, the variable of integration; `logsnr`, the
    inverse of `kappa`; `slope`, the derivative of `kappa`; `offset`, of `logsnr` and an origin: the
    difference of their kappas, without cancellation; and `quantity`, the right-hand side as a function of a
    `Prediction`.
    """

    scale: Callable[[Scalar], Scalar]
    kappa: Callable[[Scalar], Scalar]
    logsnr: Callable[[Scalar], Scalar]
    slope: Callable[[Scalar], Scalar]
    offset: Callable[[Scalar, Scalar], Scalar]
    quantity: Callable[[Prediction], Example]

    def coefficients(self, logsnr: Scalar) -> tuple[Scalar, Scalar]:
        """The quantity's coefficients of x and of eps."""
        level = VariancePreserving().at(logsnr)
        zero, one = jnp.zeros_like(logsnr), jnp.ones_like(logsnr)
        of_x, of_eps = Prediction(one, zero, level), Prediction(zero, one, level)
        return self.quantity(of_x), self.quantity(of_eps)


def _rho(logsnr: Scalar) -> Scalar:
    return jnp.exp(-logsnr / 2)


def _inverse_rho(logsnr: Scalar) -> Scalar:
    return jnp.exp(logsnr / 2)


def _cosine(logsnr: Scalar) -> Scalar:
    return jnp.exp(0.5 * jax.nn.log_sigmoid(logsnr))


def _sine(logsnr: Scalar) -> Scalar:
    return _cosine(-logsnr)


# In the offsets m is the relative change of rho from the origin to logsnr: rho = r (1 + m).


def _offset_v(logsnr: Scalar, origin: Scalar) -> Scalar:
    r, m = _rho(origin), jnp.expm1(-(logsnr - origin) / 2)
    return jnp.arctan(r * m / (1 + r * r * (1 + m)))


def _offset_velocity(logsnr: Scalar, origin: Scalar) -> Scalar:
    r, m = _rho(origin), jnp.expm1(-(logsnr - origin) / 2)
    return r * m / ((1 + r) * (1 + r * (1 + m)))


FORMS: Final[Mapping[str, Form]] = MappingProxyType(
    {
        "eps": Form(
            scale=jnp.ones_like,
            kappa=_rho,
            logsnr=lambda kappa: -2 * jnp.log(kappa),
            slope=lambda logsnr: -0.5 * _rho(logsnr),
            offset=lambda logsnr, origin: _rho(origin) * jnp.expm1(-(logsnr - origin) / 2),
            quantity=lambda prediction: prediction.eps.value,
        ),
        "x": Form(
            scale=_inverse_rho,
            kappa=_inverse_rho,
            logsnr=lambda kappa: 2 * jnp.log(kappa),
            slope=lambda logsnr: 0.5 * _inverse_rho(logsnr),
            offset=lambda logsnr, origin: _inverse_rho(origin) * jnp.expm1((logsnr - origin) / 2),
            quantity=lambda prediction: prediction.x.value,
        ),
        "v": Form(
            scale=_cosine,
            kappa=lambda logsnr: jnp.arctan(_rho(logsnr)),
            logsnr=lambda kappa: -2 * jnp.log(jnp.tan(kappa)),
            slope=lambda logsnr: -0.5 * _cosine(logsnr) * _sine(logsnr),
            offset=_offset_v,
            quantity=lambda p: _cosine(p.level.logsnr) * p.eps - _sine(p.level.logsnr) * p.x,
        ),
        "velocity": Form(
            scale=lambda logsnr: jax.nn.sigmoid(logsnr / 2),
            kappa=lambda logsnr: jax.nn.sigmoid(-logsnr / 2),
            logsnr=lambda kappa: 2 * (jnp.log1p(-kappa) - jnp.log(kappa)),
            slope=lambda logsnr: -0.5 * jax.nn.sigmoid(logsnr / 2) * jax.nn.sigmoid(-logsnr / 2),
            offset=_offset_velocity,
            quantity=lambda prediction: prediction.eps.value - prediction.x.value,
        ),
    }
)
"""The forms by name."""


def check_form(name: str) -> Form:
    """The form of this name, or a `ValueError` that lists the known ones."""
    if name not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {name!r}.")
    return FORMS[name]


# A level has passed rho / (rho + 1/2) of the way from data to noise. Data of any scale from a tenth to one
# come out of the noise in its middle, not at the ends.
_SCALE = 0.5


def _passed(logsnr: Scalar) -> Scalar:
    return jax.nn.sigmoid(-logsnr / 2 - math.log(_SCALE))


LONGEST: Final = 4.25
"""The length in `logsnr` from which a step can be long: rho falls to less than an eighth.

Five even steps from rho = 80 to 0.002, of 4.24 each, still gain from a higher order; four do not.
"""

_LONGEST_WAY = 0.3


def is_long(
    logsnr_t: Scalar, logsnr_s: Scalar, longest: float | Scalar = LONGEST
) -> Bool[Array | np.ndarray, ""]:
    r"""Whether a step is too long for a method of an order above 1.

    A long step is longer than `longest` in `logsnr` (4.25: $\rho$ falls to an eighth) and covers more than
    0.3 of the way from data to noise, of which a level has passed $\rho / (\rho + 1/2)$. There the
    predicted data change much, and not like a polynomial; with only one of the two they hardly do, as in
    the last step of a grid uniform in time, from $\rho = 0.05$ to 0.001. Both numbers come from
    `benchmarks/samplers.py` and the grids of all schedules: with 1 to 4 steps no error is more than twice
    that of DDIM, and from ten calls on hardly any grows.
    """
    return (logsnr_s - logsnr_t > longest) & (_passed(logsnr_t) - _passed(logsnr_s) > _LONGEST_WAY)


def between(logsnr_t: Scalar, logsnr_s: Scalar, share: float | Float[Array, "..."]) -> Float[Array, "..."]:
    """The `logsnr` at a share of the way that a step covers, as measured by `is_long`.

    In a long step call the network there again: the data come out of the noise there, if within the step.
    """
    passed = (1 - share) * _passed(logsnr_t) + share * _passed(logsnr_s)
    place = 2 * (jnp.log1p(-passed) - jnp.log(passed) - math.log(_SCALE))
    return jnp.where(share == 0, logsnr_t, place)
