"""The run-time checks of shapes and dtypes, at the boundary of every part."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError, jaxtyped

import diffkit as dk
import diffkit_vdm
from diffkit.typechecking import typechecker
from diffkit.typing import as_float

X = jnp.zeros((4, 2), jnp.uint8)
LEVEL = dk.VariancePreserving().at(1.0)


@pytest.fixture(scope="module")
def model(toy_model):
    return toy_model()


# Each wrong call, the name of the argument that is wrong, and the right call beside it.
CALLS = {
    "schedule: a vector": (
        "t",
        lambda m, k: m.schedule(jnp.zeros(3)),
        lambda m, k: m.schedule(0.5),
    ),
    "schedule: a string": ("t", lambda m, k: m.schedule("0.5"), lambda m, k: m.schedule(1)),
    "schedule: complex": ("t", lambda m, k: dk.Cosine()(1j), lambda m, k: dk.Cosine()(0)),
    "inverse: a vector": (
        "logsnr",
        lambda m, k: dk.Cosine().inverse(jnp.zeros(3)),
        lambda m, k: dk.Cosine().inverse(jnp.zeros(())),
    ),
    "process: a vector": (
        "logsnr",
        lambda m, k: m.process.at(jnp.zeros(3)),
        lambda m, k: m.process.at(np.float64(0.0)),
    ),
    "perturb: two shapes": (
        "eps",
        lambda m, k: m.process.perturb(jnp.zeros(2), jnp.zeros(3), LEVEL),
        lambda m, k: m.process.perturb(jnp.zeros(2), jnp.zeros(2), LEVEL),
    ),
    "log_prob: floats for integers": (
        "x",
        lambda m, k: m.decoder.log_prob(jnp.zeros(2), jnp.zeros(2), LEVEL),
        lambda m, k: m.decoder.log_prob(jnp.zeros(2, int), jnp.zeros(2), LEVEL),
    ),
    "log_prob: two shapes": (
        "z_0",
        lambda m, k: m.decoder.log_prob(jnp.zeros(2, int), jnp.zeros(3), LEVEL),
        lambda m, k: m.decoder.log_prob(np.zeros(2, int), jnp.zeros(2), LEVEL),
    ),
    "encode: integers for floats": (
        "x",
        lambda m, k: dk.GaussianDecoder().encode(jnp.zeros(2, int)),
        lambda m, k: dk.GaussianDecoder().encode(jnp.zeros(2)),
    ),
    "vlb: a legacy key": (
        "key",
        lambda m, k: dk.vlb(m, X, key=jax.random.PRNGKey(0)),
        lambda m, k: dk.vlb(m, X, key=k),
    ),
    "vlb: many keys": (
        "key",
        lambda m, k: dk.vlb(m, X, key=jax.random.split(k)),
        lambda m, k: dk.vlb(m, X, key=k),
    ),
    "vlb: steps that are no integer": (
        "steps",
        lambda m, k: dk.vlb(m, X, key=k, steps=2.5),
        lambda m, k: dk.vlb(m, X, key=k, steps=2),
    ),
    "vlb: a part of another kind": (
        "time_sampler",
        lambda m, k: dk.vlb(m, X, key=k, time_sampler=dk.Cosine()),
        lambda m, k: dk.vlb(m, X, key=k, time_sampler=dk.Uniform()),
    ),
    "denoising_loss: a legacy key": (
        "key",
        lambda m, k: dk.denoising_loss(m, X, key=jax.random.PRNGKey(0)),
        lambda m, k: dk.denoising_loss(m, X, key=k),
    ),
    "sample: a legacy key": (
        "key",
        lambda m, k: dk.sample(m, dk.samplers.DDIM(), 2, key=jax.random.PRNGKey(0), steps=2),
        lambda m, k: dk.sample(m, dk.samplers.DDIM(), 2, key=k, steps=2),
    ),
    "sample: a count that is no integer": (
        "shape_or_count",
        lambda m, k: dk.sample(m, dk.samplers.DDIM(), 2.0, key=k, steps=2),
        lambda m, k: dk.sample(m, dk.samplers.DDIM(), (2,), key=k, steps=2),
    ),
    "sample: the model's own sampler left out": (
        "sampler",
        lambda m, k: dk.sample(m, "ddim", 2, key=k, steps=2),
        lambda m, k: dk.sample(m, dk.samplers.DDIM(), 2, key=k, steps=2),
    ),
    "time sampler: a legacy key": (
        "key",
        lambda m, k: dk.LowDiscrepancy()(jax.random.PRNGKey(0), 4),
        lambda m, k: dk.LowDiscrepancy()(k, 4),
    ),
    "preset: a legacy key": (
        "key",
        lambda m, k: dk.preset("vdm", network="mlp").model(shape=(2,), key=jax.random.PRNGKey(0)),
        lambda m, k: dk.preset("vdm", network="mlp", schedule=dk.LinearLogSNR()).model(shape=(2,), key=k),
    ),
    "plugin: a schedule of vectors": (
        "t",
        lambda m, k: diffkit_vdm.LearnedLinear()(jnp.zeros(3)),
        lambda m, k: diffkit_vdm.LearnedLinear()(np.float32(0.5)),
    ),
    "plugin: a legacy key": (
        "key",
        lambda m, k: diffkit_vdm.LearnedMonotone(key=jax.random.PRNGKey(0)),
        lambda m, k: diffkit_vdm.LearnedMonotone(hidden=4, key=k),
    ),
    "constructor: a string": (
        "logsnr_max",
        lambda m, k: dk.LinearLogSNR("13"),
        lambda m, k: dk.LinearLogSNR(13),
    ),
    "model: parts in the wrong order": (
        "denoiser",
        lambda m, k: dk.DiffusionModel(m.schedule, m.denoiser, m.decoder, (2,)),
        lambda m, k: dk.DiffusionModel(m.denoiser, m.schedule, m.decoder, (2,)),
    ),
    "fit: settings as a dictionary": (
        "config",
        lambda m, k: dk.fit(m, dk.data.Swirl(), {"steps": 3}),
        lambda m, k: dk.TrainConfig(steps=3, learning_rate=1),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_argument_is_named(name, model, getkey):
    argument, wrong, right = CALLS[name]
    with pytest.raises(TypeCheckError, match=f"parameter '{argument}'"):
        wrong(model, getkey())
    right(model, getkey())


MESSAGES = {
    "type": (
        lambda m: dk.vlb(m, X, key=jax.random.key(0), time_sampler=dk.Cosine()),
        "diffkit.objectives.vlb: wrong parameter 'time_sampler'.\n"
        "  got       Cosine(...)\n"
        "  expected  AbstractTimeSampler | None",
    ),
    "dtype": (
        lambda m: m.encode(np.zeros((4, 2), complex)),
        "diffkit.model.DiffusionModel.encode: wrong parameter 'x'.\n"
        "  got       ndarray complex128[4, 2]\n"
        "  expected  Real[Array, 'batch *shape'] | Real[ndarray, 'batch *shape']",
    ),
    "shape": (
        lambda m: jax.jit(lambda t: m.schedule(t))(jnp.zeros(3)),
        "diffkit_vdm.schedules.LearnedLinear.__call__: wrong parameter 't'.\n"
        "  got       float32[3]\n"
        "  expected  Real[Array, ''] | Real[ndarray, ''] | number | int | float",
    ),
    "shape that differs from another": (
        lambda m: dk.V().solve(jnp.ones(2), jnp.ones(3), LEVEL),
        "diffkit.parameterizations.AbstractParameterization.solve: wrong parameter 'z'.\n"
        "  got       float32[3], beside prediction float32[2]\n"
        "  expected  Float[Array, '*shape']",
    ),
    "result": (
        lambda m: jaxtyped(typechecker=typechecker)(result)(),
        "somewhere.result: wrong result.\n  got       'text'\n  expected  int",
    ),
    "one of many": (
        lambda m: jaxtyped(typechecker=typechecker)(result)(1, 2, "x"),
        "somewhere.result: wrong parameter 'more[2]'.\n  got       'x'\n  expected  int",
    ),
}


def result(*more: int) -> int:
    return "text"  # pyright: ignore[reportReturnType]


result.__module__ = "somewhere"


@pytest.mark.parametrize("name", MESSAGES)
def test_the_message_has_three_lines(name, model):
    call, message = MESSAGES[name]
    with pytest.raises(TypeCheckError) as caught:
        call(model)
    assert str(caught.value) == message


def test_checks_hold_under_jit(model, getkey):
    with pytest.raises(TypeCheckError, match="parameter 'key'"):
        eqx.filter_jit(lambda key: dk.vlb(model, X, key=key).total)(jax.random.PRNGKey(0))


def test_integers_do_for_floats():
    assert dk.LinearLogSNR(13, -5)(1) == -5.0
    assert dk.LinearLogSNR(13, -5)(0).dtype == jnp.float32
    assert float(dk.Cosine(13, -5).endpoints[1]) == pytest.approx(-5.0, abs=1e-5)
    assert as_float(3).dtype == jnp.float32
    assert as_float(jnp.zeros((), jnp.bfloat16)).dtype == jnp.bfloat16
    assert as_float(jnp.int32(3)).dtype == jnp.float32


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_the_switch(disabled):
    # A process of its own, since the switch is read when diffkit is imported.
    code = """
import diffkit as dk, diffkit_vdm, jax.numpy as jnp
for schedule in (dk.LinearLogSNR(), diffkit_vdm.LearnedLinear()):
    try:
        print(schedule(jnp.zeros(3)).shape)
    except TypeError as error:
        print(type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAXTYPING_DISABLE": disabled},
        capture_output=True,
        text=True,
    )
    expected = "(3,)" if disabled == "1" else "TypeCheckError"
    assert done.stdout.split("\n")[:2] == [expected] * 2, done.stderr
