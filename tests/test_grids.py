"""Laws of grids, for every registered one."""

import jax
import numpy as np
import pytest

import diffkit as dk
from diffkit.presets import complete


@pytest.mark.parametrize("name", dk.available("grid"))
@pytest.mark.parametrize("schedule", [dk.LinearLogSNR(), dk.Cosine(20.0, -20.0)])
def test_goes_from_noise_to_data(name, schedule):
    grid = complete(dk.get("grid", name), {})
    for steps in (1, 7, 640):
        logsnr = np.asarray(grid(schedule, steps))
        assert logsnr.shape == (steps + 1,)
        assert np.all(np.diff(logsnr) > 0)
        np.testing.assert_allclose(
            [logsnr[-1], logsnr[0]], [float(v) for v in schedule.endpoints], atol=1e-5
        )
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        grid(schedule, 0)


def test_even_in_t_and_in_logsnr():
    schedule = dk.Cosine()
    t = jax.vmap(schedule.inverse)(dk.UniformT()(schedule, 10))
    np.testing.assert_allclose(t, np.linspace(1.0, 0.0, 11), atol=1e-5)
    logsnr = dk.UniformLogSNR()(schedule, 10)
    np.testing.assert_allclose(logsnr, np.linspace(-5.0, 13.3, 11), atol=1e-5)
