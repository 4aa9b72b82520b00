"""The section of distributions: entropies, distances to the reference, and charts of generated against reference.

Charts show shares, not counts, so that a thousand samples can stand beside a data set of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from latentite.data.info import table_position
from latentite.data.properties import SYMPREC
from latentite.draw.charts import COLOURS, INK, new_figure
from latentite.elements import NUM_ELEMENTS, SYMBOLS
from latentite.evaluation.markup import html_table, number_text, share_axes, svg_text
from latentite.evaluation.measure import Cell, Measured
from latentite.evaluation.result import Section, Work, finite
from latentite.metrics.distributions import entropy_bits, jensen_shannon_bits, wasserstein

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WASSERSTEIN_LABELS = {
    "density_g_per_cm3": "density, g/cm³",
    "num_elements": "number of elements",
    "num_atoms": "number of atoms",
    "volume_per_atom_A3": "volume per atom, Å³",
}


def distribution_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Numbers of the whole set; units in the names.

    `all` is over all structures, `valid` over those that are valid under the protocol, as CDVAE has it.
    """
    generated, reference = work.measured, work.reference_measured
    groups = _known_groups(generated)
    content: dict[str, Any] = {
        "entropy_bits": {
            "space_group": finite(entropy_bits(groups)),
            "formula": finite(entropy_bits(generated.formulas)),
            "chemical_system": finite(entropy_bits(generated.chemical_systems)),
        }
    }
    if reference is not None:
        is_valid = np.array([cell is True for cell in table["valid"]], dtype=bool)
        content["wasserstein"] = _wasserstein(generated, reference, is_valid)
        content["jensen_shannon_bits"] = {
            "space_group": finite(jensen_shannon_bits(groups, _known_groups(reference))),
            "element": finite(jensen_shannon_bits(_occurrences(generated), _occurrences(reference))),
        }
        absent = (element_shares(generated) > 0) & (element_shares(reference) == 0)
        content["elements_not_in_reference"] = np.flatnonzero(absent).tolist()
    return Section(summary={"distributions": content}, page=lambda: _page(content))


def element_shares(measured: Measured) -> Float[np.ndarray, "119"]:
    """Share of the structures that contain each element, by atomic number."""
    counts = np.zeros(NUM_ELEMENTS + 1)
    for composition in measured.compositions:
        counts[[number for number, _ in composition]] += 1
    return counts / max(1, len(measured.compositions))


def _wasserstein(generated: Measured, reference: Measured, is_valid: np.ndarray) -> dict[str, Any]:
    pairs = {
        "density_g_per_cm3": (generated.density, reference.density),
        "num_elements": (generated.num_elements, reference.num_elements),
        "num_atoms": (generated.num_atoms, reference.num_atoms),
        "volume_per_atom_A3": (generated.volume_per_atom, reference.volume_per_atom),
    }
    return {
        name: {
            "all": finite(wasserstein(ours, theirs)),
            "valid": finite(wasserstein(ours[is_valid], theirs)),
        }
        for name, (ours, theirs) in pairs.items()
    }


def _known_groups(measured: Measured) -> list[int]:
    groups = measured.space_groups[SYMPREC]
    return groups[np.isfinite(groups)].astype(int).tolist()


def _occurrences(measured: Measured) -> list[int]:
    return [number for composition in measured.compositions for number, _ in composition]


def _page(content: Mapping[str, Any]) -> str:
    if "wasserstein" not in content:
        return ""

    rows = [
        [label, *(number_text(content["wasserstein"][name][side], ".3f") for side in ("all", "valid"))]
        for name, label in _WASSERSTEIN_LABELS.items()
    ]
    head = ["Wasserstein distance to the reference", "all", "valid only"]
    return f"<h2>Distributions</h2>{html_table(head, rows)}"


_GENERATED, _REFERENCE, _EMPTY = COLOURS[0], "#b9c0c8", "#f0f2f4"
_LARGEST_RATIO = 4.0
"""Factors beyond this, either way, have the same colour in the periodic table."""


