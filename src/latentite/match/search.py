"""Which of many structures are duplicates, and which stand already in a reference: `find_matches`.

The verdicts are those of plain `StructureMatcher.fit`, reached with less work. Two filters, which cannot change
a verdict, come before it: structures of different reduced composition are never compared (the matcher's own
first test), nor those with different numbers of atoms in their reduced primitive cells (without supercells the
matcher asks for a one-to-one mapping). Each structure is reduced once (`reduced.py`), and pairs are compared on
arrays (`compare.py`). `fit` is not symmetric; here the earlier or the reference structure is always its first
argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import derive_rows
from latentite.match.reduced import Reduced, Store, reduce_crystals, structure_of
from latentite.match.settings import MatcherSettings, why_not_comparable
from latentite.match.tasks import Comparisons, Key, Members

__all__ = ["Matches", "Verdict", "find_matches", "structure_of"]


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


def find_matches(
    crystals: Sequence[CrystalArrays],
    reference: Sequence[CrystalArrays] = (),
    *,
    settings: Sequence[MatcherSettings],
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    reference_hashes: Sequence[str] | None = None,
    store: Store | None = None,
) -> Matches:
    """Duplicates among structures, and for each the first structure of a reference that it matches.

    Args:
        crystals: in any cell.
        reference: likewise.
        settings: tolerances; each gives its own verdicts.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more structures are done (the reduction of cells counts as a part of each).
        reference_hashes: of the content of each structure of the reference, when a store is given.
        store: keeps the reduced cells of the reference between runs.
    """
    comparisons = Comparisons(settings=tuple(settings), workers=workers)
    formulas, known_formulas = _formulas(crystals), _formulas(reference)
    members = Counter(formulas)
    known = [place for place, formula in enumerate(known_formulas) if formula in members]
    shared = {known_formulas[place] for place in known}
    needed = [place for place, formula in enumerate(formulas) if members[formula] > 1 or formula in shared]
    progress = _Progress(len(crystals), steps=len(known) + 2 * len(needed) + len(crystals), advance=advance)

    reduced = reduce_crystals([crystals[i] for i in needed], workers=workers, advance=progress.add)
    others = reduce_crystals(
        [reference[i] for i in known],
        hashes=None if reference_hashes is None else [reference_hashes[i] for i in known],
        store=store,
        workers=workers,
        advance=progress.add,
    )
    alone = sorted(set(range(len(crystals))).difference(needed))
    failed = _failures(needed, reduced)
    progress.add(len(alone) + len(failed))
    failures = failed | {
        i: reason
        for i in alone
        if (reason := why_not_comparable(crystals[i].frac_coords, crystals[i].lattice)) is not None
    }

    queries = _buckets(needed, reduced, formulas)
    candidates = _buckets(known, others, known_formulas)
    matched = comparisons.first_matches(queries, candidates, progress.add)
    progress.add(len(needed) - sum(len(queries[key]) for key in queries if key in candidates))
    duplicates = comparisons.duplicates(queries, progress.add)

    def verdict(i: int, name: str) -> Verdict | None:
        if i in failures:
            return None
        return Verdict(duplicate_of=duplicates.get(i, {}).get(name), reference=matched.get(i, {}).get(name))

    return Matches(
        verdicts={one.name: [verdict(i, one.name) for i in range(len(crystals))] for one in settings},
        failures=dict(sorted(failures.items())),
        reference_failures=_failures(known, others),
    )


def _formulas(crystals: Sequence[CrystalArrays]) -> list[str]:
    return [str(row["composition"]) for row in derive_rows(("composition",), crystals)]


def _failures(positions: Sequence[int], reduced: Sequence[Reduced]) -> dict[int, str]:
    """Why crystals have no reduced cell, by position."""
    return {i: found for i, found in zip(positions, reduced, strict=True) if isinstance(found, str)}


def _buckets(
    positions: Sequence[int], reduced: Sequence[Reduced], formulas: Sequence[str]
) -> dict[Key, Members]:
    """Reduced crystals with their positions, by composition and number of atoms."""
    buckets: dict[Key, Members] = {}
    for position, crystal in zip(positions, reduced, strict=True):
        if not isinstance(crystal, str):
            key = formulas[position], crystal.num_atoms
            buckets.setdefault(key, []).append((position, crystal))
    return buckets


class _Progress:
    """Tells whole structures of work that is counted in smaller steps."""

    def __init__(self, count: int, *, steps: int, advance: Callable[[int], None]) -> None:
        self._count, self._steps, self._advance = count, max(steps, 1), advance
        self._done = self._told = 0

    def add(self, steps: int) -> None:
        """So many more steps are done."""
        self._done += steps
        if (new := self._count * self._done // self._steps - self._told) > 0:
            self._told += new
            self._advance(new)
