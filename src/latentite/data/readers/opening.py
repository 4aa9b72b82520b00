"""Any source to its records, and its fingerprint: a file, a folder, crystals in memory, with labels or without."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentite.base.files import sha256_file
from latentite.data.readers.ase_files import record_of_atoms
from latentite.data.readers.files import STRUCTURES, Format, format_of, whole_file
from latentite.data.readers.folders import members, read_folder, read_zip
from latentite.data.readers.label_table import join, read_labels
from latentite.data.readers.records import (
    Labelled,
    PayloadKind,
    Record,
    Rejection,
    Source,
    take_id,
    to_properties,
)
from latentite.data.readers.structure_files import record_of_file
from latentite.data.readers.tables import guarded, linked_files, open_table

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


def open_records(source: Source) -> Iterator[Record | Rejection]:
    """Every row of a source in order, unparsed; problems of the whole source are raised at once, not at the end.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when the source as a whole is unusable (unknown format, no structure column, a pointer
            file, ...).
    """
    if isinstance(source, Labelled):
        return _labelled(source)
    if not isinstance(source, (str, Path)):
        return _objects(source)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"data source must exist, got {path}; check the path or give an absolute one")
    if path.is_dir():
        return guarded(path, lambda: read_folder(path))
    if format_of(path.name) in STRUCTURES:
        return guarded(path, lambda: iter([record_of_file(path, path.name, 0)]))
    if format_of(path.name) is Format.ZIP:
        return guarded(path, lambda: read_zip(whole_file(path)))
    return open_table(path)


def _labelled(source: Labelled) -> Iterator[Record | Rejection]:
    """The records of a source with the labels of its table.

    Raises:
        FileNotFoundError: when source or table does not exist.
        ValueError: when one of them cannot be used.
    """
    table = read_labels(source.labels, source.id_column)
    inner = source.source
    if isinstance(inner, (str, Path)) and Path(inner).is_dir():
        return join(read_folder(Path(inner), labels=source.labels), table)
    return join(open_records(inner), table)


def _objects(objects: Sequence[Structure | Atoms]) -> Iterator[Record | Rejection]:
    from ase import Atoms
    from pymatgen.core import Structure

    for row, item in enumerate(objects):
        if isinstance(item, Atoms):
            yield record_of_atoms("list", row, item)
            continue
        if not isinstance(item, Structure):
            raise ValueError(
                f"a list of crystals must hold Structure or Atoms, got {type(item).__name__} at {row}"
            )
        labels = dict(item.properties or {})
        identifier = take_id(labels, row)
        try:
            properties = to_properties(labels)
        except ValueError as error:
            yield Rejection(source="list", row=row, id=identifier, reason=str(error))
            continue
        yield Record(
            source="list",
            row=row,
            id=identifier,
            kind=PayloadKind.STRUCTURE,
            payload=item,
            properties=properties,
        )


def fingerprint(source: Source) -> str:
    """sha256 of the content of a source: a file's bytes, a folder's names and bytes, or the objects of a
    list; a table that names files, and one with labels, likewise."""
    digest = hashlib.sha256()
    if isinstance(source, Labelled):
        parts = (fingerprint(source.source), sha256_file(source.labels), source.id_column)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    if not isinstance(source, (str, Path)):
        for item in _objects(source):
            digest.update(repr((item.id, getattr(item, "properties", item))).encode())
            digest.update(_object_bytes(item) if isinstance(item, Record) else b"")
        return digest.hexdigest()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"data source must exist, got {path}; check the path or give an absolute one")
    for name, member in members(path) if path.is_dir() else [(path.name, path)]:
        files = [member, *(linked_files(member) if format_of(name) is Format.CSV else ())]
        digest.update(f"{name}\0{' '.join(map(_file_digest, files))}\n".encode(errors="replace"))
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    try:
        return sha256_file(path) if path.is_file() else "no file"
    except OSError as error:
        return str(error)


def _object_bytes(record: Record) -> bytes:
    item: Any = record.payload  # the kind says what it is
    if record.kind is PayloadKind.STRUCTURE:
        species = repr([str(site.species) for site in item])
        return species.encode() + item.frac_coords.tobytes() + item.lattice.matrix.tobytes()
    arrays = (item.numbers, item.positions, item.cell.array, item.pbc)
    return b"".join(array.tobytes() for array in arrays)
