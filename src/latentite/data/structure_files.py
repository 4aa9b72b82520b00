"""Files and folders of structures to records: CIF and POSCAR folders, extxyz, ASE databases, zip archives.

Comes after `records.py`, which calls it.
"""

from __future__ import annotations

import gzip
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from latentite.data.records import Kind, Record, Rejection, open_records, to_properties
from latentite.files import impostor

_TABLES = (
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".extxyz",
    ".xyz",
    ".parquet",
    ".pq",
    ".h5",
    ".hdf5",
    ".db",
    ".aselmdb",
    ".traj",
)
_MANY = (*_TABLES, *(ending + ".gz" for ending in _TABLES[:6]))
_NO_LABELS = ("Lattice", "Properties", "pbc", "material_id", "id")
_POSCAR_STEMS = ("poscar", "contcar")


def is_structure_file(path: Path) -> bool:
    """Whether the name says CIF or POSCAR."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".cif", ".vasp", ".poscar", ".contcar")) or name.startswith(_POSCAR_STEMS)


def read_folder(folder: Path) -> Iterator[Record | Rejection]:
    """All CIFs and POSCARs of a folder and its subfolders, in the order of their names; else its tables, one
    by one.

    Raises:
        ValueError: when the folder holds neither.
    """
    members = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    structures = [path for path in members if is_structure_file(path)]
    if structures:
        return (
            record_of_file(path, path.relative_to(folder).as_posix(), row)
            for row, path in enumerate(structures)
        )
    tables = [path for path in members if path.name.lower().endswith(_MANY)]
    if not tables:
        found = sorted({path.suffix or path.name for path in members})
        raise ValueError(
            f"{folder} must hold CIF or POSCAR files, or tables such as CSV, got "
            f"{'files ending ' + ', '.join(found[:8]) if found else 'an empty folder'}"
        )
    opened = [open_records(path) for path in tables]  # every header is checked before the first row is given
    return (record for records in opened for record in records)


def record_of_file(path: Path, name: str, row: int) -> Record | Rejection:
    """The record of one CIF or POSCAR file; `name` is its source, its name without endings the id."""
    identifier = _identifier(name)

    def rejected(reason: str) -> Rejection:
        return Rejection(source=name, row=row, id=identifier, reason=reason)

    try:
        wrong = impostor(path)
        content = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        return rejected(f"unreadable file: {error}")
    if wrong or not content.strip():
        return rejected(wrong or "an empty file")
    if b"\0" in content:
        return rejected("a binary file, not text")
    is_cif = path.name.lower().removesuffix(".gz").endswith(".cif")
    text = content.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    return Record(source=name, row=row, id=identifier, kind=Kind.CIF if is_cif else Kind.POSCAR, payload=text)


def _identifier(name: str) -> str:
    # A file called POSCAR is known by its folder: "Fe2O3/POSCAR" has the id "Fe2O3".
    parent, _, last = name.rpartition("/")
    last = last.removesuffix(".gz")
    if last.lower() in _POSCAR_STEMS and parent:
        return parent
    for ending in (".cif", ".vasp", ".poscar", ".contcar"):
        if last.lower().endswith(ending):
            last = last[: -len(ending)]
    return f"{parent}/{last}" if parent else last


def read_extxyz(path: Path) -> Iterator[Record | Rejection]:
    """All frames of an extxyz file; a broken frame becomes a rejection and the next count line starts
    afresh."""
    source = str(path)
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as handle:
        row = 0
        line = handle.readline()
        while line:
            if not line.strip():
                line = handle.readline()
                continue
            if not line.strip().isdecimal():
                reason = f"a frame must begin with its number of atoms, got {line.strip()[:60]!r}"
                yield Rejection(source=source, row=row, id=str(row), reason=reason)
                while line and not line.strip().isdecimal():
                    line = handle.readline()
            else:
                count = int(line)
                body = []
                for _ in range(count + 1):
                    body.append(handle.readline())
                    if not body[-1]:
                        break
                yield _frame(source, row, count, body)
                line = handle.readline()
            row += 1


def _frame(source: str, row: int, count: int, body: list[str]) -> Record | Rejection:
    from ase.io.extxyz import key_val_str_to_dict

    if len(body) != count + 1 or not body[-1]:
        reason = f"truncated: the frame says {count} atoms and ends after {max(len(body) - 2, 0)}"
        return Rejection(source=source, row=row, id=str(row), reason=reason)
    try:
        labels = dict(key_val_str_to_dict(body[0]))
    except Exception as error:  # noqa: BLE001  ASE's reader raises nearly every builtin type on broken text
        reason = f"unreadable comment line: {error or type(error).__name__}"
        return Rejection(source=source, row=row, id=str(row), reason=reason)
    identifier = str(next((labels[key] for key in ("material_id", "id") if key in labels), row))
    properties = to_properties({name: value for name, value in labels.items() if name not in _NO_LABELS})
    text = "".join([f"{count}\n", *body])
    return Record(
        source=source, row=row, id=identifier, kind=Kind.EXTXYZ, payload=text, properties=properties
    )


def read_ase(path: Path) -> Iterator[Record | Rejection]:
    """All rows of an ASE database (sqlite, JSON, lmdb), or the frames of a trajectory.

    Raises:
        ValueError: when ASE cannot open the file.
    """
    from ase.db import connect
    from ase.io import iread

    source = str(path)
    try:
        if path.suffix == ".traj":
            frames = list(iread(str(path), index=":"))
            return (
                Record(source=source, row=row, id=str(row), kind=Kind.ATOMS, payload=atoms)
                for row, atoms in enumerate(frames)
            )
        database = connect(path)
        count = database.count()
    except Exception as error:  # sqlite, json and lmdb each raise their own
        raise ValueError(f"{path} must be an ASE database, got one that cannot be opened: {error}") from error

    def rows() -> Iterator[Record | Rejection]:
        """One record per row; a row that ASE cannot read becomes a rejection."""
        for row, entry in enumerate(database.select()):
            assert row < count, "an ASE database must not grow while it is read"
            labels = dict(entry.key_value_pairs)
            identifier = str(
                next((labels.pop(key) for key in ("material_id", "id") if key in labels), entry.id)
            )
            properties = to_properties(labels)
            try:
                atoms = entry.toatoms()
            except Exception as error:  # noqa: BLE001  whatever a damaged row makes ASE raise
                yield Rejection(source=source, row=row, id=identifier, reason=f"unreadable ASE row: {error}")
                continue
            yield Record(
                source=source, row=row, id=identifier, kind=Kind.ATOMS, payload=atoms, properties=properties
            )

    return rows()


def read_zip(path: Path) -> Iterator[Record | Rejection]:
    """The contents of a zip archive, read as a folder.

    Raises:
        ValueError: when the archive is broken, or holds nothing that can be read.
    """
    folder = tempfile.TemporaryDirectory(prefix="latentite-zip-")
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder.name)  # zipfile strips absolute paths and ".."
        records = read_folder(Path(folder.name))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        folder.cleanup()
        raise ValueError(f"{path} must be a whole zip archive, got a broken one: {error}") from error
    except ValueError as error:
        folder.cleanup()
        raise ValueError(str(error).replace(folder.name, str(path))) from error

    def rows() -> Iterator[Record | Rejection]:
        """The records of the unpacked folder, which lives as long as they are read."""
        with folder:
            for item in records:
                yield replace(item, source=item.source.replace(folder.name, str(path)))

    return rows()
