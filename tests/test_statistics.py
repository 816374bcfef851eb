"""Statistics of the estimate against integrals of a known loss, and `diffkit evaluate variance=true`."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.cli import main
from diffkit.training import save_statistics

HIGH, LOW = 8.0, -6.0
LOGSNR = np.linspace(LOW, HIGH, 4001)


def error(logsnr):
    """eps_hat - eps of each of the two dimensions, whatever the draw."""
    return 0.3 + jnp.exp(-0.5 * jnp.square((logsnr - 1.0) / 1.5))


class Known(dk.AbstractDenoiser):
    """A denoiser for data that are all zero, whose error is known."""

    process: dk.AbstractProcess

    def __call__(self, z, logsnr, condition=None, *, key=None):
        level = self.process.at(logsnr)
        eps = z / level.sigma + error(logsnr)
        return dk.Prediction((z - level.sigma * eps) / level.alpha, eps, level)


def integral(values):
    return np.trapezoid(values, LOGSNR)


@pytest.fixture(scope="module")
def zeros():
    return dk.data.ArraySource(np.zeros((50, 2), np.float32))


def statistics(zeros, schedule, **options):
    model = dk.DiffusionModel(Known(dk.VariancePreserving()), schedule, dk.GaussianDecoder(), (2,))
    return dk.estimator_statistics(
        model, zeros, key=jax.random.key(0), batches=400, batch_size=64, **options
    )


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (dk.LinearLogSNR(HIGH, LOW), {}),
        (dk.Cosine(HIGH, LOW), {}),
        (dk.LinearLogSNR(HIGH, LOW), {"weighting": dk.Sigmoid(bias=1.0)}),
    ],
    ids=["linear", "cosine", "weighted"],
)
def test_moments_are_the_integrals(zeros, schedule, options):
    result = statistics(zeros, schedule, time_sampler=dk.Uniform(), **options)
    # The loss at logsnr is w r^2 (-dlogsnr/dt) / 2, and -dt/dlogsnr is the density of logsnr.
    half = np.asarray(jax.vmap(error)(jnp.asarray(LOGSNR))) ** 2
    if "weighting" in options:
        half = half * np.asarray(jax.vmap(options["weighting"])(jnp.asarray(LOGSNR)))
    t = jax.vmap(schedule.inverse)(jnp.asarray(LOGSNR))
    slope = -np.asarray(jax.vmap(jax.grad(schedule))(t), np.float64)
    mean, second = integral(half), integral(half**2 * slope)
    # With even times there is no error but of rounding.
    assert result.mean == pytest.approx(mean, abs=5 * result.mean_error + 1e-6)
    assert result.mean_error < 0.05 * mean
    draws = result.batches * result.batch_size
    # The error of a variance: from the fourth moment, by independent draws.
    fourth = integral((half * slope) ** 4 / slope)
    assert result.variance == pytest.approx(second - mean**2, abs=5 * np.sqrt((fourth - second**2) / draws))
    # Under the best density the loss of every draw is the same here.
    assert result.best_variance == pytest.approx(0, abs=0.01 * mean**2)
    assert result.batch_variance * result.batch_size == pytest.approx(result.variance, rel=0.3)


@pytest.mark.parametrize("steps", [None, 40])
def test_the_ends_of_the_range_are_not_missed(zeros, steps):
    """Times of training that hardly visit the ends of the range leave out most of the variance."""
    schedule = dk.Truncated(dk.get("schedule", "log_normal")(), HIGH, LOW)
    result = statistics(zeros, schedule, time_sampler=dk.Uniform(), steps=steps)
    with jax.enable_x64(True):
        if steps is None:
            at = jnp.asarray(LOGSNR)
            half = np.asarray(error(at)) ** 2
            t = jax.vmap(schedule.inverse)(at)
            slope = -np.asarray(jax.vmap(jax.grad(schedule))(t))
            mean, second = integral(half), integral(half**2 * slope)
        else:
            # T / 2 expm1(logsnr_s - logsnr_t) |eps - eps_hat|^2, each step as likely as any other.
            logsnr = np.asarray(jax.vmap(schedule)(jnp.arange(steps + 1) / steps))
            loss = steps * np.expm1(logsnr[:-1] - logsnr[1:]) * np.asarray(error(logsnr[1:])) ** 2
            mean, second = loss.mean(), (loss**2).mean()
    assert result.mean == pytest.approx(mean, rel=0.01)
    assert result.variance == pytest.approx(second - mean**2, rel=0.02)


def test_profiles(zeros):
    schedule = dk.LinearLogSNR(HIGH, LOW)
    result = statistics(zeros, schedule, bins=28)
    for profile, at in (
        (result.by_logsnr, lambda middle: middle),
        (result.by_t, lambda middle: np.asarray(jax.vmap(schedule)(jnp.asarray(middle)))),
    ):
        np.testing.assert_allclose(profile.share, 1 / 28, rtol=0.1)
        middle = (profile.edges[1:] + profile.edges[:-1]) / 2
        expected = (HIGH - LOW) * np.asarray(error(at(middle))) ** 2
        np.testing.assert_allclose(profile.mean, expected, rtol=0.05)
        np.testing.assert_allclose(profile.second_moment, expected**2, rtol=0.1)


def test_even_times_make_a_batch_less_noisy(zeros):
    schedule = dk.LinearLogSNR(HIGH, LOW)
    even = statistics(zeros, schedule)
    independent = statistics(zeros, schedule, time_sampler=dk.Uniform())
    assert even.variance == pytest.approx(independent.variance, rel=0.1)
    # Nothing but the times is random here, and 64 even ones integrate a smooth function.
    assert even.batch_variance < 1e-3 * independent.batch_variance


@pytest.mark.parametrize(("name", "value"), [("batches", 1), ("batch_size", 0), ("bins", 0), ("steps", 0)])
def test_errors_name_the_number(zeros, name, value, toy_model):
    with pytest.raises(ValueError, match=rf"{name} must be at least \d, got {value}"):
        dk.estimator_statistics(toy_model(), zeros, key=jax.random.key(0), **{name: value})


@pytest.mark.slow
def test_command_and_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    small = ["data=swirl", "network=mlp", "network.width=8", "network.depth=1", "samples=0"]
    main(["train", "preset=vdm", *small, "train.steps=10", "passes=1", f"run={run}"])
    capsys.readouterr()
    options = ["passes=1", "variance=true", "schedule=cosine", "time_sampler=uniform"]
    main(["evaluate", str(run), *options])
    shown = capsys.readouterr().out
    # Not in the place of what the run itself would have.
    record = json.loads((run / "variance_cosine_uniform.json").read_text())
    assert (record["schedule"], record["time_sampler"]) == ("cosine", "uniform")
    assert f"{record['variance']:.4g}" in shown
    assert record["batch_size"] == 64
    assert (run / "variance_cosine_uniform.png").stat().st_size > 10_000
    # Under the cosine schedule, and not under the run's own, which is nearly straight.
    loaded = dk.load_run(run)
    source, key = loaded.data().test, jax.random.key(0)
    other = eqx.tree_at(lambda m: m.schedule, loaded.model, dk.Cosine())
    expected = dk.estimator_statistics(other, source, key=key, time_sampler=dk.Uniform(), batch_size=64)
    assert record["variance"] == pytest.approx(expected.variance, rel=1e-4)
    own = dk.estimator_statistics(loaded.model, source, key=key, batch_size=64)
    assert own.variance < record["variance"] / 3
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "time_sampler=uniform"])
    assert "variance=true" in capsys.readouterr().err
    assert save_statistics(own, tmp_path / "own.png").exists()
