"""Parts that are wrong on purpose, one or more for each law."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffkit as dk

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


wrong("time_sampler", "draws_are_times", "batch_size = 1, ", "expected 0 <= t", slip="ends")(Squares)
wrong("time_sampler", "density_integrates_to_one", "= 1.09", slip="total")(Squares)
wrong("time_sampler", "importance_is_one_over_density", "importance = 1", slip="importance")(Squares)
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
wrong("sampler", "does_not_amplify", "steps = 1", "error = 79", slip="noisy", stochastic=True)(Sloppy)
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
wrong("data", "values_in_range", "largest = 20; expected values from 0 to 19", slip="range")(Unsound)
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
