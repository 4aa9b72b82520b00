"""POSCAR, extxyz, CSV and JSON: right ones in unusual dress, wrong ones, damaged ones."""

from __future__ import annotations

import csv
import io
import random

import numpy as np

from fuzz.case import ANY, Arrays, Case
from fuzz.damage import damaged
from fuzz.random_crystals import random_crystal
from fuzz.told import told_by_poscar
from latentite.elements import SYMBOLS

PLAIN_NUMBERS = ("1.5", "-0.25", "0", "3e-2", "1.0E+1", "+2.5", " 7 ", "007", "1e-12", ".5", "5.", "-0.0")
MISSING = (
    *(
        "",
        " ",
        "NaN",
        "nan",
        "NAN",
        " nan ",
        "NA",
        "N/A",
        "#N/A",
        "NULL",
        "null",
        "None",
        "none",
        "<NA>",
        "-",
        "--",
    ),
    *("-nan", "#DIV/0!", "inf", "-inf", "Infinity"),
)
STRANGE_NUMBERS = (
    "1.00 eV",
    "1.00(2)",
    "1,00",
    "1,234.5",
    "\u22121.5",
    "1.2.3",
    "~2",
    "<0.1",
    "1e",
    "0x10",
    "1_000",
    "½",
)


def small_crystal(chance: random.Random) -> tuple[list[str], Arrays]:
    """Symbols by atom, and the crystal."""
    arrays = random_crystal(chance, max_atoms=10).arrays
    return [SYMBOLS[number - 1] for number in arrays[0]], arrays


def make_poscar(index: int, chance: random.Random) -> Case:
    """A POSCAR in one of VASP's many ways."""
    symbols, (numbers, coords, lattice) = small_crystal(chance)
    name = chance.choice(("POSCAR", "x.vasp", "x.poscar", "CONTCAR", "POSCAR_1"))
    case = Case(format="poscar", index=index, kind="as it is", source=name, rows=1)
    order = np.argsort(np.array(symbols), kind="stable") if chance.random() < 0.8 else np.arange(len(symbols))
    symbols, coords = [symbols[k] for k in order], coords[order]
    case.crystals = {ANY: (numbers[order], coords, lattice)}
    lines = poscar_lines(symbols, coords, lattice, chance)
    kind = chance.choice(("as it is", "as it is", "dress", "dress", "wrong", "damaged"))
    text = "\n".join(lines) + "\n"
    if kind == "dress":
        case.kind, text = _dressed_poscar(lines, len(symbols), chance)
    if kind == "wrong":
        case.kind, text = _wrong_poscar(lines, len(symbols), chance)
        if case.kind != "no kinds" or lines[-1].split()[-1] not in symbols:  # else each atom has its symbol
            case.crystals, case.refused = {}, [ANY]
    content = text.encode()
    if kind == "damaged":
        case.kind, case.crystals, content = "damaged bytes", {}, damaged(content, chance)
        case.shares, case.volume = told_by_poscar(content) or (None, None)
    case.files[name] = content
    return case


def poscar_lines(
    symbols: list[str], coords: np.ndarray, lattice: np.ndarray, chance: random.Random
) -> list[str]:
    """The lines; scale and kind of positions are drawn."""
    volume = abs(np.linalg.det(lattice))
    scale, factor = chance.choice(
        (
            ("1.0", 1.0),
            ("1", 1.0),
            ("3.5", 3.5),
            (f"{-volume:.8f}", 1.0),
            (f"{-volume:.8f}", 2.0),
            ("1 1 1", 1.0),
        )
    )
    runs: list[tuple[str, int]] = []
    for symbol in symbols:
        if runs and runs[-1][0] == symbol:
            runs[-1] = symbol, runs[-1][1] + 1
        else:
            runs.append((symbol, 1))
    is_cartesian = chance.random() < 0.5
    places = coords @ lattice / factor if is_cartesian else coords
    selective = chance.random() < 0.2
    lines = [chance.choice(("a crystal", "", " ".join(s for s, _ in runs), "5 5", "1.0")), scale]
    lines += [" ".join(f"{x:.8f}" for x in row) for row in lattice / factor]
    lines += [" ".join(s for s, _ in runs), " ".join(str(n) for _, n in runs)]
    lines += ["Selective dynamics"] * selective
    lines.append(
        chance.choice(("Cartesian", "cart", "K", "c") if is_cartesian else ("Direct", "direct", "d", "D"))
    )
    tail = " T F T" if selective else chance.choice(("", "", "", " {symbol}"))
    return lines + [
        " ".join(f"{x:.8f}" for x in place) + tail.format(symbol=symbol)
        for place, symbol in zip(places, symbols, strict=True)
    ]


