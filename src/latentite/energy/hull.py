"""Energy above hull: how far a crystal lies above the best mixture of its competing phases.

The hull is built from a table (elements at 0, each row at its formation energy minus its energy above hull, which
is the height of the hull there) or from pymatgen entries. A query is a linear programme over the phases of its
chemical system: minimise sum_i w_i E_i subject to sum_i w_i x_i = x, w_i >= 0, with compositions x and energies E
per atom; equal to pymatgen's `PhaseDiagram`. What lies below the hull gets a negative number. Comes after
`references.py`, which makes formation energies of a potential's total energies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from latentite.crystal import CrystalBatch
from latentite.data.cif import ATOMIC_NUMBER, SYMBOLS
from latentite.energy.potential import TheoryLevel
from latentite.files import write_json

if TYPE_CHECKING:
    from pymatgen.entries.computed_entries import ComputedEntry

FORMAT = 1

Composition = tuple[tuple[int, int], ...]
"""Atomic numbers and whole amounts of one formula unit, by atomic number: `((8, 1), (12, 1))` for MgO."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HullQuery:
    """What the hull says at one composition."""

    energy: float | None
    """eV/atom of the hull; None (unknown) where the chemical system has no references."""
    num_competing: int
    """Phases of the chemical system and its parts that compete, the elements not counted."""
    decomposition: tuple[tuple[Composition, float], ...] = ()
    """Phases of the best mixture and their share of the atoms."""


