"""Losses, gradients, parameters and results that are not finite."""

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

import diffkit as dk
from diffkit.cli import main
from diffkit.cli.commands import _check_finite
from diffkit.optimisers import AdamW
from diffkit.training import Checkpoints, TrainState, init_state, replay
from diffkit.training.nonfinite import named_arrays
from diffkit.training.state import METRICS, Objective, train_step

CONFIG = dk.TrainConfig(
    steps=24, batch_size=16, steps_per_dispatch=8, warmup=0, decay="constant", checkpoint_every=8
)
LIMIT = 13.2  # of logsnr, at t = 0.005: with this seed it is first passed in step 10


class Gate(eqx.Module):
    """A factor, infinite close to the data."""

    weight: jax.Array

    def __call__(self, logsnr):
        return jnp.where(logsnr > LIMIT, jnp.inf, self.weight)


class Spiky(dk.AbstractNetwork):
    """A network that is not finite close to the data."""

    before: Gate
    gate: Gate

    def __init__(self):
        self.before, self.gate = Gate(jnp.ones(())), Gate(jnp.full((), 0.1))

    def __call__(self, z, logsnr, condition=None, *, key=None):
        return self.gate(logsnr) * self.before(-logsnr) * z


class Edge(dk.AbstractNetwork):
    """A network that is finite and has no finite gradient."""

    fine: jax.Array
    edge: jax.Array

    def __init__(self):
        self.fine, self.edge = jnp.ones(()), jnp.zeros(())

    def __call__(self, z, logsnr, condition=None, *, key=None):
        return self.fine * z + 0.0 * jnp.sqrt(self.edge)


def around(network):
    denoiser = dk.Denoiser(network, dk.Epsilon(), dk.VariancePreserving())
    return dk.DiffusionModel(denoiser, dk.LinearLogSNR(), dk.DiscretizedDecoder(8), (2,))


LIKE = dk.Preset.of(
    around(Spiky()),
    weighting=dk.ELBO(),
    time_sampler=dk.LowDiscrepancy(),
    optimiser=AdamW(),
    sampler=dk.samplers.Ancestral(),
    grid=dk.grids.UniformT(),
    train=dataclasses.asdict(CONFIG),
)


def arrays(tree):
    return {name: np.asarray(leaf) for name, leaf in named_arrays(tree).items()}


def newest(run):
    checkpoints = Checkpoints(run / "checkpoints")
    try:
        return checkpoints.latest_step()
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def failed(toy, tmp_path_factory):
    """A run that failed, the step, and what was said."""
    path = tmp_path_factory.mktemp("failed")
    options = {"directory": path, "progress": False, "check": False}
    with pytest.raises(FloatingPointError) as error:
        dk.fit(around(Spiky()), toy, CONFIG, **options)
    said = str(error.value)
    found = re.search(r" at step (\d+)", said)
    assert found is not None, said
    return path, int(found[1]), said


