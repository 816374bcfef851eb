"""The presets are the paper's models: their loss, their noise levels, their constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit_score_sde import SUBVP_SDE, VE_SDE, VP_SDE

PRESETS = {"vp_sde": VP_SDE, "subvp_sde": SUBVP_SDE, "ve_sde": VE_SDE}
each_preset = pytest.mark.parametrize("name", PRESETS)


def small(name):
    """The preset with an MLP in place of its U-Net, for data in two dimensions."""
    return dk.preset(name, decoder="gaussian", network=("mlp", {"width": 8, "depth": 1})).model(
        shape=(2,), levels=None, key=jax.random.key(0)
    )


@each_preset
def test_the_loss_is_the_paper_s(name):
    # A fresh network returns its input, z over its standard deviation, as sigma times the score. Song's
    # loss of that, E_t |sigma score + eps|^2, by quadrature over his t and the expectation over eps.
    model, x = small(name), np.array([0.8, -0.4])
    t = np.linspace(0.0, 1.0, 20_001)
    if name == "ve_sde":
        alpha, sigma = np.ones_like(t), 0.02 * 5000**t
    else:
        t = {"vp_sde": 1e-5, "subvp_sde": 1e-3}[name] * (1 - t) + t
        b = 0.1 * t + 0.5 * 19.9 * t**2
        alpha, variance = np.exp(-b / 2), -np.expm1(-b)
        sigma = np.sqrt(variance) if name == "vp_sde" else variance
    scale = 1 / np.hypot(alpha, sigma)
    squared = (scale * alpha) ** 2 * np.sum(x**2) + 2 * (scale * sigma + 1) ** 2
    expected = np.trapezoid(squared, t) / (t[-1] - t[0])

    count = 20_000
    weighting = dk.part("weighting", PRESETS[name].weighting, model=model)
    times = dk.part("time_sampler", PRESETS[name].time_sampler, model=model)
    data = jnp.broadcast_to(jnp.asarray(x, jnp.float32), (count, 2))

    @jax.jit
    def loss(key):
        return dk.denoising_loss(model, data, key=key, weighting=weighting, time_sampler=times)

    losses = np.asarray(loss(jax.random.key(1)))
    # Five standard errors.
    assert losses.mean() == pytest.approx(expected, abs=5 * losses.std() / np.sqrt(count))
    assert losses.std() / np.sqrt(count) < 0.01 * expected


@each_preset
def test_sigma_squared_is_in_front_of_the_error_of_the_score(name):
    # The weighting of the preset is the paper's loss in another form: |score error|^2 times sigma^2.
    model = small(name)
    weighting = dk.part("weighting", PRESETS[name].weighting, model=model)
    spelled_out = dk.weightings.implied_weighting(
        parameterization=dk.Score(),
        schedule=model.schedule,
        process=model.process,
        factor=lambda logsnr: model.process.at(logsnr).sigma ** 2,
    )
    maximum, minimum = model.schedule.endpoints
    logsnr = jnp.linspace(maximum, minimum, 21)[1:-1]
    np.testing.assert_allclose(jax.vmap(weighting)(logsnr), jax.vmap(spelled_out)(logsnr), rtol=1e-5)


def test_noise_levels_of_ve_are_twice_as_large_on_data_twice_as_wide():
    # sigma from 0.01 to 50 on data in [0, 1]; the decoder's data are in [-1, 1].
    decoder = dk.DiscretizedDecoder(256)
    black, white = decoder.encode(jnp.array([0, 255]))
    width = float(white - black)
    schedule = small("ve_sde").schedule
    sigmas = [float(dk.VarianceExploding().at(end).sigma) for end in schedule.endpoints]
    # The decoder puts levels at the centres of their bins: from -255/256 to 255/256.
    np.testing.assert_allclose(sigmas, width * 256 / 255 * np.array([0.01, 50.0]), rtol=1e-5)
    assert float(schedule(0.5)) == pytest.approx(-2 * np.log(2 * np.sqrt(0.01 * 50)), rel=1e-6)


def test_the_corrector_of_ve_is_the_paper_s_step_at_a_thousand_steps():
    _, options = VE_SDE.choice("sampler")
    h = 2 * np.log(50 / 0.01) / 1000
    # Algorithm 4 where there is only noise: |z| / |g| = sigma, and 1 - a = 2 r^2.
    assert -np.expm1(-options["corrector"] * h) == pytest.approx(2 * 0.16**2, rel=2e-3)
    assert options["corrector_steps"] == 1


def test_optimiser_settings_are_accepted_and_the_paper_s():
    # yang-song/score_sde_pytorch, configs/default_cifar10_configs.py and losses.py.
    for preset, ema in ((VP_SDE, 0.9999), (SUBVP_SDE, 0.9999), (VE_SDE, 0.999)):
        config = dk.TrainConfig(**preset.train)
        assert (config.steps, config.ema, config.ema_warmup) == (1_300_001, ema, True)
        assert (config.batch_size, config.learning_rate, config.warmup) == (128, 2e-4, 5000)
        assert (config.b1, config.b2, config.clip, config.weight_decay) == (0.9, 0.999, 1.0, 0.0)
