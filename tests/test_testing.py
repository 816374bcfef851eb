"""The kit of laws finds what it must: parts that are wrong on purpose, one for each law."""

import copy
import functools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit import registry, testing
from diffkit.cli import main
from diffkit.cli.check import check_plugin
from diffkit.cli.new_plugin import new_plugin, skeleton
from diffkit.testing import LawError, NotApplicable

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_plugin"

WRONG: dict[tuple[str, str], list[tuple[str, Callable[[], Any], str]]] = {}
"""By kind and law: what is wrong, how to make the part, and words of the message."""


def wrong(kind: str, law: str, *words: str, **options: Any):
    """Enter a part that is wrong on purpose, with the law that must find it."""

    def add(part):
        made = functools.partial(part, **options) if options else part
        title = f"{getattr(part, '__name__', 'part')}{options or ''}"
        WRONG.setdefault((kind, law), []).append((title, made, ".*".join(words)))
        return part

    return add


# Schedules.


@wrong("schedule", "interface", "it is a NoSchedule; expected a AbstractSchedule")
class NoSchedule:
    pass


@wrong("schedule", "options", r"the argument \*\*options", "expected named options only")
class Anything(dk.AbstractSchedule):
    def __init__(self, **options):
        del options

    def __call__(self, t):
        return 13.3 - 18.3 * t

    def inverse(self, logsnr):
        return (13.3 - logsnr) / 18.3


class Crooked(dk.AbstractSchedule):
    """A line, or what is named."""

    slip: str = "none"

    def __call__(self, t):
        if self.slip == "infinite":
            return jnp.log1p(-t) - jnp.log(t + 1e-6)
        wave = 0.9 * jnp.sin(8 * jnp.pi * t) if self.slip == "wave" else 0.0
        return 13.3 - 18.3 * t + wave

    def inverse(self, logsnr):
        return (13.3 - logsnr) / (18.5 if self.slip == "inverse" else 18.3)


wrong("schedule", "finite", r"input: +t = 1\n", r"logsnr\(t\) = -inf", slip="infinite")(Crooked)
wrong("schedule", "strictly_decreasing", r"t = 0, next t = 0\.0001", slip="wave")(Crooked)
wrong("schedule", "inverse_inverts", r"inverse\(logsnr\(t\)\) = 0.98", slip="inverse")(Crooked)


@wrong("schedule", "endpoints", r"logsnr\(t\) = -4.99\d+, the endpoint = -6")
class Misstated(dk.AbstractSchedule):
    def __call__(self, t):
        return 13.3 - 18.3 * jnp.asarray(t)

    def inverse(self, logsnr):
        return (13.3 - logsnr) / 18.3

    @property
    def endpoints(self):
        return jnp.asarray(13.3), jnp.asarray(-6.0)


@wrong(
    "schedule",
    "endpoints_kept_while_training",
    r"\d+ trainable numbers move the endpoints \(\d in .slope, \d in .bias, 8 in .height\)",
    r"from \(13.3\d+, -4.999\d+\) to \(13.3\d+, -4.9\d+\)",
)
class Drifting(dk.AbstractSchedule):
    """As in the reference implementation of VDM: a monotone network that is not renormalised."""

    slope: jax.Array
    bias: jax.Array
    height: jax.Array
    scale: float

    def __init__(self):
        self.slope, self.bias = jnp.linspace(1.0, 4.0, 8), jnp.linspace(-1.0, 1.0, 8)
        self.height = jnp.full((8,), 0.1)
        # At first it ends where it should, by numbers that are not trained.
        self.scale = float(self._position(1.0))

    def _position(self, t):
        units = jnp.tanh(jnp.abs(self.slope) * t + self.bias) - jnp.tanh(self.bias)
        return t + jnp.mean(jnp.abs(self.height) * units)

    def __call__(self, t):
        return 13.3 - 18.3 * self._position(jnp.asarray(t)) / self.scale

    def inverse(self, logsnr):
        return (13.3 - logsnr) / 18.3


# Processes.


class Askew(dk.AbstractProcess):
    slip: str = "none"

    def at(self, logsnr):
        logsnr = jnp.asarray(logsnr, jnp.result_type(logsnr, float))
        alpha2 = jax.nn.sigmoid(logsnr)
        sigma2 = jax.nn.sigmoid(-logsnr)
        if self.slip == "snr":
            sigma2 = jnp.exp(-logsnr)
        if self.slip == "cancellation":
            sigma2 = 1 - alpha2
        if self.slip == "negative":
            sigma2 = sigma2 - 1e-6
        return dk.NoiseLevel(logsnr, jnp.sqrt(alpha2), jnp.sqrt(sigma2))


