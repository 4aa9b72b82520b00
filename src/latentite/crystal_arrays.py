"""`CrystalArrays`: one crystal as three numpy arrays, what readers, worker processes and writers hand on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True, eq=False)
class CrystalArrays:
    """One crystal without torch; `CrystalBatch` packs many. Arrays have no one equality, so it has none either.

    The fields may be given by position: their order is the same everywhere in the package.
    """

    atomic_numbers: Int[np.ndarray, " atom"]
    frac_coords: Float[np.ndarray, "atom 3"]
    lattice: Float[np.ndarray, "3 3"]
    """Row vectors, Å."""

    @property
    def num_atoms(self) -> int:
        """Atoms in the cell."""
        return len(self.atomic_numbers)
