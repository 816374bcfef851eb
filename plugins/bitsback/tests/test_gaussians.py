"""Gaussians on a lattice: against scipy's density, brute-force sums, and the bits that they take."""

import numpy as np
import pytest
import scipy.stats

from diffkit_bitsback.errors import CannotEncode
from diffkit_bitsback.gaussians import LatticeGaussians
from diffkit_bitsback.stack import TOTAL, Stack

COUNT = 20_000


def bits(stack, work):
    before = stack.pushed_bits()
    work()
    return stack.pushed_bits() - before


def parameters(std, seed=0):
    """Random means for a spacing of 0.25, and one or many standard deviations around `std` spacings."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(scale=10, size=COUNT)
    many = 0.25 * std * np.exp(rng.uniform(0, 0.7, size=COUNT))
    return mean, 0.25 * std, many


@pytest.mark.parametrize("std", [1.0, 1.5, 15.0, 64.0, 300.0, 70_000.0])
@pytest.mark.parametrize("each", [False, True])
def test_code_length_is_the_density(std, each):
    # Points that were drawn from another Gaussian, as they are in bits-back coding, cost what the
    # density says: within one bit in 10^4, and that much for a standard deviation of many points.
    mean, one, many = parameters(std)
    scale = many if each else one
    k = np.rint(np.random.default_rng(1).normal(mean + 0.3 * scale, 1.2 * scale) / 0.25)
    gaussians = LatticeGaussians(mean, scale, 0.25)
    stack = Stack()
    taken = bits(stack, lambda: gaussians.push(stack, k.astype(np.int64)))
    log_prob = scipy.stats.norm.logpdf(0.25 * k, mean, scale) + np.log(0.25)
    np.testing.assert_allclose(gaussians.log_prob(k.astype(np.int64)), log_prob, rtol=1e-9)
    assert taken / COUNT == pytest.approx(-log_prob.mean() / np.log(2), abs=2e-4)


@pytest.mark.parametrize("std", [1.0, 2.0, 15.0, 300.0])
@pytest.mark.parametrize("each", [False, True])
def test_draws_follow_the_gaussian(std, each):
    mean, one, many = parameters(std, seed=2)
    scale = many if each else one
    stack = Stack()
    k = LatticeGaussians(mean, scale, 0.25).pop(stack)
    z = (0.25 * k - mean) / scale
    # Mean and variance are the Gaussian's own: a bin's width adds nothing to the variance, which would be
    # 1/12 for std = 1. Five standard errors, so that one test in 10^6 fails by chance (the seed is fixed).
    assert abs(z.mean()) < 5 / COUNT**0.5
    assert abs(z.var() - 1) < 5 * (2 / COUNT) ** 0.5
    # Bits back: a draw gives what its density says.
    log_prob = scipy.stats.norm.logpdf(0.25 * k, mean, scale) + np.log(0.25)
    assert stack.pushed_bits() / COUNT == pytest.approx(log_prob.mean() / np.log(2), abs=2e-4)


@pytest.mark.parametrize("std", [1.0, 3.0, 40.0])
def test_every_frequency(std):
    # Symbol by symbol against a sum over a long stretch of the lattice: all within half a unit (and 1% of
    # one, for the bound on the tails), but for the middle one, which takes up the rest; at least one.
    mean = np.linspace(-0.5, 0.5, 7)
    gaussians = LatticeGaussians(mean, std, 1.0)
    frequencies = gaussians._weights(slice(None)) + 1
    half = gaussians._half
    assert half >= 5 * std
    k = np.arange(-20 * half, 20 * half + 1)
    mass = np.exp(-0.5 * ((k - mean[:, None]) / std) ** 2)
    mass /= mass.sum(axis=1, keepdims=True)
    assert (frequencies.sum(axis=1) == TOTAL).all()
    exact = TOTAL * mass[:, np.abs(k) <= half]
    error = np.delete(frequencies[:, 1:-1] - np.maximum(exact, 1), half, axis=1)
    assert np.abs(error).max() <= 0.51
    tails = TOTAL * np.stack([mass[:, k < -half].sum(axis=1), mass[:, k > half].sum(axis=1)], 1)
    assert np.abs(frequencies[:, [0, -1]] - np.maximum(tails, 1)).max() <= 0.6
    assert np.abs(frequencies[:, half + 1] - exact[:, half]).max() <= half


def test_divergence_on_the_lattice_is_that_of_the_gaussians():
    # The claim of the module, brute force: no loss even where a standard deviation is one point.
    k = np.arange(-200, 201)

    def on_lattice(mean, std):
        p = np.exp(-0.5 * ((k - mean) / std) ** 2)
        return p / p.sum()

    for offset in (0.0, 0.25, 0.5):
        q, p = on_lattice(offset, 1.0), on_lattice(offset + 0.7, 1.3)
        inside = q > 0
        divergence = np.sum(q[inside] * np.log(q[inside] / p[inside]))
        expected = np.log(1.3) + (1 + 0.7**2) / (2 * 1.3**2) - 0.5
        assert divergence == pytest.approx(expected, abs=1e-6)
        assert np.sum(q * (k - offset) ** 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("std", [1e-9, 0.1, 1.0, 30.0, 1e3, 1e12])
@pytest.mark.parametrize("each", [False, True])
def test_any_point_is_coded(std, each):
    rng = np.random.default_rng(3)
    mean = np.concatenate([rng.normal(size=100), [1e9, -1e9, 1e30, 0.5, -0.5]])
    scale = std * np.exp(rng.normal(size=len(mean))) if each else std
    far = 2.0 ** rng.uniform(-1, 38, size=len(mean)) * rng.choice([-1, 1], size=len(mean))
    k = np.rint(np.clip(mean, -1e9, 1e9) + far).astype(np.int64)
    k[:5] = [0, 1, -1, 2, -2]
    gaussians, stack = LatticeGaussians(mean, scale, 1.0), Stack()
    length = bits(stack, lambda: gaussians.push(stack, k))
    # Twice the bits of the distance, a tail's own 24, and a few.
    assert length < (2 * 41 + 30) * len(k)
    opened = Stack(stack.finish()[0])
    np.testing.assert_array_equal(gaussians.pop(opened), k)


def test_tails_sum_to_one():
    # Kraft's equality over the points of a whole tail, from their code lengths: nothing is wasted.
    gaussians = LatticeGaussians(np.zeros(1), 1.0, 1.0)
    half = gaussians._half

    def length(k):
        # Averaged, since one push is exact only up to the state's last digits.
        stack = Stack()
        repeat = LatticeGaussians(np.zeros(50), 1.0, 1.0)
        return bits(stack, lambda: repeat.push(stack, np.full(50, k))) / 50

    mass = sum(2.0 ** -length(k) for k in range(half + 1, half + 40))
    frequency = gaussians._weights(slice(None))[0, -1] + 1
    assert mass == pytest.approx(frequency / TOTAL, rel=1e-2)


def test_what_is_not_finite_is_refused():
    for mean, std in ((np.array([np.nan]), 1.0), (np.array([0.0]), np.array([np.inf]))):
        with pytest.raises(CannotEncode, match="not finite"):
            LatticeGaussians(mean, std, 1.0)
    gaussians, stack = LatticeGaussians(np.zeros(1), 1.0, 1.0), Stack()
    with pytest.raises(CannotEncode, match="too far from the model's mean"):
        gaussians.push(stack, np.array([2**50]))
