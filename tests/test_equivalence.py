"""Implied weightings by brute force, their verdicts, canonical times, and comparisons of compositions."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

import diffkit as dk
import diffkit_edm
import diffkit_flow
from diffkit.equivalence import (
    canonical_time_sampling,
    classify,
    composition,
    implied_weighting,
)
from diffkit.presets import complete
from diffkit.testing import TimeSamplerLaws

# Implied weightings by brute force.
#
# The data are one point, so that the denoiser that knows them is x_hat = x, and one with a known error
# of eps, that of a bump around one noise level, is eps_hat = eps + bump(logsnr) d. Its loss, as a paper
# writes it, is an average over draws; by the implied weighting it is an integral over logsnr.

POINT, DIRECTION = np.array([0.7, -0.4]), np.array([1.0, -0.5])

# alpha and sigma of each process, by rho = sigma / alpha; of sub-VP sigma = 1 - alpha^2.
PATHS = {
    "variance_preserving": lambda rho: (1 / np.hypot(1, rho), rho / np.hypot(1, rho)),
    "variance_exploding": lambda rho: (np.ones_like(rho), rho),
    "straight": lambda rho: (1 / (1 + rho), rho / (1 + rho)),
    "sub_vp": lambda rho: (2 / (rho + np.hypot(rho, 2)), 2 * rho / (rho + np.hypot(rho, 2))),
}


def edm_f(x, eps, alpha, sigma, data_std):
    # F = (D - c_skip y) / c_out with y = x + rho eps (Karras et al. 2022, equation 7 and table 1).
    rho = sigma / alpha
    skip = data_std**2 / (rho**2 + data_std**2)
    out = rho * data_std / np.sqrt(rho**2 + data_std**2)
    return (x - skip * (x + rho * eps)) / out


TARGETS = {
    "epsilon": lambda x, eps, alpha, sigma: eps,
    "x": lambda x, eps, alpha, sigma: x,
    "v": lambda x, eps, alpha, sigma: (alpha * eps - sigma * x) / np.hypot(alpha, sigma),
    "score": lambda x, eps, alpha, sigma, scaled: -eps / (1.0 if scaled else sigma),
    "velocity": lambda x, eps, alpha, sigma: eps - x,
    "edm_f": edm_f,
}

TARGET_OPTIONS = {"score": {"scaled": st.booleans()}, "edm_f": {"data_std": st.floats(0.2, 2.0)}}
ENDS = {"logsnr_max": st.floats(8.0, 15.0), "logsnr_min": st.floats(-12.0, -4.0)}
BETA = {"beta_min": st.floats(0.05, 1.0), "beta_max": st.floats(5.0, 25.0)}
SCHEDULE_OPTIONS = {
    "linear_logsnr": ENDS,
    "cosine": ENDS | {"shift": st.floats(-2.0, 2.0)},
    "straight_line": ENDS,
    "log_normal": {
        "P_mean": st.floats(-1.5, 0.5),
        "P_std": st.floats(0.8, 1.6),
        "sigma_min": st.floats(0.001, 0.01),
        "sigma_max": st.floats(20.0, 100.0),
    },
    "vp_beta": BETA | {"t_min": st.floats(1e-5, 1e-3)},
    "sub_vp_beta": BETA | {"t_min": st.floats(1e-4, 1e-2)},
    "linear_beta": {"steps": st.integers(50, 1000), "beta_end": st.floats(0.02, 0.2)},
    "iddpm_cosine": {"steps": st.integers(50, 1000)},
    "learned_linear": ENDS,
    "learned_monotone": ENDS | {"hidden": st.just(16)},
    "truncated": ENDS,
}
TIME_OPTIONS = {
    "logit_normal": {"mean": st.floats(-1.0, 1.0), "std": st.floats(0.5, 1.5)},
    "adaptive": {"bins": st.integers(3, 20), "floor": st.floats(0.1, 0.9)},
}
FACTORS = {
    "none": lambda c: None,
    "a power of SNR": lambda c: lambda logsnr: jnp.exp(c * logsnr),
    "clipped SNR": lambda c: lambda logsnr: jnp.minimum(jnp.exp(logsnr), jnp.exp(3 * c)),
    "cut off": lambda c: lambda logsnr: jnp.where(logsnr < 3 * c, 1.0, 0.2),
}


def named(names, options):
    """A name with options; for a name that is not in the table, none."""
    return st.sampled_from(sorted(names)).flatmap(
        lambda name: st.tuples(st.just(name), st.fixed_dictionaries(options.get(name, {})))
    )


def schedule_of(name, options):
    if name == "truncated":
        return dk.Truncated(dk.Cosine(20.0, -20.0), options["logsnr_max"], options["logsnr_min"])
    return complete(dk.get("schedule", name), {**options, "key": jax.random.key(1)})


def time_sampler_of(name, options, seed):
    sampler = dk.get("time_sampler", name)(**options)
    if name != "adaptive":
        return sampler
    # As if it had seen losses.
    rng = np.random.default_rng(seed)
    seen = [jnp.asarray(rng.uniform(0.1, 3.0, sampler.bins)) ** power for power in (4, 1)]
    return eqx.tree_at(lambda s: (s.total, s.weight), sampler, seen)


def over(function, values):
    return np.asarray(jax.vmap(function)(jnp.asarray(values)), np.float64)


def bump(logsnr, centre, width):
    inside = np.maximum(1 - np.square((logsnr - centre) / width), 0)
    return np.square(inside)


BATCHES, BATCH = 10_000, 8


def published(schedule, process, target, factor, sampler, bump_at, width, seed):
    """E_t [f |target - predicted target|^2] and its standard error, by the paper's own formulas."""
    # The times of one batch depend on each other; batches do not.
    keys = jax.random.split(jax.random.key(seed), BATCHES)
    t = np.asarray(jax.vmap(lambda key: sampler(key, BATCH)[0])(keys)).ravel()
    logsnr = over(schedule, t)
    centre = np.quantile(logsnr, bump_at)
    alpha, sigma = (part[:, None] for part in PATHS[process](np.exp(-logsnr / 2)))
    eps = np.random.default_rng(seed).standard_normal((len(t), 2))
    z = alpha * POINT + sigma * eps
    # The denoiser: a function of z and logsnr.
    eps_hat = (z - alpha * POINT) / sigma + bump(logsnr, centre, width)[:, None] * DIRECTION
    x_hat = (z - sigma * eps_hat) / alpha
    name, options = target
    true, predicted = (
        TARGETS[name](*pair, alpha, sigma, **options) for pair in ((POINT, eps), (x_hat, eps_hat))
    )
    factors = 1.0 if factor is None else np.asarray(factor(jnp.asarray(logsnr)))
    losses = factors * np.square(true - predicted).sum(axis=1)
    means = losses.reshape(BATCHES, BATCH).mean(axis=1)
    return centre, means.mean(), means.std() / math.sqrt(BATCHES)


