"""Files of ASE to records: databases (sqlite, JSON, lmdb), trajectories; and `Atoms` in memory.

The labels of an `Atoms` are the single values of its `info` (of a database: its key-value pairs) and the single
results of its calculator under ASE's names: `energy` is the total energy of the cell in eV. The same atoms have the
same ids and labels in every one of these, and in extxyz. Nothing is unpickled: trajectories are ASE's own binary
format, databases JSON in tables.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from latentite.data.readers.records import PayloadKind, Record, Rejection, take_id, to_properties, words_of

if TYPE_CHECKING:
    from ase import Atoms
    from ase.db.row import AtomsRow

_TRAJECTORY_STARTS = (b"- of Ulm", b"AFFormat")
_RESULTS = ("energy", "free_energy", "magmom")
"""Results of a calculator that are one number for a crystal."""


def record_of_atoms(
    source: str, row: int, atoms: Atoms, labels: Mapping[str, Any] | None = None
) -> Record | Rejection:
    """The record of an `Atoms`; `labels` are its `info` if not given.

    A calculator's results count where they belong to these atoms: not those of a calculator that has gone on to
    others.
    """
    own = dict(atoms.info if labels is None else labels)
    identifier = take_id(own, row)
    results = _results(atoms)
    for name in own.keys() & results.keys():
        if not _is_same(own[name], results[name]):
            reason = f"two values of {name}: {own[name]} among the labels, {results[name]} of the calculator"
            return Rejection(source=source, row=row, id=identifier, reason=reason)
    try:
        properties = to_properties(own | results)
    except ValueError as error:
        return Rejection(source=source, row=row, id=identifier, reason=str(error))
    return Record(
        source=source, row=row, id=identifier, kind=PayloadKind.ATOMS, payload=atoms, properties=properties
    )


def _results(atoms: Atoms) -> dict[str, Any]:
    """Results that the calculator has for these atoms; asking it for a value would make it forget those of others."""
    calculator: Any = atoms.calc
    try:
        is_of_others = calculator is None or calculator.check_state(atoms)
        results = {} if is_of_others else dict(calculator.results)
    except Exception:  # noqa: BLE001  a calculator may be anybody's code; one that cannot say what it knows knows nothing
        results = {}
    return {name: results[name] for name in _RESULTS if results.get(name) is not None}


def _is_same(first: Any, second: Any) -> bool:
    try:
        return math.isclose(float(first), float(second), rel_tol=1e-9)
    except (TypeError, ValueError):
        return False


def read_trajectory(path: Path) -> Iterator[Record | Rejection]:
    """The frames of an ASE trajectory; one that cannot be read becomes a rejection.

    Raises:
        ValueError: when the file is none, or is cut short.
    """
    from ase.io.trajectory import TrajectoryReader

    with path.open("rb") as file:
        head = file.read(8)
    if head not in _TRAJECTORY_STARTS:
        raise ValueError(f"{path} must be an ASE trajectory, got a file that is none (or one of before 2015)")
    try:
        trajectory = TrajectoryReader(path)
        count = len(trajectory)
    except Exception as error:  # a damaged file makes ASE raise nearly every builtin type
        raise ValueError(
            f"{path} must be an ASE trajectory, got one that cannot be opened: {words_of(error)}"
        ) from error

    def rows() -> Iterator[Record | Rejection]:
        with trajectory:
            for row in range(count):
                try:
                    atoms = trajectory[row]
                except Exception as error:  # noqa: BLE001  as above
                    reason = f"unreadable frame: {words_of(error)}"
                    yield Rejection(source=str(path), row=row, id=str(row), reason=reason)
                    continue
                yield record_of_atoms(str(path), row, atoms)

    return rows()


def read_database(path: Path) -> Iterator[Record | Rejection]:
    """All rows of an ASE database in sqlite, or in lmdb (`.aselmdb`, with the package `ase-db-backends`).

    Raises:
        ValueError: when it is none, or ASE cannot open it.
    """
    from ase.db import connect

    try:
        if path.suffix.lower() == ".db":
            # Opened for reading first: ASE would make its tables in a file without them, and so change it.
            with contextlib.closing(
                sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
            ) as connection:
                numbers = [number for (number,) in connection.execute("SELECT id FROM systems ORDER BY id")]
            database = connect(path, type="db", use_lock_file=False)
            database.count()  # reads the version of the format
        else:
            database = connect(path, type="aselmdb", readonly=True)
            numbers = list(database.ids)
    except Exception as error:  # sqlite, lmdb and a missing package each raise their own
        raise ValueError(
            f"{path} must be an ASE database, got one that cannot be opened: {words_of(error)}"
        ) from error

    def records() -> Iterator[Record | Rejection]:
        with database:
            for row, number in enumerate(numbers):
                try:
                    entry = database.get(id=number)
                except Exception as error:  # noqa: BLE001  whatever a damaged row makes ASE raise
                    yield _unreadable(str(path), row, error)
                    continue
                yield _record_of_row(str(path), row, entry)

    return records()


def read_json_database(path: Path, text: str) -> Iterator[Record | Rejection]:
    """All rows of an ASE database in JSON.

    Raises:
        ValueError: when it cannot be decoded, or lists other rows than it has.
    """
    from ase.db.row import AtomsRow
    from ase.io.jsonio import decode

    try:
        content = decode(text)
        numbers = [int(number) for number in content["ids"]]
    except Exception as error:  # ASE's decoder raises nearly every builtin type
        raise ValueError(
            f"{path} must be an ASE database, got one that cannot be decoded: {words_of(error)}"
        ) from error
    entries = {key: entry for key, entry in content.items() if isinstance(key, int)}
    if sorted(entries) != sorted(numbers):
        raise ValueError(
            f"{path} must list its rows under 'ids', got {len(numbers)} ids and {len(entries)} rows"
        )

    def records() -> Iterator[Record | Rejection]:
        for row, number in enumerate(numbers):
            try:
                entry = AtomsRow(entries[number] | {"id": number})
            except Exception as error:  # noqa: BLE001  as above
                yield _unreadable(str(path), row, error)
                continue
            yield _record_of_row(str(path), row, entry)

    return records()


def _record_of_row(source: str, row: int, entry: AtomsRow) -> Record | Rejection:
    try:
        labels = dict(entry.key_value_pairs)
        atoms = entry.toatoms()
    except Exception as error:  # noqa: BLE001  whatever a damaged row makes ASE raise
        return _unreadable(source, row, error)
    return record_of_atoms(source, row, atoms, labels)


def _unreadable(source: str, row: int, error: Exception) -> Rejection:
    reason = f"unreadable ASE row: {words_of(error)}"
    return Rejection(source=source, row=row, id=str(row), reason=reason)
