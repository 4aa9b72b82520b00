"""Records: one crystal each, as it stands in its source, not yet parsed, with its id and properties.

Opening a source is cheap and sequential, parsing is dear and parallel: so the readers cut a source into `Record`s
(texts or objects), and `rows.parse_many` makes arrays of them, in other processes if wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from latentite.base.files import parse_json

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


Value = float | str | None
"""A property as it stood in its source: a number, a text, or None where there is nothing."""


class PayloadKind(StrEnum):
    """Kind of the payload of a record."""

    CIF = "cif"
    POSCAR = "poscar"
    EXTXYZ = "extxyz"
    STRUCTURE_DICT = "structure_dict"
    STRUCTURE = "structure"
    ATOMS = "atoms"
    ARRAYS = "arrays"
    """Atomic numbers, fractional coordinates and lattice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """A source whose labels stand in a table of their own, joined by id (`label_table.py`)."""

    source: str | Path | Sequence[Structure | Atoms]
    labels: Path
    id_column: str | None = None
    """Column of the table that holds the ids; None for `material_id` or `id`."""


Source: TypeAlias = "str | Path | Sequence[Structure | Atoms] | Labelled"
"""A file, a folder, crystals in memory, or one of these with a table of labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One crystal as it stands in its source."""

    source: str
    row: int
    """Position within the source, from 0."""
    id: str
    kind: PayloadKind
    payload: object
    """Text for CIF, POSCAR and EXTXYZ; otherwise the object that the kind names."""
    properties: dict[str, Value] = field(default_factory=dict)


_HALF = 300
"""Characters of a rejection's reason before and after its cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """One row or file that did not become a crystal."""

    source: str
    row: int
    """Position within the source, from 0."""
    id: str
    reason: str
    """One line; a long one, which quotes half a file, is cut in its middle."""

    def __post_init__(self) -> None:
        reason = " ".join(self.reason.split())
        if len(reason) > 2 * _HALF:
            reason = f"{reason[:_HALF]} ... {reason[-_HALF:]}"
        object.__setattr__(self, "reason", reason)


def words_of(error: Exception) -> str:
    """The message of another library's exception, in a user's words where it speaks of Python's objects."""
    if isinstance(error, KeyError):
        return f"{error} is missing or unknown"
    if isinstance(error, TypeError | AttributeError | IndexError | RecursionError) or not str(error):
        return f"a part of it is missing, or is not what its format has there ({type(error).__name__})"
    return str(error)


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
    """The labels of one crystal under our names; only single values are labels, no arrays, lists or objects.

    Raises:
        ValueError: when one of them stands there under two names.
    """
    refuse_two_names(labels, "a crystal")
    return {
        CANONICAL_NAMES.get(name) or str(name): to_value(value)
        for name, value in labels.items()
        if value is None or isinstance(value, (str, int, float)) or getattr(value, "ndim", None) == 0
    }


def refuse_two_names(names: Collection[str], where: str) -> None:
    """Refuse a label under its own name and under ours: one of the two would be read in place of the other."""
    for theirs, ours in CANONICAL_NAMES.items():
        if theirs in names and ours in names:
            raise ValueError(
                f"{where} must give each label once, got {theirs!r} and {ours!r}, two names of one label; "
                "rename or remove one of them"
            )


_NO_ID = frozenset({"", "nan", "None", "none", "null", "<NA>"})  # "NaN" may be the formula of sodium nitride


def id_of(value: object, row: int | str) -> str:
    """An id as text, exactly as it stands (`007`); `row` where there is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables make floats of whole numbers where one of them is missing
    text = "" if value is None else str(value).strip()
    return str(row) if text in _NO_ID else text


def take_id(labels: MutableMapping[str, Any], row: int) -> str:
    """The id among the labels of a crystal, taken from them; `row` where there is none."""
    ids = [labels.pop(name) for name in _ID_COLUMNS if name in labels]
    return id_of(ids[0] if ids else None, row)


def has_structures(header: Sequence[str]) -> bool:
    """True where the first row of a table names a column of structures."""
    return any(name.strip().lower() in _STRUCTURE_COLUMNS for name in header)


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Columns of a table: the one of structures, the one of ids, and our names of the others."""

    structure: str
    id: str | None
    properties: dict[str, str]
    """Our name for each property column, by the name in the table."""

    @staticmethod
    def find(names: Sequence[str], source: str) -> Columns:
        """Choose the columns.

        Raises:
            ValueError: when no column can hold structures, naming the columns found, or two have the same name or
                are one label.
        """
        repeated = sorted(name for name, count in Counter(names).items() if name.strip() and count > 1)
        if repeated:
            raise ValueError(
                f"{source} must name each column once, got {', '.join(map(repr, repeated))} twice"
            )
        refuse_two_names(names, source)
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
            is_index = not name.strip() or name.startswith("Unnamed:")
            if name not in used and not is_index:
                properties[name] = CANONICAL_NAMES.get(name, name)
        return Columns(structure=structure, id=id_column, properties=properties)


def record_from_cells(
    source: str, row: int, cells: Mapping[str, object], columns: Columns
) -> Record | Rejection:
    """The record of one row of a table: CIF text, a JSON text or a dict of a pymatgen structure."""
    identifier = id_of(None if columns.id is None else cells.get(columns.id), row)
    payload = cells.get(columns.structure)
    if isinstance(payload, str) and payload.lstrip().startswith("{"):
        try:
            payload = parse_json(payload)
        except ValueError as error:
            return Rejection(
                source=source, row=row, id=identifier, reason=f"unreadable JSON structure: {error}"
            )
    if isinstance(payload, Mapping):
        kind = PayloadKind.STRUCTURE_DICT
    elif isinstance(payload, str) and payload.strip():
        kind = PayloadKind.CIF
    else:
        reason = f"no structure: the column {columns.structure!r} is empty"
        return Rejection(source=source, row=row, id=identifier, reason=reason)
    properties = {ours: to_value(cells.get(name)) for name, ours in columns.properties.items()}
    return Record(source=source, row=row, id=identifier, kind=kind, payload=payload, properties=properties)


def name_of(source: Source) -> str:
    """Name of a source in messages: its path, or `list`."""
    if isinstance(source, Labelled):
        return name_of(source.source)
    return str(source) if isinstance(source, (str, Path)) else "list"
