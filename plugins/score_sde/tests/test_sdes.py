"""Process and schedules are those of the paper's SDEs, at both ends of logsnr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import diffkit as dk
from diffkit_score_sde import SubVP, SubVPBeta, VPBeta

BETA_MIN, BETA_MAX = 0.1, 20.0
SIGMA_MIN, SIGMA_MAX = 0.01, 50.0
SDES = {
    "vp": (VPBeta(), dk.VariancePreserving()),
    "sub_vp": (SubVPBeta(), SubVP()),
    "ve": (
        dk.LinearLogSNR(-2 * np.log(SIGMA_MIN), -2 * np.log(SIGMA_MAX)),
        dk.VarianceExploding(),
    ),
}
each_sde = pytest.mark.parametrize("name", SDES)


def beta(t):
    """The paper's beta(t), equation 32."""
    return BETA_MIN + t * (BETA_MAX - BETA_MIN)


def integral(t):
    """Of beta from 0 to t, by quadrature in float64."""
    return np.array([scipy.integrate.quad(beta, 0.0, value, epsabs=0)[0] for value in t])


def their_time(name, t):
    t_min = getattr(SDES[name][0], "t_min", 0.0)
    return t_min + np.asarray(t, np.float64) * (1 - t_min)


# Time and drift of the SDE, dz = drift z dt + g dw (equations 9, 11 and 12), in the paper's time.
def drift(name, t):
    return 0.0 * t if name == "ve" else -0.5 * beta(t)


def g_squared(name, t):
    if name == "ve":  # d sigma^2 / dt of the geometric sigma
        sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** t
        return 2 * sigma**2 * np.log(SIGMA_MAX / SIGMA_MIN)
    b = BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2
    return beta(t) * (1.0 if name == "vp" else -jnp.expm1(-2 * b))


@pytest.mark.parametrize("t_min", [1e-5, 1e-3])
@pytest.mark.parametrize("name", ["vp", "sub_vp"])
def test_logsnr_is_that_of_the_kernel_in_float64(name, t_min):
    schedule = {"vp": VPBeta, "sub_vp": SubVPBeta}[name](t_min=t_min)
    t = np.concatenate([[0.0], np.geomspace(1e-6, 0.02, 40), np.linspace(0.03, 1.0, 40)])
    t = t.astype(np.float32)
    b = integral(t_min + t.astype(np.float64) * (1 - t_min))
    # Equation 29: alpha = exp(-B / 2), and sigma^2 = 1 - exp(-B), or sigma = 1 - exp(-B).
    sigma = np.sqrt(-np.expm1(-b)) if name == "vp" else -np.expm1(-b)
    expected = -b - 2 * np.log(sigma)
    found = jax.vmap(schedule)(jnp.asarray(t))
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=2e-6)


def test_the_ranges_that_the_pages_state():
    for schedule, ends in (
        (VPBeta(), (13.81, -10.05)),
        (VPBeta(t_min=1e-3), (9.12, -10.05)),
        (SubVPBeta(), (18.23, -10.05)),
        (SubVPBeta(t_min=1e-5), (27.63, -10.05)),
    ):
        np.testing.assert_allclose(schedule.endpoints, ends, atol=0.005)


@pytest.mark.parametrize("schedule", [VPBeta(), SubVPBeta(), SubVPBeta(t_min=1e-5), VPBeta(0.0, 5)])
def test_inverse_is_exact_and_keeps_its_digits(schedule):
    with jax.enable_x64(True):
        t = jnp.concatenate([jnp.geomspace(1e-6, 0.02, 40), jnp.linspace(0.03, 1.0, 40)])
        logsnr, slope = jax.jit(jax.vmap(jax.value_and_grad(schedule)))(t)
        np.testing.assert_allclose(jax.jit(jax.vmap(schedule.inverse))(logsnr), t, rtol=1e-9)
    t, logsnr, slope = np.asarray(t), np.asarray(logsnr), np.asarray(slope)
    # In float32 a time is known to the rounding of logsnr over the slope, and to its own.
    there = np.asarray(jax.jit(jax.vmap(schedule.inverse))(jnp.float32(logsnr)))
    assert np.all(np.abs(there - t) < 3e-7 * np.abs(logsnr / slope) + 3e-7 * t + 1e-11)
    assert np.all(np.diff(jax.jit(jax.vmap(schedule))(jnp.linspace(0.0, 1.0, 10_001))) < 0)


