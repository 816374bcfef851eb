"""The straight path: process, schedule, velocity, and logit-normal times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import diffkit as dk
import diffkit_flow

RANGES = [(13.3, -5.0), (13.3, -10.0), (20.0, -20.0)]


def curve(schedule, t):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(t, jnp.float32)), np.float64)


@pytest.mark.parametrize("logsnr", [20.0, 13.3, 1.0, 0.0, -10.0, -20.0])
def test_process_is_the_straight_line(logsnr):
    level = diffkit_flow.Straight().at(logsnr)
    rho = np.exp(-np.float64(logsnr) / 2)
    assert float(level.alpha) == pytest.approx(1 / (1 + rho), rel=1e-6)
    assert float(level.sigma) == pytest.approx(rho / (1 + rho), rel=2e-6)
    assert float(level.alpha + level.sigma) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("ends", RANGES)
def test_schedule_is_the_line_in_float64(ends):
    schedule = diffkit_flow.StraightLine(*ends)
    near = 2.0 ** -np.arange(2, 25)
    t = np.unique(np.concatenate([near, 1 - near, np.linspace(0, 1, 20_001)]).astype(np.float32))
    # The straight path's own time between the times of the endpoints, and 1 minus it.
    share = t.astype(np.float64)
    noise = (1 - share) / (1 + np.exp(ends[0] / 2)) + share / (1 + np.exp(ends[1] / 2))
    data = (1 - share) / (1 + np.exp(-ends[0] / 2)) + share / (1 + np.exp(-ends[1] / 2))
    found = curve(schedule, t)
    np.testing.assert_allclose(found, 2 * np.log(data / noise), atol=3e-6, rtol=0)
    assert found[0] == np.float32(ends[0])
    assert found[-1] == np.float32(ends[1])
    assert np.all(np.diff(found[np.isin(t, np.linspace(0, 1, 20_001, dtype=np.float32))]) < 0)
    # Under the process `straight` the noise is even in time.
    sigma = jax.vmap(lambda logsnr: diffkit_flow.Straight().at(logsnr).sigma)(
        jnp.asarray(found, jnp.float32)
    )
    np.testing.assert_allclose(sigma, noise, rtol=3e-6)


@pytest.mark.parametrize("ends", RANGES)
def test_inverse_and_slope_at_both_ends(ends):
    schedule = diffkit_flow.StraightLine(*ends)
    logsnr = np.linspace(ends[1], ends[0], 301).astype(np.float32)
    t = np.asarray(jax.vmap(schedule.inverse)(jnp.asarray(logsnr)), np.float64)
    exact = logsnr.astype(np.float64)
    first, last = 1 / (1 + np.exp(ends[0] / 2)), 1 / (1 + np.exp(ends[1] / 2))
    noise = 1 / (1 + np.exp(exact / 2))
    expected = (noise - first) / (last - first)
    np.testing.assert_allclose(t, expected, rtol=1e-6, atol=3e-10)
    # dlogsnr/dtau = -2 / (tau (1 - tau)).
    slope = jax.vmap(jax.grad(schedule))(jnp.asarray([0.0, 0.3, 0.5, 0.8, 1.0]))
    tau = first + np.array([0.0, 0.3, 0.5, 0.8, 1.0]) * (last - first)
    np.testing.assert_allclose(slope, -2 * (last - first) / (tau * (1 - tau)), rtol=1e-5)


@pytest.mark.parametrize("process", [diffkit_flow.Straight(), dk.VariancePreserving()])
@pytest.mark.parametrize("logsnr", [13.3, 0.7, -10.0])
def test_velocity_is_the_slope_of_the_path(process, logsnr):
    velocity, level = diffkit_flow.Velocity(), process.at(logsnr)
    x, eps = jnp.asarray([0.5, -0.7]), jnp.asarray([1.5, 0.2])
    target = velocity.target(x, eps, level)
    np.testing.assert_allclose(target, eps - x, rtol=1e-6)
    rho = np.exp(-logsnr / 2)
    # d target / d eps at fixed z: x = (z - sigma eps) / alpha falls by rho.
    assert float(velocity.error_factor(level)) == pytest.approx((1 + rho) ** 2, rel=1e-5)
    ratio = velocity.error_factor(level) / dk.V().error_factor(level)
    assert 1 <= float(ratio) * (1 + 1e-6) <= 2 * (1 + 1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.6), (1.0, 2.0)])
def test_times_follow_their_density(mean, std):
    times = diffkit_flow.LogitNormal(mean=mean, std=std)
    t, importance = times(jax.random.key(3), 20_000)
    t, importance = np.asarray(t, np.float64), np.asarray(importance, np.float64)

    # Independent: P(t <= u) = Phi((logit u - mean) / std), and its derivative.
    def cdf(u):
        return stats.norm.cdf((np.log(u) - np.log1p(-u) - mean) / std)

    assert stats.kstest(t, cdf).pvalue > 0.01
    grid = np.linspace(0.01, 0.99, 99)
    slope = (cdf(grid + 1e-6) - cdf(grid - 1e-6)) / 2e-6
    found = jax.vmap(times.density)(jnp.asarray(grid, jnp.float32))
    np.testing.assert_allclose(found, slope, rtol=2e-5, atol=1e-6)
    # The importance is 1 / density: over the draws between 0.05 and 0.95 its mean is their length.
    inside = (t > 0.05) & (t < 0.95)
    np.testing.assert_allclose(
        importance[inside] * jax.vmap(times.density)(jnp.asarray(t[inside], jnp.float32)),
        1,
        rtol=2e-4,
    )
    assert np.mean(importance * inside) == pytest.approx(0.9, abs=0.05)


def test_density_integrates_to_one_and_ends_at_zero():
    times = diffkit_flow.LogitNormal()
    with jax.enable_x64(True):
        density = jax.jit(times.density)
        total, _ = integrate.quad(lambda u: float(density(u)), 0, 1)
    assert total == pytest.approx(1, abs=1e-8)
    for t in (0.0, 1.0, -1e-10, 1 + 1e-7):
        assert float(times.density(t)) < 1e-30


@pytest.mark.parametrize("mean", [0.0, 40.0, -200.0])
def test_draws_are_never_exactly_0_or_1(mean):
    t, importance = diffkit_flow.LogitNormal(mean=mean, std=20.0)(jax.random.key(0), 4000)
    assert t.dtype == jnp.float32
    assert float(t.min()) > 0
    assert float(t.max()) < 1
    assert np.all(np.isfinite(importance))
    assert t.min() < 1e-30 or t.max() > 1 - 1e-7  # the limits were met


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="logsnr_max must be finite and greater"):
        diffkit_flow.StraightLine(-5.0, 13.3)
    with pytest.raises(ValueError, match="mean must be finite, got inf"):
        diffkit_flow.LogitNormal(mean=float("inf"))
    with pytest.raises(ValueError, match="std must be a positive number, got 0"):
        diffkit_flow.LogitNormal(std=0.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        diffkit_flow.LogitNormal()(jax.random.key(0), 0)


def test_default_endpoint_follows_the_levels():
    assert diffkit_flow.StraightLine(levels=256).logsnr_max == pytest.approx(13.3)
    assert diffkit_flow.StraightLine(levels=512).logsnr_max == pytest.approx(13.3 + 2 * np.log(2))
