"""The interior of a schedule follows the second moment of the loss, all else the loss (appendix I.2)."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
import diffkit_vdm
from diffkit.training import Objective
from diffkit.training.state import _transformation, follows_loss

# Weighted losses, other times, other targets, discrete time, endpoints that are fixed: all together once.
CASES = {
    "bound": {},
    "independent times": {"time_sampler": dk.Uniform()},
    "importance": {"time_sampler": "logit_normal"},
    "weighted": {"weighting": dk.Sigmoid(bias=1.0), "parameterization": dk.V()},
    "discrete": {"steps": 7, "parameterization": dk.X()},
    "fixed endpoints": {"learn_endpoints": False},
}


def make(minimise_variance: bool, *, parameterization=None, learn_endpoints=True):
    schedule = diffkit_vdm.LearnedMonotone(
        6.0,
        -5.0,
        hidden=8,
        learn_endpoints=learn_endpoints,
        minimise_variance=minimise_variance,
        key=jax.random.key(0),
    )
    # Far from the straight line.
    bent = jnp.log(jnp.linspace(0.1, 2.0, 8)).astype(schedule.interior.log_height.dtype)
    schedule = eqx.tree_at(lambda s: s.interior.log_height, schedule, bent)
    network = dk.networks.MLP((2,), width=8, depth=1, key=jax.random.key(1))
    denoiser = dk.Denoiser(network, parameterization or dk.Epsilon(), dk.VariancePreserving())
    model = dk.DiffusionModel(denoiser, schedule, dk.GaussianDecoder(), (2,))
    return jax.tree.map(lambda leaf: leaf.astype(float) if eqx.is_inexact_array(leaf) else leaf, model)


def mean_of(function, options):
    options = {k: v for k, v in options.items() if k in ("steps", "weighting", "time_sampler")}
    if options.get("time_sampler") == "logit_normal":
        options["time_sampler"] = dk.get("time_sampler", "logit_normal")()
    x = jax.random.normal(jax.random.key(3), (16, 2))

    @eqx.filter_jit
    def mean(model):
        return jnp.mean(function(dk.denoising_loss(model, x, key=jax.random.key(5), **options)))

    return mean


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_interior_follows_the_second_moment_and_all_else_the_loss(case):
    options = CASES[case]
    parts = {k: v for k, v in options.items() if k in ("parameterization", "learn_endpoints")}
    with jax.enable_x64(True):
        plain, minimising = make(False, **parts), make(True, **parts)
        loss, square = mean_of(lambda v: v, options), mean_of(jnp.square, options)
        value, gradient = eqx.filter_value_and_grad(loss)(minimising)
        expected, plain_gradient = eqx.filter_value_and_grad(loss)(plain)
        np.testing.assert_allclose(value, expected, rtol=1e-14)
        for ours, theirs in zip(
            jax.tree.leaves((gradient.denoiser, gradient.schedule.ends)),
            jax.tree.leaves((plain_gradient.denoiser, plain_gradient.schedule.ends)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)

        # Central differences of the second moment, along each of the interior's parameters.
        step = 1e-5
        for name in ("log_slope", "centre", "log_height"):
            where = lambda m, name=name: getattr(m.schedule.interior, name)  # noqa: E731
            for i in (0, 5):
                up, down = (
                    square(eqx.tree_at(where, plain, where(plain).at[i].add(sign * step)))
                    for sign in (1, -1)
                )
                difference = (up - down) / (2 * step)
                np.testing.assert_allclose(
                    where(gradient)[i], difference, rtol=1e-5, atol=1e-6 * abs(float(value))
                )
                if case == "bound":  # and it is another gradient than that of the loss
                    assert abs(where(plain_gradient)[i] - difference) > 1e-3 * abs(difference)


def test_in_float32_the_rest_is_equal_to_rounding():
    loss = mean_of(lambda v: v, {})
    value, gradient = eqx.filter_value_and_grad(loss)(make(True))
    expected, plain = eqx.filter_value_and_grad(loss)(make(False))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves((gradient.denoiser, gradient.schedule.ends)),
        jax.tree.leaves((plain.denoiser, plain.schedule.ends)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * float(jnp.max(jnp.abs(theirs))))


def test_the_network_appears_once_in_the_compiled_step():
    # Products of matrices of the network, forwards and backwards.
    x = jnp.zeros((16, 2))
    objective = Objective(dk.ELBO(), None)

    def products(model):
        params, rest = eqx.partition(model, dk.trainable(model))

        def loss(params):
            return objective(eqx.combine(params, rest), x, jax.random.key(0))[0]

        text = jax.jit(jax.value_and_grad(loss)).lower(params).as_text()
        return len(re.findall(r"stablehlo\.dot_general", text))

    assert products(make(True)) == products(make(False)) > 10


def test_clipping_leaves_the_other_gradients_alone():
    model = make(True)
    apart = follows_loss(model)
    assert jax.tree.leaves(apart.schedule.interior) == [False] * 3
    assert all(jax.tree.leaves((apart.denoiser, apart.schedule.ends)))
    assert all(jax.tree.leaves(follows_loss(make(False))))

    # The second moment may be a thousand times larger; the step of everything else does not notice.
    config = dk.TrainConfig(clip=0.1, warmup=0)
    params = eqx.filter(model, dk.trainable(model))
    gradient = jax.tree.map(jnp.ones_like, params)
    large = eqx.tree_at(lambda m: m.schedule.interior.centre, gradient, replace_fn=lambda b: 1e3 * b)
    optimiser = _transformation(config)
    steps = [optimiser.update(g, optimiser.init(params), params)[1] for g in (gradient, large)]
    plain, other = (jax.tree.leaves(s[1][0].mu.denoiser) for s in steps)
    for one, two in zip(plain, other, strict=True):
        np.testing.assert_array_equal(one, two)
    # It is one structure with clipping and without.
    without = _transformation(dk.TrainConfig(clip=0.0)).init(params)
    assert jax.tree.structure(without) == jax.tree.structure(optimiser.init(params))


def test_minimise_variance_needs_exact_endpoints():
    with pytest.raises(ValueError, match=r"minimise_variance=True needs normalize=True"):
        diffkit_vdm.LearnedMonotone(normalize=False, minimise_variance=True, key=jax.random.key(0))


def test_interior_comes_close_to_the_best_schedule():
    # A denoiser whose error has a known profile, r^2 = |eps - eps_hat|^2 = g(logsnr)^2 d: the best density
    # of logsnr is proportional to g^2, under which the loss of every draw is the same: no variance at all.
    class Wrong(dk.AbstractDenoiser):
        process: dk.AbstractProcess

        def __call__(self, z, logsnr, condition=None, *, key=None):
            level = self.process.at(logsnr)
            error = 0.3 + jnp.exp(-0.5 * jnp.square((logsnr - 1.0) / 1.5))
            # The data are zero: eps is known, and so its error can be set.
            eps = z / level.sigma + error
            return dk.Prediction((z - level.sigma * eps) / level.alpha, eps, level)

    schedule = diffkit_vdm.LearnedMonotone(
        8.0, -6.0, hidden=64, learn_endpoints=False, minimise_variance=True, key=jax.random.key(0)
    )
    model = dk.DiffusionModel(Wrong(dk.VariancePreserving()), schedule, dk.GaussianDecoder(), (2,))
    straight = eqx.tree_at(lambda m: m.schedule, model, dk.LinearLogSNR(8.0, -6.0))
    x = jnp.zeros((256, 2))

    @eqx.filter_jit
    def train(model):
        import optax

        params, rest = eqx.partition(model, dk.trainable(model))
        optimiser = optax.adam(optax.cosine_decay_schedule(2e-2, 3000))

        def step(carry, key):
            params, state = carry

            def loss(params):
                return jnp.mean(dk.denoising_loss(eqx.combine(params, rest), x, key=key))

            updates, state = optimiser.update(jax.grad(loss)(params), state)
            return (eqx.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(1), 3000)
        (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), keys)
        return eqx.combine(params, rest)

    def moments(model):
        loss = dk.denoising_loss(model, jnp.zeros((20_000, 2)), key=jax.random.key(2))
        return float(jnp.mean(loss)), float(jnp.mean(jnp.square(loss)))

    mean, second = moments(train(model))
    plain_mean, plain_second = moments(straight)
    assert mean == pytest.approx(plain_mean, rel=0.01)
    # The least second moment is mean^2.
    assert second < 1.05 * mean**2
    assert plain_second > 1.5 * mean**2


@pytest.mark.slow
def test_trained_interior_is_close_to_the_best_one_for_its_network():
    # The whole of training, on the swirl: lower than every fixed schedule, and near the least that the
    # network at the end allows.
    data = dk.data.Swirl()
    found = {}
    for name, schedule in (
        ("linear", "linear_logsnr"),
        ("cosine", "cosine"),
        ("learned", ("learned_monotone", {"minimise_variance": True})),
    ):
        model = dk.preset("vdm", network=("mlp", {"width": 64}), schedule=schedule).model(
            shape=data.shape, levels=data.levels, key=jax.random.key(0)
        )
        model = dk.fit(model, data, dk.TrainConfig(steps=3000), progress=False).model
        found[name] = dk.estimator_statistics(
            model, data.train, key=jax.random.key(1), time_sampler=dk.Uniform(), batches=2048
        )
    learned = found["learned"]
    assert learned.variance < found["linear"].variance
    assert learned.variance < found["cosine"].variance / 2
    assert learned.variance < 1.05 * learned.best_variance
