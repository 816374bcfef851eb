"""Truncated schedules: the part of another schedule between two noise levels."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.presets import Context, complete, make_part
from diffkit.testing import ScheduleLaws

KEY = jax.random.key(0)
CONTEXT = {"key": KEY, "shape": (2,), "levels": 256}
INNER = {
    name: complete(dk.get("schedule", name), CONTEXT)
    for name in dk.available("schedule")
    if name != "truncated"
}
ENDS = (6.5, -3.5)


def test_of_a_straight_line_it_is_the_straight_line():
    schedule = dk.Truncated(dk.LinearLogSNR(15.0, -15.0), 5.0, -3.0)
    t = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(jax.vmap(schedule)(t), 5 - 8 * t, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(schedule.inverse)(5 - 8 * t), t, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, -1.4])
@pytest.mark.parametrize("outer", [(15.0, -12.0), ENDS])
def test_of_the_cosine_it_is_the_cosine(outer, shift):
    t = np.linspace(0.0, 1.0, 101)
    with jax.enable_x64(True):
        schedule = dk.Truncated(dk.Cosine(*outer, shift=shift), *ENDS)
        both = jax.vmap(lambda t: jax.jvp(schedule, (t,), (jnp.ones_like(t),)))
        found, slope = map(np.asarray, jax.jit(both)(t))
        direct = np.asarray(jax.jit(jax.vmap(dk.Cosine(*ENDS, shift=shift)))(t))
        back = np.asarray(jax.jit(jax.vmap(schedule.inverse))(found))
    # -2 log tan of an angle that is affine in t, between the angles of the two ends.
    start, end = (math.atan(math.exp((shift - logsnr) / 2)) for logsnr in ENDS)
    angle = start + t * (end - start)
    np.testing.assert_allclose(found, shift - 2 * np.log(np.tan(angle)), atol=1e-11)
    np.testing.assert_allclose(found, direct, atol=1e-11)
    # At the ends too, where the values are set.
    np.testing.assert_allclose(slope, -4 * (end - start) / np.sin(2 * angle), rtol=1e-11)
    np.testing.assert_allclose(back, t, atol=1e-12)


@pytest.mark.parametrize("name", INNER)
def test_truncated_ends_are_exact(name):
    schedule = dk.Truncated(INNER[name], *ENDS)
    ends = np.array(ENDS, np.float32)
    np.testing.assert_array_equal(schedule.endpoints, ends)
    logsnr = np.asarray(jax.jit(jax.vmap(schedule))(jnp.linspace(0.0, 1.0, 501)))
    np.testing.assert_array_equal(logsnr[[0, -1]], ends)
    assert np.all(np.diff(logsnr) < 0)


@pytest.mark.parametrize("name", INNER)
def test_truncated_slope_is_that_of_finite_differences(name):
    t = np.array([0.0, 0.01, 0.3, 0.5, 0.8, 0.99, 1.0])

    @eqx.filter_jit
    def everything(inner, schedule):
        logsnr, slope = jax.vmap(lambda t: jax.jvp(schedule, (t,), (jnp.ones_like(t),)))(t)
        # The other schedule goes on beyond the ends, so that differences are central there too.
        first, last = (inner.inverse(end) for end in ENDS)
        where = first + t * (last - first)
        before, here, after = (jax.vmap(inner)(where + step) for step in (-1e-6, 0.0, 1e-6))
        difference = (after - before) / 2e-6 * (last - first)
        return logsnr, here, slope, difference, jax.vmap(schedule.inverse)(logsnr)

    with jax.enable_x64(True):
        inner = complete(dk.get("schedule", name), CONTEXT)
        found = everything(inner, dk.Truncated(inner, *ENDS))
        logsnr, here, slope, difference, back = map(np.asarray, found)
    assert (logsnr[0], logsnr[-1]) == ENDS
    np.testing.assert_allclose(logsnr, here, atol=1e-9)
    np.testing.assert_allclose(slope, difference, rtol=1e-5)
    np.testing.assert_allclose(back, t, atol=1e-9)


def test_truncated_twice_is_truncated_once():
    once, twice = dk.Cosine(15.0, -15.0), dk.Truncated(dk.Cosine(15.0, -15.0), 10.0, -8.0)
    t = jnp.linspace(0.0, 1.0, 21)
    direct, nested = (jax.vmap(dk.Truncated(s, *ENDS))(t) for s in (once, twice))
    np.testing.assert_allclose(nested, direct, rtol=1e-5, atol=2e-5)


def test_truncated_refuses_wrong_ends():
    with pytest.raises(ValueError, match=r"logsnr_max must be greater .*logsnr_max=-3\.0, .*=5\.0"):
        dk.Truncated(dk.Cosine(), -3.0, 5.0)
    for maximum, minimum in ((5.0, 5.0), (math.nan, 0.0), (5.0, math.nan)):
        with pytest.raises(ValueError, match="logsnr_max must be greater than logsnr_min"):
            dk.Truncated(dk.Cosine(), maximum, minimum)
    for maximum, minimum in ((14.0, -5.0), (13.0, -5.1)):
        message = f"logsnr_max={maximum:g} and logsnr_min={minimum:g} must be within .* 13.3 and -5"
        with pytest.raises(ValueError, match=message):
            dk.Truncated(dk.Cosine(13.3, -5.0), maximum, minimum)
    # The whole of a schedule, whose endpoints are rounded to float32.
    schedule = dk.get("schedule", "learned_linear")(13.3, -5.1)
    assert float(dk.Truncated(schedule, 13.3, -5.1)(0.5)) == pytest.approx(4.1, abs=1e-5)


def registered(base):
    options = {"base": base, "logsnr_max": ENDS[0], "logsnr_min": ENDS[1]}
    return functools.partial(dk.get("schedule", "truncated"), **options)


class TestTruncatedTable(ScheduleLaws):
    part = registered("iddpm_cosine")


class TestTruncatedLogNormal(ScheduleLaws):
    part = registered("log_normal")


@pytest.mark.slow
class TestTruncatedLearned(ScheduleLaws):
    part = registered("learned_monotone")


def test_truncated_by_name():
    context = Context(shape=(2,), levels=17, key=KEY)
    made = make_part("schedule", registered("vp_beta"), context)
    assert made == dk.Truncated(INNER["vp_beta"], *ENDS)
    # Made with the data's levels, as the model is.
    made = make_part("schedule", ("truncated", {"base": "log_normal"}), context)
    np.testing.assert_array_equal(made.endpoints, dk.LinearLogSNR(levels=17).endpoints)
    with pytest.raises(ValueError, match="logsnr_min=-9 must be within"):
        make_part("schedule", ("truncated", {"base": "log_normal", "logsnr_min": -9.0}), context)
