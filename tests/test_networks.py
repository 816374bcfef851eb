"""Networks and their layers, against brute force in float64 numpy."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffkit.networks.base import normalise_logsnr
from diffkit.networks.convolution import conv2d
from diffkit.networks.embeddings import fourier_features, sinusoidal_embedding
from diffkit.networks.layers import (
    Dense,
    ResidualBlock,
    SelfAttention,
    dropout,
    group_norm,
    normalisation_groups,
    scan_blocks,
    stack,
)
from diffkit.networks.mlp import MLP
from diffkit.networks.unet import UNet


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _conv_brute_force(x, w):
    """3x3 convolution (correlation) with zeros outside, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height, width, w.shape[-1]))
    for i in range(3):
        for j in range(3):
            out += np.einsum("hwc,cd->hwd", padded[i : i + height, j : j + width], w[i, j])
    return out


def _plain(x, w):
    """The compiler's convolution of a batch."""
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _batched(x, w):
    return jax.vmap(conv2d, (0, None))(x, w)


def _close(got, want, tolerance):
    """Largest difference relative to the largest value."""
    want = np.asarray(want, np.float64)
    assert np.max(np.abs(np.asarray(got, np.float64) - want)) <= tolerance * np.max(np.abs(want))


# The batch of 6 images of 20 x 24 does not fit into one piece, so the CPU's loop over pieces runs.
BATCH, HEIGHT, WIDTH, INPUTS, OUTPUTS = 6, 20, 24, 3, 5


@pytest.fixture(scope="module")
def convolution():
    x = _normal(0, BATCH, HEIGHT, WIDTH, INPUTS)
    w = _normal(1, 3, 3, INPUTS, OUTPUTS)
    return x, w, _normal(2, BATCH, HEIGHT, WIDTH, OUTPUTS)


class TestConvolution:
    def test_equals_brute_force(self, convolution):
        x, w, _ = convolution
        want = [_conv_brute_force(image, w) for image in x]
        _close(jax.jit(_batched)(x, w), want, 1e-6)
        _close(conv2d(x[0], w), want[0], 1e-6)

    def test_shapes_of_one_row_or_column(self):
        w = _normal(1, 3, 3, 2, 2)
        for shape in ((1, 1, 2), (1, 5, 2), (5, 1, 2)):
            x = _normal(0, *shape)
            _close(conv2d(x, w), _conv_brute_force(x, w), 1e-6)

    def test_reverse_mode(self, convolution):
        """The primitives' transposes against autodiff of the compiler's own convolution."""
        x, w, g = convolution
        want = jax.vjp(_plain, x, w)[1](g)
        got = jax.jit(lambda x, w, g: jax.vjp(_batched, x, w)[1](g))(x, w, g)
        for a, b in zip(got, want, strict=True):
            _close(a, b, 2e-6)

    def test_forward_mode(self, convolution):
        """The product rule: d conv(x, w) = conv(dx, w) + conv(x, dw)."""
        x, w, _ = convolution
        dx, dw = _normal(3, *x.shape), _normal(4, *w.shape)
        _, got = jax.jit(lambda *args: jax.jvp(_batched, args[:2], args[2:]))(x, w, dx, dw)
        _close(got, _plain(dx, w) + _plain(x, dw), 2e-6)

    def test_second_order(self, convolution):
        """Gradient of the squared gradient, which uses every transpose rule."""
        x, w, g = (a[:2] for a in convolution)
        w = convolution[1]

        def squared_gradient(conv, x, w):
            gradients = jax.grad(lambda x, w: jnp.sum(jnp.sin(conv(x, w)) * g), (0, 1))(x, w)
            return sum(jnp.sum(jnp.square(a)) for a in gradients)

        got, want = (
            jax.jit(jax.grad(lambda x, w, f=f: squared_gradient(f, x, w), (0, 1)))(x, w)
            for f in (_batched, _plain)
        )
        for a, b in zip(got, want, strict=True):
            _close(a, b, 1e-5)

    def test_weights_for_each_example(self, convolution):
        x, w, g = convolution
        ws = w[None] * jnp.arange(1.0, BATCH + 1).reshape(-1, 1, 1, 1, 1)
        got = jax.jit(jax.vmap(conv2d))(x, ws)
        _close(got, [_conv_brute_force(a, b) for a, b in zip(x, ws, strict=True)], 1e-6)
        # A gradient for each example: vmap of grad.
        each = jax.jit(jax.vmap(jax.grad(lambda w, x, g: jnp.sum(conv2d(x, w) * g)), (None, 0, 0)))(w, x, g)
        _close(jnp.sum(each, 0), jax.vjp(_plain, x, w)[1](g)[1], 2e-6)

    def test_inside_scan_and_checkpoint(self, convolution):
        x, _, _ = convolution
        ws = _normal(5, 3, 3, 3, INPUTS, INPUTS) / 5

        def run(conv):
            @jax.checkpoint
            def step(x, w):
                return jnp.tanh(conv(x, w)), None

            return jax.jit(jax.grad(lambda ws: jnp.sum(jax.lax.scan(step, x, ws)[0])))(ws)

        _close(run(_batched), run(_plain), 1e-5)

    def test_bfloat16(self, convolution):
        """Inputs rounded to bfloat16, sums in float32: one rounding, 2^-8, at the end."""
        x, w, g = convolution
        x16, g16 = x.astype(jnp.bfloat16), g.astype(jnp.bfloat16)
        y, pull = jax.vjp(_batched, x16, w)
        assert y.dtype == jnp.bfloat16
        _close(y.astype(jnp.float32), _plain(x, w), 0.02)
        dx, dw = pull(g16)
        assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.float32)
        want = jax.vjp(_plain, x, w)[1](g)
        _close(dx.astype(jnp.float32), want[0], 0.02)
        _close(dw, want[1], 0.02)


