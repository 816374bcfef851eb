"""Timestep respacing: which of the discrete times are visited, under any schedule."""

import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
import diffkit_ddpm


def visited(steps, timesteps):
    """The indices of the levels: a straight line in t is logsnr = -k under this schedule."""
    last = timesteps - 1
    grid = diffkit_ddpm.Respaced(timesteps=timesteps)
    logsnr = np.asarray(grid(dk.LinearLogSNR(0.0, -float(last)), steps))
    assert np.abs(logsnr - np.round(logsnr)).max() < 1e-4 * last
    return -np.round(logsnr).astype(int)


def test_worked_by_hand():
    assert visited(3, 10).tolist() == [9, 6, 3, 0]
    # 0, 2.25, 4.5, 6.75, 9, to the nearest.
    assert visited(4, 10).tolist() in ([9, 7, 5, 2, 0], [9, 7, 4, 2, 0])
    assert visited(1, 10).tolist() == [9, 0]
    assert visited(9, 10).tolist() == list(range(9, -1, -1))


@pytest.mark.parametrize("timesteps", [2, 37, 1000, 4000])
def test_evenly_spread_distinct_and_with_both_ends(timesteps):
    last = timesteps - 1
    for steps in {1, 2, last // 3, last // 2 + 1, last} & set(range(1, last + 1)):
        level = visited(steps, timesteps)
        assert len(level) == steps + 1
        assert (level[0], level[-1]) == (last, 0)
        gaps = -np.diff(level)
        assert set(gaps) <= {last // steps, -(-last // steps)}
        ideal = np.linspace(last, 0, steps + 1)
        assert np.abs(level - ideal).max() <= 0.5 + 1e-9


def test_all_levels_of_the_chain():
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    expected = np.log(alpha_bar / (1 - alpha_bar))[::-1]
    found = diffkit_ddpm.Respaced()(diffkit_ddpm.linear_beta(), 999)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(
        diffkit_ddpm.Respaced()(diffkit_ddpm.linear_beta(), 9),
        expected[::111],
        rtol=2e-6,
        atol=2e-5,
    )


def test_without_a_discrete_schedule():
    found = diffkit_ddpm.Respaced(timesteps=5)(dk.LinearLogSNR(13.3, -5.0), 2)
    np.testing.assert_allclose(found, jnp.asarray([-5.0, 4.15, 13.3]), rtol=1e-6)


def test_wrong_numbers_are_refused():
    schedule = dk.LinearLogSNR()
    with pytest.raises(ValueError, match=r"at most 9 for grid=respaced with timesteps=10, got 10"):
        diffkit_ddpm.Respaced(timesteps=10)(schedule, 10)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        diffkit_ddpm.Respaced()(schedule, 0)
    with pytest.raises(ValueError, match="timesteps must be at least 2, got 1"):
        diffkit_ddpm.Respaced(timesteps=1)
