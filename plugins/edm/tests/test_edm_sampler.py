"""Heun with churn against algorithm 2 of the paper, on a Gaussian, in float64."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
import diffkit_edm

MEAN, STD = np.array([0.7, -0.3]), 0.5
ENDS = (-2 * np.log(0.002), -2 * np.log(80.0))


def denoise(y, logsnr):
    """The exact denoiser of N(MEAN, STD^2), in whichever precision it is asked."""
    level = dk.VarianceExploding().at(logsnr)
    share = STD**2 / (STD**2 + level.sigma**2)
    x = MEAN + share * (y - MEAN)
    return dk.Prediction(x, (y - x) / level.sigma, level)


def predicted(y, sigma):
    """The same in numpy: D(y; sigma)."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (y - MEAN)


def algorithm_2(y, sigmas, noises, *, churn, churn_min, churn_max, noise):
    """Algorithm 2 of Karras et al. 2022, without its last step, from sigma_min to 0."""
    N = len(sigmas)
    for i in range(N - 1):
        inside = churn_min <= sigmas[i] <= churn_max
        gamma = min(churn / N, np.sqrt(2) - 1) if inside else 0.0
        raised = sigmas[i] + gamma * sigmas[i]
        y = y + np.sqrt(raised**2 - sigmas[i] ** 2) * noise * noises[i]
        slope = (y - predicted(y, raised)) / raised
        euler = y + (sigmas[i + 1] - raised) * slope
        slope_there = (euler - predicted(euler, sigmas[i + 1])) / sigmas[i + 1]
        y = y + (sigmas[i + 1] - raised) * (slope + slope_there) / 2
    return y


def rho_grid(N, rho=7.0):
    """Equation 5: N noise levels, the last of which is sigma_min."""
    i = np.arange(N)
    return (80 ** (1 / rho) + i / (N - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho


def run(sampler, logsnr, y, keys=None):
    """All steps, in one scan."""

    def body(y, at):
        step = functools.partial(sampler.step, denoise, y)
        return step(at[0], at[1], None, at[2] if keys is not None else None)

    logsnr = jnp.asarray(logsnr)
    each = (logsnr[:-1], logsnr[1:]) + (() if keys is None else (keys,))
    return np.asarray(jax.jit(lambda y: jax.lax.scan(body, y, each)[0])(y))


@pytest.mark.parametrize(
    "options",
    [
        {"churn": 30.0, "churn_min": 0.01, "churn_max": 1.0, "noise": 1.007},  # table 5, VP
        {"churn": 3.0, "churn_min": 0.0, "churn_max": np.inf, "noise": 1.0},
        {"churn": 80.0, "churn_min": 0.0, "churn_max": 60.0, "noise": 1.0},  # gamma at its cap
        {"churn": 0.0, "churn_min": 0.0, "churn_max": np.inf, "noise": 1.0},
    ],
)
def test_on_the_rho_grid_it_is_algorithm_2(options):
    N = 24
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), N - 1)
        noises = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
        y = MEAN + 80 * np.array([0.3, -1.1])
        sampler = diffkit_edm.edm_heun(**options)
        assert sampler.stochastic == (options["churn"] > 0)
        logsnr = -2 * np.log(rho_grid(N))
        found = run(sampler, logsnr, jnp.asarray(y), keys if sampler.stochastic else None)
        expected = algorithm_2(y, rho_grid(N), np.asarray(noises), **options)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.all(np.abs(found - MEAN) < 5 * STD)


def test_without_churn_the_order_is_2():
    # The flow map of the Gaussian is affine: golden/samplers.md.
    sampler = diffkit_edm.edm_heun()
    assert (sampler.order, sampler.calls, sampler.stochastic) == (2, 2, False)
    y = MEAN + 80 * np.array([1.0, -0.4])
    exact = MEAN + (y - MEAN) * np.sqrt((STD**2 + 0.002**2) / (STD**2 + 80**2))
    errors = []
    with jax.enable_x64(True):
        for steps in (40, 80, 160):
            logsnr = -2 * np.log(rho_grid(steps + 1))
            errors.append(np.abs(run(sampler, logsnr, jnp.asarray(y)) - exact).max())
    orders = np.log2(np.array(errors)[:-1] / errors[1:])
    assert np.all((orders > 1.8) & (orders < 2.3)), orders
    assert errors[-1] < 4e-4


def with_noise(sampler, noise):
    """The same sampler with other noise: `noise` 0 raises the level and adds nothing."""
    return eqx.tree_at(lambda s: s.noise, sampler, noise)


def moments(sampler, logsnr):
    """Mean and variance that a sampler makes of N(MEAN, STD^2 + 80^2), exactly, from its affine steps."""
    key = jax.random.key(0)
    normal = jax.random.normal(key, (2,))

    @jax.jit
    @jax.vmap
    def affine(logsnr_t, logsnr_s):
        def step(y, part):
            return part.step(denoise, y, logsnr_t, logsnr_s, None, key)[0]

        silent = with_noise(sampler, 0.0)
        at_mean = step(jnp.asarray(MEAN), silent)
        slope = (step(jnp.asarray(MEAN) + 1, silent) - at_mean)[0]
        return at_mean - MEAN, slope, ((step(jnp.asarray(MEAN), sampler) - at_mean) / normal)[0]

    shifts, slopes, scales = map(np.asarray, affine(jnp.asarray(logsnr[:-1]), jnp.asarray(logsnr[1:])))
    variance = STD**2 + np.exp(-logsnr[0])
    for slope, scale in zip(slopes, scales, strict=True):
        variance = slope**2 * variance + scale**2
    return np.abs(shifts).max(), variance


