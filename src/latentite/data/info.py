"""Summary of a data set: counts, elements, atoms per cell, labels; as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentite.base.files import replacing
from latentite.data.dataset import CrystalDataset
from latentite.elements import NUM_ELEMENTS, SYMBOLS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import RenderableType

_INK, _BLUE, _GREY = "#22303c", "#2f6f9f", "#eceff1"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelInfo:
    """One property over all splits."""

    missing: int
    total: int
    lowest: float
    """NaN when every label is missing; likewise mean and highest."""
    mean: float
    highest: float
    categories: int
    """Number of names of a categorical property, 0 for a numeric one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """Counts of a dataset with its splits."""

    crystals: dict[str, int]
    """Per split."""
    atoms: dict[str, int]
    """Per split."""
    content_hash: dict[str, str]
    """Per split."""
    atoms_per_cell: dict[int, int]
    """Number of crystals by number of atoms."""
    elements: dict[str, int]
    """Number of crystals that contain each element, by symbol, in order of atomic number."""
    labels: dict[str, LabelInfo]


def describe(splits: Mapping[str, CrystalDataset]) -> DatasetInfo:
    """Count what the splits hold together."""
    sizes = np.concatenate([dataset.crystals.num_atoms.numpy() for dataset in splits.values()])
    per_cell = np.bincount(sizes)
    elements = np.zeros(NUM_ELEMENTS + 1, dtype=np.int64)
    for dataset in splits.values():
        numbers = dataset.crystals.atomic_numbers.numpy()
        pairs = np.unique(dataset.crystals.crystal_index.numpy() * 128 + numbers)
        elements += np.bincount(pairs % 128, minlength=len(elements))[: len(elements)]
    names = dict.fromkeys(name for dataset in splits.values() for name in dataset.crystals.properties)
    return DatasetInfo(
        crystals={split: len(dataset) for split, dataset in splits.items()},
        atoms={split: dataset.crystals.total_atoms for split, dataset in splits.items()},
        content_hash={split: dataset.content_hash for split, dataset in splits.items()},
        atoms_per_cell={int(count): int(per_cell[count]) for count in np.flatnonzero(per_cell)},
        elements={SYMBOLS[number - 1]: int(elements[number]) for number in np.flatnonzero(elements)},
        labels={name: _label_info(name, splits) for name in names},
    )


def label_values(name: str, splits: Mapping[str, CrystalDataset]) -> np.ndarray:
    """All labels of one property, NaN where missing, split after split."""
    columns = []
    for dataset in splits.values():
        values = dataset.crystals.properties.get(name)
        columns.append(np.full(len(dataset), np.nan) if values is None else values.double().numpy())
    return np.concatenate(columns)


def _label_info(name: str, splits: Mapping[str, CrystalDataset]) -> LabelInfo:
    values = label_values(name, splits)
    known = values[np.isfinite(values)]
    lowest, mean, highest = (known.min(), known.mean(), known.max()) if len(known) else (np.nan,) * 3
    return LabelInfo(
        missing=len(values) - len(known),
        total=len(values),
        lowest=float(lowest),
        mean=float(mean),
        highest=float(highest),
        categories=max(len(dataset.categories.get(name, ())) for dataset in splits.values()),
    )


def tables(info: DatasetInfo) -> list[RenderableType]:
    """The description as tables for a terminal."""
    from rich.columns import Columns
    from rich.table import Table
    from rich.text import Text

    splits = Table(title="Splits", title_justify="left")
    for column in ("split", "crystals", "atoms", "atoms per cell", "content hash"):
        splits.add_column(column, justify="left" if column in ("split", "content hash") else "right")
    for split, count in info.crystals.items():
        mean = f"{info.atoms[split] / max(count, 1):.2f}"
        digest = info.content_hash[split][:12]
        splits.add_row(split, f"{count:,}", f"{info.atoms[split]:,}", mean, digest)
    total, atoms = sum(info.crystals.values()), sum(info.atoms.values())
    splits.add_row("all", f"{total:,}", f"{atoms:,}", f"{atoms / max(total, 1):.2f}", "", style="bold")

    histogram = Table(title="Atoms per cell", title_justify="left", show_header=False, box=None)
    highest = max(info.atoms_per_cell.values(), default=1)
    for size, count in info.atoms_per_cell.items():
        bar = "█" * round(32 * count / highest) or "▏"
        histogram.add_row(str(size), f"{count:,}", f"{100 * count / total:.1f} %", Text(bar, style="blue"))

    ranked = sorted(info.elements.items(), key=lambda item: -item[1])
    elements = Columns(
        [f"{symbol} {count:,}" for symbol, count in ranked],
        title=f"{len(ranked)} elements, and the crystals that contain each",
        padding=(0, 2),
        column_first=True,
    )

    labels = Table(title="Properties", title_justify="left")
    for column in ("property", "missing", "lowest", "mean", "highest"):
        labels.add_column(column, justify="left" if column == "property" else "right")
    for name, label in info.labels.items():
        missing = f"{label.missing:,} ({100 * label.missing / max(label.total, 1):.1f} %)"
        numbers = [f"{value:.4g}" for value in (label.lowest, label.mean, label.highest)]
        if label.categories:
            numbers = [f"{label.categories} names", "", ""]
        labels.add_row(name, missing, *numbers)
    return [splits, histogram, elements, *([labels] if info.labels else [])]