@pytest.mark.slow
def test_the_error_says_what_went_first(failed):
    path, step, said = failed
    found = re.fullmatch(
        r"the loss is not finite \((?:inf|nan)\) at step \d+: the diffusion term went first, worst in "
        r"example (\d+) of the batch, at t = (\S+), logsnr = (\S+); the first output that is not finite is "
        rf"that of denoiser\.network\.gate\. State and batch are in {path}/nonfinite_{step}: "
        rf"`diffkit replay {path}/nonfinite_{step}` runs the step again\. A lower train\.learning_rate .*",
        said,
    )
    assert found is not None, said
    assert "train.nonfinite=skip leaves such steps out" in said
    assert int(found[1]) < 16
    logsnr = float(dk.LinearLogSNR()(float(found[2])))
    assert logsnr == pytest.approx(float(found[3]), abs=1e-3)
    assert logsnr > LIMIT
    assert newest(path) == ((step - 1) // 8 * 8 or None)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert all(record["step"] < step for record in records)


@pytest.mark.slow
def test_the_dump_holds_the_state_before_the_step(toy, failed):
    path, step, _ = failed
    assert step > 8, "take another LIMIT"
    place = path / f"nonfinite_{step}"
    assert sorted(os.listdir(place)) == ["batch.npz", "config.yaml", "nonfinite.json", "state.npz"]
    whole = dk.fit(
        around(Spiky()), toy, dataclasses.replace(CONFIG, steps=step - 1), progress=False, check=False
    )
    with np.load(place / "state.npz", allow_pickle=False) as stored:
        expected = arrays(whole.state)
        assert {*stored.files} == {*expected}
        for name, array in expected.items():
            np.testing.assert_array_equal(stored[name], array, err_msg=name)
    batches = dk.data.batches(toy.train, batch_size=16, seed=0, start=step - 1, threads=0)
    with np.load(place / "batch.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["x"], next(batches))


@pytest.mark.slow
def test_replay_comes_to_the_same(failed):
    path, step, said = failed
    with pytest.raises(ValueError, match="made in Python"):
        replay(path / f"nonfinite_{step}")
    cause, metrics = replay(path / f"nonfinite_{step}", like=LIKE)
    assert said.startswith(f"{cause}. ")
    assert [*metrics] == [*METRICS]
    assert not np.isfinite(metrics["diffusion"])
    assert np.isfinite(metrics["prior"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((file, "gone") for file in ("state.npz", "batch.npz", "nonfinite.json", "config.yaml")),
        *((file, "other") for file in ("state.npz", "batch.npz", "nonfinite.json", "config.yaml")),
        *((file, "cut") for file in ("state.npz", "batch.npz", "nonfinite.json")),
    ],
)
def test_a_damaged_dump_is_named(failed, tmp_path, file, damage):
    path, step, _ = failed
    place = shutil.copytree(path / f"nonfinite_{step}", tmp_path / "dump") / file
    if damage == "gone":
        place.unlink()
    elif damage == "cut":
        place.write_bytes(place.read_bytes()[: len(place.read_bytes()) // 2])
    else:
        place.write_text("[1, 2]")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(file)):
        replay(tmp_path / "dump", like=LIKE)


@pytest.mark.slow
def test_the_same_call_fails_again_and_replaces_the_dump(toy, failed):
    path, step, said = failed
    (path / f"nonfinite_{step}" / "mine").write_text("")
    with pytest.raises(FloatingPointError) as error:
        dk.fit(around(Spiky()), toy, CONFIG, directory=path, progress=False, check=False)
    assert str(error.value) == said
    assert not (path / f"nonfinite_{step}" / "mine").exists()


@pytest.mark.slow
def test_a_dump_goes_through_no_link(toy, failed, tmp_path):
    path, step, _ = failed
    run = shutil.copytree(path, tmp_path / "run")
    shutil.rmtree(run / f"nonfinite_{step}")
    (tmp_path / "elsewhere").mkdir()
    (run / f"nonfinite_{step}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FloatingPointError, match=r"could not be written: .* is a symbolic link"):
        dk.fit(around(Spiky()), toy, CONFIG, directory=run, progress=False, check=False)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.slow
def test_skipped_steps_are_counted_and_change_nothing(toy, failed, tmp_path):
    _, step, _ = failed
    config = dataclasses.replace(CONFIG, nonfinite="skip")
    fitted = dk.fit(around(Spiky()), toy, config, directory=tmp_path, progress=False, check=False)
    assert all(np.isfinite(array).all() for array in arrays(fitted.state).values())
    skipped = [record["skipped"] for record in fitted.metrics]
    assert skipped[(step - 1) // 8] >= 1
    assert all(np.isfinite(record["loss"]) for record in fitted.metrics)
    # The optimiser's own count, of the updates that there were.
    counts = {int(a) for name, a in arrays(fitted.state.optimiser).items() if name.endswith("count")}
    assert counts == {24 - sum(skipped)}
    assert int(fitted.state.step) == 24


@pytest.mark.slow
def test_one_skipped_step(toy, toy_model):
    config = dataclasses.replace(CONFIG, nonfinite="skip")
    x, key = jnp.asarray(toy.train.gather(np.arange(16))), jax.random.key(1)
    before = init_state(toy_model(), config)
    step = eqx.filter_jit(train_step)
    objective = Objective(dk.ELBO(), None)
    after, row = step(before, x, key, objective, config)
    usual, expected = step(before, x, key, objective, CONFIG)
    np.testing.assert_allclose(row, [*expected, 0.0], rtol=1e-5)
    for name, array in arrays(usual).items():
        np.testing.assert_allclose(arrays(after)[name], array, rtol=1e-5, atol=1e-7, err_msg=name)
    broken = eqx.tree_at(lambda state: state.model.denoiser.network.dense_out.bias, before, replace_fn=bad)
    after, row = step(broken, x, key, objective, config)
    assert row[-1] == 1
    for name, array in arrays(after).items():
        np.testing.assert_array_equal(array, arrays(broken)[name] + (name == "step"), err_msg=name)


def bad(array):
    return jnp.full_like(array, jnp.nan)


class Nothing(dk.AbstractWeighting):
    """A weighting that is no number."""

    def __call__(self, logsnr):
        return jnp.nan * logsnr


@pytest.mark.slow
def test_too_many_skipped_in_a_row(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("diffkit.training.loop.MANY_SKIPS", 13)
    config = dataclasses.replace(CONFIG, nonfinite="skip", learn_endpoints=False)
    with pytest.raises(FloatingPointError, match=r"at step 13: .* finite\. State .* last of 13 in a row"):
        dk.fit(
            *(around(Spiky()), toy, config),
            weighting=Nothing(),
            directory=tmp_path,
            progress=False,
            check=False,
        )
    assert newest(tmp_path) == 8
    (record,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert record["skipped"] == 8
    assert "loss" not in record


@pytest.mark.slow
def test_a_gradient_alone(toy):
    with pytest.raises(FloatingPointError) as error:
        dk.fit(around(Edge()), toy, CONFIG, progress=False, check=False)
    assert "the gradient is not finite (nan) at step 1, worst in example 0 of the batch" in str(error.value)
    assert "all outputs are finite, the gradient of denoiser.network.edge is not" in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("step", [15, 16, 24])
def test_parameters_that_are_not_finite_are_never_saved(toy, toy_model, tmp_path, step):
    # An update of the optimiser, after a loss and a gradient that are finite.
    rate = optax.scale_by_schedule(lambda count: jnp.where(count == step - 1, jnp.inf, -1e-3))
    with pytest.raises(FloatingPointError) as error:
        dk.fit(toy_model(), toy, CONFIG, optimiser=rate, directory=tmp_path, progress=False)
    last = step if step % 8 == 0 else step + 1
    what = r"array model\.\S+" if step % 8 == 0 else "loss"
    said = str(error.value)
    assert re.match(rf"the {what} is not finite \(-?(nan|inf)\) at step {last}[.:]", said), said
    assert (tmp_path / f"nonfinite_{last}" / "state.npz").exists()
    assert newest(tmp_path) == (8 if step < 17 else 16)


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(dk.TrainConfig) if isinstance(field.default, float)]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_settings_must_be_finite(name, value):
    with pytest.raises(ValueError, match=rf"train.{name} must be .*, got {value}"):
        dk.TrainConfig(**{name: value})


def test_settings_of_the_policy():
    with pytest.raises(ValueError, match=r"train.nonfinite must be one of stop, skip, got 'go'"):
        dk.TrainConfig(nonfinite="go")
    with pytest.raises(ValueError, match=r"train.checkpoint_minutes must be at least 0, got -1"):
        dk.TrainConfig(checkpoint_minutes=-1.0)


@pytest.mark.parametrize("setting", [{"steps_per_dispatch": 10**8}, {"batch_size": 10**12}])
def test_more_than_memory_is_refused(toy, toy_model, tmp_path, setting):
    config = dk.TrainConfig(steps=10**9, **setting)
    with pytest.raises(ValueError, match=r"would read .* GiB of data ahead, and this machine has"):
        dk.fit(toy_model(), toy, config, directory=tmp_path / "run", progress=False, check=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_more_steps_per_dispatch_than_steps(toy, toy_model):
    config = dataclasses.replace(CONFIG, steps=3, steps_per_dispatch=10**8)
    fitted = dk.fit(toy_model(), toy, config, progress=False, check=False)
    assert [record["step"] for record in fitted.metrics] == [3]


def test_a_state_is_all_arrays():
    # So a dump, which holds the arrays, holds the state.
    assert {field.name for field in dataclasses.fields(TrainState)} == {
        *("model", "average", "optimiser", "time_sampler", "step")
    }


# On the command line.

SMALL = [
    *("train", "data=swirl", "data.points=64", "network=mlp", "network.width=8", "network.depth=1"),
    *(
        "schedule=linear_logsnr",
        "train.steps_per_dispatch=2",
        "train.batch_size=8",
        "passes=1",
        "sample_steps=2",
        "run=r",
    ),
    *("train.learning_rate=3e38", "train.warmup=0", "train.decay=constant"),
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty directory to work in; Hydra's global state is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffkit"])
    state = ConfigStore.get_state()
    yield tmp_path
    ConfigStore.set_state(state)
    GlobalHydra.instance().clear()


def fails(words, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_samples_and_evaluations_that_are_not_finite(toy_model):
    broken = eqx.tree_at(lambda m: m.denoiser.network.dense_out.bias, toy_model(), replace_fn=bad)
    # Integers, whatever the latents are.
    with pytest.raises(FloatingPointError, match="the samples are not finite"):
        dk.sample(broken, dk.samplers.DDIM(), 2, key=jax.random.key(0), steps=1)
    record = {f"{name}_bits_per_dim": 1.0 for name in ("prior", "reconstruction", "diffusion")}
    _check_finite(record, Path("run"))
    for value in (np.nan, np.inf):
        with pytest.raises(FloatingPointError, match=r"likelihood of run is not finite \(prior 1, rec"):
            _check_finite({**record, "diffusion_bits_per_dim": value}, Path("run"))


@pytest.mark.slow
@pytest.mark.parametrize("samples", [0, 4])
def test_a_result_that_is_not_finite_completes_nothing(workplace, capfd, samples):
    # The parameters are finite, and so large that nothing made of them is.
    words = [*SMALL, "train.steps=1", f"samples={samples}"]
    for _ in range(2):
        said = fails(words, capfd)
        assert "the samples are not finite" in said if samples else "likelihood of r is not finite" in said
        assert not (workplace / "r" / "evaluation.json").exists()
    if not samples:
        said = fails(["evaluate", "r", "passes=1"], capfd)
        assert "diffkit evaluate: the likelihood of r is not finite" in said
    assert "diffkit sample: the samples are not finite" in fails(["sample", "r", "steps=2"], capfd)
    assert not (workplace / "r" / "evaluation.json").exists()
    assert not [*workplace.glob("r/samples*")]


@pytest.mark.slow
def test_replay_on_the_command_line(workplace, capfd):
    said = fails([*SMALL, "train.steps=6"], capfd)
    assert "diffkit train: the loss is not finite (nan) at step 2" in said
    assert newest(workplace / "r") is None
    assert not (workplace / "r" / "evaluation.json").exists()
    main(["replay", "r/nonfinite_2"])
    out = capfd.readouterr().out
    assert said.startswith(f"diffkit train: {out.splitlines()[-1]}. State")
    assert "r/nonfinite" in fails(["replay", "r/nonfinite_3"], capfd)


@pytest.mark.slow
def test_an_old_evaluation_that_is_not_finite_is_no_end(workplace, capfd):
    words = [word for word in SMALL if "learning_rate" not in word]
    words += ["train.steps=2", "samples=0"]
    main(words)
    file = workplace / "r" / "evaluation.json"
    good = file.read_text()
    file.write_text(json.dumps({**json.loads(good), "total_bits_per_dim": None}))
    main(words)
    assert file.read_text() == good
    file.write_text(good[:20])
    assert "r/evaluation.json must be a JSON file" in fails(words, capfd)
