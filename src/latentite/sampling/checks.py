"""Refusals of sampled crystals that cannot be: collapsed cells, atoms on top of each other, numbers that are none.

The limits are those of `data/readers/checks.py`, which decides what may enter a data set; here every refusal also has a
kind, so that a run can count them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import Limits, refusals
from latentite.elements import covalent_radii, symbol_of
from latentite.symmetry.dataset import minkowski_reductions


class RefusalKind(StrEnum):
    """Reasons for which a crystal cannot be used."""

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
    TOO_CLOSE = "too_close"
    """Two atoms closer than asked, in units of the sum of their covalent radii."""
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
    min_distance_scaled: float = 0.0
    """Of any two atoms, periodic images included, over the sum of their covalent radii; 0 for no bound."""


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
    if limits.min_distance_scaled > 0:
        left = [number for number in rest.tolist() if results[number] is None]
        for number, pair in zip(left, closest_scaled([arrays[p] for p in left]), strict=True):
            if pair.scaled < limits.min_distance_scaled:
                results[number] = Refusal(
                    kind=RefusalKind.TOO_CLOSE, reason=pair.sentence(arrays[number], limits)
                )
    return results


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosePair:
    """The two atoms of a crystal that are closest, measured by their covalent radii."""

    scaled: float
    """Distance over the sum of covalent radii."""
    first: int
    second: int
    """The same one for an atom and its own periodic image."""

    def sentence(self, crystal: CrystalArrays, limits: GeometryLimits) -> str:
        """That they are too close."""
        names = [
            f"{place + 1} ({symbol_of(int(crystal.atomic_numbers[place]))})"
            for place in (self.first, self.second)
        ]
        what = f"atoms {names[0]} and {names[1]}"
        if self.first == self.second:
            what = f"atom {names[0]} and its own periodic image"
        return (
            f"{what} are {self.scaled:.3f} of their summed covalent radii apart, closer than "
            f"{limits.min_distance_scaled:g}"
        )


def closest_scaled(crystals: Sequence[CrystalArrays]) -> list[ClosePair]:
    """The closest pair of each crystal in units of summed covalent radii, periodic images included.

    Args:
        crystals: with cells that are none of those that `geometry_refusals` refuses.
    """
    results: dict[int, ClosePair] = {}
    by_count: dict[int, list[int]] = {}
    for position, crystal in enumerate(crystals):
        by_count.setdefault(crystal.num_atoms, []).append(position)
    for count, positions in by_count.items():
        step = max(1, 100_000 // (count * count))  # keeps the arrays of pairs within tens of MB
        for start in range(0, len(positions), step):
            chunk = positions[start : start + step]
            results |= zip(chunk, _closest_of_size([crystals[p] for p in chunk]), strict=True)
    return [results[position] for position in range(len(crystals))]


def _closest_of_size(crystals: Sequence[CrystalArrays]) -> list[ClosePair]:
    """The same of crystals with equally many atoms."""
    lattices = np.stack([crystal.lattice for crystal in crystals]).astype(float)
    reductions = minkowski_reductions(lattices)
    reduced = reductions @ lattices
    coords = np.stack([crystal.frac_coords for crystal in crystals]) @ np.linalg.inv(reductions)
    radii = covalent_radii()[np.stack([crystal.atomic_numbers for crystal in crystals])]
    first, second = np.triu_indices(coords.shape[1])
    difference = coords[:, first] - coords[:, second]
    vectors = (difference - np.round(difference)) @ reduced
    # In a reduced cell the nearest image is in the own cell or a neighbour: |d +- s|^2 = |d|^2 + |s|^2 +- 2 d.s.
    shifts = _HALF_SHELL @ reduced
    squared = (vectors**2).sum(-1)
    lengths = (shifts**2).sum(-1)
    images = lengths[:, None] - 2 * np.abs(vectors @ shifts.transpose(0, 2, 1))
    squared = squared + np.where(first == second, images.min(-1), np.minimum(images.min(-1), 0.0))
    scaled = np.sqrt(np.maximum(squared, 0.0)) / (radii[:, first] + radii[:, second])
    nearest = scaled.argmin(-1)
    return [
        ClosePair(scaled=float(row[pair]), first=int(first[pair]), second=int(second[pair]))
        for row, pair in zip(scaled, nearest.tolist(), strict=True)
    ]


_HALF_SHELL = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[14:]
"""One of each pair of opposite neighbouring cells."""
