"""Creativity: unique in its batch and novel against the training set, graded where it is only one of both.

Chemeleon2's rule: 1 for a crystal that is unique and novel, 0 for one that is neither, else the smallest distance
above 0 (AMD, k = 100) to the crystals of its formula, Å. Departures: all of a group of duplicates are not unique
(there, all but the first), so that order does not matter; the distance counts as 1 Å at most, so that nothing is
worth more than unique and novel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentite.base.machine import count_workers
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.formulas import Composition, reduced_composition
from latentite.match.reduced import STRICT
from latentite.match.search import find_matches
from latentite.metrics.geometry import amd_distances, average_minimum_distances
from latentite.rewards.repeats import MemoryStore, unique

if TYPE_CHECKING:
    from pymatgen.core import Structure

SAME = 1e-6
"""Å; distances below it are between equal crystals."""


class CreativityReward:
    """See the module. NaN for a crystal that the matcher cannot judge."""

    is_collective = True

    def __init__(self, workers: int = 1) -> None:
        """Say how many processes compare.

        Raises:
            ValueError: for less than one, which would only show in every call.
        """
        self.workers = count_workers(workers)
        self._known: list[CrystalArrays] = []
        self._by_formula: dict[Composition, list[int]] | None = None
        self._store = MemoryStore()

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Take the training set."""
        self._known = crystals.to_arrays()
        self._by_formula = {}
        self._store = MemoryStore()
        for position, crystal in enumerate(self._known):
            formula = reduced_composition(crystal.atomic_numbers.tolist())
            self._by_formula.setdefault(formula, []).append(position)

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        if self._by_formula is None:
            raise ValueError("a creativity reward needs set_reference(training crystals) before it is called")
        arrays = batch.to_arrays()
        formulas = [reduced_composition(crystal.atomic_numbers.tolist()) for crystal in arrays]
        places = [place for formula in sorted(set(formulas)) for place in self._by_formula.get(formula, [])]
        matches = find_matches(
            arrays,
            [self._known[place] for place in places],
            settings=[STRICT],
            workers=self.workers,
            reference_hashes=[str(place) for place in places],
            store=self._store,
        )
        verdicts = matches.verdicts[STRICT.name]
        is_unique = unique([None if v is None else v.duplicate_of for v in verdicts])
        is_novel = np.array([v is not None and v.reference is None for v in verdicts])
        result = np.where(is_unique & is_novel, 1.0, 0.0)
        for position in np.flatnonzero(is_unique != is_novel):
            formula = formulas[position]
            others = [arrays[i] for i in range(len(arrays)) if i != position and formulas[i] == formula]
            known = [self._known[place] for place in self._by_formula.get(formula, [])]
            result[position] = nearest(arrays[position], [*others, *known])
        result[[position for position, verdict in enumerate(verdicts) if verdict is None]] = np.nan
        return torch.from_numpy(result)


def nearest(crystal: CrystalArrays, others: Sequence[CrystalArrays]) -> float:
    """Smallest AMD distance above 0, Å, at most 1; 0 where there is none."""
    rows = average_minimum_distances([crystal, *others])
    distances = amd_distances(rows[:1], rows[1:])[0]
    positive = distances[distances > SAME]
    return float(min(positive.min(), 1.0)) if len(positive) else 0.0
