"""Time of one training step of VDM's U-Net and of its parts, and compile time against depth.

    python benchmarks/train_step.py                      # float32, batch 32, width 64, depth 4
    python benchmarks/train_step.py --dtype bfloat16 --batch 128
    python benchmarks/train_step.py --skip-deep          # without the network of depth 32

Times are the median of `--repeats` runs after one that is not counted. On a GPU the deep network
(width 128, depth 32, batch 128) is run as well; on a CPU it is only compiled. The number to watch
there is the ratio to the compile time of the shallow network.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from diffkit_vdm.unet import VDMUNet

SHAPE = (3, 32, 32)
DROPOUT = 0.1


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median time of a call in seconds."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Setup:
    """A network, its optimiser, and the functions that are timed."""

    def __init__(self, *, width: int, depth: int, batch: int, dtype: str):
        network = VDMUNet(
            SHAPE, width=width, depth=depth, dropout=DROPOUT, dtype=dtype, key=jax.random.key(0)
        )
        self.params, self.static = eqx.partition(network, eqx.is_array)
        self.optimiser = optax.adamw(2e-4)
        self.state = self.optimiser.init(self.params)
        self.x = jax.random.uniform(jax.random.key(1), (batch, *SHAPE), minval=-1.0)
        self.key = jax.random.key(2)

    def noise(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Latents under a linear schedule, their logsnr, and the noise in them."""
        key_t, key_eps = jax.random.split(key)
        t = (jax.random.uniform(key_t) + jnp.arange(x.shape[0]) / x.shape[0]) % 1.0
        logsnr = 13.3 - 18.3 * t
        eps = jax.random.normal(key_eps, x.shape)
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        z = alpha[:, None, None, None] * x + sigma[:, None, None, None] * eps
        return z, logsnr, eps

    def loss(self, params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        """Mean squared error of the predicted noise."""
        key_noise, key_dropout = jax.random.split(key)
        z, logsnr, eps = self.noise(x, key_noise)
        network = eqx.combine(params, self.static)
        keys = jax.random.split(key_dropout, x.shape[0])
        got = jax.vmap(lambda z, logsnr, key: network(z, logsnr, key=key))(z, logsnr, keys)
        return jnp.mean(jnp.square(eps - got))

    def update(self, grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        """The optimiser's step."""
        updates, state = self.optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(self, params: Any, state: Any, x: jax.Array, key: jax.Array) -> tuple[Any, ...]:
        """One training step."""
        value, grads = jax.value_and_grad(self.loss)(params, x, key)
        return *self.update(grads, params, state), value

    def compile(self) -> tuple[Any, float, float]:
        """The compiled step, and the seconds to trace and to compile it."""
        start = time.perf_counter()
        lowered = jax.jit(self.step, donate_argnums=(0, 1)).lower(
            self.params, self.state, self.x, self.key
        )
        middle = time.perf_counter()
        compiled = lowered.compile()
        return compiled, middle - start, time.perf_counter() - middle

    def time_step(self, compiled: Any, repeats: int) -> float:
        """Median time of a step; consumes the parameters, which are donated."""

        def run() -> Any:
            self.params, self.state, value = compiled(self.params, self.state, self.x, self.key)
            return self.params, value

        return timed(run, repeats)

    def time_parts(self, repeats: int) -> dict[str, float]:
        """Median time of each part, compiled alone."""
        batch = self.x.shape[0]
        blocks = 2 * self.static.depth + 3
        height, columns, width = SHAPE[1], SHAPE[2], self.static.width

        def masks(key: jax.Array) -> jax.Array:
            from diffkit.networks.layers import dropout_mask

            keys = jax.random.split(key, (blocks, batch))

            def some(keys: jax.Array) -> jax.Array:
                return jax.vmap(lambda k: dropout_mask((height, columns, width), DROPOUT, key=k))(
                    keys
                )

            return jax.lax.map(some, keys)

        gradient = jax.jit(jax.value_and_grad(self.loss))
        forward, noise = jax.jit(self.loss), jax.jit(self.noise)
        dropout, update = jax.jit(masks), jax.jit(self.update)
        _, grads = gradient(self.params, self.x, self.key)
        return {
            "forward": timed(lambda: forward(self.params, self.x, self.key), repeats),
            "forward and backward": timed(lambda: gradient(self.params, self.x, self.key), repeats),
            "optimiser": timed(lambda: update(grads, self.params, self.state), repeats),
            "noise": timed(lambda: noise(self.x, self.key), repeats),
            "dropout masks": timed(lambda: dropout(self.key), repeats),
        }


def machine() -> str:
    """The device, the cores and the versions, in two lines."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = jax.devices()[0]
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("jax", "jaxlib", "equinox", "optax")
    )
    return (
        f"{device.platform}: {device.device_kind}, {len(jax.devices())} device(s), {cores} cores\n"
        f"Python {platform.python_version()}, {packages}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-deep", action="store_true", help="leave out width 128, depth 32")
    args = parser.parse_args()

    print(machine())
    print(
        f"VDMUNet {SHAPE}, width {args.width}, depth {args.depth}, batch {args.batch}, "
        f"{args.dtype}, dropout {DROPOUT}"
    )
    setup = Setup(width=args.width, depth=args.depth, batch=args.batch, dtype=args.dtype)
    compiled, trace, shallow = setup.compile()
    print(f"  {'trace':24s}{trace:9.3f} s")
    print(f"  {'compile':24s}{shallow:9.3f} s")
    print(f"  {'step':24s}{setup.time_step(compiled, args.repeats):9.4f} s")
    for name, seconds in setup.time_parts(args.repeats).items():
        print(f"  {name:24s}{seconds:9.4f} s")
    if args.skip_deep:
        return

    on_cpu = jax.devices()[0].platform == "cpu"
    batch = args.batch if on_cpu else 128
    print(f"VDMUNet {SHAPE}, width 128, depth 32, batch {batch}, {args.dtype}, dropout {DROPOUT}")
    del setup, compiled
    setup = Setup(width=128, depth=32, batch=batch, dtype=args.dtype)
    compiled, trace, deep = setup.compile()
    print(f"  {'trace':24s}{trace:9.3f} s")
    print(f"  {'compile':24s}{deep:9.3f} s   {deep / shallow:.2f} x the compile time above")
    if not on_cpu:
        print(f"  {'step':24s}{setup.time_step(compiled, args.repeats):9.4f} s")


if __name__ == "__main__":
    main()
