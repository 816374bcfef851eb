"""Predictions that carry what they are: at run time, and for a static type checker."""

import copy
import itertools
import json
import operator
import pathlib
import re
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import diffkit as dk
import diffkit_edm
import diffkit_flow
from diffkit.processes import rescaled_posterior

# What is meant, how a prediction is asked for it, and its closed form for alpha = 0.6, sigma = 0.8.
FORMS = {
    "x": (dk.X(), "x", lambda x, eps: x),
    "epsilon": (dk.Epsilon(), "eps", lambda x, eps: eps),
    "v": (dk.V(), "v", lambda x, eps: 0.6 * eps - 0.8 * x),
    "score": (dk.Score(), "score", lambda x, eps: -eps / 0.8),
    "velocity": (diffkit_flow.Velocity(), "as_target(Velocity())", lambda x, eps: eps - x),
}
LOGSNR = 2 * np.log(0.6 / 0.8)
X = np.array([1.0, -2.0, 0.5], np.float32)
EPS = np.array([0.3, 0.1, -1.0], np.float32)
Z = jnp.asarray(0.6 * X + 0.8 * EPS)


@pytest.fixture
def level():
    return dk.VariancePreserving().at(LOGSNR)


@pytest.fixture
def prediction(level):
    return dk.Prediction(jnp.asarray(X), jnp.asarray(EPS), level)


def run(expression, **names):
    """What a user gets who writes this."""
    return eval(expression, {"dk": dk, "Velocity": diffkit_flow.Velocity, **names})


def form(prediction, name):
    return run(f"prediction.{FORMS[name][1]}", prediction=prediction)


def refusal(argument, meant, given):
    """The message, as a pattern."""
    conversion = f"dk.Prediction.of(given, z, level).{FORMS[meant][1]}"
    return re.escape(
        f"{argument} must be a prediction of {meant}, got one of {given}. Convert it: {conversion}"
    )


@pytest.mark.parametrize("name", FORMS)
def test_each_form_carries_what_it_is(name, prediction):
    part, _, closed_form = FORMS[name]
    found = form(prediction, name)
    assert isinstance(found, dk.Predicted)
    assert found.parameterization == part
    np.testing.assert_allclose(found, closed_form(X, EPS), rtol=1e-5)


