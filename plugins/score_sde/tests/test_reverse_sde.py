"""The stochastic samplers against the exact recursion of mean and variance, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit_score_sde import EulerMaruyama, PredictorCorrector

# The target and the range of rho of the problems with a known answer: N(m, s^2), from 80 to 0.002.
MEAN, STD = np.array([0.7, -0.3]), 0.5
ENDS = (2 * np.log(500), -2 * np.log(80))


def recursion(steps, *, corrector=0.0, correctors=0, mean=0.0, ends=ENDS):
    """Mean (a factor of m) and variance that the paper's algorithms end with, and the exact variance.

    In float64, in sigma = rho, from the prior: on a Gaussian every step is affine in y.
    """
    sigma2 = np.exp(-np.linspace(ends[1], ends[0], steps + 1))
    variance = 1 + sigma2[0]
    for t, s in itertools.pairwise(sigma2):
        total = STD**2 + t  # score(y) = -(y - m) / total
        a = (s / t) ** corrector
        for _ in range(correctors):
            kept = 1 - t * (1 - a) / total
            mean, variance = kept * mean + 1 - kept, kept**2 * variance + t * (1 - a**2)
        kept = 1 - (t - s) / total
        mean, variance = kept * mean + 1 - kept, kept**2 * variance + t - s
    return mean, variance


SAMPLERS = {
    "euler_maruyama": (EulerMaruyama(), {}),
    "predictor_corrector": (PredictorCorrector(), {"corrector": 1.0, "correctors": 1}),
    "two_of_3.09": (
        PredictorCorrector(corrector=3.09, corrector_steps=2),
        {"corrector": 3.09, "correctors": 2},
    ),
}
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


def draw(sampler, count, steps, process: dk.AbstractProcess = dk.VarianceExploding()):
    denoiser = dk.analytic.gaussian(MEAN, STD**2 * np.eye(2), process=process)
    decoder = dk.get("decoder", "gaussian")()
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(*ENDS), decoder, (2,))
    return np.asarray(dk.sample(model, sampler, count, key=jax.random.key(0), steps=steps))


@each_sampler
def test_the_bias_of_the_recursion_falls_at_order_one(name):
    counts = np.array([250, 500, 1000, 2000, 4000])
    exact = STD**2 + np.exp(-ENDS[0])
    bias = [abs(recursion(n, **SAMPLERS[name][1])[1] - exact) for n in counts]
    order = -np.polyfit(np.log(counts), np.log(bias), 1)[0]
    assert order == pytest.approx(SAMPLERS[name][0].order, abs=0.1)


def distance(mean, std):
    """Wasserstein's of order 2 from the data, a coordinate."""
    return np.sqrt(np.mean((mean - MEAN) ** 2 + (std - np.hypot(STD, np.exp(-ENDS[0] / 2))) ** 2))


