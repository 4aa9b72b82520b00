"""Reduced crystals: the Niggli cell, then the primitive cell, made once for all comparisons.

pymatgen's matcher reduces both structures anew at each call, which takes longer than the comparison itself. What is
reduced here is bit for bit what it would use, so that it can be asked with `skip_structure_reduction=True`. Those of
a reference can be kept between runs in any store of plain values by hash.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from latentite.base.machine import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.elements import SYMBOLS
from latentite.match.settings import MatcherSettings, is_comparable, why_not_comparable

if TYPE_CHECKING:
    from pymatgen.core import Structure

_CHUNK = 32

Reduced = CrystalArrays | str
"""A reduced crystal, or why it has none."""


class Store(Protocol):
    """Keeps plain values by hash; `evaluation/store.py` has one on disk."""

    def get_many(self, hashes: Sequence[str]) -> dict[str, Any]:
        """Values of those hashes that have one."""

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Keep values."""


def reduction_settings() -> dict[str, Any]:
    """Settings that reduced crystals depend on, for the name under which a store keeps them."""
    return {"reduction": "niggli, primitive 0.25", "pymatgen-core": version("pymatgen-core")}


def structure_of(crystal: CrystalArrays) -> Structure:
    """The pymatgen structure of arrays, atoms in order."""
    from pymatgen.core import Lattice, Structure

    symbols = [SYMBOLS[number - 1] for number in crystal.atomic_numbers.tolist()]
    return Structure(Lattice(crystal.lattice), symbols, crystal.frac_coords)


def reduce_crystals(
    crystals: Sequence[CrystalArrays],
    *,
    hashes: Sequence[str] | None = None,
    store: Store | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Reduced]:
    """The reduced cell of each crystal, or the reason why there is none.

    Args:
        crystals: in any cell.
        hashes: of their content, when a store is given.
        store: where reduced crystals are kept; a value that is no crystal any more is computed anew.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more crystals are done.
    """
    results: dict[int, Reduced] = {}
    if store is not None and hashes is not None:
        kept = store.get_many(hashes)
        read = {place: _from_plain(kept.get(key)) for place, key in enumerate(hashes)}
        results = {place: value for place, value in read.items() if value is not None}
        advance(len(results))
    missing = [place for place in range(len(crystals)) if place not in results]
    chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]

    done = map_in_order(
        _reduce_chunk,
        [[crystals[place] for place in chunk] for chunk in chunks],
        workers=workers,
        advance=lambda chunk: advance(len(chunk)),
    )
    for chunk, reduced in zip(chunks, done, strict=True):
        results.update(zip(chunk, reduced, strict=True))
    if store is not None and hashes is not None:
        store.put_many({hashes[place]: _to_plain(results[place]) for place in missing})
    return [results[place] for place in range(len(crystals))]


def pair_rms(first: Structure, second: Structure, settings: MatcherSettings) -> float | None:
    """Normalised RMS distance of a matched pair, in units of (volume / atoms)^(1/3); None where unmatched.

    `StructureMatcher.get_rms_dist`, the first structure as its first argument. Structures of different reduced
    composition and those that are no crystals match nothing.
    """
    alike = first.composition.fractional_composition == second.composition.fractional_composition
    if not alike or not is_comparable(first) or not is_comparable(second):
        return None
    result = settings.build().get_rms_dist(first, second)
    return None if result is None else float(result[0])


def _reduce_chunk(crystals: Sequence[CrystalArrays]) -> list[Reduced]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_reduce(crystal) for crystal in crystals]


def _reduce(crystal: CrystalArrays) -> Reduced:
    if (reason := why_not_comparable(crystal.frac_coords, crystal.lattice)) is not None:
        return reason
    structure = structure_of(crystal)
    try:
        niggli = structure.get_reduced_structure(reduction_algo="niggli")
        reduced = niggli.get_primitive_structure()
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError) as error:
        return f"its cell cannot be reduced: {error or type(error).__name__}"
    numbers, coords = np.array(reduced.atomic_numbers), np.array(reduced.frac_coords)
    return CrystalArrays(numbers, coords, np.array(reduced.lattice.matrix))


def _to_plain(reduced: Reduced) -> Any:
    if isinstance(reduced, str):
        return reduced
    return [values.tolist() for values in (reduced.atomic_numbers, reduced.frac_coords, reduced.lattice)]


def _from_plain(value: Any) -> Reduced | None:
    if isinstance(value, str):
        return value
    try:
        numbers, coords, lattice = value
        crystal = CrystalArrays(
            np.array(numbers, dtype=np.int64), np.array(coords, float), np.array(lattice, float)
        )
    except (TypeError, ValueError):
        return None
    is_whole = crystal.frac_coords.shape == (len(numbers), 3) and crystal.lattice.shape == (3, 3)
    is_finite = np.isfinite(crystal.frac_coords).all() and np.isfinite(crystal.lattice).all()
    return crystal if is_whole and is_finite else None