wrong("process", "snr", r"logsnr = -12, ", r"log\(alpha\^2 / sigma\^2\) = -24", slip="snr")(Askew)
wrong("process", "snr", r"logsnr = 1\d", "sigma = ", slip="cancellation")(Askew)
wrong("process", "positive", "logsnr = 14\n", "sigma = nan", slip="negative")(Askew)


@wrong("process", "posterior_chains_to_the_marginal", "variance of z_s", "logsnr_t = .*logsnr_s = ")
class ForwardVariance(dk.AbstractProcess):
    """Its posterior has the variance of the forward step, which is right for no data."""

    def at(self, logsnr):
        return dk.VariancePreserving().at(logsnr)

    def posterior(self, z_t, x, level_t, level_s):
        mean, std = dk.VariancePreserving().posterior(z_t, x, level_t, level_s)
        return mean, std * level_t.sigma / level_s.sigma


# Parameterizations.


@wrong("parameterization", "well_posed", "logsnr = 0, process = VariancePreserving", "a = 0.70")
class SlippedV(dk.AbstractParameterization):
    """v with a sign slip in its row."""

    def coefficients(self, level):
        return level.sigma, level.alpha


@wrong("parameterization", "solve_inverts_target", "dtype = float64", "eps from solve = ")
class SlippedSolve(dk.AbstractParameterization):
    """v, solved with a sign slip."""

    def coefficients(self, level):
        return dk.V().coefficients(level)

    def solve(self, prediction, z, level):
        x, _ = dk.V().solve(prediction, z, level)
        a, b = self.coefficients(level)
        det = level.alpha * b - level.sigma * a
        return x, (level.alpha * prediction + a * z) / det


@wrong("parameterization", "error_factor_is_the_derivative", "by the squared derivative = ")
class SlippedFactor(dk.AbstractParameterization):
    """x, whose errors count SNR times as much as those of eps: here the other way round."""

    def coefficients(self, level):
        return dk.X().coefficients(level)

    def error_factor(self, level):
        return jnp.exp(level.logsnr)


# Weightings.


@wrong("weighting", "finite_and_non_negative", r"w = -0\.\d+; expected a number of at least 0")
class Negative(dk.AbstractWeighting):
    def __call__(self, logsnr):
        return jnp.cos(logsnr)


@wrong("weighting", "is_what_its_loss_implies", "squared error of V over Cosine", "their ratio")
class WithoutTheSlope(dk.Implied):
    """The time density and the target's factor, without the change of variables."""

    def __init__(self):
        super().__init__(dk.V(), dk.Cosine(8.0, -8.0), dk.VariancePreserving(), dk.Uniform(), None)

    def __call__(self, logsnr):
        return self.parameterization.error_factor(self.process.at(jnp.asarray(logsnr)))


# Time samplers.


class Squares(dk.AbstractTimeSampler):
    """t = u^2, whose density is 1 / (2 sqrt t), right or with what is named."""

    slip: str = "none"
    even: bool = True

    def __call__(self, key, batch_size):
        if self.slip == "clusters":
            u = jnp.mod(jax.random.uniform(key) + jnp.arange(batch_size) / batch_size / 4, 1.0)
        else:
            u, _ = (dk.LowDiscrepancy() if self.even else dk.Uniform())(key, batch_size)
        if self.slip == "ends":
            u = jnp.round(8 * u) / 8
        t = u**2
        importance = 2 * u
        if self.slip == "importance":
            importance = jnp.ones_like(t)
        if self.slip == "outer":
            # Of every twenty draws, the one that is nearest to an end.
            importance = jnp.where(jnp.abs(u - 0.5) > 0.475, 1.5 * importance, importance)
        return t, importance

    def density(self, t):
        t = jnp.maximum(jnp.asarray(t), 1e-12)
        if self.slip == "uniform":
            return jnp.ones_like(t)
        return (1.1 if self.slip == "total" else 1) * 0.5 / jnp.sqrt(t)


