"""Accuracy of samplers against network calls on problems with an exact answer, and cost of the loop.

    python benchmarks/samplers.py                       # the tables, and samplers.png
    python benchmarks/samplers.py --out FILE.png --counts 5 10 20
    python benchmarks/samplers.py --time                # the same on grids that are uniform in time
    python benchmarks/samplers.py --few                 # 1 to 4 steps, and DDIM with as many calls
    python benchmarks/samplers.py --loop                # microseconds a step without a network
    python benchmarks/samplers.py --loop --peers PYTHON # ... and that of torch libraries beside it

Problems, in the rescaled latent y = z / alpha from rho = 80 to rho = 0.002, float64, 512 fixed start
points from a normal with the data's mean and variance + 80^2: N((0.7, -0.3), 0.5^2 I), whose
probability-flow ODE has an affine map, and 8 equal modes of standard deviation 0.1 on a circle of radius
sqrt 2, with an adaptive solver at 1e-11 as reference. Error: RMS over points and coordinates. The samplers
are all deterministic ones that are registered, with their defaults, and the variants below. Grids uniform
in time are those of three schedules, cut to the same range.

PYTHON is the interpreter of an environment with torch, and any of k-diffusion, diffusers and azula.
"""

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import diffkit as dk
from diffkit.presets import complete

RHO_MAX, RHO_MIN = 80.0, 0.002
SCHEDULE = dk.LinearLogSNR(-2 * float(np.log(RHO_MIN)), -2 * float(np.log(RHO_MAX)))
COUNTS: tuple[int, ...] = (5, 10, 20, 40, 80, 160)

# Options other than the defaults that are shown as well.
VARIANTS = {
    "multistep": ({"points": 4},),
    "unipc": ({"variable": "rho"},),
}

# The best of azula 0.11.1, diffusers 0.42.1 and k-diffusion 0.1.1 on these problems (torch 2.13,
# float64), measured apart from this script: the best sampler of each entry by itself.
PEERS: dict[tuple[str, str], tuple[float, ...]] = {
    ("gaussian", "uniform_logsnr"): (1.3e-2, 1.2e-2, 3.6e-4, 4.2e-5, 2.1e-6, 3.8e-7),
    ("gaussian", "rho=7"): (7.7e-3, 5.8e-4, 2.3e-4, 1.4e-4, 3.1e-5, 2.3e-6),
    ("mixture", "uniform_logsnr"): (4.5e-2, 1.8e-2, 6.7e-3, 1.5e-3, 1.5e-4, 8.2e-6),
    ("mixture", "rho=7"): (4.4e-2, 1.7e-2, 6.2e-3, 2.4e-3, 2.6e-4, 1.5e-5),
}


class Problem(eqx.Module):
    """An exact denoiser, start points, and where the probability-flow ODE takes them."""

    denoiser: dk.AbstractDenoiser
    start: Float[Array, "count dim"]
    end: Float[Array, "count dim"]


def integrate(
    sampler: dk.AbstractSampler,
    denoiser: dk.AbstractDenoiser,
    start: Float[Array, "count dim"],
    grid: Float[Array, " points"],
    steps: int | Array,
) -> Float[Array, "count dim"]:
    """The sampler from given start points over the first `steps` steps of a grid."""
    keys = jax.random.split(jax.random.key(0), len(start))

    def denoise(y: Any, logsnr: Any) -> dk.Prediction:
        return denoiser(denoiser.process.at(logsnr).alpha * y, logsnr)

    def body(i: Any, carry: Any) -> Any:
        def step(y: Any, state: Any, key: Any) -> Any:
            key = jax.random.fold_in(key, i) if sampler.stochastic else None
            return sampler.step(denoise, y, grid[i], grid[i + 1], state, key)

        every: Any = jax.vmap(step)
        return every(*carry, keys)

    # A loop with an unknown number of steps: compiled once for all counts.
    return jax.lax.fori_loop(0, steps, body, (start, jax.vmap(sampler.init)(start)))[0]


run = eqx.filter_jit(integrate)


