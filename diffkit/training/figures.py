"""Pictures of a run: samples, training curves, the schedule. All are written as PNG."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real, UInt8

from diffkit.model import DiffusionModel
from diffkit.training.statistics import EstimatorStatistics


def _figure(width: float, height: float):
    # The object-oriented interface: no global state, no display, whatever the user's backend is.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def has_picture(samples: Real[Array | np.ndarray, "*shape"]) -> bool:
    """Whether samples can be drawn: images of 1 or 3 channels, or vectors."""
    return samples.ndim == 2 or (samples.ndim == 4 and samples.shape[1] in (1, 3))


def _grid(
    images: Real[np.ndarray, "count channels height width"], low: float, high: float
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Images on white, in about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    channels, height, width = images.shape[1:]
    scaled = np.clip((images - low) / max(high - low, 1e-9), 0, 1)
    # A margin of one pixel between images.
    grid = np.ones((channels, rows * (height + 1) + 1, columns * (width + 1) + 1))
    for index, image in enumerate(scaled):
        top, left = divmod(index, columns)
        top, left = top * (height + 1) + 1, left * (width + 1) + 1
        grid[:, top : top + height, left : left + width] = image
    return (255 * grid).round().astype(np.uint8).transpose(1, 2, 0)


def _scatter(axes: Any, points: Real[np.ndarray, "count n"], low: float, high: float) -> None:
    second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    axes.scatter(points[:, 0], second, s=4, alpha=0.5)
    if low < high:
        axes.set(xlim=(low, high), ylim=(low, high))
    axes.set(xlabel="x[0]", ylabel="x[1]")


def save_samples(
    samples: Real[Array | np.ndarray, "count *shape"], path: str | Path, *, levels: int | None
) -> None:
    """Write samples: images as a grid, points in the plane as a scatter plot.

    **Arguments:** `samples`: data as stored; `path`: of the PNG; `levels`: of the data, for the range of
    grey values and of the axes; `None` takes the range of the samples.

    **Raises:** `ValueError` unless the examples are images of 1 or 3 channels, or vectors.
    """
    values = np.asarray(samples)
    if not has_picture(values):
        raise ValueError(
            "samples must be images (count, 1 or 3, height, width) or vectors (count, n), got "
            f"shape {values.shape}."
        )
    ends = (0, levels - 1) if levels is not None else (values.min(), values.max())
    low, high = map(float, ends)
    if values.ndim == 4:
        from PIL import Image

        pixels = _grid(values, low, high)
        enlarge = max(1, 640 // pixels.shape[1])
        picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)
        picture.resize(
            (picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST
        ).save(path)
    else:
        figure = _figure(5, 5)
        _scatter(figure.subplots(), values, low, high)
        figure.savefig(path)


def _plain(label: str) -> str:
    """A label wrapped to a moderate length, without formulas."""
    return textwrap.fill(label, 44).replace("$", r"\$")


def save_variant_samples(
    samples: Mapping[str, Real[np.ndarray, "count *shape"]], path: Path
) -> None:
    """Write samples of several models side by side; those of one shape share a range of values.

    **Arguments:** `samples`: data as stored that can be drawn (`has_picture`), by the name of the model;
    only the first 36 images are shown; `path`: of the PNG.
    """
    columns = min(len(samples), 4)
    rows = math.ceil(len(samples) / columns)
    figure = _figure(3.6 * columns, 4 * rows)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(samples) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(places, samples.items(), strict=False):
        axes.set_title(_plain(name), fontsize="small")
        # Integers begin at 0. Their number is unknown here: the largest one drawn stands for it.
        alike = [
            s
            for s in samples.values()
            if (s.shape[1:], s.dtype) == (values.shape[1:], values.dtype)
        ]
        discrete = np.issubdtype(values.dtype, np.integer)
        low = 0.0 if discrete else float(min(s.min() for s in alike))
        high = float(max(s.max() for s in alike))
        if values.ndim == 4:
            pixels = _grid(values[:36], low, high)
            # Grey as three equal channels.
            axes.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), interpolation="nearest")
            axes.set_axis_off()
        else:
            _scatter(axes, values, low, high)
            axes.set_aspect("equal")
    figure.savefig(path)


Curve = tuple[Float[np.ndarray, " _points"], Float[np.ndarray, " _points"]]
"""Steps, increasing, and a value at each."""


def recorded(metrics: Sequence[Mapping[str, float]], name: str) -> Curve:
    """A metric over the steps at which it was recorded."""
    found = [(record["step"], record[name]) for record in metrics if name in record]
    steps, values = np.array(found, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def running_mean(curve: Curve) -> Curve:
    """A running mean over about a hundredth of the run, which shows the trend under the noise."""
    steps, values = curve
    if not len(values):
        return curve
    width = max(1, len(values) // 100)
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")


def band(
    curves: Sequence[Curve],
) -> tuple[
    Float[np.ndarray, " points"],
    Float[np.ndarray, " points"],
    Float[np.ndarray, " points"],
    Float[np.ndarray, " points"],
]:
    """Steps, and the mean, least and largest of several curves there.

    The steps are those of the first curve within reach of all others; missing values are interpolated.
    """
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        nothing = np.zeros(0)
        return nothing, nothing, nothing, nothing
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    steps = curves[0][0]
    steps = steps[(steps >= first) & (steps <= last)]
    rows = np.stack([np.interp(steps, *curve) for curve in curves])
    return steps, rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0)


def save_variant_curves(
    variants: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: Path
) -> None:
    """Write the training curves of variants: means over seeds, in a band from least to largest.

    **Arguments:** `variants`: by name, the records of each seed's run; `path`: of the PNG.
    """
    figure = _figure(9, 4.5 + 0.25 * len(variants))
    axes = figure.subplots()
    positive = True
    for index, (name, runs) in enumerate(variants.items()):
        colour = f"C{index % 10}"
        steps, mean, least, largest = band([running_mean(recorded(run, "loss")) for run in runs])
        axes.plot(steps, mean, color=colour, label=_plain(name))
        axes.fill_between(steps, least, largest, color=colour, alpha=0.25, linewidth=0)
        steps, test, _, _ = band([recorded(run, "test_bits_per_dim") for run in runs])
        axes.plot(steps, test, ".--", color=colour, linewidth=1)
        positive = positive and all((values > 0).all() for values in (least, test))
    axes.set(xlabel="step", ylabel="bits per dimension", yscale="log" if positive else "linear")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", fontsize="small")
    figure.savefig(path)


def save_curves(metrics: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Write the training curve: total and its terms over steps, in bits per dimension."""
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    for name in ("loss", "reconstruction", "diffusion", "prior"):
        steps, smooth = running_mean(recorded(metrics, name))
        axes.plot(steps, smooth, label=name, linewidth=2 if name == "loss" else 1)
    steps, tests = recorded(metrics, "test_bits_per_dim")
    if len(tests):
        axes.plot(steps, tests, "k.--", label="test")
    axes.set(xlabel="step", ylabel="bits per dimension", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


def save_schedule(model: DiffusionModel, path: str | Path) -> None:
    """Write the schedule: logsnr over time, and the alpha and sigma of the model's process."""
    t = jnp.linspace(0.0, 1.0, 501)
    levels = jax.vmap(model.level)(t)
    figure = _figure(8, 3.5)
    left, right = figure.subplots(1, 2)
    left.plot(t, levels.logsnr, label="logsnr")
    maximum, minimum = levels.logsnr[0], levels.logsnr[-1]
    left.plot([0, 1], [maximum, minimum], "k:", label="straight line")
    left.set(xlabel="t (0 data, 1 noise)", ylabel="logsnr")
    left.set_title(f"from {maximum:.3f} to {minimum:.3f}")
    left.legend()
    right.plot(t, levels.alpha, label="alpha")
    right.plot(t, levels.sigma, label="sigma")
    right.set(xlabel="t")
    right.legend()
    figure.savefig(path)


def save_statistics(statistics: EstimatorStatistics, path: str | Path) -> Path:
    """Write the profile of a loss over time and logsnr: its mean and the root of its second moment.

    Under the schedule of least variance, the loss of a draw is flat over time.
    """
    figure = _figure(9, 3.8)
    axes = figure.subplots(1, 2)
    for where, profile, name in (
        (axes[0], statistics.by_t, "t (0 data, 1 noise)"),
        (axes[1], statistics.by_logsnr, "logsnr"),
    ):
        where.stairs(profile.mean, profile.edges, label="mean")
        where.stairs(
            np.sqrt(profile.second_moment), profile.edges, label="root of the second moment"
        )
        where.set(xlabel=name, ylabel="loss of a draw, nats", yscale="log")
        where.grid(alpha=0.3, which="both")
        where.legend(fontsize="small")
    figure.suptitle(
        f"variance of one draw {statistics.variance:.4g}, at best {statistics.best_variance:.4g}; of a "
        f"batch of {statistics.batch_size}: {statistics.batch_variance:.4g}",
        fontsize="medium",
    )
    figure.savefig(path)
    return Path(path)