wrong("time_sampler", "draws_are_times", "batch_size = 1, ", "expected 0 <= t", slip="ends")(
    Squares
)
wrong("time_sampler", "density_integrates_to_one", "= 1.09", slip="total")(Squares)
wrong("time_sampler", "importance_is_one_over_density", "importance = 1", slip="importance")(
    Squares
)
wrong("time_sampler", "draws_follow_the_density", "share of draws", slip="uniform")(Squares)
wrong(
    "time_sampler",
    "importance_makes_averages_unbiased",
    r"t\^1",
    slip="importance",
)(Squares)
wrong(
    "time_sampler",
    "importance_makes_averages_unbiased",
    r"t\^0 where",
    "average = 1.02",
    slip="outer",
)(Squares)


@wrong(
    "time_sampler",
    "importance_makes_averages_unbiased",
    "share of draws where the density is below 0.01 = 0,",
    "there = 0.00249",
)
class Half(dk.AbstractTimeSampler):
    """A density of 0.005 on the first half, where no draw ever is. It hardly shows in averages."""

    def __call__(self, key, batch_size):
        t = 0.5 + 0.5 * jax.random.uniform(key, (batch_size,))
        return t, 1 / jax.vmap(self.density)(t)

    def density(self, t):
        return jnp.where(jnp.asarray(t) < 0.5, 0.005, 1.995)


wrong("time_sampler", "covers_evenly", "mean star discrepancy = 0.[4-9]", slip="clusters")(Squares)


# Samplers.


CALLS = []


class Sloppy(dk.AbstractSampler):
    """The Euler method (DDIM), the ancestral one, or what is named, stating what it is told to."""

    slip: str = "none"
    order: int | None = eqx.field(default=1, static=True)
    calls: int | None = eqx.field(default=1, static=True)
    stochastic: bool = eqx.field(default=False, static=True)

    def init(self, y):
        return None

    def step(self, denoise, y, logsnr_t, logsnr_s, state, key):
        prediction = denoise(y, logsnr_t)
        rho_t, rho_s = jnp.exp(-logsnr_t / 2), jnp.exp(-logsnr_s / 2)
        if self.stochastic:
            mean, std = prediction.reverse(logsnr_s)
            if self.slip == "variance":
                std = std * jnp.sqrt(1.15)
            if self.slip == "noisy":  # Euler and Maruyama's, in steps of any length
                std = jnp.sqrt(rho_t**2 - rho_s**2)
            return mean + std * jax.random.normal(key, y.shape, y.dtype), state
        eps, delta = prediction.eps, rho_s - rho_t
        if self.slip == "draws":
            y = y + 0 * jax.random.normal(jax.random.key(0), y.shape, y.dtype)
        if self.slip == "luck":
            y = y + np.random.default_rng().standard_normal()
        if self.slip == "count":
            y = y + len(CALLS)
            CALLS.append(None)
        if self.slip == "batch":
            y = y + isinstance(y, jax.core.Tracer)
        if self.slip == "trapezoid":
            eps = (eps + denoise(y + delta * eps, logsnr_s).eps) / 2
        if self.slip == "unstable":
            # Euler's method in logsnr, which looks smooth: dy / dlogsnr = -rho eps / 2.
            return y - 0.5 * (logsnr_s - logsnr_t) * rho_t * eps, state
        return y + delta * eps, state


wrong("sampler", "reaches_its_order", "measured order = (1|0.9)", "expected 2", order=2)(Sloppy)
wrong("sampler", "reaches_its_order", "steps = 1", "expected below 1e-4", order=None)(Sloppy)
wrong("sampler", "draws_only_if_stochastic", "draws random numbers = True", slip="draws")(Sloppy)
wrong("sampler", "calls_as_stated", "calls of the network = 1; expected 2", calls=2)(Sloppy)
wrong(
    "sampler",
    "stays_bounded_on_uneven_grids",
    "grid = steps of sizes 0.01 and 5",
    "expected a latent of at most",
    slip="unstable",
)(Sloppy)
wrong("sampler", "does_not_amplify", "steps = 1", "error = 3", slip="trapezoid", calls=2)(Sloppy)
wrong("sampler", "does_not_amplify", "steps = 1", "error = 79", slip="noisy", stochastic=True)(
    Sloppy
)
wrong("sampler", "step_depends_on_its_arguments_alone", "called again = ", slip="luck")(Sloppy)
wrong("sampler", "step_depends_on_its_arguments_alone", "called again = ", slip="count")(Sloppy)
wrong("sampler", "step_depends_on_its_arguments_alone", "within a batch = ", slip="batch")(Sloppy)
wrong(
    "sampler",
    "reproduces_mean_and_variance",
    r"variance, by the exact one = 1.1\d+; expected 1",
    slip="variance",
    stochastic=True,
)(Sloppy)
wrong(
    "sampler",
    "bias_falls_at_the_weak_order",
    "order = 2",
    "bias of the variance",
    r"at most = 1\.[0-4]\d+; expected 2, or",
    order=2,
    stochastic=True,
)(Sloppy)
wrong(
    "sampler",
    "bias_falls_at_the_weak_order",
    "bias of the variance",
    r"at most = -\d\.\d+; expected 1, or",
    slip="variance",
    stochastic=True,
)(Sloppy)


