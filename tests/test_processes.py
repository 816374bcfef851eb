"""Laws of processes, for every registered one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.presets import complete
from diffkit.processes import rescaled_forward_std, rescaled_posterior

LOGSNR = np.array([20.0, 13.3, 5.0, 0.3, -5.0, -20.0])
processes = pytest.mark.parametrize(
    "process", [complete(dk.get("process", n), {}) for n in dk.available("process")]
)


@processes
def test_snr_is_exp_logsnr(process):
    level = jax.vmap(process.at)(jnp.asarray(LOGSNR, jnp.float32))
    alpha, sigma = np.asarray(level.alpha, np.float64), np.asarray(level.sigma, np.float64)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), LOGSNR, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(level.rho, np.exp(-LOGSNR / 2), rtol=2e-6)


def test_variance_preserving_in_float64():
    level = jax.vmap(dk.VariancePreserving().at)(jnp.asarray(LOGSNR, jnp.float32))
    # Both keep their relative precision, where 1 - alpha^2 would have none left.
    np.testing.assert_allclose(level.alpha**2, 1 / (1 + np.exp(-LOGSNR)), rtol=2e-6)
    np.testing.assert_allclose(level.sigma**2, 1 / (1 + np.exp(LOGSNR)), rtol=2e-6)
    np.testing.assert_allclose(
        [dk.VariancePreserving().prior_std(dk.VariancePreserving().at(v)) for v in LOGSNR],
        1.0,
        rtol=2e-6,
    )


def test_variance_exploding_in_float64():
    level = jax.vmap(dk.VarianceExploding().at)(jnp.asarray(LOGSNR, jnp.float32))
    np.testing.assert_array_equal(level.alpha, 1.0)
    np.testing.assert_allclose(level.sigma, np.exp(-LOGSNR / 2), rtol=2e-6)


def bayes_posterior(z_t, x, t, s):
    """q(z_s | z_t, x) by Bayes' rule from q(z_s | x) and q(z_t | z_s), in float64."""
    alpha_t, sigma_t, alpha_s, sigma_s = (float(v) for v in (t.alpha, t.sigma, s.alpha, s.sigma))
    ratio = alpha_t / alpha_s
    transition = sigma_t**2 - ratio**2 * sigma_s**2
    precision = 1 / sigma_s**2 + ratio**2 / transition
    mean = (alpha_s * x / sigma_s**2 + ratio * z_t / transition) / precision
    return mean, precision**-0.5


@processes
@pytest.mark.parametrize(("logsnr_t", "logsnr_s"), [(-5.0, -4.0), (0.0, 3.0), (9.0, 13.3)])
def test_posterior_is_bayes_rule(process, logsnr_t, logsnr_s):
    t, s = process.at(logsnr_t), process.at(logsnr_s)
    x = np.array([0.7, -0.2])
    z_t = float(t.alpha) * x + float(t.sigma) * np.array([1.3, -0.4])
    mean, std = process.posterior(jnp.asarray(z_t, jnp.float32), jnp.asarray(x, jnp.float32), t, s)
    expected_mean, expected_std = bayes_posterior(z_t, x, t, s)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-4, atol=1e-5)
    assert float(std) == pytest.approx(expected_std, rel=1e-4)


@processes
def test_posterior_chains_to_the_marginal(process):
    # z_s = A z_t + B x + std noise with z_t ~ q(z_t | x) must be a draw of q(z_s | x).
    t, s = process.at(-1.0), process.at(2.0)
    one, zero = jnp.ones(1), jnp.zeros(1)
    from_z = float(process.posterior(one, zero, t, s)[0][0])
    from_x, std = (float(v) for v in map(jnp.squeeze, process.posterior(zero, one, t, s)))
    assert from_z * float(t.alpha) + from_x == pytest.approx(float(s.alpha), rel=1e-5)
    variance = from_z**2 * float(t.sigma) ** 2 + std**2
    assert variance == pytest.approx(float(s.sigma) ** 2, rel=1e-5)


@processes
def test_prior_is_the_marginal_of_unit_variance_data(process):
    level = process.at(-3.0)
    expected = np.hypot(float(level.alpha), float(level.sigma))
    assert float(process.prior_std(level)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("logsnr_s", "logsnr_t"), [(13.3, 13.282), (5.0, 4.0), (0.5, -0.5), (-4.0, -5.0), (20.0, -20.0)]
)
def test_forward_step_chains_with_the_posterior(logsnr_s, logsnr_t):
    std = float(rescaled_forward_std(logsnr_s, logsnr_t))
    # Variances add up along the chain, in float64 from the very values that float32 holds.
    s, t = (float(np.float32(value)) for value in (logsnr_s, logsnr_t))
    assert std == pytest.approx(np.sqrt(np.exp(-t) - np.exp(-s)), rel=1e-5)
    # Bayes' rule: q(y_s | y_t, x) is proportional to q(y_s | x) q(y_t | y_s).
    precision = np.exp(s) + std**-2
    x, y_t = 0.7, 1.3
    mean, posterior_std = rescaled_posterior(jnp.asarray(y_t), jnp.asarray(x), logsnr_t, logsnr_s)
    assert float(posterior_std) == pytest.approx(precision**-0.5, rel=1e-5)
    expected = (np.exp(s) * x + y_t / std**2) / precision
    assert float(mean) == pytest.approx(expected, rel=1e-5)
