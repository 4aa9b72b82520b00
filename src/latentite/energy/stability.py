"""From a potential's energies to energies above hull, one row per crystal, each gap with its reason.

Joins `references.py` and `hull.py`; `metrics/` and the rewards use it.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.energy.hull import Hull
from latentite.energy.references import ElementReferences, check_same_theory
from latentite.formulas import compositions


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """Of one crystal."""

    formation_energy: float | None
    """eV/atom."""
    energy_above_hull: float | None
    """eV/atom, negative below the hull; None where unknown."""
    num_competing: int
    """Phases that the hull knows in the chemical system, the elements not counted."""
    reason: str | None
    """Why the energy above hull is unknown."""


def stability(
    crystals: CrystalBatch,
    energy: Float[Tensor, " crystal"],
    references: ElementReferences,
    hull: Hull,
    *,
    allow_mixed_theory: bool = False,
) -> list[Stability]:
    """One row per crystal, in order.

    Args:
        crystals: as the potential judged them.
        energy: eV per cell, NaN where there is none.
        references: fitted to a table of the hull's level of theory.
        hull: what competes.
        allow_mixed_theory: also where the levels of theory of table and hull differ, or are not known.

    Raises:
        ValueError: when levels of theory are mixed.
    """
    check_same_theory(references.table_theory, hull.theory, allow_mixed_theory=allow_mixed_theory)
    formation, reasons = references.formation_energy(crystals, energy)
    above, num_competing = hull.energy_above_hull(compositions(crystals), formation.tolist())
    rows = []
    for value, height, count, reason in zip(formation.tolist(), above, num_competing, reasons, strict=True):
        if reason is None and value != value:
            reason = "the potential gave no energy"
        elif reason is None and height is None:
            reason = "the hull has no references in this chemical system"
        rows.append(
            Stability(
                formation_energy=value if value == value else None,
                energy_above_hull=height,
                num_competing=count,
                reason=reason,
            )
        )
    return rows
