"""What the losses of flow models weigh, and the presets."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import diffkit as dk
import diffkit_flow
from diffkit.weightings import implied_weighting

LOGSNR = np.linspace(-9.9, 13.2, 40)


def small(name, **parts):
    parts = {"network": ("mlp", {"width": 8, "depth": 1})} | parts
    return dk.preset(name, **parts).model(shape=(2,), levels=256, key=jax.random.key(0))


def over(weighting, logsnr):
    return np.asarray(jax.jit(jax.vmap(weighting))(jnp.asarray(logsnr, jnp.float32)), np.float64)


@pytest.mark.parametrize(
    ("parameterization", "schedule", "process"),
    [
        (diffkit_flow.Velocity(), diffkit_flow.StraightLine, diffkit_flow.Straight()),
        (diffkit_flow.Velocity(), diffkit_flow.StraightLine, dk.VariancePreserving()),
        (dk.V(), dk.Cosine, dk.VariancePreserving()),
    ],
)
def test_flow_matching_and_v_prediction_weigh_alike(parameterization, schedule, process):
    # golden/implied_weightings.md: exp(-logsnr / 2) for both.
    weighting = implied_weighting(
        parameterization=parameterization, schedule=schedule(13.3, -10.0), process=process
    )
    ratio = over(weighting, LOGSNR) / np.exp(-LOGSNR / 2)
    np.testing.assert_allclose(ratio, ratio[20], rtol=2e-4)


def test_logit_normal_times_by_the_density_of_logsnr():
    # Up to the truncation -logsnr / 2 is the logit of t, so that logsnr is N(0, 2^2) under these times,
    # and w is its density times (1 + rho)^2, the velocity's share of the error of eps.
    weighting = implied_weighting(
        parameterization=diffkit_flow.Velocity(),
        schedule=diffkit_flow.StraightLine(40.0, -40.0),  # as good as untruncated
        process=diffkit_flow.Straight(),
        time_sampler=diffkit_flow.LogitNormal(),
    )
    logsnr = np.linspace(-6, 8, 30)
    expected = stats.norm.pdf(logsnr, 0, 2) * (1 + np.exp(-logsnr / 2)) ** 2
    ratio = over(weighting, logsnr) / expected
    np.testing.assert_allclose(ratio, 2.0, rtol=2e-4)


def test_logit_normal_times_by_monte_carlo():
    # The loss of Esser et al. on errors of eps that are a known function e of logsnr:
    # E_t [(1 + rho)^2 e] with t drawn in numpy, against 1/2 of the integral of w e over logsnr.
    model = small("rectified_flow")
    weighting = dk.part("weighting", diffkit_flow.RECTIFIED_FLOW.weighting, model=model)
    maximum, minimum = (float(end) for end in model.schedule.endpoints)

    def error(logsnr):
        return np.exp(-0.1 * (logsnr - 1) ** 2)

    grid = np.linspace(minimum, maximum, 2001)
    integral = 0.5 * np.trapezoid(over(weighting, grid) * error(grid), grid)
    t = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=400_000)))
    first, last = 1 / (1 + np.exp(maximum / 2)), 1 / (1 + np.exp(minimum / 2))
    tau = first + t * (last - first)
    draws = error(2 * np.log((1 - tau) / tau)) / (1 - tau) ** 2
    deviation = draws.std() / np.sqrt(len(draws))
    assert deviation < 0.003 * integral
    assert draws.mean() == pytest.approx(integral, abs=4 * deviation)


@pytest.mark.parametrize("name", ["rectified_flow", "flow_matching"])
def test_training_loss_is_the_error_of_the_velocity(name):
    # Per draw, importance included: exactly what the papers write, sum |eps - x - v_hat|^2.
    model, chosen = small(name), dk.get("preset", name)
    network = jax.tree.map(lambda a: a + 0.1 if isinstance(a, jax.Array) else a, model.denoiser.network)
    denoiser = dk.Denoiser(network, model.denoiser.parameterization, model.process)
    model = dk.DiffusionModel(denoiser, model.schedule, model.decoder, model.shape)
    weighting = dk.part("weighting", chosen.weighting, model=model)
    times = dk.part("time_sampler", chosen.time_sampler, model=model)
    t, importance = times(jax.random.key(0), 50)
    x, eps = (jnp.tile(jnp.asarray(each), (50, 1)) for each in ([0.3, -0.6], [1.0, 0.2]))
    loss = eqx.filter_jit(dk.DiffusionLoss(weighting).at)(model, x, t, eps, importance=importance)

    @jax.jit
    @jax.vmap
    def error(t, x, eps):
        level = model.level(t)
        z = level.alpha * x + level.sigma * eps
        # The network's own output, with its input scaled to unit variance.
        output = network(z / jnp.hypot(level.alpha, level.sigma), level.logsnr)
        return jnp.sum(jnp.square(eps - x - output))

    np.testing.assert_allclose(loss, error(t, x, eps), rtol=1e-3)


@pytest.mark.parametrize("name", ["rectified_flow", "flow_matching"])
def test_presets(name):
    chosen, model = dk.get("preset", name), small(name)
    config = dk.TrainConfig(**chosen.train)  # refuses values out of range
    found = (config.steps, config.batch_size, config.learning_rate, config.warmup, config.clip)
    assert (
        found
        == {
            # Table 3 of Lipman et al.; ImageGeneration/configs/default_cifar10_configs.py of Liu et al.
            "flow_matching": (391_000, 256, 5e-4, 45_000, 0.0),
            "rectified_flow": (1_300_001, 128, 2e-4, 5000, 1.0),
        }[name]
    )
    assert (config.b1, config.b2, config.weight_decay) == (0.9, 0.999, 0.0)
    # The whole path but for its ends.
    sigma = [float(model.level(t).sigma) for t in (0.0, 0.5, 1.0)]
    assert sigma[0] < 0.01
    assert sigma[2] > 0.99
    assert sigma[1] == pytest.approx(0.5 * (sigma[0] + sigma[2]), rel=1e-5)
    sampler = dk.part("sampler", chosen.sampler, model=model)
    x = dk.sample(model, sampler, 3, key=jax.random.key(0), steps=3)
    assert x.shape == (3, 2)
    assert np.all((np.asarray(x) >= 0) & (np.asarray(x) < 256))
    network, options = chosen.choice("network")
    made = jax.eval_shape(lambda: dk.get("network", network)((3, 32, 32), **options, key=jax.random.key(0)))
    assert made.multipliers == (1, 2, 2, 2)
