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


def test_stratified_has_one_time_in_each_part():
    t, _ = dk.Stratified()(jax.random.key(5), 50)
    np.testing.assert_array_equal(np.sort(np.floor(np.asarray(t) * 50)), np.arange(50))
    # Within the parts the times are free: the gaps are not all alike.
    assert np.std(np.diff(np.sort(t))) > 0.2 / 50


LOSSES = np.array([1.0, 3.0, 0.0, 9.0])  # of four bins


def taught(decay=0.9, rounds=300, **options):
    sampler = dk.Adaptive(bins=4, decay=decay, **options)

    def one(sampler, key):
        t, _ = sampler(key, 32)
        return sampler.update(t, jnp.asarray(LOSSES, jnp.float32)[jnp.floor(t * 4).astype(int)]), t

    return jax.lax.scan(one, sampler, jax.random.split(jax.random.key(6), rounds))


def test_adaptive_learns_the_density_of_least_variance():
    sampler, _ = taught(floor=0.2)
    # In proportion to the root of the second moment, mixed with a fifth of uniform times.
    expected = 4 * (0.8 * LOSSES / LOSSES.sum() + 0.2 / 4)
    middles = jnp.asarray([0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(jax.vmap(sampler.density)(middles), expected, rtol=1e-3)
    # The unit of the loss does not matter.
    small = dk.Adaptive(bins=4, floor=0.2)
    for sample in jnp.linspace(0.0, 0.999, 40).reshape(10, 4):
        small = small.update(
            sample, 1e-6 * jnp.asarray(LOSSES, jnp.float32)[jnp.floor(sample * 4).astype(int)]
        )
    np.testing.assert_allclose(jax.vmap(small.density)(middles), expected, rtol=1e-3)
    # Importance keeps the mean, and the spread is less than that of uniform times.
    keys = jax.random.split(jax.random.key(7), 400)

    def mean(sampler, size):
        def one(key):
            t, importance = sampler(key, size)
            return jnp.mean(importance * jnp.asarray(LOSSES)[jnp.floor(t * 4).astype(int)])

        return jax.vmap(one)(keys)

    found = mean(sampler, 1)
    # Five standard errors: false alarm below 1e-6.
    assert abs(found.mean() - LOSSES.mean()) < 5 * found.std() / 20
    assert found.std() < 0.4 * mean(dk.Uniform(), 1).std()


def test_adaptive_is_uniform_before_it_has_seen_anything_and_forgets_no_bin():
    np.testing.assert_allclose(jax.vmap(dk.Adaptive().density)(jnp.linspace(0, 0.99, 7)), 1.0, rtol=1e-5)
    _, t = taught(floor=0.1)
    share = np.mean(np.floor(np.asarray(t[100:]) * 4) == 2)  # the bin of loss 0
    assert share == pytest.approx(0.1 / 4, rel=0.2)
    t = jnp.asarray([0.1, 0.1, 0.6])
    first = dk.Adaptive(bins=3, decay=0.5).update(t, jnp.asarray([2.0, 4.0, 3.0]))
    # The mean squares of 2 and 4, of 3, and of nothing: then the mean of the others.
    np.testing.assert_allclose(first.second_moment, [10.0, 9.0, 9.5], rtol=1e-6)
    after = first.update(jnp.asarray([0.2]), jnp.asarray([6.0]))
    # Of weight 3/4 before, which is halved, against 1/2 for the new value.
    expected = (0.375 * 10 + 0.5 * 36) / 0.875
    np.testing.assert_allclose(after.second_moment[0], expected, rtol=1e-6)
    for options, message in (
        ({"bins": 0}, "bins must be at least 1, got 0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"floor": 0.0}, r"floor must be in \(0, 1\], got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            dk.Adaptive(**options)


@samplers
def test_batch_size_must_be_positive(sampler):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        sampler(jax.random.key(0), 0)
