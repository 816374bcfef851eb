"""EDM's noise levels: the log-normal schedule, the weighting that it implies, and the rho grid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, truncnorm

import diffkit as dk
import diffkit_edm

MAXIMUM, MINIMUM = -2 * np.log(0.002), -2 * np.log(80)


def curve(schedule, t):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(t, jnp.float32)), np.float64)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"P_mean": -0.4, "P_std": 1.0},
        {"P_mean": 1.0, "P_std": 0.5, "sigma_min": 0.01},
        {"sigma_min": 1.0},  # from the upper half of the distribution only
        {"P_mean": -8.0},
        {"P_mean": -14.0, "P_std": 1.0, "sigma_max": 0.1},  # its far upper tail
    ],
)
def test_quantiles_are_those_of_the_truncated_normal_in_float64(options):
    schedule = diffkit_edm.LogNormal(**options)
    low, high = (
        (np.log(sigma) - schedule.P_mean) / schedule.P_std
        for sigma in (schedule.sigma_min, schedule.sigma_max)
    )
    near_0 = np.float32(10.0) ** -np.arange(1, 12)
    near_1 = 1 - np.float32(2.0) ** -np.arange(1, 25)
    t = np.unique(np.concatenate([near_0, near_1, np.linspace(0, 1, 1001)]).astype(np.float32))
    expected = -2 * truncnorm.ppf(
        t.astype(np.float64), low, high, loc=schedule.P_mean, scale=schedule.P_std
    )
    found = curve(schedule, t)
    if low > 0:  # scipy's quantiles of the upper tail have fewer digits than ours
        tail = norm.sf(high) + (1 - t.astype(np.float64)) * (norm.sf(low) - norm.sf(high))
        expected = -2 * (schedule.P_mean + schedule.P_std * norm.isf(tail))
    np.testing.assert_allclose(found, expected, atol=3e-6, rtol=4e-7)


def test_ends_are_exact_and_the_curve_decreases():
    schedule = diffkit_edm.LogNormal()
    assert schedule(0.0) == jnp.float32(MAXIMUM)
    assert schedule(1.0) == jnp.float32(MINIMUM)
    t = np.linspace(0, 1, 100_001)
    logsnr = curve(schedule, t)
    assert np.all(np.diff(logsnr) < 0)
    # A schedule over the widest range that other parts are tested with.
    wide = diffkit_edm.LogNormal(sigma_min=np.exp(-10.0), sigma_max=np.exp(10.0))
    logsnr = curve(wide, t)
    assert np.all(np.diff(logsnr) < 0)
    assert logsnr[0] == 20
    assert logsnr[-1] == -20


def test_uniform_times_are_edms_training_distribution():
    # ln(sigma) = P_mean + P_std n, of which 1.6e-5 is cut off: distance of the distributions.
    schedule = diffkit_edm.LogNormal()
    t = (np.arange(100_000) + 0.5) / 100_000
    deviations = (-curve(schedule, t) / 2 + 1.2) / 1.2
    assert np.abs(norm.cdf(deviations) - t).max() < 2e-5
    assert deviations.mean() == pytest.approx(0, abs=1e-4)
    assert deviations.std() == pytest.approx(1, abs=1e-3)


def test_inverse_and_slope_at_both_ends():
    schedule = diffkit_edm.LogNormal()
    logsnr = np.concatenate([np.linspace(MINIMUM, MAXIMUM, 201), [12.42, 12.0, -8.7]])
    with jax.enable_x64(True):
        exact = np.asarray(jax.vmap(schedule.inverse)(jnp.asarray(logsnr)))
        there = np.asarray(jax.vmap(schedule)(jnp.asarray(exact)))
    low, high = (np.log([0.002, 80]) + 1.2) / 1.2
    z = (-logsnr / 2 + 1.2) / 1.2
    expected = truncnorm.cdf(z, low, high)
    np.testing.assert_allclose(exact, expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(there, logsnr, atol=1e-9)
    found = np.asarray(jax.vmap(schedule.inverse)(jnp.asarray(logsnr, jnp.float32)))
    # Next to t = 0 the digits of t count, next to 1 float32 has 6e-8.
    np.testing.assert_allclose(found, expected, atol=2.5e-7)
    np.testing.assert_allclose(found[expected < 1e-4], expected[expected < 1e-4], atol=3e-10)
    # -dlogsnr/dt is 2 P_std mass / density.
    t = np.array([0.0, 1e-5, 0.3, 0.9, 1.0], np.float32)
    z = (-curve(schedule, t) / 2 + 1.2) / 1.2
    slope = -2.4 * (norm.cdf(high) - norm.cdf(low)) / norm.pdf(z)
    np.testing.assert_allclose(jax.vmap(jax.grad(schedule))(t), slope, rtol=2e-5)


def test_slope_can_be_differentiated_again():
    # With q the density: d2 logsnr/dt2 = -2 P_std mass^2 z / q^2.
    schedule = diffkit_edm.LogNormal()
    z = float((-schedule(0.9) / 2 + 1.2) / 1.2)
    second = jax.grad(jax.grad(schedule))(0.9)
    assert float(second) == pytest.approx(-2.4 * z / norm.pdf(z) ** 2, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("P_mean", "P_std", "data_std"), [(-1.2, 1.2, 0.5), (-0.4, 1.0, 0.5), (-1.2, 1.2, 0.25)]
)
def test_weighting_is_the_closed_form(P_mean, P_std, data_std):
    # golden/implied_weightings.md: N(logsnr; 2.4, 2.4^2) (exp(-logsnr) + 0.5^2), up to a constant.
    weighting = diffkit_edm.edm(P_mean=P_mean, P_std=P_std, sigma_data=data_std)
    logsnr = np.linspace(MINIMUM, MAXIMUM, 401)
    expected = norm.pdf(logsnr, -2 * P_mean, 2 * P_std) * (np.exp(-logsnr) + data_std**2)
    with jax.enable_x64(True):
        ratio = np.asarray(jax.vmap(weighting)(jnp.asarray(logsnr))) / expected
    np.testing.assert_allclose(ratio, ratio[200], rtol=1e-7)
    # In float32 t, next to 1, has 6e-8 of digits, of which the noise end is made.
    ratio32 = np.asarray(jax.vmap(weighting)(jnp.asarray(logsnr, jnp.float32))) / expected
    np.testing.assert_allclose(ratio32[logsnr > -6], ratio[200], rtol=1e-3)
    np.testing.assert_allclose(ratio32, ratio[200], rtol=0.03)


def test_weighting_covers_the_range_of_any_schedule():
    weighting = diffkit_edm.edm(logsnr_range=(15.0, -11.0))
    logsnr = np.array([15.0, 13.3, 0.0, -6.0])
    expected = norm.pdf(logsnr, 2.4, 2.4) * (np.exp(-logsnr) + 0.25)
    found = np.asarray(jax.vmap(weighting)(jnp.asarray(logsnr, jnp.float32)))
    np.testing.assert_allclose(found / expected, (found / expected)[2], rtol=1e-3)
    with pytest.raises(ValueError, match="sigma_min must be within 12 standard deviations"):
        diffkit_edm.edm(logsnr_range=(40.0, -5.0))


def test_loss_is_edms():
    # Equation 2 with lambda(sigma) = (sigma^2 + s^2) / (sigma s)^2, per time: the weighting and the slope
    # of the schedule make a constant of it.
    network = dk.networks.MLP((3,), width=8, depth=1, logsnr_range=(12.43, -8.77), key=jax.random.key(0))
    network = jax.tree.map(lambda a: a + 0.1 if isinstance(a, jax.Array) else a, network)
    denoiser = dk.Denoiser(network, diffkit_edm.F(data_std=0.5), dk.VarianceExploding(), data_std=0.5)
    model = dk.DiffusionModel(denoiser, diffkit_edm.LogNormal(), dk.GaussianDecoder(), (3,))
    t = jnp.asarray([1e-4, 0.1, 0.5, 0.9, 0.999])
    x, eps = (jnp.tile(jnp.asarray(e), (5, 1)) for e in ([0.3, -0.6, 0.1], [1.0, 0.2, -1.4]))
    weighting = dk.part("weighting", "edm", model=model)

    loss = eqx.filter_jit(dk.DiffusionLoss(weighting).at)(model, x, t, eps)

    @jax.jit
    @jax.vmap
    def measure(t, x, eps):
        logsnr = model.schedule(t)
        z = x + jnp.exp(-logsnr / 2) * eps
        return jnp.sum(jnp.square(denoiser(z, logsnr).x - x)), jnp.exp(-logsnr / 2)

    error, sigma = map(np.asarray, measure(t, x, eps))
    published = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * error
    np.testing.assert_allclose(loss, published, rtol=2e-3)


@pytest.mark.parametrize("rho", [1.0, 7.0, 40.0])
@pytest.mark.parametrize("steps", [1, 18, 640])
def test_grid_is_equation_5(rho, steps):
    schedule = diffkit_edm.LogNormal()
    logsnr = np.asarray(diffkit_edm.RhoGrid(rho)(schedule, steps), np.float64)
    assert logsnr.shape == (steps + 1,)
    i, N = np.arange(steps + 1), steps + 1
    sigma = (80 ** (1 / rho) + i / (N - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    expected = -2 * np.log(sigma)
    np.testing.assert_allclose(logsnr, expected, atol=4e-6)
    assert logsnr[0] == np.float32(MINIMUM)
    assert logsnr[-1] == np.float32(MAXIMUM)
    # Each of 640 steps keeps its digits: the shortest is 3e-3, next to 12 a float32 is 1e-6 wide.
    assert np.all(np.diff(logsnr) > 0)
    np.testing.assert_allclose(np.diff(logsnr), np.diff(expected), rtol=0, atol=4e-6)


def test_grid_takes_the_ends_of_any_schedule():
    logsnr = np.asarray(diffkit_edm.RhoGrid()(dk.LinearLogSNR(13.3, -10.0), 640))
    assert logsnr[0] == np.float32(-10.0)
    assert logsnr[-1] == np.float32(13.3)
    assert np.all(np.diff(logsnr) > 1e-3)


def test_wrong_arguments_are_refused():
    make = diffkit_edm.LogNormal
    with pytest.raises(ValueError, match="P_mean must be finite, got nan"):
        make(P_mean=float("nan"))
    with pytest.raises(ValueError, match="P_std must be a positive number, got 0"):
        make(P_std=0.0)
    with pytest.raises(ValueError, match=r"sigma_min=80.0, sigma_max=0.002"):
        make(sigma_min=80, sigma_max=0.002)
    with pytest.raises(ValueError, match="sigma_min must be positive and sigma_max finite"):
        make(sigma_min=0.0)
    with pytest.raises(ValueError, match=r"sigma_max must be within 12 .*got 80.0, 55.8 from P_mean"):
        make(P_std=0.1, sigma_min=0.2)
    for rho in (0.5, float("inf")):
        with pytest.raises(ValueError, match=f"rho must be a number of at least 1, got {rho}"):
            diffkit_edm.RhoGrid(rho)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        diffkit_edm.RhoGrid()(make(), 0)