@wrong("sampler", "keeps_its_digits_in_float32", "steps = 640", "float32 = .*float64 = ")
class Monomials(dk.AbstractSampler):
    """The method of Adams and Bashforth of order 3 in rho, by the primitives of its polynomials.

    Right in float64; in float32 the differences of third powers of near numbers have no digits.
    """

    stochastic = property(lambda self: False)
    order = property(lambda self: 3)
    calls = property(lambda self: 1)

    def init(self, y):
        return jnp.zeros((), int), jnp.zeros((2,), y.dtype), jnp.zeros((2, *y.shape), y.dtype)

    def step(self, denoise, y, logsnr_t, logsnr_s, state, key):
        count, (p, q), before = state
        a, b = jnp.exp(-logsnr_t / 2), jnp.exp(-logsnr_s / 2)
        eps = denoise(y, logsnr_t).eps

        def weight(at, r, s):
            def primitive(x):
                return x**3 / 3 - (r + s) * x**2 / 2 + r * s * x

            return (primitive(b) - primitive(a)) / ((at - r) * (at - s))

        third = weight(a, p, q) * eps + weight(p, a, q) * before[0] + weight(q, a, p) * before[1]
        y = y + jnp.where(count < 2, (b - a) * eps, third)
        return y, (count + 1, jnp.stack([a, p]), jnp.stack([eps, before[0]]))


# Grids.


class Uneven(dk.AbstractGrid):
    slip: str = "none"

    def __call__(self, schedule, steps):
        logsnr = dk.UniformLogSNR()(schedule, steps)
        if self.slip == "count":
            return logsnr[:-1]
        if self.slip == "last":
            return logsnr.at[-1].set(logsnr[-2])
        return logsnr - 0.01 if self.slip == "ends" else logsnr


wrong("grid", "number_of_points", "steps = 1; numbers: points = 1|expected 2", slip="count")(Uneven)
wrong("grid", "strictly_increasing", "step = 0", "expected the second above", slip="last")(Uneven)
wrong("grid", "ends_at_the_endpoints", "logsnr = .*the schedule's = ", slip="ends")(Uneven)


# Optimisers.


class Slipped(dk.AbstractOptimiser):
    slip: str

    def transformation(self, learning_rate, decays):
        import optax

        if self.slip == "sign":
            return optax.chain(optax.adam(learning_rate), optax.scale(-1.0))
        return optax.adamw(learning_rate, weight_decay=0.1)


wrong("optimiser", "descends", "loss after / before = ", "at most 0.1", slip="sign")(Slipped)
wrong("optimiser", "decays_the_denoiser_alone", "update = ", "expected 0", slip="mask")(Slipped)


# Decoders.


class Blurred(dk.AbstractDecoder):
    """The Gaussian decoder, or what is named."""

    slip: str = "none"

    @property
    def levels(self):
        return None

    def encode(self, x):
        x = jnp.asarray(x)
        return jnp.abs(x) if self.slip == "encode" else x

    def log_prob(self, x, z_0, level_0):
        right = dk.GaussianDecoder().log_prob(x, z_0, level_0)
        if self.slip == "sum":
            return right + 0.02
        return right / jnp.asarray(x).size if self.slip == "mean" else right

    def decode(self, z_0, level_0, *, key=None):
        drawn = dk.GaussianDecoder().decode(z_0, level_0, key=key)
        mode = z_0 / level_0.alpha
        if self.slip == "mode":
            return drawn + 0.1
        return mode + 1.3 * (drawn - mode) if self.slip == "draws" else drawn


