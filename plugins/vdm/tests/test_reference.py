"""The reference implementation's checkpoints give the reference implementation's numbers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffkit as dk
import diffkit_vdm
from diffkit.objectives import prior_term, reconstruction_term

GOLDEN = Path(__file__).parents[3].parent / "shared" / "golden" / "vdm_official"
CASES = ("scalar_continuous", "scalar_discrete_T10", "nnet_continuous_attention")

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the golden values are not at {GOLDEN}")


def close(actual, expected):
    """Within 1e-4 of the largest entry: the values of one array are of one scale."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def images(array):
    """Channels first, as in diffkit."""
    return jnp.asarray(np.moveaxis(array, -1, 1))


@needs_golden
@pytest.mark.parametrize("case", CASES)
def test_golden_values(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    config = json.loads((GOLDEN / f"{case}.json").read_text())
    model = diffkit_vdm.import_reference(
        GOLDEN / f"{case}.msgpack", GOLDEN / f"{case}.json", shape=(3, 8, 8)
    )
    steps = config["sm_n_timesteps"]
    x, eps, eps_0 = (images(golden[name]) for name in ("x", "eps", "eps_0"))
    # In discrete time diffkit rounds a time up to the end of its step, so it is handed the middle.
    t = jnp.asarray(golden["t"])
    inside = t - 0.5 / steps if steps else t
    s, ancestral_t = float(golden["ancestral_s"]), float(golden["ancestral_t"])

    @jax.jit
    def everything(x, t, inside, eps, eps_0, condition, noise):
        schedule, process = model.schedule, model.process
        slope = jax.vmap(lambda t: jax.jvp(schedule, (t,), (jnp.ones_like(t),))[1])(t)
        encoded = model.encode(x)
        logsnr = jax.vmap(schedule)(t)
        z_t = jax.vmap(lambda x, e, g: process.perturb(x, e, process.at(g)))(encoded, eps, logsnr)
        eps_hat = jax.vmap(lambda z, g, c: model.denoiser(z, g, c).eps)(z_t, logsnr, condition)

        def ancestral(z, condition, noise):
            level_t, level_s = model.level(ancestral_t), model.level(s)
            x_hat = model.denoiser(z, level_t.logsnr, condition).x
            mean, std = process.posterior(z, x_hat, level_t, level_s)
            return mean + std * noise

        def diffusion(t, steps):
            return dk.DiffusionLoss(steps=steps).at(model, encoded, t, eps, condition=condition)

        return {
            "gamma_0": -schedule(0.0)[None],
            "gamma_1": -schedule(1.0)[None],
            "gamma_t": -logsnr,
            "dgamma_dt": -slope,
            "encoded": encoded,
            "z_t": z_t,
            "eps_hat": eps_hat,
            "loss_prior": jax.vmap(lambda x: prior_term(model, x))(encoded),
            "loss_recon": jax.vmap(lambda *each: reconstruction_term(model, *each))(x, encoded, eps_0),
            "loss_diffusion_continuous": diffusion(t, None),
            "loss_diffusion_discrete": diffusion(inside, steps or 1),
            "ancestral_z_s": jax.vmap(ancestral)(z_t, condition, noise),
        }

    condition = jnp.asarray(golden["conditioning"])[:, None]
    with jax.default_matmul_precision("highest"):
        found = everything(x, t, inside, eps, eps_0, condition, images(golden["ancestral_noise"]))
    compared = [name for name in found if name in golden]
    assert len(compared) >= 11
    for name in compared:
        expected = golden[name]
        close(found[name], np.moveaxis(expected, -1, 1) if expected.ndim == 4 else expected)


@needs_golden
def test_reference_drifts_off_its_endpoints_and_ours_does_not():
    # The reference's monotone network is not normalised: known from its code, and the reason for ours.
    model = diffkit_vdm.import_reference(
        GOLDEN / "nnet_continuous_attention.msgpack",
        GOLDEN / "nnet_continuous_attention.json",
        shape=(3, 8, 8),
    )
    schedule = model.schedule
    maximum, minimum = schedule.ends.values()
    assert abs(float(schedule(0.0) - maximum)) > 1e-4
    normalised = diffkit_vdm.LearnedMonotone(hidden=4, key=jax.random.key(0))
    assert float(normalised(0.0)) == pytest.approx(13.3, abs=1e-6)
    assert float(maximum) > float(minimum)


def test_errors_name_what_is_wrong(tmp_path):
    file = tmp_path / "x.msgpack"
    config = {
        "vocab_size": 256,
        "with_fourier_features": True,
        "with_attention": False,
        "gamma_type": "fixed",
        "gamma_min": -13.3,
        "gamma_max": 5.0,
        "sm_n_embd": 32,
        "sm_n_layer": 2,
        "sm_pdrop": 0.1,
    }
    with pytest.raises(FileNotFoundError, match="msgpack_path must be a checkpoint"):
        diffkit_vdm.import_reference(file, config)
    file.write_bytes(b"\xc1 not msgpack")
    with pytest.raises(ValueError, match="is not a Flax msgpack file"):
        diffkit_vdm.import_reference(file, config)
    file.write_bytes(b"\x81\xa4step\x01")
    with pytest.raises(ValueError, match=r"has no 'params'; it holds \['step'\]"):
        diffkit_vdm.import_reference(file, config)
    file.write_bytes(b"\x81\xa6params\x81\xa1w\x01")
    with pytest.raises(ValueError, match="has no score_model in its params; it has w"):
        diffkit_vdm.import_reference(file, config)
    with pytest.raises(ValueError, match="config lacks gamma_type"):
        diffkit_vdm.import_reference(file, {k: v for k, v in config.items() if k != "gamma_type"})
    with pytest.raises(ValueError, match="group must be"):
        diffkit_vdm.import_reference(file, config, group="weights")


@pytest.mark.slow
@needs_golden
def test_imported_model_is_an_ordinary_one():
    golden = np.load(GOLDEN / "scalar_discrete_T10.npz")
    model = diffkit_vdm.import_reference(
        GOLDEN / "scalar_discrete_T10.msgpack",
        GOLDEN / "scalar_discrete_T10.json",
        shape=(3, 8, 8),
    )
    x = golden["x"]
    bound = dk.vlb(model, np.moveaxis(x, -1, 1), key=jax.random.key(0), steps=10)
    assert bound.dimensions == 192
    # The prior term has no randomness: KL(N(alpha x, sigma^2) || N(0, 1)) in float64.
    values = 2 * (x.astype(np.float64) + 0.5) / 256 - 1
    variance = 1 / (1 + np.exp(-golden["gamma_1"].astype(np.float64)))
    terms = variance + (1 - variance) * values**2 - 1 - np.log(variance)
    expected = 0.5 * terms.reshape(len(x), -1).sum(axis=1)
    np.testing.assert_allclose(bound.prior, expected, rtol=1e-4)
