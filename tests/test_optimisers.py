"""Optimisers: each is its rule, decay spares schedules, interiors keep their own; and accumulation."""

import dataclasses
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffkit as dk
from diffkit.optimisers import SGD, Adafactor, Adam, AdamW, Lion, Muon
from diffkit.testing import check_part
from diffkit.training import Objective, StepInfo, WeightsAndBiases, init_state
from diffkit.training.state import _transformation, train_step, transformation

SETTINGS = dk.TrainConfig(
    steps=8,
    batch_size=16,
    learning_rate=0.1,
    warmup=0,
    decay="constant",
    clip=0.0,
    weight_decay=0.5,
    b1=0.8,
    b2=0.9,
)


def step(optimiser, model, gradient, config=SETTINGS):
    """The updates of a first step."""
    params = eqx.filter(model, dk.trainable(model))
    made = _transformation(config, optimiser)
    return jax.jit(made.update)(gradient, jax.jit(made.init)(params), params)[0]


@pytest.fixture(scope="module")
def case(toy_model):
    """A model without a zero, and a gradient for it."""
    params, rest = eqx.partition(toy_model(), dk.trainable(toy_model()))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    drawn = [[jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in leaves] for _ in range(2)]
    params, gradient = map(tree.unflatten, drawn)
    return eqx.combine(params, rest), gradient


@pytest.mark.parametrize("name", dk.available("optimiser"))
def test_laws(name):
    for result in check_part("optimiser", dk.get("optimiser", name)):
        assert result.outcome == "passed", result.error


def orthogonal(matrix):
    u, _, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u @ v


@pytest.mark.parametrize(
    ("optimiser", "direction"),
    [
        # In a first step the averages of Adam are the gradient and its square.
        (AdamW(), lambda g, w: np.sign(g) + 0.5 * w),
        (AdamW(weight_decay=0.0), lambda g, w: np.sign(g)),
        (Adam(), lambda g, w: np.sign(g)),
        (SGD(), lambda g, w: g),
        (SGD(momentum=0.5, nesterov=True), lambda g, w: 1.5 * g),
        (Lion(), lambda g, w: np.sign(g) + 0.5 * w),
        (Lion(weight_decay=0.25), lambda g, w: np.sign(g) + 0.25 * w),
    ],
)
def test_first_step_is_the_rule(case, optimiser, direction):
    model, gradient = case
    updates = step(optimiser, model, gradient)
    for part in (lambda m: m.denoiser.network.dense_in.weight, lambda m: m.schedule.ends.gap):
        parameter = part(model) if part(model).ndim else 0.0  # no decay of the schedule
        expected = -0.1 * direction(np.asarray(part(gradient)), np.asarray(parameter))
        np.testing.assert_allclose(part(updates), expected, rtol=1e-4, atol=1e-6)


def test_muon_orthogonalises_each_matrix_of_the_network(case):
    model, gradient = case
    updates = step(Muon(weight_decay=0.0, nesterov=False), model, gradient)
    blocks = [tree.denoiser.network.blocks.dense1 for tree in (updates, gradient)]
    for update, g in zip(*(block.weight for block in blocks), strict=True):
        # Newton-Schulz brings the singular values between 0.7 and 1.2: the root mean square is near 0.2.
        scale = 0.1 * 0.2 * np.sqrt(max(g.shape))
        values = np.linalg.svd(np.asarray(update), compute_uv=False) / scale
        assert np.all((values > 0.6) & (values < 1.3))
        cosine = -np.sum(update * orthogonal(g)) / np.linalg.norm(update) / np.sqrt(min(g.shape))
        assert cosine > 0.95
    # Stacked biases are no matrix, and schedules have none: Adam.
    for part in (lambda m: m.denoiser.network.blocks.dense1.bias, lambda m: m.schedule.ends.gap):
        np.testing.assert_allclose(part(updates), -0.1 * np.sign(part(gradient)), rtol=1e-4)


def test_adafactor_keeps_rows_and_columns(case):
    model, gradient = case
    found = step(Adafactor(min_size=2, weight_decay=0.0), model, gradient)
    g = np.asarray(gradient.denoiser.network.dense_in.weight, np.float64)
    # Rows and columns of the squares in place of the squares (equation 4 of the paper), no larger than 1.
    squares = np.square(g)
    moment = squares.mean(1, keepdims=True) * squares.mean(0) / squares.mean()
    expected = g / np.sqrt(moment)
    expected /= max(1.0, np.sqrt(np.mean(np.square(expected))))
    np.testing.assert_allclose(
        found.denoiser.network.dense_in.weight, -0.1 * expected, rtol=1e-3, atol=1e-5
    )


