"""What `summary.json` says of energies, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latentite.energy.hull import Hull
from latentite.energy.references import ElementReferences
from latentite.energy.table import EnergyTable, MissingPhases
from latentite.evaluation.distributions import finite
from latentite.evaluation.energies import Energies
from latentite.evaluation.energy_options import EnergyOptions
from latentite.evaluation.measure import Cell
from latentite.evaluation.table import Work
from latentite.metrics.distributions import wasserstein


@dataclass(frozen=True, kw_only=True, slots=True)
class Competition:
    """What structures compete with; nothing of it without a table."""

    phases: EnergyTable | None = None
    """The table with formation energies."""
    hull: Hull | None = None
    """Of that table, or the phase diagram that was given instead."""
    missing: MissingPhases | None = None
    """Rows of the table that its hull lacks; None for a phase diagram."""
    references: ElementReferences | None = None
    """Between the potential and the table."""


def energy_summary(
    options: EnergyOptions,
    energies: Energies,
    competition: Competition,
    columns: Mapping[str, Sequence[Cell]],
) -> dict[str, Any]:
    """Potential, settings, hull and element references by name and hash; how relaxations ended; medians."""
    phases, hull, references = competition.phases, competition.hull, competition.references
    card = energies.card
    found: dict[str, Any] = {
        "potential": {
            "name": card.name,
            "version": card.version,
            "sha256": card.sha256,
            "theory": None if card.theory is None else str(card.theory),
        },
        "relaxation": {"cell": options.cell.value, "fmax": options.fmax, "max_steps": options.max_steps},
        "settings": asdict(energies.how.settings),
        "status": energies.counts,
        "medians": {name: median for name in _MEDIANS if (median := _median(columns.get(name))) is not None},
        "hull": None,
        "unknown_systems": energies.unknown_systems,
        "unknown_elements": energies.unknown_elements,
    }
    if phases is not None and hull is not None and references is not None:
        found["hull"] = {
            "name": phases.name if options.phase_diagram is None else str(options.phase_diagram),
            "sha256": hull.sha256,
            "theory": None if phases.theory is None else str(phases.theory),
            "num_phases": len(hull),
            "missing_phases": None if competition.missing is None else asdict(competition.missing),
            "element_references": {
                "table": phases.name,
                "terms": references.terms.value,
                "num_rows": references.num_rows,
                "mean_absolute_residual": references.mean_absolute_residual,
                "left_out_residual": finite(references.left_out_residual),
            },
        }
    return found


_LABELS = {
    "formation_energy": ("formation_energy_per_atom",),
    "energy_above_hull": ("energy_above_hull", "e_above_hull"),
}
"""Columns of the reference that hold the same property."""


def label_distances(work: Work, columns: Mapping[str, Sequence[Cell]]) -> dict[str, float | None]:
    """Wasserstein distances to the labels of the reference, where it has such labels."""
    found: dict[str, float | None] = {}
    labels = {} if work.reference is None else work.reference.labels
    for name, names in _LABELS.items():
        label = next((labels[n] for n in names if n in labels), None)
        for column in (name, f"relaxed_{name}"):
            if label is not None and column in columns:
                found[column] = finite(wasserstein(_numbers(columns[column]), _numbers(label)))
    return found


def _numbers(cells: Sequence[object]) -> np.ndarray:
    return np.array([float(cell) for cell in cells if isinstance(cell, int | float) and np.isfinite(cell)])


_MEDIANS = (
    "energy",
    "energy_above_hull",
    "relaxed_energy",
    "relaxed_energy_above_hull",
    "rmsd_to_relaxed",
    "relaxed_volume_change",
    "relax_steps",
)


def _median(column: Sequence[Cell] | None) -> float | None:
    known = _numbers(column or ())
    return float(np.median(known)) if len(known) else None
