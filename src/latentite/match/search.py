"""Which of many structures are duplicates, and which stand already in a reference: `find_matches`.

The verdicts are those of plain `StructureMatcher.fit`, reached with less work. Two filters, which cannot change
a verdict, come before it: structures of different reduced composition are never compared (the matcher's own
first test), nor those with different numbers of atoms in their reduced primitive cells (without supercells the
matcher asks for a one-to-one mapping). Each structure is reduced once for all its comparisons and all settings.
`fit` is not symmetric; here the earlier or the reference structure is always its first argument.

Comes after `settings.py` and `data/`; `evaluation/` makes columns of the verdicts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from latentite.data.cif import SYMBOLS, Arrays
from latentite.data.properties import derive_rows
from latentite.match.settings import MatcherSettings, is_comparable
from latentite.processes import map_in_order

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the matcher says of one structure, for one of its settings."""

    duplicate_of: int | None
    """The first earlier structure that it matches and that is no duplicate itself."""
    reference: int | None
    """The first structure of the reference that it matches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches:
    """The outcome of `find_matches`, in the order of the structures."""

    verdicts: dict[str, list[Verdict | None]]
    """By name of the settings; None for a structure that cannot be compared."""
    failures: dict[int, str]
    """Why a structure cannot be compared."""
    reference_failures: dict[int, str]
    """The same for structures of the reference, among those that were needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """All structures of one composition."""

    positions: list[int]
    crystals: list[Arrays]
    reference_positions: list[int]
    reference: list[Arrays]

    @property
    def cost(self) -> int:
        """Upper bound of the number of comparisons."""
        count = len(self.crystals)
        return count * (count - 1) // 2 + count * len(self.reference)


def find_matches(
    crystals: Sequence[Arrays],
    reference: Sequence[Arrays] = (),
    *,
    settings: Sequence[MatcherSettings],
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Matches:
    """Duplicates among structures, and for each the first structure of a reference that it matches.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
        reference: likewise.
        settings: tolerances; each gives its own verdicts.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more structures are done.
    """
    tasks = _tasks(crystals, reference)
    tasks.sort(key=lambda task: -task.cost)
    done = map_in_order(
        partial(_compare, settings=tuple(settings)),
        tasks,
        workers=workers,
        advance=lambda task: advance(len(task.positions)),
    )
    verdicts: dict[str, list[Verdict | None]] = {one.name: [None] * len(crystals) for one in settings}
    failures: dict[int, str] = {}
    reference_failures: dict[int, str] = {}
    for found in done:
        for name, column in found.verdicts.items():
            for position, verdict in column:
                verdicts[name][position] = verdict
        failures |= found.failures
        reference_failures |= found.reference_failures
    return Matches(
        verdicts=verdicts,
        failures=dict(sorted(failures.items())),
        reference_failures=dict(sorted(reference_failures.items())),
    )


def structure_of(crystal: Arrays) -> Structure:
    """The pymatgen structure of arrays, atoms in order."""
    from pymatgen.core import Lattice, Structure

    numbers, coords, lattice = crystal
    return Structure(Lattice(lattice), [SYMBOLS[number - 1] for number in numbers.tolist()], coords)


def _tasks(crystals: Sequence[Arrays], reference: Sequence[Arrays]) -> list[_Task]:
    tasks: dict[str, _Task] = {}
    for position, formula in enumerate(_formulas(crystals)):
        task = tasks.setdefault(
            formula, _Task(positions=[], crystals=[], reference_positions=[], reference=[])
        )
        task.positions.append(position)
        task.crystals.append(crystals[position])
    for position, formula in enumerate(_formulas(reference)):
        if formula in tasks:
            tasks[formula].reference_positions.append(position)
            tasks[formula].reference.append(reference[position])
    return list(tasks.values())


def _formulas(crystals: Sequence[Arrays]) -> list[str]:
    return [str(row["composition"]) for row in derive_rows(("composition",), crystals)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    verdicts: dict[str, list[tuple[int, Verdict]]]
    failures: dict[int, str]
    reference_failures: dict[int, str]


def _compare(task: _Task, *, settings: tuple[MatcherSettings, ...]) -> _Found:
    """All comparisons within one composition."""
    structures, failures = _comparable(task.positions, task.crystals)
    reference, reference_failures = _comparable(task.reference_positions, task.reference)
    if len(structures) + len(reference) > 1 and structures:  # else there is nothing to compare
        structures, unreducible = _reduce_all(structures)
        reference, reference_unreducible = _reduce_all(reference)
        failures |= unreducible
        reference_failures |= reference_unreducible
    verdicts: dict[str, list[tuple[int, Verdict]]] = {}
    for one in settings:
        matcher = one.build()
        distinct: dict[int, Structure] = {}
        column: list[tuple[int, Verdict]] = []
        for position, structure in structures.items():
            duplicate_of = _first_match(matcher, distinct, structure)
            if duplicate_of is None:
                distinct[position] = structure
            known = _first_match(matcher, reference, structure)
            column.append((position, Verdict(duplicate_of=duplicate_of, reference=known)))
        verdicts[one.name] = column
    return _Found(verdicts=verdicts, failures=failures, reference_failures=reference_failures)


def _first_match(
    matcher: StructureMatcher, candidates: dict[int, Structure], structure: Structure
) -> int | None:
    for position, candidate in candidates.items():
        if len(candidate) == len(structure) and matcher.fit(
            candidate, structure, skip_structure_reduction=True
        ):
            return position
    return None


def _comparable(
    positions: Sequence[int], crystals: Sequence[Arrays]
) -> tuple[dict[int, Structure], dict[int, str]]:
    """Structures by position, and for those that are no crystals the reason."""
    structures: dict[int, Structure] = {}
    failures: dict[int, str] = {}
    for position, crystal in zip(positions, crystals, strict=True):
        structure = structure_of(crystal)
        if is_comparable(structure):
            structures[position] = structure
        else:
            volume = structure.volume / len(structure)
            failures[position] = f"not a crystal that can be compared: {volume:.3g} Å^3 per atom"
    return structures, failures


def _reduce_all(structures: dict[int, Structure]) -> tuple[dict[int, Structure], dict[int, str]]:
    """Reduced structures by position, and for those that have no reduced cell the reason."""
    reduced: dict[int, Structure] = {}
    failures: dict[int, str] = {}
    for position, structure in structures.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reduced[position] = _reduced(structure)
        except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError) as error:
            failures[position] = f"its cell cannot be reduced: {error or type(error).__name__}"
    return reduced, failures


def _reduced(structure: Structure) -> Structure:
    """Niggli cell, then primitive cell, as the matcher itself does before each comparison."""
    return structure.get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
