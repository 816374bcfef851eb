"""L_simple is what weighting=simple gives under these schedules, and the weighting that it implies."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import diffkit as dk
import diffkit_ddpm
from diffkit.objectives import diffusion_term


def eps_weighting(schedule):
    """The implied weighting of the squared error of eps, with uniform times."""
    w = dk.weightings.implied_weighting(parameterization=dk.Epsilon(), schedule=schedule)
    return jax.jit(jax.vmap(w))


def sech(x):
    return 1 / np.cosh(x)


def test_continuous_cosine_is_sech():
    # Golden table: "eps-prediction, uniform t, cosine schedule". The constant follows from
    # d lambda / d angle = -4 / sin(2 angle) with sin(2 angle) = sech(lambda / 2).
    logsnr = np.linspace(-14.5, 14.5, 59)
    found = eps_weighting(dk.Cosine(15.0, -15.0))(jnp.asarray(logsnr, jnp.float32))
    spanned = math.atan(math.exp(7.5)) - math.atan(math.exp(-7.5))
    np.testing.assert_allclose(found, sech(logsnr / 2) / (2 * spanned), rtol=2e-4)


def test_discrete_cosine_is_sech_where_it_is_not_clipped():
    logsnr = np.linspace(-8.0, 3.0, 45)
    found = eps_weighting(diffkit_ddpm.iddpm_cosine())(jnp.asarray(logsnr, jnp.float32))
    # 999 steps of the angle, each of pi / 2 / 1000 / 1.008; alpha_bar_0 = 0.99984 instead of 1.
    spanned = math.pi / 2 * 0.999 / 1.008
    np.testing.assert_allclose(found, sech(logsnr / 2) / (2 * spanned), rtol=5e-3)


def test_linear_beta_against_finite_differences():
    log_alpha_bar = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))
    logsnr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
    slope = (logsnr[2:] - logsnr[:-2]) / 2 * 999
    with jax.enable_x64(True):
        schedule = diffkit_ddpm.linear_beta()
        found = np.asarray(eps_weighting(schedule)(jnp.asarray(logsnr[1:-1])))
    # A difference over two cells, good to the square of 1 / k.
    np.testing.assert_allclose(found[5:], (2 / -slope)[5:], rtol=1e-2)
    np.testing.assert_allclose(found[100:], (2 / -slope)[100:], rtol=1e-4)
    single = eps_weighting(diffkit_ddpm.linear_beta())(jnp.asarray(logsnr[1:-1], jnp.float32))
    np.testing.assert_allclose(single, found, rtol=1e-4)


class Line(dk.networks.AbstractNetwork):
    """A prediction that is known: 0.5 z + 0.3, whatever it means."""

    scale: Array = eqx.field(default_factory=lambda: jnp.asarray(0.5))

    def __call__(self, z, logsnr, condition=None, *, key=None):
        return self.scale * z + 0.3


@pytest.mark.parametrize("name", ["ddpm", "iddpm", "simple_diffusion"])
def test_presets_minimise_the_plain_error_of_eps(name):
    model = dk.preset(name, shape=(2,), key=jax.random.key(0), network=Line())
    weighting = dk.part("weighting", dk.get("preset", name).weighting, model=model)
    x, eps = jnp.asarray([0.7, -0.4]), jnp.asarray([0.3, 1.1])
    t = jnp.asarray([0.0, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0])
    found = jax.jit(jax.vmap(lambda t: diffusion_term(model, x, t, eps, weighting=weighting)))(t)
    logsnr = np.asarray(jax.jit(jax.vmap(model.schedule))(t), np.float64)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(-s * logsnr)))[:, None] for s in (1, -1))
    z = alpha * np.asarray(x, np.float64) + sigma * np.asarray(eps, np.float64)
    output = 0.5 * z + 0.3
    eps_hat = alpha * output + sigma * z if name == "simple_diffusion" else output
    expected = ((np.asarray(eps, np.float64) - eps_hat) ** 2).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
