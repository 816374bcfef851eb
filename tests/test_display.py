"""What models, predictions and values say of themselves; and that a model holds arrays alone."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffkit as dk
from diffkit.display import describe
from diffkit.presets import Assembly
from diffkit.training import init_state


@pytest.mark.parametrize(
    ("value", "words", "without"),
    [
        (jnp.float32(0.25), "0.25", "float32[]"),
        (np.arange(3), "[0, 1, 2]", "ndarray int64[3]"),
        (jnp.arange(8.0).reshape(2, 4), "float32[2, 4] in [0, 7], mean 3.5", "float32[2, 4]"),
        (jnp.ones(9, jnp.bfloat16), "bfloat16[9] in [1, 1], mean 1", "bfloat16[9]"),
        (jax.ShapeDtypeStruct((3,), jnp.float32), "float32[3]", "float32[3]"),
        (jax.random.key(0), "key<fry>[]", "key<fry>[]"),
        ((jnp.zeros(2), None), "([0., 0.], None)", "(float32[2], None)"),
        (dk.ELBO, "ELBO", "ELBO"),
        (dk.ELBO(), "ELBO(...)", "ELBO(...)"),
    ],
)
def test_values_in_words(value, words, without):
    assert describe(value) == words
    assert describe(value, numbers=False) == without


def test_a_model_in_a_few_lines(toy_model):
    model = toy_model()
    arrays = eqx.filter(model, dk.trainable(model))
    count = sum(leaf.size for leaf in jax.tree.leaves(arrays))
    first, *lines = repr(dk.guide(model, 2.0)).splitlines()
    assert first == f"DiffusionModel of shape (2,), {count:,} parameters"
    assert [line.split()[1] for line in lines] == [
        "Guided(scale=2.0)",
        "Denoiser(data_std=1.0)",
        "MLP(shape=(2,),",
        "Epsilon()",
        "VariancePreserving()",
        "LearnedLinear()",
        "DiscretizedDecoder(levels=8)",
    ]
    assert max(map(len, lines)) < 130


def test_a_prediction_shows_numbers():
    level = dk.VariancePreserving().at(0.0)
    assert repr(level) == "NoiseLevel(logsnr=0., alpha=0.7071, sigma=0.7071)"
    prediction = dk.Prediction(jnp.arange(8.0), jnp.zeros(8), level, spread=jnp.ones(8))
    assert repr(prediction) == (
        f"Prediction at {level}\n"
        "  x       float32[8] in [0, 7], mean 3.5\n"
        "  eps     float32[8] in [0, 0], mean 0\n"
        "  spread  float32[8] in [1, 1], mean 1"
    )
    inside = []
    jax.eval_shape(lambda prediction: inside.append(repr(prediction)), prediction)
    unknown = "NoiseLevel(logsnr=float32[], alpha=float32[], sigma=float32[])"
    assert inside == [
        f"Prediction at {unknown}\n  x       float32[8]\n  eps     float32[8]\n  spread  float32[8]"
    ]


def test_a_fit_in_a_screen_and_evaluated_as_it_was_trained(toy, toy_model):
    model = toy_model()
    preset = dk.Preset.of(model, train={"loss_steps": 3}, optimiser=optax.adam(1e-3))
    state = init_state(model, dk.TrainConfig())
    records = [{"step": 1, "loss": 3.25}, {"step": 1, "test_bits_per_dim": 4.0}]
    fitted = dk.Fit(model, state, records, Assembly.around(preset, model), Path("runs/mine"))
    first, *lines = repr(fitted).splitlines()
    assert first == "Fit after 0 steps, last loss 3.25 bits/dim, in runs/mine"
    assert [line.split()[0] for line in lines] == [
        *("denoiser", "network", "parameterization", "process", "schedule", "decoder"),
        *("weighting", "time_sampler", "sampler", "grid", "optimiser"),
    ]
    assert lines[-1].split()[1] == "GradientTransformationExtraArgs(...)"
    assert max(map(len, lines)) <= 100

    options = {"key": jax.random.key(0), "passes": 2}
    found = [dk.evaluate(fitted, toy.test, **options), fitted.evaluate(toy.test, **options)]
    assert [each.steps for each in found] == [3, 3]
    assert found[0].total == found[1].total
    shown, (mean, error) = repr(found[0]), found[0].bits_per_dim
    assert shown.startswith(f"Evaluation: {mean:.4f} +- {error:.4f} bits/dim (prior ")
    assert shown.endswith(f"T = 3, {len(toy.test)} examples, draws of each: 2")


@pytest.mark.parametrize("name", dk.available("preset"))
def test_models_hold_arrays_alone(name):
    model = dk.preset(name, network="mlp").model(shape=(1, 8, 8), levels=8, key=jax.random.key(0))
    assert all(map(eqx.is_array, jax.tree.leaves(model)))


def test_transformations_of_jax_take_a_model(toy_model):
    model = toy_model()

    def loss(model):
        return jnp.sum(model.denoiser(jnp.ones(2), 0.0).x)

    gradient = jax.jit(jax.grad(loss))(model)
    assert eqx.tree_equal(gradient, eqx.filter_jit(eqx.filter_grad(loss))(model))
    assert any(map(jnp.any, jax.tree.leaves(gradient)))
