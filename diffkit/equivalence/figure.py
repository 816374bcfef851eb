"""Two compositions as curves: path, noise level, weighting and paths of samples."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffkit.analytic import mixture
from diffkit.decoders import GaussianDecoder
from diffkit.equivalence.comparison import Comparison, Composition
from diffkit.grids import UniformT
from diffkit.model import DiffusionModel
from diffkit.samplers import DDIM, sample_trajectory

_PATHS = 12
_STEPS = 400


def save_comparison(comparison: Comparison, path: str | Path) -> None:
    r"""Write a comparison as a figure.

    Four plots: $\alpha$ and $\sigma$ over t; `logsnr` over t; w over `logsnr`, each divided by its
    geometric mean; and the latents of twelve samples over t, by the probability-flow ODE under each
    schedule and process, with the exact denoiser of data at -1 and 1 with a little noise.

    **Arguments:** `comparison`; `path`: where to write the PNG.
    """
    from diffkit.training.figures import new_figure, save_figure

    figure = new_figure(11, 7.5)
    (factors, noise), (weights, paths) = figure.subplots(2, 2)
    for made, colour in ((comparison.a, "tab:blue"), (comparison.b, "tab:orange")):
        t = jnp.linspace(0.0, 1.0, 501)
        levels = jax.vmap(made.model.level)(t)
        # An exploding sigma would flatten the other curves.
        factors.plot(t, levels.alpha, color=colour, label=f"alpha, {_label(made)}")
        factors.plot(t, levels.sigma, "--", color=colour, label=f"sigma, {_label(made)}")
        noise.plot(t, levels.logsnr, color=colour, label=_label(made))
        _plot_weighting(weights, made, colour)
        _plot_paths(paths, made, colour)
    factors.set(xlabel="t (0 data, 1 noise)", ylim=(-0.05, 2.05), title="path")
    noise.set(xlabel="t", ylabel="logsnr", title="schedule")
    weights.set(xlabel="logsnr", ylabel="w / its geometric mean", yscale="log", title="weighting")
    paths.set(xlabel="t", ylim=(-3.2, 3.2), title="latents of samples")
    for axes in (factors, noise, weights, paths):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def _label(made: Composition) -> str:
    from diffkit.training.figures import plain_label

    return plain_label(made.name)


def _plot_weighting(axes: Any, made: Composition, colour: str) -> None:
    logsnr = jnp.linspace(made.range[1], made.range[0], 501)
    w = np.asarray(jax.vmap(made.weighting)(logsnr), dtype=np.float64)
    positive = np.where(w > 0, w, np.nan)
    scaled = positive / np.exp(np.nanmean(np.log(positive)))
    axes.plot(logsnr, scaled, color=colour, label=_label(made))


def _plot_paths(axes: Any, made: Composition, colour: str) -> None:
    means, covs = np.array([[-1.0], [1.0]]), np.full((2, 1, 1), 0.01)
    denoiser = mixture([1.0, 1.0], means, covs, process=made.model.process)
    model = DiffusionModel(denoiser, made.model.schedule, GaussianDecoder(), (1,))
    key, grid = jax.random.key(0), UniformT()
    path = sample_trajectory(model, DDIM(), _PATHS, key=key, steps=_STEPS, grid=grid)
    t = np.linspace(1.0, 0.0, _STEPS + 1)
    lines = axes.plot(t, np.asarray(path.z[..., 0]), color=colour, linewidth=0.8, alpha=0.8)
    lines[0].set_label(_label(made))
