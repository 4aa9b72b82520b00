"""The two atoms of a crystal that are closest, measured by their covalent radii."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.elements import covalent_radii, symbol_of
from latentite.symmetry.dataset import minkowski_reductions


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosePair:
    """The two atoms of a crystal that are closest, measured by their covalent radii."""

    scaled: float
    """Distance over the sum of covalent radii."""
    first: int
    second: int
    """The same one for an atom and its own periodic image."""

    def sentence(self, crystal: CrystalArrays, least: float) -> str:
        """They are too close.

        Args:
            crystal: theirs.
            least: distance over summed covalent radii that is asked.
        """
        names = [
            f"{place + 1} ({symbol_of(int(crystal.atomic_numbers[place]))})"
            for place in (self.first, self.second)
        ]
        what = f"atoms {names[0]} and {names[1]}"
        if self.first == self.second:
            what = f"atom {names[0]} and its own periodic image"
        return f"{what} are {self.scaled:.3f} of their summed covalent radii apart, closer than {least:g}"


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
