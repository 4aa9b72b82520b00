"""Folders of crystals whose labels stand in a table of their own: CGCNN's `id_prop.csv`, or `--labels`."""

from __future__ import annotations

import random

from fuzz.case import Case
from fuzz.table_cases import MISSING, PLAIN_NUMBERS, STRANGE_NUMBERS, cif_of, clean_number, small_crystal

_KINDS = ("numbers", "missing", "strange", "a label too many", "a crystal too many", "an id twice", "endings")


def make_labels(index: int, chance: random.Random) -> Case:
    """Up to five CIFs and a table; ids of only one of the two sides are counted on both."""
    case = Case(format="labels", index=index, kind=chance.choice(_KINDS), source="crystals", labels={})
    assert case.labels is not None
    rows: list[tuple[str, str]] = []
    for row in range(chance.randint(2, 5)):
        symbols, arrays = small_crystal(chance)
        name, cell = f"{chance.choice(('mp-', '00', 'x_'))}{row}", chance.choice(PLAIN_NUMBERS)
        case.files[f"crystals/{name}.cif"] = cif_of(symbols, arrays).encode()
        case.crystals[name] = arrays
        case.labels[name] = float(cell)
        if case.kind in ("missing", "strange") and row and chance.random() < 0.5:
            cell = chance.choice(MISSING if case.kind == "missing" else STRANGE_NUMBERS)
            case.labels[name] = None if case.kind == "missing" else clean_number(cell)
        rows.append((f"{name}.cif" if case.kind == "endings" else name, cell))
    case.rows = len(rows)
    chance.shuffle(rows)
    if case.kind == "a label too many":
        rows.append(("nowhere", "1.5"))
        case.rows += 1
    if case.kind == "a crystal too many":
        name, _ = rows.pop()
        case.labels[name] = None
    if case.kind == "an id twice":  # which of two numbers is meant cannot be known
        rows.append((rows[0][0], "99"))
        case.labels = dict.fromkeys(case.labels)
        case.rows = None
    _write(case, rows, chance)
    return case


def _write(case: Case, rows: list[tuple[str, str]], chance: random.Random) -> None:
    """The table beside the crystals or among them, with delimiters and encodings as spreadsheets write them."""
    is_among = chance.random() < 0.5
    delimiter = chance.choice((",", ",", ";"))
    lines = [delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row) for row in rows]
    if not is_among:
        column = chance.choice(("material_id", "name"))
        lines.insert(0, f"{column}{delimiter}label")
        case.arguments = ["--labels", "{folder}/table.csv", *(["--id", column] if column == "name" else [])]
        case.arguments += ["--property", "label"]
    text = chance.choice(("\n", "\r\n")).join([*lines, ""])
    encoding = chance.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
    case.files["crystals/id_prop.csv" if is_among else "table.csv"] = text.encode(encoding)
