"""What verification costs: saving and loading a checkpoint with and without it.

    python benchmarks/checkpoints.py                 # the networks of the presets for digits and CIFAR-10
    python benchmarks/checkpoints.py --repeats 9

Both ways alternate within one run, and the figures are medians. `save` without verification writes the
same files; with it, arrays and files get digests, the arrays are read back, and the files are flushed to
the disk. `load` without verification reads the same files. The last column is the share of an hour of
training that verification takes at the default interval between checkpoints, given the time of a step.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax

import diffkit as dk
from diffkit.training import Checkpoints, init_state
from diffkit.training import checkpoints as module
from diffkit.training.manifests import Manifest

EVERY = dk.TrainConfig().checkpoint_every

# Network, shape, seconds of a step on two cores (docs/benchmarks.md).
MODELS = {
    "MLP, 64 wide, on points": (("mlp", {"width": 64, "depth": 2}), (2,), 0.002),
    "U-Net of digits": ("unet", (1, 8, 8), 0.05),
    "VDM's U-Net, width 64, depth 4": (("vdm_unet", {"width": 64, "depth": 4}), (3, 32, 32), 2.75),
    "VDM's U-Net, width 128, depth 32": (("vdm_unet", {"width": 128, "depth": 32}), (3, 32, 32), None),
}


@contextlib.contextmanager
def unverified() -> Iterator[None]:
    """Neither digests, nor reading back, nor flushing: what checkpoints were without manifests."""
    nothing = {"digests": lambda arrays: {}, "digest_of_file": lambda path: "", "_sync": lambda path: None}
    with contextlib.ExitStack() as stack:
        for name, function in nothing.items():
            stack.enter_context(mock.patch.object(module, name, function))
        for name in ("check_files", "check_arrays"):
            stack.enter_context(mock.patch.object(Manifest, name, lambda *arguments: None))
        yield


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="models whose name contains this")
    args = parser.parse_args()
    print(
        f"{len(os.sched_getaffinity(0))} cores, medians of {args.repeats}; a checkpoint every {EVERY} steps"
    )
    read_back = module._read_arrays
    for name, (network, shape, step) in MODELS.items():
        if args.only and args.only not in name:
            continue
        model = dk.preset("vdm", network=network).model(shape=shape, levels=256, key=jax.random.key(0))
        state = init_state(model, dk.TrainConfig())
        times: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as place:
            for repeat in range(args.repeats + 1):  # the first is not counted
                for verified in (True, False):
                    directory = Path(place) / "checkpoints"
                    with contextlib.ExitStack() as stack:
                        if not verified:
                            stack.enter_context(unverified())
                        checkpoints = Checkpoints(directory)
                        with contextlib.ExitStack() as saving:
                            if not verified:
                                saving.enter_context(
                                    mock.patch.object(module, "_read_arrays", lambda path: {})
                                )
                            save = timed(lambda c=checkpoints: c.save(1, state, {"seconds": 0.0}))
                        assert module._read_arrays is read_back
                        load = timed(lambda c=checkpoints: c.restore(c.latest_step(), like=state))
                    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
                    shutil.rmtree(directory)
                    if repeat:
                        for what, seconds in (("save", save), ("load", load)):
                            times.setdefault(f"{what} {verified}", []).append(seconds)
        median = {what: statistics.median(values) for what, values in times.items()}
        more = median["save True"] - median["save False"]
        print(f"{name}: {size / 1e6:.1f} MB")
        for what in ("save", "load"):
            with_it, without = median[f"{what} True"], median[f"{what} False"]
            print(f"  {what}  {without:.3f} s without, {with_it:.3f} s with: {with_it / without - 1:+.1%}")
        if step is not None:
            print(f"  of an hour of training: {more / (EVERY * step + median['save True']):.2%}")


if __name__ == "__main__":
    main()