class Hull:
    """The lowest energy per composition, and the hull above any composition of their elements.

    Args:
        phases: composition and formation energy (eV/atom); of several with one composition the lowest counts.
        theory: level of the energies; None where nobody knows.

    Elements that occur in `phases` are at 0 eV/atom, or below where a phase says so.
    """

    def __init__(
        self, phases: Iterable[tuple[Composition, float]], *, theory: TheoryLevel | None = None
    ) -> None:
        lowest: dict[Composition, float] = {}
        for composition, energy in phases:
            if not np.isfinite(energy):
                raise ValueError(
                    f"the formation energy of {formula(composition)} must be finite, got {energy}"
                )
            key = reduced(dict(composition))
            lowest[key] = min(energy, lowest.get(key, np.inf))
        for number in {number for key in lowest for number, _ in key}:
            element = ((number, 1),)
            lowest[element] = min(0.0, lowest.get(element, 0.0))
        self.theory = theory
        self.phases = dict(sorted(lowest.items()))
        self._by_system: dict[frozenset[int], list[Composition]] = {}
        for key in self.phases:
            self._by_system.setdefault(frozenset(number for number, _ in key), []).append(key)
        self._queries: dict[Composition, HullQuery] = {}

    def __len__(self) -> int:
        return len(self.phases)

    @property
    def sha256(self) -> str:
        """Of all phases and energies."""
        return hashlib.sha256(json.dumps(list(self.phases.items())).encode()).hexdigest()

    def query(self, composition: Composition) -> HullQuery:
        """The hull at a composition; unknown where an element occurs in no phase, or no compound competes.

        With no compound in its system, everything with a negative formation energy would look stable.
        """
        key = reduced(dict(composition))
        if key not in self._queries:
            self._queries[key] = self._solve(key)
        return self._queries[key]

    def _competing(self, elements: frozenset[int]) -> list[Composition]:
        """Phases made of some of these elements, by their systems: all parts, or all known, whichever is fewer."""
        if 2 ** len(elements) < len(self._by_system):
            ordered = sorted(elements)
            parts = (
                frozenset(e for bit, e in enumerate(ordered) if code >> bit & 1)
                for code in range(1, 2 ** len(ordered))
            )
            systems = [part for part in parts if part in self._by_system]
        else:
            systems = [system for system in self._by_system if system <= elements]
        return [key for system in systems for key in self._by_system[system]]

    def _solve(self, key: Composition) -> HullQuery:
        elements = frozenset(number for number, _ in key)
        competing = self._competing(elements)
        num_compounds = sum(len(phase) > 1 for phase in competing)
        has_elements = all(((number, 1),) in self.phases for number in elements)
        if not has_elements or (len(elements) > 1 and num_compounds == 0):
            return HullQuery(energy=None, num_competing=num_compounds)
        if len(elements) == 1:
            return HullQuery(energy=self.phases[key], num_competing=0, decomposition=((key, 1.0),))
        fractions = np.stack([_fractions(phase, elements) for phase in competing], axis=1)
        energies = np.array([self.phases[phase] for phase in competing])
        weights = _best_mixture(fractions, energies, _fractions(key, elements))
        used = np.flatnonzero(weights > 1e-9)
        return HullQuery(
            energy=float(weights @ energies),
            num_competing=num_compounds,
            decomposition=tuple((competing[k], float(weights[k])) for k in used),
        )

    def energy_above_hull(
        self, compositions: Sequence[Composition], formation_energies: Sequence[float]
    ) -> tuple[list[float | None], list[int]]:
        """eV/atom above (negative: below) the hull and number of competing phases, of each; None for unknown.

        Args:
            compositions: one per crystal.
            formation_energies: eV/atom, of the hull's own level of theory; NaN gives None.
        """
        queries = [self.query(composition) for composition in compositions]
        above = [
            None if query.energy is None or not np.isfinite(energy) else float(energy - query.energy)
            for query, energy in zip(queries, formation_energies, strict=True)
        ]
        return above, [query.num_competing for query in queries]

    def write(self, path: str | Path) -> None:
        """As JSON, atomically."""
        theory = None if self.theory is None else [self.theory.functional, self.theory.is_corrected]
        phases = [[formula(key), energy] for key, energy in self.phases.items()]
        value = {"latentite.hull": FORMAT, "sha256": self.sha256, "theory": theory, "phases": phases}
        write_json(path, value)

    @staticmethod
    def read(path: str | Path) -> Hull:
        """A hull that `write` has written.

        Raises:
            ValueError: for another file, or one whose content is not what its hash says.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} must be a hull written by latentite, got no JSON: {error}") from error
        if not isinstance(value, dict) or value.get("latentite.hull") != FORMAT:
            raise ValueError(f"{path} must be a hull of format {FORMAT}; build it again from its table")
        theory = value["theory"] and TheoryLevel(
            functional=value["theory"][0], is_corrected=value["theory"][1]
        )
        hull = Hull(((parse_formula(name), energy) for name, energy in value["phases"]), theory=theory)
        if hull.sha256 != value["sha256"]:
            raise ValueError(f"{path} has changed since it was written; build it again from its table")
        return hull


def hull_from_crystals(
    crystals: CrystalBatch,
    *,
    formation_energy: str = "formation_energy_per_atom",
    above_hull: str = "e_above_hull",
    theory: TheoryLevel | None = None,
) -> Hull:
    """A hull of the crystals of a data set (better of all its splits: missing phases make things look stable).

    Args:
        crystals: with the properties named next; rows where the first is NaN do not enter.
        formation_energy: name of the property, eV/atom.
        above_hull: name of the property, eV/atom. Where it is there, the row enters at its formation energy
            minus it; where it is not (or NaN), at its formation energy.
        theory: level of these energies.

    Raises:
        ValueError: when the formation energies are not there.
    """
    if formation_energy not in crystals.properties:
        raise ValueError(
            f"a hull needs the property {formation_energy!r}, got {', '.join(crystals.properties) or 'none'}"
        )
    energies = crystals.properties[formation_energy].double()
    if above_hull in crystals.properties:
        energies = energies - crystals.properties[above_hull].double().nan_to_num(0.0)
    rows = zip(compositions(crystals), energies.tolist(), strict=True)
    return Hull(((composition, energy) for composition, energy in rows if energy == energy), theory=theory)


def hull_from_table(
    paths: Sequence[str | Path],
    *,
    formula_column: str = "pretty_formula",
    formation_energy: str = "formation_energy_per_atom",
    above_hull: Sequence[str] = ("e_above_hull", "energy_above_hull"),
    theory: TheoryLevel | None = None,
) -> Hull:
    """A hull of one or several CSV files (plain or gzip); see `hull_from_crystals`.

    Raises:
        ValueError: naming the file and the column that it lacks.
    """
    import pandas as pd

    phases: list[tuple[Composition, float]] = []
    known: dict[str, Composition] = {}
    for path in paths:
        header = list(pd.read_csv(path, nrows=0).columns)
        for column in (formula_column, formation_energy):
            if column not in header:
                raise ValueError(f"{path} must have a column {column!r}, got {', '.join(header)}")
        height = next((name for name in above_hull if name in header), None)
        columns = [formula_column, formation_energy] + ([height] if height else [])
        table = pd.read_csv(
            path, usecols=columns, keep_default_na=False, na_values={c: [""] for c in columns[1:]}
        )
        energies = table[formation_energy].to_numpy(dtype=float)
        if height:
            energies = energies - np.nan_to_num(table[height].to_numpy(dtype=float))
        for name, energy in zip(table[formula_column].astype(str), energies.tolist(), strict=True):
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
    rows = []
    references: dict[int, float] = {}
    for entry in entries:
        counts = {element.Z: float(amount) for element, amount in entry.composition.items()}
        per_atom = float(entry.energy_per_atom)
        rows.append((counts, per_atom))
        if len(counts) == 1:
            (number,) = counts
            references[number] = min(per_atom, references.get(number, np.inf))
    missing = sorted({number for counts, _ in rows for number in counts} - references.keys())
    if missing:
        names = ", ".join(SYMBOLS[number - 1] for number in missing)
        raise ValueError(f"a hull of entries needs an entry of each element alone, got none of {names}")
    phases = []
    for counts, per_atom in rows:
        total = sum(counts.values())
        zero = sum(amount * references[number] for number, amount in counts.items()) / total
        phases.append((_whole(counts), per_atom - zero))
    return Hull(phases, theory=theory)


def compositions(crystals: CrystalBatch) -> list[Composition]:
    """Of each crystal, reduced."""
    width = len(SYMBOLS) + 1
    cells = (crystals.crystal_index * width + crystals.atomic_numbers).cpu().numpy()
    found, amounts = np.unique(cells, return_counts=True)
    counts: list[dict[int, int]] = [{} for _ in range(len(crystals))]
    for cell, amount in zip(found.tolist(), amounts.tolist(), strict=True):
        counts[cell // width][cell % width] = amount
    return [reduced(count) for count in counts]


def reduced(counts: dict[int, int]) -> Composition:
    """The smallest whole amounts in the same ratio.

    Raises:
        ValueError: for no atoms.
    """
    if not counts:
        raise ValueError("a composition needs at least one element, got none")
    divisor = reduce(gcd, counts.values())
    return tuple((number, amount // divisor) for number, amount in sorted(counts.items()))


def parse_formula(text: str) -> Composition:
    """Reduced composition of a formula such as `Nd(Mo3Se4)2`.

    Raises:
        ValueError: for what is no formula.
    """
    from pymatgen.core import Composition as PymatgenComposition

    try:
        parsed = PymatgenComposition(text)
        counts = {ATOMIC_NUMBER[element.symbol]: float(amount) for element, amount in parsed.items()}
    except (ValueError, KeyError) as error:  # pymatgen reads an unknown symbol as a dummy
        raise ValueError(f"a formula such as LiFePO4 was expected, got {text!r} ({error})") from error
    return _whole(counts)


def formula(composition: Composition) -> str:
    """Plain text, by atomic number: `O1Mg1`."""
    return "".join(f"{SYMBOLS[number - 1]}{amount}" for number, amount in composition)


def _whole(counts: dict[int, float]) -> Composition:
    """Amounts as whole numbers; fractions such as 0.5 are multiplied up."""
    for factor in (1, 2, 3, 4, 5, 6, 8, 10, 12, 100, 1000, 10_000):
        whole = {number: round(amount * factor) for number, amount in counts.items()}
        if all(abs(amount * factor - whole[n]) < 1e-6 * factor and whole[n] for n, amount in counts.items()):
            return reduced(whole)
    raise ValueError(f"amounts of atoms must be fractions of small whole numbers, got {counts}")


def _fractions(composition: Composition, elements: frozenset[int]) -> Float[np.ndarray, " element"]:
    amounts = dict(composition)
    values = np.array([amounts.get(number, 0) for number in sorted(elements)], dtype=float)
    return values / values.sum()


def _best_mixture(
    fractions: Float[np.ndarray, "element phase"],
    energies: Float[np.ndarray, " phase"],
    target: Float[np.ndarray, " element"],
) -> Float[np.ndarray, " phase"]:
    """Shares of the phases in the mixture of lowest energy."""
    from scipy.optimize import linprog

    solution = linprog(energies, A_eq=fractions, b_eq=target, bounds=(0, None), method="highs-ds")
    # The elements are always among the phases, so there is a mixture; and energies are bounded from below.
    assert solution.status == 0, solution.message
    weights = np.asarray(solution.x, dtype=float)
    # HiGHS keeps its constraints to 1e-7; the phases that it found, solved for exactly, keep them to rounding.
    used = np.flatnonzero(weights > 1e-9)
    exact = np.linalg.lstsq(fractions[:, used], target, rcond=None)[0]
    if (exact >= -1e-12).all() and np.abs(fractions[:, used] @ exact - target).max() < 1e-12:
        weights = np.zeros_like(weights)
        weights[used] = exact
    return weights
