"""The likelihood against exact densities, closed forms, quadrature and another solver."""

import math
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from scipy.special import logsumexp

import diffkit as dk
from diffkit.likelihood import log_likelihood
from diffkit.presets import complete

KEY = jax.random.key(0)
# So far out that the prior is the data's own last distribution within 1e-5 nats.
WIDE = {"logsnr_max": 16.0, "logsnr_min": -25.0}
TIGHT = {"rtol": 1e-8, "atol": 1e-8}
PROCESSES = {n: complete(dk.get("process", n), {}) for n in dk.available("process")}
SCHEDULES = {
    "variance_preserving": "cosine",
    "variance_exploding": "linear_logsnr",
    "straight": "straight_line",
    "sub_vp": "learned_linear",
}
under = pytest.mark.parametrize("name", PROCESSES)

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[0.8, 0.1], [-0.6, -0.4]])
COVS = np.array([[[0.05, 0.0], [0.0, 0.05]], [[0.1, 0.05], [0.05, 0.08]]])
POINTS = np.random.default_rng(0).uniform(-1.2, 1.2, (12, 2))


def continuous(denoiser, shape=(2,), *, schedule="linear_logsnr", **ends):
    schedule = complete(dk.get("schedule", schedule), ends)
    return dk.DiffusionModel(denoiser, schedule, dk.GaussianDecoder(), shape)


def mixture(process=dk.VariancePreserving()):
    return dk.analytic.mixture(WEIGHTS, MEANS, COVS, process=process)


def exact_mixture(x, logsnr, weights=WEIGHTS):
    """The log density of the mixture with noise added, by scipy."""
    parts = [
        scipy.stats.multivariate_normal(m, c + np.exp(-logsnr) * np.eye(2)).logpdf(x)
        for m, c in zip(MEANS, COVS, strict=True)
    ]
    return logsumexp(np.stack(parts, axis=-1), b=weights, axis=-1)


@under
def test_mixture_within_1e_4_nats(name):
    with jax.enable_x64(True):
        denoiser = mixture(PROCESSES[name])
        model = continuous(denoiser, schedule=SCHEDULES[name], **WIDE)
        found = log_likelihood(model, POINTS, key=KEY, **TIGHT)
        level = denoiser.process.at(WIDE["logsnr_max"])
        known = jax.vmap(lambda x: denoiser.log_density(level.alpha * x, level.logsnr))(POINTS)
        known = known + 2 * jnp.log(level.alpha)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, exact_mixture(POINTS, 16.0), atol=1e-4, rtol=0)
    np.testing.assert_allclose(found, known, atol=1e-4, rtol=0)


@under
def test_gaussian_in_closed_form_for_any_range(name):
    # Along each eigenvector the ODE is the affine map with the ratio of the standard deviations: exact
    # where the prior is not the data's last distribution, as well as where it is.
    mean, cov = np.array([0.4, -0.2]), np.array([[0.5, 0.2], [0.2, 0.3]])
    variances, basis = np.linalg.eigh(cov)
    ranges = ((5.0, -1.0), (16.0, -25.0)) if name == "straight" else ((5.0, -1.0),)
    for ends in ranges:
        first, last = (variances + np.exp(-logsnr) for logsnr in ends)
        y = (POINTS - mean) @ basis * np.sqrt(last / first) + mean @ basis
        prior = scipy.stats.norm(scale=np.sqrt(1 + np.exp(-ends[1])))
        expected = (prior.logpdf(y) + 0.5 * np.log(last / first)).sum(axis=1)
        with jax.enable_x64(True):
            denoiser = dk.analytic.gaussian(mean, cov, process=PROCESSES[name])
            model = continuous(denoiser, logsnr_max=ends[0], logsnr_min=ends[1])
            found = log_likelihood(model, POINTS, key=KEY, **TIGHT)
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
        if ends[1] == -25.0:
            density = scipy.stats.multivariate_normal(mean, cov)
            np.testing.assert_allclose(found, density.logpdf(POINTS), atol=1e-4, rtol=0)


def test_float32_with_the_default_tolerance():
    found = log_likelihood(continuous(mixture(), logsnr_min=-25.0), POINTS, key=KEY)
    assert found.dtype == np.float32
    error = np.abs(found - exact_mixture(POINTS, 13.3)).max()
    print(f"float32, default tolerance: {error:.1e} nats")
    assert error < 1e-3


