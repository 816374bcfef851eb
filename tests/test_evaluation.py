"""Evaluation against known values: its terms, its errors, and where it looks."""

import json
import math
import statistics

import equinox as eqx
import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest

import diffkit as dk
from diffkit.data import ArraySource
from diffkit.objectives import expected_reconstruction
from diffkit.proposals import measured, propose
from diffkit.training.metrics import as_json, read_metrics

DIMENSIONS = 8
SCHEDULES = {
    "linear_logsnr": dk.LinearLogSNR(13.3, -5.0),
    "log_normal": dk.get("schedule", "log_normal")(),
    "vp_beta": dk.get("schedule", "vp_beta")(),
    "cosine": dk.Cosine(13.3, -5.0),
    "straight_line": dk.get("schedule", "straight_line")(13.3, -5.0),
    "learned_monotone": dk.get("schedule", "learned_monotone")(
        13.3, -5.0, minimise_variance=True, key=jax.random.key(0)
    ),
}


def bits(nats):
    return nats / math.log(2)


def truth(schedule, steps=None):
    """The bound of a dimension in bits, by quadrature."""
    ends = known.endpoints(schedule)
    if steps is None:
        return bits(known.ENTROPY + sum(known.gaps(ends)))
    rest = known.prior(ends[1]) + known.P @ known.reconstruction(ends[0])
    return bits(rest + known.discrete_diffusion(schedule, steps))


def evaluations(schedule, count, passes, repetitions, steps=None, **options):
    """Of new data each time."""
    model, rng = known.model(schedule, DIMENSIONS), np.random.default_rng(1)
    for index in range(repetitions):
        source = ArraySource(known.draw(rng, count, DIMENSIONS))
        key = jax.random.key(index)
        yield dk.evaluate(model, source, key=key, steps=steps, passes=passes, **options)


def coverage(pairs, value):
    """How often the interval of two standard errors has the value."""
    return np.mean([abs(mean - value) <= 1.96 * error for mean, error in pairs])


def test_every_example_is_counted_once(toy, toy_model):
    # 11 examples in batches of 4, the last of them not full.
    result = dk.evaluate(toy_model(), toy.test, key=jax.random.key(3), passes=2, batch_size=8)
    assert result.examples == 11
    assert result.per_example.shape == (11,)
    mean, error = result.total
    assert mean == pytest.approx(result.per_example.mean())
    assert error == pytest.approx(result.per_example.std(ddof=1) / math.sqrt(11))
    parts = (result.prior[0], result.reconstruction[0], result.diffusion[0])
    assert sum(parts) == pytest.approx(mean)
    assert result.bits_per_dim == pytest.approx((bits(mean) / 2, bits(error) / 2))
    # The prior term has no randomness: it can be computed apart.
    model, x = toy_model(), jnp.asarray(toy.test.gather(np.arange(11)))
    prior = eqx.filter_jit(dk.vlb)(model, x, key=jax.random.key(9)).prior.mean()
    assert result.prior[0] == pytest.approx(float(prior), rel=1e-4)
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        dk.evaluate(model, toy.test, key=jax.random.key(3), passes=0)


def test_more_passes_mean_less_noise(toy, toy_model):
    model = toy_model()

    def spread(passes):
        keys = jax.random.split(jax.random.key(4), 6)
        found = [dk.evaluate(model, toy.test, key=k, passes=passes).bits_per_dim[0] for k in keys]
        return np.std(found)

    # 64 draws of evenly spread noise levels against one: far below 1 / sqrt(64) would allow alone.
    assert spread(64) < 0.5 * spread(1)


def test_one_example_has_no_standard_error_and_its_record_is_json(toy, toy_model):
    source = ArraySource(toy.test.gather(np.arange(1)))
    result = dk.evaluate(toy_model(), source, key=jax.random.key(0), passes=2)
    assert math.isnan(result.total[1])

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    record = json.loads(json.dumps(result.as_dict()), parse_constant=refuse)
    assert record["total_standard_error"] is None
    assert record["total_bits_per_dim"] == result.bits_per_dim[0]


def test_what_json_does_not_have_is_null(tmp_path):
    assert as_json({"a": [math.nan, 1.5, None], "b": math.inf}) == '{"a": [null, 1.5, null], "b": null}'
    (tmp_path / "metrics.jsonl").write_text(as_json({"step": 1, "loss": math.nan}) + "\n")
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["loss"])


