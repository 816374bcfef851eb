"""A composition is one value: from Python and from the command line, on disk and read again."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import main
from diffkit.cli.launch import compose
from diffkit.configs import KINDS, config_of, flat, make, unregistered
from diffkit.presets import key_of, seed_of
from diffkit.runs import assembled
from diffkit.training.loop import settings_of, train

SMALL = {"steps": 2, "batch_size": 4, "steps_per_dispatch": 2, "warmup": 0, "checkpoint_every": 0}
MLP = ("mlp", {"width": 8, "depth": 1})


class Few(dk.data.AbstractDataset):
    """A dataset of one's own, which no command line knows."""

    train: dk.data.ArraySource
    test: dk.data.ArraySource
    levels: int | None = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self):
        source = dk.data.ArraySource(np.arange(16, dtype=np.uint8).reshape(8, 2) % 8)
        self.train, self.test, self.levels, self.shape = source, source, 8, (2,)


class Power(dk.AbstractSchedule):
    """A schedule that is registered nowhere."""

    power: float = 1.5

    def __call__(self, t):
        return 13.3 - 18.3 * t**self.power

    def inverse(self, logsnr):
        return ((13.3 - logsnr) / 18.3) ** (1 / self.power)


@pytest.fixture
def composed():
    """The command line's configuration, as a run directory holds it."""
    state = ConfigStore.get_state()

    def compose_train(*overrides):
        config = compose("train", [*overrides, *(f"train.{k}={v}" for k, v in SMALL.items())])
        return {name: value for name, value in config.items() if name not in ("run", "root", "from")}

    yield compose_train
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("vdm", "iddpm", "edm") else pytest.mark.slow)
        for name in dk.available("preset")
    ],
)
def test_python_and_command_line_are_bitwise_alike(name, composed, tmp_path):
    words = ("network=mlp", "network.width=8", "network.depth=1")
    config = composed(f"preset={name}", "data=swirl", *words)
    preset = dk.preset(name, network=MLP, train=SMALL)
    data = dk.data.Swirl()
    assert flat(config_of(preset, data, settings_of(preset))) == flat(config)
    fitted = dk.fit(preset, data, directory=tmp_path, progress=False)
    assert flat(yaml.safe_load((tmp_path / "config.yaml").read_text())) == flat(config)
    other = train(assembled(config), data, make(config["train"]), progress=False)
    for one, two in zip(leaves(fitted.state), leaves(other.state), strict=True):
        np.testing.assert_array_equal(one, two)
    assert settings_of(dk.preset(name)) == dk.TrainConfig(**dk.preset(name).train)


@pytest.mark.parametrize("name", ["ddpm", "edm", "rectified_flow"])
def test_the_loss_that_is_minimised_is_the_stated_one(name):
    # For two networks the ratio of the losses that `fit` minimises is that of the published ones.
    preset = dk.preset(name, network=MLP)
    data = Few()
    losses, published = [], []
    for seed in (0, 1):
        made = dk.presets.assemble(preset, data, key=jax.random.key(seed))
        network = made.model.denoiser.network
        network = jax.tree.map(
            lambda leaf, key=jax.random.key(seed): (
                leaf + 0.3 * jax.random.normal(key, leaf.shape) if eqx.is_inexact_array(leaf) else leaf
            ),
            network,
        )
        model = eqx.tree_at(lambda m: m.denoiser.network, made.model, network)
        x = jnp.asarray(data.train.gather(np.arange(8)))
        x = jnp.tile(x, (4096, 1))

        times = dk.part("time_sampler", preset.loss.times, model=made.model)

        @eqx.filter_jit
        def both(model, x, made=made, times=times):
            one = dk.denoising_loss(
                model,
                x,
                key=jax.random.key(5),
                weighting=made.weighting,
                time_sampler=made.time_sampler,
            )
            loss = preset.loss
            t, _ = times(jax.random.key(6), len(x))
            target = made.model.denoiser.parameterization
            if loss.parameterization is not None:
                target = dk.get("parameterization", loss.parameterization)()
            encoded = model.encode(x)
            eps = jax.random.normal(jax.random.key(7), encoded.shape)

            def error(x, eps, t):
                level = model.level(t)
                z = model.process.perturb(x, eps, level)
                found = model.denoiser(z, level.logsnr).as_target(target)
                factor = 1.0 if loss.factor is None else loss.factor(level.logsnr)
                return factor * jnp.sum(jnp.square(found - target.target(x, eps, level)))

            # Times are drawn from p itself, so that the importance has no part in it.
            return one, jax.vmap(error)(encoded, eps, t)

        one, two = both(model, x)
        losses.append((float(jnp.mean(one)), float(jnp.std(one)) / len(x) ** 0.5))
        published.append((float(jnp.mean(two)), float(jnp.std(two)) / len(x) ** 0.5))
    ratio, expected = losses[0][0] / losses[1][0], published[0][0] / published[1][0]
    error = sum((e / m) ** 2 for m, e in (*losses, *published)) ** 0.5
    assert error < 0.05
    assert abs(ratio / expected - 1) < 4 * error