def test_given_a_condition():
    with jax.enable_x64(True):
        model = continuous(mixture(), **WIDE)
        labels = np.arange(len(POINTS)) % 2
        conditions = np.concatenate([dk.data.one_hot(labels, 2), np.zeros((1, 2), np.float32)])
        x = np.concatenate([POINTS, POINTS[:1]])
        found = log_likelihood(model, x, key=KEY, condition=conditions, **TIGHT)
    for label in (0, 1):
        own = np.flatnonzero(labels == label)
        exact = exact_mixture(POINTS[own], 16.0, np.eye(2)[label])
        np.testing.assert_allclose(found[own], exact, atol=1e-4, rtol=0)
    # Zeros are no condition.
    np.testing.assert_allclose(found[-1], exact_mixture(POINTS[0], 16.0), atol=1e-4, rtol=0)


def test_a_network_as_another_solver_has_it():
    # scipy on dy / dlog rho = rho eps in y itself, with the whole Jacobian, for a network that is no
    # denoiser of anything, on examples that are no vectors.
    with jax.enable_x64(True):
        ends = (7.0, -4.0)
        network = dk.networks.MLP((2, 2), width=8, depth=1, logsnr_range=ends, key=jax.random.key(3))
        network = jax.tree.map(lambda a: a + 0.05 if eqx.is_array(a) else a, network)
        x = np.random.default_rng(1).uniform(-1, 1, (2, 2, 2))
        found = {}
        for name in ("variance_preserving", "sub_vp"):
            denoiser = dk.Denoiser(network, dk.V(), PROCESSES[name])
            model = continuous(denoiser, (2, 2), logsnr_max=7.0, logsnr_min=-4.0)
            found[name] = log_likelihood(model, x, key=KEY, **TIGHT)
        denoiser = dk.Denoiser(network, dk.V(), dk.VarianceExploding())

        @jax.jit
        def slope(log_rho, state):
            def move(y):
                prediction = denoiser(y.reshape(2, 2), -2 * log_rho)
                return (jnp.exp(log_rho) * prediction.eps).reshape(4)

            y = state[:4]
            return jnp.append(move(y), jnp.trace(jax.jacfwd(move)(y)))

        start = np.append(x[1].ravel(), 0.0)
        solution = scipy.integrate.solve_ivp(
            slope, (-3.5, 2.0), start, method="DOP853", rtol=1e-8, atol=1e-8
        )
        end = solution.y[:, -1]
        prior = scipy.stats.norm(scale=math.sqrt(1 + math.exp(4.0)))
        expected = prior.logpdf(end[:4]).sum() + end[4]
        for name in found:
            assert found[name][1] == pytest.approx(expected, abs=1e-5), name


def correlated():
    cov = np.array([[0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.4]])
    return continuous(dk.analytic.gaussian(np.zeros(3), cov), (3,), logsnr_min=-8.0)


def test_hutchinson_is_unbiased_with_an_error_that_falls_with_the_probes():
    model, point = correlated(), np.array([0.5, -0.4, 0.3])
    many = np.tile(point, (4000, 1))
    exact = float(log_likelihood(model, point[None], key=KEY)[0])
    one, four = (
        np.asarray(log_likelihood(model, many, key=KEY, divergence="hutchinson", probes=n), float)
        for n in (1, 4)
    )
    # Three signs, of which a common one does not matter: four values, each as often, with a mean that is
    # exact to the solver's tolerance.
    values, counts = np.unique(np.round(one, 3), return_counts=True)
    assert len(values) == 4
    assert values.mean() == pytest.approx(exact, abs=2e-3)
    assert np.ptp(values) > 1
    # Five standard errors, false alarm below 1e-6 each.
    assert np.abs(counts - 1000).max() < 5 * math.sqrt(4000 * 3 / 16)
    assert abs(four.mean() - exact) < 5 * four.std() / math.sqrt(4000) + 2e-3
    assert one.std() / four.std() == pytest.approx(2, rel=0.1)


def test_one_probe_is_exact_where_the_divergence_is_a_multiple_of_the_identity():
    model = continuous(dk.analytic.gaussian(np.full(3, 0.3), 0.4 * np.eye(3)), (3,), **WIDE)
    x = np.random.default_rng(2).standard_normal((5, 3))
    exact, estimate = (
        log_likelihood(model, x, key=KEY, divergence=kind) for kind in ("exact", "hutchinson")
    )
    np.testing.assert_allclose(estimate, exact, atol=2e-5)


