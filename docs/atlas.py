"""The numbers, tables and figures of the pages on equivalences, made while the documentation is built.

Where a page says `<!-- atlas: NAME ARGUMENTS -->`, the function of that name in `MARKERS` puts Markdown.
Nothing in these tables is typed by hand: every entry comes from the parts that are installed.
"""

import functools
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from mkdocs.structure.files import File, Files

import diffkit as dk
from diffkit import registry
from diffkit.equivalence import Composition, canonical_time_sampling, transport
from diffkit.weightings import tabulate

REFERENCE = "vdm"
"""The preset that each family is compared with."""


def _rho(logsnr):
    return np.exp(-logsnr / 2)


def _sech(logsnr):
    return 1 / np.cosh(logsnr / 2)


def _vp(logsnr):
    b = np.logaddexp(0, -logsnr)
    return 1 / (1 + np.exp(logsnr)) / np.sqrt(0.1**2 + 2 * (20 - 0.1) * b)


def _logit_normal(logsnr):
    # The time t runs over the part of the path between the endpoints, 13.3 and -10.
    first, last, tau = (1 / (1 + np.exp(value / 2)) for value in (13.3, -10.0, logsnr))
    t = (tau - first) / (last - first)
    density = np.exp(-0.5 * np.log(t / (1 - t)) ** 2) / (t * (1 - t))
    return density * _rho(logsnr)


def _sub_vp(logsnr):
    b = 2 * np.arcsinh(_rho(logsnr) / 2)
    return np.tanh(b / 2) / np.sqrt(0.1**2 + 2 * (20 - 0.1) * b)


CLOSED_FORMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "vdm": np.ones_like,
    "vdm_cifar10": np.ones_like,
    "ddpm": _vp,
    "iddpm": _sech,
    "simple_diffusion": lambda logsnr: _sech(logsnr - 2 * math.log(64 / 128)),
    "vp_sde": _vp,
    "subvp_sde": _sub_vp,
    "ve_sde": np.ones_like,
    "edm": lambda logsnr: np.exp(-0.5 * ((logsnr - 2.4) / 2.4) ** 2) * (np.exp(-logsnr) + 0.5**2),
    "flow_matching": _rho,
    "rectified_flow": _logit_normal,
}
"""w of our presets up to a factor, as the pages derive it: an answer apart from the code that is tested."""


@functools.cache
def compositions() -> tuple[Composition, ...]:
    return tuple(map(dk.equivalence.composition, dk.available("preset")))


@functools.cache
def _of(name: str) -> Composition:
    return dk.equivalence.composition(name)


@functools.cache
def _plugins() -> Mapping[str, str]:
    return {name: r.name for r in registry.plugins() for name in r.parts.get("preset", ())}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _loss(name: str) -> str:
    """The loss as the paper states it, where the preset says so."""
    made, stated = _of(name), registry.get("preset", name).loss
    if stated is None:
        return f"bound weighted by `{made.labels['weighting']}`"
    target = stated.parameterization or made.labels["parameterization"]
    target, times = (c if isinstance(c, str) else c[0] for c in (target, stated.times))
    factor = "" if stated.factor is None else "weighted "
    return f"{factor}mean square error of `{target}`, times `{times}`"


def presets() -> str:
    """Every preset of every installed plugin: its parts, and what its loss implies."""
    rows = []
    for made in compositions():
        labels = {kind: f"`{label}`" for kind, label in made.labels.items()}
        rows.append(
            (
                f"`{made.name}`",
                _plugins().get(made.name, ""),
                labels["schedule"],
                "{:.4g} to {:.4g}".format(*made.range),
                labels["process"],
                labels["parameterization"],
                _loss(made.name),
                labels["time_sampler"],
                str(made.verdict),
            )
        )
    head = ("preset", "plugin", "schedule", "logsnr", "process", "target", "loss", "time sampler")
    return _table((*head, "implied w"), rows)


def pairs() -> str:
    """Every pair of presets: one generative model, one objective?"""
    rows = []
    for index, a in enumerate(compositions()):
        for b in compositions()[index + 1 :]:
            c = dk.equivalence.compare(a, b)
            low, high = c.ratio
            ratio = "1" if high / low < 1.002 else f"{low:.2g} to {high:.2g}"
            rows.append((f"`{a.name}`", f"`{b.name}`", c.model, c.objective, ratio))
    return _table(("", "", "generative model", "objective", "ratio of w"), rows)


