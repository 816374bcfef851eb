"""Laws of parameterizations, for every registered one under every process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.presets import complete

PROCESSES = [complete(dk.get("process", n), {}) for n in dk.available("process")]
PARTS = [complete(dk.get("parameterization", n), {}) for n in dk.available("parameterization")]
everything = pytest.mark.parametrize("part", PARTS)
under = pytest.mark.parametrize("process", PROCESSES)


@everything
@under
@pytest.mark.parametrize("logsnr", [13.3, 2.0, 0.0, -5.0])
def test_to_target_and_back(part, process, logsnr):
    level = process.at(logsnr)
    x = jnp.asarray([0.5, -1.0, 0.1])
    eps = jnp.asarray([-0.3, 1.2, 2.0])
    z = process.perturb(x, eps, level)
    x_back, eps_back = part.solve(part.target(x, eps, level), z, level)
    # What a target says little of (x at low SNR, eps at high) is amplified by the noise ratio.
    rho = float(level.rho)
    np.testing.assert_allclose(x_back, x, atol=2e-6 * (1 + rho))
    np.testing.assert_allclose(eps_back, eps, atol=2e-6 * (1 + 1 / rho))


@everything
@under
@pytest.mark.parametrize("logsnr", [10.0, 0.0, -5.0])
def test_error_factor_is_the_derivative(part, process, logsnr):
    level = process.at(logsnr)
    z = jnp.asarray(0.4)

    def target_of(eps):  # at fixed z
        return part.target((z - level.sigma * eps) / level.alpha, eps, level)

    slope = jax.grad(target_of)(jnp.asarray(0.3))
    assert float(part.error_factor(level)) == pytest.approx(float(slope) ** 2, rel=1e-4)


@pytest.mark.parametrize("logsnr", [13.3, 0.0, -5.0])
def test_against_the_formulas_of_the_literature(logsnr):
    snr = np.exp(logsnr)
    alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    level = dk.VariancePreserving().at(logsnr)
    x, eps = np.array([0.5, -0.7]), np.array([1.5, 0.2])
    args = (jnp.asarray(x, jnp.float32), jnp.asarray(eps, jnp.float32), level)
    np.testing.assert_allclose(dk.Epsilon().target(*args), eps, rtol=1e-6)
    np.testing.assert_allclose(dk.X().target(*args), x, rtol=1e-6)
    # Salimans and Ho 2022: v = alpha eps - sigma x.
    np.testing.assert_allclose(dk.V().target(*args), alpha * eps - sigma * x, rtol=1e-5, atol=1e-6)
    assert float(dk.X().error_factor(level)) == pytest.approx(1 / snr, rel=1e-5)
    # |v - v_hat|^2 = (1 + 1 / SNR) |eps - eps_hat|^2.
    assert float(dk.V().error_factor(level)) == pytest.approx(1 + 1 / snr, rel=1e-5)


@under
@pytest.mark.parametrize("logsnr", [13.3, 1.0, -10.0])
def test_score_is_the_gradient_of_the_log_density(process, logsnr):
    with jax.enable_x64(True):
        denoiser = dk.analytic.mixture(
            [0.3, 0.7],
            np.array([[0.5, -1.0], [-0.2, 0.4]]),
            np.array([[[0.2, 0.0], [0.0, 0.2]], [[0.5, 0.3], [0.3, 0.6]]]),
            process=process,
        )
        level = process.at(logsnr)
        z = level.alpha * jnp.array([0.3, 0.1]) + level.sigma * jnp.array([-1.2, 0.8])
        expected = jax.jit(jax.grad(denoiser.log_density))(z, logsnr)
        prediction = denoiser(z, logsnr)
        np.testing.assert_allclose(prediction.score, expected, rtol=1e-8)
        np.testing.assert_allclose(prediction.as_target(dk.Score()), expected, rtol=1e-8)
        scaled = prediction.as_target(dk.Score(scaled=True))
        np.testing.assert_allclose(scaled, level.sigma * expected, rtol=1e-8)


@under
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("logsnr", [18.2, 13.3, 0.0, -10.0])
def test_solve_of_a_score_keeps_its_digits_in_float32(process, scaled, logsnr):
    level = process.at(logsnr)
    x, eps = jnp.array([0.8, -0.05]), jnp.array([-1.3, 0.002])
    sigma = float(level.sigma)
    target = -np.asarray(eps, np.float64) / (1 if scaled else sigma)
    z = level.alpha * x + level.sigma * eps
    found_x, found_eps = dk.Score(scaled=scaled).solve(jnp.asarray(target, jnp.float32), z, level)
    np.testing.assert_allclose(found_eps, eps, rtol=1e-6)
    # z holds x next to noise of the size of rho.
    np.testing.assert_allclose(found_x, x, atol=5e-7 * (1 + float(level.rho)))


def test_v_is_the_same_target_under_every_process():
    x, eps = jnp.asarray([0.5]), jnp.asarray([1.5])
    targets = [dk.V().target(x, eps, process.at(1.7)) for process in PROCESSES]
    np.testing.assert_allclose(targets, targets[0][None].repeat(len(targets), 0), rtol=1e-6)


def test_prediction_gives_every_form():
    level = dk.VariancePreserving().at(0.5)
    x, eps = jnp.asarray([0.3, -0.2]), jnp.asarray([-1.0, 0.4])
    prediction = dk.Prediction(x, eps, level)
    np.testing.assert_allclose(prediction.v, dk.V().target(x, eps, level))
    np.testing.assert_allclose(prediction.score, -eps / level.sigma)
    np.testing.assert_array_equal(prediction.as_target(dk.X()), x)


@under
def test_one_network_serves_under_every_process(process):
    # The network sees the variance preserving latent, whatever the process.
    network = dk.networks.MLP((3,), width=8, depth=1, key=jax.random.key(0))
    network = jax.tree.map(
        lambda a: a + 0.1 if isinstance(a, jax.Array) else a, network
    )  # so that layers that start at zero matter
    x, eps, logsnr = jnp.asarray([0.1, 0.5, -0.4]), jnp.asarray([1.0, -0.3, 0.2]), 0.7
    here = dk.Denoiser(network, dk.V(), process)
    there = dk.Denoiser(network, dk.V(), dk.VariancePreserving())
    found, expected = (d(d.process.perturb(x, eps, d.process.at(logsnr)), logsnr) for d in (here, there))
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.eps, expected.eps, rtol=1e-4, atol=1e-5)


def test_bad_data_std_is_refused():
    network = dk.networks.MLP((3,), width=8, depth=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="data_std must be a positive number, got 0"):
        dk.Denoiser(network, dk.V(), dk.VariancePreserving(), data_std=0.0)
