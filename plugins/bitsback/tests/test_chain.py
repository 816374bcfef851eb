"""The chain: bit for bit back, and the bits it takes against the bound of the same model."""

import contextlib
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffkit as dk
from diffkit.objectives import prior_term
from diffkit_bitsback.chain import Chain, _Batches
from diffkit_bitsback.errors import CannotEncode, DamagedData

slow = pytest.mark.slow
POINTS = np.random.default_rng(0).integers(0, 17, size=(8, 16), dtype=np.uint8)


def grid(model, steps, kind=dk.UniformT):
    return np.asarray(kind()(model.schedule, steps))[::-1]


def chain(model, steps, **options):
    return Chain(model, grid(model, steps), **options)


@functools.cache
def known():
    """The exact model of eight points with 16 dimensions of 17 levels."""
    decoder = dk.DiscretizedDecoder(levels=17)
    denoiser = dk.analytic.empirical(np.asarray(decoder.encode(POINTS)))
    return dk.DiffusionModel(denoiser, dk.LinearLogSNR(), decoder, (16,))


@functools.cache
def compiled():
    return chain(known(), 3, batch_size=4)


def known_chain(steps):
    """Of the known model, in batches of four, compiled once."""
    return compiled().with_logsnrs(grid(known(), steps))


def draws(count, seed=1):
    return POINTS[np.random.default_rng(seed).integers(0, len(POINTS), size=count)]


def untrained(preset, shape=(2, 3, 3), levels=256, **parts):
    # Initialised networks are zero at their outputs; these predict something.
    network = ("mlp", {"width": 8, "depth": 1})
    model = dk.preset(preset, **{"network": network} | parts).model(
        shape=shape, levels=levels, key=jax.random.key(0)
    )
    leaves, tree = jax.tree.flatten(model.denoiser.network)
    rng = np.random.default_rng(0)
    noisy = [
        leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
        if hasattr(leaf, "ndim") and leaf.ndim > 1
        else leaf
        for leaf in leaves
    ]
    network = jax.tree.unflatten(tree, noisy)
    return eqx.tree_at(lambda model: model.denoiser.network, model, network)


def noise(model, count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, model.decoder.levels, size=(count, *model.shape)).astype(
        np.min_scalar_type(model.decoder.levels - 1)
    )


def assert_round_trip(model, steps, images, **options):
    codec = chain(model, steps, **options)
    words, statistics = codec.encode(images)
    decoded = codec.decode(words, len(images))
    assert decoded.dtype == images.dtype
    np.testing.assert_array_equal(decoded, images)
    return codec, words, statistics


# iddpm predicts the spread of its steps.
@pytest.mark.parametrize("preset", ["iddpm", *(pytest.param(p, marks=slow) for p in ("edm", "vdm"))])
def test_round_trip_of_untrained_models(preset):
    model = untrained(preset)
    # Seven images in batches of three: the last batch is not full.
    _, _, statistics = assert_round_trip(model, 5, noise(model, 7), batch_size=3)
    assert statistics.dimensions == 7 * 18
    # However bad the model, no worse than its bound: far out, the code of a tail is the shorter one.
    assert statistics.overhead_bits_per_dim < 0.05


@slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    preset=st.sampled_from(["vdm", "ddpm", "edm", "iddpm", "rectified_flow", "ve_sde"]),
    shape=st.sampled_from([(1,), (5,), (1, 2, 3), (2, 2, 2)]),
    levels=st.sampled_from([2, 3, 17, 256, 300]),
    steps=st.integers(1, 30),
    batch_size=st.integers(1, 5),
    count=st.integers(0, 12),
    resolution=st.floats(0.5, 20),
)
def test_round_trip_of_anything(preset, shape, levels, steps, batch_size, count, resolution):
    model = untrained(preset, shape=shape, levels=levels)
    images = noise(model, count, seed=levels)
    with contextlib.ExitStack() as stack:
        if preset == "iddpm":
            # The spread that an untrained network predicts may be beyond float32.
            stack.enter_context(_refused("not finite"))
        assert_round_trip(model, steps, images, batch_size=batch_size, resolution=resolution)


