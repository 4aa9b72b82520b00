"""Which sampled crystals cannot be: a cell that has collapsed, atoms on top of each other, numbers that are none.

The limits are those of `data/readers/checks.py`, which decides what may enter a data set; here every refusal also has a
kind, so that a run can count them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from latentite.crystal import CrystalBatch
from latentite.data.readers.checks import Limits, refusals


class RefusalKind(StrEnum):
    """Why a crystal cannot be used."""

    NOT_DRAWN = "not_drawn"
    """The generator gave none, and said why."""
    NOT_FINITE = "not_finite"
    """Coordinates or cell are NaN or infinite."""
    COLLAPSED_CELL = "collapsed_cell"
    """Too little volume per atom, or lattice planes on top of each other."""
    LEFT_HANDED_CELL = "left_handed_cell"
    """A length below zero, or an angle that no cell has: a file of lengths and angles would hold the mirror image."""
    EXPLODED_CELL = "exploded_cell"
    """Too much volume per atom."""
    OVERLAPPING_ATOMS = "overlapping_atoms"
    """Two atoms, periodic images included, closer than the limit."""
    UNREADABLE = "unreadable_cif"
    """Its CIF would not come back as the same crystal (`writers.reads_back`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A kind, and a sentence with the numbers."""

    kind: RefusalKind
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryLimits:
    """Bounds outside of which a sampled crystal is refused."""

    limits: Limits = field(default_factory=lambda: Limits(max_atoms=None))
    """Distances (0.5 Å) and volumes per atom (1 to 1000 Å^3)."""
    min_plane_spacing: float = 0.1
    """Å; a cell whose lattice planes are closer is flat, whatever its volume."""


def geometry_refusals(crystals: CrystalBatch, limits: GeometryLimits | None = None) -> list[Refusal | None]:
    """For each crystal why it cannot be, or None.

    Args:
        crystals: as sampled, on any device.
        limits: bounds; the defaults of `GeometryLimits` when None.
    """
    limits = limits or GeometryLimits()
    arrays = crystals.to_arrays()
    if not arrays:
        return []
    lattices = np.stack([crystal.lattice for crystal in arrays])
    counts = np.array([crystal.num_atoms for crystal in arrays])
    firsts = np.cumsum(counts) - counts
    is_finite = np.isfinite(lattices).all(axis=(1, 2)) & np.logical_and.reduceat(
        np.isfinite(np.concatenate([crystal.frac_coords for crystal in arrays])).all(axis=1), firsts
    )
    safe = np.where(is_finite[:, None, None], lattices, np.eye(3))
    determinants = np.linalg.det(safe)
    volumes = np.abs(determinants)
    crosses = np.linalg.norm(np.cross(safe[:, [1, 2, 0]], safe[:, [2, 0, 1]]), axis=-1)
    spacing = volumes / np.maximum(crosses.max(axis=1), np.finfo(float).tiny)
    is_flat = is_finite & (spacing < limits.min_plane_spacing)
    is_left_handed = is_finite & ~is_flat & (determinants < 0.0)
    results: list[Refusal | None] = [None] * len(arrays)
    # Flat cells are told apart first: the exact distance check would search very many images of them.
    for position in np.flatnonzero(is_flat):
        sentence = (
            f"lattice planes {spacing[position]:.3g} Å apart, closer than {limits.min_plane_spacing:g} Å"
        )
        results[position] = Refusal(kind=RefusalKind.COLLAPSED_CELL, reason=sentence)
    for position in np.flatnonzero(is_left_handed):
        sentence = "the cell is left-handed: a length is below zero, or an angle outside of 0 to 180 degrees"
        results[position] = Refusal(kind=RefusalKind.LEFT_HANDED_CELL, reason=sentence)
    rest = np.flatnonzero(~(is_flat | is_left_handed))
    for position, reason in zip(rest, refusals([arrays[p] for p in rest], limits.limits), strict=True):
        if reason is None:
            continue
        if not is_finite[position]:
            kind = RefusalKind.NOT_FINITE
        elif volumes[position] / counts[position] < limits.limits.min_volume_per_atom:
            kind = RefusalKind.COLLAPSED_CELL
        elif volumes[position] / counts[position] > limits.limits.max_volume_per_atom:
            kind = RefusalKind.EXPLODED_CELL
        else:
            kind = RefusalKind.OVERLAPPING_ATOMS
        results[position] = Refusal(kind=kind, reason=reason)
    return results