def weighted_bound(schedule, weighting, bump_at, width, seed):
    """1/2 E_t [w (-dlogsnr/dt) |eps - eps_hat|^2] and its standard error, slopes by differences."""
    step = 1e-6
    t = np.random.default_rng(seed).uniform(step, 1 - step, BATCHES * BATCH)
    logsnr = over(schedule, t)
    centre = np.quantile(logsnr, bump_at)
    slope = (over(schedule, t + step) - over(schedule, t - step)) / (2 * step)
    errors = np.square(bump(logsnr, centre, width)) * np.square(DIRECTION).sum()
    losses = -0.5 * over(weighting, logsnr) * slope * errors
    return centre, losses.mean(), losses.std() / math.sqrt(losses.size)


@pytest.mark.parametrize("name", sorted({*dk.available("schedule"), "truncated"}))
# Without shrinking: an example takes a second, and is small enough to read.
@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    options=st.data(),
    process=st.sampled_from(sorted(PATHS)),
    target=named(TARGETS, TARGET_OPTIONS),
    times=named(dk.available("time_sampler"), TIME_OPTIONS),
    loss=st.sampled_from([*FACTORS, "a weighting"]),
    constant=st.floats(-1.0, 1.0),
    bump_at=st.floats(0.2, 0.8),
    width=st.floats(1.0, 4.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_implied_weighting_is_the_ratio_of_the_losses(
    name, options, process, target, times, loss, constant, bump_at, width, seed
):
    chosen = options.draw(st.fixed_dictionaries(SCHEDULE_OPTIONS.get(name, {})))
    with jax.enable_x64(True):
        schedule, sampler = schedule_of(name, chosen), time_sampler_of(*times, seed)
        parts = {
            "schedule": schedule,
            "process": complete(dk.get("process", process), {}),
            "parameterization": dk.get("parameterization", target[0])(**target[1]),
            "time_sampler": sampler,
        }
        if loss == "a weighting":
            stated = dk.Sigmoid(3 * constant)
            implied = implied_weighting(**parts, weighting=stated)
            centre, mean, error = weighted_bound(schedule, stated, bump_at, width, seed)
        else:
            factor = FACTORS[loss](constant)
            implied = implied_weighting(**parts, factor=factor)
            centre, mean, error = published(
                schedule, process, target, factor, sampler, bump_at, width, seed
            )
        # The bump, cut off at the ends of the schedule, by the midpoint rule.
        maximum, minimum = (float(end) for end in schedule.endpoints)
        low, high = max(centre - width, minimum), min(centre + width, maximum)
        points = low + (high - low) * (np.arange(4000) + 0.5) / 4000
        errors = np.square(bump(points, centre, width)) * np.square(DIRECTION).sum()
        integral = 0.5 * (high - low) * np.mean(over(implied, points) * errors)
    assert error < 0.03 * mean  # sharp enough to see a factor that is missing
    # The integral, too, has an error where w jumps.
    assert abs(mean - integral) < 5 * error + 2e-4 * integral


# Verdicts.

LIMITS = (12.0, -12.0)


def simple(parameterization, schedule, process, **rest):
    return implied_weighting(
        parameterization=parameterization, schedule=schedule(*LIMITS), process=process, **rest
    )


def clip_5(logsnr):
    return jnp.minimum(1.0, 5 * jnp.exp(-logsnr))


def edm_rate(u):
    # N(u; 2.4, 2.4^2) (exp(-u) + 1/4).
    return -(u - 2.4) / 2.4**2 - np.exp(-u) / (np.exp(-u) + 0.25)


# The rows of the golden table with d log w / dlogsnr, in closed form, and what follows from its sign. Of
# the last row, "p(logsnr) exp(-logsnr)", it depends on p whether the loss is a bound.
GOLDEN = {
    "VLB": (dk.ELBO, lambda u: 0 * u, "vlb"),
    "eps, cosine": (
        lambda: simple(dk.Epsilon(), dk.Cosine, dk.VariancePreserving()),
        lambda u: -np.tanh(u / 2) / 2,
        "neither",
    ),
    "v, cosine": (
        lambda: simple(dk.V(), dk.Cosine, dk.VariancePreserving()),
        lambda u: -0.5 + 0 * u,
        "monotone",
    ),
    "flow matching": (
        lambda: simple(diffkit_flow.Velocity(), diffkit_flow.StraightLine, diffkit_flow.Straight()),
        lambda u: -0.5 + 0 * u,
        "monotone",
    ),
    "EDM": (lambda: diffkit_edm.edm(logsnr_range=LIMITS), edm_rate, "neither"),
    "sigmoid": (lambda: dk.Sigmoid(-1.5), lambda u: -1 / (1 + np.exp(-1.5 - u)), "monotone"),
    "min-SNR": (
        lambda: simple(dk.Epsilon(), dk.Cosine, dk.VariancePreserving(), factor=clip_5),
        lambda u: -np.tanh(u / 2) / 2 - (u > np.log(5)),
        "neither",
    ),
    "x, cosine": (
        lambda: simple(dk.X(), dk.Cosine, dk.VariancePreserving()),
        lambda u: -np.tanh(u / 2) / 2 - 1,
        "monotone",
    ),
    "x, linear": (
        lambda: simple(dk.X(), dk.LinearLogSNR, dk.VarianceExploding()),
        lambda u: -1 + 0 * u,
        "monotone",
    ),
    "x, log-normal": (
        lambda: implied_weighting(
            parameterization=dk.X(),
            schedule=diffkit_edm.LogNormal(-1.2, 1.2, np.exp(-6.0), np.exp(6.0)),
        ),
        lambda u: -(u - 2.4) / 2.4**2 - 1,
        "neither",
    ),
}


@pytest.mark.parametrize("row", GOLDEN)
def test_golden_table_and_its_verdicts(row):
    make, rate, kind = GOLDEN[row]
    u = np.linspace(-11.9, 11.9, 2381)
    with jax.enable_x64(True):
        weighting = make()
        found = np.gradient(np.log(over(weighting, u)), u)
    exact = rate(u)
    steady = np.abs(np.gradient(exact)) < 0.05  # away from the kink of min-SNR
    assert steady.sum() > len(u) - 5
    np.testing.assert_allclose(found[steady][1:-1], exact[steady][1:-1], atol=2e-4)

    by_sign = "vlb" if np.all(exact == 0) else "monotone" if np.all(exact <= 0) else "neither"
    assert by_sign == kind
    verdict = classify(weighting, LIMITS)
    assert verdict.kind == kind
    if isinstance(weighting, dk.weightings.Implied):
        assert weighting.verdict.kind == kind
    if kind == "neither":
        # All of them rise from the noise end to a single top.
        top = optimize.brentq(rate, -11.0, 1.0)
        assert verdict.rises == pytest.approx((LIMITS[1], top), abs=0.05)
        assert str(verdict).startswith("not a bound: w rises between logsnr -12.0 and ")
    else:
        assert verdict.rises is None
        assert str(verdict) == {"vlb": "the VLB", "monotone": "monotone: a VLB of noisy data"}[kind]


# Canonical times.


class Known(dk.AbstractDenoiser):
    """Right about data that are POINT, but for a known error of eps."""

    process: dk.AbstractProcess

    def __call__(self, z, logsnr, condition=None, *, key=None):
        level = self.process.at(logsnr)
        error = jnp.exp(-0.1 * jnp.square(logsnr - 1)) * jnp.asarray(DIRECTION, z.dtype)
        eps = (z - level.alpha * jnp.asarray(POINT, z.dtype)) / level.sigma + error
        return dk.Prediction((z - level.sigma * eps) / level.alpha, eps, level)


def largest_gap(draws, cdf):
    """The Kolmogorov-Smirnov distance. Draws cover a distribution evenly: of n it is at most 1 / n."""
    u, n = cdf(np.sort(np.asarray(draws, np.float64))), len(draws)
    ranks = np.arange(n + 1) / n
    return max(np.abs(u - ranks[1:]).max(), np.abs(u - ranks[:-1]).max())


def times_and_density(times, n=4000, key=0):
    t, importance = eqx.filter_jit(lambda times, key: times(key, n))(times, jax.random.key(key))
    density = over(times.density, t)
    np.testing.assert_allclose(importance * density, 1.0, rtol=1e-5)
    return np.asarray(t), density


def test_canonical_times_of_the_vlb_are_uniform_in_logsnr():
    schedule = dk.Cosine(10.0, -8.0)
    times = canonical_time_sampling(dk.ELBO(), schedule)
    t, density = times_and_density(times)
    logsnr = over(schedule, t)
    assert largest_gap(logsnr, stats.uniform(-8.0, 18.0).cdf) < 1.1 / len(t)
    # -dlogsnr/dt = 4 (a_1 - a_0) / sin(2 a), with a the angle, which is linear in t.
    first, last = np.arctan(np.exp(-5.0)), np.arctan(np.exp(4.0))
    slope = 4 * (last - first) / np.sin(2 * (first + t * (last - first)))
    np.testing.assert_allclose(density, slope / 18.0, rtol=1e-3)
    # The bound is half the range times the mean error of eps.
    assert times.scale == pytest.approx(9.0, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "sampler", "tolerance"),
    [
        # What the straight lines between the 2001 points of the table lose: h^2 / 8 of the second
        # derivative, relative to the density, with h = 0.01.
        ("flow_matching", "uniform", 5e-5),
        ("rectified_flow", "logit_normal", 5e-4),
        ("edm", "uniform", 1e-4),
        ("vp_sde", "uniform", 1e-4),
    ],
)
def test_canonical_times_of_a_published_loss_are_its_own(name, sampler, tolerance):
    # The plain mean over which times? Over those of the paper, with the factor 1.
    made = composition(name)
    times = canonical_time_sampling(
        made.weighting,
        made.model.schedule,
        parameterization=made.parameterization,
        process=made.model.process,
    )
    middle = np.linspace(0.001, 0.999, 999, dtype=np.float32)
    stated = dk.get("time_sampler", sampler)()
    expected = over(stated.density, middle)
    keep = expected > 1e-3 * expected.max()  # the density of logit-normal times vanishes at the ends
    np.testing.assert_allclose(over(times.density, middle)[keep], expected[keep], rtol=tolerance, atol=0)
    assert times.scale == pytest.approx(1.0, rel=tolerance)
    t, _ = times_and_density(times)
    cdf = stats.uniform.cdf
    if sampler == "logit_normal":
        cdf = lambda t: stats.norm.cdf(np.log(t) - np.log1p(-t))  # noqa: E731
    assert largest_gap(t, cdf) < 1.2 / len(t) + tolerance / 2


