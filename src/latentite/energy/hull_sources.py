"""Hulls of what users have: crystals with formation energies, CSV tables, pymatgen entries, JSON files.

In a table the elements stand at 0 and each row at its formation energy minus its energy above hull, which is the
height of the hull there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from latentite.base.files import parse_json
from latentite.crystal import CrystalBatch
from latentite.data.kinds import ColumnKind, Remark, read_column
from latentite.data.readers.records import Value
from latentite.elements import ATOMIC_NUMBER, SYMBOLS
from latentite.energy.hull import Hull
from latentite.energy.potential import TheoryLevel
from latentite.formulas import Composition, compositions, parse_formula, whole_amounts

if TYPE_CHECKING:
    from pymatgen.entries.computed_entries import ComputedEntry

log = logging.getLogger(__name__)

ABOVE_HULL = ("energy_above_hull", "e_above_hull")
"""Names of one column in the tables of this field; our data sets use the first."""


def read_energies(
    cells: Sequence[Value], name: str, *, where: Callable[[int], str]
) -> Float[np.ndarray, " cell"]:
    """A column of energies, NaN where one is missing.

    Args:
        cells: as they stand in the table, of all its files: what they are is decided together.
        name: of the column.
        where: says where a cell is.

    Raises:
        ValueError: naming the first cell that is no number.
    """
    column = read_column(cells)
    if column.kind in (ColumnKind.NUMBERS, ColumnKind.EMPTY):
        for remark in column.remarks:
            log.warning("%s: %r in %s: %s", name, remark.text, where(remark.position), remark.words)
        return column.numbers
    problem = column.problem
    if problem is None:
        position, text = next(
            (k, cell) for k, cell in enumerate(cells) if isinstance(cell, str) and cell.strip()
        )
        problem = Remark(position=position, text=text, words="no cell of this column is a number")
    raise ValueError(
        f"{name} must be numbers (eV/atom), got {problem.text!r} in {where(problem.position)}: {problem.words}; "
        "correct this cell, or empty it where the energy is not known"
    )


def hull_from_crystals(
    crystals: CrystalBatch,
    *,
    formation_energy: str = "formation_energy_per_atom",
    above_hull: Sequence[str] = ABOVE_HULL,
    theory: TheoryLevel | None = None,
) -> Hull:
    """A hull of the crystals of a data set (better of all its splits: missing phases make things look stable).

    Args:
        crystals: with the properties named next; rows where the first is NaN do not enter.
        formation_energy: name of the property, eV/atom.
        above_hull: names of the property, eV/atom; the first that is there counts. The row enters at its
            formation energy minus it; where there is none (or NaN), at its formation energy.
        theory: level of these energies.

    Raises:
        ValueError: when the formation energies are not there.
    """
    if formation_energy not in crystals.properties:
        raise ValueError(
            f"a hull needs the property {formation_energy!r}, got {', '.join(crystals.properties) or 'none'}"
        )
    energies = crystals.properties[formation_energy].double()
    height = next((name for name in above_hull if name in crystals.properties), None)
    if height is not None:
        energies = energies - crystals.properties[height].double().nan_to_num(0.0)
    rows = zip(compositions(crystals), energies.tolist(), strict=True)
    return Hull(((composition, energy) for composition, energy in rows if energy == energy), theory=theory)


def hull_from_table(
    paths: Sequence[str | Path],
    *,
    formula_column: str = "pretty_formula",
    formation_energy: str = "formation_energy_per_atom",
    above_hull: Sequence[str] = ABOVE_HULL,
    theory: TheoryLevel | None = None,
) -> Hull:
    """A hull of one or several CSV files (plain or gzip); see `hull_from_crystals`.

    Raises:
        ValueError: naming the file and the column that it lacks, or the first energy that is no number.
    """
    import pandas as pd

    tables: list[pd.DataFrame] = []
    places: list[str] = []
    for path in paths:
        header = list(pd.read_csv(path, nrows=0).columns)
        for column in (formula_column, formation_energy):
            if column not in header:
                raise ValueError(f"{path} must have a column {column!r}, got {', '.join(header)}")
        height = next((name for name in above_hull if name in header), None)
        columns = {formula_column: "formula", formation_energy: "energy"} | (
            {height: "height"} if height else {}
        )
        table = pd.read_csv(path, usecols=list(columns), dtype=str, keep_default_na=False).rename(
            columns=columns
        )
        tables.append(table.reindex(columns=["formula", "energy", "height"], fill_value=""))
        places += [f"row {row} of {Path(path).name}" for row in range(len(table))]
    joined = pd.concat(tables, ignore_index=True)
    energies = read_energies(joined["energy"].tolist(), formation_energy, where=places.__getitem__)
    heights = read_energies(joined["height"].tolist(), above_hull[0], where=places.__getitem__)
    if num_missing := int(np.isnan(energies).sum()):
        log.warning(
            "%d of %d rows have no %s and are missing from the hull; fewer phases make everything look stable",
            num_missing, len(energies), formation_energy,
        )  # fmt: skip
    known: dict[str, Composition] = {}
    phases: list[tuple[Composition, float]] = []
    for name, energy in zip(
        joined["formula"].tolist(), (energies - np.nan_to_num(heights)).tolist(), strict=True
    ):
        if energy == energy:
            if name not in known:
                known[name] = parse_formula(name)
            phases.append((known[name], energy))
    return Hull(phases, theory=theory)


def hull_from_entries(entries: Sequence[ComputedEntry], *, theory: TheoryLevel | None = None) -> Hull:
    """A hull of pymatgen entries with total energies (eV); each element's lowest entry is its reference.

    Raises:
        ValueError: naming an element of a compound that has no entry of its own.
    """
    rows = [
        ({element.Z: float(amount) for element, amount in entry.composition.items()}, entry.energy_per_atom)
        for entry in entries
    ]
    return _hull_of_totals(rows, theory)


def hull_from_json(path: str | Path, *, theory: TheoryLevel | None = None) -> Hull:
    """A hull of a JSON file: one that `Hull.write` has written, pymatgen's `PhaseDiagram.as_dict()`, or a list of
    entries `{"composition": {"Li": 2, "O": 1}, "energy": -15.0}` (eV for that many atoms; `correction` is added).

    The file is read as plain numbers; no class that it names is imported.

    Args:
        path: of the file.
        theory: level of the energies, where the file does not say; only hulls of our own do.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the file, the entry and what is wrong with it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"a hull was expected at {path}, and there is no such file")
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a hull as JSON, got something else: {error}") from error
    if isinstance(content, dict) and "latentite.hull" in content:
        hull = Hull.read(path)
        if None not in (theory, hull.theory) and theory != hull.theory:
            raise ValueError(
                f"{path} holds energies of {hull.theory}, not of {theory}; leave the level of theory out"
            )
        return hull if hull.theory is not None else Hull(hull.phases.items(), theory=theory)
    if isinstance(content, dict):
        content = content.get("computed_data", content)
        content = content.get("all_entries", content.get("entries"))
    if not isinstance(content, list) or not content:
        raise ValueError(
            f"{path} must hold a hull of latentite, a pymatgen phase diagram or a list of entries, got none of these"
        )
    rows = [_plain_entry(path, position, entry) for position, entry in enumerate(content)]
    try:
        return _hull_of_totals(rows, theory)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _plain_entry(path: str | Path, position: int, entry: Any) -> tuple[dict[int, float], float]:
    """Amounts by atomic number and energy per atom of an entry as pymatgen writes it."""
    try:
        counts = {
            ATOMIC_NUMBER[symbol]: float(amount) for symbol, amount in entry["composition"].items() if amount
        }
        if min(counts.values(), default=0.0) <= 0.0:
            raise ValueError("amounts of atoms must be above 0")
        energy = float(entry["energy"]) + float(entry.get("correction") or 0.0)
        return counts, energy / sum(counts.values())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: entry {position} must have a composition such as {{'Li': 2, 'O': 1}} and an energy in eV "
            f"({type(error).__name__}: {error})"
        ) from error


def _hull_of_totals(rows: Sequence[tuple[Mapping[int, float], float]], theory: TheoryLevel | None) -> Hull:
    """A hull of amounts by atomic number and total energies, eV/atom."""
    references: dict[int, float] = {}
    for counts, per_atom in rows:
        if len(counts) == 1:
            (number,) = counts
            references[number] = min(per_atom, references.get(number, np.inf))
    missing = sorted({number for counts, _ in rows for number in counts} - references.keys())
    if missing:
        names = ", ".join(SYMBOLS[number - 1] for number in missing)
        raise ValueError(f"a hull of entries needs an entry of each element alone, got none of {names}")
    phases = []
    for counts, per_atom in rows:
        zero = sum(amount * references[number] for number, amount in counts.items()) / sum(counts.values())
        phases.append((whole_amounts(dict(counts)), per_atom - zero))
    return Hull(phases, theory=theory)