wrong("decoder", "probabilities_sum_to_one", "sum of the probabilities = 1.02", slip="sum")(Blurred)
wrong("decoder", "dimensions_are_independent", "log_prob of both", slip="mean")(Blurred)
wrong("decoder", "encodes_in_range", "x = -3", "encoded next", slip="encode")(Blurred)
wrong("decoder", "decode_undoes_encode", r"decode\(encode\(x\)\) = ", slip="mode")(Blurred)
wrong("decoder", "draws_follow_the_probabilities", "share of draws", slip="draws")(Blurred)


@wrong("decoder", "probabilities_sum_to_one", "logsnr_0 = ", "sum of the probabilities = 2.4")
class Unnormalised(dk.AbstractDecoder):
    """The discretised decoder, normalised over all numbers and not over its levels."""

    levels: int = 16

    def encode(self, x):
        return dk.DiscretizedDecoder(self.levels).encode(x)

    def log_prob(self, x, z_0, level_0):
        density = dk.GaussianDecoder().log_prob(self.encode(x), z_0, level_0)
        return density + jnp.asarray(x).size * math.log(2 / self.levels)

    def decode(self, z_0, level_0, *, key=None):
        return dk.DiscretizedDecoder(self.levels).decode(z_0, level_0, key=key)


# Networks.


class Careless(dk.AbstractNetwork):
    """A scalar network, or what is named."""

    slip: str = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    weight: jax.Array

    def __init__(self, shape, *, slip="none", condition_size=0, dtype="float32", key):
        del shape, condition_size, key
        self.slip, self.dtype, self.weight = slip, dtype, jnp.ones(())

    def __call__(self, z, logsnr, condition=None, *, key=None):
        out = self.weight * z
        if self.slip == "shape":
            return out.reshape(1, -1)
        if self.slip == "range":
            return out * jnp.exp(jnp.exp(logsnr) / 1000)
        if self.slip == "dtype":
            return out.astype(self.dtype)
        if self.slip == "draws":
            return out + jax.random.normal(jax.random.key(0), z.shape)
        return out


wrong("network", "shape_and_range", r"of the output = \(1, 64\)", slip="shape")(Careless)
wrong("network", "shape_and_range", "logsnr = 13.3", "is finite = False", slip="range")(Careless)
wrong("network", "shape_and_range_in_bfloat16", "dtype = bfloat16; ", slip="dtype")(Careless)
wrong("network", "deterministic_without_key", "draws random numbers = True", slip="draws")(Careless)
wrong("network", "heeds_its_condition", "between threes and None", "= 0; expected more")(Careless)


# Data.


class Rows(dk.data.AbstractConditionalSource):
    slip: str
    shape: tuple[int, ...]
    condition_size: int = 2
    classes: int | None = None

    def __len__(self):
        return 20

    def gather(self, indices):
        self_made = np.stack([indices, 19 - indices], axis=1).astype(np.uint8)
        if self.slip == "shape":
            return self_made[:, :1]
        if self.slip == "range":
            return self_made + 1
        return self_made + (len(indices) == 1) if self.slip == "alike" else self_made

    def conditions(self, indices):
        return np.zeros((len(indices), 2), np.float32)


class Unsound(dk.data.AbstractDataset):
    train: Rows
    test: Rows
    levels: int | None = 20
    shape: tuple[int, ...] = (2,)

    def __init__(self, slip: str = "none"):
        self.train = self.test = Rows(slip, (2,))


wrong("data", "shape", r"shape of the batch = \(20, 1\)", slip="shape")(Unsound)
wrong("data", "values_in_range", "largest = 20; expected values from 0 to 19", slip="range")(
    Unsound
)
wrong("data", "gathers_alike", "source = train, example = ", slip="alike")(Unsound)
wrong("data", "conditions_are_vectors", "largest = 0; expected a finite vector")(Unsound)


# Presets.


def preset(**changes: Any) -> dk.Preset:
    return dk.Preset(network=("mlp", {"width": 8, "depth": 1}), **changes)


