"""Uses of predictions that a static checker must refuse, and right ones beside them.

Nothing here is run. `tests/test_predictions.py` compares the lines at which the checker finds an error
with those that end in the mark.
"""

from jaxtyping import Array, Float

import diffkit as dk
import diffkit_flow
from diffkit.processes import rescaled_posterior

Velocity = diffkit_flow.Velocity
process = dk.VariancePreserving()


def of_v(v: dk.Predicted[dk.V]) -> None: ...


def of_score(score: dk.Predicted[dk.Score]) -> None: ...


def of_velocity(velocity: dk.Predicted[Velocity]) -> None: ...


def of_any(prediction: dk.Predicted[dk.AbstractParameterization]) -> None: ...


def array(value: Float[Array, "..."]) -> None: ...


def uses(z: Float[Array, " n"], level: dk.NoiseLevel, prediction: dk.Prediction) -> None:
    velocity = prediction.as_target(Velocity())

    process.posterior(z, prediction.x, level, level)
    process.posterior(z, z, level, level)
    process.posterior(z, prediction.eps, level, level)  # error
    process.posterior(z, prediction.v, level, level)  # error
    process.posterior(prediction.x, z, level, level)  # error

    process.perturb(prediction.x, prediction.eps, level)
    process.perturb(z, prediction.eps, level)
    process.perturb(prediction.eps, prediction.x, level)  # error
    process.perturb(z, prediction.score, level)  # error

    rescaled_posterior(z, prediction.x, 0.0, 1.0)
    rescaled_posterior(z, velocity, 0.0, 1.0)  # error

    dk.Prediction(prediction.x, prediction.eps, level)
    dk.Prediction(z, z, level)
    dk.Prediction(prediction.eps, prediction.x, level)  # error
    dk.Prediction(prediction.v, z, level)  # error

    dk.V().target(prediction.x, prediction.eps, level)
    dk.V().target(prediction.eps, prediction.x, level)  # error
    Velocity().target(prediction.x, prediction.score, level)  # error

    dk.V().solve(prediction.v, z, level)
    dk.V().solve(z, z, level)
    dk.V().solve(prediction.eps, z, level)  # error
    dk.V().solve(velocity, z, level)  # error
    dk.X().solve(prediction.eps, z, level)  # error
    dk.Epsilon().solve(prediction.score, z, level)  # error
    dk.Score().solve(prediction.score, z, level)
    dk.Score().solve(prediction.eps, z, level)  # error
    Velocity().solve(velocity, z, level)
    Velocity().solve(prediction.v, z, level)  # error

    x, eps = dk.V().solve(prediction.v, z, level)
    dk.Prediction(x, eps, level)
    dk.Prediction(eps, x, level)  # error

    of_v(prediction.v)
    of_v(dk.Predicted(z, dk.V()))
    of_v(prediction.as_target(dk.V()))
    of_v(dk.Prediction.of(velocity, z, level).v)
    of_v(prediction.score)  # error
    of_v(velocity)  # error
    of_v(dk.Predicted(z, dk.X()))  # error
    of_v(prediction.as_target(dk.Epsilon()))  # error
    of_v(z)  # error
    of_score(prediction.score)
    of_score(prediction.eps)  # error
    of_score(-prediction.eps / level.sigma)  # error
    of_velocity(velocity)
    of_velocity(dk.Prediction.of(prediction.v, z, level).as_target(Velocity()))
    of_velocity(prediction.v)  # error

    dk.Prediction.of(prediction.score, z, level)
    dk.Prediction.of(z, z, level)  # error

    # A target that is not known is none of those that are.
    of_any(prediction.x)  # error
    array(prediction.x.value)
    array(prediction.x)  # error
    array(z + prediction.x)
    array(prediction.x * 2.0 - prediction.eps)
    array(prediction.x[0])