@pytest.mark.parametrize(("meant", "given"), list(itertools.permutations(FORMS, 2)))
def test_one_form_is_not_taken_for_another(meant, given, prediction, level):
    part, _, closed_form = FORMS[meant]
    wrong = form(prediction, given)
    with pytest.raises(TypeError, match=refusal("prediction", meant, given)) as error:
        part.solve(wrong, Z, level)

    # What the message says to write.
    conversion = str(error.value).split("Convert it: ")[1]
    converted = run(conversion, given=wrong, z=Z, level=level)
    np.testing.assert_allclose(converted, closed_form(X, EPS), rtol=1e-4, atol=1e-6)
    x, eps = part.solve(converted, Z, level)
    np.testing.assert_allclose(x, X, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(eps, EPS, rtol=1e-4, atol=1e-5)


# The boundaries that take data or noise: the argument, what is meant, and the call with another thing
# in its place.
BOUNDARIES = {
    "perturb, x": ("x", "x", lambda p, g: dk.VarianceExploding().perturb(g, p.eps, p.level)),
    "perturb, eps": (
        "eps",
        "epsilon",
        lambda p, g: dk.VarianceExploding().perturb(p.x, g, p.level),
    ),
    "posterior": (
        "x",
        "x",
        lambda p, g: dk.VariancePreserving().posterior(Z, g, p.level, p.level),
    ),
    "rescaled_posterior": ("x", "x", lambda p, g: rescaled_posterior(Z, g, -1.0, 1.0)),
    "target, x": ("x", "x", lambda p, g: dk.V().target(g, p.eps, p.level)),
    "target, eps": ("eps", "epsilon", lambda p, g: dk.V().target(p.x, g, p.level)),
    "Prediction, x": ("x", "x", lambda p, g: dk.Prediction(g, p.eps, p.level)),
    "Prediction, eps": ("eps", "epsilon", lambda p, g: dk.Prediction(p.x, g, p.level)),
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_boundary_refuses_every_other_form(boundary, prediction):
    argument, meant, call = BOUNDARIES[boundary]
    for given in FORMS.keys() - {meant}:
        with pytest.raises(TypeError, match=refusal(argument, meant, given)):
            call(prediction, form(prediction, given))
    right = form(prediction, meant)
    # An array is trusted, and gives the same.
    assert repr(call(prediction, right)) == repr(call(prediction, right.value))
    jax.tree.map(np.testing.assert_array_equal, call(prediction, right), call(prediction, right.value))
    with pytest.raises(TypeCheckError, match=r"parameter '(x|eps)'"):
        call(prediction, dk.Predicted(jnp.zeros(2), FORMS[meant][0]))  # of another shape


def test_other_options_are_another_target(prediction, level):
    scaled = prediction.as_target(dk.Score(scaled=True))
    np.testing.assert_allclose(scaled, -EPS)
    with pytest.raises(TypeError, match=r"of Score\(\), got one of Score\(scaled=True\).*\.score$"):
        dk.Score().solve(scaled, Z, level)
    narrow = prediction.as_target(diffkit_edm.F(data_std=0.5))
    conversion = r"as_target\(F\(data_std=1\.0\)\)$"
    with pytest.raises(
        TypeError, match=rf"F\(data_std=1\.0\), got one of F\(data_std=0\.5\).*{conversion}"
    ):
        diffkit_edm.F(data_std=1.0).solve(narrow, Z, level)
    x, _ = diffkit_edm.F(data_std=0.5).solve(narrow, Z, level)
    np.testing.assert_allclose(x, X, rtol=1e-5)


def test_a_target_that_is_not_registered_has_its_class_name(prediction, level):
    class Sum(dk.AbstractParameterization):
        def coefficients(self, level):
            return jnp.ones_like(level.alpha), jnp.ones_like(level.alpha)

    found = prediction.as_target(Sum())
    np.testing.assert_allclose(found, X + EPS)
    with pytest.raises(TypeError, match=r"must be a prediction of v, got one of Sum\."):
        dk.V().solve(found, Z, level)
    with pytest.raises(TypeError, match=r"of Sum, got one of v\..*as_target\(.*Sum\(\)\)$"):
        Sum().solve(prediction.v, Z, level)


def test_a_prediction_computes_as_its_array(prediction):
    p, a = prediction.x, prediction.x.value
    for found, expected in (
        (p + 1, a + 1),
        (1 - p, 1 - a),
        (p - a, a - a),
        (a - p, a - a),  # a JAX array on the left
        (X / p, X / a),  # a NumPy array on the left
        (p * p, a * a),
        (2 * p, 2 * a),
        (p / 2, a / 2),
        (p**2, a**2),
        (2**p, 2**a),
        (p @ p, a @ a),
        (X @ p, X @ a),
        (-p, -a),
        (abs(p), abs(a)),
        (p[1:], a[1:]),
        (p == a, a == a),
        (p != 1.0, a != 1.0),
        (p < 0, a < 0),
        (p <= 1, a <= 1),
        (p > 0, a > 0),
        (p >= 1, a >= 1),
        (jnp.exp(p), jnp.exp(a)),
        (jnp.sum(p), jnp.sum(a)),
        (jnp.stack([p, prediction.eps]), jnp.stack([a, EPS])),
        (jnp.where(p > 0, p, 0.0), jnp.where(a > 0, a, 0.0)),
    ):
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, expected)
    for found, expected in (
        (p.T, a.T),
        (p.reshape(-1, 1), a.reshape(-1, 1)),
        (p.mean(), a.mean()),
        (p.astype(int), a.astype(int)),
        (p.at[0].set(0.0), a.at[0].set(0.0)),
        (eqx.filter_jit(lambda p: p.sum())(p), a.sum()),
    ):
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(AttributeError, match="has no attribute 'maen'"):
        p.maen()
    np.testing.assert_array_equal(copy.deepcopy(p), a)  # which asks for attributes before there are any
    for mixed in (operator.sub, operator.mul, operator.lt):
        with pytest.raises(TypeError, match="of one target, got one of epsilon and one of x"):
            mixed(prediction.eps, p)
    with pytest.raises(TypeError, match=r"got one of Score\(\) and one of Score\(scaled=True\)"):
        prediction.score + prediction.as_target(dk.Score(scaled=True))
    assert (p.shape, p.ndim, p.size, p.dtype, len(p)) == ((3,), 1, 3, jnp.float32, 3)
    assert [float(entry) for entry in p] == list(X)
    np.testing.assert_array_equal(np.abs(p), np.abs(X))
    assert np.asarray(p, np.float64).dtype == np.float64
    assert repr(p) == "Predicted(value=f32[3], parameterization=X())"
    with pytest.raises(TypeError, match="unhashable"):
        hash(p)


def test_predictions_pass_through_transformations(prediction, level):
    def forms(z, logsnr):
        here = dk.VariancePreserving().at(logsnr)
        found = dk.Prediction.of(dk.Predicted(z**2, dk.V()), z, here)
        return found, found.as_target(diffkit_edm.F(data_std=0.5))

    whole, narrow = jax.jit(jax.vmap(forms))(jnp.stack([Z, 2 * Z]), jnp.array([LOGSNR, 1.0]))
    # What it is stays with a batch, options included.
    assert whole.x.parameterization == dk.X()
    assert narrow.parameterization == diffkit_edm.F(data_std=0.5)
    assert whole.eps.shape == (2, 3)
    np.testing.assert_allclose(whole.x[0], 0.6 * Z - 0.8 * Z**2, rtol=1e-5)

    def checked(flag):
        return jax.lax.cond(flag, lambda: prediction, lambda: dk.Prediction.of(prediction.v, Z, level))

    np.testing.assert_allclose(jax.jit(checked)(False).x, X, rtol=1e-4)
    with pytest.raises(TypeError, match="must be a prediction of x, got one of epsilon"):
        jax.jit(lambda p: dk.Prediction(p.eps, p.eps, p.level))(prediction)

    def loss(x):
        return jnp.sum(dk.Prediction(x, jnp.asarray(EPS), level).v ** 2)

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(X)), -1.6 * (0.6 * EPS - 0.8 * X), rtol=1e-5)


def test_the_static_checker_finds_the_wrong_uses_and_no_others():
    path = pathlib.Path(__file__).with_name("wrong_uses.py")
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", str(path)],
        cwd=path.parent.parent,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)["generalDiagnostics"]
    found = {each["range"]["start"]["line"] + 1: each["message"] for each in report}
    lines = path.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert marked
    assert found.keys() == marked
    # Both are named: what is meant, and what is given.
    number = lines.index("    of_v(prediction.score)  # error") + 1
    assert '"Predicted[Score]" is not assignable to "Predicted[V]"' in found[number]