@pytest.mark.parametrize(
    ("weighting", "schedule", "process", "target"),
    [
        (dk.ELBO(), dk.Cosine(10.0, -8.0), "variance_preserving", ("epsilon", {})),
        (dk.Sigmoid(1.0), dk.LinearLogSNR(10.0, -8.0), "straight", ("velocity", {})),
        (dk.Sigmoid(-2.0), dk.Cosine(12.0, -9.0), "sub_vp", ("x", {})),
        (
            implied_weighting(schedule=dk.Cosine(10.0, -8.0), factor=clip_5),
            diffkit_edm.LogNormal(),
            "variance_exploding",
            ("edm_f", {"data_std": 0.5}),
        ),
    ],
    ids=["eps", "velocity", "x", "edm_f"],
)
def test_the_weighted_loss_is_the_plain_mean(weighting, schedule, process, target):
    # Draw by draw: the importance, the weighting and the slope together are a constant.
    name, options = target
    number = 2000
    with jax.enable_x64(True):
        made = complete(dk.get("process", process), {})
        times = canonical_time_sampling(
            weighting,
            schedule,
            parameterization=dk.get("parameterization", name)(**options),
            process=made,
        )
        model = dk.DiffusionModel(Known(made), schedule, dk.GaussianDecoder(), (2,))
        key = jax.random.key(4)
        weighted = eqx.filter_jit(dk.denoising_loss)(
            model,
            np.tile(POINT, (number, 1)),
            key=key,
            weighting=weighting,
            time_sampler=times,
        )
        logsnr = over(schedule, times(jax.random.split(key, 3)[0], number)[0])
        integral = (
            0.5
            * integrate.quad(
                lambda u: float(weighting(u)) * np.exp(-0.2 * (u - 1) ** 2),
                *(float(end) for end in reversed(schedule.endpoints)),
                epsrel=1e-6,
            )[0]
        )
    alpha, sigma = (part[:, None] for part in PATHS[process](np.exp(-logsnr / 2)))
    errors = np.exp(-0.1 * np.square(logsnr - 1))[:, None] * DIRECTION
    true = TARGETS[name](POINT, 0 * errors, alpha, sigma, **options)
    predicted = TARGETS[name](POINT - sigma / alpha * errors, errors, alpha, sigma, **options)
    plain = np.square(true - predicted).sum(axis=1)
    ratio = np.asarray(weighted) / (times.scale * plain)
    assert np.std(ratio) < 1e-4
    assert np.mean(ratio) == pytest.approx(1.0, abs=1e-4)
    # And so the mean is the weighted bound.
    bound = integral * np.square(DIRECTION).sum()
    assert times.scale * plain.mean() == pytest.approx(bound, rel=2e-3)


