"""Transport is exact: one bound, one set of samples and one likelihood under every process and schedule."""

import dataclasses
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
from diffkit.equivalence import (
    Transported,
    TransportWarning,
    canonical_time_sampling,
    common_range,
    composition,
    range_losses,
    transport,
)
from diffkit.presets import complete

PRESETS = ("vdm", "ddpm", "vp_sde", "ve_sde", "subvp_sde", "edm", "flow_matching")
PROCESSES = {n: complete(dk.get("process", n), {}) for n in dk.available("process")}
KEY = jax.random.key(0)

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[0.8, 0.1], [-0.6, -0.4]])
COVS = np.array([[[0.05, 0.0], [0.0, 0.05]], [[0.1, 0.05], [0.05, 0.08]]])


def mixture(process):
    return dk.analytic.mixture(WEIGHTS, MEANS, COVS, process=process)


# ---------------------------------------------------------------------------------------------
# Every pair of presets
# ---------------------------------------------------------------------------------------------


class OneProcess(dk.AbstractProcess):
    """One of several processes, by a number, so that one compiled function serves all of them."""

    parts: tuple[dk.AbstractProcess, ...]
    index: jax.Array

    @eqx.filter_jit
    def at(self, logsnr):
        branches = [lambda value, part=part: part.at(value) for part in self.parts]
        return jax.lax.switch(self.index, branches, jnp.asarray(logsnr, float))


class OneSchedule(dk.AbstractSchedule):
    """The same of schedules."""

    parts: tuple[dk.AbstractSchedule, ...]
    index: jax.Array

    @eqx.filter_jit
    def __call__(self, t):
        branches = [lambda value, part=part: part(value) for part in self.parts]
        return jax.lax.switch(self.index, branches, jnp.asarray(t, float))

    @eqx.filter_jit
    def inverse(self, logsnr):
        branches = [lambda value, part=part: part.inverse(value) for part in self.parts]
        return jax.lax.switch(self.index, branches, jnp.asarray(logsnr, float))


@dataclasses.dataclass(frozen=True)
class Equalised:
    """The processes and schedules of the presets, the latter cut to the range that all of them have."""

    ends: tuple[float, float]
    processes: dict[str, dk.AbstractProcess]
    schedules: dict[str, dk.AbstractSchedule]


def equalised():
    made = {name: composition(name, levels=17).model for name in PRESETS}
    ends = common_range(*(model.schedule for model in made.values()))
    cut = tuple(dk.Truncated(model.schedule, *ends) for model in made.values())
    processes = tuple(model.process for model in made.values())
    index = {name: jnp.asarray(i) for i, name in enumerate(PRESETS)}
    return Equalised(
        ends,
        {name: OneProcess(processes, i) for name, i in index.items()},
        {name: OneSchedule(cut, i) for name, i in index.items()},
    )


# In float64: in float32 the rounding of t alone, next to 1 on a steep schedule such as EDM's, moves the
# bound by up to 1e-4.
@pytest.fixture(scope="module")
def same_range():
    with jax.enable_x64(True):
        return equalised()


@eqx.filter_jit
def quantities(model, times, x, likely):
    """The bound of each example, four samples and their rescaled paths, and the likelihood of some x."""
    bound = dk.vlb(model, x, key=KEY, time_sampler=times).total
    ddim, grid = dk.samplers.DDIM(), dk.UniformLogSNR()
    drawn = dk.sample_trajectory(model, ddim, 4, key=KEY, steps=20, grid=grid)
    alphas = jax.vmap(lambda value: model.process.at(value).alpha)(drawn.logsnr)
    return {
        "bound": bound,
        "samples": drawn.samples,
        "path": drawn.z / jnp.expand_dims(alphas, range(1, drawn.z.ndim)),
        # Fixed probes: any estimate of the divergence must be the same, not only the exact one.
        "likelihood": dk.log_likelihood(model, likely, key=KEY, divergence="hutchinson"),
    }


