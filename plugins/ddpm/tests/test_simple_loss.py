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
        prediction = self.scale * z + 0.3
        return jnp.tile(prediction, self.outputs)


@pytest.mark.parametrize("name", ["ddpm", "iddpm", "simple_diffusion"])
def test_presets_minimise_the_plain_error_of_eps(name):
    network = Line(outputs=2 if name == "iddpm" else 1)
    model = dk.preset(name, network=network).model(shape=(2,), key=jax.random.key(0))
    weighting = dk.part("weighting", dk.get("preset", name).weighting, model=model)
    x, eps = (jnp.tile(jnp.asarray(each), (7, 1)) for each in ([0.7, -0.4], [0.3, 1.1]))
    t = jnp.asarray([0.0, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0])
    found = eqx.filter_jit(dk.DiffusionLoss(weighting, extra=False).at)(model, x, t, eps)
    logsnr = np.asarray(jax.jit(jax.vmap(model.schedule))(t), np.float64)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(-s * logsnr)))[:, None] for s in (1, -1))
    z = alpha * np.asarray(x, np.float64) + sigma * np.asarray(eps, np.float64)
    output = 0.5 * z + 0.3
    eps_hat = alpha * output + sigma * z if name == "simple_diffusion" else output
    expected = ((np.asarray(eps, np.float64) - eps_hat) ** 2).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


class Fixed(dk.AbstractTimeSampler):
    """One time for each example."""

    t: tuple[float, ...] = eqx.field(static=True)

    def __call__(self, key, batch_size):
        assert batch_size == len(self.t)
        return jnp.asarray(self.t), jnp.ones(batch_size)

    def density(self, t):
        return jnp.ones_like(t)


class Watched(dk.networks.AbstractNetwork):
    """The same prediction; it writes down what it is given."""

    seen: list = eqx.field(static=True)

    def __call__(self, z, logsnr, condition=None, *, key=None):
        jax.debug.callback(lambda *at: self.seen.append(at), z, logsnr)
        return 0.5 * z + 0.3


def test_in_discrete_time_the_loss_is_l_simple_at_every_level():
    # DDPM equation 14, for the levels that its chain goes to from the one below: 1 to 999 of 999.
    levels = [1, 2, 3, 10, 300, 700, 998, 999]
    log_alpha_bar = np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))[levels]
    alpha, sigma = np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))
    x = np.random.default_rng(0).uniform(-1, 1, (len(levels), 2))
    seen = []
    with jax.enable_x64(True):
        model = dk.preset("ddpm", decoder="gaussian", network=Watched(seen)).model(
            shape=(2,), levels=None, key=jax.random.key(0)
        )
        loss = eqx.filter_jit(dk.denoising_loss)(
            model,
            jnp.asarray(x),
            key=jax.random.key(1),
            weighting=dk.part("weighting", dk.get("preset", "ddpm").weighting, model=model),
            time_sampler=Fixed(tuple((k - 0.5) / 999 for k in levels)),
            steps=999,
            inference=True,
        )
        loss = np.asarray(loss)
        jax.effects_barrier()
        z, logsnr = (np.array(part) for part in zip(*seen, strict=True))
        order = np.argsort(-logsnr)
        z, logsnr = z[order], logsnr[order]
        # The levels are those of the chain, and the noise is what is left of z.
        np.testing.assert_allclose(logsnr, 2 * np.log(alpha / sigma), rtol=1e-6)
        eps = (z - alpha[:, None] * x) / sigma[:, None]
        assert 0.3 < eps.std() < 2
        eps_hat = jax.jit(jax.vmap(lambda z, logsnr: model.denoiser(z, logsnr).eps))(z, logsnr)
    squares = ((eps - np.asarray(eps_hat)) ** 2).sum(axis=1)
    np.testing.assert_allclose(loss / squares, 1.0, rtol=1e-5)
