"""Records to packed arrays: a chunk is parsed, checked and canonicalised, and the crystals that survive are joined.

The work that `source_rows.py` sends along `walk`, to several processes if there are some; so this module does not
import torch, and worker processes start light.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_many
from latentite.data.readers.checks import Limits
from latentite.data.readers.records import Record
from latentite.data.readers.rows import parse_many


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """The result for one chunk: the accepted crystals atom by atom, and what became of every record."""

    atomic_numbers: np.ndarray
    """[atom] int64."""
    frac_coords: np.ndarray
    """[atom 3] float32."""
    lattice: np.ndarray
    """[crystal 3 3] float32, row vectors in Å."""
    num_atoms: np.ndarray
    """[crystal] int64."""
    outcomes: list[str | None]
    """Per record of the chunk: why it was rejected; None where it is among the crystals."""


def pack(records: list[Record], *, limits: Limits, canonical: bool) -> Packed:
    """Parse, check, canonicalise (if asked) and concatenate one chunk."""
    outcomes = parse_many(records, limits)
    if canonical:
        outcomes = _canonicalize(outcomes)
    crystals = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    if not crystals:
        empty = np.zeros((0, 3), dtype=np.float32)
        numbers, coords, lattice = np.zeros(0, dtype=np.int64), empty, np.zeros((0, 3, 3), dtype=np.float32)
    else:
        numbers = np.concatenate([crystal.atomic_numbers for crystal in crystals]).astype(np.int64)
        coords = np.concatenate([crystal.frac_coords for crystal in crystals]).astype(np.float32)
        lattice = np.stack([crystal.lattice for crystal in crystals]).astype(np.float32)
        coords[coords >= 1.0] -= 1.0  # 1 - 1e-9 is below one in float64 and one in float32
    return Packed(
        atomic_numbers=numbers,
        frac_coords=coords,
        lattice=lattice,
        num_atoms=np.array([crystal.num_atoms for crystal in crystals], dtype=np.int64),
        outcomes=[outcome if isinstance(outcome, str) else None for outcome in outcomes],
    )


def _canonicalize(outcomes: list[CrystalArrays | str]) -> list[CrystalArrays | str]:
    """Canonical forms in place of crystals; one that has none becomes a reason, alone."""
    positions = [position for position, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
    crystals = [cast("CrystalArrays", outcomes[position]) for position in positions]
    result = list(outcomes)
    try:
        for position, crystal in zip(positions, canonicalize_many(crystals), strict=True):
            result[position] = crystal
    except (ValueError, ArithmeticError, RuntimeError):
        for position, crystal in zip(positions, crystals, strict=True):
            try:
                [result[position]] = canonicalize_many([crystal])
            except (ValueError, ArithmeticError, RuntimeError) as error:
                result[position] = f"no canonical form: {error}"
    return result