class TestGroupNorm:
    @pytest.mark.parametrize("groups", [1, 4, 12])
    def test_equals_float64(self, groups):
        x = 3.0 + 0.5 * _normal(0, 5, 7, 12)
        scale, bias = _normal(1, 12), _normal(2, 12)
        got = group_norm(x, scale, bias, groups)
        grouped = np.asarray(x, np.float64).reshape(5, 7, groups, -1)
        mean = grouped.mean((0, 1, 3), keepdims=True)
        variance = grouped.var((0, 1, 3), keepdims=True)
        want = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(5, 7, 12)
        want = want * np.asarray(scale, np.float64) + np.asarray(bias, np.float64)
        # The one-pass variance is good to about 1e-7 (1 + mean^2 / variance) = 4e-6.
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)

    def test_constant_input_gives_the_bias(self):
        x = jnp.full((4, 4, 8), 2.0)
        got = group_norm(x, jnp.ones((8,)), jnp.arange(8.0), 2)
        np.testing.assert_allclose(got, np.broadcast_to(np.arange(8.0), x.shape), atol=1e-3)

    def test_number_of_groups(self):
        assert normalisation_groups(64, 32) == 32
        assert normalisation_groups(48, 32) == 16
        assert normalisation_groups(7, 32) == 1


def test_attention_equals_naive_softmax():
    """180 pixels: more than are attended to at a time, and not a multiple of it."""
    block = SelfAttention(8, groups=4, key=jax.random.key(0))
    block = eqx.tree_at(lambda b: b.out.weight, block, _normal(1, 8, 8))
    x = _normal(2, 12, 15, 8)
    h = np.asarray(block.norm(x), np.float64).reshape(-1, 8)

    def dense(layer, h):
        return h @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias, np.float64)

    q, k, v = (dense(layer, h) for layer in (block.query, block.key, block.value))
    weights = np.exp(q @ k.T / math.sqrt(8))
    weights /= weights.sum(1, keepdims=True)
    want = np.asarray(x) + dense(block.out, weights @ v).reshape(x.shape)
    np.testing.assert_allclose(eqx.filter_jit(block)(x), want, atol=1e-5)


