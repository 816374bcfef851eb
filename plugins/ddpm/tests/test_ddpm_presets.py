"""The presets: the published constants, where they can be seen from outside."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk


@pytest.mark.parametrize(
    ("name", "outputs", "size", "millions"),
    # The published networks have 35.7 million
    # (DDPM appendix B) and 50 million (the name of iDDPM's checkpoint), with one more block at each
    # resolution on the way up.
    [("ddpm", 1, 32, 29.1), ("iddpm", 2, 32, 42.2), ("simple_diffusion", 1, 128, 613.0)],
)
def test_size_of_the_network(name, outputs, size, millions):
    chosen, options = dk.get("preset", name).choice("network")
    make = dk.get("network", chosen)
    network = eqx.filter_eval_shape(
        lambda key: make((3, size, size), **options, outputs=outputs, key=key), jax.random.key(0)
    )
    shapes = [leaf.shape for leaf in jax.tree.leaves(network) if hasattr(leaf, "shape")]
    assert sum(map(math.prod, shapes)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        # 1 - alpha_bar_1 = 1e-4 and the last SNR of table 1 in Lin et al. 2023 (arXiv 2305.08891).
        ("ddpm", math.log(0.9999 / 1e-4), math.log(4.035993e-05)),
        # cos^2 at 1/4000 and at 3999/4000, the last step's alpha being 0.001.
        ("iddpm", 11.5264, -22.6085),
        # 15 and -15, both with 2 log(1 / 2).
        ("simple_diffusion", 13.6137056, -16.3862944),
    ],
)
def test_noise_levels(name, first, last):
    if name == "iddpm":
        angle = [np.pi / 2 * (u + 0.008) / 1.008 for u in (0.0, 1 / 4000, 3999 / 4000)]
        f = np.cos(angle) ** 2
        bars = f[1] / f[0], f[2] / f[0] * 1e-3
        assert np.log([bar / (1 - bar) for bar in bars]) == pytest.approx([first, last], abs=1e-3)
    chosen, options = dk.get("preset", name).choice("schedule")
    schedule = dk.get("schedule", chosen)(**options)
    np.testing.assert_allclose(schedule.endpoints, [first, last], rtol=1e-5)


def test_shift_of_simple_diffusion_is_that_of_average_pooling():
    # Equations 4 and 5: averaged over 2x2 squares, the noise of 128x128 is that of 64x64 unshifted.
    chosen, options = dk.get("preset", "simple_diffusion").choice("schedule")
    shifted = dk.get("schedule", chosen)(**options)
    plain = dk.Cosine(60.0, -60.0)
    wide = dk.get("schedule", chosen)(**(options | {"logsnr_max": 60.0, "logsnr_min": -60.0}))
    t = jnp.asarray([0.1, 0.5, 0.9])
    pooled = jax.vmap(wide)(t) + math.log(4)
    np.testing.assert_allclose(pooled, jax.vmap(plain)(t), atol=1e-4)
    # The whole curve of images of 64x64 from 15 to -15 is moved: its ends, and its middle, where
    # the angle is pi / 4 and log SNR without a shift 0.
    ends_and_middle = [float(shifted(t)) for t in (0.0, 0.5, 1.0)]
    assert ends_and_middle == pytest.approx([13.6137, -1.3863, -16.3863], abs=1e-4)
    unshifted = dk.Cosine(15.0, -15.0)
    moved = jax.vmap(shifted)(t) - jax.vmap(unshifted)(t)
    np.testing.assert_allclose(moved, -math.log(4), atol=1e-4)


@pytest.mark.parametrize(("name", "spread"), [("ddpm", 1.0), ("simple_diffusion", 0.2)])
def test_variance_of_the_reverse_step(name, spread):
    # DDPM section 3.2: beta_t. Simple diffusion, appendix A: log variances mixed, 0.2 of beta_t's.
    chosen, options = dk.get("preset", name).choice("sampler")
    sampler = dk.get("sampler", chosen)(**options)
    process, logsnr_t, logsnr_s = dk.VariancePreserving(), jnp.asarray(-2.0), jnp.asarray(-1.5)

    def denoise(y, logsnr):
        return dk.Prediction(jnp.zeros_like(y), jnp.zeros_like(y), process.at(logsnr))

    bar_t, bar_s = (float(jax.nn.sigmoid(value)) for value in (logsnr_t, logsnr_s))
    beta = 1 - bar_t / bar_s
    beta_tilde = (1 - bar_s) / (1 - bar_t) * beta
    key, y = jax.random.key(0), jnp.zeros(3)
    found, _ = sampler.step(denoise, y, logsnr_t, logsnr_s, sampler.init(y), key)
    std = np.sqrt(bar_s) * found / jax.random.normal(key, (3,))
    expected = spread * np.log(beta) + (1 - spread) * np.log(beta_tilde)
    np.testing.assert_allclose(2 * np.log(std), expected, rtol=1e-5)


def test_iddpm_learns_both_halves_and_samples_at_its_own_levels():
    small = ("mlp", {"width": 8, "depth": 1})
    model = dk.preset("iddpm", network=small).model(shape=(2,), levels=8, key=jax.random.key(0))
    chosen = dk.get("preset", "iddpm")
    parts = {
        kind: dk.part(kind, getattr(chosen, kind), model=model)
        for kind in ("weighting", "time_sampler", "sampler", "grid")
    }
    x = jnp.asarray([[1, 6], [7, 0], [3, 3]])

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        return dk.denoising_loss(
            model,
            x,
            key=jax.random.key(1),
            weighting=parts["weighting"],
            time_sampler=parts["time_sampler"],
        ).mean()

    # The last layer: two outputs for eps, two for the variances.
    last = np.asarray(gradient(model).denoiser.network.dense_out.weight)
    halves = np.abs(last).sum(axis=tuple(i for i, n in enumerate(last.shape) if n != 4))
    assert halves.shape == (4,)
    assert np.all(halves > 1e-6)
    path = dk.samplers.sample_trajectory(
        model, parts["sampler"], 3, key=jax.random.key(2), steps=9, grid=parts["grid"]
    )
    assert np.all(np.isfinite(path.z))
    # 3999 / 9 is 444.33: levels 0, 444, 889, 1333, ... of the chain.
    t = np.array([0, 444, 889, 1333, 1777, 2222, 2666, 3110, 3555, 3999])[::-1] / 3999
    expected = jax.vmap(model.schedule)(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(path.logsnr, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        # hojonathanho/diffusion: scripts/run_cifar.py, diffusion_tf/utils.py, tpu_utils.py; the steps
        # are appendix B's.
        (
            "ddpm",
            {
                "steps": 800_000,
                "batch_size": 128,
                "learning_rate": 2e-4,
                "warmup": 5000,
                "clip": 1.0,
                "ema": 0.9999,
                "ema_warmup": False,
                "b1": 0.9,
                "b2": 0.999,
                "weight_decay": 0.0,
                "decay": "constant",
            },
        ),
        # openai/improved-diffusion: README.md, scripts/image_train.py, train_util.py, nn.py.
        (
            "iddpm",
            {
                "steps": 500_000,
                "batch_size": 128,
                "learning_rate": 1e-4,
                "warmup": 0,
                "clip": 0.0,
                "ema": 0.9999,
                "ema_warmup": False,
                "b1": 0.9,
                "b2": 0.999,
                "weight_decay": 0.0,
                "decay": "constant",
            },
        ),
    ],
)
def test_training_has_the_published_settings(name, settings):
    config = dk.TrainConfig(**dk.get("preset", name).train)
    assert {key: getattr(config, key) for key in settings} == settings
