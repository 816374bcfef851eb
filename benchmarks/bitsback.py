"""Bits-back coding: its overhead against the resolution of the lattices, and its speed.

    python benchmarks/bitsback.py                   # both tables
    python benchmarks/bitsback.py --overhead        # the first: bits/dim beyond the bound
    python benchmarks/bitsback.py --speed           # the second: images/s, and the coder's share
    python benchmarks/bitsback.py --speed --run RUN --steps 100 --batch-sizes 16 64 --count 256

Overhead: what the stack grows by, less the bound along the very latents that were coded, for images whose
distribution is known (eight points in 64 dimensions of 17 levels, and their exact denoiser), so that all
there is to see is the coder's own loss. Initial bits per dimension of one batch.

Speed: the preset vdm's U-Net at 1x8x8 with 17 levels, untrained, or the model of a run on its own test
images. Compilation is not counted. The encoder and the decoder do the same work.
"""

import argparse
import time

import jax
import numpy as np

import diffkit as dk
from diffkit_bitsback import Chain, ChainStatistics

RESOLUTIONS = (0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 16.0)
OVERHEAD_STEPS = (10, 100, 1000)


def chain(model: dk.DiffusionModel, steps: int, **options) -> Chain:
    logsnrs = np.asarray(dk.UniformT()(model.schedule, steps), np.float64)[::-1]
    return Chain(model, logsnrs, **options)


def overhead(count: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, 17, size=(8, 64), dtype=np.uint8)
    images = points[rng.integers(0, 8, size=count)]
    decoder = dk.DiscretizedDecoder(levels=17)
    denoiser = dk.analytic.empirical(np.asarray(decoder.encode(points)))
    model = dk.DiffusionModel(denoiser, dk.LinearLogSNR(), decoder, (64,))
    print(f"overhead in bits/dim over {images.size} dimensions, and initial bits per dimension")
    print("points per std " + "".join(f"{f'T = {steps}':>22}" for steps in OVERHEAD_STEPS))
    for resolution in RESOLUTIONS:
        cells = ""
        for steps in OVERHEAD_STEPS:
            _, taken = chain(model, steps, batch_size=count, resolution=resolution).encode(images)
            initial = taken.initial_bits / taken.dimensions
            cells += f"{taken.overhead_bits_per_dim:>14.6f}{initial:>8.2f}"
        print(f"{resolution:<15}{cells}", flush=True)


def per_second(taken: ChainStatistics) -> float:
    return taken.images / (taken.network_seconds + taken.coding_seconds)


def speed(run: str | None, steps: int, batch_sizes: list[int], count: int) -> None:
    if run is None:
        model = dk.preset("vdm").model(shape=(1, 8, 8), levels=17, key=jax.random.key(0))
        source = dk.get("data", "digits")().test
    else:
        loaded = dk.load_run(run)
        model, source = loaded.model, loaded.data().test
    images = np.asarray(source.gather(np.arange(count) % len(source)))
    print(f"T = {steps}, {count} images of shape {model.shape}")
    print("batch   encode images/s   decode images/s   coder's share   coder ns/dim/step")
    for batch_size in batch_sizes:
        codec = chain(model, steps, batch_size=batch_size)
        # All that is compiled, is compiled here.
        codec.decode(codec.encode(images[:batch_size])[0], min(batch_size, count))
        words, taken = codec.encode(images)
        began = time.perf_counter()
        decoded = codec.decode(words, count)
        decoding = time.perf_counter() - began
        if not np.array_equal(decoded, images):
            raise RuntimeError(f"batch_size={batch_size}: what was decoded is not what was encoded.")
        share = taken.coding_seconds / (taken.network_seconds + taken.coding_seconds)
        each = 1e9 * taken.coding_seconds / (taken.dimensions * steps)
        print(
            f"{batch_size:<8}{per_second(taken):<18.2f}{count / decoding:<18.2f}{share:<16.0%}{each:.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--dimensions", type=int, default=65536, help="of all images, for the overhead")
    parser.add_argument("--run", help="the model of this run, on its own test images")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--count", type=int, default=128)
    given = parser.parse_args()
    both = given.overhead == given.speed
    if given.overhead or both:
        overhead(max(given.dimensions // 64, 1))
    if given.speed or both:
        speed(given.run, given.steps, given.batch_sizes, given.count)


if __name__ == "__main__":
    main()
