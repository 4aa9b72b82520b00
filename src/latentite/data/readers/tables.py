"""Files of many crystals to records; here CSV, Parquet and JSON (also one object per line), which may be compressed.

The column `cif` holds CIF texts, or, in a CSV, the paths of files. Nothing in a table is ever evaluated as code.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from latentite.base.files import parse_json
from latentite.data.readers import hdf5
from latentite.data.readers.files import STRUCTURES, Format, format_of, read_lines, read_text, whole_file
from latentite.data.readers.records import Columns, Record, Rejection, has_structures, record_from_cells
from latentite.data.readers.structure_files import (
    read_database,
    read_extxyz,
    read_json_database,
    read_trajectory,
    record_of_file,
)

log = logging.getLogger(__name__)

_LONGEST_FIELD = 2**28  # a CIF of some thousand atoms is longer than the csv module's default of 128 KiB
_LONGEST_PATH = 4096
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_EXCEL_SAYS = re.compile(r"\s*\"?sep=(.)\"?\s*").fullmatch


def open_table(path: Path, *, within: Path | None = None) -> Iterator[Record | Rejection]:
    """The rows of a file of many crystals, whatever its format.

    Args:
        path: the file.
        within: a folder that paths in a table must not leave; None: they may lead anywhere.

    Raises:
        ValueError: when it is no such file, or is unusable as a whole.
    """
    return guarded(path, lambda: _open(whole_file(path), within))


def _open(path: Path, within: Path | None) -> Iterator[Record | Rejection]:
    kind = format_of(path.name)
    if kind is Format.CSV:
        return read_csv(path, within=within)
    readers = {
        Format.PARQUET: read_parquet,
        Format.JSON: read_json,
        Format.HDF5: hdf5.read_hdf5,
        Format.EXTXYZ: read_extxyz,
        Format.DATABASE: read_database,
        Format.TRAJECTORY: read_trajectory,
    }
    if kind not in readers:
        raise ValueError(
            f"{path} must be CSV, Parquet, JSON, HDF5, extxyz, an ASE database or trajectory, CIF, POSCAR, zip or a "
            f"folder of these, got the ending {path.suffix!r}"
        )
    return readers[kind](path)


def guarded(path: Path, start: Callable[[], Iterator[Record | Rejection]]) -> Iterator[Record | Rejection]:
    """The records that a reader gives, with a sentence for a disk or a file that fails, at the start or later."""
    try:
        records = start()
    except OSError as error:
        raise ValueError(f"{path} must be a file that can be read, got {error}") from error
    return _to_the_end(path, records)


def _to_the_end(path: Path, records: Iterator[Record | Rejection]) -> Iterator[Record | Rejection]:
    try:
        yield from records
    except OSError as error:
        raise ValueError(f"{path} must be a file that can be read to its end, got {error}") from error


def open_csv(path: Path, *, is_header: Callable[[Sequence[str]], bool]) -> Iterator[list[str]]:
    """Rows of a CSV as lists of texts, the first one included; blank lines are left out.

    Its delimiter is the one of its ending, unless only another one makes a header of the first line (or, where none
    does, more columns): then that is said, and taken.

    Args:
        path: the file.
        is_header: whether a first row is as it should be.

    Raises:
        ValueError: while reading, for a broken file or line.
        OSError: when the file cannot be opened.
    """
    csv.field_size_limit(max(_LONGEST_FIELD, csv.field_size_limit()))
    lines = read_lines(path)
    first = next(lines, "")
    if said := _EXCEL_SAYS(first):
        delimiter, first = said[1], next(lines, "")
    else:
        delimiter = _delimiter(path, first, is_header)
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)

    def rows() -> Iterator[list[str]]:
        try:
            for fields in reader:
                if fields:
                    yield fields
        except csv.Error as error:
            raise ValueError(
                f"{path} must be CSV, got a broken row that ends in line {reader.line_num}: {error}"
            ) from error

    return rows()


def _delimiter(path: Path, line: str, is_header: Callable[[Sequence[str]], bool]) -> str:
    usual = "\t" if ".tsv" in path.name.lower() else ","
    fields = {
        delimiter: next(csv.reader([line], delimiter=delimiter), [])
        for delimiter in sorted(_DELIMITERS, key=lambda delimiter: delimiter != usual)
    }
    fitting = [delimiter for delimiter in fields if is_header(fields[delimiter])]
    # max takes the first of equals, which is the usual one.
    best = fitting[0] if fitting else max(fields, key=lambda delimiter: len(fields[delimiter]))
    if best != usual:
        log.warning("%s is separated by %s, not by %s: read so", path, _DELIMITERS[best], _DELIMITERS[usual])
    return best


def read_csv(path: Path, *, within: Path | None = None) -> Iterator[Record | Rejection]:
    """Rows of a CSV (or TSV) with a header; the header is checked before the first row is asked for.

    Args:
        path: the file.
        within: a folder that the paths in it must not leave; None: they may lead anywhere.

    Raises:
        ValueError: without a structure column, or for a broken file.
    """
    table = open_csv(path, is_header=has_structures)
    header = next(table, None)
    if not header or not any(name.strip() for name in header):
        raise ValueError(f"{path} is an empty file")
    columns = Columns.find(header, str(path))
    return _csv_rows(path, table, header, columns, within)


def _csv_rows(
    path: Path, table: Iterator[list[str]], header: list[str], columns: Columns, within: Path | None
) -> Iterator[Record | Rejection]:
    source = str(path)
    holds_paths: bool | None = None
    for row, fields in enumerate(table):
        if len(fields) != len(header):
            reason = f"row has {len(fields)} fields where the header has {len(header)}"
            yield Rejection(source=source, row=row, id=str(row), reason=reason)
            continue
        cells = dict(zip(header, fields, strict=True))
        item = record_from_cells(source, row, cells, columns)
        if isinstance(item, Record):
            is_path = _is_path(cells[columns.structure])
            if holds_paths is None:
                holds_paths = is_path
            if holds_paths:
                item = _linked_record(path, item, has_id=columns.id is not None, within=within)
            elif is_path:
                reason = (
                    f"the path of a file ({cells[columns.structure]}) in a column that begins with CIF texts"
                )
                item = Rejection(source=source, row=row, id=item.id, reason=reason)
        yield item


def _is_path(cell: str) -> bool:
    return "\n" not in cell and len(cell) < _LONGEST_PATH and format_of(cell.strip()) in STRUCTURES


def _linked_record(path: Path, item: Record, *, has_id: bool, within: Path | None) -> Record | Rejection:
    """The record of the file that a row names, under the row's id and labels; without ids, the file's name is one."""
    cell = str(item.payload).strip()
    file = path.parent / cell
    if within is not None and not file.resolve().is_relative_to(within.resolve()):
        reason = f"a path that leads out of the archive: {cell}"
        return Rejection(source=item.source, row=item.row, id=item.id, reason=reason)
    linked = record_of_file(file, cell, item.row)
    linked = replace(linked, source=item.source, id=item.id if has_id else linked.id)
    if isinstance(linked, Rejection):
        return replace(linked, reason=f"{linked.reason} ({cell})")
    return replace(linked, properties=item.properties)


def linked_files(path: Path) -> list[Path]:
    """The files that the rows of a CSV name, where its structure column holds paths; none for any other file."""
    try:
        table = open_csv(path, is_header=has_structures)
        header = next(table, [])
        if not has_structures(header):
            return []
        column = header.index(Columns.find(header, str(path)).structure)
        links: list[Path] = []
        for fields in table:
            cell = fields[column].strip() if column < len(fields) else ""
            if cell and not links and not _is_path(cell):
                return []
            links += [path.parent / cell] if cell else []
    except (OSError, ValueError):
        return []  # whoever reads it says what is wrong with it
    return links


def read_parquet(path: Path) -> Iterator[Record | Rejection]:
    """Rows of a Parquet file.

    Raises:
        ValueError: when pyarrow cannot open it, or it has no structure column.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} must be a Parquet file, got one that cannot be opened: {error}") from error
    columns = Columns.find(table.schema_arrow.names, str(path))

    def rows() -> Iterator[Record | Rejection]:
        wanted = [columns.structure, *columns.properties] + ([columns.id] if columns.id else [])
        row = 0
        try:
            with table:
                for batch in table.iter_batches(batch_size=4096, columns=wanted):
                    for cells in batch.to_pylist():
                        yield record_from_cells(str(path), row, cells, columns)
                        row += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} must be a whole Parquet file, got a broken one: {error}") from error

    return rows()


