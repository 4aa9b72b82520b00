"""Copies within a rollout: who has one, and what it still earns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.match.search import find_matches
from latentite.match.settings import STRICT


class MemoryStore:
    """Reduced cells of the training set by hash, kept for the length of a run (`match/reduced.py`)."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get_many(self, hashes: Sequence[str]) -> dict[str, Any]:
        """Values of those hashes that have one."""
        return {key: self._values[key] for key in hashes if key in self._values}

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Keep values."""
        self._values.update(values)


def unique(duplicate_of: Sequence[int | None]) -> Bool[np.ndarray, " crystal"]:
    """Whether no other crystal is a duplicate of each, or it of another; so that order does not matter."""
    result = np.ones(len(duplicate_of), dtype=bool)
    for position, original in enumerate(duplicate_of):
        if original is not None:
            result[position] = result[original] = False
    return result


def unique_among(crystals: Sequence[CrystalArrays]) -> Bool[np.ndarray, " crystal"]:
    """Whether each crystal has no copy among these, by pymatgen's matcher with its default tolerances."""
    verdicts = find_matches(crystals, settings=[STRICT], workers=1).verdicts[STRICT.name]
    return unique([None if verdict is None else verdict.duplicate_of for verdict in verdicts])


def discounted(
    total: Float[Tensor, " crystal"], crystals: CrystalBatch, kept: float
) -> Float[Tensor, " crystal"]:
    """Rewards of which crystals with a copy keep only a share of what is above the lowest.

    Args:
        total: rewards.
        crystals: theirs.
        kept: the share, 0 to 1.
    """
    if not len(total):
        return total
    has_copy = torch.from_numpy(~unique_among(crystals.to_arrays()))
    return keep_share(total, torch.where(has_copy, kept, 1.0))


def keep_share(
    total: Float[Tensor, " crystal"], share: Float[Tensor, " crystal"]
) -> Float[Tensor, " crystal"]:
    """Rewards of which only a share of what is above the lowest is left: nobody falls below the worst."""
    if not len(total):
        return total
    lowest = total.min()
    return torch.where(share < 1.0, lowest + share * (total - lowest), total)
