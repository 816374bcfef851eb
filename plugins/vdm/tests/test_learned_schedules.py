"""The learned schedules: exact endpoints while training, monotone, and separable gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffkit as dk
import diffkit_vdm


def model_with(schedule):
    network = dk.networks.MLP((2,), width=16, depth=1, key=jax.random.key(0))
    denoiser = dk.Denoiser(network, dk.Epsilon(), dk.VariancePreserving())
    return dk.DiffusionModel(denoiser, schedule, dk.DiscretizedDecoder(256), (2,))


def train(model, steps, learning_rate=1e-2):
    """Plain training in discrete time, where the bound moves the interior of the schedule too."""
    x = jnp.asarray(dk.data.Swirl().train.gather(np.arange(64)))
    optimiser = optax.adam(learning_rate)

    @eqx.filter_jit
    def run(model):
        params, rest = eqx.partition(model, dk.trainable(model))

        def loss(params, key):
            return dk.vlb(eqx.combine(params, rest), x, key=key, steps=8).total.mean()

        def step(carry, key):
            params, state = carry
            gradient = jax.grad(loss)(params, key)
            updates, state = optimiser.update(gradient, state)
            params = eqx.apply_updates(params, updates)
            schedule = eqx.combine(params, rest).schedule
            ends = jnp.stack([*schedule.endpoints, *_ends(schedule)])
            return (params, state), ends

        keys = jax.random.split(jax.random.key(1), steps)
        (params, _), ends = jax.lax.scan(step, (params, optimiser.init(params)), keys)
        return eqx.combine(params, rest), ends

    return run(model)


def _ends(schedule):
    ends = schedule.ends
    return ends.get().values() if isinstance(ends, dk.Buffer) else ends.values()


@pytest.mark.parametrize("learn_endpoints", [True, False])
def test_endpoints_are_exact_at_every_step_and_the_curve_is_strictly_monotone(learn_endpoints):
    schedule = diffkit_vdm.LearnedMonotone(learn_endpoints=learn_endpoints, key=jax.random.key(2))
    assert schedule.interior.log_slope.shape == (1024,)
    trained, ends = train(model_with(schedule), 200)
    # The schedule at 0 and 1 against the parameters of the endpoints, after each of 200 steps.
    np.testing.assert_allclose(ends[:, :2], ends[:, 2:], rtol=2e-7)
    after = jax.jit(jax.vmap(trained.schedule))(jnp.linspace(0.0, 1.0, 10_000))
    before = jax.jit(jax.vmap(schedule))(jnp.linspace(0.0, 1.0, 10_000))
    assert np.all(np.diff(after) < 0)

    # Training did move the interior: the curve between the ends is another one.
    def position(curve):
        return (curve - curve[0]) / (curve[-1] - curve[0])

    assert np.abs(position(after) - position(before)).max() > 0.01
    moved = np.abs(ends[-1, :2] - np.array([13.3, -5.0], np.float32)).max()
    assert (moved > 1e-3) == learn_endpoints


def test_gradients_of_endpoints_and_interior_are_separate():
    schedule = diffkit_vdm.LearnedMonotone(hidden=16, key=jax.random.key(3))
    for t, slope in ((0.0, (1.0, 0.0)), (1.0, (1.0, -1.0))):
        gradient = jax.grad(lambda s, t=t: s(t))(schedule)
        # At the ends the interior has no influence at all.
        for leaf in jax.tree.leaves(gradient.interior):
            np.testing.assert_allclose(leaf, 0.0, atol=1e-6)
        np.testing.assert_allclose([gradient.ends.start, gradient.ends.gap], slope, atol=1e-6)
    inside = jax.grad(lambda s: s(0.4))(schedule)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(inside.interior)) > 1e-3
    position = float((13.3 - schedule(0.4)) / 18.3)
    np.testing.assert_allclose([inside.ends.start, inside.ends.gap], [1.0, -position], rtol=1e-4)


def test_network_is_the_formula_of_appendix_h():
    # Three linear layers with positive weights, in float64: h = t + w3 . tanh((w2 u + b) / 2) / n.
    network = diffkit_vdm.MonotoneNetwork(8, key=jax.random.key(4))
    logs, centre = (network.log_slope, network.log_height), np.asarray(network.centre, np.float64)
    w2, w3 = (np.exp(np.asarray(log, np.float64)) for log in logs)
    for t in (0.0, 0.3, 1.0):
        sigmoid = 1 / (1 + np.exp(-(w2 * (2 * t - 1) - w2 * centre)))
        expected = t + (w3 * (2 * sigmoid - 1)).mean()
        assert float(network(jnp.asarray(t))) == pytest.approx(expected, rel=1e-5)


def test_monotone_whatever_the_weights():
    rng = np.random.default_rng(0)
    for seed in range(5):
        schedule = diffkit_vdm.LearnedMonotone(hidden=32, key=jax.random.key(seed))
        schedule = eqx.tree_at(
            lambda s: s.interior,
            schedule,
            jax.tree.map(
                lambda a: jnp.asarray(rng.normal(size=a.shape) * 5, jnp.float32), schedule.interior
            ),
        )
        curve = jax.vmap(schedule)(jnp.linspace(0.0, 1.0, 2001))
        assert np.all(np.diff(curve) < 0)
        np.testing.assert_allclose(
            [curve[0], curve[-1]], [float(v) for v in schedule.ends.values()], rtol=2e-7
        )


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="logsnr_max must be finite and greater"):
        diffkit_vdm.LearnedLinear(-5.0, 13.3)
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        diffkit_vdm.LearnedMonotone(hidden=0, key=jax.random.key(0))


def test_inverse_has_the_derivatives_of_the_inverse():
    # A bisection has none; these are by finite differences in float64.
    with jax.enable_x64(True):
        schedule = diffkit_vdm.LearnedMonotone(6.0, -5.0, hidden=8, key=jax.random.key(0))

        def time(start, height, logsnr):
            where = lambda s: (s.ends.start, s.interior.log_height)  # noqa: E731
            return eqx.tree_at(where, schedule, (start, height)).inverse(logsnr)

        arguments = (schedule.ends.start, schedule.interior.log_height, jnp.asarray(1.5))
        by_start, by_height, by_logsnr = jax.grad(time, argnums=(0, 1, 2))(*arguments)
        step = 1e-6

        def difference(index, change):
            moved = [list(arguments), list(arguments)]
            moved[0][index], moved[1][index] = (
                arguments[index] + change,
                arguments[index] - change,
            )
            return (time(*moved[0]) - time(*moved[1])) / (2 * step)

        assert jnp.allclose(by_start, difference(0, step), rtol=1e-6)
        assert jnp.allclose(by_logsnr, difference(2, step), rtol=1e-6)
        for i in range(3):
            change = step * jnp.eye(8)[i]
            assert jnp.allclose(by_height[i], difference(1, change), rtol=1e-5, atol=1e-9)


def test_truncated_learned_schedule_has_fixed_ends():
    # The ends are given numbers, whatever the parameters: no gradient; in between as finite differences.
    with jax.enable_x64(True):
        learned = diffkit_vdm.LearnedMonotone(8.0, -7.0, hidden=8, key=jax.random.key(0))
        truncated = dk.Truncated(learned, 6.0, -5.0)

        def logsnr(start, t):
            return eqx.tree_at(lambda s: s.schedule.ends.start, truncated, start)(t)

        slope = jax.grad(logsnr)
        assert abs(slope(learned.ends.start, 0.0)) < 1e-9
        assert abs(slope(learned.ends.start, 1.0)) < 1e-9
        up, down = (logsnr(learned.ends.start + d, 0.3) for d in (1e-6, -1e-6))
        assert jnp.allclose(slope(learned.ends.start, 0.3), (up - down) / 2e-6, rtol=1e-5, atol=1e-9)
