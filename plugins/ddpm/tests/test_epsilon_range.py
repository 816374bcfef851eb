"""Learned variances against equation 15 of improved DDPM and the Gaussian divergence, in plain numpy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import diffkit as dk
import diffkit_ddpm

X, EPS = np.array([0.7, -0.4]), np.array([0.3, 1.1])
SHIFT, RAW = np.array([0.2, -0.1]), np.array([-0.3, 0.5])
GAIN = 0.6


class Line(dk.networks.AbstractNetwork):
    """eps_hat = gain z + shift; beside it, if there are any, the raw positions of the variances."""

    gain: Array
    shift: Array
    raw: Array | None

    def __call__(self, z, logsnr, condition=None, *, key=None):
        eps = self.gain * z + self.shift
        return eps if self.raw is None else jnp.concatenate([eps, self.raw])


def make(schedule, raw=None, *, shift=SHIFT, steps=4, vlb_weight=0.001):
    part = dk.Epsilon()
    if raw is not None:
        part = diffkit_ddpm.EpsilonRange(steps=steps, vlb_weight=vlb_weight)
    raw = None if raw is None else jnp.asarray(raw)
    network = Line(jnp.asarray(GAIN), jnp.asarray(shift), raw, outputs=part.outputs)
    denoiser = dk.Denoiser(network, part, dk.VariancePreserving())
    return dk.DiffusionModel(denoiser, schedule, dk.GaussianDecoder(), (2,))


def losses(model, t, x=X, eps=EPS, **options):
    """The losses at these times, in the dtype of `t`."""
    x, eps = (jnp.broadcast_to(jnp.asarray(each, t.dtype), (len(t), 2)) for each in (x, eps))
    return dk.DiffusionLoss(**options).at(model, x, t, eps)


class Chain:
    """DDPM as its paper writes it: x_k from x_{k-1}, one step of the chain at a time."""

    def __init__(self, betas):
        self.betas, self.alpha_bar = betas, np.cumprod(1 - betas)

    def step(self, k, x, eps, raw, shift=SHIFT):
        """From level k to k - 1: the latent, means and variances of q and of p."""
        beta, bar, before = self.betas[k], self.alpha_bar[k], self.alpha_bar[k - 1]
        z = np.sqrt(bar) * x + np.sqrt(1 - bar) * eps
        # DDPM equations 6 and 7, and 11; improved DDPM equation 15.
        q_mean = np.sqrt(before) * beta / (1 - bar) * x
        q_mean = q_mean + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * z
        beta_tilde = (1 - before) / (1 - bar) * beta
        eps_hat = GAIN * z + shift
        p_mean = (z - beta / np.sqrt(1 - bar) * eps_hat) / np.sqrt(1 - beta)
        v = (raw + 1) / 2
        p_variance = np.exp(v * np.log(beta) + (1 - v) * np.log(beta_tilde))
        return z, (q_mean, beta_tilde), (p_mean, p_variance), np.log(beta / beta_tilde)

    def divergence(self, k, x, eps, raw):
        """KL(q || p) of two Gaussians, summed over dimensions, in nats."""
        _, (q_mean, q_variance), (p_mean, p_variance), _ = self.step(k, x, eps, raw)
        terms = np.log(p_variance / q_variance) - 1
        terms = terms + (q_variance + (q_mean - p_mean) ** 2) / p_variance
        return 0.5 * terms.sum()


SMALL = Chain(np.linspace(0.05, 0.4, 5))


def small_schedule():
    return diffkit_ddpm.linear_beta(steps=5, beta_start=0.05, beta_end=0.4)


def test_bound_is_the_gaussian_divergence():
    expected = [4 * SMALL.divergence(k, X, EPS, RAW) for k in range(1, 5)]
    with jax.enable_x64(True):
        model = make(small_schedule(), RAW)
        t = (jnp.arange(1, 5) - 0.5) / 4
        found = jax.jit(lambda t: losses(model, t, steps=4, extra=False))(t)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_bound_at_both_ends_in_float32():
    # DDPM's own 1000 levels: log SNR from 9.2 to -10.1, steps from 0.8 down to 0.006 long.
    chain, levels = Chain(np.linspace(1e-4, 0.02, 1000)), np.array([1, 2, 50, 300, 700, 999])
    expected = [999 * chain.divergence(k, X, EPS, RAW) for k in levels]
    model = make(diffkit_ddpm.linear_beta(), RAW.astype(np.float32), steps=999)
    t = jnp.asarray((levels - 0.5) / 999, jnp.float32)
    found = jax.jit(lambda t: losses(model, t, steps=999, extra=False))(t)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_ancestral_step_has_the_predicted_variance():
    key = jax.random.key(3)
    with jax.enable_x64(True):
        noise = np.asarray(jax.random.normal(key, (2,)))

        @eqx.filter_jit
        def sample_step(model, sampler, z, k):
            level_t, level_s = model.level(k / 4), model.level((k - 1) / 4)

            def denoise(y, logsnr):
                return model.denoiser(model.process.at(logsnr).alpha * y, logsnr)

            y, state = z / level_t.alpha, sampler.init(z)
            y, _ = sampler.step(denoise, y, level_t.logsnr, level_s.logsnr, state, key)
            return level_s.alpha * y

        for raw, model, sampler in (
            (RAW, make(small_schedule(), RAW), dk.samplers.Ancestral()),
            # DDPM's two fixed variances, section 3.2: small is the posterior's, large is beta.
            (-1.0, make(small_schedule()), dk.samplers.Ancestral()),
            (1.0, make(small_schedule()), dk.samplers.Ancestral(spread=1.0)),
        ):
            for k in (1, 4):
                z, _, (mean, variance), _ = SMALL.step(k, X, EPS, raw)
                found = sample_step(model, sampler, jnp.asarray(z), jnp.asarray(float(k)))
                np.testing.assert_allclose(found, mean + np.sqrt(variance) * noise, rtol=1e-9)


def test_hybrid_loss_and_its_stopped_mean():
    weight, bits = 0.3, np.log(2)
    with jax.enable_x64(True):

        def loss(network, model, t):
            model = eqx.tree_at(lambda m: m.denoiser.network, model, network)
            return losses(model, t[None], weighting=weighting)[0]

        def bound(network, model, t):
            model = eqx.tree_at(lambda m: m.denoiser.network, model, network)
            return losses(model, t[None] - 0.125, steps=4, extra=False)[0]

        model = make(small_schedule(), RAW, vlb_weight=weight)
        without = make(small_schedule(), RAW, vlb_weight=0.0)
        weighting = dk.part("weighting", "simple", model=model)
        evaluate = eqx.filter_jit(eqx.filter_value_and_grad(loss))
        derivative = eqx.filter_jit(eqx.filter_grad(bound))
        assert isinstance(model.denoiser, dk.Denoiser)
        network = model.denoiser.network
        for k in (1, 4):
            t = jnp.asarray(k / 4)
            value, gradient = evaluate(network, model, t)
            plain, plain_gradient = evaluate(network, without, t)
            z, (q_mean, q_var), (p_mean, p_var), log_range = SMALL.step(k, X, EPS, RAW)
            # Equation 16, in squared error and bits: L_simple + weight T KL.
            squares = ((EPS - GAIN * z - SHIFT) ** 2).sum()
            assert float(plain) == pytest.approx(squares, rel=1e-8)
            hybrid = squares + weight / bits * 4 * SMALL.divergence(k, X, EPS, RAW)
            assert float(value) == pytest.approx(hybrid, rel=1e-8)
            # The mean learns from L_simple alone, though the bound itself would move it.
            for name in ("gain", "shift"):
                np.testing.assert_allclose(
                    getattr(gradient, name), getattr(plain_gradient, name), rtol=1e-12
                )
            moved = derivative(network, model, t)
            assert abs(float(moved.gain)) > 1e-3
            # The variance learns from the bound alone: d KL / d v times d v / d raw = 1/2.
            slope = 0.5 * log_range * (1 - (q_var + (q_mean - p_mean) ** 2) / p_var)
            np.testing.assert_allclose(gradient.raw, weight / bits * 4 * slope / 2, rtol=1e-8)
            np.testing.assert_array_equal(plain_gradient.raw, 0.0)


class Levels(dk.AbstractTimeSampler):
    """The times (k - back) / 4 of k = 1, ..., 4."""

    back: float = 0.0

    def __call__(self, key, batch_size):
        return (jnp.arange(1, batch_size + 1) - self.back) / 4, jnp.ones(batch_size)

    def density(self, t):
        return jnp.ones_like(t)


def test_in_discrete_time_the_variances_learn_from_the_hybrid_term_alone():
    x = jnp.asarray(np.tile(X, (4, 1)), jnp.float32)

    @eqx.filter_jit
    def learn(network, model, steps, weighting, back):
        def loss(network):
            return dk.denoising_loss(
                eqx.tree_at(lambda m: m.denoiser.network, model, network),
                x,
                key=jax.random.key(0),
                weighting=weighting,
                time_sampler=Levels(back),
                steps=steps,
            ).sum()

        return eqx.filter_value_and_grad(loss)(network)

    with_term = make(small_schedule(), RAW.astype(np.float32), vlb_weight=0.3)
    without = make(small_schedule(), RAW.astype(np.float32), vlb_weight=0.0)
    assert isinstance(without.denoiser, dk.Denoiser)
    network = without.denoiser.network
    simple = dk.part("weighting", "simple", model=without)
    learnt = []
    for weighting in (simple, dk.ELBO()):
        _, gradient = learn(network, without, 4, weighting, 0.5)
        np.testing.assert_array_equal(gradient.raw, 0.0)
        assert abs(float(gradient.gain)) > 1e-2
        learnt.append(learn(network, with_term, 4, weighting, 0.5))
    # What they learn from the term does not depend on the loss beside it.
    assert np.all(np.abs(learnt[0][1].raw) > 1e-3)
    np.testing.assert_allclose(learnt[1][1].raw, learnt[0][1].raw, rtol=1e-5)
    # Another weighting than the bound's is the loss in continuous time, at the discrete times.
    value, gradient = learn(network, with_term, None, simple, 0.0)
    np.testing.assert_allclose(learnt[0][0], value, rtol=1e-5)
    np.testing.assert_allclose(learnt[0][1].raw, gradient.raw, rtol=1e-5)


def test_denoising_loss_is_the_hybrid_one():
    # The same times and noises with and without the bound's weight: the difference is its share.
    x = jnp.asarray(np.tile(X, (64, 1)), jnp.float32)

    plain = make(small_schedule())
    weighting = dk.part("weighting", "simple", model=plain)

    @eqx.filter_jit
    def loss(model):
        return dk.denoising_loss(model, x, key=jax.random.key(0), weighting=weighting)

    raw = RAW.astype(np.float32)
    learned = [make(small_schedule(), raw, vlb_weight=weight) for weight in (1.0, 2.0)]
    once, twice = (np.asarray(loss(model) - loss(plain)) for model in learned)
    assert np.all(once > 1e-3)
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-3)


@pytest.mark.slow
def test_spread_0_is_the_plain_model():
    x, key = jnp.asarray([[0.7, -0.4], [0.1, 2.0], [-1.0, 0.3]], jnp.float32), jax.random.key(1)
    shift = SHIFT.astype(np.float32)
    plain = make(small_schedule(), shift=shift)
    learned = make(small_schedule(), -np.ones(2, np.float32), shift=shift)

    @eqx.filter_jit
    def bounds(model):
        return [dk.vlb(model, x, key=key, steps=steps).total for steps in (4, None)]

    def samples(model, spread):
        return dk.sample(model, dk.samplers.Ancestral(spread=spread), 3, key=key, steps=4)

    for found, expected in zip(bounds(learned), bounds(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    # The sampler's own spread is for models that predict none.
    small = samples(learned, 0.5)
    np.testing.assert_allclose(small, samples(plain, 0.0), rtol=1e-6, atol=1e-6)
    largest = eqx.tree_at(lambda m: m.denoiser.network.raw, learned, jnp.ones(2))
    large = samples(largest, 0.5)
    np.testing.assert_allclose(large, samples(plain, 1.0), rtol=1e-6, atol=1e-6)
    assert np.abs(large - small).max() > 0.01


class StandardNormal(dk.networks.AbstractNetwork):
    """The exact eps for standard normal data, sigma z, with the forward step's variance."""

    def __call__(self, z, logsnr, condition=None, *, key=None):
        return jnp.concatenate([jnp.sqrt(jax.nn.sigmoid(-logsnr)) * z, jnp.ones_like(z)])


