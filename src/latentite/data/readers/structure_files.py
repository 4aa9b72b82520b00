"""Files of text that hold crystals and nothing else, to records: a CIF or POSCAR, the frames of an extxyz file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from latentite.base.files import impostor
from latentite.data.readers.files import (
    Format,
    format_of,
    read_lines,
    read_text,
    without_compression,
    without_endings,
)
from latentite.data.readers.records import PayloadKind, Record, Rejection, Value, id_of, to_properties

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
