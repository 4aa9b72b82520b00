"""Any source to its records, and its fingerprint: a file, folder or archive, crystals in memory, with labels or not.

A folder with CIF or POSCAR files gives one record for each of them, and a rejection for everything else that might
hold crystals (tables beside them, formats that are not read, links that lead nowhere). A folder of tables gives their
rows. What cannot hold crystals (`is_no_source`) is left out and said in one line. A zip archive is read as a folder.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentite.base.files import sha256_file
from latentite.data.readers.files import (
    ALWAYS_ALLOWED,
    LARGEST_RATIO,
    STRUCTURES,
    Format,
    format_of,
    whole_file,
)
from latentite.data.readers.label_table import join, read_id_prop, read_labels
from latentite.data.readers.records import (
    Labelled,
    PayloadKind,
    Record,
    Rejection,
    Source,
    take_id,
    to_properties,
)
from latentite.data.readers.structure_files import id_of_file, record_of_atoms, record_of_file
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


log = logging.getLogger(__name__)

ID_PROP = "id_prop.csv"
"""CGCNN's table of labels in a folder of CIFs: id, value, ... without a header."""
LARGEST_ARCHIVE = 16 << 30
"""Bytes that the files of an archive may have together, unpacked."""
MOST_MEMBERS = 5_000_000
_NO_SOURCES = """
__macosx thumbs.db desktop.ini readme* licen[cs]e* copying* citation* changelog*
*.md *.txt *.rst *.pdf *.doc *.docx *.xls *.xlsx *.html *.htm *.tex *.bib *.log *.out *.err *.sh *.py *.ipynb
*.yaml *.yml *.toml *.ini *.cfg *.png *.jpg *.jpeg *.svg *.gif *.pt *.ckpt *.safetensors
incar* kpoints* potcar* outcar* oszicar* eigenval* doscar* ibzkpt* chg chgcar* wavecar* procar* pcdat* locpot*
elfcar* vasprun*.xml
"""
"""Names, in lower case, of what stands beside crystals and holds none: documents, pictures, programs, input and output
of VASP."""
_is_listed = re.compile("|".join(map(fnmatch.translate, _NO_SOURCES.split()))).match


def is_no_source(name: str) -> bool:
    """True for the name of a file or folder that is no source of crystals, so that it is left out.

    Hidden ones are left out whatever they are, and CGCNN's table of atoms; otherwise an ending that is read counts.
    """
    if name.startswith(".") or name.lower() == "atom_init.json":
        return True
    return format_of(name) is None and _is_listed(name.lower()) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    path: Path
    name: str
    """Relative to the folder."""
    format: Format | None
    problem: str | None
    """Reason for which it cannot be opened."""


