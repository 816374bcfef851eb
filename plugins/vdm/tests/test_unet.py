"""The U-Net of the VDM plugin against the reference implementation's own numbers."""

import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffkit_vdm.unet import VDMUNet, vdm_unet_from_reference

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "vdm_official"
CASES = ("scalar_continuous", "scalar_discrete_T10", "nnet_continuous_attention")
SHAPE = (3, 8, 8)


def _decode(code: int, data: bytes) -> Any:
    """Flax packs an array as extension 1: (shape, name of the dtype, bytes)."""
    import msgpack

    if code != 1:
        return msgpack.ExtType(code, data)
    shape, dtype, raw = msgpack.unpackb(data)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _load(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    msgpack = pytest.importorskip("msgpack", reason="msgpack reads the reference's checkpoints")
    if not GOLDEN.is_dir():
        pytest.skip(f"the reference's golden values are not at {GOLDEN}")
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    tree = msgpack.unpackb((GOLDEN / f"{name}.msgpack").read_bytes(), ext_hook=_decode)
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return config, tree["params"]["score_model"], dict(arrays)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference_implementation(name):
    """Same parameters, latents and noise levels: the same predicted noise, to 1e-4 of its norm."""
    config, params, golden = _load(name)
    network = vdm_unet_from_reference(params, shape=SHAPE, config=config)

    @eqx.filter_jit
    def predict(network, z, logsnr, condition):
        return jax.vmap(network)(z, logsnr, condition)

    with jax.default_matmul_precision("highest"):
        got = predict(
            network,
            jnp.asarray(golden["z_t"].transpose(0, 3, 1, 2)),
            jnp.asarray(-golden["gamma_t"]),
            jnp.asarray(golden["conditioning"], jnp.float32)[:, None],
        )
    got = np.asarray(got).transpose(0, 2, 3, 1)
    want = golden["eps_hat"]
    size = np.linalg.norm(want.reshape(len(want), -1), axis=1)
    error = np.linalg.norm((got - want).reshape(len(want), -1), axis=1) / size
    assert np.all(error < 1e-4), error
    # The comparison is empty if the network returns z: the parameters must matter.
    assert np.linalg.norm(want - golden["z_t"]) > 0.05 * np.linalg.norm(want)


def test_missing_parameters_are_named():
    config, params, _ = _load(CASES[0])
    params = {name: value for name, value in params.items() if name != "mid.attn_1"}
    with pytest.raises(ValueError, match=r"mid\.attn_1"):
        vdm_unet_from_reference(params, shape=SHAPE, config=config)


def test_parameters_of_another_shape_are_named():
    config, params, _ = _load(CASES[0])
    with pytest.raises(ValueError, match=r"conv_in\.weight"):
        vdm_unet_from_reference(params, shape=(1, 8, 8), config=config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_starts_as_the_identity(dtype):
    """conv_out is zero at the start, so the output is z, at both ends of logsnr."""
    network = VDMUNet((1, 4, 4), width=8, depth=1, dtype=dtype, key=jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (2, 1, 4, 4))
    out = eqx.filter_jit(eqx.filter_vmap(network))(z, jnp.asarray([20.0, -15.0]))
    np.testing.assert_array_equal(out, z)


def test_blocks_are_scanned_and_depth_is_a_parameter():
    """The trace does not grow with the depth, and each level has parameters of its own."""

    def make(depth):
        return VDMUNet((1, 4, 4), width=8, depth=depth, key=jax.random.key(0))

    def equations(depth):
        network = eqx.filter_eval_shape(make, depth)
        z, logsnr = jnp.zeros((1, 4, 4)), jnp.zeros(())
        return len(eqx.filter_make_jaxpr(VDMUNet.__call__)(network, z, logsnr)[0].eqns)

    assert equations(2) == equations(9)
    network = make(3)
    kernels = network.down.block.conv1.weight
    assert kernels.shape == (3, 3, 3, 8, 8)
    assert network.up.block.conv1.weight.shape == (4, 3, 3, 16, 8)
    assert not np.allclose(kernels[0], kernels[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 8)}, r"network vdm_unet takes images .* have the shape \(8, 8\)"),
        ({"width": 2}, "width must be an integer of at least 4; got 2"),
        ({"depth": 0}, "depth must be an integer of at least 1; got 0"),
        ({"dropout": 1.0}, "dropout must be a probability"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16; got 'float16'"),
        ({"logsnr_range": (-5.0, 13.3)}, "logsnr_range must be"),
        ({"condition_size": -1}, "condition_size must be"),
    ],
)
def test_bad_arguments_are_named(options, message):
    options = {"shape": (1, 4, 4)} | options
    with pytest.raises(ValueError, match=message):
        VDMUNet(**options, key=jax.random.key(0))
