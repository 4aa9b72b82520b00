"""What the report's page says of energies: a histogram, how relaxations ended, what the hull does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from latentite.draw.charts import COLOURS
from latentite.evaluation.charts import share_axes, svg_text
from latentite.evaluation.measure import Cell

_RANGE = (-0.2, 1.0)
"""eV/atom; how many lie outside stands in the legend."""

_MEDIAN_LABELS = {
    "energy_above_hull": ("energy above hull as they came", "eV/atom"),
    "relaxed_energy_above_hull": ("energy above hull, relaxed", "eV/atom"),
    "rmsd_to_relaxed": ("RMSD to the relaxed structure", "Å"),
    "relaxed_volume_change": ("relative change of volume", ""),
    "relax_steps": ("steps of relaxation", ""),
}


def energy_page(found: Mapping[str, Any], columns: Mapping[str, Sequence[Cell]]) -> str:
    """HTML of the section.

    Args:
        found: what the summary says of energies.
        columns: of the section.
    """
    potential, hull = found["potential"], found["hull"]
    words = f"{escape(potential['name'])} {escape(str(potential['version']))} ({escape(str(potential['theory']))})"
    parts = [f"<h2>Energies</h2><p>Potential {words}; what may move: {found['relaxation']['cell']}."]
    if hull is None:
        parts.append(" No hull was given, so nothing is called stable.</p>")
    else:
        residual = hull["element_references"]["left_out_residual"]
        parts.append(
            f" Hull of {escape(hull['name'])}: {hull['num_phases']:,} compositions; element references fitted on "
            f"{hull['element_references']['num_rows']:,} rows, mean absolute residual of rows left out "
            f"{'–' if residual is None else f'{residual:.3f}'} eV/atom. An incomplete hull errs towards stable.</p>"
        )
        if (missing := hull["missing_phases"]) and (
            lost := missing["without_energy"] + missing["unreadable"]
        ):
            parts.append(
                f"<p><b>{lost:,} of {missing['num_rows']:,} phases of this table are missing from the hull</b> "
                f"({missing['without_energy']:,} without a formation energy, {missing['unreadable']:,} unreadable): "
                "fewer phases make everything look stable.</p>"
            )
        parts.append(f"<figure><figcaption>Energy above hull</figcaption>{_histogram(columns)}</figure>")
    parts.append(_table("median", [_median(name, value) for name, value in found["medians"].items()]))
    distances = [
        (_MEDIAN_LABELS.get(name, (name, ""))[0], "–" if value is None else f"{value:.3f} eV/atom")
        for name, value in found["wasserstein_eV_per_atom"].items()
    ]
    parts.append(_table("Wasserstein distance to the reference's own labels", distances))
    parts.append(_table("how it ended", [(name, f"{count:,}") for name, count in found["status"].items()]))
    unknown = list(found["unknown_systems"].items())
    if unknown:
        listed = ", ".join(f"{escape(name)} ({count:,})" for name, count in unknown[:30])
        more = f" and {len(unknown) - 30:,} more" if len(unknown) > 30 else ""
        parts.append(f"<p class='small'>Unknown to the hull: {listed}{more}.</p>")
    return "".join(parts)


def _median(name: str, value: float) -> tuple[str, str]:
    label, unit = _MEDIAN_LABELS.get(name, (name, "eV/atom"))
    return label, f"{value:.3f} {unit}".strip()


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(name)}</td><td class='n'>{escape(text)}</td></tr>" for name, text in rows
    )
    return f"<table><tr><th>{title}</th><th></th></tr>{body}</table>"


def _histogram(columns: Mapping[str, Sequence[Cell]]) -> str:
    """Shares of the known ones, as they came and relaxed."""
    figure, axes = share_axes("eV/atom", width=9.4, height=2.6)
    edges = np.linspace(*_RANGE, 61)
    sides = {"as they came": "energy_above_hull", "relaxed": "relaxed_energy_above_hull"}
    for colour, (name, column) in zip(COLOURS, sides.items(), strict=False):
        known = np.array([cell for cell in columns.get(column, ()) if cell is not None], dtype=float)
        if not len(known):
            continue
        outside = int(((known < edges[0]) | (known > edges[-1])).sum())
        axes.hist(
            known,
            edges.tolist(),
            weights=np.full(len(known), 1 / len(known)),
            color=colour,
            label=f"{name} ({len(known):,}; {outside:,} outside)",
            histtype="stepfilled" if name == "relaxed" else "step",
            alpha=0.8,
            linewidth=1.6,
        )
    for height in (0.0, 0.1):
        axes.axvline(height, color="#22272e", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return svg_text(figure)