def draw(splits: Mapping[str, CrystalDataset], path: str | Path, *, heading: str | None = None) -> Path:
    """Write a PNG: atoms per cell, a periodic table of how often each element occurs, and every property.

    Args:
        splits: what `load_splits` gives.
        path: the picture.
        heading: one line on top; None for the counts.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    info = describe(splits)
    names = list(info.labels)[:12]
    rows = -(-len(names) // 4)
    figure = Figure(figsize=(12, 3.6 + 2.1 * rows), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    counts = ", ".join(f"{count:,} {split}" for split, count in info.crystals.items())
    figure.suptitle(
        heading or f"{sum(info.crystals.values()):,} crystals ({counts})", color=_INK, weight="bold"
    )
    grid = figure.add_gridspec(1 + rows, 4, height_ratios=[3.4] + [2.1] * rows)
    _draw_sizes(figure.add_subplot(grid[0, :2]), info)
    _draw_elements(figure.add_subplot(grid[0, 2:]), info)
    for position, name in enumerate(names):
        axes = figure.add_subplot(grid[1 + position // 4, position % 4])
        _draw_label(axes, name, label_values(name, splits), info.labels[name])
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, color=_INK, loc="left")
    axes.tick_params(labelsize=7, colors=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_sizes(axes: Axes, info: DatasetInfo) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.bar(list(info.atoms_per_cell), list(info.atoms_per_cell.values()), color=_BLUE, width=0.85)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("atoms per cell", fontsize=8)
    axes.set_ylabel("crystals", fontsize=8)
    _style(axes, "Cell sizes")


def _draw_elements(axes: Axes, info: DatasetInfo) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["Blues"]
    highest = np.log1p(max(info.elements.values(), default=1))
    for number, symbol in enumerate(SYMBOLS[:103], start=1):
        column, row = table_position(number)
        count = info.elements.get(symbol, 0)
        shade = 0.15 + 0.85 * np.log1p(count) / highest
        colour = colours(shade) if count else _GREY
        axes.add_patch(Rectangle((column, -row), 0.92, 0.92, color=colour))
        ink = "white" if count and shade > 0.6 else (_INK if count else "#b0b8bf")
        axes.text(column + 0.46, -row + 0.46, symbol, ha="center", va="center", fontsize=6.5, color=ink)
    axes.set_xlim(0.8, 19.1)
    axes.set_ylim(-9.7, 0.3)
    axes.set_axis_off()
    axes.set_title(f"{len(info.elements)} elements (logarithmic shade)", fontsize=9, color=_INK, loc="left")


def table_position(number: int) -> tuple[int, float]:
    """Column (1 to 18) and row (1 to 9.5) of an element in the usual drawing, f block below."""
    if number <= 2:
        return (1 if number == 1 else 18), 1
    for start, row in ((3, 2), (11, 3)):
        if number < start + 8:
            offset = number - start
            return (offset + 1 if offset < 2 else offset + 11), row
    for start, row in ((19, 4), (37, 5)):
        if number < start + 18:
            return number - start + 1, row
    for start, row in ((55, 6), (87, 7)):
        offset = number - start
        if offset < 2:
            return offset + 1, row
        if offset < 17:
            return offset + 2, row + 2.5
        if offset < 32:
            return offset - 13, row
    raise ValueError(f"atomic number must be from 1 to {NUM_ELEMENTS}, got {number}")


def _draw_label(axes: Axes, name: str, values: np.ndarray, label: LabelInfo) -> None:
    known = values[np.isfinite(values)]
    if len(known):
        # The central 99 % sets the range, else a single outlier would squeeze all others into one bar.
        low, high = np.percentile(known, [0.5, 99.5])
        axes.hist(known, bins=40, range=(low, high) if high > low else None, color=_BLUE)
    suffix = f" ({label.missing:,} missing)" if label.missing else ""
    _style(axes, name + suffix)