def comparison(a: str, b: str) -> str:
    """Two presets side by side, and their figure."""
    text = dk.equivalence.compare(_of(a), _of(b)).markdown()
    return f"{text}\n![{a} and {b}: path, schedule, weighting, latents](images/{a}_{b}.png)\n"


# A mixture of three components in the plane, of which one is narrow.
_WEIGHTS = np.array([0.5, 0.3, 0.2])
_MEANS = np.array([[0.8, 0.2], [-0.7, 0.5], [0.1, -0.9]])
_COVS = np.array([[[0.1, 0.05], [0.05, 0.08]], [[0.2, 0], [0, 0.02]], [[0.01, 0], [0, 0.01]]])


def _exact(process: dk.AbstractProcess, schedule: dk.AbstractSchedule) -> dk.DiffusionModel:
    denoiser = dk.analytic.mixture(_WEIGHTS, _MEANS, _COVS, process=process)
    return dk.DiffusionModel(denoiser, schedule, dk.GaussianDecoder(), (2,))


def _points(count: int) -> jax.Array:
    """Draws of the mixture."""
    pick, noise = jax.random.split(jax.random.key(7))
    index = jax.random.choice(pick, 3, (count,), p=jnp.asarray(_WEIGHTS))
    root = jnp.asarray(np.linalg.cholesky(_COVS))[index]
    normal = jax.random.normal(noise, (count, 2))
    return jnp.asarray(_MEANS)[index] + jnp.einsum("nij,nj->ni", root, normal)


# Within the range of every preset of ours, so that what is compiled for one serves for others.
_LIMITS = (7.8, -5.0)


@eqx.filter_jit
def _bound(model: dk.DiffusionModel, times: dk.AbstractTimeSampler, x: jax.Array) -> jax.Array:
    return dk.vlb(model, x, key=jax.random.key(0), time_sampler=times).total


