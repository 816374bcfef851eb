"""The preset: the published numbers, and that its loss is what its weighting says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import diffkit as dk
import diffkit_edm

KINDS = ("schedule", "process", "parameterization", "decoder", "network")


def small(**parts):
    parts = {"network": ("mlp", {"width": 8, "depth": 1})} | parts
    return dk.preset("edm", **parts).model(shape=(2,), levels=8, key=jax.random.key(0))


def test_published_numbers():
    train = diffkit_edm.EDM.train
    # 200 million images, the first 10 million to warm up, in batches of 512.
    assert train["steps"] == 390_625
    assert train["warmup"] == 19_531
    # Half of the average is forgotten after 0.5 million images.
    assert train["ema"] ** (500_000 / 512) == pytest.approx(0.5)
    config = dk.TrainConfig(**train)  # refuses values out of range
    # train.py and training_loop.py of NVlabs/edm.
    assert (config.learning_rate, config.b1, config.b2) == (1e-3, 0.9, 0.999)
    assert (config.clip, config.weight_decay, config.decay) == (0.0, 0.0, "constant")
    # Its average has a ramp too, of half-lives of 5 % of the images so far: the decay is 2^(-20 / n) after
    # n steps, against (1 + n) / (10 + n). Both ramps end within the first 20 thousand steps.
    assert config.ema_warmup
    assert config.ema == pytest.approx(2 ** (-20 / 19_531), abs=1e-6)
    assert 12_676 / 12_685 > config.ema > 12_674 / 12_683
    schedule = small().schedule
    np.testing.assert_allclose(np.exp(-np.array(schedule.endpoints) / 2), [0.002, 80], rtol=1e-6)


def test_network_of_the_preset_can_be_made():
    name, options = diffkit_edm.EDM.choice("network")
    made = jax.eval_shape(lambda: dk.get("network", name)((3, 32, 32), **options, key=jax.random.key(0)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(made) if hasattr(leaf, "size"))
    # The published DDPM++ has 56 million.
    assert 40e6 < parameters < 80e6


def test_weighting_is_what_the_loss_implies():
    model = small()
    weighting = dk.part("weighting", diffkit_edm.EDM.weighting, model=model)
    loss = dk.part("weighting", "simple", model=model)  # the plain error of F
    logsnr = jnp.linspace(-8.7, 12.4, 50)
    ratio = jax.vmap(weighting)(logsnr) / jax.vmap(loss)(logsnr)
    np.testing.assert_allclose(ratio, ratio[25], rtol=1e-4)


def test_weighting_takes_the_standard_deviation_of_the_model():
    # `data_std=0.3` on the command line reaches input, target and loss alike.
    edm = dk.preset("edm", network=("mlp", {"width": 8, "depth": 1}), data_std=0.3)
    model = edm.model(shape=(2,), levels=8, key=jax.random.key(0))
    logsnr = jnp.linspace(-8.7, 12.4, 50)

    def ratio(choice, s=0.3):
        """To the closed form of the weighting of F's plain error."""
        weighting = dk.part("weighting", choice, model=model)
        density = norm.pdf(np.asarray(logsnr, np.float64), 2.4, 2.4)
        plain = density * (np.exp(-np.asarray(logsnr, np.float64)) + s**2)
        found = np.asarray(jax.jit(jax.vmap(weighting))(logsnr)) / plain
        return found / found[25]

    np.testing.assert_allclose(ratio(diffkit_edm.EDM.weighting), 1.0, rtol=0.03)
    np.testing.assert_allclose(ratio("simple"), 1.0, rtol=0.03)
    np.testing.assert_allclose(ratio("edm", s=0.5), 1.0, rtol=0.03)


def test_preset_samples():
    model = small()
    sampler = dk.part("sampler", diffkit_edm.EDM.sampler, model=model)
    grid = dk.part("grid", diffkit_edm.EDM.grid, model=model)
    x = dk.sample(model, sampler, 3, key=jax.random.key(0), steps=4, grid=grid)
    assert x.shape == (3, 2)
    assert np.all((np.asarray(x) >= 0) & (np.asarray(x) < 8))
