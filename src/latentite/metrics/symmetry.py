"""Space groups at several tolerances: a crystal that is symmetric only at 0.1 Å is not symmetric yet.

By moyopy (`data/properties.py`), ten times as fast as spglib; but in collapsed and in very long cells, as generators
make them, its search may never come to an end (33 of 794 cells of random shape). Spglib's always did, so it does
those: Togo et al. 2024, Sci. Technol. Adv. Mater. Methods 4, 2384822. Comes after `geometry.py` and `processes.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from latentite.data.cif import Arrays
from latentite.data.properties import space_group_number
from latentite.metrics.geometry import min_distances, volumes
from latentite.processes import map_in_order

SYMPRECS = (0.01, 0.1, 0.2)
"""Å: the libraries' usual default, the Materials Project's value, and a generous one for raw samples."""

_CHUNK = 256
_SHORTEST, _NEAREST, _LONGEST = 12.0, 3.0, 15.0
"""A crystal is moyopy's when its shortest lattice vector is at least 12 tolerances, its closest atoms are 3 tolerances
apart, and its volume is at most 15 times the cube of that vector. MP-20's shortest vector is 2.4 Å."""


def space_groups(
    crystals: Sequence[Arrays],
    *,
    symprecs: Sequence[float] = SYMPRECS,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Float[np.ndarray, "crystal symprec"]:
    """Space group number of each crystal at each tolerance (Å); NaN where the search fails.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
        symprecs: tolerances, Å.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more crystals are done.
    """
    chunks = [crystals[start : start + _CHUNK] for start in range(0, len(crystals), _CHUNK)]
    done = map_in_order(
        partial(_space_groups, symprecs=tuple(symprecs)),
        chunks,
        workers=workers,
        advance=lambda chunk: advance(len(chunk)),
    )
    return np.concatenate(done) if done else np.zeros((0, len(symprecs)))


def _space_groups(chunk: Sequence[Arrays], *, symprecs: tuple[float, ...]) -> np.ndarray:
    between, own = min_distances(chunk)
    is_long = ~(volumes(chunk) <= _LONGEST * own**3)  # also where it is not known
    found = np.full((len(chunk), len(symprecs)), np.nan)
    for column, symprec in enumerate(symprecs):
        is_wild = is_long | (own < _SHORTEST * symprec) | (between < _NEAREST * symprec)
        for position, crystal in enumerate(chunk):
            search = _by_spglib if is_wild[position] else space_group_number
            number = search(*crystal, symprec=symprec)
            if number is not None:
                found[position, column] = number
    return found


def _by_spglib(
    atomic_numbers: np.ndarray, frac_coords: np.ndarray, lattice: np.ndarray, *, symprec: float
) -> int | None:
    import spglib

    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # else its C code writes to the terminal
    cell = (lattice.tolist(), frac_coords.tolist(), atomic_numbers.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's coming change from None to an exception
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return None
    return None if dataset is None else int(dataset.number)