def test_options_that_are_none_are_the_settings(case):
    # By the second step, which depends on both decay rates.
    model, gradient = case
    params = eqx.filter(model, dk.trainable(model))
    given = AdamW(b1=0.8, b2=0.9, weight_decay=0.5)
    other_settings = dataclasses.replace(SETTINGS, b1=0.1, b2=0.2, weight_decay=0)
    for one, other in ((AdamW(), given), (Adam(), Adam(b1=0.8, b2=0.9))):
        found = []
        for part, config in (
            (one, SETTINGS),
            (other, other_settings),
        ):
            made = transformation(part, config)
            state = made.init(params)
            for scale in (1.0, 0.3):
                scaled = jax.tree.map(lambda g, s=scale: s * g, gradient)
                updates, state = made.update(scaled, state, params)
            found.append(updates)
        jax.tree.map(np.testing.assert_array_equal, *found)


def test_interiors_keep_adam_at_their_own_rate():
    model = dk.preset(
        "vdm",
        schedule=("learned_monotone", {"minimise_variance": True}),
        network=("mlp", {"width": 4, "depth": 1}),
    ).model(shape=(2,), levels=8, key=jax.random.key(0))
    params = eqx.filter(model, dk.trainable(model))
    gradient = jax.tree.map(lambda a: jnp.full_like(a, 100.0), params)
    config = dataclasses.replace(SETTINGS, interior_learning_rate=0.02)
    interiors = []
    for optimiser in (AdamW(), SGD(), optax.sgd(3.0)):
        updates = step(optimiser, model, gradient, config)
        interiors.append(updates.schedule.interior)
        jax.tree.map(np.testing.assert_array_equal, interiors[0], interiors[-1])
    np.testing.assert_allclose(interiors[0].centre, -0.02, rtol=1e-5)
    # The last one is as it is elsewhere: neither the learning rate nor clipping reaches it.
    clipped = step(optimiser, model, gradient, dataclasses.replace(config, clip=0.1))
    np.testing.assert_allclose(clipped.denoiser.network.dense_in.weight, -300.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamW(b1=1.0), r"b1 must be in \[0, 1\), got 1.0"),
        (lambda: SGD(momentum=-0.1), r"momentum must be in \[0, 1\)"),
        (lambda: Lion(weight_decay=-1.0), "weight_decay must be at least 0, got -1.0"),
        (
            lambda: dk.TrainConfig(batch_size=10, accumulate=4),
            "train.accumulate must divide train.batch_size = 10, got 4",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_accumulation_is_the_whole_batch(toy, toy_model):
    # Plain descent, whose step is the gradient. The draws are those of the batch, dropout and times too.
    model = toy_model(network=("mlp", {"width": 16, "depth": 1, "dropout": 0.2}))
    sampler = dk.Adaptive(bins=4, decay=0.5)
    x, key = jnp.asarray(toy.train.gather(np.arange(16))), jax.random.key(1)
    found = []
    for parts in (1, 4):
        config = dataclasses.replace(SETTINGS, accumulate=parts)
        state = init_state(model, config, sampler, SGD())
        take = eqx.filter_jit(train_step)
        found.append(take(state, x, key, Objective(dk.ELBO(), None), config, SGD()))
    (whole, metrics), (split, other) = found
    np.testing.assert_allclose(metrics, other, rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(eqx.filter(s, eqx.is_array)) for s in (whole, split)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(metrics[-1]))
    assert float(jnp.sum(split.time_sampler.weight > 0)) == 4


def test_a_run_with_another_optimiser(toy, toy_model, tmp_path):
    """Its checkpoints are read without knowing the optimiser, and another one does not go on from them."""
    config = dataclasses.replace(SETTINGS, steps_per_dispatch=4, evaluate_every=8)
    seen, closed = [], []

    class Hook:
        def __call__(self, info):
            seen.append((info.step, info.last, "loss" in info.metrics, info.model is not None))

        def close(self):
            closed.append(True)

    plain = []
    arguments = {"directory": tmp_path, "progress": False, "hooks": [Hook(), plain.append]}
    fitted = dk.fit(toy_model(), toy, config, optimiser=Lion(), **arguments)
    assert seen == [(4, False, True, False), (8, True, True, True), (8, True, False, True)]
    assert closed == [True]
    assert all(isinstance(info, StepInfo) for info in plain)
    assert [info.record for info in plain] == fitted.metrics
    run = dk.load_run(tmp_path, like=toy_model())
    jax.tree.map(
        np.testing.assert_array_equal,
        *(eqx.filter(m, eqx.is_array) for m in (run.model, fitted.model)),
    )
    with pytest.raises(ValueError, match=r"other choices: optimiser.*'diffkit.optimisers.SGD' now"):
        dk.fit(toy_model(), toy, config, optimiser=SGD(), **arguments)


def test_weights_and_biases(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"needs the package wandb: pip install 'diffkit\[wandb\]'"):
        WeightsAndBiases("project")
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((values, step))

        def finish(self):
            calls.append("finish")

    def init(**options):
        calls.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    hook = WeightsAndBiases("project", mode="offline")
    hook(StepInfo(step=3, steps=8, seconds=1.5, metrics={"loss": 2.0}))
    hook.close()
    options = {"project": "project", "mode": "offline"}
    assert calls == [options, ({"seconds": 1.5, "loss": 2.0}, 3), "finish"]
