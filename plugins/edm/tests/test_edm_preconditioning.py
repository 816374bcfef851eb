"""EDM's preconditioning: the published identities, and that diffkit's denoiser is the published formula."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
import diffkit_edm

SIGMAS = [0.002, 0.03, 0.5, 3.0, 80.0]


class Wavy(dk.AbstractNetwork):
    """A network that is told c_noise = -logsnr / 8, of which it makes something that is not linear."""

    weight: jax.Array

    def __call__(self, z, logsnr, condition=None, *, key=None):
        c_noise = -logsnr / 8
        return jnp.sin(self.weight @ z + 3 * c_noise) + 0.2 * c_noise * z


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("data_std", [0.5, 2.0])
def test_input_and_target_have_unit_variance(sigma, data_std):
    # Data of two values and normal noise, by a quadrature that is exact for variances.
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    x = jnp.asarray(np.repeat([-data_std, data_std], 5), jnp.float32)
    eps = jnp.asarray(np.tile(nodes, 2), jnp.float32)
    weights = np.tile(weights / weights.sum(), 2) / 2
    level = dk.VarianceExploding().at(-2 * np.log(sigma))
    part = diffkit_edm.F(data_std=data_std)
    known = diffkit_edm.preconditioning(sigma, data_std)
    z = x + sigma * eps
    for name, value in (("input", known.c_in * z), ("target", part.target(x, eps, level))):
        assert weights @ np.asarray(value) ** 2 == pytest.approx(1, rel=1e-5), name
    np.testing.assert_allclose(
        part.target(x, eps, level), (x - known.c_skip * z) / known.c_out, rtol=2e-4, atol=2e-4
    )


@pytest.mark.parametrize("sigma", SIGMAS)
def test_c_skip_makes_c_out_smallest(sigma):
    # Appendix B.6: c_out^2 is the variance of what is left, (1 - c)^2 s^2 + c^2 sigma^2 for c_skip = c.
    known = diffkit_edm.preconditioning(sigma)
    assert known.c_skip.dtype == jnp.float32

    def left(c):
        return (1 - c) ** 2 * 0.5**2 + c**2 * sigma**2

    grid = np.linspace(-0.5, 1.5, 200_001)
    assert float(known.c_skip) == pytest.approx(grid[np.argmin(left(grid))], abs=1.1e-5)
    assert float(known.c_out) ** 2 == pytest.approx(left(float(known.c_skip)), rel=1e-4)
    assert float(known.c_noise) == pytest.approx(np.log(sigma) / 4, rel=1e-6)


@pytest.mark.parametrize("logsnr", [12.43, 4.0, 0.0, -9.0])
def test_denoiser_is_the_published_formula(logsnr):
    rng = np.random.default_rng(0)
    weight, z = rng.normal(size=(3, 3)), rng.normal(size=3)
    with jax.enable_x64(True):
        denoiser = dk.Denoiser(
            Wavy(jnp.asarray(weight)),
            diffkit_edm.F(data_std=0.5),
            dk.VarianceExploding(),
            data_std=0.5,
        )
        sigma = np.exp(-logsnr / 2)
        z = z * np.hypot(0.5, sigma)
        found = denoiser(jnp.asarray(z), logsnr)
        # Table 1, in numpy.
        c_skip = 0.25 / (sigma**2 + 0.25)
        c_out = sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
        c_in, c_noise = 1 / np.sqrt(sigma**2 + 0.25), np.log(sigma) / 4
        inside = c_in * z
        output = np.sin(weight @ inside + 3 * c_noise) + 0.2 * c_noise * inside
        expected = c_skip * z + c_out * output
        np.testing.assert_allclose(found.x, expected, rtol=1e-12)
        np.testing.assert_allclose(found.eps, (z - expected) / sigma, rtol=1e-12)
        known = diffkit_edm.preconditioning(sigma)
        names = ("c_skip", "c_out", "c_in", "c_noise")
        for name, value in zip(names, (c_skip, c_out, c_in, c_noise), strict=True):
            np.testing.assert_allclose(getattr(known, name), value, rtol=1e-13, atol=1e-16)
    # And in float32, where the error may be some roundings of the largest term.
    in_float32 = eqx.tree_at(lambda d: d.network.weight, denoiser, jnp.asarray(weight, jnp.float32))(
        jnp.asarray(z, jnp.float32), logsnr
    )
    np.testing.assert_allclose(in_float32.x, expected, rtol=3e-6, atol=3e-6 * min(sigma, 1) + 1e-7)


def test_networks_see_c_noise_up_to_an_affine_map():
    # What diffkit's networks make of logsnr, for EDM's range, is affine in ln(sigma) / 4.
    sigma = np.array(SIGMAS)
    seen = [
        dk.networks.base.normalise_logsnr(jnp.asarray(-2 * np.log(s), jnp.float32), (12.43, -8.76))
        for s in sigma
    ]
    slope, offset = np.polyfit(np.log(sigma) / 4, seen, 1)
    np.testing.assert_allclose(slope * np.log(sigma) / 4 + offset, seen, atol=1e-6)
    assert slope == pytest.approx(8 / (12.43 + 8.76), rel=1e-5)


@pytest.mark.parametrize("process", [dk.VariancePreserving(), dk.VarianceExploding()])
@pytest.mark.parametrize("logsnr", [13.3, 0.3, -10.0])
def test_f_is_minus_v_for_data_of_unit_variance_under_every_process(process, logsnr):
    x, eps = jnp.asarray([0.5, -0.7]), jnp.asarray([1.5, 0.2])
    level = process.at(logsnr)
    np.testing.assert_allclose(
        diffkit_edm.F().target(x, eps, level), -dk.V().target(x, eps, level), rtol=1e-5, atol=1e-7
    )


def test_error_factor_is_that_of_the_loss():
    # |D - x|^2 = c_out^2 |F error|^2, and |D - x|^2 = sigma^2 |eps error|^2.
    for sigma in SIGMAS:
        level = dk.VarianceExploding().at(-2 * np.log(sigma))
        c_out = sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
        factor = diffkit_edm.F(data_std=0.5).error_factor(level)
        assert float(factor) == pytest.approx((sigma / c_out) ** 2, rel=1e-5)


def test_model_hands_the_same_data_std_to_both():
    model = dk.preset("edm", network=("mlp", {"width": 8})).model(
        shape=(2,), levels=8, key=jax.random.key(0)
    )
    assert model.denoiser.data_std == 0.5
    assert model.denoiser.parameterization == diffkit_edm.F(data_std=0.5)


def test_wrong_arguments_are_refused():
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"data_std must be a positive number, got {value}"):
            diffkit_edm.F(data_std=value)
        with pytest.raises(ValueError, match="data_std must be a positive number"):
            diffkit_edm.preconditioning(1.0, value)