def problems() -> dict[str, Problem]:
    """The problems of the table; the adaptive reference is itself checked on the Gaussian."""
    adaptive = dk.get("sampler", "adaptive")(rtol=1e-11, atol=1e-12, method="dopri8")
    ends = jnp.array(SCHEDULE.endpoints[::-1])
    normal = np.random.default_rng(0).standard_normal((512, 2))

    mean, std = np.array([0.7, -0.3]), 0.5
    gaussian = dk.analytic.gaussian(mean, std**2 * np.eye(2))
    start = jnp.asarray(mean + normal * np.hypot(std, RHO_MAX))
    exact = mean + (start - mean) * np.hypot(std, RHO_MIN) / np.hypot(std, RHO_MAX)
    check = rms(run(adaptive, gaussian, start, ends, 1), exact)
    print(f"the adaptive reference errs by {check:.1e} on the Gaussian")

    angle = 2 * np.pi * np.arange(8) / 8
    means = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    mixture = dk.analytic.mixture(np.ones(8), means, np.broadcast_to(0.01 * np.eye(2), (8, 2, 2)))
    first = jnp.asarray(normal * np.sqrt(1 + 0.01 + RHO_MAX**2))
    return {
        "gaussian": Problem(gaussian, start, exact),
        "mixture": Problem(mixture, first, run(adaptive, mixture, first, ends, 1)),
    }


def rms(y: Float[Array, "count dim"], exact: Float[Array, "count dim"]) -> float:
    return float(jnp.sqrt(jnp.mean((y - exact) ** 2)))


def grids() -> dict[str, Callable[[int], Float[Array, " points"]]]:
    """The two grids, as functions of the number of steps."""
    uniform = dk.UniformLogSNR()
    found = {"uniform_logsnr": lambda steps: uniform(SCHEDULE, steps)}
    if "rho" in dk.available("grid"):
        rho = dk.get("grid", "rho")(rho=7.0)
        return found | {"rho=7": lambda steps: rho(SCHEDULE, steps)}

    def computed(steps: int) -> Float[Array, " points"]:
        share = jnp.linspace(0.0, 1.0, steps + 1)
        roots = RHO_MAX ** (1 / 7) + share * (RHO_MIN ** (1 / 7) - RHO_MAX ** (1 / 7))
        return -14 * jnp.log(roots)

    return found | {"rho=7": computed}


def time_grids() -> dict[str, Callable[[int], Float[Array, " points"]]]:
    """Grids uniform in time, by the schedule: in the angle, on the straight path, of the VP SDE."""
    schedules = {
        "cosine": dk.Cosine(15.0, -15.0),
        "straight_line": dk.get("schedule", "straight_line")(13.3, -10.0),
        "vp_beta": dk.get("schedule", "vp_beta")(t_min=1e-6),
    }
    ends = SCHEDULE.endpoints
    uniform = dk.UniformT()

    def of(schedule: dk.AbstractSchedule) -> Callable[[int], Float[Array, " points"]]:
        cut = dk.Truncated(schedule, float(ends[0]), float(ends[1]))
        return lambda steps: uniform(cut, steps)

    return {name: of(schedule) for name, schedule in schedules.items()}


def samplers(*, stochastic: bool = False) -> dict[str, dk.AbstractSampler]:
    """All samplers with a fixed number of calls, deterministic or not, by name and options."""
    found: dict[str, dk.AbstractSampler] = {}
    for name in dk.available("sampler"):
        part = dk.get("sampler", name)
        for options in ({}, *VARIANTS.get(name, ())):
            sampler = part(**options) if options else complete(part, {})
            if sampler.stochastic == stochastic and sampler.calls is not None:
                label = " ".join([name, *(f"{k}={v}" for k, v in options.items())])
                found[label] = sampler
    return found


Errors = dict[str, np.ndarray]  # by sampler, one entry per count


