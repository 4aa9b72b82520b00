"""Crystals that repeat, within a rollout and over a run, and the rewards that they still earn.

A copy is what pymatgen's matcher calls one. A kind is coarser and cheaper: a word that can be counted and stored.

As the diversity filter of MatInvent (Chen et al. 2025, arXiv 2511.03112), ours has a penalty linear in the number of
earlier occurrences; it also has a number of free ones, and what is taken away is the reward above the rollout's lowest.
Only earlier rollouts count, so that the order within one does not matter: copies there are `duplicate_discount`'s. The
filter changes the rewards of training, not those of validation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.elements import SYMBOLS
from latentite.formulas import plain_formula, reduced_composition
from latentite.match.reduced import STRICT
from latentite.match.search import find_matches
from latentite.metrics.geometry import space_groups

SYMPREC = 0.1
"""Å; tolerance of the space group of `CrystalKind.STRUCTURE`."""


class CrystalKind(StrEnum):
    """Condition under which two crystals are of one kind."""

    FORMULA = "formula"
    """The same reduced formula."""
    CHEMICAL_SYSTEM = "chemical_system"
    """The same elements."""
    STRUCTURE = "structure"
    """The same reduced formula and space group (at 0.1 Å)."""


def kinds(crystals: CrystalBatch, kind: CrystalKind) -> list[str]:
    """The kind of each crystal: `Na1Cl1`, `Na-Cl`, `Na1Cl1 225`; elements by atomic number."""
    arrays = crystals.to_arrays()
    compositions = [reduced_composition(crystal.atomic_numbers.tolist()) for crystal in arrays]
    if kind is CrystalKind.CHEMICAL_SYSTEM:
        return ["-".join(SYMBOLS[number - 1] for number, _ in composition) for composition in compositions]
    formulas = [plain_formula(composition) for composition in compositions]
    if kind is CrystalKind.FORMULA:
        return formulas
    groups = space_groups(arrays, symprecs=(SYMPREC,), workers=1)[:, 0]
    return [f"{formula} {group:g}" for formula, group in zip(formulas, groups, strict=True)]


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
    """Mask of the crystals that are no duplicate of another, nor another of them; so that order does not matter."""
    result = np.ones(len(duplicate_of), dtype=bool)
    for position, original in enumerate(duplicate_of):
        if original is not None:
            result[position] = result[original] = False
    return result


def unique_among(crystals: Sequence[CrystalArrays]) -> Bool[np.ndarray, " crystal"]:
    """Mask of the crystals that have no copy among these, by pymatgen's matcher with its default tolerances."""
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


@dataclass(kw_only=True, slots=True)
class DiversityFilterConfig:
    """The kinds of crystals, and how often one is paid: `rl_module.reward_fn.diversity_filter`."""

    kind: CrystalKind = CrystalKind.FORMULA
    free: int = 10
    """Occurrences of a kind that are paid in full."""
    fading: int = 10
    """Further occurrences over which the pay falls to nothing, linearly; 0: at once."""

    def __post_init__(self) -> None:
        for name in ("free", "fading"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


class DiversityFilter:
    """Counts of kinds over a run."""

    def __init__(self, config: DiversityFilterConfig) -> None:
        self.config = config
        self._counts: Counter[str] = Counter()

    def __call__(
        self,
        total: Float[Tensor, " crystal"],
        crystals: CrystalBatch,
        is_usable: Bool[Tensor, " crystal"],
    ) -> tuple[Float[Tensor, " crystal"], Bool[Tensor, " crystal"]]:
        """Rewards less the discount, and which crystals had one; then these crystals are counted.

        Args:
            total: rewards of a rollout.
            crystals: its crystals.
            is_usable: False for those that cannot be: they are of no kind and are not counted.
        """
        positions = is_usable.nonzero().flatten()
        crystal_kinds = kinds(crystals.select(positions), self.config.kind)
        share = torch.ones_like(total)
        share[positions] = torch.tensor([self.share(name) for name in crystal_kinds], dtype=total.dtype)
        self._counts.update(crystal_kinds)
        return keep_share(total, share), share < 1.0

    def share(self, name: str) -> float:
        """Share of its reward that a crystal of this kind keeps."""
        beyond = self._counts[name] - self.config.free + 1
        return min(max(1.0 - beyond / (self.config.fading + 1), 0.0), 1.0)

    def state(self) -> dict[str, int]:
        """Counts so far, as plain values for a checkpoint."""
        return dict(self._counts)

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from the counts of a checkpoint."""
        self._counts = Counter(state)
