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
    volume_per_atom = structure.volume / len(structure)
    return bool(
        np.isfinite(structure.lattice.matrix).all()
        and np.isfinite(structure.frac_coords).all()
        and 0.5 < volume_per_atom < 2000.0
    )