def error(sampler: dk.AbstractSampler, problem: Problem, grid: Any, steps: int, most: int) -> float:
    """The error after all steps of a grid, padded to the most that there are."""
    places = jnp.pad(grid(steps), (0, most - steps), mode="edge")
    y = run(sampler, problem.denoiser, problem.start, places, jnp.asarray(steps))
    return rms(y, problem.end)


def measure(counts: tuple[int, ...], grids: Mapping[str, Any]) -> dict[tuple[str, str], Errors]:
    """The error of every sampler, for each problem and grid."""
    result: dict[tuple[str, str], Errors] = {}
    for problem_name, problem in problems().items():
        for grid_name, grid in grids.items():
            row: Errors = {}
            for name, sampler in samplers().items():
                calls = sampler.calls or 1
                row[name] = np.array(
                    [error(sampler, problem, grid, max(count // calls, 1), max(counts)) for count in counts]
                )
            result[problem_name, grid_name] = row
    return result


def mean(rows: list[Errors]) -> Errors:
    """The geometric mean of tables."""
    return {name: np.exp(np.mean([np.log(row[name]) for row in rows], axis=0)) for name in rows[0]}


def over_time(counts: tuple[int, ...]) -> None:
    """Print the tables of the grids that are uniform in time, means over both problems."""
    result = measure(counts, time_grids())
    groups = {f"uniform_t, {name}": [r for k, r in result.items() if k[1] == name] for name in time_grids()}
    for name, rows in (groups | {"all of uniform_t": list(result.values())}).items():
        print(f"\n{name}: geometric mean of the RMS errors on both problems against network calls")
        print(line("calls", counts, " {:9d}"))
        table = mean(rows)
        for sampler, errors in table.items():
            print(line(sampler, errors))
        best = np.argmin(np.stack(list(table.values())), axis=0)
        print(line("best by", [list(table)[i].split()[0] for i in best], " {:>9.9s}"))


def few() -> None:
    """Print the errors at 1 to 4 steps, and how often that of DDIM with as many calls."""
    steps, most = (1, 2, 3, 4), 16
    places, found = grids() | time_grids(), problems()
    ddim = dk.samplers.DDIM()
    print(f"\nRMS error at 1 to 4 steps, geometric mean over both problems and {len(places)} grids;")
    print("worst: the largest error by that of DDIM with as many calls of the network")
    print(line("steps", [*map(str, steps), "worst"], " {:>9s}"))
    for name, sampler in samplers().items():
        table, ratios = [], []
        for problem in found.values():
            for grid in places.values():
                table.append([error(sampler, problem, grid, n, most) for n in steps])
                fine = [error(ddim, problem, grid, n * (sampler.calls or 1), most) for n in steps]
                ratios.append(np.array(table[-1]) / fine)
        print(line(name, [*np.exp(np.mean(np.log(table), axis=0)), np.max(ratios)]))

    print("\nstochastic: Wasserstein's distance of order 2 on the Gaussian, by mean and variance")
    print(line("steps", [*map(str, steps), "worst"], " {:>9s}"))
    gaussian = found["gaussian"].denoiser
    centre, std = np.array([0.7, -0.3]), 0.5
    normal = np.random.default_rng(0).standard_normal((8192, 2))
    start = jnp.asarray(centre + normal * np.hypot(std, RHO_MAX))

    def distance(sampler: dk.AbstractSampler, grid: Any, n: int) -> float:
        y = run(sampler, gaussian, start, jnp.pad(grid(n), (0, most - n), mode="edge"), jnp.asarray(n))
        return float(np.sqrt(np.mean((y.mean(0) - centre) ** 2 + (y.std(0) - std) ** 2)))

    for name, sampler in ({"ddim": ddim} | samplers(stochastic=True)).items():
        calls = sampler.calls or 1
        table = [[distance(sampler, grid, n) for n in steps] for grid in places.values()]
        fine = [[distance(ddim, grid, n * calls) for n in steps] for grid in places.values()]
        ratio = np.max(np.array(table) / fine)
        print(line(name, [*np.exp(np.mean(np.log(table), axis=0)), ratio]))


def line(name: str, values: Any, form: str = " {:9.1e}") -> str:
    return f"  {name:22s}" + "".join(form.format(value) for value in values)


def report(counts: tuple[int, ...], result: Mapping[tuple[str, str], Errors]) -> bool:
    """Print the tables; whether the best of ours is at least as good as the peers' at every count."""
    best, peers = [], []
    for key, row in result.items():
        table = np.stack(list(row.values()))
        published = dict(zip(COUNTS, PEERS[key], strict=True))
        peers.append([published.get(count, np.nan) for count in counts])
        best.append(table.min(axis=0))
        print(f"\n{key[0]}, {key[1]}: RMS error against network calls")
        print(line("calls", counts, " {:9d}"))
        for name, errors in row.items():
            print(line(name, errors))
        print(line("best", best[-1]))
        print(line("  by", [list(row)[i].split()[0] for i in table.argmin(axis=0)], " {:>9.9s}"))
        print(line("best of peers", peers[-1]))

    ours, theirs = (np.exp(np.log(np.array(values)).mean(axis=0)) for values in (best, peers))
    print("\ngeometric mean over the four")
    print(line("calls", counts, " {:9d}"))
    for name, values in mean(list(result.values())).items():
        print(line(name, values))
    print(line("best", ours))
    print(line("best of peers", theirs))
    print(line("ratio", ours / theirs, " {:9.2f}"))
    kept = bool(np.all((ours <= theirs) | np.isnan(theirs)))
    print(f"at least as accurate as the peers at every count: {'yes' if kept else 'NO'}")

    # Not finite, or off the data's scale at ten calls or more; or worse than before and than DDIM.
    diverged = sorted(
        {
            name
            for row in result.values()
            for name, errors in row.items()
            if not np.all(np.isfinite(errors))
            or np.any(errors[np.array(counts) >= 10] > 1)
            or np.any((errors[1:] > 3 * errors[:-1]) & (errors > row["ddim"])[1:])
        }
    )
    print(f"divergent: {', '.join(diverged) or 'none'}")
    return kept and not diverged


def plot(path: str, counts: tuple[int, ...], result: Mapping[tuple[str, str], Errors]) -> None:
    """One panel for each problem and grid."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 9), sharex=True, sharey="row")
    for axis, (key, row) in zip(axes.T.flat, result.items(), strict=True):
        for index, (name, errors) in enumerate(row.items()):
            style = "-" if index < 10 else "--"
            axis.loglog(counts, errors, label=name, marker=".", linestyle=style)
        known = [c for c in counts if c in COUNTS]
        published = dict(zip(COUNTS, PEERS[key], strict=True))
        axis.loglog(known, [published[c] for c in known], "k:", label="best of peers", linewidth=2)
        axis.set_title(f"{key[0]}, {key[1]}")
        axis.set_ylim(top=2)
        axis.grid(alpha=0.3)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
    for axis in axes[1]:
        axis.set_xlabel("network calls")
    for axis in axes[:, 0]:
        axis.set_ylabel("RMS error")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


SHAPE, BATCH, STEPS = (3, 32, 32), 64, 200


class Fixed(dk.AbstractDenoiser):
    """Predicts its condition, whatever the latent: the cost of a network is left out."""

    process: dk.AbstractProcess

    def __call__(self, z: Any, logsnr: Any, condition: Any = None, *, key: Any = None) -> dk.Prediction:
        del key
        level = self.process.at(logsnr)
        x = condition.reshape(z.shape)
        return dk.Prediction(x, (z - level.alpha * x) / level.sigma, level)


def microseconds(call: Callable[[], Any], steps: int, repeats: int) -> float:
    """Median time of a step, after one run that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) / steps * 1e6


def loop(repeats: int) -> None:
    """Print the cost of a step of the library's loop for every sampler."""
    print(f"jax {version('jax')}, one CPU, {(BATCH, *SHAPE)} float32, {STEPS} steps")
    predictions = jax.random.normal(jax.random.key(0), (BATCH, int(np.prod(SHAPE))))
    denoiser = Fixed(dk.VariancePreserving())
    decoder = dk.get("decoder", "gaussian")()
    model = dk.DiffusionModel(denoiser, SCHEDULE, decoder, SHAPE)
    for name in dk.available("sampler"):
        sampler = complete(dk.get("sampler", name), {})
        if sampler.calls is None:
            continue

        def call(sampler: Any = sampler) -> Any:
            draw = dk.sample(
                model,
                sampler,
                BATCH,
                key=jax.random.key(1),
                steps=STEPS,
                grid=dk.UniformLogSNR(),
                condition=predictions,
            )
            return jax.block_until_ready(draw)

        print(f"  {name:24s}{microseconds(call, STEPS, repeats):8.0f} us")


# The same for torch libraries, run by another interpreter: what is not installed is left out.
PEERS_LOOP = r"""
import importlib, importlib.metadata, statistics, sys, time, types, warnings
warnings.filterwarnings("ignore")
import torch

shape, steps, repeats = eval(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.manual_seed(0)
start, fixed = 80 * torch.randn(shape), torch.randn(shape)
sigmas = torch.exp(torch.linspace(4.382, -6.215, steps + 1))

def show(name, call):
    with torch.no_grad():
        call()
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    print(f"  {name:24s}{statistics.median(times) / steps * 1e6:8.0f} us", flush=True)

def have(package):
    try:
        importlib.import_module(package.replace("-", "_"))
    except Exception as error:
        print(f"{package}: left out, {type(error).__name__}: {error}")
        return False
    print(f"{package} {importlib.metadata.version(package)}, torch {torch.__version__}")
    return True

if have("k-diffusion"):
    from k_diffusion import sampling
    for name in ("euler", "lms", "dpmpp_2m", "euler_ancestral"):
        run = getattr(sampling, "sample_" + name)
        show(name, lambda: run(lambda x, sigma: fixed, start, sigmas, disable=True))

if have("diffusers"):
    import diffusers
    for name in ("DDIM", "DPMSolverMultistep", "DEISMultistep", "UniPCMultistep"):
        def call():
            scheduler = getattr(diffusers, name + "Scheduler")()
            scheduler.set_timesteps(steps)
            y = start
            for t in scheduler.timesteps:
                y = scheduler.step(fixed, t, y).prev_sample
        show(name, call)

if have("azula"):
    from azula import sample
    def schedule(t):
        return torch.ones_like(t), torch.exp(-6.215 + 10.597 * t)
    class Denoiser:
        def __init__(self):
            self.schedule = schedule
        def __call__(self, x, t, **options):
            return types.SimpleNamespace(mean=fixed)
    for name, options in (("Euler", {}), ("DDIM", {}), ("zAB", {"order": 3}),
                          ("zEAB", {"order": 3}), ("vAB", {"order": 3}), ("DDPM", {})):
        sampler = getattr(sample, name + "Sampler")(Denoiser(), steps=steps, silent=True, **options)
        show(name, lambda: sampler(start))
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="samplers.png", help="where the plot goes")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--time", action="store_true", help="on grids that are uniform in time")
    parser.add_argument("--few", action="store_true", help="1 to 4 steps instead of counts of calls")
    parser.add_argument("--loop", action="store_true", help="cost of a step instead of accuracy")
    parser.add_argument("--peers", metavar="PYTHON", help="with --loop: torch libraries as well")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    if args.loop or args.peers:
        # Before anything is computed, so that no thread is started elsewhere.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        loop(args.repeats)
        if args.peers:
            size = str((BATCH, *SHAPE))
            command = [args.peers, "-c", PEERS_LOOP, size, str(STEPS), str(args.repeats)]
            subprocess.run(command, check=True)
        return

    with jax.enable_x64(True):
        counts = tuple(sorted(set(args.counts)))
        if args.time or args.few:
            if args.time:
                over_time(counts)
            if args.few:
                few()
            return
        # In the order of the peers' table.
        result = measure(counts, grids())
        kept = report(counts, {key: result[key] for key in PEERS})
        plot(args.out, counts, result)
    if not kept:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