class TestDropout:
    def test_fraction_and_mean(self):
        """10^6 units, within 5 standard deviations: a false alarm in 1.7 million per check."""
        count = 1_000_001
        for rate in (0.1, 0.5, 0.9):
            out = dropout(jnp.ones((count,)), rate, key=jax.random.key(0))
            deviation = math.sqrt(rate * (1 - rate) / count)
            assert abs(float(jnp.mean(out == 0)) - rate) < 5 * deviation + 2**-16
            assert abs(float(jnp.mean(out)) - 1) < 5 * deviation / (1 - rate)

    def test_halves_of_a_word_are_independent(self):
        """Units i and i + n/2 share a random word; their joint fraction is the product."""
        count = 2_000_000
        kept = dropout(jnp.ones((count,)), 0.5, key=jax.random.key(1)) > 0
        both = float(jnp.mean(kept[: count // 2] & kept[count // 2 :]))
        assert abs(both - 0.25) < 5 * math.sqrt(0.25 * 0.75 / (count // 2))

    def test_off_without_key_or_rate(self):
        x = _normal(0, 10)
        assert dropout(x, 0.5, key=None) is x
        assert dropout(x, 0.0, key=jax.random.key(0)) is x


class TestEmbeddings:
    def test_sinusoidal_embedding(self):
        angles = 0.3 * 1000 * 10000.0 ** (-np.arange(4) / 3)
        want = [*np.sin(angles), *np.cos(angles)]
        np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(0.3), 8), want, atol=2e-4)
        odd = sinusoidal_embedding(jnp.asarray(0.3), 9)
        np.testing.assert_allclose(odd, [*want, 0.0], atol=2e-4)
        with pytest.raises(ValueError, match="at least 4; got 3"):
            sinusoidal_embedding(jnp.asarray(0.3), 3)

    def test_fourier_features(self):
        z = jnp.asarray([[0.1, -0.7]])
        got = fourier_features(z, (0, 3))
        angles = 2 * np.pi * np.asarray([0.1 * 1, 0.1 * 8, -0.7 * 1, -0.7 * 8])
        np.testing.assert_allclose(got, [[*np.sin(angles), *np.cos(angles)]], atol=1e-5)
        assert fourier_features(z, ()).shape == (1, 0)

    def test_logsnr_on_the_unit_interval(self):
        for logsnr, want in ((13.3, 0.0), (-5.0, 1.0), (4.15, 0.5)):
            got = normalise_logsnr(jnp.asarray(logsnr), (13.3, -5.0))
            assert float(got) == pytest.approx(want, abs=1e-6)


def _filled(network, seed=7):
    """The network with noise on every parameter, so that those that start at zero matter."""
    leaves, tree = jax.tree.flatten(network)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize("remat", [False, True])
def test_scan_equals_a_loop(remat):
    """Values and gradients of scanned blocks against the same blocks one by one."""
    blocks = _filled(stack(lambda key: ResidualBlock(4, 4, 3, groups=2, key=key), 3, key=jax.random.key(0)))
    x, embedding = _normal(1, 4, 6, 4), _normal(2, 3)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def scanned(blocks):
        h, _ = scan_blocks(lambda b, h, _: (b(h, embedding), None), blocks, x, None, remat=remat)
        return jnp.sum(jnp.square(h))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def looped(blocks):
        h = x
        for i in range(3):
            h = jax.tree.map(lambda a, i=i: a[i], blocks)(h, embedding)
        return jnp.sum(jnp.square(h))

    (value, gradient), (want, want_gradient) = scanned(blocks), looped(blocks)
    assert float(value) == pytest.approx(float(want), rel=1e-5)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.max(jnp.abs(b)))))


def test_block_with_a_skip_equals_numpy():
    """The formula of the residual block, with channels appended, in float64."""
    block = _filled(ResidualBlock(6, 4, 3, groups=2, key=jax.random.key(0)))
    x, skip, embedding = _normal(1, 5, 4, 4), _normal(2, 5, 4, 2), _normal(3, 3)

    def norm_swish(norm, h):
        grouped = h.reshape(*h.shape[:2], norm.groups, -1)
        mean, var = grouped.mean((0, 1, 3), keepdims=True), grouped.var((0, 1, 3), keepdims=True)
        h = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(h.shape)
        h = h * np.asarray(norm.scale) + np.asarray(norm.bias)
        return h / (1 + np.exp(-h))

    wide = np.concatenate([np.asarray(x, np.float64), np.asarray(skip)], -1)
    h = _conv_brute_force(norm_swish(block.norm1, wide), block.conv1.weight)
    h = h + np.asarray(block.conv1.bias) + np.asarray(embedding) @ np.asarray(block.project.weight)
    h = _conv_brute_force(norm_swish(block.norm2, h), block.conv2.weight)
    shortcut = wide @ np.asarray(block.shortcut.weight) + np.asarray(block.shortcut.bias)
    want = h + np.asarray(block.conv2.bias) + shortcut
    got = eqx.filter_jit(block)(x, embedding, skip=skip)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_initial_weights_have_unit_gain():
    """Lecun: variance 1 / inputs. 10^5 weights, 5 standard deviations of a normal's variance."""
    weight = Dense(100, 1000, key=jax.random.key(0)).weight
    assert float(jnp.var(weight)) * 100 == pytest.approx(1.0, abs=5 * math.sqrt(2 / 1e5))