def test_auto_is_exact_up_to_64_dimensions():
    for dimensions in (64, 65):
        cov = 0.5 * (np.eye(dimensions) + np.ones((dimensions, dimensions)) / dimensions)
        denoiser = dk.analytic.gaussian(np.zeros(dimensions), cov)
        model = continuous(denoiser, (dimensions,), logsnr_min=-14.0)
        x = np.random.default_rng(3).standard_normal((3, dimensions)) * 0.7
        first, second = (log_likelihood(model, x, key=jax.random.key(i)) for i in (0, 1))
        exact = scipy.stats.multivariate_normal(np.zeros(dimensions), cov).logpdf(x)
        if dimensions == 64:
            np.testing.assert_array_equal(first, second)
            np.testing.assert_allclose(first, exact, atol=5e-3)
        else:
            assert np.abs(first - second).min() > 0.02


# A discrete problem in one dimension, at noise so large that everything overlaps.
LEVELS, P = np.array([1, 2, 6]), np.array([0.5, 0.2, 0.3])
VALUES, ALL = (2 * LEVELS + 1) / 8 - 1, (2 * np.arange(8) + 1) / 8 - 1
ENDS = (4.0, -1.0)


def discrete(denoiser, ends, levels=8, shape=(1,)):
    return dk.DiffusionModel(denoiser, dk.LinearLogSNR(*ends), dk.DiscretizedDecoder(levels), shape)


def solved_by_quantiles():
    """P(x) of all levels, and the bound of those of the data, in nats; float64 and no ODE solver.

    In one dimension the flow between two densities keeps the order, so that it maps quantile to
    quantile: p(y_0) = prior(y_1) q_0(y_0) / q_1(y_1) with F_1(y_1) = F_0(y_0).
    """
    rho = np.exp(-np.array(ENDS) / 2)
    y_0, y_1 = (np.linspace(-1.5 - 7 * r, 1.5 + 7 * r, 400_001) for r in rho)
    grids = zip((y_0, y_1), rho, strict=True)
    parts = [scipy.stats.norm(VALUES, r).cdf(y[:, None]) @ P for y, r in grids]
    mapped = np.interp(parts[0], parts[1], y_1)
    log_q = [
        logsumexp(scipy.stats.norm(VALUES, r).logpdf(y[:, None]), b=P, axis=1)
        for y, r in ((y_0, rho[0]), (mapped, rho[1]))
    ]
    log_p = scipy.stats.norm(0, np.hypot(1, rho[1])).logpdf(mapped) + log_q[0] - log_q[1]
    log_decoder = -0.5 * ((y_0[:, None] - ALL) / rho[0]) ** 2
    log_decoder -= logsumexp(log_decoder, axis=1, keepdims=True)
    probability = np.trapezoid(np.exp(log_p)[:, None] * np.exp(log_decoder), y_0, axis=0)
    log_z_0 = scipy.stats.norm(VALUES, rho[0]).logpdf(y_0[:, None])
    draw = log_decoder[:, LEVELS] + log_p[:, None] - log_z_0
    return probability, np.trapezoid(np.exp(log_z_0) * draw, y_0, axis=0)


def test_discrete_data_as_quadrature_has_them():
    probability, bound = solved_by_quantiles()
    assert probability.sum() == pytest.approx(1, abs=1e-6)
    # It is a bound, and at these ends not a tight one.
    assert np.all(np.log(probability[LEVELS]) > bound + 0.05)

    denoiser = dk.analytic.empirical(VALUES[:, None], P)
    model = discrete(denoiser, ENDS)
    count = 4000
    x = np.tile(LEVELS, count)[:, None]
    found = np.asarray(log_likelihood(model, x, key=KEY), float).reshape(count, 3)
    error = found.std(axis=0) / math.sqrt(count)
    print(f"bound {bound}, found {found.mean(axis=0)} +- {error}; log P {np.log(probability)}")
    # Five standard errors, false alarm about 1e-6 each. First the bound, then P(x) from the mean of the
    # exponentials.
    assert np.all(error < 0.02)
    np.testing.assert_array_less(np.abs(found.mean(axis=0) - bound), 5 * error + 1e-3)
    shares = np.exp(found)
    error = shares.std(axis=0) / math.sqrt(count)
    assert np.all(error < 0.02 * probability[LEVELS])
    np.testing.assert_array_less(np.abs(shares.mean(axis=0) - probability[LEVELS]), 5 * error + 1e-3)

    # Over the data it is what the VLB of an exact denoiser is.
    vlb = np.asarray(eqx.filter_jit(dk.vlb)(model, np.tile(x, (10, 1)), key=KEY).total, float)
    vlb = vlb.reshape(-1, 3)
    spread = math.hypot(*(np.sqrt(P**2 @ v.var(axis=0) / len(v)) for v in (vlb, found)))
    assert abs(P @ (vlb.mean(axis=0) + found.mean(axis=0))) < 5 * spread
    assert spread < 0.02


