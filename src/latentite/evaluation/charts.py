"""Charts of an evaluation, generated against reference, as SVG text for a page.

Shares, not counts, so that a thousand samples can stand beside a data set of any size. Comes after `run.py` and
`figures.py`; `page.py` puts them together.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from latentite.charts import COLOURS
from latentite.data.cif import SYMBOLS
from latentite.data.info import table_position
from latentite.data.properties import SYMPREC
from latentite.evaluation.distributions import element_shares
from latentite.evaluation.measure import Measured
from latentite.figures import INK, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GENERATED, _REFERENCE, _EMPTY = COLOURS[0], "#b9c0c8", "#f0f2f4"
_LARGEST_RATIO = 4.0
"""Factors beyond this, either way, have the same colour in the periodic table."""


def draw_charts(generated: Measured, reference: Measured | None) -> dict[str, str]:
    """SVG text by title."""
    charts: dict[str, Callable[[], Figure]] = {
        "Number of atoms": lambda: _counts(generated, reference, lambda m: m.num_atoms, "atoms per cell"),
        "Number of elements": lambda: _counts(generated, reference, lambda m: m.num_elements, "elements"),
        "Density": lambda: _continuous(generated, reference, lambda m: m.density, "g/cm³"),
        "Volume per atom": lambda: _continuous(generated, reference, lambda m: m.volume_per_atom, "Å³"),
        "Smallest distance": lambda: _continuous(
            generated, reference, lambda m: np.fmin(m.distance, m.own_distance), "Å"
        ),
        f"Space groups at {SYMPREC:g} Å": lambda: _space_groups(generated, reference),
        "Elements": lambda: _elements(generated, reference),
    }
    return {title: _svg(draw()) for title, draw in charts.items()}


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    # The same evaluation gives the same bytes: no date, and names of parts that do not come from chance.
    with mpl.rc_context({"svg.hashsalt": "latentite"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _sides(
    generated: Measured, reference: Measured | None, values: Callable[[Measured], np.ndarray]
) -> list[tuple[str, str, Float[np.ndarray, " crystal"]]]:
    """Label, colour and finite values of each side."""
    sides = [("generated", _GENERATED, generated)]
    if reference is not None:
        sides.insert(0, ("reference", _REFERENCE, reference))
    found = []
    for label, colour, side in sides:
        numbers = np.asarray(values(side), dtype=float)
        found.append((label, colour, numbers[np.isfinite(numbers)]))
    return found


def _counts(
    generated: Measured, reference: Measured | None, values: Callable[[Measured], np.ndarray], unit: str
) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.6, 2.5, None)
    axes = figure.subplots()
    sides = _sides(generated, reference, values)
    width = 0.8 / len(sides)
    for place, (label, colour, numbers) in enumerate(sides):
        where, counts = np.unique(numbers, return_counts=True)
        shares = counts / max(1, len(numbers))
        offset = (place - (len(sides) - 1) / 2) * width
        axes.bar(where + offset, shares, width, color=colour, label=f"{label} ({len(numbers):,})")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _style(axes, unit)
    return figure


def _continuous(
    generated: Measured, reference: Measured | None, values: Callable[[Measured], np.ndarray], unit: str
) -> Figure:
    figure = new_figure(4.6, 2.5, None)
    axes = figure.subplots()
    sides = _sides(generated, reference, values)
    pooled = np.concatenate([numbers for _, _, numbers in sides])
    # The central 99 % sets the range, else one collapsed cell would squeeze all others into one bar.
    low, high = np.percentile(pooled, [0.5, 99.5]) if len(pooled) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), 41)
    for label, colour, numbers in sides:
        weights = np.full(len(numbers), 1 / max(1, len(numbers)))
        outside = int(((numbers < edges[0]) | (numbers > edges[-1])).sum())
        text = f"{label} ({len(numbers):,}" + (f"; {outside:,} outside)" if outside else ")")
        is_filled = label == "reference"
        axes.hist(
            numbers,
            edges.tolist(),
            weights=weights,
            color=colour,
            label=text,
            histtype="stepfilled" if is_filled else "step",
            linewidth=1.6,
        )
    _style(axes, unit)
    return figure


def _space_groups(generated: Measured, reference: Measured | None, *, shown: int = 24) -> Figure:
    figure = new_figure(9.4, 2.7, None)
    axes = figure.subplots()
    sides = _sides(generated, reference, lambda m: m.space_groups[SYMPREC])
    shares = [np.bincount(n.astype(int), minlength=231) / max(1, len(n)) for _, _, n in sides]
    order = np.argsort(-np.max(shares, axis=0), kind="stable")
    groups = sorted(int(group) for group in order[:shown] if max(side[group] for side in shares) > 0)
    width = 0.8 / len(sides)
    for place, ((label, colour, numbers), share) in enumerate(zip(sides, shares, strict=True)):
        rest = 1.0 - share[groups].sum() if len(numbers) else 0.0
        offset = (place - (len(sides) - 1) / 2) * width
        where = np.arange(len(groups) + 1) + offset
        axes.bar(where, [*share[groups], rest], width, color=colour, label=f"{label} ({len(numbers):,})")
    axes.set_xticks(range(len(groups) + 1), [*map(_group_name, groups), "others"], rotation=60, ha="right")
    _style(axes, "")
    return figure


def _group_name(number: int) -> str:
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    return f"{sg_symbol_from_int_number(number)} ({number})"


def _elements(generated: Measured, reference: Measured | None) -> Figure:
    """A periodic table of the share of structures with each element, and one of its ratio to the reference."""
    from matplotlib import colormaps

    share = element_shares(generated)
    figure = new_figure(9.4, 2.9, None)
    panels = figure.subplots(1, 1 if reference is None else 2, squeeze=False)[0]
    highest = max(float(share.max()), 1e-9)
    blues, ratios = colormaps["Blues"], colormaps["RdBu"]
    _periodic_table(
        panels[0],
        lambda z: blues(0.12 + 0.8 * math.sqrt(share[z] / highest)) if share[z] else _EMPTY,
        f"structures with the element, up to {100 * highest:.0f} % of the generated ones",
    )
    if reference is not None:
        known = element_shares(reference)

        def colour(number: int) -> Any:
            if not known[number]:
                return "#1d1f23" if share[number] else _EMPTY
            ratio = max(share[number] / known[number], 1e-9)
            position = np.clip(math.log(ratio) / math.log(_LARGEST_RATIO), -1, 1)
            return ratios(0.5 + 0.42 * float(position))

        _periodic_table(
            panels[1],
            colour,
            f"ratio to the reference: blue more, red less (to {_LARGEST_RATIO:g}x), black: only here",
        )
    return figure


def _periodic_table(axes: Axes, colour: Callable[[int], Any], title: str) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    for number, symbol in enumerate(SYMBOLS[:103], start=1):
        column, row = table_position(number)
        fill = colour(number)
        axes.add_patch(Rectangle((column, -row), 0.92, 0.92, color=fill))
        is_dark = float(np.dot(to_rgb(fill), (0.3, 0.59, 0.11))) < 0.5
        ink = "white" if is_dark else ("#b0b8bf" if fill == _EMPTY else INK)
        axes.text(column + 0.46, -row + 0.46, symbol, ha="center", va="center", fontsize=6, color=ink)
    axes.set_xlim(0.8, 19.1)
    axes.set_ylim(-9.7, 0.3)
    axes.set_axis_off()
    axes.set_title(title, fontsize=8, color=INK, loc="left")


def _style(axes: Axes, unit: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(unit, fontsize=8, color=INK)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98))