def test_one_key_draws_the_same_noise_levels_under_every_schedule():
    drawn = {}
    with jax.enable_x64(True):
        for name in ("linear_logsnr", "cosine", "straight_line", "learned_monotone"):
            schedule = schedule_of(name, {"logsnr_max": 13.3, "logsnr_min": -5.0})
            times = canonical_time_sampling(dk.Sigmoid(8.0), schedule)
            drawn[name] = over(schedule, times(jax.random.key(5), 500)[0])
    assert np.ptp(drawn["cosine"]) > 15
    for found in drawn.values():
        np.testing.assert_allclose(found, drawn["cosine"], atol=2e-5)


def test_canonical_times_where_the_weighting_vanishes():
    schedule = dk.LinearLogSNR(8.0, -8.0)
    times = canonical_time_sampling(known.Cut(-3.0, 4.0), schedule)
    t, _ = times_and_density(times)
    # Up to one cell of the table at each end.
    assert largest_gap(over(schedule, t), stats.uniform(-3.0, 7.0).cdf) < 3e-3
    assert times.scale == pytest.approx(3.5, rel=3e-3)
    assert float(times.density(0.01)) == 0
    with pytest.raises(ValueError, match=r"must be positive somewhere between .* 8 and -8"):
        canonical_time_sampling(known.Cut(20.0, 21.0), schedule)


def sigmoid_times() -> dk.equivalence.CanonicalTimes:
    return canonical_time_sampling(dk.Sigmoid(2.0), dk.Cosine(10.0, -10.0))


class TestLawsOfCanonicalTimes(TimeSamplerLaws):
    part = sigmoid_times
