"""Space groups at several tolerances: a crystal that is symmetric only at 0.1 Å is not symmetric yet.

The search is that of `data/properties.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from latentite.base.processes import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import space_group_number

SYMPRECS = (0.01, 0.1, 0.2)
"""Å: the libraries' usual default, the Materials Project's value, and a generous one for raw samples."""

_CHUNK = 256


def space_groups(
    crystals: Sequence[CrystalArrays],
    *,
    symprecs: Sequence[float] = SYMPRECS,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    keep: Callable[[int, np.ndarray], None] = lambda first, found: None,
) -> Float[np.ndarray, "crystal symprec"]:
    """Space group number of each crystal at each tolerance (Å); NaN where the search fails.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
        symprecs: tolerances, Å.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more crystals are done.
        keep: given the position of a first crystal and the space groups from there on, as soon as they are
            known.
    """
    chunks = [(start, crystals[start : start + _CHUNK]) for start in range(0, len(crystals), _CHUNK)]
    done = map_in_order(
        partial(_space_groups, symprecs=tuple(symprecs)),
        chunks,
        workers=workers,
        advance=lambda chunk: advance(len(chunk[1])),
        keep=lambda chunk, found: keep(chunk[0], found),
    )
    return np.concatenate(done) if done else np.zeros((0, len(symprecs)))


def _space_groups(chunk: tuple[int, Sequence[CrystalArrays]], *, symprecs: tuple[float, ...]) -> np.ndarray:
    found = [
        [
            space_group_number(crystal.atomic_numbers, crystal.frac_coords, crystal.lattice, symprec=symprec)
            for symprec in symprecs
        ]
        for crystal in chunk[1]
    ]
    return np.array(found, dtype=float)  # None becomes NaN
