"""What variance minimisation costs in a training step, and what it gains.

    python benchmarks/variance_minimisation.py                 # both, on a CPU some ten minutes
    python benchmarks/variance_minimisation.py --skip-training # the cost alone

The cost is the ratio of the library's own step with `minimise_variance` on and off, the two timed in
turn, so that a machine that drifts drifts for both; and the products of matrices and convolutions in
the two programs, which show whether the network is run once. The gain is the variance of one draw of
the diffusion loss after equally many steps of training, by `diffkit.estimator_statistics`.
"""

import argparse
import re
import statistics
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import diffkit as dk
from diffkit.training import Objective, init_state
from diffkit.training.state import train_step

SHAPE = (3, 32, 32)
CONFIG = dk.TrainConfig(learning_rate=2e-4, decay="constant")
SCHEDULES = {
    "linear_logsnr": "linear_logsnr",
    "cosine": "cosine",
    "learned by the bound": "learned_monotone",
    "learned, least variance": ("learned_monotone", {"minimise_variance": True}),
}


class Step:
    """The compiled step of one schedule."""

    def __init__(self, schedule: Any, *, width: int, depth: int, batch: int):
        network = ("vdm_unet", {"width": width, "depth": depth})
        model = dk.preset("vdm_cifar10", schedule=schedule, network=network).model(
            shape=SHAPE, key=jax.random.key(0)
        )
        self.state = init_state(model, CONFIG)
        x = jax.random.bits(jax.random.key(1), (batch, *SHAPE), jnp.uint32) % 256
        self.inputs = (x.astype(jnp.uint8), jax.random.key(2))
        objective = Objective(dk.ELBO(), None)

        def step(inputs: Any, state: Any) -> Any:
            return train_step(state, *inputs, objective, CONFIG)

        lowered = eqx.filter_jit(step, donate="all-except-first").lower(self.inputs, self.state)
        text = lowered.as_text()
        self.products = len(re.findall(r"stablehlo\.(?:dot_general|convolution)", text))
        self.compiled = lowered.compile()

    def run(self) -> float:
        """One step, in seconds."""
        start = time.perf_counter()
        self.state, metrics = self.compiled(self.inputs, self.state)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def cost(width: int, depth: int, batch: int, repeats: int) -> None:
    """Print the ratio of the two steps."""
    names = ("learned by the bound", "learned, least variance")
    plain, minimising = (Step(SCHEDULES[name], width=width, depth=depth, batch=batch) for name in names)
    for step in (plain, minimising):
        step.run()
    pairs = [(plain.run(), minimising.run()) for _ in range(repeats)]
    ratio = statistics.median(second / first for first, second in pairs)
    print(f"VDMUNet {SHAPE}, width {width}, depth {depth}, batch {batch}, {repeats} pairs of steps")
    for name, times, step in zip(names, zip(*pairs, strict=True), (plain, minimising), strict=True):
        print(f"  {name:24s}{statistics.median(times):8.4f} s, {step.products} products")
    print(f"  ratio, median of pairs  {ratio:8.3f}")


def gain(name: str, steps: int) -> None:
    """Print the variance of the estimate for each schedule, after equally many steps.

    On the training data, whose variance is minimised, and on test data.
    """
    data = dk.get("data", name)()
    network = ("mlp", {"width": 64 if name == "swirl" else 128})
    print(f"{name}, mlp, {steps} steps: nats^2 per example")
    print(
        f"  {'':32s}{'mean':>8s}{'one draw':>10s}{'best':>9s}{'ratio':>7s}"
        f"{'batch, independent':>20s}{'even':>8s}"
    )
    for label, schedule in SCHEDULES.items():
        model = dk.preset("vdm", network=network, schedule=schedule).model(
            shape=data.shape, levels=data.levels, key=jax.random.key(0)
        )
        model = dk.fit(model, data, dk.TrainConfig(steps=steps), progress=False).model
        for where, source in (("train", data.train), ("test", data.test)):
            independent, even = (
                dk.estimator_statistics(
                    model, source, key=jax.random.key(1), time_sampler=times, batches=2048
                )
                for times in (dk.Uniform(), dk.LowDiscrepancy())
            )
            # In the unit of one draw, so that the columns compare.
            batches = [s.batch_variance * s.batch_size for s in (independent, even)]
            print(
                f"  {label:26s}{where:6s}{independent.mean:8.2f}{independent.variance:10.1f}"
                f"{independent.best_variance:9.1f}"
                f"{independent.variance / independent.best_variance:7.3f}"
                f"{batches[0]:20.1f}{batches[1]:8.1f}",
                flush=True,
            )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4000, help="of training")
    parser.add_argument("--skip-training", action="store_true")
    args = parser.parse_args()
    cost(args.width, args.depth, args.batch, args.repeats)
    if not args.skip_training:
        for name in ("swirl", "digits"):
            gain(name, args.steps)


if __name__ == "__main__":
    main()
