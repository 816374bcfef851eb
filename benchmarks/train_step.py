"""Time of one training step of VDM's U-Net and of its parts, and compile time against depth.

    python benchmarks/train_step.py                      # float32, batch 32, width 64, depth 4
    python benchmarks/train_step.py --dtype bfloat16 --batch 128
    python benchmarks/train_step.py --skip-deep          # without the network of depth 32

The step is the library's own: the whole VLB with its end terms, AdamW and the moving average, at
32x32x3 with 256 levels and dropout 0.1. Times are the median of `--repeats` runs after one that is
not counted. On a GPU the deep network (width 128, depth 32, batch 128) is run as well; on a CPU it is
only compiled, and the number to watch is the ratio to the compile time of the shallow network.
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

import diffkit as dk
from diffkit.networks.layers import dropout_mask
from diffkit.objectives import end_terms
from diffkit.training import Objective, init_state
from diffkit.training.state import train_step

SHAPE = (3, 32, 32)
DROPOUT = 0.1
CONFIG = dk.TrainConfig(learning_rate=2e-4, decay="constant")


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Median time of a call in seconds, after one that is not counted."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Setup:
    """A model in training, and the functions that are timed."""

    def __init__(self, *, width: int, depth: int, batch: int, dtype: str):
        options = {"width": width, "depth": depth, "dropout": DROPOUT, "dtype": dtype}
        model = dk.preset("vdm_cifar10", network=("vdm_unet", options)).model(
            shape=SHAPE, key=jax.random.key(0)
        )
        self.width, self.blocks = width, 2 * depth + 3
        self.objective = Objective(dk.ELBO(), None)
        self.state = init_state(model, CONFIG)
        self.key = jax.random.key(2)
        bits = jax.random.bits(jax.random.key(1), (batch, *SHAPE), jnp.uint32)
        self.x = (bits % 256).astype(jnp.uint8)

    def compile(self) -> tuple[Any, float, float]:
        """The compiled step, and the seconds to trace and to compile it."""

        def step(inputs: Any, state: Any) -> Any:
            return train_step(state, *inputs, self.objective, CONFIG)

        start = time.perf_counter()
        lowered = eqx.filter_jit(step, donate="all-except-first").lower((self.x, self.key), self.state)
        middle = time.perf_counter()
        compiled = lowered.compile()
        return compiled, middle - start, time.perf_counter() - middle

    def time_step(self, compiled: Any, repeats: int) -> float:
        """Median time of a step; the state is donated and goes on training."""

        def run() -> Any:
            self.state, metrics = compiled((self.x, self.key), self.state)
            return metrics

        return timed(run, repeats)

    def time_parts(self, repeats: int) -> dict[str, float]:
        """Median time of each part, compiled alone."""
        params, rest = eqx.partition(self.state.model, dk.trainable(self.state.model))
        batch, keys = self.x.shape[0], jax.random.split(self.key, (self.blocks, self.x.shape[0]))

        def loss(params: Any) -> jax.Array:
            return self.objective(eqx.combine(params, rest), self.x, self.key)[0]

        def ends(params: Any) -> jax.Array:
            model = eqx.combine(params, rest)
            prior, reconstruction = end_terms(model, self.x, model.encode(self.x), key=self.key)
            return jnp.mean(prior + reconstruction)

        def masks(keys: jax.Array) -> jax.Array:
            shape = (SHAPE[1], SHAPE[2], self.width)
            return jax.lax.map(jax.vmap(lambda key: dropout_mask(shape, DROPOUT, key=key)), keys)

        def noise(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, (batch, *SHAPE))

        parts: dict[str, tuple[Callable[..., Any], Any]] = {
            "forward": (loss, params),
            "forward and backward": (jax.value_and_grad(loss), params),
            "prior and decoder": (jax.value_and_grad(ends), params),
            "noise": (noise, self.key),
            "dropout masks": (masks, keys),
        }
        times = {}
        for name, (function, argument) in parts.items():
            compiled = eqx.filter_jit(function)
            times[name] = timed(lambda c=compiled, a=argument: c(a), repeats)
        return times


def machine() -> str:
    """The device, the cores and the versions, in two lines."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = jax.devices()[0]
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "equinox", "optax"))
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