OTHER = {
    "schedule": "cosine",
    "process": "variance_exploding",
    "parameterization": dk.V(),
    "decoder": dk.DiscretizedDecoder(9),
    "network": ("mlp", {"width": 12, "depth": 1}),
    "weighting": dk.Sigmoid(),
    "time_sampler": "uniform",
    "sampler": "ddim",
    "grid": dk.UniformLogSNR(),
    "optimiser": "sgd",
    "train": {"learning_rate": 0.5},
    "data_std": 0.5,
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of a composition with a schedule that is registered nowhere."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    preset = dk.Preset(network=MLP, schedule=Power(), train=SMALL)
    return path, preset, dk.fit(preset, Few(), directory=path, progress=False)


@pytest.mark.parametrize("kind", OTHER)
def test_another_composition_in_the_directory_is_refused(begun, kind):
    path, preset, _ = begun
    assert {*KINDS} <= OTHER.keys()
    data = Few()
    if kind == "decoder":
        object.__setattr__(data, "levels", 9)
    named = "data.levels" if kind == "decoder" else kind  # which has no options of its own
    with pytest.raises(ValueError, match=rf"holds a run with other choices: .*{named}"):
        dk.fit(preset.replace(**{kind: OTHER[kind]}), data, directory=path, progress=False)
    with pytest.raises(ValueError, match=r"holds a run with other choices: train.seed"):
        dk.fit(preset, Few(), key=jax.random.key(3), directory=path, progress=False)
    with pytest.raises(ValueError, match=r"schedule.content.power \(1.5 there, 2.0 now\)"):
        dk.fit(preset.replace(schedule=Power(2.0)), Few(), directory=path, progress=False)


def test_a_run_with_parts_of_ones_own_is_read_with_them(begun):
    path, preset, fitted = begun
    config = yaml.safe_load((path / "config.yaml").read_text())
    assert [*unregistered(config)] == ["schedule", "data"]
    for like in (preset, preset.model(Few(), key=jax.random.key(9))):
        run = dk.load_run(path, like=like)
        for one, two in zip(leaves(run.model), leaves(fitted.model), strict=True):
            np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match=r"made in Python, .*Power, and no command"):
        dk.load_run(path)
    for like in (
        preset.replace(parameterization="v"),
        preset.replace(parameterization="v").model(Few(), key=jax.random.key(0)),
        preset.replace(schedule=Power(2.0)),
    ):
        with pytest.raises(ValueError, match=r"like is not what run .* was trained with"):
            dk.load_run(path, like=like)


def test_the_run_says_at_once_which_part_is_for_python_only(tmp_path, capsys):
    preset = dk.Preset(network=MLP, schedule=Power(), train=SMALL)
    dk.fit(preset, dk.data.Swirl(), directory=tmp_path / "a")
    assert "no command can make schedule=tests.test_compositions.Power" in capsys.readouterr().out
    # Made of registered parts, as names or as instances, it is for every command.
    known = preset.replace(schedule=dk.Cosine(9.0), sampler=dk.samplers.DDIM(0.5))
    # A network has the range of its model, which is not that of its constructor's default.
    network = known.model(dk.data.Swirl(), key=jax.random.key(0)).denoiser.network
    known = known.replace(network=network)
    dk.fit(known, dk.data.Swirl(), directory=tmp_path / "b")
    assert "no command" not in capsys.readouterr().out
    run = dk.load_run(tmp_path / "b")
    assert run.model.schedule == dk.Cosine(9.0)
    assert run.part("sampler") == dk.samplers.DDIM(0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("composed")
def test_every_command_takes_a_run_from_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    preset = dk.Preset(network=MLP, schedule=dk.Cosine(9.0), train=SMALL)
    dk.fit(preset, dk.data.Swirl(), directory=tmp_path / "mine", progress=False)
    for words in (
        ["evaluate", "mine", "passes=1"],
        ["sample", "mine", "steps=2", "count=4"],
        ["convert", "mine", "moved", "process=straight"],
        ["report", "mine"],
        ["compress", "mine", "test", "mine.dkbb", "steps=2"],
        ["decompress", "mine", "mine.dkbb", "back.npy"],
    ):
        try:
            main(words)
        except SystemExit as ended:  # as a plugin's command always ends
            assert ended.code == 0  # noqa: PT017
    evaluated = dk.evaluate(dk.load_run("mine").model, dk.data.Swirl().test, key=key_of(0), passes=1)
    printed = f"test bits/dim: {evaluated.bits_per_dim[0]:.4f} +- {evaluated.bits_per_dim[1]:.4f}"
    assert printed in capsys.readouterr().out
    test = dk.data.Swirl().test
    np.testing.assert_array_equal(np.load("back.npy"), test.gather(np.arange(len(test))))
    assert "mine" in (tmp_path / "report.md").read_text()


def test_presets_are_read_changed_and_refused():
    edm = dk.preset("edm")
    assert edm is dk.get("preset", "edm")
    mine = edm.replace(schedule=Power(), train={"steps": 3})
    assert mine.train["batch_size"] == 512
    assert (mine.train["steps"], edm.train["steps"]) == (3, 390625)
    assert mine.loss is edm.loss
    assert mine.replace(weighting="elbo").loss is None
    with pytest.raises(ValueError, match=r"has no 'shedule'. Did you mean 'schedule'"):
        edm.replace(shedule="cosine")
    with pytest.raises(ValueError, match="shape is for the model"):
        dk.preset("vdm", shape=(2,))
    with pytest.raises(TypeError, match=r"process must be a diffkit.AbstractProcess, got V"):
        edm.replace(process=dk.V())
    with pytest.raises(ValueError, match=r"no setting 'step'. Did you mean 'steps'"):
        dk.fit(edm.replace(train={"step": 1}), dk.data.Swirl())
    with pytest.raises(ValueError, match="a preset chooses its own weighting"):
        dk.fit(edm, dk.data.Swirl(), weighting=dk.ELBO())
    with pytest.raises(ValueError, match="give one of data= and shape="):
        edm.model(key=jax.random.key(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        edm.schedule = "cosine"


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_a_key_is_a_seed(seed):
    assert jax.random.key(seed) == key_of(seed)
    assert seed_of(key_of(seed)) == seed
    folded = jax.random.fold_in(key_of(seed), 3)
    assert key_of(seed_of(folded)) == folded
