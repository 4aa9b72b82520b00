"""What counts as the same kind of crystal over a whole run, as a word that can be counted and stored.

Coarser and cheaper than the matcher of `duplicates.py`, which compares the crystals of one rollout.
"""

from __future__ import annotations

from enum import StrEnum

from latentite.crystal import CrystalBatch
from latentite.elements import SYMBOLS
from latentite.formulas import plain_formula, reduced_composition
from latentite.metrics.geometry import space_groups

SYMPREC = 0.1
"""Å; tolerance of the space group of `Kind.STRUCTURE`."""


class Kind(StrEnum):
    """When two crystals are of one kind."""

    FORMULA = "formula"
    """The same reduced formula."""
    CHEMICAL_SYSTEM = "chemical_system"
    """The same elements."""
    STRUCTURE = "structure"
    """The same reduced formula and space group (at 0.1 Å)."""


def kinds(crystals: CrystalBatch, kind: Kind) -> list[str]:
    """The kind of each crystal: `Na1Cl1`, `Na-Cl`, `Na1Cl1 225`; elements by atomic number."""
    arrays = crystals.to_arrays()
    compositions = [reduced_composition(crystal.atomic_numbers.tolist()) for crystal in arrays]
    if kind is Kind.CHEMICAL_SYSTEM:
        return ["-".join(SYMBOLS[number - 1] for number, _ in composition) for composition in compositions]
    formulas = [plain_formula(composition) for composition in compositions]
    if kind is Kind.FORMULA:
        return formulas
    groups = space_groups(arrays, symprecs=(SYMPREC,), workers=1)[:, 0]
    return [f"{formula} {group:g}" for formula, group in zip(formulas, groups, strict=True)]
