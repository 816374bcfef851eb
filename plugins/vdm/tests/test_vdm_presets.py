"""The preset `vdm_cifar10` is the published configuration."""

import jax
import numpy as np

import diffkit as dk


def test_settings_are_those_of_the_published_configuration():
    # google-research/vdm: configs/cifar10.py, and experiment.py and train_state.py for what has no name
    # there (the rate from 0, the mask of the decay, the moving average without a ramp).
    chosen = dk.get("preset", "vdm_cifar10")
    config = dk.TrainConfig(**chosen.train)
    assert (config.steps, config.batch_size, config.warmup) == (10_000_000, 128, 100)
    assert (config.learning_rate, config.decay, config.clip) == (2e-4, "constant", 0.0)
    assert (config.b1, config.b2) == (0.9, 0.99)
    assert (config.weight_decay, config.decay_biases) == (0.01, False)
    assert (config.ema, config.ema_warmup) == (0.9999, False)
    # sm_n_embd, sm_n_layer, sm_pdrop; Base2FourierFeatures(start=6, stop=8).
    _, network = chosen.choice("network")
    assert network == {"width": 128, "depth": 32, "dropout": 0.1, "fourier": (6, 7)}


def test_schedule_starts_between_the_published_endpoints():
    # gamma_min = -13.3 and gamma_max = 5, a straight line.
    model = dk.preset("vdm_cifar10", network=("mlp", {"width": 8})).model(shape=(2,), key=jax.random.key(0))
    gamma = [-float(model.schedule(t)) for t in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(gamma, [-13.3, -4.15, 5.0], rtol=1e-3)