Values = Callable[[Measured], np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """The numbers of one side that exist, and how they are drawn."""

    name: str
    colour: str
    numbers: Float[np.ndarray, " crystal"]

    @property
    def legend(self) -> str:
        """Name and how many numbers there are."""
        return f"{self.name} ({len(self.numbers):,})"

    @property
    def total(self) -> int:
        """Denominator of the shares; 1 where there is nothing, so that they are 0."""
        return max(1, len(self.numbers))


def draw_charts(generated: Measured, reference: Measured | None) -> dict[str, str]:
    """SVG text by title."""

    def sides(values: Values) -> list[_Side]:
        return _sides(generated, reference, values)

    charts = {
        "Number of atoms": _counts(sides(lambda m: m.num_atoms), "atoms per cell"),
        "Number of elements": _counts(sides(lambda m: m.num_elements), "elements"),
        "Density": _continuous(sides(lambda m: m.density), "g/cm³"),
        "Volume per atom": _continuous(sides(lambda m: m.volume_per_atom), "Å³"),
        "Smallest distance": _continuous(sides(lambda m: np.fmin(m.distance, m.own_distance)), "Å"),
        f"Space groups at {SYMPREC:g} Å": _space_groups(sides(lambda m: m.space_groups[SYMPREC])),
        "Elements": _elements(generated, reference),
    }
    return {title: svg_text(figure) for title, figure in charts.items()}


def _sides(generated: Measured, reference: Measured | None, values: Values) -> list[_Side]:
    sides = [("generated", _GENERATED, generated)]
    if reference is not None:
        sides.insert(0, ("reference", _REFERENCE, reference))
    known = []
    for name, colour, side in sides:
        numbers = np.asarray(values(side), dtype=float)
        known.append(_Side(name=name, colour=colour, numbers=numbers[np.isfinite(numbers)]))
    return known


def _counts(sides: Sequence[_Side], unit: str) -> Figure:
    """Shares of whole numbers."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = share_axes(unit)
    heights = []
    for side in sides:
        where, counts = np.unique(side.numbers, return_counts=True)
        heights.append((where, counts / side.total))
    _bars(axes, sides, heights)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _continuous(sides: Sequence[_Side], unit: str) -> Figure:
    """A histogram of shares; how many numbers lie outside of it stands in the legend."""
    figure, axes = share_axes(unit)
    pooled = np.concatenate([side.numbers for side in sides])
    # The central 99 % sets the range, else one collapsed cell would squeeze all others into one bar.
    low, high = np.percentile(pooled, [0.5, 99.5]) if len(pooled) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), 41)
    for side in sides:
        outside = int(((side.numbers < edges[0]) | (side.numbers > edges[-1])).sum())
        axes.hist(
            side.numbers,
            edges.tolist(),
            weights=np.full(len(side.numbers), 1 / side.total),
            color=side.colour,
            label=side.legend.replace(")", f"; {outside:,} outside)") if outside else side.legend,
            histtype="stepfilled" if side.name == "reference" else "step",
            linewidth=1.6,
        )
    _legend(axes)
    return figure


def _space_groups(sides: Sequence[_Side], *, shown: int = 24) -> Figure:
    """Shares of the most frequent space groups, and of all others together."""
    figure, axes = share_axes("", width=9.4, height=2.7)
    shares = [np.bincount(side.numbers.astype(int), minlength=231) / side.total for side in sides]
    order = np.argsort(-np.max(shares, axis=0), kind="stable")
    groups = sorted(int(group) for group in order[:shown] if max(share[group] for share in shares) > 0)
    where = np.arange(len(groups) + 1)
    heights = [
        (where, np.append(share[groups], 1.0 - share[groups].sum() if len(side.numbers) else 0.0))
        for side, share in zip(sides, shares, strict=True)
    ]
    _bars(axes, sides, heights)
    axes.set_xticks(where, [*map(_group_name, groups), "others"], rotation=60, ha="right")
    return figure


def _bars(axes: Axes, sides: Sequence[_Side], heights: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Bars of all sides next to each other: places and shares of each."""
    width = 0.8 / len(sides)
    for place, (side, (where, shares)) in enumerate(zip(sides, heights, strict=True)):
        offset = (place - (len(sides) - 1) / 2) * width
        axes.bar(where + offset, shares, width, color=side.colour, label=side.legend)
    _legend(axes)


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


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 0.98))
