"""The discrete schedules: the published levels, the curve between them, and its inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

import diffkit as dk
import diffkit_ddpm


def chain(name, steps):
    """The variances as the papers define them, one at a time."""
    if name == "linear_beta":
        return [1e-4 + (0.02 - 1e-4) * k / (steps - 1) for k in range(steps)]

    def f(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    return [min(1 - f((k + 1) / steps) / f(k / steps), 0.999) for k in range(steps)]


def levels(name, steps=1000):
    """log SNR of each level, from the product in float64."""
    alpha_bar, found = 1.0, []
    for beta in chain(name, steps):
        alpha_bar *= 1 - beta
        found.append(np.log(alpha_bar / (1 - alpha_bar)))
    return np.array(found)


SCHEDULES = ("linear_beta", "iddpm_cosine")


@pytest.fixture(scope="module")
def curves():
    """By name: the schedule, and on 10,000 even times its values and slopes, and its inverse there."""

    def make(name):
        schedule = dk.get("schedule", name)()
        t = jnp.linspace(0.0, 1.0, 10_000)

        @jax.jit
        def evaluate(t):
            logsnr = jax.vmap(schedule)(t)
            return logsnr, jax.vmap(jax.grad(schedule))(t), jax.vmap(schedule.inverse)(logsnr)

        return schedule, np.asarray(t), *map(np.asarray, evaluate(t))

    return {name: make(name) for name in SCHEDULES}


@pytest.mark.parametrize(
    ("name", "first", "last"),
    # The first step's variance is 1 - alpha_bar; the last SNR is from table 1 of Lin et al. 2023
    # (arXiv 2305.08891), which was computed in float32.
    [("linear_beta", 1e-4, 4.035993e-05), ("iddpm_cosine", 4.128422e-05, 2.428735e-09)],
)
def test_published_ends(name, first, last):
    with jax.enable_x64(True):
        start, end = (float(value) for value in jax.jit(lambda s: s.endpoints)(dk.get("schedule", name)()))
    assert 1 / (1 + np.exp(start)) == pytest.approx(first, rel=1e-6)
    assert np.exp(end) == pytest.approx(last, rel=2e-5)
    if name == "linear_beta":
        assert 1 / (1 + np.exp(-end)) == pytest.approx(4.036e-5, rel=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_those_of_the_chain(name, curves):
    schedule = curves[name][0]
    expected = levels(name)
    t = np.arange(1000) / 999
    found = jax.jit(jax.vmap(schedule))(jnp.asarray(t, jnp.float32))
    # A time in float32 is exact to 6e-8; the slope is at most that between two levels.
    steepest = np.abs(np.diff(expected, prepend=expected[0], append=expected[-1])) * 999
    slope = np.maximum(steepest[1:], steepest[:-1])
    assert np.all(np.abs(found - expected) < 1e-6 * np.abs(expected) + 1e-7 * slope)
    np.testing.assert_allclose(schedule.endpoints, expected[[0, -1]], rtol=1e-7)
    with jax.enable_x64(True):
        exact = jax.jit(jax.vmap(dk.get("schedule", name)()))(jnp.asarray(t))
    np.testing.assert_allclose(exact, expected, rtol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_strictly_decreasing_and_inverted_in_float32(name, curves):
    _, t, logsnr, slope, back = curves[name]
    assert np.all(np.isfinite(logsnr))
    assert np.all(np.diff(logsnr) < 0)
    assert np.all(slope < 0)
    # A few units in the last place of t = 1, wherever on the curve.
    np.testing.assert_allclose(back, t, rtol=0, atol=2.5e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_derivative_of_the_inverse(name, curves):
    schedule, t, logsnr, _, _ = curves[name]
    at = np.array([50, 5000, 9990])
    derivative = jax.jit(jax.vmap(jax.grad(schedule.inverse)))(jnp.asarray(logsnr[at]))
    chord = (t[at + 1] - t[at - 1]) / (logsnr[at + 1] - logsnr[at - 1])
    np.testing.assert_allclose(derivative, chord, rtol=1e-2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_between_levels_stands_the_monotone_cubic(name):
    expected = PchipInterpolator(np.arange(50), levels(name, 50))
    position = np.linspace(0.0, 49.0, 1001)
    with jax.enable_x64(True):
        schedule = dk.get("schedule", name)(steps=50)
        found, slope = jax.jit(jax.vmap(jax.value_and_grad(schedule)))(jnp.asarray(position / 49))
        found, slope = np.asarray(found), np.asarray(slope)
    np.testing.assert_allclose(found, expected(position), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slope, 49 * expected.derivative()(position), rtol=1e-6)


def test_between_levels_the_cosine_is_the_continuous_one():
    schedule = diffkit_ddpm.iddpm_cosine()
    k = np.arange(20, 990) + 0.5
    angle = np.pi / 2 * ((k + 1) / 1000 + 0.008) / 1.008
    alpha_bar = np.cos(angle) ** 2 / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2
    expected = np.log(alpha_bar) - np.log1p(-alpha_bar)
    found = jax.jit(jax.vmap(schedule))(jnp.asarray(k / 999, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_neither_trained_nor_averaged():
    schedule = diffkit_ddpm.linear_beta(steps=20)
    arrays = [leaf for leaf in jax.tree.leaves(schedule) if isinstance(leaf, jax.Array)]
    assert len(arrays) == 1
    assert not any(jax.tree.leaves(dk.trainable(schedule)))
    for function in (lambda s: s(0.31), lambda s: s.inverse(1.0)):
        for leaf in jax.tree.leaves(jax.grad(function)(schedule)):
            np.testing.assert_array_equal(leaf, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_any_chain_is_monotone_and_inverted(seed):
    rng = np.random.default_rng(seed)
    # Neighbouring steps of very different size, at the ends too.
    betas = np.exp(rng.uniform(np.log(1e-3), np.log(0.999), 12))
    with jax.enable_x64(True):
        schedule = diffkit_ddpm.DiscreteBetas(betas)

        @jax.jit
        @jax.vmap
        def evaluate(t):
            logsnr, slope = jax.value_and_grad(schedule)(t)
            return logsnr, slope, schedule(schedule.inverse(logsnr))

        logsnr, slope, back = map(np.asarray, evaluate(jnp.linspace(0.0, 1.0, 2001)))
    assert np.all(np.diff(logsnr) < 0)
    assert np.all(slope < 0)
    np.testing.assert_allclose(back, logsnr, atol=1e-4)


def test_two_levels_are_a_straight_line():
    schedule = diffkit_ddpm.DiscreteBetas(np.array([0.5, 0.5]))
    # alpha_bar is 1/2, then 1/4: log SNR is 0, then -log 3.
    found = jax.jit(jax.vmap(schedule))(jnp.asarray([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(found, -np.log(3) * np.array([0, 0.25, 1]), atol=1e-7)
    assert float(schedule.inverse(-0.5 * np.log(3))) == pytest.approx(0.5, abs=1e-6)


def test_options_are_those_of_the_papers():
    with jax.enable_x64(True):
        linear = diffkit_ddpm.linear_beta(steps=3, beta_start=0.1, beta_end=0.5)
        cosine = diffkit_ddpm.iddpm_cosine(steps=2, offset=0.0)
        found = [*linear.cubics.value[:, 0], *cosine.cubics.value[:, 0]]
    # 0.9, 0.9 * 0.7, 0.9 * 0.7 * 0.5; cos^2(pi / 4) = 1/2, then times 1 - 0.999.
    alpha_bar = np.array([0.9, 0.63, 0.315, 0.5, 0.0005])
    np.testing.assert_allclose(found, np.log(alpha_bar / (1 - alpha_bar)), atol=1e-12)


def test_wrong_options_are_refused():
    for name in SCHEDULES:
        with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
            dk.get("schedule", name)(steps=1)
    with pytest.raises(ValueError, match=r"beta_end must be in \(0, 1\), got 1.5"):
        diffkit_ddpm.linear_beta(beta_end=1.5)
    with pytest.raises(ValueError, match=r"beta_start must be in \(0, 1\), got 0.0"):
        diffkit_ddpm.linear_beta(beta_start=0.0)
    with pytest.raises(ValueError, match=r"offset must be a number of at least 0, got -0\.1"):
        diffkit_ddpm.iddpm_cosine(offset=-0.1)
    with pytest.raises(ValueError, match=r"betas must be in \(0, 1\), got values from 0.5 to 1.0"):
        diffkit_ddpm.DiscreteBetas(np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="betas must have at least 2 entries, got 1"):
        diffkit_ddpm.DiscreteBetas(np.array([0.5]))
