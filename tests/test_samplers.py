"""Laws of samplers: order of convergence, reproduced distributions, independence of the batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffkit as dk
from diffkit.presets import complete
from diffkit.samplers import FORMS
from diffkit.samplers.loop import rescaled

MEAN, STD = np.array([0.7, -0.3]), 0.5
PROCESSES = [complete(dk.get("process", n), {}) for n in dk.available("process")]
under = pytest.mark.parametrize("process", PROCESSES)


def gaussian_model(process=PROCESSES[0], ends=(13.3, -9.0)):
    denoiser = dk.analytic.gaussian(MEAN, STD**2 * np.eye(2), process=process)
    return dk.DiffusionModel(denoiser, dk.LinearLogSNR(*ends), dk.GaussianDecoder(), (2,))


def integrate(sampler, model, y, steps):
    """A deterministic sampler from a given rescaled latent, by a plain loop."""
    logsnr = dk.UniformLogSNR()(model.schedule, steps)
    denoise, state = rescaled(model.denoiser, None), sampler.init(y)

    def body(carry, at):
        return sampler.step(denoise, *carry[:1], at[0], at[1], carry[1], None), None

    (y, _), _ = jax.lax.scan(body, (y, state), (logsnr[:-1], logsnr[1:]))
    return y


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (dk.samplers.DDIM(), 1),
        *((dk.samplers.RungeKutta2(form, node), 2) for form in FORMS for node in (0.5, 1.0)),
    ],
    ids=str,
)
def test_order_of_convergence(sampler, order):
    # The probability-flow ODE of a Gaussian has the affine map m + (y - m) sqrt ratio of variances.
    assert sampler.order == order
    assert sampler.calls == order
    with jax.enable_x64(True):
        denoiser = dk.analytic.gaussian(MEAN, STD**2 * np.eye(2))
        model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(12.0, -8.0), dk.GaussianDecoder(), (2,))
        start = jnp.asarray([30.0, -55.0])
        variance = [STD**2 + np.exp(-value) for value in (-8.0, 12.0)]
        exact = MEAN + (np.asarray(start) - MEAN) * np.sqrt(variance[1] / variance[0])
        counts = np.array([160, 320, 640, 1280])
        errors = [
            np.abs(np.asarray(integrate(sampler, model, start, int(n))) - exact).max() for n in counts
        ]
    found = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # On a Gaussian the leading errors of the midpoint rule cancel over the whole range: one order more.
    assert found > order - 0.1
    assert errors[-1] < 0.005


def test_a_long_step_is_two_of_ddim_and_a_short_one_is_not():
    # The place is that of rho / (rho + 1/2) = the mean of both ends', by hand: 80 and 0.002 give 0.5.
    ends = -2 * np.log([80.0, 0.002])
    share = np.mean([80.0 / 80.5, 0.002 / 0.502])
    rho = 0.5 * share / (1 - share)
    with jax.enable_x64(True):
        place = float(dk.samplers.between(*jnp.asarray(ends), 0.5))
        assert np.exp(-place / 2) == pytest.approx(rho)
        denoise = rescaled(dk.analytic.gaussian(MEAN, STD**2 * np.eye(2)), None)
        start = jnp.asarray([30.0, -55.0])
        y = np.asarray(start)
        for a, b in ((80.0, rho), (rho, 0.002)):
            y = MEAN + (y - MEAN) * (STD**2 + a * b) / (STD**2 + a**2)
        for form, node in itertools.product(FORMS, (0.5, 1.0)):
            sampler = dk.samplers.RungeKutta2(form, node)
            found, _ = sampler.step(denoise, start, *jnp.asarray(ends), None, None)
            np.testing.assert_allclose(found, y, rtol=1e-9)
        # Heun's method over a third of rho, with eps = rho (y - m) / (s^2 + rho^2).
        slope = 3.0 / (STD**2 + 9.0)
        inner = 1 - 2.0 * slope
        factor = 1 - (slope + inner * 1.0 / (STD**2 + 1.0))
        short = jnp.asarray(-2 * np.log([3.0, 1.0]))
        found, _ = dk.samplers.RungeKutta2().step(denoise, start, *short, None, None)
        np.testing.assert_allclose(found, MEAN + (np.asarray(start) - MEAN) * factor, rtol=1e-9)


@pytest.mark.parametrize("name", FORMS)
def test_forms_are_forms_of_one_equation(name):
    # d(scale y) / dkappa = quantity, by finite differences along y = x + rho eps with dy / drho = eps,
    # in float64; the offset keeps its digits in float32 where the difference of kappas has lost them.
    form = FORMS[name]
    points = np.linspace(-10.0, 14.0, 13)
    with jax.enable_x64(True):
        step = 1e-5

        def at(logsnr):
            rho = jnp.exp(-logsnr / 2)
            x, eps = jnp.asarray(0.7), jnp.asarray(-1.3)

            def u(change):
                # To first order in the step: y moves along its tangent.
                return form.scale(logsnr + change) * (x + rho * jnp.exp(-change / 2) * eps)

            run = form.kappa(logsnr + step) - form.kappa(logsnr - step)
            level = dk.VarianceExploding().at(logsnr)
            return (
                (u(step) - u(-step)) / run - form.quantity(dk.Prediction(x, eps, level)),
                run / (2 * step) / form.slope(logsnr) - 1,
                form.logsnr(form.kappa(logsnr)) - logsnr,
                form.kappa(logsnr + 0.25) - form.kappa(logsnr),
            )

        equation, slope, inverse, exact = jax.vmap(at)(jnp.asarray(points))
        np.testing.assert_allclose(equation, 0, atol=1e-5)
        np.testing.assert_allclose(slope, 0, atol=1e-6)
        np.testing.assert_allclose(inverse, 0, atol=1e-8)
    single = jnp.asarray(points, jnp.float32)
    offset = jax.vmap(form.offset)(single + 0.25, single)
    np.testing.assert_allclose(offset, exact, rtol=3e-6)


def test_ancestral_variance_between_posterior_and_forward():
    # One step from a known latent under an exact denoiser of one point: the variances of DDPM's section
    # 3.2, beta_tilde and beta, in float64 numpy.
    logsnr_t, logsnr_s = -1.0, 1.5
    alpha2, sigma2 = (1 / (1 + np.exp(-s * np.array([logsnr_t, logsnr_s]))) for s in (1, -1))
    beta = 1 - alpha2[0] / alpha2[1]
    beta_tilde = beta * sigma2[1] / sigma2[0]
    denoiser = dk.analytic.empirical(jnp.asarray([[0.4, -0.1]]))
    prediction = denoiser(jnp.asarray([0.3, 0.9]), logsnr_t)
    for spread, variance in ((0.0, beta_tilde), (1.0, beta), (0.5, np.sqrt(beta * beta_tilde))):
        _, std = prediction.reverse(logsnr_s, spread=spread)
        np.testing.assert_allclose(std**2 * alpha2[1], variance, rtol=1e-5)
    # And the sampler uses it: from its last step but one the samples spread accordingly.
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(1.5, -1.0), dk.GaussianDecoder(), (2,))
    x = dk.sample(model, dk.samplers.Ancestral(1.0), 20_000, key=jax.random.key(11), steps=1)
    # The mean of a step shrinks the start's deviation from the point, of variance 1 + rho^2.
    start = 1 + np.exp(-logsnr_t)
    expected = beta / alpha2[1] + np.exp(2 * (logsnr_t - logsnr_s)) * start
    np.testing.assert_allclose(np.var(np.asarray(x), axis=0), expected, rtol=5 * np.sqrt(2 / 20_000))
    with pytest.raises(ValueError, match=r"spread must be in \[0, 1\], got 1.5"):
        dk.samplers.Ancestral(1.5)


def test_wrong_forms_are_refused():
    with pytest.raises(ValueError, match="form must be one of eps, x, v, velocity, got 'y'"):
        dk.samplers.RungeKutta2("y")
    with pytest.raises(ValueError, match=r"node must be in \(0, 1\], got 0"):
        dk.samplers.RungeKutta2(node=0.0)


SAMPLERS = ("ancestral", "ddim")  # every other one's laws: `diffkit check`


@pytest.mark.parametrize("name", SAMPLERS)
@under
def test_reproduces_a_gaussian(name, process):
    sampler = complete(dk.get("sampler", name), {})
    model = gaussian_model(process)
    x = np.asarray(dk.sample(model, sampler, 4096, key=jax.random.key(0), steps=300))
    # Five standard errors of the Monte Carlo error (false alarm below 1e-6 each), and the bias of 300
    # steps, which the order test below bounds.
    np.testing.assert_allclose(x.mean(axis=0), MEAN, atol=5 * STD / np.sqrt(4096) + 0.01)
    np.testing.assert_allclose(x.std(axis=0), STD, rtol=5 / np.sqrt(2 * 4096) + 0.05)
    assert abs(np.corrcoef(x.T)[0, 1]) < 5 / np.sqrt(4096)


def ancestral_variance(steps, ends=(12.0, -8.0)):
    """The variance that ancestral sampling of N(m, s^2) ends with: the recursion, in float64."""
    logsnr = np.linspace(ends[1], ends[0], steps + 1)
    rho2 = np.exp(-logsnr)
    variance = 1 + rho2[0]
    for t, s in itertools.pairwise(rho2):
        c = 1 - s / t
        # y_s = (1 - c) y_t + c E[x | y_t] + sqrt(s c) noise, with E[x | y] of slope s2 / (s2 + t).
        slope = 1 - c + c * STD**2 / (STD**2 + t)
        variance = slope**2 * variance + s * c
    return variance


def test_ancestral_variance_follows_the_recursion_and_converges():
    model = gaussian_model(ends=(12.0, -8.0))
    x = dk.sample(model, dk.samplers.Ancestral(), 8192, key=jax.random.key(1), steps=20)
    expected = ancestral_variance(20)
    assert expected < 0.8 * STD**2  # the bias is there, and is the known one
    # Five standard errors of a variance.
    np.testing.assert_allclose(np.var(np.asarray(x), axis=0), expected, rtol=5 * np.sqrt(2 / 8192))
    bias = [abs(ancestral_variance(n) - ancestral_variance(20_000)) for n in (200, 400, 800)]
    assert np.all(np.array(bias[:-1]) / np.array(bias[1:]) > 1.8)  # weak order 1


def test_ancestral_reproduces_a_discrete_distribution():
    # Atoms on an 8-bit axis with known probabilities; the decoder returns levels.
    levels = np.array([10, 40, 41, 90, 170, 250])
    p = np.array([0.3, 0.1, 0.2, 0.1, 0.25, 0.05])
    decoder = dk.DiscretizedDecoder(256)
    denoiser = dk.analytic.empirical(decoder.encode(jnp.asarray(levels))[:, None], p)
    # At logsnr 17 the noise of z_0 is a twentieth of half the distance between levels.
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(17.0, -5.0), decoder, (1,))
    x = dk.sample(model, dk.samplers.Ancestral(), 5000, key=jax.random.key(2), steps=500)
    found = np.asarray(x).ravel()
    assert set(found) <= set(levels)
    counts = np.array([(found == level).sum() for level in levels])
    # False alarm: 1e-4.
    assert scipy.stats.chisquare(counts, 5000 * p).pvalue > 1e-4


def test_ddim_with_all_noise_is_ancestral():
    model, key = gaussian_model(), jax.random.key(3)
    one = dk.sample(model, dk.samplers.Ancestral(), 4, key=key, steps=25)
    other = dk.sample(model, dk.samplers.DDIM(eta=1.0), 4, key=key, steps=25)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_process_gives_the_same_samples(name):
    sampler = complete(dk.get("sampler", name), {})
    samples = [dk.sample(gaussian_model(p), sampler, 8, key=jax.random.key(4), steps=20) for p in PROCESSES]
    for other in samples[1:]:
        np.testing.assert_allclose(other, samples[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_number_of_samples_changes_none_of_them(name):
    sampler = complete(dk.get("sampler", name), {})
    few, many = (dk.sample(gaussian_model(), sampler, n, key=jax.random.key(5), steps=10) for n in (3, 17))
    np.testing.assert_allclose(few, many[:3], rtol=1e-6, atol=1e-6)
    assert len(np.unique(np.asarray(many)[:, 0])) == 17


def test_trajectory_ends_in_the_samples_and_starts_in_the_prior():
    model = gaussian_model(dk.VariancePreserving(), ends=(8.0, -6.0))
    arguments = {"key": jax.random.key(6), "steps": 12, "grid": dk.UniformLogSNR()}
    path = dk.sample_trajectory(model, dk.samplers.Ancestral(), 2000, **arguments)
    x = dk.sample(model, dk.samplers.Ancestral(), 2000, **arguments)
    np.testing.assert_allclose(path.samples, x, rtol=1e-6)
    assert path.z.shape == (13, 2000, 2)
    alpha = model.process.at(path.logsnr[-1]).alpha
    np.testing.assert_allclose(path.z[-1] / alpha, path.samples, rtol=1e-5, atol=1e-6)
    assert scipy.stats.kstest(np.asarray(path.z[0]).ravel(), "norm").pvalue > 1e-4


def test_deterministic_sampler_is_handed_no_key():
    assert not dk.samplers.DDIM().stochastic
    assert dk.samplers.DDIM(eta=0.2).stochastic
    model = gaussian_model()

    def with_key(sampler):
        def run(key):
            start = jnp.ones(2)
            return sampler.step(rescaled(model.denoiser, None), start, *jnp.array([0.0, 1.0]), None, key)[0]

        return run

    # With a key a stochastic sampler draws; the deterministic one has nothing to draw.
    drawn = with_key(dk.samplers.DDIM(eta=0.5))
    assert not np.allclose(drawn(jax.random.key(0)), drawn(jax.random.key(1)))
    assert "random_bits" in str(jax.make_jaxpr(drawn)(jax.random.key(0)))
    assert "random_bits" not in str(jax.make_jaxpr(lambda: with_key(dk.samplers.DDIM())(None))())


def test_conditions_reach_the_network():
    network = dk.networks.MLP((2,), width=8, depth=1, condition_size=1, key=jax.random.key(0))
    network = jax.tree.map(lambda a: a + 0.1 if isinstance(a, jax.Array) else a, network)
    denoiser = dk.Denoiser(network, dk.V(), dk.VariancePreserving())
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(), dk.GaussianDecoder(), (2,))
    sampler, arguments = dk.samplers.DDIM(), {"key": jax.random.key(7), "steps": 4}
    each = dk.sample(model, sampler, 2, condition=jnp.array([[0.0], [1.0]]), **arguments)
    shared = dk.sample(model, sampler, 2, condition=jnp.array([1.0]), **arguments)
    np.testing.assert_allclose(each[1], shared[1], rtol=1e-6)
    assert not np.allclose(each[0], shared[0])
    with pytest.raises(ValueError, match="condition must have one row for each of the 3 samples"):
        dk.sample(model, sampler, 3, condition=jnp.ones((2, 1)), **arguments)


def test_shapes_and_errors():
    model, sampler, key = gaussian_model(), dk.samplers.DDIM(), jax.random.key(0)
    assert dk.sample(model, sampler, (2, 3), key=key, steps=2).shape == (2, 3, 2)
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        dk.sample(model, sampler, 0, key=key)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        dk.sample(model, sampler, 1, key=key, steps=0)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got 1.5"):
        dk.samplers.DDIM(eta=1.5)


# The golden problems, from rho = 80 to 0.002.
ANGLES = 2 * np.pi * np.arange(8) / 8
CIRCLE = np.sqrt(2) * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
GOLDEN = {
    "gaussian": lambda: dk.analytic.gaussian(MEAN, STD**2 * np.eye(2)),
    "mixture": lambda: dk.analytic.mixture(np.ones(8) / 8, CIRCLE, np.stack([0.01 * np.eye(2)] * 8)),
}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("DDIM", "gaussian"),
        ("heun", "mixture"),
        ("dpmpp_2m", "gaussian"),
        ("multistep", "mixture"),
    ],
)
def test_inverting_and_sampling_gives_the_data_back_at_the_order(name, problem):
    sampler, ends = getattr(dk.samplers, name)(), -2 * np.log([0.002, 80.0])
    with jax.enable_x64(True):
        model = dk.DiffusionModel(
            GOLDEN[problem](), dk.LinearLogSNR(*map(float, ends)), dk.GaussianDecoder(), (2,)
        )
        x = jnp.asarray(CIRCLE + 0.1 * np.random.default_rng(0).standard_normal((8, 2)))
        errors, counts = [], (100, 200)
        for steps in counts:
            z, logsnr = dk.invert(model, sampler, x, steps=steps)
            back = dk.sample(model, sampler, 8, start=(z, logsnr), steps=steps, key=jax.random.key(0))
            errors.append(np.sqrt(np.mean((np.asarray(back) - np.asarray(x)) ** 2)))
        assert np.log2(errors[0] / errors[1]) > sampler.order - 0.3
        assert errors[1] < 0.05
        if problem == "gaussian":  # where the latents are known
            rho = np.exp(-ends / 2)
            exact = MEAN + (np.asarray(x) - MEAN) * np.sqrt((STD**2 + rho[1] ** 2) / (STD**2 + rho[0] ** 2))
            y = np.asarray(z / model.process.at(logsnr).alpha)
            np.testing.assert_allclose(y, exact, atol=6 if sampler.order == 1 else 0.2)


def test_sampling_from_a_level_is_the_rest_of_the_way():
    model, key, sampler = gaussian_model(ends=(8.0, -6.0)), jax.random.key(12), dk.samplers.DDIM()
    path = dk.sample_trajectory(model, sampler, 3, key=key, steps=20)
    start = path.z[8], path.logsnr[8]
    rest = dk.sample_trajectory(model, sampler, 3, key=key, steps=12, start=start)
    np.testing.assert_allclose(rest.logsnr, path.logsnr[8:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rest.z, path.z[8:], rtol=1e-3, atol=1e-4)
    # From the end of the schedule it is the whole way.
    whole = dk.sample(model, sampler, 3, key=key, steps=20, start=(path.z[0], path.logsnr[0]))
    np.testing.assert_allclose(whole, path.samples, rtol=1e-4, atol=1e-5)


def test_data_noised_to_a_level_are_draws_of_q_and_come_back():
    model, key = gaussian_model(dk.VariancePreserving(), ends=(8.0, -6.0)), jax.random.key(13)
    x = np.tile(np.float32([[1.5, 0.2]]), (20_000, 1))
    z, logsnr = dk.noised(model, x, -1.0, key=key)
    level = model.process.at(-1.0)
    error = 5 / np.sqrt(2 * len(x))
    np.testing.assert_allclose(z.mean(axis=0), level.alpha * x[0], atol=2 * error * level.sigma)
    np.testing.assert_allclose(z.std(axis=0), level.sigma, rtol=error)
    # SDEdit of one point gives the posterior of the data given z, whose mean and variance are known.
    edited = dk.sample(model, dk.samplers.Ancestral(), len(x), start=(z, logsnr), steps=200, key=key)
    share = STD**2 / (STD**2 + np.exp(1.0))
    variance = share**2 * np.exp(1.0) + (1 - share) * STD**2
    np.testing.assert_allclose(edited.mean(axis=0), MEAN + share * (x[0] - MEAN), atol=0.02)
    np.testing.assert_allclose(edited.var(axis=0), variance, rtol=2 * error + 0.02)


def test_wrong_starts_are_refused():
    model, sampler, key = gaussian_model(ends=(8.0, -6.0)), dk.samplers.DDIM(), jax.random.key(0)
    with pytest.raises(ValueError, match=r"start must hold latents of shape \(3, 2\).* got \(4, 2\)"):
        dk.sample(model, sampler, 3, key=key, start=(jnp.zeros((4, 2)), 0.0))
    for argument, call in (
        ("start", lambda at: dk.sample(model, sampler, 4, key=key, start=(jnp.zeros((4, 2)), at))),
        ("logsnr", lambda at: dk.invert(model, sampler, np.zeros((4, 2), np.float32), logsnr=at)),
    ):
        for at in (-7.0, 8.0):
            with pytest.raises(ValueError, match=rf"{argument} must be .* from logsnr -6 to 8, got {at:g}"):
                call(at)
    with pytest.raises(ValueError, match="must be deterministic, got Ancestral"):
        dk.invert(model, dk.samplers.Ancestral(), np.zeros((4, 2), np.float32))


class Own(dk.AbstractSampler):
    """Euler's method with the last slope as its state, returning what it is told to."""

    order = 1
    calls = 1
    stochastic = False
    returns: str = "slope"

    def init(self, y):
        return None if self.returns == "new state" else jnp.zeros_like(y)

    def step(self, denoise, y, logsnr_t, logsnr_s, state, key):
        eps = denoise(y, logsnr_t).eps
        y = y + (jnp.exp(-logsnr_s / 2) - jnp.exp(-logsnr_t / 2)) * eps
        if self.returns == "y":
            return y
        return y[None] if self.returns == "shape" else y, eps


def test_a_step_that_returns_the_wrong_thing_is_refused():
    def draw(sampler):
        return dk.sample(gaussian_model(), sampler, 2, key=jax.random.key(0), steps=3)

    # A prediction in the state is taken as its array.
    np.testing.assert_allclose(draw(Own()), draw(dk.samplers.DDIM()), rtol=1e-5, atol=1e-6)
    for returns, message in (
        ("y", r"Own.step must return a pair, .* got f32\[2\]"),
        ("shape", r"Own.step must return a latent like .* f32\[2\], got f32\[1,2\]"),
        ("new state", r"Own.step must return a state like .* None, got f32\[2\]"),
    ):
        with pytest.raises(TypeError, match=message):
            draw(Own(returns))


def test_every_registered_sampler_is_an_attribute_of_the_module():
    for name in dk.available("sampler"):
        part = dk.get("sampler", name)
        assert {name, part.__name__} <= {*dir(dk.samplers)}
        assert getattr(dk.samplers, part.__name__) is part
    with pytest.raises(AttributeError, match="has no attribute 'Heunn'"):
        dk.samplers.Heunn  # noqa: B018