def _dressed_poscar(lines: list[str], count: int, chance: random.Random) -> tuple[str, str]:
    kind = chance.choice(
        ("fortran", "crlf", "tabs", "potcar", "velocities", "blank end", "comments", "old", "empty kind")
    )
    if kind == "fortran":
        lines[2:5] = [
            " ".join(f"{float(x):.8E}".replace("E", "D") for x in line.split()) for line in lines[2:5]
        ]
    if kind == "potcar":
        lines[5] = " ".join(
            symbol + chance.choice(("_pv", "_sv", "/1a2b3c", "_GW")) for symbol in lines[5].split()
        )
    if kind == "velocities":
        lines += ["", *(["0.1 0.2 0.3"] * count)]
    if kind == "blank end":
        lines += ["", "", ""]
    if kind == "comments":
        lines[-1] += " ! last"
        lines[5] += " # kinds"
    if kind == "old":
        lines[0] = lines.pop(5)
    if kind == "empty kind":
        lines[5], lines[6] = lines[5] + " Xe", lines[6] + " 0"
    text = "\n".join(lines) + "\n"
    if kind == "crlf":
        text = text.replace("\n", "\r\n")
    return kind, text.replace(" ", "\t") if kind == "tabs" else text


def _wrong_poscar(lines: list[str], count: int, chance: random.Random) -> tuple[str, str]:
    kind = chance.choice(
        ("atom missing", "count more", "no kinds", "unknown", "zero scale", "short cell", "text", "nan")
    )
    if kind == "atom missing":
        del lines[-1]
    if kind == "count more":
        lines[6] = " ".join([*lines[6].split()[:-1], str(int(lines[6].split()[-1]) + 1)])
    if kind == "no kinds":
        del lines[5]
        lines[0] = "a crystal"
    if kind == "unknown":
        lines[5] = " ".join(["Xx", *lines[5].split()[1:]])
    if kind == "zero scale":
        lines[1] = chance.choice(("0", "0.0", "abc", "nan", "1 2"))
    if kind == "short cell":
        lines[3] = " ".join(lines[3].split()[:2])
    if kind == "text":
        lines[-1] = "a b c"
    if kind == "nan":
        lines[-1] = "nan 0 0"
    return kind, "\n".join(lines) + "\n"


def make_extxyz(index: int, chance: random.Random) -> Case:
    """Several frames, of which one may be wrong."""
    case = Case(format="extxyz", index=index, kind="as it is", source=chance.choice(("x.extxyz", "x.xyz")))
    frames = []
    case.rows = chance.randint(1, 5)
    wrong = chance.choice((None, None, *_WRONG_FRAMES))
    broken = chance.randrange(case.rows) if wrong else None
    case.kind = wrong or "as it is"
    for row in range(case.rows):
        symbols, arrays = small_crystal(chance)
        name = f"{chance.choice(('a', '00', 'mp-', ''))}{row}{chance.choice(('', '7'))}x"
        frame = _frame(name, symbols, arrays, chance)
        if row == broken:
            frame = _wrong_frame(frame, str(wrong))
            case.refused += [name, str(row), ""]
        else:
            case.crystals[name] = arrays
        frames.append(frame)
    text = "".join(frames)
    content = text.replace("\n", "\r\n").encode() if chance.random() < 0.1 else text.encode()
    if wrong in ("cut", "count less", "count more", "no count"):
        case.rows = None  # which lines belong to which frame is then a guess
        case.crystals = {name: arrays for name, arrays in case.crystals.items() if wrong == "cut"}
        case.refused = []
    if chance.random() < 0.25:
        case.kind, case.rows, case.crystals, case.refused = "damaged bytes", None, {}, []
        content = damaged(content, chance)
    case.files[case.source] = content
    return case


