"""Guidance against scores that are known, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.guidance import Guided, guide

PROCESSES = [dk.VariancePreserving(), dk.VarianceExploding()]
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.4, -0.9]])
COVS = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]], [[0.2, -0.1], [-0.1, 0.1]]])
POINT = np.array([0.6, -0.7])
# The classes: the second is two components at once.
CLASSES = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])


def log_density(z, alpha, sigma, weights):
    """Of the latent alpha x + sigma eps, x of the mixture with these weights: the textbook formula."""
    total = 0.0
    for index, (mean, cov) in enumerate(zip(MEANS, COVS, strict=True)):
        matrix = alpha**2 * cov + sigma**2 * np.eye(2)
        delta = z - alpha * mean
        normal = jnp.exp(-0.5 * delta @ jnp.linalg.solve(matrix, delta))
        total += weights[index] * normal / (2 * np.pi * jnp.sqrt(jnp.linalg.det(matrix)))
    return jnp.log(total / jnp.sum(weights))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("condition", CLASSES)
def test_guided_score_is_that_of_the_densities(process, condition):
    scales, interval = (0.0, 2.5, -1.0), (-4.0, 2.0)
    logsnr = np.array([-9.0, -4.1, -4.0, -1.0, 2.0, 2.1, 6.0])
    rho = np.exp(-logsnr / 2)
    alpha = 1 / np.hypot(1, rho) if isinstance(process, dk.VariancePreserving) else np.ones_like(rho)
    sigma = alpha * rho
    z = alpha[:, None] * POINT + sigma[:, None] * np.array([0.3, -1.1])
    with jax.enable_x64(True):
        exact = dk.analytic.mixture(WEIGHTS, MEANS, COVS, process=process)
        denoisers = [Guided(exact, scale, i) for scale in scales for i in (None, interval)]

        @jax.jit
        def predict(at):  # one noise level at a time, so that a condition on it stays one
            return [denoiser(at[0], at[1], jnp.asarray(condition)) for denoiser in denoisers]

        found = jax.lax.map(predict, (jnp.asarray(z), jnp.asarray(logsnr)))
        score = jax.jit(jax.vmap(jax.grad(log_density), in_axes=(0, 0, 0, None)))
        free, given = (score(z, alpha, sigma, w) for w in (WEIGHTS, WEIGHTS * condition))
        found, free, given = jax.tree.map(np.asarray, (found, free, given))
    inside = ((logsnr >= -4) & (logsnr <= 2))[:, None]
    for index, scale in enumerate(scales):
        everywhere, between = found[2 * index : 2 * index + 2]
        combined = free + scale * (given - free)
        for prediction, expected in (
            (everywhere, combined),
            (between, np.where(inside, combined, given)),
        ):
            np.testing.assert_allclose(-prediction.eps / sigma[:, None], expected, rtol=1e-6, atol=1e-9)
            # The predicted data belong to the same latent.
            back = alpha[:, None] * prediction.x + sigma[:, None] * prediction.eps
            np.testing.assert_allclose(back, z, rtol=1e-9)


@pytest.mark.parametrize("logsnr", [13.3, 4.0, -9.0])
def test_float32_keeps_the_digits(logsnr):
    # The predicted noise at the data end and the predicted data at the noise end, where one made from
    # the other would have no digits left.
    def predict(dtype):
        exact = dk.analytic.mixture(WEIGHTS, MEANS, COVS)
        level = exact.process.at(jnp.asarray(logsnr, dtype))
        z = level.alpha * jnp.asarray(POINT, dtype) + level.sigma * jnp.asarray([0.3, -1.1], dtype)
        return Guided(exact, 3.0)(z, level.logsnr, jnp.asarray(CLASSES[0], dtype))

    found = predict(jnp.float32)
    with jax.enable_x64(True):
        expected = predict(jnp.float64)
    np.testing.assert_allclose(found.eps, expected.eps, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-4, atol=1e-4)


@pytest.fixture
def network_model():
    return dk.preset("vdm", network=("mlp", {"width": 8, "depth": 1}), schedule="linear_logsnr").model(
        shape=(2,), levels=8, condition_size=3, key=jax.random.key(0)
    )


def test_one_batched_call_of_the_network(network_model):
    plain = network_model.denoiser
    condition = jnp.array([0.0, 1.0, 0.0])

    def products(denoiser):
        lowered = jax.jit(lambda z: denoiser(z, 0.5, condition).eps).lower(jnp.ones(2))
        return lowered.as_text().count("dot_general")

    assert products(Guided(plain, 2.0)) == products(plain) > 3
    # A scale of 1 is the conditional denoiser, bit for bit.
    z = jnp.array([0.3, -0.2])
    for interval in (None, (-1.0, 1.0)):
        found, expected = Guided(plain, 1.0, interval)(z, 0.5, condition), plain(z, 0.5, condition)
        np.testing.assert_array_equal(found.eps, expected.eps)
        np.testing.assert_array_equal(found.x, expected.x)


CALLS = []


class Counting(dk.AbstractDenoiser):
    """Counts its evaluations, as they happen when compiled code runs."""

    denoiser: dk.AbstractDenoiser
    process: dk.AbstractProcess

    def __call__(self, z, logsnr, condition=None, *, key=None):
        jax.debug.callback(lambda *_: CALLS.append(1), z, condition)
        return self.denoiser(z, logsnr, condition, key=key)


def test_outside_of_the_interval_one_evaluation_is_paid():
    exact = dk.analytic.mixture(WEIGHTS, MEANS, COVS)
    counting = Counting(exact, exact.process)
    schedule = dk.LinearLogSNR(logsnr_max=10.0, logsnr_min=-10.0)
    model = dk.DiffusionModel(counting, schedule, dk.GaussianDecoder(), (2,))
    # Steps begin at logsnr -10, -8, ..., 8: two of them from -3 to 1.
    options = {"key": jax.random.key(0), "steps": 10, "condition": jnp.asarray(CLASSES[0], "f4")}
    expected = {None: 2 * 10, (-3.0, 1.0): 10 + 2, (20.0, 30.0): 10}
    for interval, calls in expected.items():
        CALLS.clear()
        dk.sample(guide(model, 2.0, interval), dk.samplers.DDIM(), 5, **options)
        jax.effects_barrier()
        assert len(CALLS) == 5 * calls, interval


@pytest.mark.parametrize(
    "sampler", [dk.samplers.Ancestral(), dk.samplers.DDIM(), dk.samplers.RungeKutta2()]
)
def test_samplers_take_it(sampler):
    exact = dk.analytic.mixture(WEIGHTS, MEANS, COVS)
    schedule = dk.LinearLogSNR(logsnr_max=8.0, logsnr_min=-8.0)
    model = dk.DiffusionModel(exact, schedule, dk.GaussianDecoder(), (2,))

    def draw(model, condition):
        return dk.sample(model, sampler, 6, key=jax.random.key(1), steps=8, condition=condition)

    # A weight of 0 is the model without a condition.
    found = draw(guide(model, 0.0), np.tile(CLASSES[0], (6, 1)).astype(np.float32))
    np.testing.assert_allclose(found, draw(model, None), atol=1e-4)


def test_variances_are_those_of_the_condition():
    class Told(dk.AbstractDenoiser):
        process: dk.AbstractProcess

        def __call__(self, z, logsnr, condition=None, *, key=None):
            level = self.process.at(logsnr)
            return dk.Prediction(condition[:2], z, level, spread=condition[:2] / 4)

    found = Guided(Told(PROCESSES[0]), 3.0)(jnp.ones(2), jnp.float32(0.2), jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found.spread, [0.25, 0.5])
    np.testing.assert_allclose(found.x, [3.0, 6.0])
    assert float(found.level.logsnr) == pytest.approx(0.2)


def test_mistakes_are_named(network_model):
    guided = guide(network_model, 2.0, (-2.0, 2.0))
    assert guided.process == network_model.process
    with pytest.raises(ValueError, match=r"guidance needs a condition, got None: pass condition="):
        guided.denoiser(jnp.zeros(2), 0.0)
    with pytest.raises(ValueError, match="guidance needs a condition"):
        dk.sample(guided, dk.samplers.DDIM(), 2, key=jax.random.key(0), steps=2)
    with pytest.raises(ValueError, match=r"scale must be a finite number, such as 2.0, got nan"):
        guide(network_model, float("nan"))
    with pytest.raises(ValueError, match=r"interval must be \(min, max\) of logsnr.*got \(2.0, -2"):
        guide(network_model, 2.0, (2.0, -2.0))
    with pytest.raises(ValueError, match=r"condition has shape \(4,\).*condition_size=3"):
        guided.denoiser(jnp.zeros(2), 0.0, jnp.zeros(4))
