r"""A 3x3 convolution, fast on every platform and inside `jax.lax.scan`.

Under `jax.vmap`, a 3x3 convolution per example becomes one over the batch. On GPU and TPU that is the
compiler's own. On CPU it is a matrix product over shifted copies of a few examples at a time, small enough
to stay in the cache: about 1.5 times as fast, and tens of times within `jax.lax.scan`, where XLA for CPU
misses its fast kernel for the weight gradient. A convolution is linear in the image and in the weights, so
it is two JAX primitives, each the other's derivative: forward and reverse mode, any order, `vmap`, `jit`,
`scan` and `jax.checkpoint` work.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

# Pixels to unfold at a time on CPU: fewer cost more calls, more fall out of the cache. From 1000 to 4000
# the time varies by 15 %.
_PIXELS_AT_A_TIME = 2048

Images = Float[Array, "batch height width channels_in"]
Outputs = Float[Array, "batch height width channels_out"]
Weights = Float[Array, "3 3 channels_in channels_out"]
_Rows = Float[Array, "three channels_in three_outputs"]
_dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)


def _native(x: Images, w: Weights) -> Outputs:
    """The compiler's convolution."""
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _native_weights(x: Images, g: Outputs) -> Weights:
    """The transpose of `_native` in its weights."""
    like = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda w: _native(x, w), like)(g)[0]


def _pieces(x: Images) -> Float[Array, "pieces some height width channels_in"]:
    """Divide a batch into equal pieces of at most about `_PIXELS_AT_A_TIME` pixels."""
    batch, height, width, channels = x.shape
    fits = max(1, min(batch, _PIXELS_AT_A_TIME // (height * width)))
    some = next(n for n in range(fits, 0, -1) if batch % n == 0)
    return x.reshape(batch // some, some, height, width, channels)


def _columns(x: Images) -> Float[Array, "batch padded width three_channels"]:
    """Each pixel with its left and right neighbours, with a row of zeros above and below."""
    width = x.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, :, j : j + width] for j in range(3)], axis=-1)


def _matmul(x: Images, w: Weights) -> Outputs:
    """`_native` as three matrix products, one for each row of the kernel."""
    batch, height, width, _ = x.shape
    kernel = w.reshape(3, -1, w.shape[-1])

    def piece(x: Images) -> Outputs:
        columns = _columns(x)
        rows = [_dot(columns[:, i : i + height], kernel[i]) for i in range(3)]
        return (rows[0] + rows[1] + rows[2]).astype(x.dtype)

    return jax.lax.map(piece, _pieces(x)).reshape(batch, height, width, w.shape[-1])


def _matmul_weights(x: Images, g: Outputs) -> Weights:
    """`_native_weights` as matrix products between the image and shifted copies of `g`."""
    height, channels, outputs = x.shape[1], x.shape[-1], g.shape[-1]

    def piece(total: _Rows, pair: tuple[Images, Outputs]) -> tuple[_Rows, None]:
        pixels, columns = pair[0].reshape(-1, channels).T, _columns(pair[1])
        rows = [columns[:, i : i + height].reshape(-1, 3 * outputs) for i in range(3)]
        return total + jnp.stack([_dot(pixels, row) for row in rows]), None

    zeros = jnp.zeros((3, channels, 3 * outputs), jnp.float32)
    total, _ = jax.lax.scan(piece, zeros, (_pieces(x), _pieces(g)))
    # The copy of g shifted by (i, j) meets the weight at the opposite place.
    total = total.reshape(3, channels, 3, outputs).transpose(0, 2, 1, 3)
    return jnp.flip(total, (0, 1)).astype(x.dtype)


def _turned(w: Weights) -> Float[Array, "3 3 channels_out channels_in"]:
    """The weights that convolve the output's gradient into the input's."""
    return jnp.flip(w, (0, 1)).swapaxes(2, 3)


_conv_p = Primitive("diffkit_conv3x3")
_conv_weights_p = Primitive("diffkit_conv3x3_weights")


@_conv_p.def_abstract_eval
def _(x: Any, w: Any) -> Any:
    return x.update(shape=(*x.shape[:3], w.shape[3]))


@_conv_weights_p.def_abstract_eval
def _(x: Any, g: Any) -> Any:
    return x.update(shape=(3, 3, x.shape[3], g.shape[3]))


def _define(primitive: Primitive, native: Callable[..., Any], matmul: Callable[..., Any]) -> None:
    """Give a primitive its code for each platform."""
    for function, platform in ((native, None), (matmul, "cpu")):
        lowering = mlir.lower_fun(function, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)
    primitive.def_impl(jax.jit(lambda *args: primitive.bind(*args)))


_define(_conv_p, _native, _matmul)
_define(_conv_weights_p, _native_weights, _matmul_weights)

# y = conv(x, w) and w = weights(x, g): the transposes of either are made of both.
ad.defbilinear(
    _conv_p, lambda g, x, w: _conv_p.bind(g, _turned(w)), lambda g, x, w: _conv_weights_p.bind(x, g)
)
ad.defbilinear(
    _conv_weights_p,
    lambda dw, x, g: _conv_p.bind(g, _turned(dw)),
    lambda dw, x, g: _conv_p.bind(x, dw),
)


def _batch_conv(args: tuple[Any, ...], dims: tuple[Any, ...]) -> tuple[Any, int]:
    x, w = args
    if dims[1] is not None:  # weights of their own for each example: rare
        return jax.vmap(_native, (dims[0], dims[1]))(x, w), 0
    x = jnp.moveaxis(x, dims[0], 0)
    y = _conv_p.bind(x.reshape(-1, *x.shape[2:]), w)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _batch_conv_weights(args: tuple[Any, ...], dims: tuple[Any, ...]) -> tuple[Any, int]:
    return jax.vmap(_native_weights, dims)(*args), 0


batching.primitive_batchers[_conv_p] = _batch_conv
batching.primitive_batchers[_conv_weights_p] = _batch_conv_weights


def conv2d(
    x: Float[Array, "height width channels_in"], weight: Weights
) -> Float[Array, "height width channels_out"]:
    """A 3x3 convolution of one image `x`, padded with zeros to keep its size, in the dtype of `x`."""
    return _conv_p.bind(x[None], weight.astype(x.dtype))[0]
