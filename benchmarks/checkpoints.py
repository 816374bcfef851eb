"""What verification costs: saving and loading a checkpoint with and without it.

    python benchmarks/checkpoints.py                 # the networks of the presets for digits and CIFAR-10
    python benchmarks/checkpoints.py --repeats 9

Both ways alternate within one run, and the figures are medians. `save` without verification writes the
same files; with it, arrays and files get checksums, the arrays are read back, and the files are flushed to
the disk. `load` without verification reads the same files. The last column is the share of an hour of
training that verification takes at the default interval between checkpoints, given the time of a step.
"""

import argparse
import contextlib
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax

import diffkit as dk
from diffkit.training import Checkpoints, TrainState, init_state
from diffkit.training import checkpoints as module
from diffkit.training.manifests import Manifest

EVERY = dk.TrainConfig().checkpoint_every

# Network, shape, seconds of a step on two cores (docs/benchmarks.md).
MODELS = {
    "MLP, 64 wide, on points": (("mlp", {"width": 64, "depth": 2}), (2,), 0.01),
    "U-Net of digits": ("unet", (1, 8, 8), 0.05),
    "VDM's U-Net, width 64, depth 4": (("vdm_unet", {"width": 64, "depth": 4}), (3, 32, 32), 2.75),
    "VDM's U-Net, width 128, depth 32": (("vdm_unet", {"width": 128, "depth": 32}), (3, 32, 32), None),
}


@contextlib.contextmanager
def unverified(*, saving: bool) -> Iterator[None]:
    """Neither checksums, nor reading back, nor flushing: what checkpoints were without manifests."""
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (module, "checksums", {}),
            (module, "checksum_of_file", ""),
            (module, "_sync", None),
            (Manifest, "check_files", None),
            (Manifest, "check_arrays", None),
            *([(module, "_read_arrays", {})] if saving else []),
        ):
            stack.enter_context(mock.patch.object(owner, name, return_value=value))
        yield


def measured(state: TrainState, directory: Path, *, verified: bool) -> dict[str, float]:
    """Seconds to save and to load a state, and the size of its checkpoint in bytes."""
    checkpoints, times = Checkpoints(directory), [time.perf_counter()]
    with contextlib.nullcontext() if verified else unverified(saving=True):
        checkpoints.save(1, state, {"seconds": 0.0})
    times.append(time.perf_counter())
    with contextlib.nullcontext() if verified else unverified(saving=False):
        step = checkpoints.latest_step()
        assert step == 1
        jax.block_until_ready(checkpoints.restore(step, like=state)[0].step)
    times.append(time.perf_counter())
    gc.collect()
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    shutil.rmtree(directory)
    return {"save": times[1] - times[0], "load": times[2] - times[1], "size": size}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="models whose name contains this")
    args = parser.parse_args()
    gc.disable()  # it takes as long as a load, at moments of its own
    print(
        f"{len(os.sched_getaffinity(0))} cores, medians of {args.repeats}; a checkpoint every {EVERY} steps"
    )
    for name, (network, shape, step) in MODELS.items():
        if args.only not in name:
            continue
        model = dk.preset("vdm", network=network).model(shape=shape, levels=256, key=jax.random.key(0))
        state, runs = init_state(model, dk.TrainConfig()), {True: [], False: []}
        with tempfile.TemporaryDirectory() as place:
            for _ in range(args.repeats + 1):
                for verified, times in runs.items():
                    times.append(measured(state, Path(place) / "checkpoints", verified=verified))
        # The first is not counted.
        with_it, without = (
            {what: statistics.median(each[what] for each in runs[verified][1:]) for what in runs[True][0]}
            for verified in (True, False)
        )
        print(f"{name}: {with_it['size'] / 1e6:.1f} MB")
        for what in ("save", "load"):
            more = with_it[what] / without[what] - 1
            print(f"  {what}  {without[what]:.3f} s without, {with_it[what]:.3f} s with: {more:+.1%}")
        if step is not None:
            more = with_it["save"] - without["save"]
            print(f"  of an hour of training at {step} s a step: {more / (EVERY * step + more):.2%}")


if __name__ == "__main__":
    main()
