"""Pictures of variants side by side. All are written as PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Real

from diffkit.training.figures import (
    Curve,
    new_figure,
    plain_label,
    recorded,
    running_mean,
    save_figure,
    scatter,
    tiled,
)


def save_variant_samples(samples: Mapping[str, Real[np.ndarray, "count *shape"]], path: Path) -> None:
    """Write samples of several models side by side; those of one shape share a range of values.

    **Arguments:** `samples`: data as stored that can be drawn (`has_picture`), by the name of the model;
    only the first 36 images are shown; `path`: of the PNG.
    """
    columns = min(len(samples), 4)
    rows = math.ceil(len(samples) / columns)
    figure = new_figure(3.6 * columns, 4 * rows)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(samples) :]:
        axes.set_axis_off()
    for axes, (name, values) in zip(places, samples.items(), strict=False):
        axes.set_title(plain_label(name), fontsize="small")
        # Levels begin at 0. Their number is unknown here: the largest one drawn stands for it.
        kind = values.shape[1:], values.dtype
        alike = [other for other in samples.values() if (other.shape[1:], other.dtype) == kind]
        discrete = np.issubdtype(values.dtype, np.integer)
        low = 0.0 if discrete else float(min(s.min() for s in alike))
        high = float(max(s.max() for s in alike))
        if values.ndim == 4:
            pixels = tiled(values[:36], low, high)
            # Grey as three equal channels.
            axes.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), interpolation="nearest")
            axes.set_axis_off()
        else:
            scatter(axes, values, low, high)
            axes.set_aspect("equal")
    save_figure(figure, path)


def band(curves: Sequence[Curve]) -> tuple[Float[np.ndarray, " points"], ...]:
    """Steps, and the mean, least and largest of several curves there.

    The steps are those of the first curve within reach of all others; missing values are interpolated.
    """
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        return (np.zeros(0),) * 4
    first, last = max(at[0] for at, _ in curves), min(at[-1] for at, _ in curves)
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
    figure = new_figure(9, 4.5 + 0.25 * len(variants))
    axes, positive = figure.subplots(), True
    for index, (name, runs) in enumerate(variants.items()):
        colour = f"C{index % 10}"
        steps, mean, least, largest = band([running_mean(recorded(run, "loss")) for run in runs])
        axes.plot(steps, mean, color=colour, label=plain_label(name))
        axes.fill_between(steps, least, largest, color=colour, alpha=0.25, linewidth=0)
        steps, test, _, _ = band([recorded(run, "test_bits_per_dim") for run in runs])
        axes.plot(steps, test, ".--", color=colour, linewidth=1)
        positive = positive and all((values > 0).all() for values in (least, test))
    axes.set(xlabel="step", ylabel="bits per dimension", yscale="log" if positive else "linear")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", fontsize="small")
    save_figure(figure, path)