def _entries(folder: Path) -> tuple[list[_Entry], list[str]]:
    """Whatever may hold crystals below a folder, in the order of their names, and the names of what is left out.

    Links to files are followed, links to folders are not: they may lead round in circles.
    """
    entries: list[_Entry] = []
    left_out: list[str] = []

    def add(path: Path, problem: str | None) -> None:
        name = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")
        if is_no_source(path.name):
            left_out.append(name)
        else:
            entries.append(_Entry(path=path, name=name, format=format_of(path.name), problem=problem))

    def unreadable(error: OSError) -> None:
        add(Path(error.filename), f"unreadable folder: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        for name in files:
            add(Path(parent, name), _problem(Path(parent, name)))
        for name in list(folders):
            path = Path(parent, name)
            if path.is_symlink():
                add(path, "a link to a folder, which is not followed; give its target as a source of its own")
            if path.is_symlink() or is_no_source(name):
                folders.remove(name)
                left_out.extend([name] if not path.is_symlink() else [])
    return sorted(entries, key=lambda entry: entry.path), sorted(left_out)


def _problem(path: Path) -> str | None:
    if path.is_symlink() and not path.exists():
        return f"a link that leads nowhere: {os.readlink(path)}"
    return None if path.is_file() else "neither a file nor a folder"


def members(folder: Path) -> list[tuple[str, Path]]:
    """Names and paths of everything that may hold crystals or labels below a folder: what a fingerprint covers."""
    return [(entry.name, entry.path) for entry in _entries(folder)[0]]


def read_folder(
    folder: Path, *, labels: Path | None = None, within: Path | None = None, title: str | None = None
) -> Iterator[Record | Rejection]:
    """All CIFs and POSCARs of a folder and its subfolders, in the order of their names; else its tables, one
    by one. The labels of an `id_prop.csv` are joined.

    Args:
        folder: where.
        labels: a table of labels that may lie in it, which the caller joins instead.
        within: a folder that paths in tables must not leave.
        title: what messages call the folder; None for its path.

    Raises:
        ValueError: when the folder holds neither.
    """
    title = str(folder) if title is None else title
    entries, left_out = _entries(folder)
    names = [entry.name for entry in entries]
    if left_out:
        log.info("%s: left out, as no crystals: %s", title, _summary(left_out))
    is_labelled = labels is None and (folder / ID_PROP).is_file()
    used = folder / ID_PROP if is_labelled else labels
    entries = [entry for entry in entries if used is None or not _is_same(entry.path, used)]
    if any(entry.format in STRUCTURES and not entry.problem for entry in entries):
        records = (_structure(entry, row) for row, entry in enumerate(entries))
    elif any(_is_table(entry) for entry in entries):
        # Every header is checked before the first row is given.
        opened = [
            open_table(entry.path, within=within) if _is_table(entry) else iter([_rejection(entry, row)])
            for row, entry in enumerate(entries)
        ]
        records = (record for part in opened for record in part)
    else:
        raise ValueError(
            f"{title} must hold CIF or POSCAR files, or tables such as CSV, got "
            f"{_summary(names + left_out) or 'an empty folder'}"
        )
    if not is_labelled:
        return records
    return join(records, replace(read_id_prop(folder / ID_PROP), source=f"{title}/{ID_PROP}"))


def _is_table(entry: _Entry) -> bool:
    return entry.format not in {None, Format.ZIP} | STRUCTURES and not entry.problem


def _is_same(path: Path, other: Path) -> bool:
    return path.name == other.name and path.exists() and path.samefile(other)


def _summary(names: Sequence[str]) -> str:
    kinds = Counter(Path(name).suffix or Path(name).name for name in names)
    texts = [f"{count} × {kind}" if count > 1 else kind for kind, count in kinds.most_common(8)]
    others = len(kinds) - len(texts)
    return ", ".join(texts) + (f" and {others} other kinds" if others else "")


def _structure(entry: _Entry, row: int) -> Record | Rejection:
    if entry.format in STRUCTURES and not entry.problem:
        return record_of_file(entry.path, entry.name, row)
    return _rejection(entry, row)


def _rejection(entry: _Entry, row: int) -> Rejection:
    if entry.problem:
        reason = entry.problem
    elif entry.format is Format.ZIP:
        reason = "an archive inside a folder: unpack it, or give it as a source of its own"
    elif entry.format:
        reason = (
            f"a table beside structure files: {entry.format}; give it as a source of its own, or with --labels if it "
            "holds their labels"
        )
    else:
        reason = "a format that is not read: give CIF, POSCAR, extxyz or one of the tables"
    return Rejection(source=entry.name, row=row, id=id_of_file(entry.name), reason=reason)


def read_zip(path: Path) -> Iterator[Record | Rejection]:
    """The contents of a zip archive, read as a folder.

    Raises:
        ValueError: when the archive is broken, unsafe or a bomb, or holds nothing that can be read.
    """
    folder = tempfile.TemporaryDirectory(prefix="latentite-zip-")
    place = Path(folder.name).resolve()
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(path, archive.infolist())
            archive.extractall(place)
        records = read_folder(place, within=place, title=str(path))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        folder.cleanup()
        raise ValueError(f"{path} must be a whole zip archive, got a broken one: {error}") from error
    except ValueError as error:
        folder.cleanup()
        raise ValueError(str(error).replace(str(place), str(path))) from error

    def rows() -> Iterator[Record | Rejection]:
        """The records of the unpacked folder, which lives as long as they are read."""
        with folder:
            try:
                for item in records:
                    yield replace(item, source=item.source.replace(str(place), str(path)))
            except ValueError as error:
                raise ValueError(str(error).replace(str(place), str(path))) from error

    return rows()


def _check_archive(path: Path, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would write elsewhere, link elsewhere, or fill the disk.

    zipfile never unpacks more of a file than its entry says, so that the sizes in the entries can be trusted.
    """
    for info in infos:
        parts = info.filename.replace("\\", "/").split("/")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.filename.startswith(("/", "\\")) or ".." in parts or parts[0].endswith(":"):
            raise ValueError(
                f"{path} must hold files below one folder, got the name {info.filename!r}; unpack it yourself"
            )
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(
                f"{path} must hold files and folders only, got a link or a device called {info.filename!r}; "
                "unpack it yourself"
            )
    names = Counter(info.filename for info in infos)
    if len(names) != len(infos):
        raise ValueError(f"{path} must hold each name once, got {names.most_common(1)[0][0]!r} several times")
    size, packed = sum(info.file_size for info in infos), path.stat().st_size
    if len(infos) > MOST_MEMBERS or size > min(LARGEST_ARCHIVE, ALWAYS_ALLOWED + LARGEST_RATIO * packed):
        raise ValueError(
            f"{path} must not unpack to more than {LARGEST_RATIO} times its size or {LARGEST_ARCHIVE >> 30} GiB, got "
            f"{len(infos):,} files of {size:,} bytes from {packed:,}; unpack it yourself if you trust it"
        )