@contextlib.contextmanager
def _refused(message):
    """The block passes, or raises this error."""
    try:
        yield
    except CannotEncode as error:
        if message not in str(error):
            raise


@slow
def test_round_trip_of_a_network_for_images():
    model = dk.preset("vdm").model(shape=(1, 8, 8), levels=17, key=jax.random.key(0))
    assert_round_trip(model, 10, noise(model, 5), batch_size=3)


@slow
def test_batch_size_and_resolution_are_free():
    images = draws(10)
    for options in ({"batch_size": 10}, {"batch_size": 1, "resolution": 9.0}):
        assert_round_trip(known(), 4, images, **options)


@pytest.mark.parametrize(
    ("steps", "count"),
    [(10, 1000), pytest.param(1000, 1000, marks=slow)],
)
def test_no_overhead_over_the_bound(steps, count):
    # Sixteen dimensions of each of many images; the coder's own loss is what is left of the stack's
    # growth after the densities of the very latents that were coded.
    images = draws(count)
    statistics = chain(known(), steps, batch_size=500).encode(images)[1]
    assert statistics.overhead_bits_per_dim < 5e-4
    if steps == 1000:
        # With few steps a latent may lie many standard deviations off, where the code of the tail is
        # shorter than the density's.
        assert statistics.overhead_bits_per_dim > -5e-4
    # And the bound along the latents is an estimate of the VLB with T steps.
    bound = jax.jit(lambda key: dk.vlb(known(), images, key=key, steps=steps).bits_per_dim.mean())
    values = [float(bound(key)) for key in jax.random.split(jax.random.key(0), 50)]
    error = np.std(values) * math.sqrt(1 + 1 / 50)
    assert statistics.bound_bits_per_dim == pytest.approx(np.mean(values), abs=5 * error)
    assert statistics.net_bits_per_dim == pytest.approx(np.mean(values), abs=5 * error + 5e-4)


def test_latents_are_random_however_bad_the_model_is():
    # Two steps from noise to data: the model hardly expects what it codes, and what that leaves on the
    # stack must not decide which latents are drawn next. Each noise is standard normal, the tails as well.
    codec = known_chain(2)
    noises, step = [], codec._step

    def watched(k, number):
        gaussians = step(k, number)
        pop = gaussians.pop

        def keep(stack):
            drawn = pop(stack)
            noises.append((drawn - gaussians._mean) / gaussians._std)
            return drawn

        gaussians.pop = keep
        return gaussians

    codec._step = watched
    codec.encode(draws(2000))
    z = np.concatenate(noises)
    assert z.size == 2 * 2000 * 16
    # Five standard errors: of the mean, of the variance, and of the fourth moment, 3 with variance 96.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs(np.mean(z**power) - expected) < 5 * math.sqrt(variance / z.size)


def test_initial_bits_are_those_of_one_latent():
    # Interleaved along the chain, they do not grow with T, and are the first batch's alone.
    few, many = (known_chain(steps).encode(draws(16))[1] for steps in (10, 100))
    for statistics in (few, many):
        # What y_0 and y_1 take: about 6 bits for each dimension of 4 images, and no more than 2 words.
        assert statistics.initial_bits < 7 * 4 * 16 + 64
        assert statistics.total_bits == statistics.initial_bits + statistics.net_bits
        assert 0 <= statistics.net_bits - statistics.pushed_bits <= 64
    assert few.initial_bits > 3 * 4 * 16