_WRONG_FRAMES = (
    "cut",
    "count less",
    "count more",
    "no count",
    "lattice",
    "pbc",
    "unknown",
    "nan",
    "properties",
    "quote",
)


def _frame(name: str, symbols: list[str], arrays: Arrays, chance: random.Random) -> str:
    _, coords, lattice = arrays
    cell = " ".join(f"{x:.8f}" for x in lattice.flatten())
    labels = chance.choice(
        ("", "energy=-1.25 ", "band_gap=0.5 free_energy=1 ", "note='a b' ", 'stress="1 0 0 0 1 0 0 0 1" ')
    )
    pbc = chance.choice(('pbc="T T T" ', "", 'pbc="1 1 1" '))
    extra = chance.random() < 0.3
    properties = "species:S:1:pos:R:3" + (":forces:R:3" if extra else "")
    lines = [str(len(symbols)), f'Lattice="{cell}" Properties={properties} {pbc}{labels}material_id={name}']
    for symbol, place in zip(symbols, coords @ lattice, strict=True):
        lines.append(f"{symbol} " + " ".join(f"{x:.8f}" for x in place) + (" 0.0 0.1 0.2" if extra else ""))
    return "\n".join(lines) + "\n"


def _wrong_frame(frame: str, kind: str) -> str:
    lines = frame.rstrip("\n").split("\n")
    if kind == "cut":
        lines = lines[:-1]
    if kind == "count less":
        lines[0] = str(int(lines[0]) - 1)
    if kind == "count more":
        lines[0] = str(int(lines[0]) + 1)
    if kind == "no count":
        lines[0] = "abc"
    if kind == "lattice":
        lines[1] = lines[1].replace("Lattice=", "Latice=")
    if kind == "pbc":
        lines[1] = lines[1].replace('pbc="T T T" ', "").replace('pbc="1 1 1" ', "") + ' pbc="T F T"'
    if kind == "unknown":
        lines[2] = "Xx" + lines[2][2:]
    if kind == "nan":
        lines[2] = lines[2].split()[0] + " nan 0 0" + (" 0 0 0" if len(lines[2].split()) > 4 else "")
    if kind == "properties":
        lines[1] = lines[1].replace("pos:R:3", "pos:R:2")
    if kind == "quote":
        lines[1] = lines[1].replace('Lattice="', "Lattice=")
    return "\n".join(lines) + "\n"