def test_vp_beta_is_the_limit_of_the_linear_schedule_of_ddpm():
    # beta from 1e-4 to 0.02 in 1000 steps (Ho et al. 2020): equal up to the size of a step.
    alpha2 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ddpm = np.log(alpha2) - np.log1p(-alpha2)
    ours = jax.vmap(VPBeta(t_min=1e-9))(jnp.arange(1, 1001) / 1000)
    assert np.abs(ours - ddpm)[100:].max() < 0.11
    assert np.abs(ours - ddpm)[100:500].max() < 0.03


def test_schedules_refuse_what_means_nothing():
    with pytest.raises(ValueError, match=r"0 <= beta_min <= beta_max .* got beta_min=3.0"):
        VPBeta(beta_min=3.0, beta_max=2.0)
    with pytest.raises(ValueError, match=r"beta_max > 0, got beta_min=0.0, beta_max=0.0"):
        SubVPBeta(beta_min=0.0, beta_max=0.0)
    with pytest.raises(ValueError, match=r"must be finite .* beta_max=nan"):
        VPBeta(beta_max=float("nan"))
    with pytest.raises(ValueError, match=r"t_min must be in \(0, 1\), .* got 0.0"):
        VPBeta(t_min=0.0)


def test_sub_vp_keeps_both_factors_to_their_last_digits():
    # From noise to data: B from 25 to 1e-9. logsnr itself is rounded to float32, hence 2e-6.
    b = np.geomspace(25.0, 1e-9, 200)
    alpha, sigma = np.exp(-b / 2), -np.expm1(-b)
    logsnr = 2 * np.log(alpha / sigma)
    assert logsnr[0] < -20
    assert logsnr[-1] > 40
    level = jax.vmap(SubVP().at)(jnp.asarray(logsnr, jnp.float32))
    np.testing.assert_allclose(level.alpha, alpha, rtol=2e-6)
    np.testing.assert_allclose(level.sigma, sigma, rtol=2e-6)
    with jax.enable_x64(True):
        level = jax.vmap(SubVP().at)(jnp.asarray(logsnr))
        np.testing.assert_allclose(level.alpha, alpha, rtol=1e-13)
        np.testing.assert_allclose(level.sigma, sigma, rtol=1e-13)
    far = SubVP().at(-200.0)  # rho overflows
    assert (float(far.alpha), float(far.sigma)) == (0.0, 1.0)


@each_sde
def test_schedule_and_process_solve_the_sde(name):
    # Mean and variance of dz = f z dt + g dw: alpha' = f alpha, (sigma^2)' = 2 f sigma^2 + g^2.
    schedule, process = SDES[name]
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 1.0, 41)
        theirs = jnp.asarray(their_time(name, t))
        scale = 1 - their_time(name, 0.0)  # dt of theirs by dt of ours

        def moments(t):
            level = process.at(schedule(t))
            return level.alpha, level.sigma**2

        (alpha, variance), (d_alpha, d_variance) = jax.jit(
            jax.vmap(lambda t: jax.jvp(moments, (t,), (jnp.ones_like(t),)))
        )(t)
        f, g2 = drift(name, theirs), g_squared(name, theirs)
        np.testing.assert_allclose(d_alpha, scale * f * alpha, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(d_variance, scale * (2 * f * variance + g2), rtol=1e-9)


@each_sde
def test_likelihood_weighting_is_the_bound(name):
    # Song et al. 2021b (arXiv 2101.09258): 1/2 E_t[g(t)^2 |score error|^2] is the diffusion term.
    schedule, process = SDES[name]
    with jax.enable_x64(True):
        t_min = their_time(name, 0.0)

        def factor(logsnr):
            return 0.5 * g_squared(name, t_min + schedule.inverse(logsnr) * (1 - t_min))

        weighting = dk.weightings.implied_weighting(
            parameterization=dk.Score(), schedule=schedule, process=process, factor=factor
        )
        maximum, minimum = schedule.endpoints
        logsnr = jnp.linspace(maximum, minimum, 31)[1:-1]
        # Their mean over [t_min, 1] is an integral over a shorter interval.
        w = jax.jit(jax.vmap(weighting))(logsnr) * (1 - t_min)
        np.testing.assert_allclose(w, jax.vmap(dk.ELBO())(logsnr), rtol=1e-7)