def test_a_small_first_batch_has_few_initial_bits():
    # The next batch has a quarter as many images as there were before, and one more.
    options = {"batch_size": 4, "logsnrs": grid(known(), 10)}
    whole, ramp = Chain(known(), **options), Chain(known(), first_batch=1, **options)
    ramp._compiled = whole._compiled
    images = noise(known(), 40)
    words, few = ramp.encode(images)
    np.testing.assert_array_equal(ramp.decode(words, 40), images)
    rows = _Batches(40, first_batch=1, batch_size=4)
    sizes = [each.stop - each.start for each in rows]
    assert list(reversed(rows)) == list(rows)[::-1]
    assert sum(len(images[each]) for each in rows) == 40
    assert sizes == [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 2]
    # These images pay back enough: the bits of the latents of one in place of four, and at most two words.
    many = whole.encode(images)[1]
    assert few.initial_bits <= many.initial_bits / 4 + 64
    # Other latents, the same bound.
    error = np.std(many.bounds - few.bounds) / math.sqrt(40)
    assert few.bounds.mean() == pytest.approx(many.bounds.mean(), abs=5 * error)


def one_dimension(steps, top=8.0, mean=0.2, variance=0.4):
    denoiser = dk.analytic.gaussian(np.array([mean]), np.array([[variance]]))
    decoder = dk.DiscretizedDecoder(levels=4)
    return dk.DiffusionModel(denoiser, dk.LinearLogSNR(top, -3.0), decoder, (1,))


def expected_cost(codec, stored):
    """E_q[log q - log p] over all points of the lattices of y_0 and y_1, by brute force (T = 1).

    The distributions are the codec's own; nothing is drawn.
    """
    first = codec._first(stored)
    reach = np.arange(-400, 401)
    k_0 = np.rint(first._mean).astype(int) + reach
    log_q0 = first.log_prob(k_0)
    y_0 = codec._spacing[0] * k_0
    log_x = codec._data_log_prob(y_0)[:, int(stored[0, 0])]
    k_1 = np.arange(-40, 41)
    mean, std = codec.reverse((codec._spacing[1] * k_1)[:, None], 1)
    log_p1 = codec._last(len(k_1)).log_prob(k_1)
    total = 0.0
    for k, log_q, log_data in zip(k_0, log_q0, log_x, strict=True):
        log_q1 = codec._step(np.array([k]), 1).log_prob(k_1)
        z = (codec._spacing[0] * k - mean[:, 0].astype(np.float64)) / float(std)
        log_p0 = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) + np.log(codec._spacing[0] / float(std))
        inner = np.exp(log_q1) * (log_q1 - log_p0 - log_p1)
        total += np.exp(log_q) * (log_q - log_data + inner.sum())
    return total


def bound_by_quadrature(model, stored):
    """The VLB with T = 1 in float64: closed forms of Gaussians, and a fine sum for the decoder."""
    top, bottom = (float(v) for v in model.schedule.endpoints)
    x = (2 * float(stored[0, 0]) + 1) / 4 - 1
    rho_0, rho_1 = math.exp(-top / 2), math.exp(-bottom / 2)
    prior = 0.5 * ((x**2 + rho_1**2) / (1 + rho_1**2) - 1 - math.log(rho_1**2 / (1 + rho_1**2)))
    # E[x | y_1] = m + v / (v + rho^2) (y_1 - m), so x - E[x | y_1] has this mean and variance.
    gain = 0.4 / (0.4 + rho_1**2)
    squared = ((1 - gain) * (x - 0.2)) ** 2 + (gain * rho_1) ** 2
    diffusion = 0.5 * (math.exp(top) - math.exp(bottom)) * squared
    y = x + rho_0 * np.linspace(-10, 10, 20_001)
    density = np.exp(-0.5 * ((y - x) / rho_0) ** 2)
    logits = -0.5 * ((y[:, None] - (2 * np.arange(4) + 1) / 4 + 1) / rho_0) ** 2
    log_p = logits[:, int(stored[0, 0])] - np.log(np.exp(logits).sum(axis=1))
    return prior + diffusion - (density * log_p).sum() / density.sum()