def make_csv(index: int, chance: random.Random) -> Case:
    """CIFs of several crystals with a column of labels."""
    case = Case(format="csv", index=index, kind="as it is", source="x.csv", rows=chance.randint(2, 6))
    assert case.rows is not None
    case.kind = chance.choice(
        ("numbers", "missing", "strange", "damaged bytes", "fields", "lines", "numbers")
    )
    labels: dict[str, float | None] = {}
    rows = []
    for row in range(case.rows):
        symbols, arrays = small_crystal(chance)
        name, cell = f"{chance.choice(('mp-', '00', 'a '))}{row}", chance.choice(PLAIN_NUMBERS)
        labels[name] = float(cell)
        if case.kind in ("missing", "strange") and row and chance.random() < 0.5:
            cell = chance.choice(MISSING if case.kind == "missing" else STRANGE_NUMBERS)
            labels[name] = None if case.kind == "missing" else clean_number(cell)
        rows.append([name, cif_of(symbols, arrays), cell])
        case.crystals[name] = arrays
    case.labels = labels
    case.arguments = ["--property", "label"]
    header = ["material_id", "cif", "label"]
    delimiter = chance.choice((",", ",", ",", ";", "\t"))
    case.source = "x.tsv" if delimiter == "\t" else "x.csv"
    stream = io.StringIO()
    quoting = chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.writer(
        stream, delimiter=delimiter, quoting=quoting, lineterminator=chance.choice(("\n", "\r\n"))
    )
    writer.writerows([header, *rows])
    text = stream.getvalue()
    if case.kind == "fields":
        number = chance.randrange(case.rows)
        bad = io.StringIO()
        fields = chance.choice((rows[number][:-1], [*rows[number], "x"], [], ["x"]))
        csv.writer(bad, delimiter=delimiter, lineterminator="\n").writerow(fields)
        text += bad.getvalue()
        case.rows += 1 if fields else 0
    if case.kind == "lines":
        text = chance.choice(
            ("\ufeff" + text, "\n" + text, text + "\n\n", text.replace("material_id", " Material_ID "))
        )
    content = text.encode(chance.choice(("utf-8", "utf-8", "utf-8", "utf-16")))
    if case.kind == "damaged bytes":
        case.rows, case.crystals, case.labels = None, {}, None
        content = damaged(content, chance)
    case.files[case.source] = content
    return case


def clean_number(cell: str) -> float | None:
    """What a strange number may be cleaned to; anything else, classes among it, is wrong."""
    known = {"1.00 eV": 1.0, "1.00(2)": 1.0, "1,00": 1.0, "1,234.5": 1234.5, "\u22121.5": -1.5}
    return known.get(cell)


def cif_of(symbols: list[str], arrays: Arrays) -> str:
    """A crystal as pymatgen writes it."""
    from pymatgen.core import Lattice, Structure

    _, coords, lattice = arrays
    return str(Structure(Lattice(lattice), symbols, coords).to(fmt="cif"))


def make_json(index: int, chance: random.Random) -> Case:
    """Structures as dictionaries, in a list, by id, or one a line."""
    from fuzz.json_damage import change, dumped

    case = Case(format="json", index=index, kind="as it is", source="x.json", rows=chance.randint(1, 4))
    assert case.rows is not None
    entries: dict[str, object] = {}
    for row in range(case.rows):
        symbols, arrays = small_crystal(chance)
        name = f"mp-{row}"
        entries[name] = _json_entry(symbols, arrays, chance)
        case.crystals[name] = arrays
    if chance.random() < 0.6:
        name = chance.choice(list(entries))
        case.kind, entries[name] = change(entries[name], chance)
        case.crystals.pop(name)
    shape = chance.choice(("list", "object", "lines"))
    if shape == "object":
        text = dumped(entries)
    else:
        listed = [{"material_id": name, **_as_object(entry)} for name, entry in entries.items()]
        text = dumped(listed) if shape == "list" else "\n".join(map(dumped, listed))
    case.source = "x.jsonl" if shape == "lines" else "x.json"
    content = text.encode()
    if chance.random() < 0.2:
        case.kind, case.rows, case.crystals = "damaged bytes", None, {}
        content = damaged(content, chance)
    case.files[case.source] = content
    return case


def _as_object(entry: object) -> dict[str, object]:
    return {"structure": entry} if not isinstance(entry, dict) or "lattice" in entry else entry


def _json_entry(symbols: list[str], arrays: Arrays, chance: random.Random) -> object:
    from pymatgen.core import Lattice, Structure

    _, coords, lattice = arrays
    structure = Structure(Lattice(lattice), symbols, coords).as_dict()
    return chance.choice(
        (structure, {"structure": structure, "band_gap": 1.5}, {"cif": cif_of(symbols, arrays)})
    )
