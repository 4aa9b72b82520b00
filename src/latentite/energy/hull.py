"""Energy above hull: how far a crystal lies above the best mixture of its competing phases.

A hull is made of crystals with formation energies (`hull_from_crystals`: the elements stand at 0 and each row at its
formation energy minus its energy above hull, which is the height of the hull there) or of a JSON file
(`hull_from_json`). A query is a linear programme over the phases of its
chemical system: minimise sum_i w_i E_i subject to sum_i w_i x_i = x, w_i >= 0, with compositions x and energies E per
atom; equal to pymatgen's `PhaseDiagram`. What lies below the hull gets a negative number.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from latentite.base.files import parse_json, write_json
from latentite.crystal import CrystalBatch
from latentite.data.kinds import ColumnKind, Remark, read_column
from latentite.data.readers.records import Value
from latentite.elements import ATOMIC_NUMBER, SYMBOLS
from latentite.energy.potential import TheoryLevel
from latentite.formulas import Composition, compositions, parse_formula, plain_formula, reduced, whole_amounts

FORMAT = 2
"""2: the hash covers the level of theory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HullQuery:
    """The hull at one composition."""

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
                    f"the formation energy of {plain_formula(composition)} must be finite, got {energy}"
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
        """Of all phases and energies and of their level of theory: equal numbers of two levels are two hulls."""
        return hashlib.sha256(
            json.dumps([self._plain_theory, list(self.phases.items())]).encode()
        ).hexdigest()

    @property
    def _plain_theory(self) -> list[str | bool | None] | None:
        return None if self.theory is None else [self.theory.functional, self.theory.is_corrected]

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
        phases = [[plain_formula(key), energy] for key, energy in self.phases.items()]
        value: dict[str, Any] = {
            "latentite.hull": FORMAT,
            "sha256": self.sha256,
            "theory": self._plain_theory,
        }
        value["phases"] = phases
        write_json(path, value)

    @staticmethod
    def read(path: str | Path) -> Hull:
        """A hull that `write` has written.

        Raises:
            ValueError: for another file, or one whose content is not what its hash says.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            value = parse_json(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} must be a hull written by latentite, got no JSON: {error}") from error
        if not isinstance(value, dict) or value.get("latentite.hull") != FORMAT:
            raise ValueError(f"{path} must be a hull of format {FORMAT}; build it again from its table")
        try:
            level, phases, sha256 = value["theory"], value["phases"], value["sha256"]
            theory = level and TheoryLevel(functional=level[0], is_corrected=level[1])
            hull = Hull(((parse_formula(name), energy) for name, energy in phases), theory=theory)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); build it again from its table") from error
        if hull.sha256 != sha256:
            raise ValueError(f"{path} has changed since it was written; build it again from its table")
        return hull


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