def deviations(name, denoiser, decoder, x, likely, same_range):
    """How far the model of one preset moves when it is carried over to any of the others, at most."""
    # Drawn in logsnr, so that examples have the same noise levels under every schedule.
    times = canonical_time_sampling(dk.ELBO(), dk.LinearLogSNR(*same_range.ends))

    def measured(model):
        drawn = eqx.tree_at(lambda times: times.schedule, times, model.schedule)
        return jax.tree.map(np.asarray, quantities(model, drawn, x, likely))

    model = dk.DiffusionModel(denoiser, same_range.schedules[name], decoder, x.shape[1:])
    own, worst = measured(model), {}
    for other in PRESETS:
        if other == name:
            continue
        process, schedule = same_range.processes[other], same_range.schedules[other]
        found = measured(transport(model, to=process, schedule=schedule))
        moved = {key: np.abs(found[key] - own[key]).max() for key in own}
        moved["bound"] = np.abs(found["bound"] / own["bound"] - 1).max()
        print(f"{name} -> {other}:", *(f"{key} {value:.1e}" for key, value in moved.items()))
        worst = {key: max(value, worst.get(key, 0.0)) for key, value in moved.items()}
    assert all(np.isfinite(value).all() for value in own.values())
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_exact_denoisers_are_carried_over_exactly(name, same_range):
    rng = np.random.default_rng(0)
    roots = np.linalg.cholesky(COVS)
    which = rng.choice(2, 64, p=WEIGHTS)
    x = MEANS[which] + np.einsum("nij,nj->ni", roots[which], rng.standard_normal((64, 2)))
    with jax.enable_x64(True):
        denoiser = mixture(same_range.processes[name])
        worst = deviations(name, denoiser, dk.GaussianDecoder(), x, x[:6], same_range)
    assert all(value < 1e-10 for value in worst.values()), worst


@pytest.fixture(scope="module")
def digits():
    return dk.data.Digits()


class DoublePrecision(dk.AbstractNetwork):
    """A perceptron in the dtype of its parameters.

    The networks of diffkit compute in float32. Carried over, their bounds and samples stay the same to
    rounding, but a rounding error can change which steps the solver of the likelihood takes, and so the
    likelihood of a digit by some hundredths of a nat, which is what its tolerance allows.
    """

    layers: eqx.nn.MLP

    def __init__(self, size, *, outputs=1, key):
        self.outputs = outputs
        self.layers = eqx.nn.MLP(size + 8, outputs * size, 128, 3, jax.nn.silu, key=key)

    def __call__(self, z, logsnr, condition=None, *, key=None):
        angles = logsnr * jnp.array([0.1, 0.2, 0.4, 0.8])
        features = jnp.concatenate([z.ravel(), jnp.sin(angles), jnp.cos(angles)])
        return jnp.tile(z, self.outputs) + self.layers(features).reshape(-1, *z.shape[1:])


def trained(name, digits, *, schedule, network, **options):
    """A model of digits, trained as a preset is: with its process, target, scaling of data and loss."""
    model = dk.preset(name, schedule=schedule, network=network).model(
        shape=digits.shape, levels=17, key=KEY
    )
    config = dk.TrainConfig(batch_size=64, learning_rate=3e-3, ema=0.98, warmup=20, **options)
    loss = {
        kind: dk.part(kind, getattr(dk.get("preset", name), kind), model=model)
        for kind in ("weighting", "time_sampler")
    }
    fitted = dk.fit(model, digits, config, progress=False, **loss)
    losses = [record["loss"] for record in fitted.metrics]
    print(f"{name}: loss from {losses[0]:.3g} to {losses[-1]:.3g}")
    assert losses[-1] < 0.8 * losses[0]
    return fitted.model


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_trained_networks_are_carried_over_exactly(name, same_range, digits):
    schedule = dk.Truncated(composition(name, levels=17).model.schedule, *same_range.ends)
    network = DoublePrecision(64, key=KEY)
    model = trained(name, digits, schedule=schedule, network=network, steps=300)
    x = digits.test.gather(np.arange(32))
    with jax.enable_x64(True):
        network = jax.tree.map(
            lambda leaf: leaf.astype(float) if eqx.is_array(leaf) else leaf, model.denoiser.network
        )
        denoiser = dk.Denoiser(
            network,
            model.denoiser.parameterization,
            same_range.processes[name],
            data_std=model.denoiser.data_std,
        )
        worst = deviations(name, denoiser, model.decoder, x, x[:3], same_range)
    assert worst.pop("samples") == 0
    assert all(value < 1e-8 for value in worst.values()), worst


