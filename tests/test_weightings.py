"""Weightings against the closed forms of the papers, which none of them has typed in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import diffkit as dk
from diffkit.registry import UnknownPartError
from diffkit.weightings import Verdict, classify

ENDS = (12.0, -12.0)
LOGSNR = np.linspace(-9.0, 9.0, 37)


def values(weighting, logsnr=LOGSNR):
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(weighting)(jnp.asarray(logsnr)))


def same_up_to_a_constant(weighting, closed_form, rtol=1e-6):
    ratio = values(weighting) / closed_form(LOGSNR)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=rtol)


def sech(x):
    return 1 / np.cosh(x)


def model(schedule="cosine", parameterization="epsilon", process="variance_preserving"):
    return dk.preset(
        "vdm",
        network=("mlp", {"width": 8, "depth": 1}),
        schedule=(schedule, {"logsnr_max": ENDS[0], "logsnr_min": ENDS[1]}),
        parameterization=parameterization,
        process=process,
    ).model(shape=(2,), key=jax.random.key(0))


def test_elbo_is_one():
    np.testing.assert_array_equal(values(dk.ELBO()), 1.0)


# The closed forms: Kingma and Gao 2023, table 1 and appendix, of uniform times.
@pytest.mark.parametrize("process", ["variance_preserving", "variance_exploding"])
@pytest.mark.parametrize(
    ("schedule", "parameterization", "closed_form"),
    [
        ("cosine", "epsilon", lambda u: sech(u / 2)),
        ("cosine", "v", lambda u: np.exp(-u / 2)),
        ("cosine", "x", lambda u: sech(u / 2) * np.exp(-u)),
        ("linear_logsnr", "epsilon", np.ones_like),
        ("linear_logsnr", "x", lambda u: np.exp(-u)),
    ],
)
def test_simple_loss(schedule, parameterization, closed_form, process):
    with jax.enable_x64(True):
        weighting = dk.part("weighting", "simple", model=model(schedule, parameterization, process))
    same_up_to_a_constant(weighting, closed_form)


def test_in_float32_at_the_noise_end():
    # There t is next to 1, where float32 has no digits left for the slope.
    logsnr = np.linspace(-11.99, -8.0, 101)
    found = jax.vmap(dk.part("weighting", "simple", model=model()))(jnp.asarray(logsnr, jnp.float32))
    ratio = np.asarray(found) / sech(logsnr / 2)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=5e-6)


def test_the_simple_loss_is_the_plain_mean():
    # The constant too: with uniform times it is E |target - prediction|^2, computed from what the
    # network returned.
    composed = model("cosine", "v")
    weighting = dk.part("weighting", "simple", model=composed)
    x = jax.random.randint(jax.random.key(1), (64, 2), 0, 256)
    key = jax.random.key(2)
    loss = dk.denoising_loss(composed, x, key=key, weighting=weighting, inference=True)
    t_key, eps_key, _ = jax.random.split(key, 3)
    t, _ = dk.LowDiscrepancy()(t_key, 64)
    data = composed.encode(x)
    eps = jax.random.normal(eps_key, data.shape)

    def plain(x, t, eps):
        level = composed.level(t)
        z = level.alpha * x + level.sigma * eps
        output = composed.denoiser.network(z, level.logsnr)
        return jnp.sum(jnp.square(level.alpha * eps - level.sigma * x - output))

    np.testing.assert_allclose(loss, jax.vmap(plain)(data, t, eps), rtol=2e-3)


def test_sigmoid():
    for bias in (-1.0, 0.0, 2.5):
        expected = 1 / (1 + np.exp(LOGSNR - bias))
        np.testing.assert_allclose(values(dk.Sigmoid(bias)), expected, rtol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr(gamma):
    weighting = dk.part("weighting", ("min_snr", {"gamma": gamma}), model=model())
    same_up_to_a_constant(weighting, lambda u: sech(u / 2) * np.minimum(1, gamma * np.exp(-u)), rtol=1e-5)


def test_p2():
    weighting = dk.part("weighting", ("p2", {"k": 2.0, "gamma": 0.5}), model=model())
    same_up_to_a_constant(weighting, lambda u: sech(u / 2) / np.sqrt(2 + np.exp(u)), rtol=1e-5)


def test_times_of_the_loss_enter_through_their_density():
    # With density 2 (1 - t) the simple loss has that much more weight at the data end.
    class Early(dk.AbstractTimeSampler):
        def __call__(self, key, batch_size):
            raise AssertionError("not drawn from here")

        def density(self, t):
            return 2 * (1 - t)

    with jax.enable_x64(True):
        schedule = dk.LinearLogSNR(*ENDS)
        w = dk.equivalence.implied_weighting(
            parameterization=dk.Epsilon(), schedule=schedule, time_sampler=Early()
        )
    same_up_to_a_constant(w, lambda u: (u - ENDS[1]) / (ENDS[0] - ENDS[1]))


def test_monotone_is_the_least_majorant():
    class Bumps(dk.AbstractWeighting):
        def __call__(self, logsnr):
            return jnp.exp(-((logsnr - 3) ** 2) / 4) + 0.5 * jnp.exp(-((logsnr + 4) ** 2) / 4)

    weighting = dk.Monotone(Bumps(), (10.0, -10.0))
    fine = np.linspace(-10.0, 10.0, 40_001)
    base = np.exp(-((fine - 3) ** 2) / 4) + 0.5 * np.exp(-((fine + 4) ** 2) / 4)
    expected = np.maximum.accumulate(base[::-1])[::-1]
    found = np.asarray(jax.vmap(weighting)(jnp.asarray(fine[::50], jnp.float32)))
    np.testing.assert_allclose(found, expected[::50], rtol=2e-3, atol=1e-6)
    assert np.all(np.diff(found) <= 1e-6)

    # A weighting may be zero.
    class Cut(dk.AbstractWeighting):
        def __call__(self, logsnr):
            return jnp.where(logsnr < 3, jnp.exp(-(logsnr**2)), 0.0)

    cut = values(dk.Monotone(Cut(), (10.0, -10.0)), np.linspace(-12.0, 12.0, 25))
    np.testing.assert_allclose(cut[:13], 1.0, rtol=1e-4)
    np.testing.assert_allclose(cut[16:], 0.0, atol=1e-30)
    # A weighting that is monotone already stays as it is.
    sigmoid = dk.part("weighting", ("monotone", {"base": "sigmoid"}), model=model())
    np.testing.assert_allclose(values(sigmoid), values(dk.Sigmoid()), rtol=1e-3)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("min_snr", {"gamma": 0.0}), "gamma must be a positive number, got 0.0"),
        (("p2", {"k": -1.0}), "k must be a positive number, got -1.0"),
        (("p2", {"gamma": -1.0}), "gamma must be a number of at least 0, got -1.0"),
        (("sigmoid", {"bias": float("nan")}), "bias must be a finite number, got nan"),
        (("p2",), r"weighting must be a name, \(name, options\)"),
    ],
)
def test_values_out_of_range_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        dk.part("weighting", choice, model=model())


def test_names_in_options_are_looked_up():
    with pytest.raises(UnknownPartError, match="Did you mean 'uniform'"):
        dk.part("weighting", ("simple", {"times": "unifrom"}), model=model())
    with pytest.raises(UnknownPartError, match="there is no weighting 'edn'"):
        dk.part("weighting", ("monotone", {"base": "edn"}), model=model())
    with pytest.raises(ValueError, match=r"logsnr_range must be \(max, min\)"):
        dk.Monotone(dk.ELBO(), (-5.0, 5.0))


# What a loss is a bound on.

RANGE = (12.0, -6.0)


class Curve(dk.AbstractWeighting):
    """exp of a function of `logsnr`."""

    log: Callable[[Array], Array]

    def __call__(self, logsnr):
        return jnp.exp(self.log(logsnr))


def bump(u, top, width):
    return jnp.exp(-(((u - top) / width) ** 2))


@pytest.mark.parametrize("scale", [1.0, 0.25, 3e7, 1e-40])
def test_a_constant_is_the_vlb_with_its_scale(scale):
    found = classify(Curve(lambda u: jnp.full_like(u, np.log(scale))), RANGE)
    assert found.kind == "vlb"
    assert found.scale == pytest.approx(scale, rel=1e-9)
    assert found.rises is None
    # A ripple that no training run would notice, and one of 2 per cent.
    assert classify(Curve(lambda u: 9e-4 * jnp.sin(3 * u)), RANGE).kind == "vlb"
    assert classify(Curve(lambda u: 2e-2 * jnp.sin(3 * u)), RANGE).kind == "neither"


def test_a_falling_curve_is_monotone():
    found = classify(Curve(lambda u: -u / 2), RANGE)
    assert found == Verdict("monotone", found.scale, None)
    assert found.scale == pytest.approx(np.exp(-1.5), rel=1e-9)  # at the middle of the range
    # A step, and a rise that is less than a thousandth.
    assert classify(Curve(lambda u: jnp.where(u < 1, 0.0, -3.0)), RANGE).kind == "monotone"
    assert classify(Curve(lambda u: -u / 2 + 5e-4 * (u > 3)), RANGE).kind == "monotone"
    # The other way round it is no bound.
    assert classify(Curve(lambda u: u / 2), RANGE).kind == "neither"


def test_a_rise_is_found_where_it_is():
    # -u / 2 falls; the bump, whose slope is 1.7 at 2.3, rises against it around there.
    found = classify(Curve(lambda u: -u / 2 + 2 * bump(u, 3.0, 1.0)), RANGE, points=4001)
    assert found.kind == "neither"
    fine = np.linspace(1.0, 4.0, 300_001)
    up = fine[np.gradient(-fine / 2 + 2 * np.exp(-((fine - 3) ** 2)), fine) > 0]
    assert found.rises == pytest.approx((up[0], up[-1]), abs=0.01)
    assert str(found) == f"not a bound: w rises between logsnr {up[0]:.1f} and {up[-1]:.1f}"
    # Of two rises the one by the larger factor.
    two = classify(Curve(lambda u: bump(u, 8.0, 0.5) + 2 * bump(u, -2.0, 0.5)), RANGE)
    assert two.rises[1] == pytest.approx(-2.0, abs=0.02)
    # A narrow one is seen with enough points only.
    narrow = Curve(lambda u: 0.1 * bump(u, 3.003, 0.002))
    assert classify(narrow, RANGE, points=10).kind == "vlb"
    assert classify(narrow, RANGE, points=18_001).rises[1] == pytest.approx(3.003, abs=1e-3)


def test_a_weighting_may_be_zero():
    # Zero towards data is monotone; zero towards noise is a rise where it ends.
    assert classify(Curve(lambda u: jnp.where(u < 2, 0.0, -jnp.inf)), RANGE).kind == "monotone"
    found = classify(Curve(lambda u: jnp.where(u < 2, -jnp.inf, 0.0)), RANGE)
    assert found.kind == "neither"
    assert found.rises == pytest.approx((2.0, 2.0), abs=0.02)
    assert found.scale == 1.0  # where it is not zero
    # What a formula gives beyond its range is no weight.
    assert classify(Curve(lambda u: jnp.log(2.0 - u)), RANGE).kind == "monotone"


def test_what_cannot_be_classified():
    with pytest.raises(ValueError, match=r"logsnr_range must be \(max, min\), got \(-6.0, 12.0\)"):
        classify(dk.ELBO(), RANGE[::-1])
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        classify(dk.ELBO(), RANGE, points=1)
    with pytest.raises(ValueError, match="weighting must be positive somewhere"):
        classify(Curve(lambda u: jnp.full_like(u, -jnp.inf)), RANGE)


def test_a_loss_that_is_stated_as_a_weighted_bound():
    schedule = dk.Cosine(*ENDS)
    stated = dk.Sigmoid(1.0)
    # Target and times have no part in it: `denoising_loss` divides by both.
    for target in (dk.V(), dk.X()):
        w = dk.weightings.implied_weighting(parameterization=target, schedule=schedule, weighting=stated)
        np.testing.assert_array_equal(values(w), values(stated))
        assert w.verdict.kind == "monotone"
        assert w.verdict.scale == pytest.approx(classify(stated, ENDS).scale, rel=1e-5)
    assert dk.weightings.implied_weighting(schedule=schedule).verdict.kind == "neither"
    with pytest.raises(ValueError, match="factor and weighting are two ways to say one thing"):
        dk.weightings.implied_weighting(schedule=schedule, factor=jnp.exp, weighting=stated)
