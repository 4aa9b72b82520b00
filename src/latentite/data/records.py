"""Sources to records: where each crystal of a file or folder stands, not yet parsed.

Opening is cheap and sequential, parsing is dear and parallel: so this module cuts a source into `Record`s
(text or objects with their id and properties), and `table.parse` makes arrays of them, in other processes if
wanted.

Comes after `checks.py`; `tables.py` (CSV, Parquet, JSON) and `files.py` (folders, extxyz, ASE, zip) fill the
records; `table.py` reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentite.files import impostor, sha256_file

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

Value = float | str | None
"""A property as it stood in its source: a number, a text, or None where there is nothing."""
Source = "str | Path | Sequence[Structure | Atoms]"


class Kind(StrEnum):
    """What the payload of a record is."""

    CIF = "cif"
    POSCAR = "poscar"
    EXTXYZ = "extxyz"
    STRUCTURE_DICT = "structure_dict"
    STRUCTURE = "structure"
    ATOMS = "atoms"
    ARRAYS = "arrays"
    """Atomic numbers, fractional coordinates and lattice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One crystal as it stands in its source."""

    source: str
    row: int
    """Position within the source, from 0."""
    id: str
    kind: Kind
    payload: object
    """Text for CIF, POSCAR and EXTXYZ; otherwise the object that the kind names."""
    properties: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """One row or file that did not become a crystal."""

    source: str
    row: int
    """Position within the source, from 0."""
    id: str
    reason: str


CANONICAL_NAMES = {"e_above_hull": "energy_above_hull", "spacegroup.number": "space_group"}
"""Columns that published tables name differently, and our name for them."""
_ID_COLUMNS = ("material_id", "id")
_STRUCTURE_COLUMNS = ("cif", "structure")


def to_value(cell: object) -> Value:
    """A table's cell as it stood: text as text, whatever is a number as one, None where there is nothing.

    What a text means is decided by `kinds.py` when its whole column is known; nothing is evaluated as code.
    """
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, (list, tuple, dict, bytes)):
        return str(cell)
    try:
        number = float(cell)  # type: ignore[arg-type]  # numpy and Decimal scalars, bool
    except (TypeError, ValueError, OverflowError):
        return str(cell)
    return None if number != number else number


def to_properties(labels: Mapping[str, Any]) -> dict[str, Value]:
    """The labels of one crystal under our names; arrays among them (stresses, forces) are no labels."""
    return {
        CANONICAL_NAMES.get(name) or name: to_value(value)
        for name, value in labels.items()
        if getattr(value, "ndim", 0) == 0
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which column of a table is the structure, which the id, and under which names the others are kept."""

    structure: str
    id: str | None
    properties: dict[str, str]
    """Our name for each property column, by the name in the table."""

    @staticmethod
    def find(names: Sequence[str], source: str) -> Columns:
        """Choose the columns.

        Raises:
            ValueError: when no column can hold structures, naming the columns found, or two have the same
                name.
        """
        repeated = sorted({name for name in names if name.strip() and list(names).count(name) > 1})
        if repeated:
            raise ValueError(
                f"{source} must name each column once, got {', '.join(map(repr, repeated))} twice"
            )
        lowered = {name.strip().lower(): name for name in reversed(names)}
        structure = next((lowered[key] for key in _STRUCTURE_COLUMNS if key in lowered), None)
        if structure is None:
            raise ValueError(
                f"{source} must have a column named 'cif' or 'structure', got the columns "
                f"{', '.join(map(repr, names))}; rename the column that holds the structures"
            )
        id_column = next((lowered[key] for key in _ID_COLUMNS if key in lowered), None)
        used = {structure, id_column}
        properties: dict[str, str] = {}
        for name in names:
            ours = CANONICAL_NAMES.get(name, name)
            is_index = not name.strip() or name.startswith("Unnamed:")
            if name in used or is_index or (ours != name and ours in names):
                continue
            properties[name] = ours
        return Columns(structure=structure, id=id_column, properties=properties)