@eqx.filter_jit
def _flow(model: dk.DiffusionModel, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Samples and log likelihood: neither knows more of a schedule than its endpoints."""
    key, sampler = jax.random.key(0), dk.samplers.DDIM()
    samples = dk.sample(model, sampler, 8, key=key, steps=50, grid=dk.UniformLogSNR())
    return samples, dk.log_likelihood(model, x, key=key, rtol=1e-8, atol=1e-8)


def _other_process(process: dk.AbstractProcess) -> dk.AbstractProcess:
    """Another process than this one."""
    preserving = dk.VariancePreserving()
    return dk.VarianceExploding() if type(process) is type(preserving) else preserving


@functools.cache
def _flow_deviations(process: dk.AbstractProcess) -> tuple[float, float]:
    model = _exact(process, dk.LinearLogSNR(*_LIMITS))
    x = _points(4)
    pair = (_flow(m, x) for m in (model, transport(model, to=_other_process(process))))
    (samples, density), (other_samples, other_density) = pair
    return (
        float(jnp.max(jnp.abs(samples - other_samples))),
        float(jnp.max(jnp.abs(density - other_density))),
    )


@functools.cache
def transported_deviations(name: str) -> tuple[float, float, float]:
    """How far a preset's exact denoiser, carried over to another process and schedule, goes astray.

    The schedule is the reference's, and the range of logsnr one that all of our presets have.

    **Returns:** the largest relative difference of the bound of 64 points, the largest difference of 8
    samples, and that of the log likelihood of 4 points in nats, in float64.
    """
    with jax.enable_x64(True):
        made, reference = dk.equivalence.composition(name), dk.equivalence.composition(REFERENCE)
        process = made.model.process
        model = _exact(process, dk.Truncated(made.model.schedule, *_LIMITS))
        schedule = dk.Truncated(reference.model.schedule, *_LIMITS)
        other = transport(model, to=_other_process(process), schedule=schedule)
        x = _points(64)
        # Times whose logsnr, with one key, are the same under every schedule.
        bounds = [_bound(m, canonical_time_sampling(dk.ELBO(), m.schedule), x) for m in (model, other)]
        return (float(jnp.max(jnp.abs(bounds[1] / bounds[0] - 1))), *_flow_deviations(process))


def weighting_deviation(name: str, part: float = 1.0) -> float:
    """The largest relative difference of w from the closed form, over the middle part of the range."""
    made = _of(name)
    high, low = made.range
    middle, half = (high + low) / 2, part * (high - low) / 2
    # Without the very ends, at which a density of times may be zero.
    table = tabulate(made.weighting, (middle + half, middle - half), 401)
    logsnr, log_w = (column[1:-1] for column in table)
    difference = log_w - np.log(CLOSED_FORMS[name](logsnr))
    return float(np.max(np.abs(np.expm1(difference - np.median(difference)))))


def verified(*names: str) -> str:
    """For each preset: w against the closed form of the page, and transport to the reference."""
    rows = []
    for name in names:
        bound, samples, density = transported_deviations(name)
        whole, middle = (weighting_deviation(name, part) for part in (1.0, 0.5))
        rows.append(
            (
                f"`{name}`",
                str(_of(name).verdict),
                f"{whole:.1e}",
                f"{middle:.1e}",
                f"{bound:.0e}",
                f"{samples:.0e}",
                f"{density:.0e} nats",
            )
        )
    head = ("preset", "its loss is", "w, whole range", "w, middle half")
    return _table((*head, "bound", "samples", "log likelihood"), rows)


def invariance() -> str:
    """The bound of one exact denoiser under many schedules, in continuous time and with T = 10."""
    limits = (6.0, -10.0)
    curves: dict[str, dk.AbstractSchedule] = {"linear_logsnr": dk.LinearLogSNR(*limits)}
    for name in ("cosine", "straight_line", "learned_monotone", "log_normal", "vp_beta"):
        options: dict[str, Any] = {"logsnr_max": 7.0, "logsnr_min": -11.0}
        if name == "log_normal":
            options = {"sigma_min": 0.02, "sigma_max": 200.0, "P_std": 2.0}
        if name == "vp_beta":
            options = {"beta_max": 30.0}
        if name == "learned_monotone":
            options["key"] = jax.random.key(0)
        curves[name] = dk.Truncated(dk.get("schedule", name)(**options), *limits)
    x = _points(1024)
    rows = []
    for name, schedule in curves.items():
        model = _exact(dk.VariancePreserving(), schedule)
        cells = []
        for steps in (None, 10):
            means = np.asarray(_means(model, x, steps), dtype=np.float64)
            error = means.std(ddof=1) / math.sqrt(len(means))
            cells.append(f"{means.mean():.4f} +- {error:.4f}")
        rows.append((f"`{name}`", *cells))
    return _table(("schedule", "continuous time", "T = 10"), rows)


@eqx.filter_jit
def _means(model: dk.DiffusionModel, x: jax.Array, steps: int | None) -> jax.Array:
    keys = jax.random.split(jax.random.key(1), 1024)
    # Times of the schedule itself. By default the bound is estimated without them.
    times = dk.LowDiscrepancy()
    return jax.lax.map(
        lambda key: jnp.mean(dk.vlb(model, x, key=key, steps=steps, time_sampler=times).total), keys
    )


MARKERS: Mapping[str, Callable[..., str]] = {
    "presets": presets,
    "pairs": pairs,
    "comparison": comparison,
    "verified": verified,
    "invariance": invariance,
}

_MARKER = re.compile(r"^<!-- atlas: (\w+) ?(.*?) -->$", re.M)


def filled(markdown: str) -> str:
    """A page with its markers replaced."""
    return _MARKER.sub(lambda match: MARKERS[match[1]](*match[2].split()), markdown)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by MkDocs for each page."""
    del kwargs
    return filled(markdown)


def on_files(files: Files, *, config: Any) -> Files:
    """Called by MkDocs once: adds the figures of the comparisons that the pages show."""
    shown = set()
    for file in files.documentation_pages():
        for name, arguments in _MARKER.findall(file.content_string):
            if name == "comparison":
                shown.add((Path(file.src_uri).parent, *arguments.split()))
    for folder, a, b in sorted(shown):
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "figure.png"
            dk.equivalence.save_comparison(dk.equivalence.compare(_of(a), _of(b)), path)
            uri = str(folder / "images" / f"{a}_{b}.png")
            files.append(File.generated(config, uri, content=path.read_bytes()))
    return files