# ---------------------------------------------------------------------------------------------
# Any schedule
# ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bound_of_one_network_is_that_of_the_endpoints(digits):
    network = ("mlp", {"width": 128, "depth": 2})
    model = trained("vdm", digits, schedule="linear_logsnr", network=network, steps=1500)
    ends = tuple(map(float, model.schedule.endpoints))
    learned = dk.get("schedule", "learned_monotone")(*ends, key=KEY)
    # Before training it is nearly the straight line: an interior that is none.
    learned = eqx.tree_at(
        lambda s: (s.interior.log_slope, s.interior.centre, s.interior.log_height),
        learned,
        [jnp.full((1024,), value) for value in (math.log(5), -1.0, math.log(5))],
    )
    schedules = {
        "linear_logsnr": model.schedule,
        "cosine": dk.Cosine(*ends),
        "straight_line": dk.get("schedule", "straight_line")(*ends),
        "learned_monotone": learned,
        "log_normal": dk.Truncated(dk.get("schedule", "log_normal")(), *ends),
    }
    x = jnp.asarray(digits.test.gather(np.arange(len(digits.test))))

    @eqx.filter_jit
    def passes(model, key, steps):
        """The mean over all test examples, 500 times."""

        def one(_, key):
            # Times of the schedule itself. By default the bound is estimated without them.
            bound = dk.vlb(model, x, key=key, steps=steps, time_sampler=dk.LowDiscrepancy())
            return None, jnp.mean(bound.bits_per_dim)

        return jax.lax.scan(one, None, jax.random.split(key, 500))[1]

    def estimate(schedule, key, steps, largest_error):
        moved, values, error = transport(model, schedule=schedule), np.zeros(0), math.inf
        while error > largest_error:
            key = jax.random.fold_in(key, len(values))
            values = np.append(values, np.asarray(passes(moved, key, steps), np.float64))
            error = values.std(ddof=1) / math.sqrt(len(values))
        return values.mean(), error, len(values)

    # Independent draws for each, so that errors add up in squares.
    keys = dict(zip(schedules, jax.random.split(KEY, len(schedules)), strict=True))
    exact = {n: estimate(s, keys[n], None, 0.0019) for n, s in schedules.items()}
    coarse = {n: estimate(s, keys[n], 10, 0.1) for n, s in schedules.items()}
    print("bits/dim           continuous (passes)           T = 10")
    for n in schedules:
        print(
            f"{n:18} {{:.4f}} +- {{:.4f}} ({{:5}})    {{:.3f}} +- {{:.3f}}".format(
                *exact[n], *coarse[n][:2]
            )
        )
    for n in schedules:
        assert exact[n][1] <= 0.002
        assert coarse[n][0] - exact[n][0] > 50 * coarse[n][1]
    for n, m in itertools.combinations(schedules, 2):
        # Four standard errors of a difference: a false alarm in one of 1,500 seeds.
        assert abs(exact[n][0] - exact[m][0]) < 4 * math.hypot(exact[n][1], exact[m][1]), (n, m)
        assert abs(coarse[n][0] - coarse[m][0]) > 20 * math.hypot(coarse[n][1], coarse[m][1]), (
            n,
            m,
        )


# ---------------------------------------------------------------------------------------------
# Denoisers
# ---------------------------------------------------------------------------------------------

# alpha for a ratio rho of noise to signal, by hand from the definition of each process.
ALPHAS = {
    "variance_preserving": lambda rho: 1 / np.sqrt(1 + rho**2),
    "variance_exploding": np.ones_like,
    "straight": lambda rho: 1 / (1 + rho),  # alpha + sigma = 1
    "sub_vp": lambda rho: (np.sqrt(rho**2 + 4) - rho) / 2,  # alpha^2 + sigma = 1
}


def exact(z, alpha, sigma):
    """E[x | z] and the score at one latent of the mixture, by Bayes' rule in the latent itself."""
    log_p, x, score = [], [], []
    for weight, mean, cov in zip(WEIGHTS, MEANS, COVS, strict=True):
        total = alpha**2 * cov + sigma**2 * np.eye(2)
        pull = np.linalg.solve(total, z - alpha * mean)
        distance = (z - alpha * mean) @ pull
        log_p.append(math.log(weight) - 0.5 * (distance + np.linalg.slogdet(total)[1]))
        x.append(mean + alpha * cov @ pull)
        score.append(-pull)
    share = np.exp(np.array(log_p) - max(log_p))
    share /= share.sum()
    return share @ np.array(x), share @ np.array(score)


