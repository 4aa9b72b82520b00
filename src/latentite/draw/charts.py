"""Charts of numbers: parity, calibration. Off screen, written atomically."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentite.draw.figures import INK, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ["#2f6f9f", "#d1495b", "#3a7d44", "#edae49", "#6b4c9a", "#66717e"]


def draw_parity(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: str | Path,
    *,
    units: Mapping[str, str] | None = None,
    heading: str | None = None,
    dpi: int = 150,
) -> Path:
    """Write predictions against labels, one square panel per name with its mean absolute error, as PNG.

    Args:
        panels: labels and predictions by name, all finite.
        path: the picture.
        units: by name, for the axes.
        heading: one line on top.
        dpi: pixels per inch.
    """
    figure, axes = grid(len(panels), 3.0, 3.0, heading)
    for axis, (name, (labels, values)) in zip(axes, panels.items(), strict=True):
        low, high = float(min(labels.min(), values.min())), float(max(labels.max(), values.max()))
        if len(labels) > 5000:
            axis.hexbin(
                labels, values, gridsize=60, bins="log", cmap="Blues", mincnt=1, extent=(low, high) * 2
            )
        else:
            axis.plot(labels, values, ".", color=COLOURS[0], alpha=0.35, markersize=4, markeredgewidth=0)
        margin = 0.04 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        axis.plot(limits, limits, color=INK, linewidth=0.8, zorder=1)  # below the points
        unit = (units or {}).get(name, "")
        error = float(np.abs(values - labels).mean())
        title = f"{name}\nMAE {error:.3g} {unit} ({len(labels):,} crystals)"
        axis.set_title(title.replace("  ", " "), fontsize=8, color=INK)
        for what, label in (("label", axis.set_xlabel), ("prediction", axis.set_ylabel)):
            label(f"{what} ({unit})" if unit else what, fontsize=8, color=INK)
        axis.set(xlim=limits, ylim=limits, aspect="equal")
        plain_style(axis)
    return save_figure(figure, path, dpi)


def draw_calibration(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path,
    *,
    heading: str | None = None,
    dpi: int = 150,
) -> Path:
    """Write observed against nominal coverage of central intervals as PNG; on the diagonal they are right.

    Args:
        curves: pairs (nominal, observed) by name.
        path: the picture.
        heading: one line on top.
        dpi: pixels per inch.
    """
    figure, (axis,) = grid(1, 3.6, 3.6, heading)
    axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, label="as it should be")
    for colour, (name, pairs) in zip(cycle(COLOURS), curves.items(), strict=False):
        nominal, observed = zip(*sorted(pairs), strict=True)
        axis.plot(nominal, observed, marker=".", color=colour, linewidth=1.6, label=name)
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set_title("share of labels within central intervals", fontsize=8, color=INK)
    axis.set_xlabel("nominal coverage", fontsize=8, color=INK)
    axis.set_ylabel("observed coverage", fontsize=8, color=INK)
    axis.legend(frameon=False, fontsize=8)
    plain_style(axis)
    return save_figure(figure, path, dpi)


def grid(count: int, width: float, height: float, heading: str | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most three in a row, each so many inches wide and high."""
    columns = 2 if count == 4 else min(3, count)
    rows = math.ceil(count / columns)
    figure = new_figure(width * columns, height * rows, heading)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def plain_style(axis: Axes) -> None:
    """Small grey ticks, faint horizontal lines, no box."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)
    axis.grid(axis="y", color="#e3e6ea", linewidth=0.7)
    axis.set_axisbelow(True)
