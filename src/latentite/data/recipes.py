"""Named data sets that are made from public ones: which of their rows, and in which split.

Rows are kept as they stand in the public tables. A formula stands in one split only, so that what is validated or
tested on has not been seen in training in another polymorph.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from latentite.formulas import parse_formula, usual_formula

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
Tables: TypeAlias = "Mapping[str, Mapping[str, Path]]"
"""The table of each split of each public data set."""
Row: TypeAlias = "dict[str, str]"

_HELD_OUT = 0.075
"""Share of the formulas of MPTS-52 alone that are validated on, and of those that are tested on."""
_MIX_COLUMNS = (
    "material_id",
    "reduced_formula",
    "cif",
    "formation_energy_per_atom",
    "band_gap",
    "e_above_hull",
    "year",
    "source",
)
_HULL_COLUMNS = ("e_above_hull", "energy_above_hull")
_FORMULA = re.compile(r"^_chemical_formula_sum\s+(?:'([^'\n]+)'|\"([^\"\n]+)\"|(\S+))", re.MULTILINE)


def make_mp_20_biternary(tables: Tables, folder: Path) -> dict[str, int]:
    """Rows of MP-20 with two or three elements, in its own splits.

    Rows of its val and test whose formula stands in an earlier split are left out, and counted in the log.

    Args:
        tables: those of `mp_20`.
        folder: where the three tables are written.

    Returns:
        The rows of each split.

    Raises:
        ValueError: for a row without a formula.
    """
    seen: set[str] = set()
    counts: dict[str, int] = {}
    for split in SPLITS:
        left_out: Counter[str] = Counter()
        kept: list[Row] = []
        formulas: set[str] = set()
        for row in _rows(tables["mp_20"][split]):
            formula, num_elements = _formula(row, tables["mp_20"][split])
            if num_elements not in (2, 3):
                left_out["other numbers of elements"] += 1
            elif formula in seen:
                left_out["formula in an earlier split"] += 1
            else:
                kept.append(row)
                formulas.add(formula)
        seen |= formulas
        counts[split] = _write(folder / f"{split}.csv", kept)
        _log("mp_20_biternary", split, counts[split], left_out)
    return counts


def make_mp_mix(tables: Tables, folder: Path) -> dict[str, int]:
    """The rows of `mp_20_biternary` and those of MPTS-52 that it lacks, split by formula.

    A row of MPTS-52 goes where `mp_20_biternary` has its formula; other formulas go to val and test by chance, which is
    their own sha256. The column `source` says where a row is from; there is no band gap in MPTS-52.

    Args:
        tables: those of `mp_20_biternary` and `mpts_52`.
        folder: where the three tables are written.

    Returns:
        The rows of each split.

    Raises:
        ValueError: for a row without a formula.
    """
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    split_of: dict[str, str] = {}
    ids: set[str] = set()
    for split in SPLITS:
        path = tables["mp_20_biternary"][split]
        for row in _rows(path):
            formula, _ = _formula(row, path)
            split_of[formula] = split
            ids.add(row["material_id"])
            rows[split].append(_mix_row(row, formula, "mp_20_biternary"))
    left_out: Counter[str] = Counter()
    for path in tables["mpts_52"].values():
        for row in _rows(path):
            formula, _ = _formula(row, path)
            if row["material_id"] in ids:
                left_out["rows of MPTS-52 that were there already"] += 1
                continue
            ids.add(row["material_id"])
            split = split_of.setdefault(formula, _split_by_chance(formula))
            rows[split].append(_mix_row(row, formula, "mpts_52"))
    counts = {split: _write(folder / f"{split}.csv", rows[split]) for split in SPLITS}
    _log("mp_mix", "all splits", sum(counts.values()), left_out)
    return counts


RECIPES: dict[str, Callable[[Tables, Path], dict[str, int]]] = {
    "mp_20_biternary": make_mp_20_biternary,
    "mp_mix": make_mp_mix,
}
"""By the name of what they make."""


def _rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV, gzipped or not.

    Raises:
        ValueError: for another kind of file, or one without a column that is needed.
    """
    if not path.name.endswith((".csv", ".csv.gz")):
        raise ValueError(f"{path} must be a .csv or .csv.gz to make another data set of it; convert it")
    csv.field_size_limit(max(2**30, csv.field_size_limit()))  # CIFs can be longer than the default of 128 KiB
    with (
        gzip.open(path, "rt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8", newline="") as file
    ):
        reader = csv.DictReader(file)
        missing = {"material_id", "cif"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} must have a column {sorted(missing)[0]}, got {reader.fieldnames}")
        yield from reader


def _formula(row: Row, path: Path) -> tuple[str, int]:
    """Reduced formula of a row by its CIF, and its number of elements."""
    match = _FORMULA.search(row["cif"])
    if match is None:
        raise ValueError(
            f"{path}: the CIF of {row['material_id']} must have a _chemical_formula_sum, as the public table has"
        )
    composition = parse_formula("".join(filter(None, match.groups())).replace(" ", ""))
    return usual_formula(composition), len(composition)


def _mix_row(row: Row, formula: str, source: str) -> Row:
    hull = next((row[name] for name in _HULL_COLUMNS if row.get(name)), "")
    own = {"reduced_formula": formula, "e_above_hull": hull, "source": source}
    return {name: own.get(name) or row.get(name) or "" for name in _MIX_COLUMNS}


def _split_by_chance(formula: str) -> str:
    """The same for a formula everywhere and always."""
    chance = int.from_bytes(hashlib.sha256(formula.encode()).digest()[:8], "big") / 2**64
    return "val" if chance < _HELD_OUT else "test" if chance < 2 * _HELD_OUT else "train"


def _write(path: Path, rows: list[Row]) -> int:
    """Write a table; the number of its rows.

    Raises:
        ValueError: when none is left.
    """
    if not rows:
        raise ValueError(
            f"{path.name} must have a row, got none: the tables that it is made from have none for it"
        )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def _log(name: str, split: str, num_kept: int, left_out: Counter[str]) -> None:
    reasons = "".join(f" + {count:,} left out ({reason})" for reason, count in left_out.items())
    log.info(
        "%s, %s: %s rows = %s kept%s",
        name,
        split,
        f"{num_kept + left_out.total():,}",
        f"{num_kept:,}",
        reasons,
    )