@eqx.filter_jit
def predict(denoiser, z, logsnr, condition=None):
    def one(z, logsnr):
        found = denoiser(z, logsnr, condition)
        forms = {name: getattr(found, name).value for name in ("x", "eps", "v", "score")}
        return forms | {"alpha": found.level.alpha}

    return jax.vmap(one)(z, logsnr)


@pytest.mark.parametrize("precision", [32, 64])
def test_exact_denoisers_of_one_process_are_those_of_any_other(precision):
    rng = np.random.default_rng(0)
    logsnr = np.repeat([13.3, 2.0, -2.0, -10.0], 4)
    rho = np.exp(-logsnr / 2)[:, None]
    y = rng.uniform(-1, 1, (16, 2)) + rho * rng.standard_normal((16, 2))
    some, worst = tuple(PROCESSES[name] for name in ALPHAS), {}
    for source, target in itertools.permutations(range(len(some)), 2):
        name = list(ALPHAS)[target]
        alpha = ALPHAS[name](rho)
        both = [exact(*args) for args in zip(alpha * y, alpha, alpha * rho, strict=True)]
        x, score = (np.array(values) for values in zip(*both, strict=True))
        eps = -alpha * rho * score
        expected = {"x": x, "eps": eps, "score": score, "alpha": alpha[:, 0]}
        if name == "variance_preserving":
            expected["v"] = alpha * (eps - rho * x)
        with jax.enable_x64(precision == 64):
            process, to = (OneProcess(some, jnp.asarray(i)) for i in (source, target))
            moved = transport(mixture(process), to=to)
            found = predict(moved, jnp.asarray(alpha * y), jnp.asarray(logsnr))
            found = jax.tree.map(np.asarray, found)
        for key, value in expected.items():
            error = np.abs(found[key] - value) / np.maximum(1, np.abs(value))
            worst[key] = max(worst.get(key, 0.0), error.max())
    print(f"float{precision}:", *(f"{key} {value:.1e}" for key, value in worst.items()))
    # At logsnr -10 the data are the fifth digit of the latent.
    assert max(worst.values()) < (1e-10 if precision == 64 else 1e-4)


class Busy(dk.AbstractDenoiser):
    """Uses everything that it is given, and predicts a variance too."""

    process: dk.AbstractProcess

    def __call__(self, z, logsnr, condition=None, *, key=None):
        level = self.process.at(jnp.asarray(logsnr, float))
        eps = jnp.sin(z) + level.logsnr
        if condition is not None:
            eps = eps + condition
        if key is not None:
            eps = eps + jax.random.normal(key, z.shape)
        return dk.Prediction((z - level.sigma * eps) / level.alpha, eps, level, spread=jax.nn.sigmoid(z))


