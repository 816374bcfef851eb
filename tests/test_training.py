"""The training loop: what it does to the parameters, on disk, and after an interruption."""

import dataclasses
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffkit as dk
from diffkit.optimisers import AdamW
from diffkit.training import Checkpoints, init_state, read_metrics, train_steps
from diffkit.training.state import METRICS, Objective, _transformation, learning_rate, train_step

SMALL = dk.TrainConfig(
    steps=24, batch_size=16, steps_per_dispatch=8, warmup=4, decay="constant", checkpoint_every=8
)


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def assert_same(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trained(toy, toy_model, tmp_path_factory):
    """A run on disk, and its result."""
    path = tmp_path_factory.mktemp("run")
    return path, dk.fit(toy_model(), toy, SMALL, directory=path, progress=False)


def test_training_lowers_the_bound(toy, toy_model):
    config = dataclasses.replace(SMALL, steps=300, learning_rate=5e-3, ema=0.9)
    model = toy_model()
    fitted = dk.fit(model, toy, config, progress=False)
    key = jax.random.key(0)
    before, after = (dk.evaluate(m, toy.test, key=key).bits_per_dim[0] for m in (model, fitted.model))
    # Two columns of which the second is known from the first: 1.5 bits per dimension at best.
    assert 1.4 < after < 0.8 * before


def test_nothing_is_compiled_after_the_first_dispatch(toy, toy_model):
    # Three dispatches, the last one shorter; every compilation is counted by JAX itself.
    compiled = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs.get("fun_name", event))

    class Counter:
        def __init__(self):
            self.counts = []

        def __call__(self, info):
            self.counts.append(len(compiled))

    counter = Counter()
    config = dataclasses.replace(SMALL, steps=21, checkpoint_every=0, batch_size=13)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        dk.fit(toy_model(), toy, config, progress=False, hooks=[counter])
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(counter.counts) == 3
    assert counter.counts[0] > 0, "the listener heard nothing"
    # The first record is read while the second dispatch runs: by then all is compiled.
    assert counter.counts[0] == counter.counts[-1]