def test_forward_variance_is_exact_for_standard_normal_data():
    # The reverse step is then the true one, and its mean divergence is what z_s knows of x beyond z_t:
    # I(x; z) = 1/2 log(1 + SNR) for each dimension.
    with jax.enable_x64(True):
        model = make(small_schedule(), RAW)
        network = StandardNormal(outputs=2)
        model = eqx.tree_at(lambda m: m.denoiser.network, model, network)
        bar, before = SMALL.alpha_bar[1::3], SMALL.alpha_bar[0:4:3]
        # The divergence is linear in the squared error, whose mean alpha^2 these two have.
        x, eps = (np.tile(part, (2, 1)).T for part in (-np.sqrt(1 - bar), np.sqrt(bar)))
        t = jnp.asarray([0.125, 0.875])
        found = jax.jit(lambda t: losses(model, t, x, eps, steps=4, extra=False))(t)
    known_s, known_t = -np.log(1 - before), -np.log(1 - bar)
    np.testing.assert_allclose(found, 4 * (known_s - known_t), rtol=1e-9)


def test_a_network_of_one_output_is_refused():
    line = Line(jnp.asarray(GAIN), jnp.asarray(SHIFT), None)
    message = r"network must have outputs=2, as parameterization EpsilonRange asks, but Line has outputs=1"
    with pytest.raises(ValueError, match=message):
        dk.Denoiser(line, diffkit_ddpm.EpsilonRange(), dk.VariancePreserving())
    with pytest.raises(ValueError, match=message):
        dk.preset("iddpm", network=line).model(shape=(2,), key=jax.random.key(0))


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        diffkit_ddpm.EpsilonRange(steps=0)
    with pytest.raises(ValueError, match=r"vlb_weight must be a number of at least 0, got -1\.0"):
        diffkit_ddpm.EpsilonRange(vlb_weight=-1.0)
