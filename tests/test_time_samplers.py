"""Laws of time samplers, for every registered one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffkit as dk
from diffkit.presets import complete

samplers = pytest.mark.parametrize(
    "sampler", [complete(dk.get("time_sampler", n), {}) for n in dk.available("time_sampler")]
)


@samplers
def test_draws_follow_the_density(sampler):
    # One draw from each of 4,000 batches: independent, whatever the dependence within a batch.
    keys = jax.random.split(jax.random.key(1), 4000)
    t, importance = jax.jit(jax.vmap(lambda key: sampler(key, 8)))(keys)
    grid = np.linspace(0.0, 1.0, 2001)
    density = np.asarray(jax.vmap(sampler.density)(jnp.asarray(grid, jnp.float32)))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-3)
    cdf = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid))])
    for position in (0, 5):
        draws = np.asarray(t[:, position])
        # False alarm: 1e-4 each.
        p = scipy.stats.kstest(draws, lambda value: np.interp(value, grid, cdf)).pvalue
        assert p > 1e-4
    stated = jax.vmap(sampler.density)(t.reshape(-1)).reshape(t.shape)
    np.testing.assert_allclose(importance, 1 / stated, rtol=1e-5)


def test_low_discrepancy_covers_evenly():
    t, _ = dk.LowDiscrepancy()(jax.random.key(3), 100)
    ordered = np.sort(t)
    np.testing.assert_allclose(np.diff(ordered), 0.01, atol=1e-6)
    assert 0 <= ordered[0] < 0.01 + 1e-6
    # The variance of a mean over the batch falls far below that of independent times.
    keys = jax.random.split(jax.random.key(4), 500)

    def spread(sampler):
        return jax.vmap(lambda k: jnp.mean(jnp.square(sampler(k, 64)[0])))(keys).std()

    assert spread(dk.LowDiscrepancy()) < 0.2 * spread(dk.Uniform())


@samplers
def test_batch_size_must_be_positive(sampler):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sampler(jax.random.key(0), 0)
