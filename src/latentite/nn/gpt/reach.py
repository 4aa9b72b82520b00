"""Reachability: letters and elements that a skeleton can still get, and requests that they can fulfil.

A crystal is asked for an exact composition, a number of atoms, elements that must occur, or its letters. Letters come
in order, a position without free coordinate holds one orbit, and elements on one letter come in order, so not every
start can be completed. Multiplicities are small, so that a dynamic programme over them answers exactly; answers are
kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from latentite.nn.element_features import NUM_SYMBOLS
from latentite.symmetry.positions import MAX_POSITIONS, wyckoff_table

NEVER = 1_000
"""More orbits than any crystal has."""
START = -1
"""Letter before the first one."""

Multiplicities = tuple[tuple[int, int], ...]
"""Pairs of a multiplicity and how many positions have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Needs of the rest of a skeleton, and the most that it may hold."""

    atoms: int
    """Atoms of the primitive cell that are left."""
    is_exact: bool = False
    """True where all of them must be placed."""
    orbits: int
    """Orbits that may come."""
    amounts: tuple[tuple[int, int], ...] | None = None
    """Atomic numbers, increasing, and how many atoms of each are left; None where elements are free."""
    missing: tuple[int, ...] = ()
    """Atomic numbers, increasing, that must still occur."""
    letters: tuple[int, ...] | None = None
    """The letters of all orbits to come, in order, `a` is 0; None where they are free."""

    def after(self, num_images: int, element: int) -> Needs:
        """The needs that are left when one more orbit is there."""
        amounts = self.amounts
        if amounts is not None:
            left = ((z, n - num_images if z == element else n) for z, n in amounts)
            amounts = tuple((z, n) for z, n in left if n)
        return replace(
            self,
            atoms=self.atoms - num_images,
            orbits=self.orbits - 1,
            amounts=amounts,
            missing=tuple(z for z in self.missing if z != element),
            letters=None if self.letters is None else self.letters[1:],
        )

    @property
    def is_fulfilled(self) -> bool:
        """True where the skeleton may end."""
        return not (self.amounts or self.missing or self.letters or (self.is_exact and self.atoms))


@dataclass(frozen=True, slots=True)
class Room:
    """Positions that may follow a letter."""

    once: Multiplicities
    """Of later letters that hold one orbit."""
    often: tuple[int, ...]
    """Of later letters that hold any number of orbits."""
    again: int
    """Multiplicity of the letter itself if it holds any number of orbits, else 0."""


@cache
def room_after(group: int, letter: int) -> Room:
    """Positions of a group that may follow a letter (from 0; `START`: all)."""
    table = wyckoff_table()
    first, count = int(table.first[group]), int(table.count[group])
    later = range(first + letter + 1, first + count)
    once = Counter(int(table.num_images[p]) for p in later if table.num_free[p] == 0)
    often = {int(table.num_images[p]) for p in later if table.num_free[p] > 0}
    own = first + letter
    again = int(table.num_images[own]) if letter >= 0 and table.num_free[own] > 0 else 0
    return Room(tuple(sorted(once.items())), tuple(sorted(often)), again)


def is_reachable(group: int, letter: int, element: int, needs: Needs) -> bool:
    """True where needs can be fulfilled after an orbit.

    Args:
        group: space group.
        letter: of the last orbit, from 0; `START` before the first.
        element: of the last orbit; 0 before the first.
        needs: after that orbit.
    """
    room = room_after(group, letter)
    if needs.letters is not None:
        return _is_list_reachable(group, letter, element, needs)
    if needs.amounts is not None:
        wanted = tuple(sorted((n, bool(room.again) and z >= element) for z, n in needs.amounts))
        return fewest_orbits(room, wanted) <= needs.orbits
    low = bisect_left(needs.missing, element) if room.again else len(needs.missing)
    return _is_countable(room, needs.atoms, needs.is_exact, low, len(needs.missing), needs.orbits)


@lru_cache(maxsize=1 << 16)
def fewest_orbits(room: Room, wanted: tuple[tuple[int, bool], ...]) -> int:
    """Fewest orbits that hold exactly these amounts of different elements, `NEVER` if none do.

    Args:
        room: positions.
        wanted: for each element its atoms, and whether it may be on the letter that repeats.
    """
    if not wanted:
        return 0
    (amount, may_repeat), rest = wanted[0], wanted[1:]
    often = (*room.often, room.again) if may_repeat else room.often
    best = NEVER
    for used, left in _subsets(room.once, amount):
        total = sum(multiplicity * number for multiplicity, number in used)
        own = sum(number for _, number in used) + _fewest_coins(amount - total, often)
        if own < best:
            best = min(best, own + fewest_orbits(Room(left, room.often, room.again), rest))
    return best


@lru_cache(maxsize=1 << 14)
def _subsets(once: Multiplicities, amount: int) -> list[tuple[Multiplicities, Multiplicities]]:
    """Every choice of single positions that holds at most an amount: what is used, and what is left."""
    if not once:
        return [((), ())]
    (multiplicity, count), rest = once[0], once[1:]
    found = []
    for number in range(min(count, amount // multiplicity) + 1):
        for used, left in _subsets(rest, amount - number * multiplicity):
            own = ((multiplicity, number),) if number else ()
            kept = ((multiplicity, count - number),) if number < count else ()
            found.append((own + used, kept + left))
    return found


@lru_cache(maxsize=1 << 14)
def _fewest_coins(amount: int, often: tuple[int, ...]) -> int:
    """Fewest orbits of repeatable positions that hold exactly an amount."""
    if amount == 0:
        return 0
    return min((1 + _fewest_coins(amount - one, often) for one in often if one <= amount), default=NEVER)


@lru_cache(maxsize=1 << 16)
def _is_countable(room: Room, atoms: int, is_exact: bool, low: int, num_missing: int, orbits: int) -> bool:
    """True where orbits hold a number of atoms, and enough of them are there for elements that must occur.

    Args:
        room: positions.
        atoms: exactly, or at most.
        is_exact: which.
        low: missing elements that may not be on the letter that repeats, as it holds a later one already.
        num_missing: all of them.
        orbits: that may come.
    """
    if not is_exact and not num_missing:
        return True
    for number, sums in enumerate(_sums(room.once, room.often, atoms, min(atoms, orbits))):
        if number < low:
            continue
        for repeats in range((orbits - number if room.again else 0) + 1):
            left = atoms - repeats * room.again
            if left < 0:
                break
            fits = sums >> left & 1 if is_exact else sums & ((1 << left + 1) - 1)
            if number + repeats >= num_missing and fits:
                return True
    return False


@lru_cache(maxsize=1 << 14)
def _sums(once: Multiplicities, often: tuple[int, ...], atoms: int, orbits: int) -> tuple[int, ...]:
    """For each number of orbits the sums of multiplicities that they may have, as bits."""
    full = (1 << atoms + 1) - 1
    sums = [1] + [0] * orbits
    for multiplicity, count in once:
        for _ in range(count):
            for number in range(orbits, 0, -1):
                sums[number] |= sums[number - 1] << multiplicity & full
    for multiplicity in often:
        for number in range(1, orbits + 1):
            sums[number] |= sums[number - 1] << multiplicity & full
    return tuple(sums)


def _is_list_reachable(group: int, letter: int, element: int, needs: Needs) -> bool:
    """The same where all letters are given."""
    assert needs.letters is not None
    table = wyckoff_table()
    first = int(table.first[group])
    sites = tuple((one, int(table.num_images[first + one])) for one in needs.letters)
    if len(sites) > needs.orbits:
        return False
    if needs.amounts is not None:
        return _fits(sites, needs.amounts, letter, element)
    total = sum(size for _, size in sites)
    if total > needs.atoms or (needs.is_exact and total != needs.atoms):
        return False
    num_same = sum(one == letter for one, _ in sites)
    low = bisect_left(needs.missing, element) if num_same else 0
    return len(needs.missing) <= len(sites) and low <= len(sites) - num_same


@lru_cache(maxsize=1 << 16)
def _fits(
    sites: tuple[tuple[int, int], ...], amounts: tuple[tuple[int, int], ...], letter: int, element: int
) -> bool:
    """True where elements can be put on sites (letter and multiplicity) so that exactly these amounts are there."""
    if not sites:
        return not amounts
    (own, size), rest = sites[0], sites[1:]
    for place, (z, left) in enumerate(amounts):
        if left < size or (own == letter and z < element):
            continue
        remaining = ((z, left - size),) if left > size else ()
        if _fits(rest, amounts[:place] + remaining + amounts[place + 1 :], own, z):
            return True
    return False


@lru_cache(maxsize=1 << 14)
def choices(group: int, letter: int, needs: Needs) -> Bool[np.ndarray, "letter symbol"]:
    """Orbits that may come next: letters with elements after which needs can still be fulfilled.

    That letters and elements come in order is left to the masks of the network.

    Args:
        group: space group.
        letter: of the last orbit, from 0; `START` before the first.
        needs: what is asked of the orbits after it.
    """
    table = wyckoff_table()
    first, count = int(table.first[group]), int(table.count[group])
    allowed = np.zeros((MAX_POSITIONS, NUM_SYMBOLS), dtype=bool)
    letters = range(max(letter, 0), count) if needs.letters is None else needs.letters[:1]
    for one in letters:
        size = int(table.num_images[first + one])
        if size > needs.atoms or needs.orbits < 1:
            continue
        if needs.amounts is not None:
            for z, left in needs.amounts:
                if left >= size:
                    allowed[one, z] = is_reachable(group, one, z, needs.after(size, z))
            continue
        # Without amounts only this matters of an element: is it missing, and how many missing ones are below it?
        bounds = [1, *(edge for z in needs.missing for edge in (z, z + 1)), NUM_SYMBOLS]
        for start, stop in pairwise(bounds):
            if start < stop:
                allowed[one, start:stop] = is_reachable(group, one, start, needs.after(size, start))
    return allowed