def _mlp(**options):
    return MLP((2,), width=8, depth=2, fourier=(0, 2), dropout=0.5, condition_size=3, **options)


def _unet(**options):
    return UNet(
        (1, 2, 4),
        width=8,
        depth=1,
        multipliers=(1, 2),
        attention=(1,),
        dropout=0.5,
        condition_size=3,
        **options,
    )


@eqx.filter_jit
def _run(network, z, logsnr, condition=None, key=None):
    return jax.vmap(lambda z, logsnr: network(z, logsnr, condition, key=key))(z, logsnr)


@pytest.mark.parametrize("make", [_mlp, _unet])
class TestNetworks:
    """Every network has condition_size 3 and dropout 0.5 here."""

    logsnr = (25.0, 13.3, -5.0, -15.0)

    @pytest.mark.slow
    def test_both_ends_of_logsnr_and_both_dtypes(self, make):
        """Finite, and bfloat16 agrees with float32 to a few of its roundings (2^-8)."""
        outputs = []
        for dtype in ("float32", "bfloat16"):
            network = make(dtype=dtype, key=jax.random.key(0))
            z = _normal(0, 4, *network.shape)
            np.testing.assert_array_equal(_run(network, z, jnp.asarray(self.logsnr)), z)
            outputs.append(_run(_filled(network), z, jnp.asarray(self.logsnr)))
            assert outputs[-1].dtype == jnp.float32
            assert bool(jnp.all(jnp.isfinite(outputs[-1])))
        change = float(jnp.max(jnp.abs(outputs[0] - z)))
        assert change > 0.05
        assert float(jnp.max(jnp.abs(outputs[0] - outputs[1]))) < 0.1 * max(1.0, change)

    @pytest.mark.slow  # a law, heeds_its_condition, holds most of it
    def test_logsnr_condition_and_dropout_matter(self, make):
        network = _filled(make(key=jax.random.key(0)))
        z = jnp.broadcast_to(_normal(0, *network.shape), (4, *network.shape))
        logsnr = jnp.asarray(self.logsnr)
        off = _run(network, z, logsnr)
        for a, b in ((0, 1), (1, 2), (2, 3)):  # same z, other noise level
            assert not np.allclose(off[a], off[b])

        # No condition is the condition of zeros, and another condition gives something else.
        np.testing.assert_allclose(_run(network, z, logsnr, jnp.zeros((3,))), off, atol=1e-6)
        assert not np.allclose(_run(network, z, logsnr, jnp.ones((3,))), off)

        # Without a key nothing is dropped; with one, the key decides.
        np.testing.assert_array_equal(_run(network, z, logsnr), off)
        one, same, other = (_run(network, z, logsnr, None, jax.random.key(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other)
        assert not np.allclose(one, off)

    def test_wrong_shapes_are_errors(self, make):
        network = make(key=jax.random.key(0))
        z, logsnr = jnp.zeros(network.shape), jnp.zeros(())
        with pytest.raises(ValueError, match="but this network was built for"):
            network(jnp.concatenate([z, z], -1), logsnr)
        with pytest.raises(ValueError, match=r"condition_size=3 and expects shape \(3,\)"):
            network(z, logsnr, jnp.zeros((2,)))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (MLP, {"shape": ()}, "shape must be one or more positive sizes"),
        (MLP, {"width": 3}, "width must be an integer of at least 4; got 3"),
        (MLP, {"dropout": -0.1}, r"dropout must be a probability in \[0, 1\); got -0.1"),
        (MLP, {"dtype": "float64"}, "dtype must be one of float32, bfloat16; got 'float64'"),
        (MLP, {"logsnr_range": (0.0, 0.0)}, r"logsnr_range must be .* got \(0.0, 0.0\)"),
        (
            UNet,
            {"shape": (8, 8)},
            "network unet takes images .* choose network=mlp, or give .* axis",
        ),
        (UNet, {"shape": (1, 6, 8)}, "divisible by 4, since multipliers has 3 entries"),
        (UNet, {"multipliers": ()}, "multipliers must be"),
        (UNet, {"attention": (3,)}, r"attention must name resolutions from 0 to 2; got \(3,\)"),
    ],
)
def test_bad_arguments_are_named(network, options, message):
    shape = (2,) if network is MLP else (1, 8, 8)
    with pytest.raises(ValueError, match=message):
        network(**({"shape": shape} | options), key=jax.random.key(0))