@pytest.mark.parametrize("logsnr", [14.0, 13.3, 11.0, 7.0])
def test_the_reconstruction_term_is_its_expectation(logsnr):
    model = known.model(dk.LinearLogSNR(logsnr, -5.0), 1)
    shifts = (jnp.arange(16) + 0.5) / 16

    @jax.jit
    def over_shifts(stored):
        return jax.vmap(lambda shift: expected_reconstruction(model, stored, shift))(shifts)

    found = np.array([over_shifts(jnp.asarray([level])) for level in known.LEVELS], np.float64)
    exact = known.reconstruction(logsnr)
    # In float32 a latent near 1 is known to 5e-5 of its noise.
    np.testing.assert_allclose(found.mean(axis=1), exact, rtol=2e-4, atol=1e-7)
    # The error of one shift, beside that of one draw of the noise: 0.13 nats at 13.3.
    assert found.std(axis=1).max() < 7e-4


def test_the_reconstruction_term_of_the_gaussian_decoder():
    # -log N(x; x + rho eps, rho^2) has the mean (1 + log 2 pi + log rho^2) / 2 in each dimension.
    model = dk.DiffusionModel(
        dk.analytic.gaussian(np.zeros(3), np.eye(3)),
        dk.LinearLogSNR(8.0, -5.0),
        dk.GaussianDecoder(),
        (3,),
    )
    found = expected_reconstruction(model, jnp.asarray([0.3, -2.0, 1.0]), jnp.asarray(0.7))
    assert float(found) == pytest.approx(1.5 * (1 + math.log(2 * math.pi) - 8.0), rel=1e-5)


class Constant(dk.AbstractDenoiser):
    """Errs by 1 in eps of its one dimension, whatever the draw, for data that are zero."""

    process: dk.AbstractProcess

    def __call__(self, z, logsnr, condition=None, *, key=None):
        level = self.process.at(logsnr)
        eps = z / level.sigma + 1.0
        return dk.Prediction((z - level.sigma * eps) / level.alpha, eps, level)


class EachStep(dk.AbstractTimeSampler):
    """A time in the middle of each step."""

    def __call__(self, key, batch_size):
        t = (jnp.arange(batch_size) + 0.5) / batch_size
        return t, jnp.ones_like(t)

    def density(self, t):
        return jnp.ones_like(t)


@pytest.mark.parametrize("steps", [1000, 100_000])
def test_short_steps_keep_their_digits(steps):
    # L_T = T / 2 expm1((max - min) / T) under the straight line, in float64.
    ends = (13.3, -5.0)
    model = dk.DiffusionModel(
        Constant(dk.VariancePreserving()), dk.LinearLogSNR(*ends), dk.GaussianDecoder(), (1,)
    )
    exact = steps / 2 * math.expm1((ends[0] - ends[1]) / steps)
    x = jnp.zeros((steps, 1))
    for times, rounding in ((EachStep(), 3e-6), (None, 1e-5)):
        bound = known.vlb(model, x, jax.random.key(0), steps, times)
        # Each step by itself is rounded, since log SNR is; their mean must not be.
        mean = np.asarray(bound.diffusion, np.float64).mean()
        assert mean == pytest.approx(exact, rel=rounding)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_default_draws_are_unbiased(name):
    """In discrete time, against quadrature; in continuous time they follow the endpoints alone."""
    schedule = SCHEDULES[name]
    model = known.model(schedule, DIMENSIONS)
    x = jnp.asarray(known.draw(np.random.default_rng(0), 40_000, DIMENSIONS))
    found = np.asarray(known.vlb(model, x, jax.random.key(1), 20).diffusion, np.float64)
    error = found.std() / math.sqrt(found.size)
    exact = DIMENSIONS * known.discrete_diffusion(schedule, 20)
    assert error < 0.05 * exact
    assert abs(found.mean() - exact) < 5 * error
    if name == "cosine":
        key, straight = jax.random.key(2), known.model(SCHEDULES["linear_logsnr"], DIMENSIONS)
        np.testing.assert_allclose(
            *(known.vlb(each, x, key).total for each in (model, straight)), rtol=1e-4, atol=1e-3
        )


