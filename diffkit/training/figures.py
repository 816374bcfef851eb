"""Pictures of a run: samples, training curves, the schedule. All are written as PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Real

from diffkit.model import DiffusionModel
from diffkit.training.statistics import EstimatorStatistics


def _figure(width: float, height: float):
    # The object-oriented interface: no global state, no display, whatever the user's backend is.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_samples(
    samples: Real[Array | np.ndarray, "count *shape"], path: Path, *, levels: int | None
) -> None:
    """Write samples: images as a grid, points in the plane as a scatter plot.

    **Arguments:** `samples`: data as stored; `path`: of the PNG; `levels`: of the data, which set the
    range of grey values and of the axes; `None` takes the range of the samples.

    **Raises:** `ValueError` for examples that are neither images of 1 or 3 channels nor vectors.
    """
    values = np.asarray(samples)
    low, high = (0, levels - 1) if levels is not None else (values.min(), values.max())
    if values.ndim == 4 and values.shape[1] in (1, 3):
        from PIL import Image

        columns = math.ceil(math.sqrt(len(values)))
        rows = math.ceil(len(values) / columns)
        channels, height, width = values.shape[1:]
        scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
        # A margin of one pixel between images.
        grid = np.ones((channels, rows * (height + 1) + 1, columns * (width + 1) + 1))
        for index, image in enumerate(scaled):
            top, left = divmod(index, columns)
            top, left = top * (height + 1) + 1, left * (width + 1) + 1
            grid[:, top : top + height, left : left + width] = image
        pixels = (255 * grid).round().astype(np.uint8).transpose(1, 2, 0)
        enlarge = max(1, 640 // pixels.shape[1])
        picture = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
        picture.resize(
            (picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST
        ).save(path)
    elif values.ndim == 2:
        figure = _figure(5, 5)
        axes = figure.subplots()
        second = values[:, 1] if values.shape[1] > 1 else np.zeros(len(values))
        axes.scatter(values[:, 0], second, s=4, alpha=0.5)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="x[0]", ylabel="x[1]")
        figure.savefig(path)
    else:
        raise ValueError(
            "samples must be images (count, 1 or 3, height, width) or vectors (count, n), got "
            f"shape {values.shape}."
        )


def save_curves(metrics: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write the training curve: total and its terms over steps, in bits per dimension."""
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    training = [record for record in metrics if "loss" in record]
    for name in ("loss", "reconstruction", "diffusion", "prior"):
        # A running mean over about a hundredth of the run shows the trend under the noise.
        values = np.array([record[name] for record in training])
        width = max(1, len(values) // 100)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        steps = [record["step"] for record in training][width - 1 :]
        axes.plot(steps, smooth, label=name, linewidth=2 if name == "loss" else 1)
    tests = [record for record in metrics if "test_bits_per_dim" in record]
    if tests:
        axes.plot(
            [record["step"] for record in tests],
            [record["test_bits_per_dim"] for record in tests],
            "k.--",
            label="test",
        )
    axes.set(xlabel="step", ylabel="bits per dimension", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


def save_schedule(model: DiffusionModel, path: Path) -> None:
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


def save_statistics(statistics: EstimatorStatistics, path: Path) -> Path:
    """Write the profile of a loss, over time and over logsnr: its mean and the root of its second moment.

    The loss of a draw is flat over time under the schedule of least variance.
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
    return path