wrong(
    "preset",
    "weighting_is_its_loss",
    "squared error of epsilon, times uniform; the weighting is sigmoid",
    weighting="sigmoid",
    loss=dk.Loss(),
)(preset)
wrong(
    "preset",
    "weighting_is_its_loss",
    "an error in eps around logsnr = ",
    "squared error of v",
    schedule="cosine",
    weighting="simple",
    loss=dk.Loss(parameterization="v"),
)(preset)
wrong(
    "preset",
    "weighting_is_its_loss",
    "squared error of epsilon, times uniform; the weighting is min_snr",
    weighting=("min_snr", {"gamma": 0.01}),
    loss=dk.Loss(parameterization="epsilon"),
)(preset)
wrong("preset", "composes", "has no option 'etta'", sampler=("ddim", {"etta": 1.0}))(preset)
wrong("preset", "composes", "stepz", train={"stepz": 3})(preset)
wrong(
    "preset",
    "composes",
    "choice = sampler, option = eta",
    sampler=("ddim", {"eta": np.float32(0)}),
)(preset)
wrong(
    "preset",
    "trains_saves_loads_and_samples",
    "FloatingPointError: the (loss|gradient) is not finite",
    weighting="overflowing",
)(preset)


class Overflowing(dk.AbstractWeighting):
    def __call__(self, logsnr):
        return jnp.exp(jnp.square(jnp.asarray(logsnr)))


@pytest.fixture
def own_registry(monkeypatch):
    """The registry, with what a test adds forgotten afterwards."""
    dk.plugins()
    state = copy.copy(registry._STATE)
    state.parts = {kind: dict(parts) for kind, parts in state.parts.items()}
    monkeypatch.setattr(registry, "_STATE", state)


CASES = [
    pytest.param(kind, law, part, words, id=f"{kind}-{law}-{title}")
    for (kind, law), entries in WRONG.items()
    for title, part, words in entries
]


@pytest.mark.parametrize(("kind", "law", "part", "words"), CASES)
@pytest.mark.usefixtures("own_registry")
def test_wrong_part_is_caught(kind, law, part, words):
    dk.register("weighting", "overflowing")(Overflowing)
    made = part() if kind in ("preset", "data") else part
    found = next(one for one in testing.laws(kind) if one.name == law)
    with pytest.raises(LawError, match=f"(?s){words}") as broken:
        found(made, name="under_test")
    # It names the part, the law, the input and the numbers.
    error = broken.value
    assert (error.part, error.law) == (f"{kind} 'under_test'", law)
    assert str(error).startswith(f"{kind} 'under_test' breaks the law {law!r}: {found.sentence}")
    assert f"input:   {error.given}\n" in str(error)
    assert str(error).endswith(f"numbers: {error.numbers}")


def test_every_law_has_a_wrong_part():
    # The same two functions for every kind.
    common = {"interface", "options"}
    known = {(k, one.name) for k in registry.KINDS for one in testing.laws(k)}
    assert set(WRONG) <= known
    assert {(k, name) for k, name in known if name not in common} <= set(WRONG)
    for kind in registry.KINDS:
        assert testing.laws(kind)[0].name == "interface"


def test_only_the_law_that_is_broken_fails():
    # A slip in the inverse is no slip anywhere else.
    results = list(testing.check_part("schedule", Crooked(slip="inverse"), name="slipped"))
    assert [r.law for r in results] == [one.name for one in testing.laws("schedule")]
    assert {r.law for r in results if r.outcome == "failed"} == {"inverse_inverts"}
    (broken,) = (r for r in results if r.outcome == "failed")
    assert broken.error is not None
    assert broken.error.part == "schedule 'slipped'"


def test_a_part_that_cannot_be_made_breaks_one_law():
    def broken(levels: int):
        raise ValueError(f"no schedule for {levels} levels")

    first, *rest = testing.check_part("schedule", broken)
    assert first.outcome == "failed"
    assert "no schedule for 256 levels" in str(first.error)
    assert {r.outcome for r in rest} == {"skipped"}


def test_what_cannot_be_checked_is_skipped_with_the_reason():
    results = list(testing.check_part("data", dk.data.ArrayData))
    assert {r.reason for r in results if r.law != "options"} == {
        "needs path: there is no default to check it with"
    }
    (independent,) = (one for one in testing.laws("time_sampler") if one.name == "covers_evenly")
    with pytest.raises(NotApplicable, match="its times are independent"):
        independent(Squares(even=False))
    independent(Squares())
    with pytest.raises(ValueError, match=r"kind must be one of schedule, .*got 'schedul'"):
        testing.laws("schedul")


# The test classes: these run.


class TestLinearLogSNR(testing.ScheduleLaws):
    part = dk.LinearLogSNR


