"""Requests of single crystals beside the conditions that the network is told: they hold exactly, by masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentite.nn.element_features import NUM_SYMBOLS
from latentite.nn.gpt.reach import START, Needs, is_reachable
from latentite.nn.gpt.size import GPTLimits
from latentite.symmetry.positions import NUM_GROUPS, wyckoff_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """Requests of a crystal; all of them or any part."""

    groups: tuple[int, ...] = ()
    """Space groups that it may have; empty for all."""
    letters: tuple[int, ...] = ()
    """The letters of all its orbits in order, `a` is 0; empty where they are free."""
    elements: tuple[int, ...] = ()
    """Atomic numbers that may occur; empty for all."""
    required: tuple[int, ...] = ()
    """Atomic numbers, increasing, that must occur."""
    composition: tuple[tuple[int, int], ...] = ()
    """Atomic numbers, increasing, and how many atoms of each the primitive cell has; empty where it is free."""
    num_atoms: int = 0
    """Atoms of the primitive cell; 0 where it is free."""

    def needs(self, limits: GPTLimits) -> Needs | None:
        """The needs of letters and elements; None where nothing is asked of them."""
        if not (self.letters or self.required or self.composition or self.num_atoms):
            return None
        total = sum(number for _, number in self.composition) or self.num_atoms
        return Needs(
            atoms=total or limits.max_atoms,
            is_exact=total > 0,
            orbits=limits.max_orbits,
            amounts=self.composition or None,
            missing=() if self.composition else self.required,
            letters=self.letters or None,
        )


@lru_cache(maxsize=4096)
def possible_groups(wish: Wish, max_atoms: int, max_orbits: int) -> tuple[int, ...]:
    """The space groups in which a wish can be fulfilled."""
    limits = GPTLimits(max_atoms=max_atoms, max_orbits=max_orbits)
    table = wyckoff_table()
    needs = wish.needs(limits) or Needs(atoms=max_atoms, orbits=max_orbits)
    groups = []
    for group in wish.groups or range(1, NUM_GROUPS + 1):
        first, count = int(table.first[group]), int(table.count[group])
        if table.num_images[first : first + count].min() > needs.atoms or not has_letters(
            group, wish.letters
        ):
            continue
        if is_reachable(group, START, 0, needs):
            groups.append(group)
    return tuple(groups)


def has_letters(group: int, letters: Sequence[int]) -> bool:
    """True where orbits may have these letters: the group has them, and those that repeat have a free coordinate."""
    table = wyckoff_table()
    first, count = int(table.first[group]), int(table.count[group])
    return all(
        letter < count and (letters.count(letter) == 1 or table.num_free[first + letter] > 0)
        for letter in letters
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """Requests of each crystal of a batch."""

    kinds: tuple[Wish, ...]
    kind: Int[Tensor, " crystal"]
    """Place in `kinds`."""

    @staticmethod
    def of(wishes: Sequence[Wish]) -> Wishes:
        """One for each crystal."""
        kinds = {wish: place for place, wish in enumerate(dict.fromkeys(wishes))}
        return Wishes(
            kinds=tuple(kinds), kind=torch.tensor([kinds[wish] for wish in wishes], dtype=torch.long)
        )

    def group_mask(self, limits: GPTLimits) -> Bool[Tensor, "crystal group_from_0"]:
        """Space groups in which each crystal's wish can be fulfilled.

        Raises:
            ValueError: when there is none.
        """
        mask = np.zeros((len(self.kinds), NUM_GROUPS + 1), dtype=bool)
        for place, wish in enumerate(self.kinds):
            groups = possible_groups(wish, limits.max_atoms, limits.max_orbits)
            if not groups:
                raise ValueError(f"a wish must be possible in a space group, got {wish}")
            mask[place, list(groups)] = True
        return torch.from_numpy(mask)[self.kind]

    def element_mask(self) -> Bool[Tensor, "crystal symbol"]:
        """Elements that may occur."""
        mask = np.zeros((len(self.kinds), NUM_SYMBOLS), dtype=bool)
        for place, wish in enumerate(self.kinds):
            named = [z for z, _ in wish.composition] or list(wish.elements)
            mask[place, named if named else slice(1, None)] = True
        return torch.from_numpy(mask)[self.kind]

    def required_mask(self) -> Bool[Tensor, "crystal symbol"]:
        """Elements that must occur."""
        mask = np.zeros((len(self.kinds), NUM_SYMBOLS), dtype=bool)
        for place, wish in enumerate(self.kinds):
            mask[place, list(wish.required)] = True
        return torch.from_numpy(mask)[self.kind]

    def needs(self, limits: GPTLimits) -> list[Needs | None]:
        """Of each crystal, at its beginning."""
        needs = [wish.needs(limits) for wish in self.kinds]
        return [needs[place] for place in self.kind.tolist()]
