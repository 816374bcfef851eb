"""The laws of processes."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.testing.base import Subject, law, mapped, require, require_close

# From below any schedule's minimum to above VDM's maximum, including 0.
_LOGSNR = np.linspace(-12.0, 16.0, 57)
# Pairs (t, s) with s less noisy: neighbours, the ends, and steps of all sizes between.
_PAIRS = np.array(
    [(t, s) for t, s in itertools.combinations(_LOGSNR[::4], 2)]
    + [(value, value + gap) for value in (-12.0, 0.0, 15.0) for gap in (0.01, 0.1, 1.0)]
)


def _level(process: Any) -> list[np.ndarray]:
    def one(logsnr):
        level = process.at(logsnr)
        return level.logsnr, level.alpha, level.sigma

    return [a.astype(np.float64) for a in mapped(one, _LOGSNR.astype(np.float32))]


@law("process")
def positive(subject: Subject) -> None:
    """alpha and sigma are positive and finite for logsnr from -12 to 16, in float32."""
    _, alpha, sigma = _level(subject.part)
    good = np.isfinite(alpha) & np.isfinite(sigma) & (alpha > 0) & (sigma > 0)
    numbers = {"alpha": alpha, "sigma": sigma}
    require(good, {"logsnr": _LOGSNR}, numbers, "two positive numbers")


@law("process")
def snr(subject: Subject) -> None:
    """log alpha^2 / sigma^2 is logsnr, from -12 to 16, to the precision of float32."""
    logsnr, alpha, sigma = _level(subject.part)
    with np.errstate(all="ignore"):
        found = 2 * (np.log(alpha) - np.log(sigma))
    tolerance = 1e-5 * (1 + np.abs(_LOGSNR))
    given = {"logsnr": _LOGSNR, "alpha": alpha, "sigma": sigma}
    require_close(found, _LOGSNR, tolerance, given, "log(alpha^2 / sigma^2)", "logsnr")
    require_close(logsnr, _LOGSNR, tolerance, given, "level.logsnr", "logsnr")


@law("process")
def posterior_chains_to_the_marginal(subject: Subject) -> None:
    """The posterior chains to the marginal: q(z_s | z_t, x) after q(z_t | x) has the mean and the variance
    of q(z_s | x), and the covariance of z_s and z_t, in float64 and in float32."""
    with jax.enable_x64(True):
        _check_chain(subject.part, np.float64, 1e-9)
    _check_chain(subject.part, np.float32, 1e-4)


def _check_chain(process: Any, dtype: Any, tolerance: float) -> None:
    def one(logsnr_t, logsnr_s):
        level_t, level_s = process.at(logsnr_t), process.at(logsnr_s)
        one, zero = jnp.ones((1,), logsnr_t.dtype), jnp.zeros((1,), logsnr_t.dtype)

        # Both are affine in (z_t, x) or (x, eps): these are their coefficients.
        def marginal(level):
            return [process.perturb(*pair, level)[0] for pair in ((one, zero), (zero, one))]

        on_z, std = process.posterior(one, zero, level_t, level_s)
        on_x, _ = process.posterior(zero, one, level_t, level_s)
        return *marginal(level_t), *marginal(level_s), on_z[0], on_x[0], std

    found = mapped(one, *_PAIRS.T.astype(dtype))
    alpha_t, sigma_t, alpha_s, sigma_s, on_z, on_x, std = (a.astype(np.float64) for a in found)
    given = {"logsnr_t": _PAIRS[:, 0], "logsnr_s": _PAIRS[:, 1], "dtype": np.dtype(dtype).name}
    # All divided by what they should be, to compare numbers of size 1.
    for what, value in (
        ("mean of z_s for x = 1, by alpha_s", (on_z * alpha_t + on_x) / alpha_s),
        ("variance of z_s, by sigma_s^2", ((on_z * sigma_t) ** 2 + std**2) / sigma_s**2),
        (
            "covariance of z_s and z_t, by alpha_t / alpha_s sigma_s^2",
            on_z * sigma_t**2 / (alpha_t / alpha_s * sigma_s**2),
        ),
    ):
        require_close(value, 1.0, tolerance, given, what, "the marginal's")
