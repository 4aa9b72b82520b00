"""Tolerances of pymatgen's `StructureMatcher` by name, and reduced crystals, made once for all comparisons.

A crystal is reduced to its Niggli cell, then to the primitive cell; what has no such cell is no crystal that can be
compared. pymatgen's matcher reduces both structures anew at each call, which takes longer than the comparison itself.
What is reduced here is bit for bit what it would use, so that it can be asked with `skip_structure_reduction=True`.
Those of a reference can be kept between runs in any store of plain values by hash.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from latentite.base.machine import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.data.niggli import niggli_transformations
from latentite.elements import SYMBOLS

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
