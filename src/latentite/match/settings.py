"""Tolerances of pymatgen's `StructureMatcher` by name, and what can be compared at all.

Comes before `search.py` (many structures against many) and `metrics/reconstruction.py` (pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher


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
        """Whether no tolerance is wider than the other's."""
        return self.ltol <= other.ltol and self.stol <= other.stol and self.angle_tol <= other.angle_tol


LOOSE = MatcherSettings(name="loose", ltol=0.3, stol=0.5, angle_tol=10.0)
"""0.3/0.5/10, as the CDVAE family uses."""
STRICT = MatcherSettings(name="strict", ltol=0.2, stol=0.3, angle_tol=5.0)
"""0.2/0.3/5, pymatgen's defaults, as Chemeleon2 uses."""


def is_comparable(structure: Structure) -> bool:
    """Whether a decoded structure is a crystal at all, so that reduction of its cell can end."""
    return why_not_comparable(structure.frac_coords, structure.lattice.matrix) is None


def why_not_comparable(frac_coords: np.ndarray, lattice: np.ndarray) -> str | None:
    """What speaks against the comparison of a crystal, or None.

    Args:
        frac_coords: [atom 3].
        lattice: [3 3], row vectors in Å.
    """
    if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all()):
        return "not a crystal that can be compared: its cell or coordinates are not finite"
    volume_per_atom = abs(np.linalg.det(lattice)) / len(frac_coords)
    if 0.5 < volume_per_atom < 2000.0:
        return None
    return f"not a crystal that can be compared: {volume_per_atom:.3g} Å^3 per atom"
