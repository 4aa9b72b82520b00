"""Tolerances of pymatgen's `StructureMatcher` by name, and what can be compared at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from latentite.data.niggli import niggli_transformations

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher

_SHORTEST = 0.1
"""Å; no lattice vector is shorter. Vectors of a cell with an edge of 0.02 Å are listed by the million, in gigabytes."""
_MOST_POINTS = 1e6
"""Lattice points within the longest vector of the reduced cell; 3 x 3 x 100 Å has 5,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatcherSettings:
    """Tolerances of pymatgen's `StructureMatcher`."""

    name: str
    ltol: float
    stol: float
    angle_tol: float

    def build(self) -> StructureMatcher:
        """The matcher itself (reduces to primitive cells and scales volumes, pymatgen's defaults)."""
        from pymatgen.core.structure_matcher import StructureMatcher

        return StructureMatcher(ltol=self.ltol, stol=self.stol, angle_tol=self.angle_tol)

    def within(self, other: MatcherSettings) -> bool:
        """True when no tolerance is wider than the other's."""
        return self.ltol <= other.ltol and self.stol <= other.stol and self.angle_tol <= other.angle_tol


LOOSE = MatcherSettings(name="loose", ltol=0.3, stol=0.5, angle_tol=10.0)
"""0.3/0.5/10, as the CDVAE family uses."""
STRICT = MatcherSettings(name="strict", ltol=0.2, stol=0.3, angle_tol=5.0)
"""0.2/0.3/5, pymatgen's defaults, as Chemeleon2 uses."""


def is_comparable(structure: Structure) -> bool:
    """True when a decoded structure is a crystal at all, so that reduction of its cell can end."""
    return why_not_comparable(structure.frac_coords, structure.lattice.matrix) is None


def why_not_comparable(frac_coords: np.ndarray, lattice: np.ndarray) -> str | None:
    """Reason against the comparison of a crystal, or None.

    Args:
        frac_coords: [atom 3].
        lattice: [3 3], row vectors in Å.
    """
    if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all()):
        return "not a crystal that can be compared: its cell or coordinates are not finite"
    volume_per_atom = abs(np.linalg.det(lattice)) / len(frac_coords)
    if not 0.5 < volume_per_atom < 2000.0:
        return f"not a crystal that can be compared: {volume_per_atom:.3g} Å^3 per atom"
    return None if _is_compact(lattice) else _why_a_needle(lattice)


def _is_compact(lattice: np.ndarray) -> bool:
    """True when the cell as it is given says already that no search for lattice vectors is long."""
    # No lattice vector is shorter than the narrowest distance of lattice planes, and none of the reduced cell is
    # longer than the longest of this one.
    narrowest = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0).max()
    return bool(narrowest >= _SHORTEST and _num_points(lattice) <= _MOST_POINTS)


def _why_a_needle(lattice: np.ndarray) -> str | None:
    """Reason against the reduced cell, or None: a skew cell may stand for a plain one."""
    try:
        reduced = niggli_transformations(lattice[None])[0] @ lattice
    except ValueError:
        return "not a crystal that can be compared: its cell cannot be reduced"
    shortest = float(np.linalg.norm(reduced, axis=1).min())
    if shortest >= _SHORTEST and _num_points(reduced) <= _MOST_POINTS:
        return None
    longest = float(np.linalg.norm(reduced, axis=1).max())
    return f"not a crystal that can be compared: lattice vectors from {shortest:.3g} to {longest:.3g} Å"


def _num_points(lattice: np.ndarray) -> float:
    """Lattice points to be expected in a sphere whose radius is the longest vector of the cell."""
    radius = np.linalg.norm(lattice, axis=1).max()
    return float(4.0 / 3.0 * np.pi * radius**3 / abs(np.linalg.det(lattice)))
