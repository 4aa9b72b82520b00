"""Limits within which a crystal enters a data set, and the sentence said when one is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from latentite.base.options import option
from latentite.crystal_arrays import CrystalArrays
from latentite.elements import MAX_ATOMIC_NUMBER, NUM_ELEMENTS, SYMBOLS

MAX_DEFECT = 1e6
"""Orthogonality defect a b c / V of a cell; real ones stay below ten, and at 1e9 rounding keeps a reduction from ever
ending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds outside of which a crystal is rejected, with that reason."""

    max_atoms: int | None = field(default=20, metadata=option(none=0))
    """Reject cells of more atoms; 0: none."""
    min_distance: float = field(default=0.5, metadata=option("Å"))
    """Reject crystals with closer atoms.

    Å; of any two, periodic images included."""
    min_volume_per_atom: float = 1.0
    """Å^3; diamond has 5.7."""
    max_volume_per_atom: float = 1000.0
    """Å^3; solid xenon has about 60, a molecule in a vacuum box can have several hundred."""

    def __post_init__(self) -> None:
        if self.max_atoms is not None and self.max_atoms < 1:
            raise ValueError(
                f"max_atoms must be at least 1 (null or --max-atoms 0: no limit), got {self.max_atoms}"
            )
        if not self.min_distance >= 0.0:
            raise ValueError(f"min_distance must be 0 or more Å, got {self.min_distance}")
        if not 0.0 <= self.min_volume_per_atom < self.max_volume_per_atom:
            raise ValueError(
                "min_volume_per_atom must be 0 or more and below max_volume_per_atom, got "
                f"{self.min_volume_per_atom} and {self.max_volume_per_atom} Å^3"
            )


def refusals(crystals: Sequence[CrystalArrays], limits: Limits) -> list[str | None]:
    """For each crystal the reason why it breaks the limits, or None.

    The cheap checks run one by one in scalar arithmetic; the distances are computed for all crystals with
    the same number of atoms at once.
    """
    reasons = [_refusal_without_distances(crystal, limits) for crystal in crystals]
    if limits.min_distance == 0.0:
        return reasons
    by_count: dict[int, list[int]] = {}
    for position, reason in enumerate(reasons):
        if reason is None:
            by_count.setdefault(crystals[position].num_atoms, []).append(position)
    for count, positions in by_count.items():
        step = max(1, 200_000 // (count * count))  # keeps the arrays of pairs within a few MB, and in cache
        for start in range(0, len(positions), step):
            chunk = positions[start : start + step]
            coords = np.stack([crystals[p].frac_coords for p in chunk])
            lattices = np.stack([crystals[p].lattice for p in chunk])
            for position, pair in zip(chunk, too_close(coords, lattices, limits.min_distance), strict=True):
                if pair is not None:
                    reasons[position] = _describe(pair, crystals[position].atomic_numbers, limits)
    return reasons


def _describe(pair: tuple[int, int, float], numbers: np.ndarray, limits: Limits) -> str:
    first, second, distance = pair
    names = (
        f"atoms {first + 1} ({SYMBOLS[numbers[first] - 1]}) and {second + 1} ({SYMBOLS[numbers[second] - 1]})"
    )
    if first == second:
        names = f"atom {first + 1} ({SYMBOLS[numbers[first] - 1]}) and its own periodic image"
    return f"{names} are {distance:.3f} Å apart, closer than {limits.min_distance:g} Å"


def _refusal_without_distances(crystal: CrystalArrays, limits: Limits) -> str | None:
    atomic_numbers, count = crystal.atomic_numbers, crystal.num_atoms
    if count == 0:
        return "no atoms"
    if limits.max_atoms is not None and count > limits.max_atoms:
        return f"{count} atoms, more than the limit of {limits.max_atoms} (max_atoms)"
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = crystal.lattice.tolist()
    volume = abs(ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx))
    if not math.isfinite(volume):
        return "absurd cell: its vectors are not finite numbers"
    if volume < 1e-6:
        return "absurd cell: its volume is zero (no periodic cell, or angles that no cell can have)"
    lengths = (ax * ax + ay * ay + az * az) * (bx * bx + by * by + bz * bz) * (cx * cx + cy * cy + cz * cz)
    if lengths > (MAX_DEFECT * volume) ** 2:
        return (
            f"absurd cell: so skew that a b c is {math.sqrt(lengths) / volume:.1e} times its volume, more than "
            f"{MAX_DEFECT:.0e}"
        )
    if not limits.min_volume_per_atom <= volume / count <= limits.max_volume_per_atom:
        return (
            f"absurd cell: {volume / count:.4g} Å^3 per atom, outside "
            f"{limits.min_volume_per_atom:g} to {limits.max_volume_per_atom:g}"
        )
    if not math.isfinite(float(crystal.frac_coords.sum())):
        return "coordinates are not finite numbers"
    highest = int(atomic_numbers.max())
    if highest > MAX_ATOMIC_NUMBER:
        name = SYMBOLS[highest - 1] if highest <= NUM_ELEMENTS else "no element"
        return f"atomic number {highest} ({name}) is beyond {MAX_ATOMIC_NUMBER}, the last element class"
    if int(atomic_numbers.min()) < 1:
        return f"atomic number {int(atomic_numbers.min())} is no element"
    return None


def too_close(
    frac_coords: np.ndarray, lattices: np.ndarray, distance: float
) -> list[tuple[int, int, float] | None]:
    """For each of several crystals with equally many atoms a pair closer than `distance` (Å), periodic.

    Exact for every cell, reduced or not. Two atoms closer than r differ along axis i by at most `r /
    spacing_i` in fractional coordinates, with the spacing of the lattice planes. When that is below one half
    for each axis, the wrapped difference is the only image that can be so close, and no lattice vector is
    shorter than r; cells thinner than 2 r are searched over all images that could matter.

    Args:
        frac_coords: [crystal atom 3].
        lattices: [crystal 3 3], row vectors in Å.
        distance: Å.

    Returns:
        Per crystal None, or the first and second atom (from 0; equal for an atom and its own image) of the
        closest pair and their distance in Å.
    """
    a, b, c = lattices[:, 0], lattices[:, 1], lattices[:, 2]
    normals = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
    volumes = np.abs((a * normals[:, 0]).sum(-1))
    spacing = volumes[:, None] / np.sqrt((normals**2).sum(-1))  # crystal 3
    is_thin = (spacing <= 2.0 * distance).any(-1)
    results: list[tuple[int, int, float] | None] = [None] * len(lattices)
    for crystal in np.flatnonzero(is_thin):
        results[crystal] = _closest(frac_coords[crystal], lattices[crystal], distance, spacing[crystal])
    normal = np.flatnonzero(~is_thin)
    count = frac_coords.shape[1]
    if len(normal) == 0 or count == 1:
        return results
    if count > 400:  # all pairs at once would need much memory: row by row instead
        for crystal in normal:
            results[crystal] = _closest(frac_coords[crystal], lattices[crystal], distance, spacing[crystal])
        return results
    first, second = np.triu_indices(count, k=1)
    coords = frac_coords[normal]
    difference = coords[:, first] - coords[:, second]  # crystal pair 3
    difference -= np.round(difference)
    vectors = difference @ lattices[normal]
    squared = (vectors * vectors).sum(-1)
    nearest = squared.argmin(-1)
    shortest = squared[np.arange(len(normal)), nearest]
    for k in np.flatnonzero(shortest < distance * distance):
        pair = nearest[k]
        results[normal[k]] = (int(first[pair]), int(second[pair]), float(np.sqrt(shortest[k])))
    return results


def _closest(
    coords: np.ndarray, lattice: np.ndarray, distance: float, spacing: np.ndarray
) -> tuple[int, int, float] | None:
    """The closest pair nearer than `distance` over every image within reach, one atom at a time."""
    reach = (
        np.ceil(distance / spacing + 0.5).astype(int)
        if (spacing <= 2.0 * distance).any()
        else np.zeros(3, int)
    )
    shifts = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    best: tuple[int, int, float] | None = None
    limit = distance * distance
    for atom in range(len(coords)):
        difference = coords[atom:] - coords[atom]
        difference -= np.round(difference)
        vectors = (difference[:, None] + shifts[None]) @ lattice  # atom shift 3
        squared = (vectors * vectors).sum(-1)
        squared[0, (shifts == 0).all(-1)] = np.inf  # an atom and itself
        nearest = np.unravel_index(squared.argmin(), squared.shape)
        if squared[nearest] < limit:
            limit = float(squared[nearest])
            best = (atom, atom + int(nearest[0]), limit**0.5)
    return best
