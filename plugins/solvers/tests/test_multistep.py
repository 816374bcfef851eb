"""The multistep machine: orders of convergence, published coefficients, long steps, noise, float32."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import diffkit as dk
import diffkit_solvers as solvers
from diffkit.presets import complete

# The problems: from rho = 80 to rho = 0.002, as in the benchmark.
RHO = (80.0, 0.002)
ENDS = tuple(-2 * np.log(RHO))
MEAN, STD = np.array([0.7, -0.3]), 0.5
ANGLES = 2 * np.pi * np.arange(8) / 8
MODES, WIDTH = np.sqrt(2) * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1), 0.1
PROCESSES = [complete(dk.get("process", name), {}) for name in dk.available("process")]
MOST = 640

NAMED = {
    "dpmpp_2m": solvers.dpmpp_2m(),
    "dpmpp_3m": solvers.dpmpp_3m(),
    "unipc": solvers.unipc(),
    "deis": solvers.deis(),
    "ab_v": solvers.ab_v(),
    "multistep": solvers.Multistep(),
    "heun": solvers.heun(),
}
named = pytest.mark.parametrize("name", NAMED)


class Chosen(dk.AbstractProcess):
    """One of all processes, chosen by a traced index: one compilation serves them all."""

    index: jax.Array

    def at(self, logsnr):
        branches = [lambda value, p=p: p.at(value).alpha for p in PROCESSES]
        logsnr = jnp.asarray(logsnr)
        alpha = jax.lax.switch(self.index, branches, logsnr)
        return dk.NoiseLevel(logsnr, alpha, alpha * jnp.exp(-logsnr / 2))


def integrate(sampler, denoiser, start, grid, steps):
    """From given points over the first `steps` steps of a grid, by a plain loop."""

    def denoise(y, logsnr):
        return denoiser(denoiser.process.at(logsnr).alpha * y, logsnr)

    grid = jnp.asarray(grid)

    def body(i, carry):
        def step(y, state, key):
            key = jax.random.fold_in(key, i) if sampler.stochastic else None
            return sampler.step(denoise, y, grid[i], grid[i + 1], state, key)

        y, state = carry
        return jax.vmap(step)(y, state, keys)

    keys = jax.random.split(jax.random.key(0), len(start))
    return jax.lax.fori_loop(0, steps, body, (start, jax.vmap(sampler.init)(start)))[0]


run = eqx.filter_jit(integrate)


def gaussian(index=0):
    """N(MEAN, STD^2) as eight equal components, so that it shares its compilation with the mixture."""
    covs = np.broadcast_to(STD**2 * np.eye(2), (8, 2, 2))
    means = np.broadcast_to(MEAN, (8, 2))
    return dk.analytic.mixture(np.ones(8), means, covs, process=Chosen(jnp.asarray(index)))


def mixture():
    covs = np.broadcast_to(WIDTH**2 * np.eye(2), (8, 2, 2))
    return dk.analytic.mixture(np.ones(8), MODES, covs, process=Chosen(jnp.asarray(0)))


NORMAL = np.random.default_rng(0).standard_normal((24, 2))
GAUSSIAN_START = MEAN + NORMAL * np.hypot(STD, RHO[0])
MIXTURE_START = NORMAL * np.sqrt(1 + WIDTH**2 + RHO[0] ** 2)


def gaussian_map(y, logsnr_t, logsnr_s):
    """The affine map of the probability-flow ODE of a Gaussian."""
    return MEAN + (y - MEAN) * np.sqrt((STD**2 + np.exp(-logsnr_s)) / (STD**2 + np.exp(-logsnr_t)))


@pytest.fixture(scope="module")
def mixture_end():
    """Where the probability-flow ODE takes MIXTURE_START: SciPy's DOP853, on a denoiser in NumPy.

    In logsnr and u = y / sqrt(1 + rho^2), with du/dlogsnr from dy/dlogsnr = -(y - E[x | y]) / 2.
    """

    def derivative(logsnr, u):
        rho2 = np.exp(-logsnr)
        y = u.reshape(-1, 2) * np.sqrt(1 + rho2)
        delta = y[:, None] - MODES
        log_p = -0.5 * np.sum(delta**2, axis=-1) / (WIDTH**2 + rho2)
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        x = (WIDTH**2 * y + rho2 * (p @ MODES)) / (WIDTH**2 + rho2)
        return (0.5 * (x - y / (1 + rho2)) / np.sqrt(1 + rho2)).ravel()

    start = (MIXTURE_START / np.hypot(1, RHO[0])).ravel()
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13}
    solution = scipy.integrate.solve_ivp(derivative, ENDS, start, **options)
    return solution.y[:, -1].reshape(-1, 2) * np.hypot(1, RHO[1])


def uniform(steps, ends=ENDS):
    return np.linspace(ends[0], ends[1], steps + 1)


def karras(steps):
    roots = np.linspace(RHO[0] ** (1 / 7), RHO[1] ** (1 / 7), steps + 1)
    return -14 * np.log(roots)


def follow(sampler, denoiser, start, grid):
    """From the start points along the whole grid. Padded, so that all grids share one compilation."""
    padded = jnp.asarray(np.pad(grid, (0, MOST + 1 - len(grid)), mode="edge"))
    steps = jnp.asarray(len(grid) - 1)
    return np.asarray(run(sampler, denoiser, jnp.asarray(start), padded, steps))


def error(sampler, denoiser, start, end, grid):
    return np.sqrt(np.mean((follow(sampler, denoiser, start, grid) - end) ** 2))


def slope(errors):
    """The order that errors at doubled numbers of steps show."""
    return float(np.log2(errors[0] / errors[-1])) / (len(errors) - 1)


@named
def test_order_of_convergence_under_every_process(name, mixture_end):
    sampler = NAMED[name]
    end = gaussian_map(GAUSSIAN_START, *ENDS)
    with jax.enable_x64(True):
        for index in range(len(PROCESSES)):
            found = slope(
                [
                    error(sampler, gaussian(index), GAUSSIAN_START, end, uniform(steps))
                    for steps in (320, 640)
                ]
            )
            # Some are of higher order on a Gaussian, where the error is odd in logsnr.
            assert found > sampler.order - 0.2, (name, PROCESSES[index])
        for grid in (uniform, karras):
            steps = (80, 160, 320) if name in ("unipc", "multistep") else (320, 640)
            found = slope([error(sampler, mixture(), MIXTURE_START, mixture_end, grid(n)) for n in steps])
            assert found > sampler.order - 0.2
            # With a corrector the range in which the order is seen is narrow: next comes the start's.
            assert len(steps) > 2 or found < sampler.order + 0.2


@pytest.mark.parametrize("points", [1, 2])
def test_unipc_of_order_p_converges_with_order_p_plus_1(points, mixture_end):
    sampler = solvers.unipc(order=points)
    assert sampler.order == points + 1
    with jax.enable_x64(True):
        end = gaussian_map(GAUSSIAN_START, *ENDS)
        problems = [
            (gaussian(), GAUSSIAN_START, end, uniform),
            (mixture(), MIXTURE_START, mixture_end, karras),
        ]
        for denoiser, start, goal, grid in problems:
            found = slope([error(sampler, denoiser, start, goal, grid(steps)) for steps in (320, 640)])
            assert found == pytest.approx(points + 1, abs=0.25)


@pytest.mark.parametrize("name", ["dpmpp_3m", "deis", "ab_v", "multistep"])
def test_a_start_in_the_middle_costs_no_order_up_to_three(name):
    # The first step, of order 1, would leave an error of order 2 were it not corrected.
    ends = (-3.0, 8.0)
    with jax.enable_x64(True):
        end = gaussian_map(NORMAL, *ends)
        errors = [error(NAMED[name], gaussian(), NORMAL, end, uniform(steps, ends)) for steps in (80, 320)]
    assert slope([errors[0], np.nan, errors[1]]) > 2.7


def test_one_point_is_ddim():
    grid = uniform(12)
    with jax.enable_x64(True):
        ddim = follow(dk.samplers.DDIM(), mixture(), MIXTURE_START, grid)
        for form in ("eps", "x"):
            sampler = solvers.Multistep(form=form, points=1, corrector=False)
            y = follow(sampler, mixture(), MIXTURE_START, grid)
            np.testing.assert_allclose(y, ddim, rtol=1e-12, atol=1e-12)


class Prescribed(dk.AbstractDenoiser):
    """Noise that depends on the noise level alone: quadrature, with the weights laid bare."""

    process: dk.AbstractProcess = dk.VarianceExploding()

    def __call__(self, z, logsnr, condition=None, *, key=None):
        level = self.process.at(logsnr)
        eps = jnp.cos(3 * level.rho) * jnp.ones_like(z)
        return dk.Prediction(z - level.rho * eps, eps, level)


@pytest.mark.parametrize("corrector", [False, True])
def test_weights_in_equal_steps_are_the_textbook_ones(corrector):
    # Adams-Bashforth and Adams-Moulton (Hairer, Norsett and Wanner, section III.1).
    bashforth = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12]]
    moulton = [[1 / 2, 1 / 2], [5 / 12, 8 / 12, -1 / 12], [9 / 24, 19 / 24, -5 / 24, 1 / 24]]
    rho = np.linspace(2.0, 1.0, 9)
    q, h = np.cos(3 * rho), rho[1] - rho[0]
    sampler = solvers.Multistep(form="eps", variable="rho", points=3, corrector=corrector)
    expected = 0.0
    for n in range(8):
        order = min(n + 1, 3)
        predicted = expected + h * np.dot(bashforth[order - 1], q[n::-1][:order])
        # Without a corrector only the very first step is corrected, for the sake of the start; the last
        # never is, since no value of q is known at its end.
        if (corrector or n == 0) and n < 7:
            weights = moulton[order - 1]
            expected += h * np.dot(weights, q[n + 1 :: -1][: order + 1])
        else:
            expected = predicted
    with jax.enable_x64(True):
        grid = jnp.asarray(-2 * np.log(rho))
        y = integrate(sampler, Prescribed(), jnp.zeros((1, 1)), grid, 8)
    np.testing.assert_allclose(y, expected, rtol=1e-11)


def predicted_data(y, logsnr):
    """E[x | y] of the Gaussian."""
    rho2 = np.exp(-logsnr)
    return (STD**2 * y + rho2 * MEAN) / (STD**2 + rho2)


UNEVEN = np.cumsum([-4.0, 0.5, 0.7, 0.6, 0.9, 0.5, 0.65])


def test_2m_is_the_published_algorithm():
    # Algorithm 2 of arXiv 2211.01095 with alpha = 1: half logsnr there is h here.
    y, old, last = NORMAL, None, 1.0
    for t, s in itertools.pairwise(UNEVEN):
        h, x = (s - t) / 2, predicted_data(y, t)
        direction = x if old is None else (1 + h / (2 * last)) * x - h / (2 * last) * old
        y = np.exp(-h) * y - np.expm1(-h) * direction
        old, last = x, h
    with jax.enable_x64(True):
        found = follow(NAMED["dpmpp_2m"], gaussian(), NORMAL, UNEVEN)
    np.testing.assert_allclose(found, y, rtol=1e-12)


def test_3m_is_the_published_formula_with_the_whole_second_derivative():
    # The appendix of arXiv 2211.01095, alpha = 1, with D2 twice what the formula has there.
    def step(y, t, s, values, lengths):
        h = (s - t) / 2
        p1, p2 = -np.expm1(-h), np.exp(-h) + h - 1
        d0 = values[0]
        if len(values) == 1:
            return np.exp(-h) * y + p1 * d0
        r0 = lengths[-1] / h
        d1 = (values[0] - values[1]) / r0
        if len(values) == 2:
            return np.exp(-h) * y + p1 * d0 + p2 / h * d1
        r1 = lengths[-2] / h
        other = (values[1] - values[2]) / r1
        first = d1 + r0 / (r0 + r1) * (d1 - other)
        second = 2 * (d1 - other) / (r0 + r1)
        p3 = h**2 / 2 - h + 1 - np.exp(-h)
        return np.exp(-h) * y + p1 * d0 + p2 / h * first + p3 / h**2 * second

    y, values, lengths = NORMAL, [], []
    for t, s in itertools.pairwise(UNEVEN):
        x = predicted_data(y, t)
        if len(values) == 1:  # the start: the first step again as the exponential trapezoid
            h = lengths[0]
            y = y + (np.exp(-h) + h - 1) / h * (x - values[0])
        values = [x, *values][:3]
        y = step(y, t, s, values, lengths)
        lengths.append((s - t) / 2)
    with jax.enable_x64(True):
        found = follow(NAMED["dpmpp_3m"], gaussian(), NORMAL, UNEVEN)
    np.testing.assert_allclose(found, y, rtol=1e-11)


@pytest.mark.parametrize("variable", ["logsnr", "rho", "kappa"])
@pytest.mark.parametrize("form", dk.samplers.FORMS)
def test_four_points_integrate_cubics_exactly_in_every_form_and_variable(form, variable):
    # A cubic in the variable as the quantity; the increment of the last step against SciPy's quad.
    forms, rho = dk.samplers.FORMS, lambda logsnr: np.exp(-logsnr / 2)
    kappas = {
        "x": lambda r: 1 / r,
        "eps": lambda r: r,
        "v": np.arctan,
        "velocity": lambda r: r / (1 + r),
    }
    kappa = kappas[form]
    tau = {"logsnr": lambda r: -2 * np.log(r), "rho": lambda r: r, "kappa": kappa}[variable]
    nodes, coefficients = np.array([-1.0, -0.6, -0.25, 0.0, 0.2]), [0.3, -1.0, 0.7, 0.9]
    start = 0.4

    with jax.enable_x64(True):
        history = [np.polyval(coefficients, tau(rho(value))) for value in nodes[:4]]
        sampler = solvers.Multistep(form=form, variable=variable, points=4, corrector=False)
        state = sampler.init(jnp.zeros(()))
        state = eqx.tree_at(
            lambda s: (s.quantities, s.logsnr, s.count),
            state,
            (
                tuple(jnp.asarray(value) for value in history[2::-1]),
                jnp.asarray(nodes[2::-1]),
                jnp.asarray(3),
            ),
        )

        def denoise(y, logsnr):
            # x and eps with y = x + rho eps and the wanted quantity, by solving for x.
            level = dk.VarianceExploding().at(logsnr)

            def quantity(x):
                return forms[form].quantity(dk.Prediction(x, (y - x) / level.rho, level))

            zero, one = quantity(jnp.zeros(())), quantity(jnp.ones(()))
            if form == "eps":
                x = y - level.rho * history[3]
            else:
                x = (history[3] - zero) / (one - zero)
            return dk.Prediction(x, (y - x) / level.rho, level)

        y, _ = sampler.step(
            denoise, jnp.asarray(start), jnp.asarray(nodes[3]), jnp.asarray(nodes[4]), state, None
        )
        scales = [float(forms[form].scale(jnp.asarray(value))) for value in nodes[3:]]

    def integrand(logsnr):
        slope = (kappa(rho(logsnr + 1e-5)) - kappa(rho(logsnr - 1e-5))) / 2e-5
        return np.polyval(coefficients, tau(rho(logsnr))) * slope

    integral = scipy.integrate.quad(integrand, *nodes[3:], epsabs=1e-12)[0]
    assert scales[1] * float(y) == pytest.approx(scales[0] * start + integral, abs=1e-8)


def test_a_long_step_after_short_ones_is_taken_with_one_point():
    before = np.array([-2.0, -1.9, -1.8, -1.7])
    with jax.enable_x64(True):
        for sampler in (NAMED["dpmpp_2m"], NAMED["dpmpp_3m"]):
            y = follow(sampler, gaussian(), NORMAL, before)
            # A step half as long again as that before it is not too long for two points, ten times is.
            for end, one_point in ((-0.7, True), (-1.55, False)):
                found = follow(sampler, gaussian(), NORMAL, np.append(before, end))
                ddim = follow(dk.samplers.DDIM(), gaussian(), y, np.array([before[-1], end]))
                difference = np.abs(found - ddim).max()
                assert difference < 1e-12 if one_point else difference > 1e-4


def test_a_step_too_long_to_be_corrected_is_not(mixture_end):
    # Steps of 4.2 in logsnr: corrected all the same, they would be off by 0.6 instead of 0.06.
    sampler = solvers.Multistep(form="eps", points=4, corrector=True)
    with jax.enable_x64(True):
        assert error(sampler, mixture(), MIXTURE_START, mixture_end, uniform(5)) < 0.15


def jump(steps):
    """Equal steps in logsnr but for one in the middle and the last, which are eight times as long."""
    lengths = np.ones(steps)
    lengths[[steps // 2, -1]] = 8
    return ENDS[0] + np.append(0, np.cumsum(lengths)) / lengths.sum() * (ENDS[1] - ENDS[0])


@pytest.mark.parametrize("name", [name for name in NAMED if name != "heun"])
def test_no_number_of_calls_and_no_grid_diverges(name, mixture_end):
    sampler, end = NAMED[name], gaussian_map(GAUSSIAN_START, *ENDS)
    with jax.enable_x64(True):
        for grid in (uniform, karras, jump):
            for steps in (5, 10, 20, 40, 80, 160):
                for problem in (
                    (gaussian(), GAUSSIAN_START, end),
                    (mixture(), MIXTURE_START, mixture_end),
                ):
                    # The data's scale is 0.5 and 1: at five calls none is off by that.
                    assert error(sampler, *problem, grid(steps)) < 0.5, (grid.__name__, steps)


def even_in_time(schedule, grid):
    """The grid that a schedule makes, cut to the range of the problems."""
    cut = dk.Truncated(schedule, ENDS[1], ENDS[0])
    return lambda steps: np.asarray(grid(cut, steps), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMED, "midpoint"])
def test_one_to_four_steps_are_at_most_twice_as_far_off_as_ddim(name, mixture_end):
    sampler = dk.get("sampler", name)()
    problems = (
        (gaussian(), GAUSSIAN_START, gaussian_map(GAUSSIAN_START, *ENDS)),
        (mixture(), MIXTURE_START, mixture_end),
    )
    straight, cosine = dk.get("schedule", "straight_line")(13.3, -10.0), dk.Cosine(15.0, -15.0)
    grids = {
        "logsnr": uniform,
        "rho": karras,
        "straight": even_in_time(straight, dk.UniformT()),
        "cosine": even_in_time(cosine, dk.UniformT()),
        "respaced": even_in_time(cosine, dk.get("grid", "respaced")()),
    }
    with jax.enable_x64(True):
        for (label, grid), problem, steps in itertools.product(grids.items(), problems, range(1, 5)):
            found = error(sampler, *problem, grid(steps))
            ddim = error(dk.samplers.DDIM(), *problem, grid(sampler.calls * steps))
            assert found <= 2 * ddim, (label, steps)
        # From rho = 20000, where the cosine schedules of images start.
        ends = (-19.8, ENDS[1])
        start = MEAN + NORMAL * np.hypot(STD, np.exp(-ends[0] / 2))
        for steps in range(1, 5):
            problem = (gaussian(), start, gaussian_map(start, *ends))
            ddim = error(dk.samplers.DDIM(), *problem, uniform(sampler.calls * steps, ends))
            assert error(sampler, *problem, uniform(steps, ends)) <= 2 * ddim


@pytest.mark.parametrize(("name", "goal"), [("ab_v", 1e-4), ("midpoint", 1e-4)])
def test_the_last_step_of_a_grid_even_in_time_is_not_long(name, goal, mixture_end):
    # On the straight path with 40 calls it is five in logsnr. As a step of DDIM it leaves an error of 1e-3.
    sampler = dk.get("sampler", name)()
    grid = even_in_time(dk.get("schedule", "straight_line")(13.3, -10.0), dk.UniformT())
    with jax.enable_x64(True):
        end = gaussian_map(GAUSSIAN_START, *ENDS)
        assert error(sampler, gaussian(), GAUSSIAN_START, end, grid(40 // sampler.calls)) < goal


@named
def test_float32_keeps_its_digits_at_640_steps(name):
    for ends in ((-10.0, 13.3), (-9.0, 12.4)):
        start = MEAN + NORMAL * np.sqrt(STD**2 + np.exp(-ends[0]))
        end, grid = gaussian_map(start, *ends), uniform(MOST, ends)
        found = error(NAMED[name], gaussian(), start, end, grid)
        with jax.enable_x64(True):
            exact = error(NAMED[name], gaussian(), start, end, grid)
        # 640 additions of a rounding error of 6e-8, in y of order one, are 1.5e-6 if they all are random.
        assert found < exact * 1.1 + 1.5e-6


def sde_variance(steps, eta):
    """The variance of SDE-DPM-Solver++(2M) on N(m, STD^2), by the published recursion.

    k-diffusion's form of it, with its eta our eta^2: y' = e^{-h (1 + eta)} y + (1 - e^{-h (1 + eta)}) D +
    noise of variance rho'^2 (1 - e^{-2 eta h}), and D as in the deterministic method.
    """
    grid = uniform(steps)
    covariance = np.diag([STD**2 + RHO[0] ** 2, 0.0])  # of y and of the last E[x | y]
    last = None
    for t, s in itertools.pairwise(grid):
        h, slope = (s - t) / 2, STD**2 / (STD**2 + np.exp(-t))
        keep, extra = np.exp(-h * (1 + eta**2)), 0.0 if last is None else h / (2 * last)
        transfer = np.array([[keep + (1 - keep) * (1 + extra) * slope, -(1 - keep) * extra], [slope, 0.0]])
        covariance = transfer @ covariance @ transfer.T
        covariance[0, 0] += np.exp(-s) * -np.expm1(-2 * eta**2 * h)
        last = h
    return covariance[0, 0]


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_noisy_version_has_the_mean_and_variance_of_the_recursion(eta):
    sampler = solvers.dpmpp_2m_sde(eta=eta)
    assert sampler.stochastic
    assert sampler.order == 2
    noise = np.random.default_rng(1).standard_normal((65536, 2))
    start = jnp.asarray(MEAN + noise * np.hypot(STD, RHO[0]), jnp.float32)
    for steps in (10, 20):
        grid = np.pad(uniform(steps), (0, 20 - steps), mode="edge")
        y = np.asarray(run(sampler, gaussian(), start, jnp.asarray(grid), jnp.asarray(steps)))
        # Five standard errors: a false alarm in one of a million runs.
        expected = sde_variance(steps, eta)
        np.testing.assert_allclose(np.mean((y - MEAN) ** 2), expected, rtol=5 * np.sqrt(2 / y.size))
        np.testing.assert_allclose(y.mean(axis=0), MEAN, atol=5 * np.sqrt(expected / len(y)))
    bias = [sde_variance(steps, eta) - STD**2 - RHO[1] ** 2 for steps in (160, 320)]
    assert slope(np.abs(bias)) == pytest.approx(2, abs=0.1)


def test_noisy_version_at_1000_steps_reproduces_the_gaussian():
    noise = np.random.default_rng(2).standard_normal((8192, 2))
    start = jnp.asarray(MEAN + noise * np.hypot(STD, RHO[0]), jnp.float32)
    grid = jnp.asarray(uniform(1000))
    y = np.asarray(run(solvers.dpmpp_2m_sde(), gaussian(), start, grid, jnp.asarray(1000)))
    np.testing.assert_allclose(y.mean(axis=0), MEAN, atol=5 * STD / np.sqrt(len(y)))
    np.testing.assert_allclose(y.std(axis=0), STD, rtol=5 / np.sqrt(2 * len(y)))
    assert abs(np.corrcoef(y.T)[0, 1]) < 5 / np.sqrt(len(y))


def test_one_point_with_noise_is_ancestral_sampling():
    sampler = solvers.Multistep(form="x", points=1, corrector=False, eta=1.0)
    assert sampler.order == 1
    with jax.enable_x64(True):
        y = follow(sampler, gaussian(), GAUSSIAN_START, uniform(12))
        ancestral = follow(dk.samplers.Ancestral(), gaussian(), GAUSSIAN_START, uniform(12))
    np.testing.assert_allclose(y, ancestral, rtol=1e-10)


def test_random_numbers_are_drawn_with_noise_alone():
    start, grid = jnp.asarray(NORMAL[:2], jnp.float32), jnp.asarray(uniform(3))

    def program(sampler):
        step = lambda y, key: sampler.step(  # noqa: E731
            lambda y, logsnr: gaussian()(gaussian().process.at(logsnr).alpha * y, logsnr),
            y,
            grid[0],
            grid[1],
            sampler.init(y),
            key if sampler.stochastic else None,
        )
        return str(jax.make_jaxpr(step)(start[0], jax.random.key(0)))

    for name, sampler in NAMED.items():
        assert not sampler.stochastic, name
        assert "random_bits" not in program(sampler)
    assert "random_bits" in program(solvers.dpmpp_2m_sde())
    assert not solvers.dpmpp_2m_sde(eta=0.0).stochastic


def test_the_names_are_registered():
    for name, sampler in NAMED.items():
        assert complete(dk.get("sampler", name), {}) == sampler
        assert sampler.calls == (2 if name == "heun" else 1)
    assert complete(dk.get("sampler", "dpmpp_2m_sde"), {}) == solvers.dpmpp_2m_sde(eta=1.0)


def test_wrong_options_are_refused():
    refused = {
        "form must be one of x, eps, v, velocity|form must be one of": {"form": "noise"},
        "variable must be one of logsnr, rho, kappa, got 't'": {"variable": "t"},
        "points must be from 1 to 4, got 5": {"points": 5},
        "points must be from 1 to 4, got 0": {"points": 0},
        "midpoint=True needs points <= 2": {"midpoint": True},
        "eta must be finite and at least 0, got -1.0": {"eta": -1.0},
        "eta must be finite and at least 0, got nan": {"form": "x", "eta": np.nan},
        "eta above 0 needs form='x'.*got 'velocity'": {"eta": 1.0},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            solvers.Multistep(**options)
    for make in (solvers.unipc, solvers.deis, solvers.ab_v):
        with pytest.raises(ValueError, match="points must be from 1 to 4, got 9"):
            make(order=9)