def read_json(path: Path) -> Iterator[Record | Rejection]:
    """Structures of a JSON file: a list, an object by id, one structure, or one object per line (`.jsonl`).

    An entry is a pymatgen structure as dict, or an object with `structure` or `cif` beside its properties.

    Raises:
        ValueError: when the file is no JSON, or has a key twice in one object.
    """
    if ".jsonl" in path.name.lower():
        numbered = enumerate(line for line in read_lines(path) if line.strip())
        return (_json_line(str(path), row, line) for row, line in numbered)
    text = read_text(path)
    try:
        content = parse_json(text, object_pairs_hook=_object)
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got a text that is not: {error}") from error
    if isinstance(content, dict) and "nextid" in content and "ids" in content:
        return read_json_database(path, text)
    if isinstance(content, dict) and _is_structure(content):
        content = [content]
    if isinstance(content, dict):
        entries: list[tuple[str | None, Any]] = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        entries = [(None, value) for value in content]
    else:
        raise ValueError(f"{path} must hold a list or an object of structures, got {type(content).__name__}")
    return (_json_entry(str(path), row, key, entry) for row, (key, entry) in enumerate(entries))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return content


def _json_line(source: str, row: int, line: str) -> Record | Rejection:
    try:
        entry = parse_json(line, object_pairs_hook=_object)
    except ValueError as error:
        return Rejection(source=source, row=row, id=str(row), reason=f"unreadable JSON: {error}")
    return _json_entry(source, row, None, entry)


def _is_structure(entry: Mapping[str, Any]) -> bool:
    return "lattice" in entry and "sites" in entry


def _json_entry(source: str, row: int, key: str | None, entry: object) -> Record | Rejection:
    identifier = key if key is not None else str(row)
    if isinstance(entry, str):
        entry = {"cif": entry}
    if not isinstance(entry, Mapping):
        reason = f"must be an object with a structure, got {type(entry).__name__}"
        return Rejection(source=source, row=row, id=identifier, reason=reason)
    if _is_structure(entry):
        labels = entry.get("properties")
        cells: dict[str, object] = dict(labels) if isinstance(labels, Mapping) else {}
        cells["structure"] = entry
    else:
        cells = dict(entry)
    if key is not None and not any(name in cells for name in ("material_id", "id")):
        cells["id"] = key
    try:
        columns = Columns.find(list(cells), "entry")
    except ValueError:
        reason = f"no structure: the entry has the keys {', '.join(map(repr, entry))}"
        return Rejection(source=source, row=row, id=identifier, reason=reason)
    return record_from_cells(source, row, cells, columns)