@pytest.mark.parametrize("grid", ["rho", "uniform_logsnr"])
def test_with_churn_the_bias_falls_at_order_2(grid):
    sampler = diffkit_edm.edm_heun(churn=10.0)
    biases = []
    with jax.enable_x64(True):
        for steps in (160, 320, 640):
            logsnr = (
                -2 * np.log(rho_grid(steps + 1))
                if grid == "rho"
                else np.linspace(ENDS[1], ENDS[0], steps + 1)
            )
            shift, variance = moments(sampler, logsnr)
            assert shift < 1e-9  # the mean stays where it is
            biases.append(variance / (STD**2 + 0.002**2) - 1)
    orders = np.log2(np.array(biases)[:-1] / biases[1:])
    assert np.all((orders > 1.7) & (orders < 2.4)), (orders, biases)
    assert abs(biases[-1]) < 2e-3


def test_the_same_noise_in_all_on_every_grid():
    # What a step is raised by is a rate: the sum of gamma over a part of the way is the same on every
    # grid, and over the whole way it is churn.
    sampler = diffkit_edm.edm_heun(churn=2.0)
    grids = {
        "rho": -2 * np.log(rho_grid(2001)),
        "logsnr": np.linspace(ENDS[1], ENDS[0], 8001),
    }
    totals = {}
    with jax.enable_x64(True):
        for name, logsnr in grids.items():
            gamma = jax.vmap(sampler.raised)(jnp.asarray(logsnr[:-1]), jnp.asarray(logsnr[1:]))
            totals[name] = [
                float(jnp.sum(gamma[(logsnr[1:] > a) & (logsnr[1:] <= b)]))
                for a, b in ((-20, 20), (-20, -2), (-2, 5), (5, 20))
            ]
    assert totals["rho"][0] == pytest.approx(2.0 * 2000 / 2001, rel=1e-9)
    np.testing.assert_allclose(totals["logsnr"], totals["rho"], rtol=5e-3)


def test_noise_is_added_between_the_bounds_only():
    sampler = diffkit_edm.edm_heun(churn=1e6, churn_min=0.05, churn_max=1.0)
    sigma = np.array([1.01, 0.99, 0.051, 0.049])
    logsnr = jnp.asarray(-2 * np.log(sigma), jnp.float32)
    gamma = jax.vmap(lambda at: sampler.raised(at, at + 0.1))(logsnr)
    np.testing.assert_allclose(gamma, [0, np.sqrt(2) - 1, np.sqrt(2) - 1, 0], rtol=1e-6)


def test_samples_of_a_gaussian_have_its_moments():
    # Through the loop, under another process, with the ends of a schedule that is not EDM's.
    process = dk.VariancePreserving()
    model = dk.DiffusionModel(
        dk.analytic.gaussian(MEAN, STD**2 * np.eye(2), process=process),
        dk.LinearLogSNR(12.0, -9.0),
        dk.GaussianDecoder(),
        (2,),
    )
    sampler = dk.part("sampler", ("edm_heun", {"churn": 20.0}), model=model)
    assert sampler.logsnr_range == (12.0, -9.0)
    grid = dk.part("grid", "rho", model=model)
    count = 8000
    draw = functools.partial(dk.sample, model, sampler, count, steps=100, grid=grid)
    x = np.asarray(draw(key=jax.random.key(0)))
    np.testing.assert_allclose(x.mean(axis=0), MEAN, atol=4 * STD / np.sqrt(count))
    np.testing.assert_allclose(x.std(axis=0), STD, rtol=4 / np.sqrt(2 * count))


def test_float32_keeps_up_with_float64_at_640_steps():
    N = 641
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), N - 1)
        noises = np.asarray(
            jax.vmap(lambda key: jax.random.normal(key, (2,), jnp.float32))(keys), np.float64
        )
    y = (MEAN + 80 * np.array([0.3, -1.1])).astype(np.float32)
    options = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "noise": 1.003}
    grid = diffkit_edm.RhoGrid()(diffkit_edm.LogNormal(), N - 1)
    found = run(diffkit_edm.edm_heun(**options), grid, jnp.asarray(y), keys)
    expected = algorithm_2(y.astype(np.float64), rho_grid(N), noises, **options)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_churn_goes_around_any_deterministic_sampler():
    churn = diffkit_edm.Churn(dk.samplers.DDIM(), 5.0)
    assert (churn.order, churn.calls, churn.stochastic) == (1, 1, True)
    assert churn.init(jnp.zeros(2)) is None


def test_wrong_arguments_are_refused():
    make = diffkit_edm.edm_heun
    with pytest.raises(ValueError, match="sampler must be deterministic and of one step, got Ancestral"):
        diffkit_edm.Churn(dk.samplers.Ancestral())
    with pytest.raises(ValueError, match="of one step, got Multistep"):
        diffkit_edm.Churn(dk.get("sampler", "multistep")())
    with pytest.raises(ValueError, match="churn must be a number of at least 0, got -1"):
        make(churn=-1.0)
    with pytest.raises(ValueError, match="noise must be a number of at least 0, got nan"):
        make(noise=float("nan"))
    with pytest.raises(ValueError, match=r"churn_min=2\.0, churn_max=1\.0"):
        make(churn_min=2.0, churn_max=1.0)
    with pytest.raises(ValueError, match=r"rho must be a number of at least 1, got 0\.5"):
        make(rho=0.5)
    with pytest.raises(ValueError, match=r"logsnr_range must be \(max, min\), got \(-8.0, 12.0\)"):
        make(logsnr_range=(-8.0, 12.0))
