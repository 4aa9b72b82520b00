"""Labels that stand in a table of their own, joined by id to the crystals of a source.

    latentite data build cifs/ --labels labels.csv --id name --out data/mine

An id of the table is that of a crystal, or the name of its file with or without folder and ending. Ids that the
source does not have are rejections (`a label without a crystal`), and crystals that the table does not have are
counted and keep missing labels.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from latentite.base.files import impostor
from latentite.data.readers.files import Format, format_of
from latentite.data.readers.records import (
    Labelled,
    Record,
    Rejection,
    Source,
    Value,
    id_of,
    refuse_two_names,
    to_properties,
)
from latentite.data.readers.structure_files import id_of_file
from latentite.data.readers.tables import open_csv

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


log = logging.getLogger(__name__)

_ID_COLUMNS = ("material_id", "id")
_HEADER_STARTS = frozenset({*_ID_COLUMNS, "cif_id", "cif", "name", "file", "filename", "structure_id", "jid"})
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTable:
    """The rows of a table of labels."""

    source: str
    ids: tuple[str, ...]
    """As they stand, each once."""
    labels: tuple[dict[str, Value], ...]


def labelled(
    source: str | Path | Sequence[Structure | Atoms],
    labels: str | Path | None,
    id_column: str | None,
    *,
    is_divided: bool,
) -> Source:
    """A source with its table of labels, if there is one.

    Args:
        source: crystals.
        labels: the table; None for none.
        id_column: its column of ids; None for `material_id` or `id`.
        is_divided: whether the source is several, one for each split.

    Raises:
        FileNotFoundError: when there is no such table.
        ValueError: when these do not go together.
    """
    if labels is None:
        if id_column is not None:
            raise ValueError(f"--id {id_column} must be given with --labels, whose column it names")
        return source
    if is_divided:
        raise ValueError(
            f"--labels must be given with a source that is still to be divided, got {source} with its own splits; "
            "write the labels into their tables"
        )
    if not Path(labels).is_file():
        raise FileNotFoundError(f"--labels must be a file that exists, got {labels}")
    return Labelled(source=source, labels=Path(labels), id_column=id_column)


def read_labels(path: Path, id_column: str | None = None) -> LabelTable:
    """A CSV (or TSV) or Parquet table with a header and a column of ids; a file `id_prop.csv` has no header.

    Raises:
        ValueError: when it has no such column, or an id twice.
    """
    if wrong := impostor(path):
        raise ValueError(f"{path} is {wrong}")
    if path.name.lower() == "id_prop.csv" and id_column is None:
        return read_id_prop(path)
    if format_of(path.name) is Format.CSV:
        header, rows = _csv(path, id_column)
    elif format_of(path.name) is Format.PARQUET:
        header, rows = _parquet(path)
    else:
        raise ValueError(f"--labels must be a CSV or Parquet table, got {path}; save it as one of these")
    if len(set(header)) < len(header):
        raise ValueError(f"{path} must name each column once, got {', '.join(map(repr, header))}")
    column = _id_column(header, id_column)
    if column is None:
        wanted = "'material_id' or 'id'" if id_column is None else repr(id_column)
        raise ValueError(
            f"{path} must have a column {wanted} with the ids of the crystals, got {', '.join(map(repr, header))}; "
            "name it with --id"
        )
    return _table(path, header, rows, header.index(column))


def read_id_prop(path: Path) -> LabelTable:
    """CGCNN's table: id, value and any further values, without a header.

    One value is called `target`, several `target_1`, `target_2`, ...; a first line that is a header all the same
    (its first cell is `id` or the like) names them.

    Raises:
        ValueError: when it cannot be read, or has an id twice.
    """
    rows = list(open_csv(path, is_header=lambda fields: len(fields) > 1))
    if not rows:
        raise ValueError(f"{path} is an empty file")
    if rows[0][0].strip().lower() in _HEADER_STARTS:
        header, rows = rows[0], rows[1:]
    else:
        count = len(rows[0]) - 1
        header = ["id", *(["target"] if count == 1 else [f"target_{k}" for k in range(1, count + 1)])]
    return _table(path, header, rows, 0)


def _csv(path: Path, id_column: str | None) -> tuple[list[str], Sequence[Sequence[object]]]:
    rows = list(open_csv(path, is_header=lambda fields: _id_column(fields, id_column) is not None))
    if not rows:
        raise ValueError(f"{path} is an empty file")
    return [name.strip() for name in rows[0]], rows[1:]


def _parquet(path: Path) -> tuple[list[str], Sequence[Sequence[object]]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} must be a Parquet file, got one that cannot be opened: {error}") from error
    return list(table.column_names), [list(row.values()) for row in table.to_pylist()]


def _id_column(header: Sequence[str], id_column: str | None) -> str | None:
    names = [name.strip() for name in header]
    if id_column is not None:
        return id_column if id_column in names else None
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in _ID_COLUMNS if name in lowered), None)


def _table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], column: int) -> LabelTable:
    names = [name for position, name in enumerate(header) if position != column]
    refuse_two_names(names, str(path))
    ids: list[str] = []
    labels: list[dict[str, Value]] = []
    for number, cells in enumerate(rows):
        if len(cells) != len(header):
            raise ValueError(
                f"{path} must have {len(header)} cells in each row, got {len(cells)} in row {number}: {cells[0]}"
            )
        ids.append(id_of(cells[column], ""))
        if not ids[-1]:
            raise ValueError(f"{path} must have an id in each row, got none in row {number}")
        values = [cell for position, cell in enumerate(cells) if position != column]
        named = {name: value for name, value in zip(names, values, strict=True) if name.strip()}
        labels.append(to_properties(named))
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise ValueError(f"{path} must have each id once, got {twice!r} twice")
    return LabelTable(source=str(path), ids=tuple(ids), labels=tuple(labels))


def join(records: Iterator[Record | Rejection], table: LabelTable) -> Iterator[Record | Rejection]:
    """The records with their labels, then a rejection for each row of the table that no record has.

    Raises:
        ValueError: when one id of the table means several crystals, or a label is also one of the source.
    """
    rows = _rows_by_name(table)
    used: dict[int, str] = {}
    unlabelled: list[str] = []
    total = 0
    for record in records:
        total += 1
        row = _find(rows, record.id)
        if row is not None and used.setdefault(row, record.id) != record.id:
            raise ValueError(
                f"{table.source}: the id {table.ids[row]!r} means both {used[row]} and {record.id}; write it "
                "with the folder"
            )
        if isinstance(record, Rejection):
            yield record
        elif row is None:
            unlabelled.append(record.id)
            yield record
        else:
            yield replace(record, properties=_both(record, table.labels[row], table.source))
    missing = [row for row in range(len(table.ids)) if row not in used]
    log.info("%s: %d of %d rows have a crystal", table.source, len(used), len(table.ids))
    if unlabelled:
        names = _some(unlabelled)
        log.warning(
            "%s: %d of %d in the source have no label (%s)", table.source, len(unlabelled), total, names
        )
    if missing:
        names = _some([table.ids[row] for row in missing])
        log.warning("%s: %d labels have no crystal (%s)", table.source, len(missing), names)
    for row in missing:
        reason = "a label without a crystal: the source has nothing of this id"
        yield Rejection(source=table.source, row=row, id=table.ids[row], reason=reason)


def _rows_by_name(table: LabelTable) -> dict[str, int]:
    """Rows by id, and by what is left of an id that is the name of a file."""
    rows = {id_of_file(name): row for row, name in reversed(list(enumerate(table.ids)))}
    return rows | {name: row for row, name in enumerate(table.ids)}


def _find(rows: Mapping[str, int], identifier: str) -> int | None:
    row = rows.get(identifier)
    return rows.get(identifier.rpartition("/")[2]) if row is None else row


def _both(record: Record, labels: Mapping[str, Value], source: str) -> dict[str, Value]:
    if twice := record.properties.keys() & labels.keys():
        raise ValueError(
            f"the label {min(twice)!r} must stand in the source or in {source}, got it in both; rename one"
        )
    return {**record.properties, **labels}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