def ddim_distance(logsnr):
    """That of DDIM, whose step multiplies y - m by (s^2 + rho rho') / (s^2 + rho^2)."""
    rho = np.exp(-logsnr / 2)
    kept = np.prod((STD**2 + rho[:-1] * rho[1:]) / (STD**2 + rho[:-1] ** 2))
    return distance(MEAN * (1 - kept), kept * np.sqrt(1 + rho[0] ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler_maruyama", "predictor_corrector"])
def test_few_steps_are_at_most_twice_as_far_off_as_ddim(name):
    # Under a process that is not the SDE's own, and through the loop; the law has more steps and grids. The
    # published noise of one step leaves a distance of 80.
    sampler, schedule = SAMPLERS[name][0], dk.Truncated(dk.Cosine(15.0, -15.0), *ENDS)
    denoiser = dk.analytic.gaussian(MEAN, STD**2 * np.eye(2), process=dk.VariancePreserving())
    model = dk.DiffusionModel(denoiser, schedule, dk.GaussianDecoder(), (2,))
    for steps in (1, 3):
        x = np.asarray(dk.sample(model, sampler, 4096, key=jax.random.key(3), steps=steps))
        ddim = ddim_distance(np.asarray(dk.UniformT()(schedule, sampler.calls * steps), np.float64))
        assert distance(x.mean(axis=0), x.std(axis=0)) <= 2 * ddim + 5 * STD / np.sqrt(4096)


def ancestral(steps):
    """The variance by ancestral sampling, each step the posterior of z_s given z_t and the predicted x."""
    sigma2 = np.exp(-np.linspace(ENDS[1], ENDS[0], steps + 1))
    variance = 1 + sigma2[0]
    for t, s in itertools.pairwise(sigma2):
        kept = s / t + (1 - s / t) * STD**2 / (STD**2 + t)
        variance = kept**2 * variance + s * (t - s) / t
    return variance


def test_the_published_table_of_variances():
    # docs/plugins/score_sde.md, in percent.
    table = {
        40: (-22, 32, -3.6, -24),
        160: (-6.3, 6.9, -1.9, -12),
        1000: (-1.1, 1.1, -0.3, -2.3),
    }
    exact = STD**2 + np.exp(-ENDS[0])
    for steps, row in table.items():
        found = [
            ancestral(steps),
            recursion(steps)[1],
            recursion(steps, corrector=1.0, correctors=1)[1],
            recursion(steps, corrector=3.09, correctors=1)[1],
        ]
        errors = 100 * (np.array(found) / exact - 1)
        half = [0.5 if isinstance(shown, int) else 0.05 for shown in row]  # of the last digit
        assert np.all(np.abs(errors - row) < half)


@each_sampler
def test_few_steps_follow_the_recursion(name):
    # Where the bias is large, so that it is this recursion and no other. Five standard errors.
    sampler, options = SAMPLERS[name]
    count = 20_000
    x = draw(sampler, count, 16)
    mean, variance = recursion(16, **options)
    assert abs(variance / STD**2 - 1) > 0.05
    np.testing.assert_allclose(x.mean(axis=0), mean * MEAN, atol=5 * np.sqrt(variance / count))
    np.testing.assert_allclose(x.var(axis=0), variance, rtol=5 * np.sqrt(2 / count))
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / np.sqrt(count)


@pytest.mark.parametrize("name", ["euler_maruyama", "predictor_corrector"])
def test_a_thousand_steps_give_the_gaussian_within_monte_carlo_error(name):
    count = 4096
    bias = recursion(1000, **SAMPLERS[name][1])[1] / STD**2 - 1
    error = np.sqrt(2 / count)  # of a variance, relative: 2.2 %
    assert abs(bias) < error / 2
    x = draw(SAMPLERS[name][0], count, 1000)
    np.testing.assert_allclose(x.mean(axis=0), MEAN, atol=5 * STD / np.sqrt(count))
    np.testing.assert_allclose(x.var(axis=0), STD**2, rtol=5 * error)


def test_the_default_corrector_leaves_a_third_of_the_bias():
    exact = STD**2 + np.exp(-ENDS[0])
    plain, corrected = (
        recursion(4000, **SAMPLERS[name][1])[1] - exact
        for name in ("euler_maruyama", "predictor_corrector")
    )
    assert abs(corrected / plain) == pytest.approx(1 / 3, abs=0.03)


def test_every_process_and_every_batch_gives_the_same_samples():
    sampler = PredictorCorrector()
    few = draw(sampler, 3, 10)
    many = draw(sampler, 7, 10, dk.VariancePreserving())
    np.testing.assert_allclose(many[:3], few, rtol=1e-4, atol=1e-4)
    assert len(np.unique(many[:, 0])) == 7


@pytest.mark.parametrize("sampler", [EulerMaruyama(), PredictorCorrector(corrector=3.0)])
def test_a_tiny_step_has_the_right_noise_in_float32(sampler):
    # From rho 1 over a step of 2e-7, where 1 - rho_s^2 is a fifth too large. Data in one point: every
    # part of the step adds its noise, h for the predictor and 2 c h for the corrector.
    h = 2e-7
    denoiser = dk.analytic.gaussian(np.zeros(2), np.zeros((2, 2)), process=dk.VarianceExploding())
    keys = jax.random.split(jax.random.key(1), 20_000)

    def move(key):
        return sampler.step(denoiser, jnp.zeros(2), jnp.float32(-h), jnp.float32(0), None, key)[0]

    y = np.asarray(jax.jit(jax.vmap(move))(keys), np.float64)
    expected = h * (1 + 2 * getattr(sampler, "corrector", 0.0))
    assert np.var(y) == pytest.approx(expected, rel=5 * np.sqrt(2 / 40_000))


def test_a_fresh_noise_of_data_in_one_point_is_exact():
    # a x + b eps with a^2 + b^2 = 1: with many correctors nothing of a wrong start is left.
    logsnr_t, logsnr_s = jnp.float32(-4.0), jnp.float32(-4.0 + 1e-3)
    denoiser = dk.analytic.gaussian(np.ones(2), np.zeros((2, 2)), process=dk.VarianceExploding())
    sampler = PredictorCorrector(corrector=2000.0, corrector_steps=8)
    keys = jax.random.split(jax.random.key(2), 4000)

    def move(key):
        start = jnp.full(2, 300.0)
        return sampler.step(denoiser, start, logsnr_t, logsnr_s, None, key)[0]

    y = np.asarray(jax.jit(jax.vmap(move))(keys))
    rho = np.exp(2.0)
    np.testing.assert_allclose(y.mean(axis=0), 1.0, atol=5 * rho / np.sqrt(4000))
    np.testing.assert_allclose(y.var(axis=0), rho**2, rtol=5 * np.sqrt(2 / 4000) + 1e-3)


def test_the_step_size_of_the_paper_leaves_a_bias_that_steps_do_not_remove():
    # Algorithm 4 on a Gaussian in many dimensions, where the norms are their expectations.
    r = 0.16

    def bias(steps):
        sigma2 = np.exp(-np.linspace(ENDS[1], ENDS[0], steps + 1))
        variance = 1 + sigma2[0]
        for t, s in itertools.pairwise(sigma2):
            total = STD**2 + t
            size = 2 * r**2 * total**2 / variance
            variance = (1 - size / total) ** 2 * variance + 2 * size
            variance = (1 - (t - s) / total) ** 2 * variance + t - s
        return variance / (STD**2 + sigma2[-1]) - 1

    assert bias(20_000) == pytest.approx(r**2, rel=0.02)
    assert bias(80_000) == pytest.approx(r**2, rel=0.01)


def test_calls_and_errors():
    assert EulerMaruyama().calls == 1
    assert PredictorCorrector(corrector_steps=3).calls == 4
    counted = []

    def denoise(y, logsnr):
        jax.debug.callback(lambda: counted.append(1))
        return dk.Prediction(y, y, dk.VarianceExploding().at(logsnr))

    sampler = PredictorCorrector(corrector_steps=3)
    logsnr_t, logsnr_s = jnp.array([0.0, 1.0])
    step = sampler.step(denoise, jnp.ones(2), logsnr_t, logsnr_s, None, jax.random.key(0))
    jax.block_until_ready(step)
    jax.effects_barrier()
    assert len(counted) == 4
    with pytest.raises(ValueError, match=r"corrector must be positive and finite, got 0.0"):
        PredictorCorrector(corrector=0.0)
    with pytest.raises(ValueError, match=r"corrector_steps must be at least 1, got 0; .* euler_mar"):
        PredictorCorrector(corrector_steps=0)