def test_a_pilot_finds_where_the_error_is():
    """Draws in proportion to a known error have no variance."""

    def error(logsnr):
        return 0.2 + np.exp(-0.5 * ((logsnr - 2.0) / 2.0) ** 2)

    logsnr = np.random.default_rng(0).uniform(-5.0, 13.3, 512)
    known_errors = measured(logsnr, error(logsnr))
    schedule = dk.LinearLogSNR(13.3, -5.0)
    u = jnp.asarray((np.arange(4096) + 0.5) / 4096, jnp.float32)
    grid = np.linspace(-5.0, 13.3, 4001)
    integral = np.trapezoid(error(grid), grid)
    spreads = []
    for errors in (None, known_errors):
        at, _, importance = map(np.asarray, propose(schedule, None, errors).draw(u))
        values = importance * error(at)
        assert values.mean() == pytest.approx(integral, rel=2e-3)
        spreads.append(values.std())
    assert spreads[1] < 0.5 * spreads[0]
    # Half of the draws are uniform all the same: a pilot may have missed a rare error.
    seen = measured(logsnr, np.where(np.abs(logsnr - 2.0) < 2.0, 1.0, 0.0))
    density = propose(schedule, None, seen)
    share = np.diff(np.asarray(density.ends)) / np.diff(np.asarray(density.logsnr))
    assert share.min() == pytest.approx(0.5 / 18.3, rel=1e-3)


def test_the_record_says_how_noise_levels_were_drawn():
    cases = [
        ("linear_logsnr", 20, {}, "uniform_logsnr"),
        ("linear_logsnr", 300, {}, "pilot"),
        ("learned_monotone", 20, {}, "schedule"),
        ("linear_logsnr", 300, {"time_sampler": dk.Uniform()}, "Uniform"),
    ]
    for name, count, options, expected in cases:
        (result,) = evaluations(SCHEDULES[name], count, 16, 1, **options)
        assert result.draws == result.as_dict()["draws"] == expected


def test_a_model_is_evaluated_under_another_schedule():
    source = ArraySource(known.draw(np.random.default_rng(1), 20, DIMENSIONS))
    arguments = {"key": jax.random.key(0), "steps": 5, "passes": 2}
    linear, cosine = (known.model(SCHEDULES[name], DIMENSIONS) for name in ("linear_logsnr", "cosine"))
    moved = dk.evaluate(linear, source, schedule=SCHEDULES["cosine"], **arguments)
    assert moved.total == dk.evaluate(cosine, source, **arguments).total
    with pytest.warns(dk.equivalence.TransportWarning, match="noise end"):
        dk.evaluate(linear, source, schedule=dk.LinearLogSNR(13.3, -4.0), **arguments)


def spread(name, count, passes, repetitions, times=None):
    """The standard deviation of an evaluation."""
    found = evaluations(SCHEDULES[name], count, passes, repetitions, time_sampler=times)
    return statistics.stdev(result.bits_per_dim[0] for result in found)


def test_an_evaluation_does_not_miss_the_ends_of_the_range():
    uniform = spread("vp_beta", 64, 16, 40, dk.LowDiscrepancy())
    assert spread("vp_beta", 64, 16, 40) < uniform / 5


@pytest.mark.slow
@pytest.mark.parametrize("steps", [None, 100])
@pytest.mark.parametrize("name", SCHEDULES)
def test_intervals_cover_the_truth(name, steps):
    schedule, value = SCHEDULES[name], truth(SCHEDULES[name], steps)
    found = [e.bits_per_dim for e in evaluations(schedule, 256, 64, 200, steps, batch_size=2048)]
    covered = coverage(found, value)
    means = [mean for mean, _ in found]
    print(
        f"{name}, T = {steps}: exact {value:.4f}, median {statistics.median(means):.4f}, "
        f"standard deviation {statistics.stdev(means):.4f}, coverage {covered:.3f}"
    )
    assert 0.92 <= covered <= 0.98
    assert abs(statistics.median(means) - value) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("count", "passes"), [(32, 1), (64, 4), (300, 16)])
def test_intervals_of_the_reconstruction_term_cover_the_truth(count, passes):
    schedule = SCHEDULES["linear_logsnr"]
    value = DIMENSIONS * known.P @ known.reconstruction(known.endpoints(schedule)[0])
    found = [e.reconstruction for e in evaluations(schedule, count, passes, 1000)]
    covered = coverage(found, value)
    print(f"{count} x {passes}: exact {value:.5f}, coverage {covered:.3f}")
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_an_evaluation_is_more_precise_at_equal_cost(name):
    # With its pilot of 504 calls of the network: 4,704 in all, against 4,800.
    found = spread(name, 300, 14, 200)
    uniform = spread(name, 300, 16, 200, dk.LowDiscrepancy())
    print(f"{name}: standard deviation {found:.4f}, with times uniform in t {uniform:.4f}")
    # The data are the same in both.
    assert found < uniform / {"log_normal": 5, "vp_beta": 5}.get(name, 1.0)
