"""Comparisons of many reduced crystals in several processes: tasks, and how duplicates are walked through.

Duplicates are sequential by nature: a structure is compared with the distinct ones before it. Many structures of one
composition are walked in blocks: all of a block against the distinct ones so far, in parallel, then those that are
left among each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from latentite.base.processes import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.match.compare import Comparer
from latentite.match.lattices import Comparable
from latentite.match.settings import MatcherSettings

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
    """Whether a structure without a match becomes a candidate for those after it."""

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
        found = self._run(
            [self._among(members, [self.names] * len(members)) for members in small], advance=advance
        )
        for members in queries.values():
            if len(members) > _BLOCK:
                found |= self._walk_blocks(members, advance)
        return found

    def _walk_blocks(self, members: Members, advance: Callable[[int], None]) -> dict[int, dict[str, int]]:
        found: dict[int, dict[str, int]] = {}
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
                found[position] = known.get(position, {}) | new.get(position, {})
            advance(len(block))
        return found

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
        return {position: first for found in done for position, first in found.items()}


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
    found: dict[int, dict[str, int]] = {}
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
            found[position] = first
        if task.grows and len(first) < len(sought):
            candidates.append((position, own, sought.difference(first)))
    return found