def test_many_steps_are_single_steps(toy, toy_model):
    objective = Objective(dk.ELBO(), None)
    key = jax.random.key(1)
    x = jnp.asarray(toy.train.gather(np.arange(48)).reshape(3, 16, 2))
    state = init_state(toy_model(), SMALL)
    many, rows = train_steps(
        (x, jnp.asarray(2), key, objective, SMALL, AdamW()), init_state(toy_model(), SMALL)
    )
    step = eqx.filter_jit(lambda state, x: train_step(state, x, key, objective, SMALL))
    averages = [arrays(state.average)]
    for index in range(2):
        state, row = step(state, x[index])
        np.testing.assert_allclose(rows[index], row, rtol=1e-5, atol=1e-6)
        # The average by hand: old + (1 - d) (new - old), with the warm-up d = (1 + n) / (10 + n).
        decay = min(SMALL.ema, (index + 2) / (index + 11))
        new = arrays(eqx.filter(state.model, dk.trainable(state.model)))
        averages.append([a + (1 - decay) * (b - a) for a, b in zip(averages[-1], new, strict=True)])
    np.testing.assert_array_equal(rows[2], 0)  # the third batch was not used
    for a, b in zip(arrays(many.model), arrays(state.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(averages[-1], arrays(state.average), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert int(many.step) == 2
    assert len(METRICS) == rows.shape[1]


def test_loss_is_the_bound_and_weight_decay_spares_the_schedule(toy, toy_model):
    model = toy_model()
    objective, key = Objective(dk.ELBO(), None), jax.random.key(2)
    x = jnp.asarray(toy.train.gather(np.arange(16)))
    value, (terms, _) = eqx.filter_jit(objective)(model, x, key)
    times = dk.LowDiscrepancy()
    bound = eqx.filter_jit(dk.vlb)(model, x, key=key, time_sampler=times, inference=False)
    assert float(value) == pytest.approx(float(bound.bits_per_dim.mean()), rel=1e-5)
    assert float(terms.sum()) == pytest.approx(float(value), rel=1e-6)
    # With a weight decay that would halve every parameter, only the denoiser's are halved.
    config = dataclasses.replace(SMALL, weight_decay=1e6, learning_rate=5e-7, warmup=0)
    state, _ = eqx.filter_jit(train_step)(init_state(model, config), x, key, objective, config)
    ends, new = model.schedule.ends, state.model.schedule.ends
    np.testing.assert_allclose([new.start, new.gap], [ends.start, ends.gap], rtol=1e-5)
    weight = model.denoiser.network.dense_in.weight
    np.testing.assert_allclose(
        state.model.denoiser.network.dense_in.weight, 0.5 * weight, rtol=1e-3, atol=1e-5
    )


def test_learning_rate():
    rate = learning_rate(dk.TrainConfig(steps=100, warmup=10, learning_rate=0.5, decay="cosine"))
    assert [float(rate(n)) for n in (0, 5, 10, 55)] == pytest.approx([0.0, 0.25, 0.5, 0.25])
    assert float(rate(100)) == pytest.approx(0.0, abs=1e-7)
    rate = learning_rate(dk.TrainConfig(warmup=10, learning_rate=0.5, decay="constant"))
    assert [float(rate(n)) for n in (0, 1, 10, 5000)] == pytest.approx([0.0, 0.05, 0.5, 0.5])
    rate = learning_rate(dk.TrainConfig(warmup=0, learning_rate=0.5, decay="constant"))
    assert float(rate(0)) == pytest.approx(0.5)
    rate = learning_rate(dk.TrainConfig(steps=100, warmup=10, learning_rate=0.5, decay="linear"))
    assert [float(rate(n)) for n in (5, 10, 55, 100)] == pytest.approx([0.25, 0.5, 0.25, 0.0])
    rate = learning_rate(dk.TrainConfig(warmup=10, learning_rate=0.5, decay="rsqrt"))
    assert [float(rate(n)) for n in (5, 10, 40, 1000)] == pytest.approx([0.25, 0.5, 0.25, 0.05])


@pytest.mark.parametrize("steps", [1, 2, 50, 100, 101, 150])
def test_the_learning_rate_of_a_short_run_ends_at_zero_too(steps):
    rate = learning_rate(dk.TrainConfig(steps=steps, warmup=100, learning_rate=0.5, decay="cosine"))
    assert float(rate(steps)) == pytest.approx(0.0, abs=1e-7)
    # Up to the full rate, and down again by the cosine over what is left.
    rise = min(100, steps // 2)
    values = [float(rate(n)) for n in range(steps + 1)]
    assert values[rise] == max(values) == pytest.approx(0.5)
    middle = (rise + steps) / 2
    assert values[int(middle)] == pytest.approx(
        0.25 * (1 + math.cos(math.pi * (int(middle) - rise) / (steps - rise)))
    )


def test_the_given_model_stays_usable(toy, toy_model):
    model = toy_model()
    before = [leaf.copy() for leaf in arrays(model)]
    dk.fit(model, toy, dataclasses.replace(SMALL, steps=8), progress=False)
    for a, b in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_going_on_is_as_if_it_had_never_stopped(toy, toy_model, trained, tmp_path):
    _, whole = trained
    dk.fit(toy_model(), toy, dataclasses.replace(SMALL, steps=16), directory=tmp_path, progress=False)
    # A record of a step after the last checkpoint, as a killed process leaves it, and half a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 20, "seconds": 1.0, "loss": 0.0}) + '\n{"step": 2')
    resumed = dk.fit(toy_model(), toy, SMALL, directory=tmp_path, progress=False)
    assert_same(resumed.state, whole.state)
    steps = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == [8, 16, 24]
    losses = [[record["loss"] for record in run.metrics] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_files_of_a_run(trained):
    path, fitted = trained
    assert [record["step"] for record in fitted.metrics] == [8, 16, 24]
    assert read_metrics(path / "metrics.jsonl") == fitted.metrics
    assert any((path / "tensorboard").iterdir())
    checkpoints = Checkpoints(path / "checkpoints")
    assert checkpoints.latest_step() == 24
    checkpoints.close()


def test_a_time_sampler_that_adapts_is_part_of_the_state(toy, toy_model, tmp_path):
    arguments = {"time_sampler": dk.Adaptive(bins=4, decay=0.5), "progress": False}
    whole = dk.fit(toy_model(), toy, SMALL, **arguments)
    learnt = whole.state.time_sampler.second_moment
    assert len(np.unique(learnt)) == 4
    # What it learnt is what the loss shows: the second moment of the loss over each quarter of time, to
    # the precision of few draws from a heavy tail, while the moments span four orders of magnitude.
    x = jnp.tile(jnp.asarray(toy.train.gather(np.arange(64))), (40, 1))
    objective = Objective(dk.ELBO(), None)
    _, (_, (t, loss)) = eqx.filter_jit(objective)(whole.state.model, x, jax.random.key(3))
    quarter = np.floor(np.asarray(t) * 4)
    expected = [np.mean(np.square(loss)[quarter == q]) for q in range(4)]
    assert np.all(np.abs(np.log(learnt / np.asarray(expected))) < 3)
    # Stopped and started again, it goes on with what it knows.
    dk.fit(toy_model(), toy, dataclasses.replace(SMALL, steps=16), directory=tmp_path, **arguments)
    resumed = dk.fit(toy_model(), toy, SMALL, directory=tmp_path, **arguments)
    assert_same(resumed.state, whole.state)
    # A run is read without knowing its time sampler.
    assert_same(dk.load_run(tmp_path, like=toy_model()).model, whole.model)


def test_load_run(trained, toy_model):
    path, fitted = trained
    run = dk.load_run(path, like=toy_model())
    assert run.step == 24
    assert_same(run.model, fitted.model)
    with pytest.raises(ValueError, match=r"made in Python, diffkit_vdm.schedules.LearnedLinear"):
        dk.load_run(path)
    with pytest.raises(ValueError, match=r"not what run .*: network.width \(8 there, 12 now\)"):
        dk.load_run(path, like=toy_model(network=("mlp", {"width": 12, "depth": 1})))
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        dk.load_run(path / "nowhere")


def test_a_loss_that_is_not_finite_stops_and_writes_nothing(toy, toy_model, tmp_path):
    config = dataclasses.replace(SMALL, learn_endpoints=False)
    good = dataclasses.replace(config, steps=8)

    class Broken(dk.AbstractWeighting):
        factor: jax.Array

        def __call__(self, logsnr):
            return self.factor + 0 * logsnr

    options = {"directory": tmp_path, "progress": False, "check": False}
    dk.fit(toy_model(), toy, good, weighting=Broken(jnp.ones(())), **options)
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        dk.fit(toy_model(), toy, config, weighting=Broken(jnp.array(jnp.nan)), **options)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest_step() == 8
    checkpoints.close()


def test_data_that_do_not_fit_are_refused(toy, toy_model):
    with pytest.raises(ValueError, match=r"data has examples of shape \(1, 8, 8\)"):
        dk.fit(toy_model(), dk.data.Digits(), SMALL)
    with pytest.raises(ValueError, match="data has levels=256, but the model's decoder has levels=8"):
        dk.fit(toy_model(), dk.data.Swirl(), SMALL)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "train.steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "train.learning_rate must be positive"),
        ({"ema": 1.0}, r"train.ema must be in \[0, 1\), got 1.0"),
        (
            {"decay": "step"},
            "train.decay must be one of constant, cosine, linear, rsqrt, got 'step'",
        ),
        ({"loss_steps": 0}, "train.loss_steps must be at least 1 or None"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        dk.TrainConfig(**setting)


def test_baselines_of_the_digits():
    # The known values of this split: uniform 4.087, independent pixels 2.364, LZMA 2.773.
    found = dk.data.baselines(dk.data.Digits())
    assert found["uniform"] == pytest.approx(4.087, abs=1e-3)
    assert found["independent"] == pytest.approx(2.364, abs=1e-3)
    assert found["lzma"] == pytest.approx(2.773, abs=2e-2)


@pytest.mark.parametrize("biases", [True, False])
def test_weight_decay_and_biases(biases):
    # The decay of one step by hand: a gradient of zero leaves nothing but - rate * decay * parameter.
    data = dk.data.Swirl()
    network = dk.networks.MLP(data.shape, width=4, depth=1, key=jax.random.key(0))
    network = jax.tree.map(lambda a: a + 1.0 if eqx.is_array(a) else a, network)
    denoiser = dk.Denoiser(network, dk.Epsilon(), dk.VariancePreserving())
    decoder = dk.DiscretizedDecoder(data.levels)
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(), decoder, data.shape)
    config = dk.TrainConfig(
        weight_decay=0.5, learning_rate=0.1, warmup=0, decay="constant", decay_biases=biases
    )
    params = eqx.filter(model, dk.trainable(model))
    optimiser = _transformation(config)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimiser.update(nothing, optimiser.init(params), params)
    dense, moved = network.dense_in, updates.denoiser.network.dense_in
    np.testing.assert_allclose(moved.weight, -0.05 * dense.weight, rtol=1e-5)
    np.testing.assert_allclose(moved.bias, (-0.05 if biases else 0.0) * dense.bias, rtol=1e-5)


def test_the_average_without_a_warmup(toy, toy_model):
    config = dataclasses.replace(SMALL, ema=0.75, ema_warmup=False, warmup=0)
    state = init_state(toy_model(), config)
    x, key = jnp.asarray(toy.train.gather(np.arange(16))), jax.random.key(1)
    new, _ = train_step(state, x, key, Objective(dk.ELBO(), None), config)
    after = eqx.filter(new.model, dk.trainable(new.model))
    for old, parameter, average in zip(*map(arrays, (state.average, after, new.average)), strict=True):
        np.testing.assert_allclose(average, 0.75 * old + 0.25 * parameter, rtol=1e-5, atol=1e-6)


def test_optimiser_is_adamw(toy, toy_model):
    # One step of Adam moves a parameter by the learning rate, whatever the gradient's size.
    config = dataclasses.replace(SMALL, warmup=0, weight_decay=0.0, learning_rate=1e-3, clip=0.0)
    objective, key = Objective(dk.ELBO(), None), jax.random.key(5)
    model = toy_model()
    x = jnp.asarray(toy.train.gather(np.arange(16)))
    state, metrics = train_step(init_state(model, config), x, key, objective, config)
    moved = state.model.denoiser.network.dense_out.bias - model.denoiser.network.dense_out.bias
    np.testing.assert_allclose(np.abs(moved), 1e-3, rtol=1e-3)
    gradient = eqx.filter_grad(lambda m: objective(m, x, jax.random.fold_in(key, 0))[0])(model)
    assert float(metrics[-1]) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)


def test_the_progress_names_its_loss(capfd):
    """A weighted loss is no bound, and is not shown as one."""
    data = dk.data.Swirl()
    network = dk.networks.MLP(data.shape, width=4, depth=1, key=jax.random.key(0))
    denoiser = dk.Denoiser(network, dk.Epsilon(), dk.VariancePreserving())
    decoder = dk.DiscretizedDecoder(data.levels)
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(), decoder, data.shape)
    for weighting, name in ((dk.Sigmoid(), "weighted loss"), (dk.ELBO(), "bits/dim")):
        dk.fit(model, data, dk.TrainConfig(steps=1, batch_size=2), weighting=weighting)
        assert capfd.readouterr().out.strip().endswith(name)