def test_condition_key_and_spread_are_handed_through():
    denoiser = Busy(dk.VarianceExploding())
    moved = transport(denoiser, to=PROCESSES["straight"])
    z, logsnr = jnp.array([0.3, -0.7]), -1.0
    ratio = ALPHAS["straight"](math.exp(0.5))
    seen = []
    for condition, key in itertools.product((None, jnp.array([0.5, 2.0])), (None, KEY)):
        expected = denoiser(z, logsnr, condition, key=key)
        found = moved(ratio * z, logsnr, condition, key=key)
        for name in ("x", "eps", "spread"):
            one, other = (np.asarray(getattr(p, name)) for p in (found, expected))
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        for one, other in zip(found.reverse(0.5), expected.reverse(0.5), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        seen.append(np.asarray(found.eps)[0])
    assert len(set(seen)) == 4


def test_a_condition_chooses_the_component():
    condition = jnp.array([0.0, 1.0])
    moved = transport(mixture(dk.VariancePreserving()), to=dk.VarianceExploding())
    alone = dk.analytic.gaussian(MEANS[1], COVS[1], process=dk.VarianceExploding())
    z, logsnr = jnp.array([[0.2, 0.4], [1.0, -1.0]]), jnp.array([1.0, -2.0])
    found, expected = predict(moved, z, logsnr, condition), predict(alone, z, logsnr)
    np.testing.assert_allclose(found["eps"], expected["eps"], rtol=1e-5, atol=1e-6)


def test_guidance_is_carried_over():
    condition = jnp.array([1.0, 0.0])
    guided, expected = (
        dk.Guided(mixture(PROCESSES[name]), 2.5, (-3.0, 3.0)) for name in ("sub_vp", "straight")
    )
    moved = transport(guided, to=PROCESSES["straight"])
    assert moved.process == PROCESSES["straight"]
    # The other way round: a transported denoiser is guided.
    inner = transport(mixture(PROCESSES["sub_vp"]), to=PROCESSES["straight"])
    again = dk.Guided(inner, 2.5, (-3.0, 3.0))
    # Within the interval, and beyond.
    z, logsnr = jnp.array([[0.2, 0.4], [1.0, -1.0]]), jnp.array([1.0, 5.0])
    there = predict(expected, z, logsnr, condition)
    for denoiser in (moved, again):
        found = predict(denoiser, z, logsnr, condition)
        for key in found:
            np.testing.assert_allclose(found[key], there[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="guidance needs a condition"):
        moved(z[0], 1.0)


def test_transport_does_not_pile_up_and_leads_back():
    denoiser = mixture(dk.VariancePreserving())
    once = transport(denoiser, to=dk.VarianceExploding())
    twice = transport(once, to=PROCESSES["straight"])
    assert isinstance(once, Transported)
    assert isinstance(twice, Transported)
    assert twice.denoiser is denoiser
    assert twice.process == PROCESSES["straight"]
    assert transport(twice, to=dk.VariancePreserving()) is denoiser
    assert transport(denoiser, to=dk.VariancePreserving()) is denoiser
    model = dk.DiffusionModel(once, dk.Cosine(), dk.GaussianDecoder(), (2,))
    back = transport(model, to=dk.VariancePreserving()).denoiser
    assert type(back) is type(denoiser)
    assert eqx.tree_equal(back, denoiser)


# ---------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------


def model_of(schedule=dk.LinearLogSNR(7.0, -5.0)):
    denoiser = mixture(dk.VariancePreserving())
    return dk.DiffusionModel(denoiser, schedule, dk.GaussianDecoder(), (2,))


def test_of_a_model_the_rest_is_kept():
    model = model_of()
    process, schedule = dk.VarianceExploding(), dk.Cosine(7.0, -5.0)
    moved = transport(model, to=process)
    assert moved.process == process
    assert moved.schedule == model.schedule
    assert moved.decoder == model.decoder
    assert moved.shape == model.shape
    other = transport(model, schedule=schedule)
    assert eqx.tree_equal(other.denoiser, model.denoiser)
    assert other.schedule == schedule
    both = transport(model, to=process, schedule=schedule)
    assert (both.process, both.schedule) == (process, schedule)
    assert model.process == dk.VariancePreserving()


def test_wrong_arguments_are_refused():
    model = model_of()
    for what in (model, model.denoiser):
        with pytest.raises(ValueError, match="needs to=, a process, or schedule=, got neither"):
            transport(what)
    with pytest.raises(ValueError, match=r"schedule is for a model: a denoiser .* has no schedule"):
        transport(model.denoiser, to=dk.VarianceExploding(), schedule=dk.Cosine())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="what"):
        transport(dk.VarianceExploding(), to=dk.VarianceExploding())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="to"):
        transport(model, to="variance_exploding")  # pyright: ignore[reportArgumentType]


