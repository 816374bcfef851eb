"""What importing diffkit and starting its command line cost, over importing JAX and Equinox.

    python benchmarks/import.py                # the least of 7 runs of each, in turn
    python benchmarks/import.py --repeats 20

Each run is a process of its own. CPU time is that of all its threads, and less noisy than wall time.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

COMMANDS = {
    "import jax, equinox": ["-c", "import jax, equinox"],
    "import diffkit": ["-c", "import diffkit"],
    "import diffkit, all registered parts": ["-c", "import diffkit as dk; dk.plugins()"],
    "diffkit --help": ["-m", "diffkit.cli", "--help"],
    "diffkit train --help": ["-m", "diffkit.cli", "train", "--help"],
}


def measure(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds of wall time and of CPU time that the interpreter takes with these arguments."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed with status {process.returncode}.")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    runs = [[measure(command) for command in COMMANDS.values()] for _ in range(repeats)]
    least = [tuple(map(min, zip(*times, strict=True))) for times in zip(*runs, strict=True)]
    base_wall, base_cpu = least[0]
    print(f"{'':<38}{'wall':>8}{'over':>8}{'ratio':>8}{'cpu':>8}{'over':>8}")
    for name, (wall, cpu) in zip(COMMANDS, least, strict=True):
        over, ratio = wall - base_wall, wall / base_wall
        print(f"{name:<38}{wall:7.2f}s{over:7.2f}s{ratio:8.2f}{cpu:7.2f}s{cpu - base_cpu:7.2f}s")


if __name__ == "__main__":
    main()
