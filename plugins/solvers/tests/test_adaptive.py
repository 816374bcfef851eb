"""The adaptive solver: to its tolerance, whatever the grid, each example by itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit_solvers import Adaptive

MEAN, STD, ENDS = np.array([0.7, -0.3]), 0.5, (-8.76, 12.4)
START = MEAN + 80 * np.random.default_rng(0).standard_normal((6, 2))


def exact(y):
    """The affine map of the probability-flow ODE of N(MEAN, STD^2)."""
    variances = STD**2 + np.exp(-np.array(ENDS))
    return MEAN + (y - MEAN) * np.sqrt(variances[1] / variances[0])


@eqx.filter_jit
def solve(sampler, denoiser, start, grid):
    def denoise(y, logsnr):
        return denoiser(denoiser.process.at(logsnr).alpha * y, logsnr)

    def body(y, at):
        return jax.vmap(lambda y: sampler.step(denoise, y, *at, None, None)[0])(y), None

    return jax.lax.scan(body, start, (grid[:-1], grid[1:]))[0]


def gaussian(process=dk.VariancePreserving()):
    return dk.analytic.gaussian(MEAN, STD**2 * np.eye(2), process=process)


def errors(sampler, process=dk.VariancePreserving(), start=START, points=2):
    grid = jnp.linspace(*ENDS, points)
    y = solve(sampler, gaussian(process), jnp.asarray(start), grid)
    return np.asarray(y) - exact(start)


@pytest.mark.parametrize(
    ("method", "process", "points"),
    [("tsit5", dk.VariancePreserving(), 2), ("dopri8", dk.VarianceExploding(), 9)],
)
def test_is_exact_to_its_tolerance_whatever_method_process_and_grid(method, process, points):
    with jax.enable_x64(True):
        found = errors(Adaptive(rtol=1e-10, atol=1e-10, method=method), process, points=points)
    assert np.abs(found).max() < 1e-8


@pytest.mark.slow
def test_the_tolerance_decides_in_float32():
    assert np.abs(errors(Adaptive())).max() < 2e-4
    assert 2e-4 < np.abs(errors(Adaptive(rtol=1e-3, atol=1e-3))).max() < 2e-2


def test_examples_are_solved_by_themselves():
    others = np.array(START)
    others[3:] *= 10
    # The tolerances are met example by example: far-off neighbours, which take more steps, change none.
    np.testing.assert_array_equal(errors(Adaptive(), start=others)[:3], errors(Adaptive())[:3])


def test_properties_and_wrong_options():
    sampler = dk.get("sampler", "adaptive")()
    assert sampler == Adaptive()
    assert sampler.order is None
    assert sampler.calls is None
    assert not sampler.stochastic
    refused = {
        "rtol must be a positive number, got 0.0": {"rtol": 0.0},
        "atol must be a positive number, got nan": {"atol": np.nan},
        "method must be one of tsit5, dopri8, got 'euler'": {"method": "euler"},
        "max_steps must be at least 1, got 0": {"max_steps": 0},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            Adaptive(**options)
