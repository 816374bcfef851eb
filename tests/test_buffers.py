"""Buffers: in the model, but neither trained nor averaged."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit_vdm import LearnedLinear, LearnedMonotone


class Part(eqx.Module):
    weight: jax.Array
    kept: dk.Buffer
    count: jax.Array
    name: str = eqx.field(static=True)


def part():
    kept = dk.Buffer({"scale": jnp.full(2, 3.0), "offset": jnp.array(1.0), "label": "a"})
    return Part(jnp.array([1.0, 2.0]), kept, jnp.array(7), "part")


def test_trainable_marks_floats_outside_of_buffers():
    marks = dk.trainable({"one": part(), "two": (jnp.zeros(3), 5, "text", 1.5)})
    assert marks["one"].weight is True
    assert marks["one"].count is False
    assert marks["one"].kept.value == {"scale": False, "offset": False, "label": False}
    # A Python number is a setting, not a parameter.
    assert marks["two"] == (True, False, False, False)


def test_trainable_takes_a_buffer_within_a_buffer_and_a_lone_one():
    assert dk.trainable(dk.Buffer(dk.Buffer(jnp.ones(2)))).value.value is False
    params, rest = eqx.partition(part(), dk.trainable(part()))
    assert len(jax.tree.leaves(params)) == 1
    assert eqx.tree_equal(eqx.combine(params, rest), part())


def test_gradients_stop_at_get():
    def loss(part):
        kept = part.kept.get()
        return jnp.sum(part.weight * kept["scale"]) + kept["offset"]

    gradient = eqx.filter_grad(loss)(part())
    np.testing.assert_array_equal(gradient.weight, [3.0, 3.0])
    np.testing.assert_array_equal(gradient.kept.value["scale"], [0.0, 0.0])
    assert gradient.kept.value["offset"] == 0.0
    assert part().kept.get()["label"] == "a"


@pytest.mark.parametrize("learned", [LearnedLinear, LearnedMonotone])
def test_fixed_endpoints_have_no_gradient(learned, getkey):
    options = {} if learned is LearnedLinear else {"hidden": 4, "key": getkey()}

    def end(schedule):
        return schedule(0.25)

    fixed = eqx.filter_grad(end)(learned(learn_endpoints=False, **options))
    assert float(fixed.ends.value.start) == 0.0
    assert float(fixed.ends.value.gap) == 0.0
    free = eqx.filter_grad(end)(learned(**options))
    # The whole curve moves with its first end.
    assert float(free.ends.start) == pytest.approx(1.0, rel=1e-5)
    assert float(free.ends.gap) < 0.0


def test_training_moves_no_buffer_and_averages_none(toy, toy_model):
    # An endpoint that float32 rounds, and a fast average: a mix of old and new would differ in the
    # last bits even where nothing moves.
    settings = {"logsnr_max": 13.3, "logsnr_min": -5.1, "hidden": 8}
    config = dk.TrainConfig(steps=12, batch_size=8, warmup=0, ema=0.9, steps_per_dispatch=5)

    def train(learn):
        options = {**settings, "learn_endpoints": learn}
        model = toy_model(schedule=("learned_monotone", options))
        return model, dk.fit(model, toy, config, progress=False)

    def bits(ends):
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(ends)]

    model, fitted = train(learn=False)
    for trained in (fitted.state.model, fitted.state.averaged_model, fitted.model):
        assert bits(trained.schedule.ends) == bits(model.schedule.ends)
        assert not np.array_equal(trained.schedule.interior.log_slope, model.schedule.interior.log_slope)
    assert jax.tree.leaves(fitted.state.average.schedule.ends) == []

    # The same with endpoints that are parameters moves them: the test can fail.
    model, fitted = train(learn=True)
    for trained in (fitted.state.model, fitted.model):
        assert bits(trained.schedule.ends) != bits(model.schedule.ends)
