"""Schedules at ends that are chosen, far apart too, and closed forms of the core's."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.presets import complete

RANGES = ((13.3, -5.0), (20.0, -20.0))


def make(name, logsnr_max=13.3, logsnr_min=-5.0):
    options = {"key": jax.random.key(0), "logsnr_max": logsnr_max, "logsnr_min": logsnr_min}
    return complete(dk.get("schedule", name), options)


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize(
    "name",
    [
        n
        for n in dk.available("schedule")
        if "logsnr_max" in inspect.signature(dk.get("schedule", n)).parameters
        and n != "truncated"  # which cannot widen; see tests/test_transport.py
    ],
)
def test_laws(name, ends):
    schedule = make(name, *ends)
    t = jnp.linspace(0.0, 1.0, 10_001)
    logsnr = jax.jit(jax.vmap(schedule))(t)
    assert np.all(np.isfinite(logsnr))
    assert np.all(np.diff(logsnr) < 0)
    np.testing.assert_allclose([logsnr[0], logsnr[-1]], ends, atol=1e-5)
    np.testing.assert_allclose(schedule.endpoints, ends, atol=1e-5)
    # The inverse is checked in logsnr, where a time in float32 is exact to its slope times 1e-7.
    inside = logsnr[5:-5:250]
    there = jax.jit(jax.vmap(lambda value: schedule(schedule.inverse(value))))(inside)
    slope = jax.vmap(jax.grad(schedule))(t[5:-5:250])
    assert np.all(np.abs(there - inside) < 5e-6 + 3e-7 * np.abs(slope) + 1e-6 * np.abs(inside))


@pytest.mark.parametrize("ends", RANGES)
def test_cosine_is_the_cosine_in_float64(ends):
    schedule = dk.Cosine(*ends)
    t = np.linspace(0.0, 1.0, 1001)
    # alpha = cos(pi t' / 2), sigma = sin(pi t' / 2), with t' between the times of the endpoints.
    first, last = (2 / np.pi * np.arctan(np.exp(-value / 2)) for value in ends)
    angle = np.pi / 2 * (first + t * (last - first))
    expected = np.log(np.cos(angle) ** 2 / np.sin(angle) ** 2)
    found = jax.vmap(schedule)(jnp.asarray(t, jnp.float32))
    slope = np.abs(np.gradient(expected, t))
    assert np.all(np.abs(found - expected) < 1e-5 + 2e-7 * slope)


@pytest.mark.parametrize("shift", [-1.4, 2.0])
def test_shifted_cosine_is_the_cosine_elsewhere(shift):
    # logsnr - shift runs along the cosine, between ends that are shifted back.
    shifted, plain = dk.Cosine(12.0, -6.0, shift=shift), dk.Cosine(12.0 - shift, -6.0 - shift)
    t = jnp.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(jax.vmap(shifted)(t), jax.vmap(plain)(t) + shift, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shifted.endpoints, (12.0, -6.0), atol=1e-5)
    assert float(shifted.inverse(shifted(0.3))) == pytest.approx(0.3, abs=1e-5)
    with pytest.raises(ValueError, match="shift must be finite, got inf"):
        dk.Cosine(shift=float("inf"))


def test_linear_is_exact_at_both_ends():
    schedule = dk.LinearLogSNR(13.3, -5.0)
    assert schedule(0.0) == jnp.float32(13.3)
    assert schedule(1.0) == jnp.float32(-5.0)
    assert float(schedule(0.25)) == pytest.approx(13.3 - 0.25 * 18.3, rel=1e-6)


@pytest.mark.parametrize("kind", [dk.LinearLogSNR, dk.Cosine])
def test_wrong_endpoints_are_refused(kind):
    with pytest.raises(ValueError, match="logsnr_max must be finite and greater"):
        kind(-5.0, 13.3)
    with pytest.raises(ValueError, match="logsnr_max=inf"):
        kind(float("inf"), 0.0)


class Rising(dk.AbstractSchedule):
    """VDM's gamma by mistake."""

    def __call__(self, t):
        return -10.0 + 18.0 * t

    def inverse(self, logsnr):
        return (logsnr + 10.0) / 18.0


class Endless(dk.AbstractSchedule):
    def __call__(self, t):
        return -jnp.log(t)

    def inverse(self, logsnr):
        return jnp.exp(-logsnr)


@pytest.mark.parametrize(
    ("schedule", "ends"), [(Rising(), "got -10 and 8 from Rising"), (Endless(), "got inf and -0")]
)
def test_a_schedule_that_does_not_fall_is_refused(schedule, ends):
    data = dk.data.Swirl()
    network = dk.networks.MLP(data.shape, width=8, key=jax.random.key(0))
    denoiser = dk.Denoiser(network, dk.Epsilon(), dk.VariancePreserving())
    model = dk.DiffusionModel(denoiser, schedule, dk.DiscretizedDecoder(data.levels), data.shape)
    for use in (
        lambda: dk.fit(model, data, dk.TrainConfig(steps=1), progress=False),
        lambda: dk.evaluate(model, data.test, key=jax.random.key(0)),
    ):
        with pytest.raises(ValueError, match=f"schedule must fall from a finite logsnr.*{ends}"):
            use()
