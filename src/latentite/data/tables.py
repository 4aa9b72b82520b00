"""Tables of crystals to records: CSV (plain or gzip), Parquet, JSON (plain, gzip, one object per line).

Comes after `records.py`, which calls it. Nothing in a table is ever evaluated as code.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from latentite.data.records import Columns, Record, Rejection, record_from_cells

_LONGEST_FIELD = 2**30  # a CIF of some thousand atoms is longer than the csv module's default of 128 KiB


def _open_text(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open("r", encoding="utf-8-sig", errors="replace", newline="")


def _lines(handle: IO[str]) -> Iterator[str]:
    """Lines, read in large blocks: iterating a gzip file itself costs a Python call per line."""
    rest = ""
    while block := handle.read(1 << 20):
        whole, newline, rest = (rest + block).rpartition("\n")
        yield from io.StringIO(whole + newline, newline="")
    if rest:
        yield rest


def _broken_gzip(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} must be a whole gzip file, got a broken one ({error}); copy or download it again"
    )


def read_csv(path: Path) -> Iterator[Record | Rejection]:
    """Rows of a CSV (or TSV) with a header; the header is checked before the first row is asked for.

    Raises:
        ValueError: without a structure column, or for a broken gzip file.
    """
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    csv.field_size_limit(max(_LONGEST_FIELD, csv.field_size_limit()))
    table = _csv_table(path, delimiter)
    header = next(table, None)
    if not header:
        raise ValueError(f"{path} is an empty file")
    columns = Columns.find(header, str(path))
    return _csv_rows(str(path), table, header, columns)


def _csv_table(path: Path, delimiter: str) -> Iterator[list[str]]:
    with _open_text(path) as handle:
        reader = csv.reader(_lines(handle), delimiter=delimiter)
        try:
            yield from reader
        except (OSError, EOFError, zlib.error) as error:
            raise _broken_gzip(path, error) from error
        except csv.Error as error:
            raise ValueError(f"{path} must be CSV, got a broken line {reader.line_num}: {error}") from error


def _csv_rows(
    source: str, table: Iterator[list[str]], header: list[str], columns: Columns
) -> Iterator[Record | Rejection]:
    row = 0
    for fields in table:
        if not fields:  # a blank line
            continue
        if len(fields) == len(header):
            yield record_from_cells(source, row, dict(zip(header, fields, strict=True)), columns)
        else:
            reason = f"row has {len(fields)} fields where the header has {len(header)}"
            yield Rejection(source=source, row=row, id=str(row), reason=reason)
        row += 1


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
        with table:
            for batch in table.iter_batches(batch_size=4096, columns=wanted):
                for cells in batch.to_pylist():
                    yield record_from_cells(str(path), row, cells, columns)
                    row += 1

    return rows()


def read_json(path: Path) -> Iterator[Record | Rejection]:
    """Structures of a JSON file: a list, an object by id, one structure, or one object per line (`.jsonl`).

    An entry is a pymatgen structure as dict, or an object with `structure` or `cif` beside its properties.

    Raises:
        ValueError: when the file is no JSON, or is an ASE database in JSON (named as such).
    """
    try:
        with _open_text(path) as handle:
            if ".jsonl" in path.name.lower():
                return iter(
                    [_json_line(str(path), row, line) for row, line in enumerate(handle) if line.strip()]
                )
            content = json.load(handle)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON, got a text that is not: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _broken_gzip(path, error) from error
    if isinstance(content, dict) and "nextid" in content and "ids" in content:
        from latentite.data import structure_files

        return structure_files.read_ase(path)
    if isinstance(content, dict) and _is_structure(content):
        content = [content]
    if isinstance(content, dict):
        entries: list[tuple[str | None, Any]] = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        entries = [(None, value) for value in content]
    else:
        raise ValueError(f"{path} must hold a list or an object of structures, got {type(content).__name__}")
    return (_json_entry(str(path), row, key, entry) for row, (key, entry) in enumerate(entries))


def _json_line(source: str, row: int, line: str) -> Record | Rejection:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
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
