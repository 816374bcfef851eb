"""Laws of decoders: probabilities that sum to one, against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffkit as dk

LEVELS = (2, 9, 17, 256)
# From far apart levels (rho much smaller than their distance) to all of them smeared out. For 256
# levels the loop changes from a window to all levels at logsnr = -2 log(0.7 * 2 / 256) = 10.4.
LOGSNR = (16.0, 13.3, 10.5, 10.3, 6.0, 0.0, -5.0)


def brute_force(y, rho, levels):
    """log p(k | y) for every level k, in float64: (dimensions, levels)."""
    values = (2 * np.arange(levels, dtype=np.float64) + 1) / levels - 1
    logits = -0.5 * ((np.asarray(y, np.float64)[:, None] - values) / rho) ** 2
    return logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)


@pytest.mark.parametrize("levels", LEVELS)
def test_log_prob_is_the_softmax_over_levels(levels):
    decoder = dk.DiscretizedDecoder(levels)
    process = dk.VariancePreserving()
    rng = np.random.default_rng(levels)
    x = rng.integers(0, levels, 64)
    noise = rng.normal(size=64)

    @jax.jit
    def log_probs(logsnr):
        level = process.at(logsnr)
        z = process.perturb(decoder.encode(jnp.asarray(x)), jnp.asarray(noise, jnp.float32), level)
        one = jax.vmap(lambda x, z: decoder.log_prob(x[None], z[None], level))
        return z / level.alpha, one(jnp.asarray(x), z)

    for logsnr in LOGSNR:
        y, found = log_probs(logsnr)
        rho = np.exp(-logsnr / 2)
        expected = brute_force(y, rho, levels)[np.arange(64), x]
        # In float32 y is exact to 1e-7, which counts for 1e-7 / rho standard deviations.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-5 + 1e-6 / rho)


@pytest.mark.parametrize("logsnr", LOGSNR)
@pytest.mark.parametrize("levels", [9, 256])
def test_probabilities_sum_to_one(levels, logsnr):
    decoder = dk.DiscretizedDecoder(levels)
    level = dk.VarianceExploding().at(logsnr)
    # On levels, between them, and beyond the last one.
    for y in (-1.2, -0.1, 0.0, 0.33, 0.999, 1.5):
        z = jnp.full((levels, 1), y)
        log_prob = jax.vmap(lambda k, z: decoder.log_prob(k, z, level))
        log_p = log_prob(jnp.arange(levels)[:, None], z)
        total = np.exp(np.asarray(log_p, np.float64)).sum()
        assert total == pytest.approx(1.0, abs=2e-4 if logsnr > 10 else 2e-5)


@pytest.mark.parametrize("logsnr", [13.3, 11.0, 9.0, 3.0])
def test_gradient_with_respect_to_the_noise_level(logsnr):
    # Learned endpoints follow it. Against a central difference of the brute force in float64.
    levels, x = 256, np.array([0, 3, 128, 255])
    eps = np.array([0.3, -1.5, 0.8, 2.0])
    values = (2 * x + 1) / levels - 1
    decoder, process = dk.DiscretizedDecoder(levels), dk.VariancePreserving()

    def loss(logsnr):
        level = process.at(logsnr)
        z = process.perturb(jnp.asarray(values, jnp.float32), jnp.asarray(eps, jnp.float32), level)
        return decoder.log_prob(jnp.asarray(x), z, level)

    def exact(logsnr):
        rho = np.exp(-logsnr / 2)
        return brute_force(values + rho * eps, rho, levels)[np.arange(4), x].sum()

    h = 1e-4
    expected = (exact(logsnr + h) - exact(logsnr - h)) / (2 * h)
    assert float(jax.grad(loss)(logsnr)) == pytest.approx(expected, rel=2e-2, abs=2e-4)


def test_decode_takes_the_most_probable_and_draws_with_a_key():
    decoder, process = dk.DiscretizedDecoder(9), dk.VariancePreserving()
    x = jnp.arange(9)
    level = process.at(14.0)
    z = process.perturb(decoder.encode(x), jnp.full(9, 1.0), level)
    np.testing.assert_array_equal(decoder.decode(z, level), x)
    np.testing.assert_array_equal(decoder.decode(10 * jnp.ones(1), level), [8])

    level = process.at(1.0)
    z = jnp.full((4000,), 0.2) * level.alpha
    draws = decoder.decode(z, level, key=jax.random.key(0))
    p = np.exp(brute_force(np.array([0.2]), np.exp(-0.5), 9)[0])
    counts = np.bincount(draws, minlength=9)
    # False alarm: 1e-4.
    assert scipy.stats.chisquare(counts, p / p.sum() * 4000).pvalue > 1e-4


@pytest.mark.parametrize("process", [dk.VariancePreserving(), dk.VarianceExploding()])
def test_gaussian_decoder_is_the_normal_density(process):
    level = process.at(3.0)
    x, y = np.array([0.2, -0.7, 1.1]), np.array([0.1, -0.6, 1.5])
    z = jnp.asarray(y, jnp.float32) * level.alpha
    found = dk.GaussianDecoder().log_prob(jnp.asarray(x, jnp.float32), z, level)
    expected = scipy.stats.norm.logpdf(x, y, np.exp(-1.5)).sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(dk.GaussianDecoder().decode(z, level), y, rtol=1e-6)
    noisy = dk.GaussianDecoder().decode(jnp.zeros(4000), level, key=jax.random.key(1))
    # Six standard errors of a standard deviation from 4,000 draws.
    assert float(noisy.std()) == pytest.approx(np.exp(-1.5), rel=6 / np.sqrt(2 * 4000))


def test_encoding_is_centred_and_round_trips():
    decoder = dk.DiscretizedDecoder(17)
    values = np.asarray(decoder.encode(jnp.arange(17)))
    np.testing.assert_allclose(values, -values[::-1], atol=1e-7)
    np.testing.assert_allclose(np.diff(values), 2 / 17, rtol=1e-5)
    level = dk.VariancePreserving().at(13.3)
    np.testing.assert_array_equal(decoder.decode(jnp.asarray(values) * level.alpha, level), np.arange(17))


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        dk.DiscretizedDecoder(1)


SCALED = [({"mean": 3.0, "std": 1000.0}, 2), ({"mean": (1.0, -2.0), "std": (0.1, 20.0)}, 2)]


@pytest.mark.parametrize(("options", "dims"), SCALED)
def test_gaussian_decoder_with_mean_and_std_is_the_normal_density(options, dims):
    decoder, level = dk.GaussianDecoder(**options), dk.VariancePreserving().at(3.0)
    mean, std = (np.broadcast_to(options[name], dims).astype(float) for name in ("mean", "std"))
    y = np.array([0.1, -0.6])
    x = mean + std * np.array([0.2, -0.7])
    z = jnp.asarray(y, jnp.float32) * level.alpha
    found = decoder.log_prob(jnp.asarray(x, jnp.float32), z, level)
    expected = scipy.stats.norm.logpdf(x, mean + std * y, std * np.exp(-1.5)).sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(decoder.decode(z, level), mean + std * y, rtol=1e-5)
    draws = decoder.decode(jnp.zeros((2, 4000)), level, key=jax.random.key(1))
    np.testing.assert_allclose(draws.std(axis=1), std * np.exp(-1.5), rtol=6 / np.sqrt(2 * 4000))


def test_gaussian_decoder_standardises_beyond_a_band():
    def made(*statistics, **options):
        decoder = dk.GaussianDecoder(**options, statistics=statistics)
        return decoder.mean, decoder.std

    for within in ((0.0, 1.0), (-1.0, 0.5), (1.0, 2.0)):
        assert made(*within) == (0.0, 1.0)
    for beyond in ((1.1, 1.0), (0.0, 0.49), (0.0, 2.1)):
        assert made(*beyond) == beyond
    assert made(5.0, 0.0) == (5.0, 1.0)
    assert made(5.0, 9.0, mean=0, std=np.ones(3, np.float32)) == (0.0, (1.0, 1.0, 1.0))
    for wrong in (0.0, -1.0, np.inf, (1.0, -1.0), [[1.0]]):
        with pytest.raises(ValueError, match="std must be"):
            dk.GaussianDecoder(std=np.asarray(wrong))
    with pytest.raises(ValueError, match=r"for 2 channels, but x has the shape \(3,\)"):
        dk.GaussianDecoder(mean=(0.0, 0.0)).encode(jnp.zeros(3))


def test_the_bound_of_data_in_other_units_differs_by_their_logarithm():
    # A Gaussian, whose exact denoiser is known: x and 1000 x + 40 are the same when encoded.
    denoiser = dk.analytic.gaussian(jnp.zeros(2), jnp.eye(2), process=dk.VariancePreserving())
    plain, scaled = (
        dk.DiffusionModel(denoiser, dk.LinearLogSNR(6.0, -6.0), decoder, (2,))
        for decoder in (dk.GaussianDecoder(), dk.GaussianDecoder(40.0, 1000.0))
    )
    x = jax.random.normal(jax.random.key(0), (64, 2))
    key = jax.random.key(1)
    bits = dk.vlb(plain, x, key=key).bits_per_dim
    np.testing.assert_allclose(
        dk.vlb(scaled, 1000 * x + 40, key=key).bits_per_dim, bits + np.log2(1000), rtol=1e-4
    )
    # The law of the encoded data with the noise of the data end, in the units of x.
    density = scipy.stats.norm(40, 1000 * np.sqrt(1 + np.exp(-6.0)))
    x = 1000 * x[:2] + 40
    found = dk.log_likelihood(scaled, x, key=key)
    np.testing.assert_allclose(found, density.logpdf(x).sum(axis=1), rtol=1e-4)
    drawn = np.asarray(dk.sample(scaled, dk.samplers.DDIM(), 2000, key=key, steps=50))
    assert abs(drawn.mean() - 40) < 6 * 1000 / np.sqrt(4000)
    assert drawn.std() == pytest.approx(1000, rel=0.1)
