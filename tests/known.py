"""The number of inputs to fuzz with; and data whose law is known, every term of their bound by quadrature
in float64, and a weighting with zeros.

Each dimension takes eight of 256 levels, with known probabilities, whatever the others are.
"""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffkit as dk

INPUTS = int(os.environ.get("DIFFKIT_FUZZ", "1000"))
"""For each reader, in the slow tests."""

LEVELS = np.array([3, 60, 61, 62, 128, 129, 200, 251])
P = np.array([0.25, 0.05, 0.1, 0.15, 0.2, 0.05, 0.12, 0.08])
VALUES = (2 * LEVELS + 1) / 256 - 1
EVERY = (2 * np.arange(256) + 1) / 256 - 1
ENTROPY = -(P * np.log(P)).sum()


class Exact(dk.AbstractDenoiser):
    """The exact denoiser of any number of such dimensions."""

    process: dk.AbstractProcess

    def __call__(self, z, logsnr, condition=None, *, key=None):
        level = self.process.at(logsnr)
        gaps = z[:, None] / level.alpha - jnp.asarray(VALUES, z.dtype)
        logits = jnp.log(jnp.asarray(P, z.dtype)) - 0.5 * jnp.square(gaps / level.rho)
        eps = jnp.sum(jax.nn.softmax(logits, axis=-1) * gaps, axis=-1) / level.rho
        return dk.Prediction((z - level.sigma * eps) / level.alpha, eps, level)


def model(schedule, dimensions, process=dk.VariancePreserving()):
    decoder = dk.DiscretizedDecoder(256)
    return dk.DiffusionModel(Exact(process), schedule, decoder, (dimensions,))


def draw(rng, count, dimensions):
    return rng.choice(LEVELS, size=(count, dimensions), p=P)


def endpoints(schedule):
    return tuple(float(end) for end in schedule.endpoints)


def around(logsnr, points):
    """Where the latent of this noise level may be: fine where the atoms are, whatever rho is."""
    rho = np.exp(-logsnr / 2)
    return np.unique(np.concatenate([v + rho * np.linspace(-9, 9, points) for v in VALUES]))


def posterior(y, logsnr):
    """For each y: the density of y = x + rho eps, and the posterior over atoms."""
    rho = np.exp(-logsnr / 2)
    density = P * np.exp(-0.5 * ((y[:, None] - VALUES) / rho) ** 2) / (rho * np.sqrt(2 * np.pi))
    total = density.sum(axis=1)
    return total, density / np.maximum(total, 1e-300)[:, None]


def mmse(logsnr):
    """E |x - E[x | z]|^2 of one dimension."""
    y = around(logsnr, 1001)
    total, weights = posterior(y, logsnr)
    mean = weights @ VALUES
    return np.trapezoid(total * (weights @ VALUES**2 - mean**2), y)


def log_decoder(y, logsnr):
    """log p(x | y) of VDM equation 9 for each y and each of the 256 levels."""
    logits = -0.5 * ((y[:, None] - EVERY) / np.exp(-logsnr / 2)) ** 2
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1))[:, None]


def gaps(ends):
    """KL(q(z_1) || p(z_1)) and E KL(q(x | z_0) || p(x | z_0)) of one dimension, in nats.

    By the I-MMSE relation the bound in continuous time is the entropy plus these two.
    """
    high, low = ends
    rho = np.exp(-low / 2)
    y = np.linspace(-10 * rho - 2, 10 * rho + 2, 40_001)
    total, _ = posterior(y, low)
    prior = np.exp(-0.5 * y**2 / (1 + rho**2)) / np.sqrt(2 * np.pi * (1 + rho**2))
    of_prior = np.trapezoid(total * np.log(np.maximum(total, 1e-300) / prior), y)

    y = around(high, 2001)
    total, weights = posterior(y, high)
    gap = weights * (np.log(np.maximum(weights, 1e-300)) - log_decoder(y, high)[:, LEVELS])
    return of_prior, np.trapezoid(total * gap.sum(axis=1), y)


def reconstruction(logsnr):
    """E[-log p(x | z_0)] of one dimension for each of the levels, in nats."""
    noise = np.linspace(-9, 9, 2001)
    density = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi)
    rho = np.exp(-logsnr / 2)
    return np.array(
        [
            np.trapezoid(-density * log_decoder(value + rho * noise, logsnr)[:, level], noise)
            for level, value in zip(LEVELS, VALUES, strict=True)
        ]
    )


def prior(logsnr):
    """E KL(q(z_1 | x) || p(z_1)) of one dimension, in nats: two normal distributions."""
    rho2 = np.exp(-logsnr)
    ratio = rho2 / (1 + rho2)
    return 0.5 * (P @ VALUES**2 / (1 + rho2) + ratio - 1 - np.log(ratio))


def discrete_diffusion(schedule, steps):
    """L_T of one dimension: 1/2 sum_k (SNR_s - SNR_t) mmse(t), in nats (VDM equation 14)."""
    with jax.enable_x64(True):
        times = jnp.arange(steps + 1) / steps
        logsnr = np.asarray(jax.vmap(schedule)(times), np.float64)
    snr = np.exp(logsnr)
    errors = np.array([mmse(value) for value in logsnr[1:]])
    return 0.5 * np.sum((snr[:-1] - snr[1:]) * errors)


@eqx.filter_jit
def vlb(model, x, key, steps=None, times=None):
    return dk.vlb(model, x, key=key, steps=steps, time_sampler=times)


class Cut(dk.AbstractWeighting):
    """One between two values of `logsnr`, zero elsewhere."""

    low: float
    high: float

    def __call__(self, logsnr):
        return jnp.where((logsnr > self.low) & (logsnr < self.high), 1.0, 0.0)
