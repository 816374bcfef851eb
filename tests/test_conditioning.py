"""Conditions from the data to the samples: pairs in batches, training, evaluation, the command line."""

import dataclasses
import itertools
import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import main
from diffkit.data import (
    AbstractConditionalSource,
    ArraySource,
    LabelledSource,
    SubsetSource,
    VectorSource,
    batches,
    condition_size,
    conditions_in_turn,
    encode_condition,
    one_hot,
    with_flag,
)
from diffkit.training.state import drop_conditions

SMALL = dk.TrainConfig(
    steps=24, batch_size=16, steps_per_dispatch=8, warmup=4, decay="constant", checkpoint_every=8
)


class Pair(dk.data.AbstractDataset):
    """Any two sources."""

    train: dk.data.AbstractSource
    test: dk.data.AbstractSource
    levels: int | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, train, test=None, levels=8):
        self.train, self.test, self.levels = train, train if test is None else test, levels
        self.shape = train.shape


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


def assert_same(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(a, b)


# --- Conditions


def test_what_a_condition_is():
    np.testing.assert_array_equal(one_hot([2, 0], 3), [[0, 0, 1], [1, 0, 0]])
    np.testing.assert_array_equal(one_hot(1, 3), [0, 1, 0])
    np.testing.assert_array_equal(one_hot(jnp.array([[1]]), 2), [[[0, 1]]])
    np.testing.assert_array_equal(with_flag([0.0, -2.5]), [0, -2.5, 1])
    np.testing.assert_array_equal(with_flag(np.zeros((2, 1))), [[0, 1], [0, 1]])
    assert one_hot(1, 3).dtype == with_flag([0.5]).dtype == np.float32
    for wrong in (3, [-1, 0]):
        with pytest.raises(ValueError, match="labels must be from 0 to classes - 1 = 2, got values"):
            one_hot(wrong, 3)
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        one_hot([], 0)
    for wrong in ([np.nan], [1e39]):
        with pytest.raises(ValueError, match="with_flag: vectors must be finite in float32"):
            with_flag(wrong)


def numbered(count, classes=4):
    """Examples that tell their own class: the number of the example, modulo `classes`."""
    values = np.arange(count, dtype=np.uint8)[:, None]
    return LabelledSource(ArraySource(values), np.arange(count) % classes, classes)


def flagged(count):
    values = np.arange(count, dtype=np.uint8)[:, None]
    numbers = np.arange(count, dtype=np.float64)
    return VectorSource(ArraySource(values), np.stack([-numbers, numbers / 2], axis=1))


def test_sources():
    source = numbered(10)
    assert isinstance(source, AbstractConditionalSource)
    assert (len(source), source.shape, source.condition_size, source.classes) == (10, (1,), 4, 4)
    np.testing.assert_array_equal(source.conditions(np.array([5, 3])), one_hot([1, 3], 4))
    vectors = flagged(10)
    assert (vectors.condition_size, vectors.classes) == (3, None)
    # A subset keeps the conditions of what it is a subset of, and has none where that has none.
    subset = SubsetSource(SubsetSource(source, np.array([9, 4, 2])), np.array([2, 0]))
    assert (subset.condition_size, subset.classes) == (4, 4)
    np.testing.assert_array_equal(subset.conditions(np.array([1, 0])), one_hot([1, 2], 4))
    plain = SubsetSource(source.source, np.array([1]))
    assert plain.conditions(np.array([0])).shape == (1, 0)
    sizes = [condition_size(s) for s in (source, vectors, subset, plain, source.source)]
    assert sizes == [4, 3, 4, 0, 0]
    assert condition_size(Pair(source)) == 4
    assert condition_size(Pair(plain)) == 0
    with pytest.raises(ValueError, match="Pair: train and test must have conditions of one length"):
        Pair(source, plain)


def test_bad_conditions_are_refused():
    plain = ArraySource(np.zeros((3, 1), np.uint8))
    with pytest.raises(ValueError, match="labels must be one for each of the 3 examples, got 2"):
        LabelledSource(plain, np.array([0, 1]), 2)
    with pytest.raises(ValueError, match=r"labels must be from 0 to classes - 1 = 1, .* 0 to 2"):
        LabelledSource(plain, np.array([0, 1, 2]), 2)
    with pytest.raises(ValueError, match="vectors must be one for each of the 3 examples, got 4"):
        VectorSource(plain, np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"vectors must not be empty, got \(3, 0\)"):
        VectorSource(plain, np.zeros((3, 0)))
    with pytest.raises(ValueError, match="vectors must be finite"):
        VectorSource(plain, np.full((3, 1), np.inf))


def take(iterator, count):
    items = list(itertools.islice(iterator, count))
    iterator.close()
    return items


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("start", [0, 7])
def test_batches_are_pairs_across_epochs_chunks_and_restarts(chunk, start):
    options = {"batch_size": 4, "seed": 5, "chunk": chunk, "start": start}
    source = numbered(11)
    pairs = take(batches(source, **options), 12)
    plain = take(batches(source.source, **options), 12)
    for (x, condition), expected in zip(pairs, plain, strict=True):
        np.testing.assert_array_equal(x, expected)  # the order is that without conditions
        assert condition.shape == (*x.shape[:-1], 4)
        np.testing.assert_array_equal(condition, one_hot(x[..., 0].astype(int) % 4, 4))
    iterator = batches(flagged(11), **options)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    rest = take(iterator, 4)
    again = batches(flagged(11), **options)
    again.set_state(state)
    for one, (x, condition) in zip(rest, take(again, 4), strict=True):
        assert_same(one, (x, condition))
        numbers = x.astype(np.float32)
        expected = np.concatenate([-numbers, numbers / 2, np.ones_like(numbers)], axis=-1)
        np.testing.assert_array_equal(condition, expected)


def test_one_pass_over_pairs():
    items = list(
        batches(numbered(7), batch_size=3, seed=0, shuffle=False, repeat=False, drop_remainder=False)
    )
    assert [len(condition) for _, condition in items] == [3, 3, 1]
    labels = np.concatenate([condition for _, condition in items]).argmax(axis=1)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_what_a_person_means():
    classes, vectors = Pair(numbered(8)), Pair(flagged(8))
    np.testing.assert_array_equal(encode_condition(classes, 3), [0, 0, 0, 1])
    np.testing.assert_array_equal(encode_condition(vectors, [0.1, 2]), np.float32([0.1, 2, 1]))
    for wrong in (4, -1, True, [0.0, 1.0]):
        with pytest.raises(ValueError, match=r"must be a class, an integer from 0 to 3, got"):
            encode_condition(classes, wrong)
    for wrong in (1, [0.1], [0.1, 0.2, 1.0]):
        with pytest.raises(ValueError, match=r"list of 2 numbers, such as \[0.0, 0.0\], got"):
            encode_condition(vectors, wrong)
    with pytest.raises(ValueError, match=r"condition=3 asks for .* data.labels=true"):
        encode_condition(Pair(ArraySource(np.zeros((3, 1), np.uint8))), 3)
    shown = conditions_in_turn(classes, 6).argmax(axis=1)
    assert shown.tolist() == [0, 1, 2, 3, 0, 1]
    shown = conditions_in_turn(vectors, 10)
    np.testing.assert_array_equal(shown[8:], shown[:2])
    np.testing.assert_array_equal(shown[:8], vectors.test.conditions(np.arange(8)))


# --- Training


def test_condition_dropout_leaves_out_whole_rows_at_its_rate():
    condition = with_flag(np.arange(1, 8001, dtype=np.float32).reshape(4000, 2))
    drop = jax.jit(lambda key: drop_conditions(jnp.asarray(condition), 0.3, key=key))
    one, other = (np.asarray(drop(jax.random.key(seed))) for seed in (0, 1))
    left_out = (one == 0).all(axis=1)
    np.testing.assert_array_equal(one[~left_out], condition[~left_out])
    # Five standard deviations: a false alarm once in a million seeds, and the seed is fixed.
    deviation = np.sqrt(0.3 * 0.7 / 4000)
    assert abs(left_out.mean() - 0.3) < 5 * deviation
    # Neighbouring rows and other keys are independent.
    both = (left_out & (other == 0).all(axis=1)).mean(), (left_out[1:] & left_out[:-1]).mean()
    for found in both:
        assert abs(found - 0.09) < 5 * np.sqrt(0.09 * 0.91 / 4000)
    assert (drop_conditions(jnp.asarray(condition), 0.0, key=jax.random.key(0)) == condition).all()
    assert not drop_conditions(jnp.asarray(condition), 1.0, key=jax.random.key(0)).any()


def classes_of(toy):
    """The toy data with their first column as the class."""
    train, test = (
        LabelledSource(s, s.gather(np.arange(len(s)))[:, 0].astype(int), 8) for s in (toy.train, toy.test)
    )
    return Pair(train, test)


@pytest.fixture(scope="module")
def conditional(toy, toy_model, tmp_path_factory):
    """A short run on labelled data: its directory and its result."""
    path = tmp_path_factory.mktemp("run")
    model = toy_model(condition_size=8)
    return path, dk.fit(model, classes_of(toy), SMALL, directory=path, progress=False)


@pytest.mark.slow
def test_without_conditions_nothing_changes(toy, toy_model):
    every = SubsetSource(toy.train, np.arange(len(toy.train)))
    model = toy_model(condition_size=8)
    one = dk.fit(model, toy, SMALL, progress=False)
    other = dk.fit(model, Pair(every, toy.test), SMALL, progress=False)
    assert_same(one.state, other.state)
    # `None` is zeros, in training too: conditions that are always left out are none.
    always = dataclasses.replace(SMALL, condition_dropout=1.0)
    other = dk.fit(model, classes_of(toy), always, progress=False)
    for a, b in zip(arrays(one.model), arrays(other.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # Conditions that are there do matter.
    other = dk.fit(model, classes_of(toy), SMALL, progress=False)
    differences = map(np.subtract, arrays(one.model), arrays(other.model))
    assert max(np.abs(d).max() for d in differences) > 1e-3


def test_going_on_is_as_if_it_had_never_stopped(toy, toy_model, conditional, tmp_path):
    _, whole = conditional
    options = {"directory": tmp_path, "progress": False}
    model, data = toy_model(condition_size=8), classes_of(toy)
    dk.fit(model, data, dataclasses.replace(SMALL, steps=16), **options)
    assert_same(dk.fit(model, data, SMALL, **options).state, whole.state)


def test_data_that_do_not_fit_the_network_are_refused(toy, toy_model):
    with pytest.raises(ValueError, match=r"data has conditions of 8 numbers.*condition_size=0\. Gi"):
        dk.fit(toy_model(), classes_of(toy), SMALL, progress=False)
    with pytest.raises(ValueError, match=r"train.condition_dropout must be in \[0, 1\], got 1.5"):
        dk.TrainConfig(condition_dropout=1.5)


@pytest.mark.slow
def test_a_model_learns_what_the_conditions_say():
    # Two classes of points in the plane; each has its own mean, +-600 in both coordinates.
    rng = np.random.default_rng(0)
    labels = np.arange(512) % 2
    points = 1000 * (1.2 * labels[:, None] - 0.6 + 0.1 * rng.normal(size=(512, 2)))
    points = points.astype(np.float32)
    data = Pair(LabelledSource(ArraySource(points), labels, 2), levels=None)
    compiled, seen = [], []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    class Counter:
        def __call__(self, info):
            seen.append(len(compiled))

    model = dk.preset(
        "vdm",
        network=("mlp", {"width": 16, "depth": 2}),
        decoder=("gaussian", {"statistics": data.statistics}),
        schedule=("linear_logsnr", {"logsnr_max": 6.0}),
    ).model(shape=(2,), levels=None, condition_size=2, key=jax.random.key(0))
    config = dk.TrainConfig(steps=590, batch_size=64, learning_rate=5e-3, ema=0.95, warmup=10)
    config = dataclasses.replace(config, steps_per_dispatch=100)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fitted = dk.fit(model, data, config, progress=False, hooks=[Counter()])
    finally:
        jax.monitoring.clear_event_listeners()
    # Six dispatches, the last one shorter; nothing is compiled after the first.
    assert len(seen) == 6
    assert seen[0] == seen[-1] > 0

    def draw(condition):
        return np.asarray(
            dk.sample(
                fitted.model,
                dk.samplers.DDIM(),
                128,
                key=jax.random.key(1),
                steps=20,
                condition=condition,
            )
        )

    means = [draw(one_hot(label, 2)).mean(axis=0) for label in (0, 1)]
    np.testing.assert_allclose(means, [[-600, -600], [600, 600]], atol=100)
    # One condition for each sample.
    mixed = draw(one_hot(np.arange(128) % 2, 2))
    assert ((mixed[:, 0] > 0) == (np.arange(128) % 2 == 1)).mean() > 0.95
    # Without a condition both classes come: the conditions that were left out taught it.
    share = (draw(None)[:, 0] > 0).mean()
    assert 0.3 < share < 0.7
    # Knowing the class is worth about 1 bit per point, half a bit per dimension.
    key = jax.random.key(2)
    given, free = (
        dk.evaluate(fitted.model, source, key=key, passes=8, batch_size=4096).bits_per_dim[0]
        for source in (data.train, data.train.source)
    )
    assert 0.3 < free - given < 0.7
    entropy = np.log2(100 * np.sqrt(2 * np.pi * np.e)) + 0.5
    assert entropy < free < entropy + 0.6


def test_evaluation_gives_each_example_its_condition():
    # Each row must be what the exact model of its own class alone gives with the same draws.
    means, cov = np.array([[-0.5, 0.2], [0.7, -0.1]]), 0.05 * np.eye(2)
    labels = np.array([0, 1, 1, 0, 1, 0, 0])
    rng = np.random.default_rng(1)
    points = (means[labels] + 0.2 * rng.normal(size=(7, 2))).astype(np.float32)

    def per_example(denoiser, source):
        model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(), dk.GaussianDecoder(), (2,))
        key = jax.random.key(3)
        return dk.evaluate(model, source, key=key, passes=2, batch_size=8).per_example

    plain = ArraySource(points)
    mixture = dk.analytic.mixture([0.3, 0.7], means, np.stack([cov, cov]))
    found = per_example(mixture, LabelledSource(plain, labels, 2))
    single = [per_example(dk.analytic.gaussian(mean, cov), plain) for mean in means]
    np.testing.assert_allclose(found, np.stack(single)[labels, np.arange(7)], rtol=1e-4)


# --- The command line


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    state = ConfigStore.get_state()
    yield tmp_path
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


def fails(arguments, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code not in (0, None)
    message = capfd.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.slow
def test_command_line_with_labels(workplace, capfd):
    small = ["network=mlp", "network.width=8", "network.depth=1", "schedule=learned_linear"]
    small += ["train.steps=4", "train.steps_per_dispatch=2", "train.batch_size=8"]
    small += ["passes=1", "samples=12", "sample_steps=2"]
    main(["train", "data=digits", "data.labels=true", "run=r", *small])
    assert np.load("r/samples.npy").shape == (12, 1, 8, 8)
    run = dk.load_run("r")
    assert run.model.denoiser.network.condition_size == 10
    np.testing.assert_array_equal(run.condition(7), one_hot(7, 10))
    # The samples of the run are those of the classes in turn.
    again = dk.sample(
        run.model,
        dk.samplers.Ancestral(),
        12,
        key=jax.random.key(0),
        steps=2,
        condition=one_hot(np.arange(12) % 10, 10),
    )
    np.testing.assert_array_equal(np.load("r/samples.npy"), again)
    # The number that was written is the likelihood given the labels.
    stored = json.loads((workplace / "r" / "evaluation.json").read_text())
    found = dk.evaluate(run.model, run.data().test, key=jax.random.key(0), passes=1)
    assert found.bits_per_dim[0] == pytest.approx(stored["total_bits_per_dim"], rel=1e-5)

    capfd.readouterr()
    guidance = ["guidance=2.0", "guidance_interval=[-2,3]"]
    main(["sample", "r", "sampler=ddim", "steps=2", "count=3", "condition=3", *guidance])
    assert capfd.readouterr().out.strip() == "r/samples_ddim_2_condition3_guidance2_interval-2_3_count3.png"
    from diffkit.guidance import guide

    expected = dk.sample(
        guide(run.model, 2.0, (-2.0, 3.0)),
        dk.samplers.DDIM(),
        3,
        key=jax.random.key(0),
        steps=2,
        condition=run.condition(3),
    )
    found = np.load("r/samples_ddim_2_condition3_guidance2_interval-2_3_count3.npy")
    np.testing.assert_array_equal(found, expected)
    for arguments, message in (
        (["condition=10"], "condition must be a class, an integer from 0 to 9, got 10"),
        (["condition=[0.1,0.2]"], "condition must be a class"),
        (["condition=three"], "condition must be a class, such as condition=3, or a list of"),
        (["guidance=2.0"], "guidance=2.0 needs a condition to follow"),
        (["condition=3", "guidance_interval=[3,-2]"], "guidance_interval must be [min,max] of"),
        (["condition=3", "guidance=nan"], "guidance must be a finite number, got nan"),
    ):
        assert message in fails(["sample", "r", *arguments], capfd)
