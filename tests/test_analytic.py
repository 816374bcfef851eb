"""Exact denoisers against conditioning by linear algebra, quadrature and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk

PROCESSES = [dk.VariancePreserving(), dk.VarianceExploding()]
MEAN = np.array([0.7, -0.3])
COV = np.array([[0.5, 0.3], [0.3, 0.4]])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("logsnr", [13.3, 1.0, -5.0])
def test_gaussian_is_conditioning(process, logsnr):
    denoiser = dk.analytic.gaussian(MEAN, COV, process=process)
    level = process.at(logsnr)
    alpha, sigma = float(level.alpha), float(level.sigma)
    z = alpha * np.array([0.4, 0.2]) + sigma * np.array([1.0, -2.0])
    # E[x | z] of jointly Gaussian x and z.
    gain = alpha * COV @ np.linalg.inv(alpha**2 * COV + sigma**2 * np.eye(2))
    expected = MEAN + gain @ (z - alpha * MEAN)
    prediction = denoiser(jnp.asarray(z, jnp.float32), logsnr)
    np.testing.assert_allclose(prediction.x, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(prediction.eps, (z - alpha * expected) / sigma, rtol=1e-3, atol=1e-3)


def mixture_1d(y, rho, weights, means, stds):
    """E[x | y] by the trapezoidal rule on a fine grid, in float64."""
    x = np.linspace(-6, 6, 200_001)
    density = sum(
        w * np.exp(-0.5 * ((x - m) / s) ** 2) / s for w, m, s in zip(weights, means, stds, strict=True)
    )
    joint = density * np.exp(-0.5 * ((y - x) / rho) ** 2)
    return np.trapezoid(x * joint, x) / np.trapezoid(joint, x)


@pytest.mark.parametrize("logsnr", [6.0, 0.5, -4.0])
def test_mixture_is_quadrature(logsnr):
    weights, means, stds = [0.5, 0.2, 0.3], [-1.0, 0.2, 1.5], [0.3, 0.1, 0.5]
    denoiser = dk.analytic.mixture(weights, np.array(means)[:, None], np.square(stds)[:, None, None])
    level = dk.VariancePreserving().at(logsnr)
    for y in (-1.7, 0.1, 0.9):
        found = denoiser(jnp.full((1,), y) * level.alpha, logsnr).x[0]
        expected = mixture_1d(y, np.exp(-logsnr / 2), weights, means, stds)
        assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
def test_score_is_the_gradient_of_the_density(process):
    means = np.array([[0.0, 1.0], [-1.0, 0.5]])
    denoiser = dk.analytic.mixture([1.0, 3.0], means, np.stack([COV, 0.2 * np.eye(2)]), process=process)
    with jax.enable_x64(True):
        exact = dk.analytic.mixture([1.0, 3.0], means, np.stack([COV, 0.2 * np.eye(2)]), process=process)
        z = jnp.asarray([0.3, -0.6], jnp.float64)
        score = jax.grad(exact.log_density)(z, jnp.float64(0.4))
    found = denoiser(jnp.asarray([0.3, -0.6], jnp.float32), 0.4).score
    np.testing.assert_allclose(found, score, rtol=1e-5)


def test_density_of_the_latent_integrates_to_one():
    denoiser = dk.analytic.mixture([0.3, 0.7], np.array([[0.5], [-0.5]]), np.array([[[0.1]], [[0.2]]]))
    z = jnp.linspace(-8.0, 8.0, 4001)
    log_density = jax.vmap(lambda z: denoiser.log_density(z[None], -1.0))(z)
    assert np.trapezoid(np.exp(log_density), z) == pytest.approx(1.0, abs=1e-4)


def test_empirical_is_the_softmax_over_points():
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(20, 1, 2, 2)), rng.uniform(0.5, 2.0, 20)
    denoiser = dk.analytic.empirical(points, weights)
    for logsnr in (13.3, 2.0, -5.0):
        level = dk.VariancePreserving().at(logsnr)
        rho = np.exp(-logsnr / 2)
        y = points[3] + rho * rng.normal(size=(1, 2, 2))
        logits = np.log(weights) - ((y - points) ** 2).sum(axis=(1, 2, 3)) / (2 * rho**2)
        p = np.exp(logits - logits.max())
        expected = (p / p.sum() * points.T).T.sum(axis=0)
        prediction = denoiser(jnp.asarray(y, jnp.float32) * level.alpha, logsnr)
        np.testing.assert_allclose(prediction.x, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("logsnr", [13.3, 0.5, -8.0])
def test_a_condition_chooses_components(process, logsnr):
    means = np.array([[0.0, 1.0], [-1.0, 0.5], [0.8, -0.2]])
    covs, weights = np.stack([COV, 0.2 * np.eye(2), 0.1 * np.eye(2)]), np.array([1.0, 3.0, 2.0])
    whole = dk.analytic.mixture(weights, means, covs, process=process)
    z = jnp.asarray([0.3, -0.6]) * process.at(logsnr).alpha
    # One class, a class of two components, and weights that shift the shares.
    for condition in ([0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.5, 2.0, 0.0]):
        kept = np.flatnonzero(condition)
        part = dk.analytic.mixture((weights * condition)[kept], means[kept], covs[kept], process=process)
        found, expected = whole(z, logsnr, jnp.asarray(condition)), part(z, logsnr)
        np.testing.assert_allclose(found.eps, expected.eps, rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(found.x, expected.x, rtol=2e-5, atol=1e-5)
        densities = [
            whole.log_density(z, logsnr, jnp.asarray(condition)),
            part.log_density(z, logsnr),
        ]
        np.testing.assert_allclose(*densities, rtol=2e-5, atol=1e-5)
    # Zeros are no condition.
    free = whole(z, logsnr)
    np.testing.assert_allclose(whole(z, logsnr, jnp.zeros(3)).eps, free.eps, rtol=1e-5)
    assert float(whole.log_density(z, logsnr, jnp.zeros(3))) == pytest.approx(
        float(whole.log_density(z, logsnr)), rel=1e-5, abs=1e-5
    )


def test_conditions_of_points_and_of_the_wrong_length():
    points = np.random.default_rng(2).normal(size=(6, 1, 2, 2))
    denoiser = dk.analytic.empirical(points, np.arange(1.0, 7.0))
    condition = jnp.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    part = dk.analytic.empirical(points[[1, 4]], [2.0, 5.0])
    z = jnp.full((1, 2, 2), 0.3)
    for logsnr in (3.0, -5.0):
        found, expected = denoiser(z, logsnr, condition), part(z, logsnr)
        np.testing.assert_allclose(found.eps, expected.eps, rtol=1e-4, atol=1e-5)
    alone = denoiser(z, -9.0, jnp.eye(6)[2]).x
    np.testing.assert_allclose(alone, points[2], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"a weight for each of the 6 components, got .*\(2,\)"):
        denoiser(z, 0.0, jnp.ones(2))


def test_bad_distributions_are_refused():
    with pytest.raises(ValueError, match="weights must be positive"):
        dk.analytic.mixture([1.0, 0.0], np.zeros((2, 1)), np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="covs must be symmetric"):
        dk.analytic.gaussian(MEAN, np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="positive semi-definite"):
        dk.analytic.gaussian(MEAN, np.diag([1.0, -1.0]))
