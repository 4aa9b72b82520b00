"""Files that hold crystals and nothing else, to records: CIF, POSCAR, extxyz; databases and trajectories of ASE.

The labels of an `Atoms` are the single values of its `info` (of a database: its key-value pairs) and the single
results of its calculator under ASE's names: `energy` is the total energy of the cell in eV. The same atoms have the
same ids and labels in every one of these, and in extxyz. Nothing is unpickled: trajectories are ASE's own binary
format, databases JSON in tables.
"""

from __future__ import annotations

import contextlib
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from latentite.base.files import impostor
from latentite.data.readers.files import (
    Format,
    format_of,
    read_lines,
    read_text,
    without_compression,
    without_endings,
)
from latentite.data.readers.records import (
    PayloadKind,
    Record,
    Rejection,
    Value,
    id_of,
    take_id,
    to_properties,
    words_of,
)

if TYPE_CHECKING:
    from ase import Atoms
    from ase.db.row import AtomsRow

_LONGEST = 64 << 20
"""Characters of one CIF or POSCAR: a million atoms."""
_NO_LABELS = frozenset({"Lattice", "Properties", "pbc", "material_id", "id"})
_POSCAR_STEMS = ("poscar", "contcar")
_SEVERAL = re.compile(r"[^\s,]+")
_BOOLEANS = {"T": "True", "TRUE": "True", "F": "False", "FALSE": "False"}
_CLOSING = {"'": "'", '"': '"', "{": "}", "[": "]"}


def record_of_file(path: Path, name: str, row: int) -> Record | Rejection:
    """The record of one CIF or POSCAR file; `name` is its source, its name without endings the id."""
    identifier = id_of_file(name)

    def rejected(reason: str) -> Rejection:
        return Rejection(source=name, row=row, id=identifier, reason=reason)

    try:
        wrong = impostor(path)
        text = "" if wrong else read_text(path, longest=_LONGEST)
    except (OSError, ValueError) as error:
        return rejected(f"unreadable file: {str(error).replace(str(path), 'it')}")
    if wrong or not text.strip():
        return rejected(wrong or "an empty file")
    kind = PayloadKind.CIF if format_of(path.name) is Format.CIF else PayloadKind.POSCAR
    return Record(source=name, row=row, id=identifier, kind=kind, payload=text.replace("\r\n", "\n"))


def id_of_file(name: str) -> str:
    """A file's name without the endings of its format; one called POSCAR is known by its folder.

    `Fe2O3/POSCAR` has the id `Fe2O3`.
    """
    parent, _, last = name.rpartition("/")
    if without_compression(last).lower() in _POSCAR_STEMS and parent:
        return parent
    last = without_endings(last)
    return f"{parent}/{last}" if parent else last


def read_extxyz(path: Path) -> Iterator[Record | Rejection]:
    """All frames of an extxyz file; a broken frame becomes a rejection and the next count line starts
    afresh."""
    source = str(path)
    lines = read_lines(path)
    row = 0
    line = next(lines, "")
    while line:
        if not line.strip():
            line = next(lines, "")
            continue
        if not _is_count(line):
            reason = f"a frame must begin with its number of atoms, got {line.strip()[:60]!r}"
            yield Rejection(source=source, row=row, id=str(row), reason=reason)
            while line and not _is_count(line):
                line = next(lines, "")
        else:
            count = int(line)
            yield _frame(source, row, count, list(islice(lines, count + 1)))
            line = next(lines, "")
        row += 1


def _is_count(line: str) -> bool:
    text = line.strip()
    return text.isascii() and text.isdecimal() and len(text) < 10


def _frame(source: str, row: int, count: int, body: list[str]) -> Record | Rejection:
    def rejected(reason: str, identifier: str = str(row)) -> Rejection:
        return Rejection(source=source, row=row, id=identifier, reason=reason)

    if len(body) != count + 1:
        return rejected(f"truncated: the frame says {count} atoms and ends after {max(len(body) - 1, 0)}")
    pairs = key_value_pairs(body[0])
    texts = dict(pairs)
    identifier = id_of(next((texts[key] for key in ("material_id", "id") if key in texts), None), row)
    if len(texts) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(name for name, count in Counter(names).items() if count > 1)
        return rejected(f"unreadable comment line: it has {twice!r} twice", identifier)
    columns = (texts.get("Properties") or "species:S:1:pos:R:3").split(":")[::3]
    if "pos" not in columns or not {"species", "Z"} & set(columns):
        return rejected("no species and pos among its Properties", identifier)
    try:
        properties = _labels(texts)
    except ValueError as error:
        return rejected(str(error), identifier)
    return Record(
        source=source,
        row=row,
        id=identifier,
        kind=PayloadKind.EXTXYZ,
        payload="".join([f"{count}\n", *body]),
        properties=properties,
    )


def key_value_pairs(line: str) -> list[tuple[str, str | None]]:
    """The names of a comment line of extxyz with their texts as they stand; None behind a name alone.

    The rules are those of `ase.io.extxyz.key_val_str_to_dict`, which would make a number of the id `007`: values may
    be quoted by '', "", {} or [], and a backslash takes the next character as it is.
    """
    pairs: list[list[str]] = [[""]]
    closing, is_escaped, is_begun = "", False, False
    for character in line.strip():
        if is_escaped or (closing and character not in (closing, "\\")):
            pairs[-1][-1] += character
            is_escaped = False
            is_begun = True
        elif character == "\\":
            is_escaped = True
        elif closing:
            closing = ""
        elif character in _CLOSING:
            closing, is_begun = _CLOSING[character], True
        elif character.isspace():
            if is_begun:
                pairs.append([""])
            is_begun = False
        elif character == "=":
            if pairs[-1] == [""] and not is_begun and len(pairs) > 1:  # blanks stood before the sign
                del pairs[-1]
            pairs[-1].append("")
            is_begun = False
        else:
            pairs[-1][-1] += character
            is_begun = True
    if pairs[-1] == [""]:
        del pairs[-1]
    return [(key, "=".join(values) if values else None) for key, *values in pairs]


def _labels(texts: dict[str, str | None]) -> dict[str, Value]:
    """The single values among them: no arrays, no JSON, and no names without a value, which ASE writes for None."""
    labels: dict[str, str] = {}
    for name, text in texts.items():
        if name in _NO_LABELS or text is None or text.startswith("_JSON "):
            continue
        parts = _SEVERAL.findall(text)
        if len(parts) > 1 and all(map(_is_number_or_flag, parts)):
            continue
        labels[name] = _BOOLEANS.get(text.strip(), text)
    return to_properties(labels)


def _is_number_or_flag(text: str) -> bool:
    if text in _BOOLEANS or text.lower() in ("true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


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
