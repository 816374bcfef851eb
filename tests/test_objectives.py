"""The VLB against exact answers: entropies, quadrature, and its own invariances."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import known
import numpy as np
import pytest

import diffkit as dk
from diffkit.denoiser import step_divergence
from diffkit.presets import complete
from diffkit.processes import rescaled_posterior

ENDS = (11.0, -5.0)
PROCESSES = [complete(dk.get("process", n), {}) for n in dk.available("process")]


class Bent(dk.AbstractSchedule):
    """A schedule unlike the others: a cube in the middle."""

    def __call__(self, t):
        u = 2 * t - 1
        s = 0.5 + 0.4 * u**3 + 0.1 * u
        return (1 - s) * ENDS[0] + s * ENDS[1]

    def inverse(self, logsnr):
        raise AssertionError("not needed here")


SCHEDULES = {"linear": dk.LinearLogSNR(*ENDS), "cosine": dk.Cosine(*ENDS), "bent": Bent()}


def categorical_model(process, schedule):
    decoder = dk.DiscretizedDecoder(256)
    denoiser = dk.analytic.empirical(
        jnp.asarray(known.VALUES, jnp.float32)[:, None], known.P, process=process
    )
    return dk.DiffusionModel(denoiser, schedule, decoder, (1,))


@eqx.filter_jit
def estimate(model, x, key, steps=None, times=dk.LowDiscrepancy()):
    bound = dk.vlb(model, x, key=key, steps=steps, time_sampler=times)
    return bound.prior, bound.reconstruction, bound.diffusion


def draws(count, seed=0):
    """Examples with exactly the probabilities P: no sampling error of the data."""
    counts = np.round(known.P * count).astype(int)
    assert np.allclose(counts / count, known.P)
    return np.random.default_rng(seed).permutation(np.repeat(known.LEVELS, counts))[:, None]


def total_with_error(model, steps=None, batches=20, count=100_000):
    x = jnp.asarray(draws(count))
    totals = [float(sum(estimate(model, x, jax.random.key(100 + i), steps)).mean()) for i in range(batches)]
    return np.mean(totals), np.std(totals, ddof=1) / math.sqrt(batches)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_continuous_vlb_is_the_entropy_plus_known_ends(name, process, record_property):
    # By the I-MMSE relation the VLB of an exact denoiser is the entropy, plus what the prior and the
    # decoder cost: whatever the schedule and the process between the same endpoints.
    expected = known.ENTROPY + sum(known.gaps(ENDS))
    found, error = total_with_error(categorical_model(process, SCHEDULES[name]))
    print(f"{name}: {found:.5f} +- {error:.5f}, exact {expected:.5f} nats")
    record_property("vlb", float(found))
    assert error < 0.008
    # Five standard errors, estimated from 20 batches: false alarm about 1e-4.
    assert abs(found - expected) < 5 * error + 1e-4


def test_discrete_vlb_falls_towards_the_continuous_one():
    model = categorical_model(PROCESSES[0], SCHEDULES["linear"])
    continuous = known.ENTROPY + sum(known.gaps(ENDS))
    x = jnp.asarray(draws(20_000))
    prior, reconstruction, _ = estimate(model, x, jax.random.key(0))
    ends = float(prior.mean() + reconstruction.mean())
    exact = []
    for steps in (5, 20, 80):
        exact.append(known.discrete_diffusion(SCHEDULES["linear"], steps))
        totals = [float(estimate(model, x, jax.random.key(i), steps)[2].mean()) for i in range(20)]
        error = np.std(totals, ddof=1) / math.sqrt(20)
        assert np.mean(totals) == pytest.approx(exact[-1], abs=5 * error + 1e-3)
    assert exact[0] > exact[1] > exact[2] > continuous - ends - 1e-2
    assert exact[2] + ends == pytest.approx(continuous, rel=0.1)


def network_model(process=PROCESSES[0], schedule=SCHEDULES["linear"], part=dk.Epsilon()):
    built_for = {"levels": 17, "logsnr_range": ENDS}
    network = dk.networks.MLP((3,), width=8, depth=1, **built_for, key=jax.random.key(0))
    network = jax.tree.map(lambda a: a + 0.05 if eqx.is_array(a) else a, network)
    denoiser = dk.Denoiser(network, part, process)
    return dk.DiffusionModel(denoiser, schedule, dk.DiscretizedDecoder(17), (3,))


X = jnp.asarray([[0, 5, 16], [3, 3, 9]])


def test_the_process_does_not_matter():
    # The same network, noise and times: per example the same bound (VDM section 5.1).
    bounds = [dk.vlb(network_model(process), X, key=jax.random.key(1)) for process in PROCESSES]
    for bound in bounds[1:]:
        for term in ("prior", "reconstruction", "diffusion"):
            np.testing.assert_allclose(getattr(bound, term), getattr(bounds[0], term), rtol=2e-4, atol=1e-5)


def test_bits_per_dimension_and_total():
    bound = dk.VLB(jnp.array([1.0]), jnp.array([2.0]), jnp.array([3.0]), dimensions=4)
    assert float(bound.total[0]) == 6.0
    assert float(bound.bits_per_dim[0]) == pytest.approx(6.0 / (4 * math.log(2)))


class Twice(dk.AbstractWeighting):
    def __call__(self, logsnr):
        return 2.0 * jnp.ones_like(logsnr)


class Early(dk.AbstractTimeSampler):
    """Independent times with the density 2 (1 - t)."""

    def __call__(self, key, batch_size):
        t = 1 - jnp.sqrt(jax.random.uniform(key, (batch_size,), minval=1e-6))
        return t, 1 / jax.vmap(self.density)(t)

    def density(self, t):
        return 2 * (1 - t)


def test_weighting_scales_and_time_sampler_does_not():
    model, key = network_model(), jax.random.key(2)
    plain = dk.denoising_loss(model, X, key=key, inference=True)
    np.testing.assert_allclose(
        dk.denoising_loss(model, X, key=key, inference=True, weighting=Twice()), 2 * plain
    )
    np.testing.assert_allclose(dk.vlb(model, X, key=key).diffusion.shape, (2,))
    many = jnp.tile(X, (4000, 1))

    @eqx.filter_jit
    def mean(sampler, steps):
        loss = dk.denoising_loss(model, many, key=key, time_sampler=sampler, inference=True, steps=steps)
        return loss.mean(), loss.std() / math.sqrt(len(many))

    for steps in (None, 7):
        values = [mean(s, steps) for s in (dk.Uniform(), Early(), dk.LowDiscrepancy())]
        for value, error in values[1:]:
            # Five joint standard errors: false alarm below 1e-6.
            assert abs(value - values[0][0]) < 5 * np.hypot(error, values[0][1])


def test_dropout_only_while_training():
    network = dk.networks.MLP((3,), width=8, depth=1, dropout=0.5, key=jax.random.key(0))
    network = jax.tree.map(lambda a: a + 0.3 if eqx.is_array(a) else a, network)
    model = eqx.tree_at(lambda m: m.denoiser.network, network_model(), network)
    key = jax.random.key(3)
    calm = dk.denoising_loss(model, X, key=key, inference=True)
    assert not np.allclose(dk.denoising_loss(model, X, key=key), calm)
    np.testing.assert_allclose(dk.vlb(model, X, key=key).total, dk.vlb(model, X, key=key).total)


def test_numpy_integers_are_data_too():
    model, key = network_model(), jax.random.key(4)
    stored = np.asarray(X, dtype=np.uint8)
    np.testing.assert_allclose(
        dk.vlb(model, stored, key=key).total, dk.vlb(model, X, key=key).total, rtol=1e-6
    )


def test_wrong_data_are_refused_by_name():
    model, key = network_model(), jax.random.key(0)
    with pytest.raises(ValueError, match=r"x must be a batch of examples of shape \(3,\)"):
        dk.vlb(model, jnp.zeros((2, 4), int), key=key)
    with pytest.raises(ValueError, match="steps must be at least 1, or None"):
        dk.vlb(model, X, key=key, steps=0)


@pytest.mark.parametrize("spread", [None, jnp.asarray([0.0, 0.4, 1.0, 1.3])])
def test_the_divergence_of_a_step_is_that_of_its_gaussians(spread):
    """What the bound counts is KL of the very Gaussians by which steps are sampled and coded."""
    rng = np.random.default_rng(0)
    x, eps, error = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    logsnr_t, logsnr_s = jnp.asarray(-1.0), jnp.asarray(0.7)
    level = dk.VariancePreserving().at(logsnr_t)
    y = x + level.rho * eps
    found = dk.Prediction(y - level.rho * (eps + error), eps + error, level, spread=spread)
    q_mean, q_std = map(np.float64, rescaled_posterior(y, x, logsnr_t, logsnr_s))
    p_mean, p_std = map(np.float64, found.reverse(logsnr_s))
    expected = np.sum(
        np.log(p_std / q_std) + (q_std**2 + (q_mean - p_mean) ** 2) / (2 * p_std**2) - np.full(4, 0.5)
    )
    divergence = step_divergence(jnp.square(error), logsnr_t, logsnr_s, spread)
    assert float(divergence) == pytest.approx(expected, rel=1e-5)


class Given(dk.data.AbstractDataset):
    """A source as data of 17 levels, whatever it holds."""

    train: dk.data.ArraySource
    test: dk.data.ArraySource
    levels: int | None
    shape: tuple[int, ...]

    def __init__(self, source):
        self.train = self.test = source
        self.levels, self.shape = 17, source.shape


@pytest.mark.parametrize(
    ("stored", "error", "message"),
    [
        (np.full((2, 1, 2, 2), 17, np.uint8), ValueError, "levels=17; got values from 17 to 17"),
        (np.full((2, 1, 2, 2), -3), ValueError, "got values from -3 to -3"),
        (np.zeros((2, 1, 2, 2), np.float32), TypeError, "integers from 0 to 16, .* got float32"),
    ],
)
def test_data_that_the_decoder_does_not_code_are_refused(stored, error, message):
    model = dk.preset("vdm", network=("mlp", {"width": 8})).model(
        shape=(1, 2, 2), levels=17, key=jax.random.key(0)
    )
    with pytest.raises(error, match=message):
        dk.vlb(model, jnp.asarray(stored), key=jax.random.key(0))
    source = dk.data.ArraySource(stored)
    with pytest.raises(error, match=message):
        dk.evaluate(model, source, key=jax.random.key(0))
    # Before training all of the data are looked at, and named.
    with pytest.raises((error, ValueError), match="Given: train"):
        dk.fit(model, Given(source), dk.TrainConfig(steps=1, batch_size=2), progress=False)
