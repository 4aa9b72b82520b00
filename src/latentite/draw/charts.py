"""Charts of numbers: parity, calibration, and the curves of a training; and the figures that all pictures are drawn on.

Always off screen (Agg), written atomically, in one style. `cells.py` draws crystals.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentite.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, EDGE = "#22272e", "#5b6470"
"""Colours of text and of thin lines."""


def new_figure(width: float, height: float, heading: str | None) -> Figure:
    """A figure with a canvas of its own: no window system, no global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width, height + (0.4 if heading else 0.0)), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    if heading:
        figure.suptitle(heading, fontsize=12, color=INK, fontweight="bold")
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int) -> Path:
    """Write a figure as PNG; gives its path."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
    return Path(path)


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


Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values, equally long."""


def read_metrics(path: str | Path) -> dict[str, Curve]:
    """Columns of a Lightning `metrics.csv` by name: the steps at which each was logged, and its values.

    Raises:
        ValueError: when the file has no column `step`.
    """
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or []):
            raise ValueError(f"{path} must be a metrics CSV with a column 'step', got {reader.fieldnames}")
        for row in reader:
            for name, text in row.items():
                if text and name not in ("step", "epoch"):
                    points[name].append((float(row["step"]), float(text)))
    return {name: (np.array(p)[:, 0], np.array(p)[:, 1]) for name, p in points.items()}


def draw_training_curve(
    metrics: str | Path,
    path: str | Path,
    *,
    losses: Sequence[str] = ("train/loss", "val/loss"),
    rates: Sequence[str] = ("val/match_rate_loose", "val/match_rate_strict", "val/element_accuracy"),
    heading: str | None = None,
    dpi: int = 150,
) -> Path:
    """Write losses (logarithmic) above rates (0 to 1) against the step, as PNG.

    Args:
        metrics: a Lightning `metrics.csv`.
        path: the picture.
        losses: columns of the upper panel; those that are absent are left out.
        rates: columns of the lower panel, likewise.
        heading: one line on top.
        dpi: pixels per inch.

    Raises:
        ValueError: when none of the columns is there, naming those that are.
    """
    curves = read_metrics(metrics)
    panels = [[name for name in names if name in curves] for names in (losses, rates)]
    if not any(panels):
        raise ValueError(f"{metrics} must have one of {[*losses, *rates]}, got {sorted(curves)}")
    shown = [(names, is_rate) for names, is_rate in zip(panels, (False, True), strict=True) if names]
    figure = new_figure(6.6, 2.7 * len(shown), heading)
    axes = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (names, is_rate) in zip(axes, shown, strict=True):
        for colour, name in zip(COLOURS, names, strict=False):
            steps, values = curves[name]
            dense = len(steps) > 200
            if dense:
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                steps, values = _smooth(steps, values, len(values) // 50)
            axis.plot(steps, values, color=colour, linewidth=1.6, label=name, marker="" if dense else ".")
        axis.set_ylabel("share" if is_rate else "loss", fontsize=8, color=INK)
        if is_rate:
            axis.set_ylim(-0.02, 1.02)
        elif all((curves[name][1] > 0).all() for name in names):
            axis.set_yscale("log")
        plain_style(axis)
        axis.legend(frameon=False, fontsize=8)
    axes[-1].set_xlabel("step", color=INK)
    return save_figure(figure, path, dpi)


def draw_reward_curve(
    metrics: str | Path,
    path: str | Path,
    *,
    units: Mapping[str, str] | None = None,
    heading: str | None = None,
    dpi: int = 150,
) -> Path:
    """Write the mean reward, its components and the unusable crystals of each rollout, as PNG.

    Every panel has a linear axis of its own: components differ in unit and sign. From 40 rollouts on, their
    running mean over a tenth of them is drawn as well.

    Args:
        metrics: `metrics.csv` of a run of reinforcement learning.
        path: the picture.
        units: of components by name, such as `{"density": "g/cm$^3$"}`.
        heading: one line on top.
        dpi: pixels per inch.

    Raises:
        ValueError: when the file has no column `train/reward`.
    """
    curves = read_metrics(metrics)
    if "train/reward" not in curves:
        raise ValueError(
            f"{metrics} must be of a run of reinforcement learning, with a column 'train/reward', "
            f"got {sorted(curves)}"
        )
    shown = {"reward (weighted sum)": ("train/reward", "val/reward", "")}
    for column in curves:
        if component := re.fullmatch(r"reward/(.+)/raw", column):
            title = f"{component[1].replace('_', ' ')} (raw mean)"
            shown[title] = (column, f"val/{column}", (units or {}).get(component[1], ""))
    shown["unusable crystals"] = ("reward/unusable", "val/reward/unusable", "share")
    figure, axes = grid(len(shown), 3.3, 2.3, heading)
    for axis, (title, (training, validation, unit)) in zip(axes, shown.items(), strict=True):
        _draw_rollouts(axis, curves.get(training), curves.get(validation))
        axis.set_title(title, fontsize=9, color=INK)
        axis.set_xlabel("rollout", fontsize=8, color=INK)
        axis.set_ylabel(unit, fontsize=8, color=INK)
        plain_style(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    return save_figure(figure, path, dpi)


def _draw_rollouts(axis: Axes, training: Curve | None, validation: Curve | None) -> None:
    if training is not None:
        steps, values = training
        window = len(values) // 10
        if window < 4:  # too few to average
            axis.plot(
                steps, values, color=COLOURS[0], linewidth=1.6, marker=".", label="rollouts of training"
            )
        else:
            axis.plot(
                steps, values, color=COLOURS[0], alpha=0.35, linewidth=0.8, label="rollouts of training"
            )
            mean = f"their running mean over {window}"
            axis.plot(*_smooth(steps, values, window), color=COLOURS[0], linewidth=1.8, label=mean)
    if validation is not None:
        axis.plot(*validation, "o", color=COLOURS[1], markersize=3.5, label="validation")


def _smooth(steps: np.ndarray, values: np.ndarray, window: int) -> Curve:
    """Running mean over so many finite values, at the steps in the middle of each window."""
    known = np.isfinite(values)
    kernel = np.full(window, 1.0 / window)
    if known.sum() < window:
        return steps[known], values[known]
    return np.convolve(steps[known], kernel, mode="valid"), np.convolve(values[known], kernel, mode="valid")