class TestCosineForFewLevels(testing.ScheduleLaws):
    part = dk.Cosine
    context: ClassVar = {"levels": 4}


class TestMinSNR(testing.WeightingLaws):
    part = dk.weightings.min_snr  # a function, which must not become a method


class TestArrayData(testing.DataLaws):
    part = Unsound("none")
    test_conditions_are_vectors = None  # the only law that it breaks


def test_classes_have_a_method_for_every_law():
    classes = {
        "schedule": testing.ScheduleLaws,
        "process": testing.ProcessLaws,
        "parameterization": testing.ParameterizationLaws,
        "weighting": testing.WeightingLaws,
        "time_sampler": testing.TimeSamplerLaws,
        "sampler": testing.SamplerLaws,
        "grid": testing.GridLaws,
        "decoder": testing.DecoderLaws,
        "network": testing.NetworkLaws,
        "optimiser": testing.OptimiserLaws,
        "data": testing.DataLaws,
        "preset": testing.PresetLaws,
    }
    assert set(classes) == set(registry.KINDS)
    for kind, cls in classes.items():
        methods = {name for name in dir(cls) if name.startswith("test_")}
        assert methods == {f"test_{one.name}" for one in testing.laws(kind)}


def test_classes_fail_skip_and_ask_for_the_part():
    class Wrong(testing.ScheduleLaws):
        part = Crooked(slip="wave")

    class WithoutPart(testing.ScheduleLaws):
        pass

    class Closed(testing.WeightingLaws):
        part = dk.ELBO()

    with pytest.raises(LawError, match="schedule 'Crooked' breaks the law 'strictly_decreasing'"):
        Wrong().test_strictly_decreasing()
    with pytest.raises(TypeError, match=r"WithoutPart must name the part .* part = MyPart\(\)"):
        WithoutPart().test_finite()
    with pytest.raises(pytest.skip.Exception, match="states no loss"):
        Closed().test_is_what_its_loss_implies()
    with pytest.raises(ValueError, match=r"context has entries .*got 'colour'"):
        testing.check_part("schedule", dk.Cosine, context={"colour": 1}).__next__()


def test_importing_the_kit_loads_neither_pytest_nor_the_training_stack():
    code = "import sys, diffkit.testing; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"pytest", "hydra", "hydra_zen", "optax", "grain", "orbax", "rich", "matplotlib"}
    assert not heavy & {name.split(".")[0] for name in loaded}


# Right presets whose weighting is what their loss says, however it is said.


@pytest.mark.parametrize(
    "right",
    [
        preset(),  # the VLB
        preset(weighting="simple", schedule="cosine", parameterization="v", loss=dk.Loss()),
        # The squared error of x, by hand, is exp(-logsnr) times that of eps.
        preset(
            weighting="simple",
            loss=dk.Loss(parameterization="x", factor=lambda logsnr: 7 * jnp.exp(logsnr)),
        ),
        # The VLB as a loss: for a straight line its weight is the same at all times.
        preset(weighting="elbo", loss=dk.Loss()),
    ],
    ids=["elbo", "cosine v", "x with factor", "line"],
)
def test_weighting_of_right_presets(right):
    (found,) = (one for one in testing.laws("preset") if one.name == "weighting_is_its_loss")
    found(right)


# `simple` and `min_snr` are derived from a loss. But it is made of the same parts, and says nothing of the
# one that the preset means.
@pytest.mark.parametrize("weighting", ["sigmoid", "simple", ("min_snr", {"gamma": 0.01})])
def test_a_preset_that_states_no_loss_is_not_judged(weighting):
    (found,) = (one for one in testing.laws("preset") if one.name == "weighting_is_its_loss")
    with pytest.raises(NotApplicable, match="states no loss: give the preset loss="):
        found(preset(weighting=weighting))


# The command.


@pytest.fixture
def crooked_plugin(own_registry):
    """A plugin with one right and one wrong schedule; its name."""
    dk.register("schedule", "wavy")(functools.partial(Crooked, slip="wave"))
    dk.register("schedule", "straight")(Crooked)
    return next(r.name for r in dk.plugins() if "wavy" in r.parts.get("schedule", ()))