@pytest.mark.parametrize(("levels", "logsnr_max"), [(8, 13.3), (256, 16.0)])
def test_every_draw_is_log_p_where_the_ends_cost_nothing(levels, logsnr_max):
    # Levels 20 standard deviations of the noise apart or more: z_0 names x, and the bound is P(x) itself.
    stored = np.random.default_rng(4).choice(levels, (5, 2, 3))
    weights = np.array([0.4, 0.3, 0.2, 0.09, 0.01])
    denoiser = dk.analytic.empirical((2 * stored + 1) / levels - 1, weights)
    model = discrete(denoiser, (logsnr_max, -20.0), levels, (2, 3))
    x = np.tile(stored, (4, 1, 1)).astype(np.uint8)
    found = log_likelihood(model, x, key=KEY)
    error = np.abs(found - np.log(np.tile(weights, 4)))
    print(f"{levels} levels: {error.max():.1e} nats")
    assert error.max() < 2e-3


def test_an_example_is_the_same_in_every_batch():
    model = discrete(dk.analytic.empirical(VALUES[:, None], P), ENDS)
    x = LEVELS[[0, 2, 1, 0, 0]][:, None]
    several = log_likelihood(model, x, key=KEY, divergence="hutchinson")
    one = log_likelihood(model, x[:1], key=KEY, divergence="hutchinson")
    np.testing.assert_allclose(several[:1], one, atol=1e-5)
    # But not the same draw as another example of the same value, or as another key's.
    assert abs(several[3] - several[4]) > 1e-3
    other = log_likelihood(model, x, key=jax.random.key(1), divergence="hutchinson")
    assert np.abs(several - other).min() > 1e-3


@pytest.mark.slow  # its derivative takes longest to compile
def test_its_gradient_is_the_score():
    model, x = continuous(mixture(), logsnr_min=-25.0), jnp.asarray(POINTS[:3])
    found = jax.grad(lambda x: log_likelihood(model, x, key=KEY).sum())(x)
    level = model.level(0.0)
    density = jax.vmap(jax.grad(lambda x: model.denoiser.log_density(level.alpha * x, level.logsnr)))
    np.testing.assert_allclose(found, density(x), rtol=2e-3, atol=2e-3)


class Counting(dk.AbstractDenoiser):
    """A denoiser that counts how often Python runs it."""

    inner: dk.AbstractDenoiser
    calls = 0

    @property
    def process(self):
        return self.inner.process

    def __call__(self, z, logsnr, condition=None, *, key=None):
        Counting.calls += 1
        return self.inner(z, logsnr, condition)


def test_compiles_once_and_runs_inside_jit():
    model = continuous(Counting(mixture()))
    first = log_likelihood(model, POINTS, key=KEY)
    calls = Counting.calls
    assert calls > 0
    for i in (1, 2):
        log_likelihood(model, POINTS + i, key=jax.random.key(i))
    assert Counting.calls == calls
    inside = eqx.filter_jit(lambda model, x, key: log_likelihood(model, x, key=key))
    np.testing.assert_allclose(inside(model, jnp.asarray(POINTS), KEY), first, atol=1e-5)


def test_a_solver_that_does_not_arrive_is_an_error():
    with pytest.raises(RuntimeError, match="did not reach the noise end in max_steps=3 steps"):
        log_likelihood(continuous(mixture()), POINTS, key=KEY, max_steps=3)


def test_wrong_arguments_are_refused_by_name():
    model = continuous(mixture())
    refused = {
        "rtol must be a positive number, got 0.0": {"rtol": 0.0},
        "atol must be a positive number, got nan": {"atol": math.nan},
        "probes must be at least 1, got 0": {"probes": 0},
        "max_steps must be at least 1, got -1": {"max_steps": -1},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            log_likelihood(model, POINTS, key=KEY, **options)
    with pytest.raises(ValueError, match=r"x must be a batch of examples of shape \(2,\)"):
        log_likelihood(model, np.zeros((2, 3)), key=KEY)
    with pytest.raises(TypeError, match="divergence"):
        log_likelihood(model, POINTS, key=KEY, divergence="skilling")
    with pytest.raises(TypeError):
        log_likelihood(model, np.zeros((2, 2), int), key=KEY)
    with pytest.raises(TypeError, match="condition"):
        log_likelihood(model, POINTS, key=KEY, condition=np.zeros((3, 2), np.float32))


def test_without_diffrax_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"log_likelihood needs diffrax: pip install 'diffkit"):
        log_likelihood(continuous(mixture()), POINTS[:7], key=KEY)
