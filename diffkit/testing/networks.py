"""The laws of networks. They are built small, and their parameters are moved off their first values,
since layers that start at zero would hide the rest."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffkit.buffers import trainable
from diffkit.networks.base import DTYPES
from diffkit.testing.base import (
    LOGSNR_RANGE,
    NotApplicable,
    Subject,
    draws_numbers,
    law,
    require,
    text,
)

# Not narrower: with one channel in each of the usual 32 groups a group norm removes whatever is added to a
# whole channel, such as a condition.
_SMALL = {"width": 64, "depth": 2, "dropout": 0.0}
_LOGSNR = np.array([LOGSNR_RANGE[0], 0.0, LOGSNR_RANGE[1]], np.float32)
"""Both ends, and the middle."""
_CONDITION = 3


def small(subject: Subject, **options: Any) -> Any:
    """The network with a width of at most 64 and a depth of at most 2, where it has such options."""
    if not subject.is_constructor:
        return subject.make(**options)
    defaults = {name: parameter.default for name, parameter in subject.parameters.items()}
    reduced = {
        name: min(defaults[name], value)
        for name, value in _SMALL.items()
        if isinstance(defaults.get(name), int | float)
    }
    try:
        return subject.make(**reduced, **options)
    except ValueError:
        return subject.make(**options)


def accepted_shapes(subject: Subject) -> list[tuple[int, ...]]:
    """The usual shapes, an image and a vector, for which the network can be built."""
    if not subject.is_constructor:
        return [tuple(subject.context["shape"])]
    found = []
    for shape in ((1, 8, 8), (3, 32, 32), (2,)):
        if len(shape) in map(len, found):
            continue
        # Without memory, without drawing parameters.
        with contextlib.suppress(ValueError):
            eqx.filter_eval_shape(lambda shape=shape: small(subject, shape=shape))
            found.append(shape)
    if not found:
        small(subject, shape=(1, 8, 8))  # raises, with its own reason
    return found


def _moved(network: Any) -> Any:
    """The network with noise added to its parameters."""
    generator = np.random.default_rng(7)
    params, rest = eqx.partition(network, trainable(network))

    def move(leaf: Any) -> Any:
        return leaf + jnp.asarray(0.2 * generator.standard_normal(leaf.shape), leaf.dtype)

    return eqx.combine(jax.tree.map(move, params), rest)


@eqx.filter_jit
def _outputs(network, z, logsnr, condition):
    return jax.vmap(lambda logsnr: network(z, logsnr, condition))(logsnr)


def _evaluate(network: Any, shape: tuple[int, ...], condition: Any = None) -> Any:
    z = jax.random.normal(jax.random.key(8), shape)
    return _outputs(network, z, jnp.asarray(_LOGSNR), condition)


def _check(outputs: Any, shape: tuple[int, ...], given: dict[str, Any]) -> None:
    require(
        outputs.shape[1:] == shape and outputs.dtype == jnp.float32,
        given,
        {"shape of the output": text(outputs.shape[1:]), "dtype": outputs.dtype.name},
        f"{text(shape)} in float32",
    )
    finite = np.isfinite(np.asarray(outputs)).reshape(len(_LOGSNR), -1).all(axis=1)
    given = given | {"logsnr": _LOGSNR}
    require(finite, given, {"all of the output is finite": finite}, "finite numbers")


def _conditional(subject: Subject, shape: tuple[int, ...]) -> Any:
    """The moved network, with a condition where it takes one; made once for all laws."""
    if shape not in subject.made:
        options: dict[str, Any] = {"shape": shape} if subject.is_constructor else {}
        if "condition_size" in subject.parameters:
            options["condition_size"] = _CONDITION
        network = _moved(small(subject, **options))
        subject.made[shape] = network, _evaluate(network, shape)
    return subject.made[shape]


@law("network")
def shape_and_range(subject: Subject) -> None:
    """The output has the input's shape, in float32, and is finite at logsnr 13.3, 0 and -10, for an image
    and a vector, as far as the network takes them. The option outputs multiplies the first axis."""
    for shape in accepted_shapes(subject):
        _, outputs = _conditional(subject, shape)
        _check(outputs, shape, {"shape of the input": text(shape)})
        if "outputs" in subject.parameters:

            def output(z, shape=shape):
                return small(subject, shape=shape, outputs=2)(z, jnp.asarray(0.0))

            # Its shape alone, which costs no parameters.
            found = eqx.filter_eval_shape(output, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
            expected = (2 * shape[0], *shape[1:])
            given = {"shape of the input": text(shape), "outputs": 2}
            require(found == expected, given, {"shape of the output": text(found)}, text(expected))


@law("network")
def shape_and_range_in_bfloat16(subject: Subject) -> None:
    """The same, computing in bfloat16, for networks with the option dtype."""
    if "dtype" not in subject.parameters:
        raise NotApplicable("has no option dtype")
    shape = accepted_shapes(subject)[0]
    network = _moved(small(subject, shape=shape, dtype=DTYPES[1]))
    given = {"shape of the input": text(shape), "dtype": DTYPES[1]}
    _check(_evaluate(network, shape), shape, given)


@law("network")
def deterministic_without_key(subject: Subject) -> None:
    """Without a key it draws no random numbers."""
    shape = accepted_shapes(subject)[0]
    network, _ = _conditional(subject, shape)
    draws = draws_numbers(lambda z: network(z, jnp.asarray(0.0)), jnp.zeros(shape))
    given = {"key": "None", "shape of the input": text(shape)}
    require(not draws, given, {"it draws random numbers": draws}, "False")


@law("network")
def heeds_its_condition(subject: Subject) -> None:
    """Built with condition_size, it takes a condition and uses it; None equals zeros."""
    if "condition_size" not in subject.parameters:
        raise NotApplicable("has no option condition_size")
    shape = accepted_shapes(subject)[0]
    network, none = _conditional(subject, shape)
    given = {"condition_size": _CONDITION, "shape of the input": text(shape)}
    size = float(jnp.max(jnp.abs(none)))
    for what, value, holds, expected in (
        ("zeros", 0.0, lambda d: d <= 1e-5, "at most 1e-5"),
        ("threes", 3.0, lambda d: d > 1e-4, "more than 1e-4"),
    ):
        outputs = _evaluate(network, shape, jnp.full((_CONDITION,), value))
        difference = float(jnp.max(jnp.abs(outputs - none))) / size
        numbers = {f"largest difference between {what} and None, by the output": difference}
        require(holds(difference), given, numbers, expected)
