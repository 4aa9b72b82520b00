"""Readers: any source of crystals to rows of arrays, or to rejections with a reason.

    for item in read("folder_or_table", limits=Limits(max_atoms=20)):
        if isinstance(item, Rejection): ...

Every row of a source comes out exactly once, as a `Row` or a `Rejection`; only a source that is unusable as
a whole raises. `read` is the one way in for single crystals, `source_rows.py` for data sets; both open a
source with `records.open_records`, parse it with `parse_many` and pair rows with outcomes in `walk.py`. Comes
after `records.py` (which cuts sources into records), `walk.py` and `checks.py`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.data.checks import Limits, refusals
from latentite.data.readers.cif import parse_p1
from latentite.data.readers.cif_crystal import read_crystal
from latentite.data.readers.poscar import parse_poscar
from latentite.data.readers.records import Kind, Record, Rejection, Source, Value, open_records, words_of
from latentite.data.readers.walk import pair, walk
from latentite.elements import ATOMIC_NUMBER

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

__all__ = ["Limits", "Rejection", "Row", "arrays_of", "parse_many", "parse_rows", "read"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One crystal that was read and is within the limits; cell, origin and order of atoms as in the
    source."""

    source: str
    row: int
    """Position within the source, from 0."""
    id: str
    atomic_numbers: np.ndarray
    """[atom] int64."""
    frac_coords: np.ndarray
    """[atom 3] float64, not wrapped."""
    lattice: np.ndarray
    """[3 3] float64, row vectors in Å."""
    properties: dict[str, Value] = field(default_factory=dict)


def read(source: Source, *, limits: Limits | None = None) -> Iterator[Row | Rejection]:
    """Every row of a source, in order: a file, a folder, or a list of pymatgen structures or ASE atoms.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when the source as a whole is unusable (unknown format, no structure column, ...).
    """
    return parse_rows(open_records(source), limits or Limits())


def parse_rows(records: Iterator[Record | Rejection], limits: Limits) -> Iterator[Row | Rejection]:
    """Each record as a row or a rejection, in order."""
    for chunk, outcomes in walk(records, partial(parse_many, limits=limits)):
        for item in pair(chunk, outcomes):
            if isinstance(item, Rejection):
                yield item
                continue
            record, crystal = item
            yield Row(
                source=record.source,
                row=record.row,
                id=record.id,
                atomic_numbers=crystal.atomic_numbers,
                frac_coords=crystal.frac_coords,
                lattice=crystal.lattice,
                properties=record.properties,
            )


def parse_many(records: Sequence[Record], limits: Limits) -> list[CrystalArrays | str]:
    """For each record its arrays, or the reason why it is rejected."""
    outcomes: list[CrystalArrays | str] = []
    for record in records:
        try:
            outcomes.append(arrays_of(record))
        except ValueError as error:
            outcomes.append(str(error))
    readable = [position for position, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
    reasons = refusals([cast("CrystalArrays", outcomes[position]) for position in readable], limits)
    for position, reason in zip(readable, reasons, strict=True):
        if reason is not None:
            outcomes[position] = reason
    return outcomes


def arrays_of(record: Record) -> CrystalArrays:
    """Arrays of one record, unchecked.

    Raises:
        ValueError: with the reason, when the payload cannot be read or is no ordered crystal.
    """
    if record.kind is Kind.CIF:
        text = cast("str", record.payload)
        return parse_p1(text) or read_crystal(text)
    if record.kind is Kind.ARRAYS:
        return cast("CrystalArrays", record.payload)
    if record.kind is Kind.STRUCTURE:
        return _from_structure(cast("Structure", record.payload))
    if record.kind is Kind.STRUCTURE_DICT:
        return _from_structure(_structure_from_dict(cast("dict[str, Any]", record.payload)))
    if record.kind is Kind.POSCAR:
        return parse_poscar(cast("str", record.payload))
    if record.kind is Kind.EXTXYZ:
        return _from_atoms(_atoms_from_extxyz(cast("str", record.payload)))
    return _from_atoms(cast("Atoms", record.payload))


def _structure_from_dict(content: dict[str, Any]) -> Structure:
    from pymatgen.core import Structure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Structure.from_dict(content)
        except Exception as error:  # from_dict raises nearly every builtin type on broken input
            raise ValueError(f"unreadable structure: {words_of(error)}") from error


def _atoms_from_extxyz(text: str) -> Atoms:
    from ase.io import read as ase_read

    try:
        return cast("Atoms", ase_read(io.StringIO(text), format="extxyz"))
    except KeyError as error:
        raise ValueError(f"unreadable extxyz frame: {error.args[0]!r} is no element") from error
    except Exception as error:  # ASE raises nearly every builtin type
        raise ValueError(f"unreadable extxyz frame: {words_of(error)}") from error


def _from_structure(structure: Structure) -> CrystalArrays:
    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        raise ValueError(f"partial occupancy: {site.species_string} on one site")
    elements = [getattr(specie, "element", specie) for specie in structure.species]
    isotopes = {"D", "T"} & {getattr(element, "name", "") for element in elements}  # their symbol is "H"
    if isotopes:
        raise ValueError(f"isotope {min(isotopes)}: the element classes know no isotopes; write it as H")
    dummies = [str(element) for element in elements if getattr(element, "symbol", "") not in ATOMIC_NUMBER]
    if dummies:  # pymatgen gives what is no element a number that differs from run to run
        raise ValueError(f"{dummies[0]!r} is no element; give each site an element symbol")
    numbers = [element.Z for element in elements]
    lattice = np.array(structure.lattice.matrix, dtype=np.float64)
    coords = np.array(structure.frac_coords, dtype=np.float64)
    return CrystalArrays(np.array(numbers, dtype=np.int64), coords, lattice)


def _from_atoms(atoms: Atoms) -> CrystalArrays:
    _check_occupancy(atoms.info.get("occupancy"))
    if not atoms.numbers.all():
        raise ValueError("'X', a placeholder of ASE, is no element")
    lattice = np.array(atoms.cell, dtype=np.float64)
    if not atoms.pbc.all():
        raise ValueError(f"not periodic in all three directions (pbc = {atoms.pbc.tolist()})")
    if not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-6:
        raise ValueError("absurd cell: its volume is zero or not a number")
    coords = np.linalg.solve(lattice.T, np.asarray(atoms.positions, dtype=np.float64).T).T
    return CrystalArrays(np.array(atoms.numbers, dtype=np.int64), coords, lattice)


def _check_occupancy(occupancy: object) -> None:
    """ASE's table of sites with several elements on them, which `Atoms` itself cannot say."""
    if occupancy is None:
        return
    sites = list(occupancy.values()) if isinstance(occupancy, Mapping) else [occupancy]
    for site in sites:
        is_full = isinstance(site, Mapping) and len(site) == 1 and next(iter(site.values())) in (1, 1.0)
        if not is_full:
            raise ValueError(f"partial occupancy: {site} on one site")