def record_from_cells(
    source: str, row: int, cells: Mapping[str, object], columns: Columns
) -> Record | Rejection:
    """The record of one row of a table: CIF text, a JSON text or a dict of a pymatgen structure."""
    identifier = str(row) if columns.id is None else str(cells.get(columns.id) or row)
    payload = cells.get(columns.structure)
    if isinstance(payload, str) and payload.lstrip().startswith("{"):
        import json

        try:
            payload = json.loads(payload)
        except ValueError as error:
            return Rejection(
                source=source, row=row, id=identifier, reason=f"unreadable JSON structure: {error}"
            )
    if isinstance(payload, Mapping):
        kind = Kind.STRUCTURE_DICT
    elif isinstance(payload, str) and payload.strip():
        kind = Kind.CIF
    else:
        reason = f"no structure: the column {columns.structure!r} is empty"
        return Rejection(source=source, row=row, id=identifier, reason=reason)
    properties = {ours: to_value(cells.get(name)) for name, ours in columns.properties.items()}
    return Record(source=source, row=row, id=identifier, kind=kind, payload=payload, properties=properties)


def open_records(source: str | Path | Sequence[Structure | Atoms]) -> Iterator[Record | Rejection]:
    """Every row of a source in order, unparsed; problems of the whole source are raised at once, not at the
    end.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when the source as a whole is unusable (unknown format, no structure column, a pointer
            file, ...).
    """
    from latentite.data import hdf5, structure_files, tables

    if not isinstance(source, (str, Path)):
        return _objects(source)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"data source must exist, got {path}; check the path or give an absolute one")
    if path.is_dir():
        return structure_files.read_folder(path)
    wrong = impostor(path)
    name = path.name.lower()
    is_one_structure = name.endswith((".cif", ".vasp", ".poscar")) or name.startswith(("poscar", "contcar"))
    if wrong and not is_one_structure:
        raise ValueError(f"{path} is {wrong}")
    if name.endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz")):
        return tables.read_csv(path)
    if name.endswith((".parquet", ".pq")):
        return tables.read_parquet(path)
    if name.endswith((".h5", ".hdf5")):
        return hdf5.read_hdf5(path)
    if name.endswith((".json", ".json.gz", ".jsonl", ".jsonl.gz")):
        return tables.read_json(path)
    if is_one_structure:
        return iter([structure_files.record_of_file(path, path.name, 0)])
    if name.endswith((".extxyz", ".xyz", ".extxyz.gz", ".xyz.gz")):
        return structure_files.read_extxyz(path)
    if name.endswith((".db", ".aselmdb", ".traj")):
        return structure_files.read_ase(path)
    if name.endswith(".zip"):
        return structure_files.read_zip(path)
    raise ValueError(
        f"{path} must be CSV, Parquet, JSON, HDF5, extxyz, an ASE database, CIF, POSCAR, zip or a folder of these, "
        f"got the ending {path.suffix!r}"
    )


def _objects(objects: Sequence[Structure | Atoms]) -> Iterator[Record | Rejection]:
    from ase import Atoms
    from pymatgen.core import Structure

    for row, item in enumerate(objects):
        if isinstance(item, Structure):
            kind, labels = Kind.STRUCTURE, dict(item.properties or {})
        elif isinstance(item, Atoms):
            kind, labels = Kind.ATOMS, dict(item.info)
        else:
            raise ValueError(
                f"a list of crystals must hold Structure or Atoms, got {type(item).__name__} at {row}"
            )
        identifier = str(next((labels.pop(key) for key in _ID_COLUMNS if key in labels), row))
        properties = to_properties(labels)
        yield Record(source="list", row=row, id=identifier, kind=kind, payload=item, properties=properties)


def fingerprint(source: str | Path | Sequence[Structure | Atoms]) -> str:
    """sha256 of the content of a source: a file's bytes, a folder's names and bytes, or the objects of a
    list."""
    digest = hashlib.sha256()
    if not isinstance(source, (str, Path)):
        for record in _objects(source):
            assert isinstance(record, Record)
            digest.update(repr((record.id, record.properties)).encode())
            digest.update(_object_bytes(record))
        return digest.hexdigest()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"data source must exist, got {path}; check the path or give an absolute one")
    members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for member in members:
        name = str(member.relative_to(path)) if path.is_dir() else path.name
        digest.update(f"{name}\0{sha256_file(member)}\n".encode())
    return digest.hexdigest()


def _object_bytes(record: Record) -> bytes:
    item: Any = record.payload  # the kind says what it is
    if record.kind is Kind.STRUCTURE:
        species = repr([str(site.species) for site in item])
        return species.encode() + item.frac_coords.tobytes() + item.lattice.matrix.tobytes()
    arrays = (item.numbers, item.positions, item.cell.array, item.pbc)
    return b"".join(array.tobytes() for array in arrays)
