"""Creativity: unique in its batch and novel against the training set, graded where it is only one of both.

Chemeleon2's rule: 1 for a crystal that is unique and novel, 0 for one that is neither, else the smallest distance
to the crystals of its formula. Departures: all of a group of duplicates are not unique (there, all but the first),
so that order does not matter; the distance is between radial fingerprints (`metrics/fingerprints.py`), root mean
square in standard deviations of the training set, and capped at 1. Comes after `match/search.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.data.cif import Arrays
from latentite.match.search import find_matches
from latentite.match.settings import STRICT
from latentite.metrics.composition import Composition, reduced_composition
from latentite.metrics.fingerprints import Scaling, fit_scaling, radial

if TYPE_CHECKING:
    from pymatgen.core import Structure

_SCALING_ROWS = 1000
"""Crystals of the training set that the scale of distances is taken from."""


class CreativityReward:
    """See the module. NaN for a crystal that the matcher cannot judge."""

    is_collective = True

    def __init__(self, workers: int = 1) -> None:
        """Say how many processes compare."""
        self.workers = workers
        self._reference: dict[Composition, list[Arrays]] | None = None
        self._scaling: Scaling | None = None

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Take the training set."""
        arrays = crystals.to_arrays()
        self._reference = {}
        for crystal in arrays:
            self._reference.setdefault(reduced_composition(crystal[0].tolist()), []).append(crystal)
        stride = max(1, len(arrays) // _SCALING_ROWS)
        self._scaling = fit_scaling(radial(arrays[::stride]))

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        if self._reference is None:
            raise ValueError("a creativity reward needs set_reference(training crystals) before it is called")
        arrays = batch.to_arrays()
        formulas = [reduced_composition(numbers.tolist()) for numbers, _, _ in arrays]
        known = {formula: self._reference.get(formula, []) for formula in set(formulas)}
        reference = [crystal for formula in sorted(known) for crystal in known[formula]]
        found = find_matches(arrays, reference, settings=[STRICT], workers=self.workers)
        verdicts = found.verdicts[STRICT.name]
        is_unique = unique([None if v is None else v.duplicate_of for v in verdicts])
        is_novel = np.array([v is not None and v.reference is None for v in verdicts])
        result = np.where(is_unique & is_novel, 1.0, 0.0)
        for position in np.flatnonzero(is_unique != is_novel):
            formula = formulas[position]
            others = [arrays[i] for i in range(len(arrays)) if i != position and formulas[i] == formula]
            result[position] = self._distance(arrays[position], [*others, *known[formula]])
        result[[position for position, verdict in enumerate(verdicts) if verdict is None]] = np.nan
        return torch.from_numpy(result)

    def _distance(self, crystal: Arrays, others: Sequence[Arrays]) -> float:
        """Smallest distance above 0, at most 1; 0 where there is none."""
        assert self._scaling is not None
        rows = self._scaling.apply(radial([crystal, *others]))
        distances = np.sqrt(((rows[1:] - rows[0]) ** 2).mean(axis=1))
        positive = distances[distances > 1e-6]
        return float(min(positive.min(), 1.0)) if len(positive) else 0.0


def unique(duplicate_of: Sequence[int | None]) -> Bool[np.ndarray, " crystal"]:
    """Whether no other crystal is a duplicate of each, or it of another."""
    result = np.ones(len(duplicate_of), dtype=bool)
    for position, original in enumerate(duplicate_of):
        if original is not None:
            result[position] = result[original] = False
    return result