# At the first of these -log p(x | y_0) bends within three rho_0, at the other far off.
@pytest.mark.parametrize(("resolution", "top"), [(1.0, 5.0), (1.0, 8.0), (3.0, 8.0)])
def test_the_lattice_costs_nothing(resolution, top):
    # The whole expectation of what is coded, over every latent there is, is the VLB of the same model:
    # with T = 1, where steps are widest, and one point of the lattice to a standard deviation.
    model = one_dimension(1, top)
    codec = chain(model, 1, batch_size=801, resolution=resolution)
    for level in (0, 2):
        stored = np.array([[level]])
        expected = bound_by_quadrature(model, stored)
        assert expected_cost(codec, stored) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("preset", ["iddpm", pytest.param("vdm", marks=slow)])
def test_steps_are_those_of_the_bound(preset):
    # KL(q(y_s | y_t, x) || p(y_s | y_t)) from the codec's Gaussians is the discrete term of the bound.
    model, steps = untrained(preset, levels=17), 20
    codec = chain(model, steps, batch_size=1)
    stored = noise(model, 1)[0]
    x = model.decoder.encode(stored)
    bound = dk.DiffusionLoss(steps=steps, extra=False)
    term = jax.jit(lambda t, eps: bound.at(model, x[None], t[None], eps[None])[0])
    for step in (1, 10, 20):
        eps = jax.random.normal(jax.random.key(step), x.shape)
        rho_s, rho_t = np.exp(-codec._logsnrs[[step - 1, step]].astype(np.float64) / 2)
        y = np.asarray(x, np.float64) + rho_t * np.asarray(eps, np.float64)
        mean, std = codec.reverse(y.reshape(1, -1), step)
        shrink = (rho_s / rho_t) ** 2
        q_mean = shrink * y + (1 - shrink) * np.asarray(x, np.float64)
        variance_ratio = rho_s**2 * (1 - shrink) / std.astype(np.float64) ** 2
        z = (q_mean.ravel() - mean[0]) / std
        terms = z**2 + variance_ratio - 1 - np.log(variance_ratio) + np.zeros_like(z)
        # Times are rounded up to the next multiple of 1 / T above.
        expected = float(term(jnp.asarray((step - 0.5) / steps), eps)) / steps
        assert 0.5 * terms.sum() == pytest.approx(expected, rel=2e-3)
    # The last latent: KL(q(y_T | x) || p(y_T)).
    rho = math.exp(-float(codec._logsnrs[-1]) / 2)
    ratio = (rho / codec._prior) ** 2
    flat = np.asarray(x, np.float64).ravel()
    prior = 0.5 * np.sum((flat / codec._prior) ** 2 + ratio - 1 - math.log(ratio))
    assert prior == pytest.approx(float(prior_term(model, x)), rel=1e-3, abs=1e-3)


def test_forward_chain_has_the_marginal_of_the_process():
    codec = known_chain(50)
    variances = np.cumsum(codec._forward**2)
    np.testing.assert_allclose(variances, np.exp(-codec._logsnrs.astype(float)), rtol=1e-4)


def test_data_probabilities_are_the_decoder_s():
    model = known()
    y = np.linspace(-1.3, 1.3, 40)
    log_prob = known_chain(3)._data_log_prob(y)
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=1), 1, rtol=1e-5)
    level = model.level(0.0)
    one = jax.jit(jax.vmap(lambda v, x: model.decoder.log_prob(x, level.alpha * v, level)))
    for x in (0, 7, 16):
        each = one(jnp.asarray(y, jnp.float32)[:, None], jnp.full((40, 1), x))
        np.testing.assert_allclose(log_prob[:, x], each, rtol=1e-4, atol=1e-3)


