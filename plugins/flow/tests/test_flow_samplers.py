"""Euler and midpoint against the same methods in (z, t), written in numpy in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import diffkit as dk
import diffkit_flow

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[1.0, -0.5], [-0.6, 0.8]])
STD = 0.3


def velocity(z, tau):
    """E[eps - x | z] of a mixture of two normals under z = (1 - tau) x + tau eps."""
    alpha = 1 - tau
    variance = alpha**2 * STD**2 + tau**2
    offset = z - alpha * MEANS
    log_share = np.log(WEIGHTS) - 0.5 * (offset**2).sum(axis=1) / variance
    share = np.exp(log_share - log_share.max())
    share = share / share.sum()
    x = share @ (MEANS + alpha * STD**2 / variance * offset)
    return (z - alpha * x) / tau - x


def step_euler(z, tau, step):
    return z + step * velocity(z, tau)


def step_midpoint(z, tau, step):
    return z + step * velocity(z + 0.5 * step * velocity(z, tau), tau + 0.5 * step)


STRAIGHT = diffkit_flow.Straight()


def mixture():
    covariances = np.stack([STD**2 * np.eye(2)] * 2)
    return dk.analytic.mixture(WEIGHTS, MEANS, covariances, process=STRAIGHT)


def run(sampler, taus, z, exact):
    """The sampler of diffkit in the rescaled latent, under the straight path."""

    def denoise(y, logsnr):
        return exact(STRAIGHT.at(logsnr).alpha * y, logsnr)

    logsnr = jnp.asarray(2 * (np.log1p(-taus) - np.log(taus)))

    def body(y, at):
        y, _ = sampler.step(denoise, y, at[0], at[1], None, None)
        return y, STRAIGHT.at(at[1]).alpha * y

    start = jnp.asarray(z / (1 - taus[0]))
    _, zs = jax.jit(lambda y: jax.lax.scan(body, y, (logsnr[:-1], logsnr[1:])))(start)
    return np.asarray(zs)


@pytest.mark.parametrize(("name", "step"), [("euler", step_euler), ("midpoint", step_midpoint)])
def test_it_is_the_method_in_z_and_t(name, step):
    # Steps that are not even, and none so long that the midpoint rule would take two of Euler's instead.
    taus = 0.96 - 0.84 * np.linspace(0, 1, 16) ** 1.3
    z = np.array([1.2, -0.4])
    expected = []
    at = z
    for here, there in itertools.pairwise(taus):
        at = step(at, here, there - here)
        expected.append(at)
    sampler = dk.get("sampler", name)()
    assert not sampler.stochastic
    with jax.enable_x64(True):
        found = run(sampler, taus, z, mixture())
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    in_float32 = run(sampler, taus, z.astype(np.float32), mixture())
    np.testing.assert_allclose(in_float32, expected, atol=3e-5)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2)])
def test_order(name, order):
    sampler = dk.get("sampler", name)()
    assert sampler.order == order
    assert sampler.calls == order
    z, (first, last) = np.array([1.2, -0.4]), (0.99, 0.02)
    exact = integrate.solve_ivp(
        lambda tau, z: velocity(z, tau), (first, last), z, method="DOP853", rtol=1e-12, atol=1e-13
    ).y[:, -1]
    errors = []
    with jax.enable_x64(True):
        for steps in (80, 160, 320):
            found = run(sampler, np.linspace(first, last, steps + 1), z, mixture())[-1]
            errors.append(np.linalg.norm(found - exact))
    orders = np.log2(np.array(errors)[:-1] / errors[1:])
    assert np.all(np.abs(orders - order) < 0.15), orders


def test_midpoint_is_lucky_on_one_gaussian():
    # Of data that are one isotropic normal, the standard deviation along the path is the root of a
    # quadratic in tau, and then the terms of order 2 in the midpoint rule's error cancel, whatever the
    # ends of the path. The measured order is 3, which says nothing of other data.
    mean, std, (first, last) = np.array([0.7, -0.3]), 0.5, (0.9, 0.05)
    z = np.array([1.0, -0.4])
    growth = np.hypot(last, (1 - last) * std) / np.hypot(first, (1 - first) * std)
    exact = (1 - last) * mean + (z - (1 - first) * mean) * growth
    errors = []
    with jax.enable_x64(True):
        gaussian = dk.analytic.gaussian(mean, std**2 * np.eye(2), process=STRAIGHT)
        for steps in (40, 80, 160):
            taus = np.linspace(first, last, steps + 1)
            errors.append(np.abs(run(diffkit_flow.midpoint(), taus, z, gaussian)[-1] - exact).max())
    orders = np.log2(np.array(errors)[:-1] / errors[1:])
    assert np.all(np.abs(orders - 3) < 0.2), orders


def test_names_are_special_cases_of_parts_of_the_core():
    assert dk.get("sampler", "euler")() == dk.samplers.DDIM()
    assert dk.get("sampler", "midpoint")() == dk.samplers.RungeKutta2(form="velocity", node=0.5)
