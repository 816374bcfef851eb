"""Pictures of a run: samples, training curves, the schedule. All are written as PNG."""

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real, UInt8

from diffkit.display import printable
from diffkit.files import new_file
from diffkit.model import DiffusionModel
from diffkit.training.statistics import EstimatorStatistics


def new_figure(width: float, height: float):
    """A figure without global state or display, whatever the user's backend is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG; what the font lacks is drawn as boxes."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    # Whatever the user's style is: LaTeX would obey the names in a report.
    with rc_context({"text.usetex": False}), warnings.catch_warnings(), new_file(path) as file:
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        for text in figure.findobj(Text):
            text.set_usetex(False)
        figure.savefig(file, format="png")


def plain_label(label: str) -> str:
    """A label as it is, without formulas, wrapped to a moderate length; of a very long one, the ends."""
    label = printable(label)
    if len(label) > 300:
        label = f"{label[:140]} ... {label[-140:]}"
    # A leading underscore would keep it out of a legend.
    shown = f" {label}" if label.startswith("_") else label
    return textwrap.fill(shown, 44).replace("$", r"\$")


def has_picture(samples: Real[Array | np.ndarray, "*shape"]) -> bool:
    """Whether samples can be drawn: images of 1 or 3 channels, or vectors."""
    return samples.ndim == 2 or (samples.ndim == 4 and samples.shape[1] in (1, 3))


def tiled(
    images: Real[np.ndarray, "count channels height width"], low: float, high: float
) -> UInt8[np.ndarray, "rows columns channels"]:
    """Images on white, in about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    channels, height, width = images.shape[1:]
    scaled = np.clip((images - low) / max(high - low, 1e-9), 0, 1).astype(np.float64)
    # A margin of one pixel around images, and white where there is none.
    missing = rows * columns - len(images)
    cells = np.pad(scaled, [(0, missing), (0, 0), (0, 1), (0, 1)], constant_values=1)
    cells = cells.reshape(rows, columns, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
    grid = cells.reshape(rows * (height + 1), columns * (width + 1), channels)
    grid = np.pad(grid, [(1, 0), (1, 0), (0, 0)], constant_values=1)
    return (255 * grid).round().astype(np.uint8)


def scatter(axes: Any, points: Real[np.ndarray, "count n"], low: float, high: float) -> None:
    """The first two coordinates of points, on axes that run from low to high."""
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
    ends = (values.min(), values.max()) if levels is None else (0, levels - 1)
    low, high = map(float, ends)
    if values.ndim == 4:
        from PIL import Image

        pixels = tiled(values, low, high)
        enlarge = max(1, 640 // pixels.shape[1])
        pixels = pixels.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
        with new_file(path) as file:
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    else:
        figure = new_figure(5, 5)
        scatter(figure.subplots(), values, low, high)
        save_figure(figure, path)


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


def save_curves(metrics: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Write the training curve: total and its terms over steps, in bits per dimension."""
    figure = new_figure(7, 4.5)
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
    save_figure(figure, path)


def save_schedule(model: DiffusionModel, path: str | Path) -> None:
    """Write the schedule: logsnr over time, and the alpha and sigma of the model's process."""
    t = jnp.linspace(0.0, 1.0, 501)
    levels = jax.vmap(model.level)(t)
    maximum, minimum = levels.logsnr[0], levels.logsnr[-1]
    figure = new_figure(8, 3.5)
    left, right = figure.subplots(1, 2)
    left.plot(t, levels.logsnr, label="logsnr")
    left.plot([0, 1], [maximum, minimum], "k:", label="straight line")
    title = f"from {maximum:.3f} to {minimum:.3f}"
    left.set(xlabel="t (0 data, 1 noise)", ylabel="logsnr", title=title)
    right.plot(t, levels.alpha, label="alpha")
    right.plot(t, levels.sigma, label="sigma")
    right.set(xlabel="t")
    for axes in (left, right):
        axes.legend()
    save_figure(figure, path)


def save_statistics(statistics: EstimatorStatistics, path: str | Path) -> Path:
    """Write the profile of a loss over time and logsnr: its mean and the root of its second moment.

    Under the schedule of least variance, the loss of a draw is flat over time.
    """
    figure = new_figure(9, 3.8)
    profiles = {"t (0 data, 1 noise)": statistics.by_t, "logsnr": statistics.by_logsnr}
    for axes, (name, profile) in zip(figure.subplots(1, 2), profiles.items(), strict=True):
        root = np.sqrt(profile.second_moment)
        axes.stairs(profile.mean, profile.edges, label="mean")
        axes.stairs(root, profile.edges, label="root of the second moment")
        axes.set(xlabel=name, ylabel="loss of a draw, nats", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    figure.suptitle(
        f"variance of one draw {statistics.variance:.4g}, at best {statistics.best_variance:.4g}; of a "
        f"batch of {statistics.batch_size}: {statistics.batch_variance:.4g}",
        fontsize="medium",
    )
    save_figure(figure, path)
    return Path(path)