def test_check_finds_the_wrong_part(crooked_plugin, capsys):
    assert check_plugin([crooked_plugin]) == 1
    out = capsys.readouterr().out
    table, _, messages = out.partition("schedule 'wavy' breaks the law")
    for one in testing.laws("schedule"):
        assert one.name in table
    assert table.count("failed") == 2  # a wave has no inverse either
    assert "'strictly_decreasing'" in messages
    assert "logsnr(next t) = " in messages
    assert "straight" in table
    assert "2 parts, 12 laws hold, 2 broken, 0 skipped" in messages


def test_check_narrows_to_a_kind_and_a_part(crooked_plugin, capsys):
    assert check_plugin([crooked_plugin, "--part", "straight", "--kind", "schedule"]) == 0
    assert "1 parts, 7 laws hold, 0 broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PLUGIN"),
        (["nothing"], "there is no plugin 'nothing'. Installed: diffkit,"),
        (["diffkit", "--kind", "schedul"], "invalid choice: 'schedul'"),
        (["diffkit", "--part", "cosin"], "no cosin in diffkit. Parts: schedule cosine,"),
    ],
)
def test_check_explains_wrong_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["check", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_check_of_a_plugin_that_does_not_import(own_registry, monkeypatch, capsys):
    failed = registry._Plugin("limping", "limping", "limping", "1.0", "Traceback: no module")
    monkeypatch.setitem(registry._STATE.plugins, "limping", failed)
    assert check_plugin(["limping"]) == 1
    assert "plugin 'limping' does not import" in capsys.readouterr().err


def test_check_of_a_plugin_that_brings_commands_only(capsys):
    assert check_plugin(["bitsback"]) == 0
    assert (
        "no parts, and so no laws; commands: compress, decompress, rate" in capsys.readouterr().out
    )
    assert check_plugin(["bitsback", "--kind", "schedule"]) == 2
    assert "no schedule in bitsback. Parts: none" in capsys.readouterr().err


def test_check_some_of_the_core(capsys):
    for kind in ("process", "weighting"):
        assert check_plugin(["diffkit", "--kind", kind]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_check_all_of_the_core(capsys):
    assert check_plugin(["diffkit"]) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    for kind in registry.KINDS:
        for name in next(r for r in dk.plugins() if r.name == "diffkit").parts.get(kind, ()):
            assert f"{kind} {name}" in out


# The skeleton of a plugin; tests/test_custom_plugin.py installs and runs it.


def test_new_plugin_writes_the_skeleton(tmp_path, capsys):
    folder = tmp_path / "somewhere" / "mine"
    assert new_plugin(["my_lab", "--path", str(folder)]) == 0
    files = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}
    assert files == skeleton("my_lab")
    assert set(files) == {
        "pyproject.toml",
        "README.md",
        "diffkit_my_lab/__init__.py",
        "diffkit_my_lab/schedules.py",
        "diffkit_my_lab/py.typed",
        "tests/test_laws.py",
    }
    out = capsys.readouterr().out
    assert f"pip install -e {folder}" in out
    assert "diffkit check my_lab" in out
    # Again: nothing is overwritten.
    (folder / "README.md").write_text("mine")
    assert new_plugin(["my_lab", "--path", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["My_Lab", "my-lab", "2d", "", "a b", "_a", "a_", "../a", "é"])
def test_new_plugin_refuses_other_names(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert new_plugin([name]) == 2
    assert f"NAME must be a lower-case identifier such as 'my_plugin', got {name!r}" in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_new_plugin_refuses_the_name_of_a_plugin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["new-plugin", "vdm"])
    assert stopped.value.code == 2
    assert "there is a plugin 'vdm' already, of the distribution 'diffkit-vdm'" in (
        capsys.readouterr().err
    )


def test_the_example_is_the_skeleton_and_more():
    for path, text in skeleton("custom").items():
        rest = iter((EXAMPLE / path).read_text().splitlines())
        for line in text.splitlines():
            assert line in rest, f"{path} has no line {line!r} after the ones before it"


def test_the_page_lists_every_law():
    page = (Path(__file__).parents[1] / "docs" / "api" / "testing.md").read_text()
    listed = " ".join(page.split())
    for kind in registry.KINDS:
        _, _, section = page.partition(f"\n### {kind}\n")
        section = " ".join(section.partition("\n#")[0].split())
        for one in testing.laws(kind):
            common = one.name in ("interface", "options")
            assert (f"`{one.name}`" if common else f"* `{one.name}`: {one.sentence}") in (
                listed if common else section
            )