def test_damaged_words_are_noticed():
    images = draws(6)
    codec = known_chain(3)
    words, _ = codec.encode(images)
    for position in range(0, len(words), 7):
        for wrong in (np.delete(words, position), np.append(words, np.uint32(position + 1))):
            with pytest.raises(DamagedData):
                codec.decode(wrong, 6)
        changed = words.copy()
        changed[position] ^= np.uint32(1 << position % 32)
        with pytest.raises(DamagedData):
            codec.decode(changed, 6)
    for count in (5, 7, 60):
        with pytest.raises(DamagedData):
            codec.decode(words, count)
    with pytest.raises(DamagedData, match="at least 2 words"):
        codec.decode(words[:1], 6)


def test_another_seed_is_noticed():
    words, _ = known_chain(3).encode(draws(4))
    other = known_chain(3)
    other._seed = 2
    with pytest.raises(DamagedData, match="do not end with the initial bits"):
        other.decode(words, 4)


def test_a_model_that_is_not_finite(monkeypatch):
    codec = known_chain(2)
    words, _ = codec.encode(draws(2))
    compiled_function = codec._compiled.reverse

    def broken(*arguments):
        mean, std = compiled_function(*arguments)
        return mean * jnp.nan, std

    monkeypatch.setattr(codec._compiled, "reverse", broken)
    with pytest.raises(CannotEncode, match="not finite"):
        codec.encode(draws(2))
    with pytest.raises(DamagedData, match="not finite"):
        codec.decode(words, 2)


def test_no_images():
    words, statistics = known_chain(3).encode(np.zeros((0, 16), np.uint8))
    assert known_chain(3).decode(words, 0).shape == (0, 16)
    assert len(words) <= 3
    assert statistics.images == statistics.dimensions == 0


def test_progress_reaches_the_number_of_images():
    told = []
    codec = known_chain(4)
    words, _ = codec.encode(draws(5), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 5
    told.clear()
    codec.decode(words, 5, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 5


def test_statistics_add_up():
    first, second = (known_chain(2).encode(draws(n))[1] for n in (3, 4))
    both = first + second
    assert both.images == 7
    assert both.net_bits == first.net_bits + second.net_bits
    assert len(both.bounds) == 7
    assert both.bound_bits == pytest.approx(first.bound_bits + second.bound_bits)
    assert both.total_bits_per_dim == pytest.approx(both.total_bits / (7 * 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logsnrs": np.array([1.0])}, "at least two finite numbers"),
        ({"logsnrs": np.array([1.0, 2.0])}, "strictly decreasing from the data end"),
        ({"logsnrs": np.array([1.0, np.nan])}, "at least two finite numbers"),
        ({"logsnrs": np.array([1.0, 1.0 - 1e-12])}, "in float32 too, got"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (
            {"batch_size": 4, "first_batch": 5},
            "first_batch must be from 1 to batch_size, which is 4",
        ),
        ({"first_batch": 0}, "first_batch must be from 1 to batch_size, which is 32, got 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"resolution": 0.1}, "resolution must be between 0.5 and 1024, got 0.1"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(CannotEncode, match=message):
        Chain(known(), **{"logsnrs": np.array([5.0, -2.0])} | options)


def test_continuous_data_are_refused():
    model = dk.DiffusionModel(known().denoiser, dk.LinearLogSNR(), dk.GaussianDecoder(), (16,))
    with pytest.raises(CannotEncode, match="must have a discrete decoder"):
        Chain(model, np.array([5.0, -2.0]))


def test_a_count_below_zero_is_refused():
    with pytest.raises(CannotEncode, match="count must be 0 or more, got -1"):
        known_chain(2).decode(np.ones(5, np.uint32), -1)


def test_wrong_images():
    codec = known_chain(2)
    with pytest.raises(CannotEncode, match=r"shape \(count, 16\), got \(2, 4\)"):
        codec.encode(np.zeros((2, 4), np.uint8))
    with pytest.raises(CannotEncode, match="levels from 0 to 16, got 0 to 17"):
        codec.encode(np.array([[0] * 15 + [17]]))
    with pytest.raises(CannotEncode, match="levels from 0 to 16, got -1 to 0"):
        codec.encode(np.array([[0] * 15 + [-1]]))
