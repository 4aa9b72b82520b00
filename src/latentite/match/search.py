"""Duplicates among many structures, and those that stand already in a reference: `find_matches`.

The verdicts are those of plain `StructureMatcher.fit`, reached with less work. Two filters, which cannot change
a verdict, come before it: structures of different reduced composition are never compared (the matcher's own
first test), nor those with different numbers of atoms in their reduced primitive cells (without supercells the
matcher asks for a one-to-one mapping). Each structure is reduced once (`reduced.py`), and pairs are compared on
arrays (`compare.py`). `fit` is not symmetric; here the earlier or the reference structure is always its first
argument.

Duplicates are sequential by nature: a structure is compared with the distinct ones before it. Many structures of one
composition are walked in blocks: all of a block against the distinct ones so far, in parallel, then those that are
left among each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from latentite.base.machine import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import derive_rows
from latentite.match.compare import Comparable, Comparer
from latentite.match.reduced import MatcherSettings, Reduced, Store, reduce_crystals, why_not_comparable

_BLOCK = 128
"""Structures of one composition that are walked at a time; the memory that a run takes does not depend on more."""
_PAIRS = 2000
"""Comparisons in one task, about two seconds; smaller ones would mean more messages, larger ones rare progress."""

_FEWEST = 8
"""Structures in a task, where there are so many candidates that these alone would be long to send."""

Key = tuple[str, int]
"""Reduced formula and number of atoms: only crystals that share it are compared."""
Members = list[tuple[int, CrystalArrays]]
"""Positions and reduced crystals, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """Structures of one composition and size, each to be compared with candidates in their order."""

    positions: tuple[int, ...]
    crystals: tuple[CrystalArrays, ...]
    sought: tuple[frozenset[str], ...]
    """Names of the settings for which each structure needs a verdict."""
    candidates: tuple[tuple[int, CrystalArrays, frozenset[str]], ...] = ()
    """Position, crystal, and the settings that it counts for."""
    grows: bool = False
    """A structure without a match becomes a candidate for those after it."""

    @property
    def cost(self) -> int:
        """Upper bound of the number of comparisons."""
        count = len(self.crystals)
        return count * len(self.candidates) + (count * (count - 1) // 2 if self.grows else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparisons:
    """Comparisons of buckets of crystals under some settings, in several processes."""

    settings: tuple[MatcherSettings, ...]
    workers: int | None

    @property
    def names(self) -> frozenset[str]:
        """Of the settings."""
        return frozenset(one.name for one in self.settings)

    def first_matches(
        self,
        queries: dict[Key, Members],
        candidates: dict[Key, Members],
        advance: Callable[[int], None],
    ) -> dict[int, dict[str, int]]:
        """For each query and name of settings the first candidate that it matches, where there is one.

        `advance` hears of every query that has candidates.
        """
        tasks: list[_Task] = []
        for key, members in queries.items():
            others = tuple((position, crystal, self.names) for position, crystal in candidates.get(key, ()))
            if others:
                tasks += self._split(members, [self.names] * len(members), others)
        return self._run(tasks, advance=advance)

    def duplicates(
        self, queries: dict[Key, Members], advance: Callable[[int], None]
    ) -> dict[int, dict[str, int]]:
        """For each structure and name of settings the first distinct one before it that it matches."""
        small = [members for members in queries.values() if len(members) <= _BLOCK]
        firsts = self._run(
            [self._among(members, [self.names] * len(members)) for members in small], advance=advance
        )
        for members in queries.values():
            if len(members) > _BLOCK:
                firsts |= self._walk_blocks(members, advance)
        return firsts

    def _walk_blocks(self, members: Members, advance: Callable[[int], None]) -> dict[int, dict[str, int]]:
        firsts: dict[int, dict[str, int]] = {}
        distinct: list[tuple[int, CrystalArrays, frozenset[str]]] = []
        for start in range(0, len(members), _BLOCK):
            block = members[start : start + _BLOCK]
            known = self._run(self._split(block, [self.names] * len(block), tuple(distinct)))
            left = [(place, self.names - set(known.get(place[0], ()))) for place in block]
            left = [(place, names) for place, names in left if names]
            new = self._run([self._among([place for place, _ in left], [names for _, names in left])])
            for (position, crystal), names in left:
                if remaining := names - set(new.get(position, ())):
                    distinct.append((position, crystal, remaining))
            for position, _ in block:
                firsts[position] = known.get(position, {}) | new.get(position, {})
            advance(len(block))
        return firsts

    def _split(
        self,
        members: Members,
        sought: Sequence[frozenset[str]],
        candidates: tuple[tuple[int, CrystalArrays, frozenset[str]], ...],
    ) -> list[_Task]:
        """Tasks of about `_PAIRS` comparisons."""
        step = max(_PAIRS // max(len(candidates), 1), _FEWEST)
        return [
            _task(members[start : start + step], sought[start : start + step], candidates=candidates)
            for start in range(0, len(members), step)
        ]

    def _among(self, members: Members, sought: Sequence[frozenset[str]]) -> _Task:
        return _task(members, sought, grows=True)

    def _run(
        self, tasks: Sequence[_Task], *, advance: Callable[[int], None] = lambda count: None
    ) -> dict[int, dict[str, int]]:
        batches: list[list[_Task]] = []
        room = 0
        for task in sorted(tasks, key=lambda task: -task.cost):
            if room < 1:
                batches.append([])
                room = _PAIRS
            batches[-1].append(task)
            room -= task.cost + 1
        done = map_in_order(
            partial(_compare_batch, settings=self.settings),
            batches,
            workers=self.workers,
            advance=lambda batch: advance(sum(len(task.positions) for task in batch)),
        )
        return {position: first for part in done for position, first in part.items()}


def _task(
    members: Members,
    sought: Sequence[frozenset[str]],
    *,
    candidates: tuple[tuple[int, CrystalArrays, frozenset[str]], ...] = (),
    grows: bool = False,
) -> _Task:
    return _Task(
        positions=tuple(position for position, _ in members),
        crystals=tuple(crystal for _, crystal in members),
        sought=tuple(sought),
        candidates=candidates,
        grows=grows,
    )


def _compare_batch(
    tasks: Sequence[_Task], *, settings: tuple[MatcherSettings, ...]
) -> dict[int, dict[str, int]]:
    comparer = Comparer(settings)
    return {position: first for task in tasks for position, first in _compare(task, comparer).items()}


def _compare(task: _Task, comparer: Comparer) -> dict[int, dict[str, int]]:
    """Of each structure, by name of the settings, the first candidate that it matches."""
    candidates = [(position, Comparable(crystal), names) for position, crystal, names in task.candidates]
    firsts: dict[int, dict[str, int]] = {}
    for position, crystal, sought in zip(task.positions, task.crystals, task.sought, strict=True):
        own = Comparable(crystal)
        first: dict[str, int] = {}
        for candidate, other, names in candidates:
            missing = (sought & names).difference(first)
            if missing:
                first |= dict.fromkeys(comparer.matching(other, own, missing), candidate)
                if len(first) == len(sought):
                    break
        if first:
            firsts[position] = first
        if task.grows and len(first) < len(sought):
            candidates.append((position, own, sought.difference(first)))
    return firsts


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The matcher's verdict on one structure, for one of its settings."""

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
    """Reason for which a structure cannot be compared."""
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
    needed, known = _with_company(formulas, known_formulas)
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


def _with_company(formulas: Sequence[str], known_formulas: Sequence[str]) -> tuple[list[int], list[int]]:
    """Structures that are not the only ones with their formula, and those of the reference with one of all formulas."""
    members = Counter(formulas)
    known = [place for place, formula in enumerate(known_formulas) if formula in members]
    shared = {known_formulas[place] for place in known}
    return [i for i, formula in enumerate(formulas) if members[formula] > 1 or formula in shared], known


def _formulas(crystals: Sequence[CrystalArrays]) -> list[str]:
    return [str(row["composition"]) for row in derive_rows(("composition",), crystals)]


def _failures(positions: Sequence[int], reduced: Sequence[Reduced]) -> dict[int, str]:
    """Reason for which a crystal has no reduced cell, by position."""
    return {i: value for i, value in zip(positions, reduced, strict=True) if isinstance(value, str)}


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