MISMATCHES = {
    "beyond the data end": (
        (9.0, -5.0),
        r"data end: the schedule begins at logsnr 9, but the model was made for 7 and less\..*"
        r"never seen.*logsnr_max to 7, or ",
    ),
    # exp(-4 / 2) and exp(-7 / 2).
    "short of the data end": (
        (4.0, -5.0),
        r"data end: the schedule begins at logsnr 4, .* from there to 7 is lost: noise of 0\.14 stays "
        r"on the data, where it was 0\.03, and the reconstruction term",
    ),
    "beyond the noise end": (
        (7.0, -8.5),
        r"noise end: the schedule ends at logsnr -8\.5, but the model was made for -5 and more\..*"
        r"never seen.*logsnr_min to -5, or ",
    ),
    # exp(-2) and exp(-5).
    "short of the noise end": (
        (7.0, -2.0),
        r"noise end: the schedule ends at logsnr -2, .* from there to -5 is lost: .* signal-to-noise "
        r"ratio of 0\.14, where it had 0\.0067, the prior term",
    ),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_what_is_lost_at_an_end_is_said(case):
    ends, message = MISMATCHES[case]
    with pytest.warns(TransportWarning, match=message) as caught:
        moved = transport(model_of(), schedule=dk.Cosine(*ends))
    assert len(caught) == 1
    # It is said of the line that asked for it.
    assert caught[0].filename == __file__
    assert moved.schedule == dk.Cosine(*ends)
    assert range_losses((7.0, -5.0), ends) == (str(caught[0].message),)


def test_each_end_is_looked_at_by_itself():
    with pytest.warns(TransportWarning) as caught:
        transport(model_of(), to=dk.VarianceExploding(), schedule=dk.LinearLogSNR(9.0, -2.0))
    assert [str(warning.message).split(":")[0] for warning in caught] == ["data end", "noise end"]
    # What differs by less than the rounding of an endpoint is the same; warnings are errors here.
    transport(model_of(), schedule=dk.LinearLogSNR(7.0 + 5e-4, -5.0 - 5e-4))
    assert range_losses((7.0, -5.0), (7.0, -5.0)) == ()


def test_within_a_compiled_function():
    schedule = dk.get("schedule", "learned_linear")(9.0, -2.0)
    y = jnp.array([0.4, -0.2])

    @eqx.filter_jit
    def inside(model, schedule):
        # The endpoints are not known here, so that there is nothing to warn of.
        moved = transport(model, to=dk.VarianceExploding(), schedule=schedule)
        return moved.denoiser(y, moved.schedule(0.5)).x.value

    model = model_of()
    with pytest.warns(TransportWarning):
        moved = transport(model, to=dk.VarianceExploding(), schedule=schedule)
    expected = moved.denoiser(y, 3.5).x.value
    np.testing.assert_allclose(inside(model, schedule), expected, rtol=1e-5)


@pytest.mark.parametrize("parameterization", ["v", "epsilon_range"])
def test_loss_and_gradient_are_those_of_the_original(parameterization):
    # v is another target under another process, and predicted variances have a loss of their own: both
    # remain what the network was made for.
    with jax.enable_x64(True):
        # Twice as many outputs where half of them are variances.
        outputs = 2 if parameterization == "epsilon_range" else 1
        network = DoublePrecision(2, outputs=outputs, key=KEY)
        model = dk.preset(
            "vdm",
            schedule=("linear_logsnr", {"logsnr_max": 7.0}),
            parameterization=parameterization,
            network=network,
        ).model(shape=(2,), levels=8, key=KEY)
        # The variances are those of steps in time, so that the schedule matters to their loss.
        schedule = dk.Cosine(7.0, -5.0) if parameterization == "v" else model.schedule
        moved = transport(model, to=PROCESSES["sub_vp"], schedule=schedule)
        x = np.random.default_rng(0).integers(0, 8, (16, 2))

        @eqx.filter_jit
        @eqx.filter_value_and_grad
        def loss(model, times):
            options = {"weighting": dk.Sigmoid(), "time_sampler": times}
            return jnp.mean(dk.denoising_loss(model, x, key=KEY, **options))

        (value, own), (moved_value, shared) = (
            loss(m, canonical_time_sampling(dk.ELBO(), m.schedule)) for m in (model, moved)
        )
        own, shared = (
            jax.tree.map(np.asarray, jax.tree.leaves(network))
            for network in (own.denoiser.network, shared.denoiser.denoiser.network)
        )
    assert float(moved_value) == pytest.approx(float(value), rel=1e-12)
    for one, other in zip(own, shared, strict=True):
        assert np.abs(one).max() > 1e-6
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_the_weighting_of_a_target_stays_that_of_its_own_process():
    model = dk.preset("flow_matching", network=("mlp", {"width": 8, "depth": 1})).model(
        shape=(2,), levels=8, key=KEY
    )
    moved = transport(model, to=dk.VariancePreserving())
    own, other = (dk.part("weighting", "simple", model=m) for m in (model, moved))
    for logsnr in (-4.0, 0.0, 5.0):
        assert float(own(logsnr)) == float(other(logsnr))
