"""A memory of what a run has already made: kinds of crystals that come again and again earn less and less.

As the diversity filter of MatInvent (Chen et al. 2025, arXiv 2511.03112), a penalty linear in the number of earlier
occurrences; ours has a number of free ones, and what is taken away is the reward above the rollout's lowest. Only
earlier rollouts count, so that the order within one does not matter: copies there are `duplicate_discount`'s. Comes
after `kinds.py`; `rl/module.py` applies it to the rewards of training, not to those of validation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.rewards.duplicates import keep_share
from latentite.rewards.kinds import Kind, kinds


@dataclass(kw_only=True, slots=True)
class DiversityFilterConfig:
    """Which crystals are of one kind, and how often one is paid: `rl_module.reward_fn.diversity_filter`."""

    kind: Kind = Kind.FORMULA
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
        found = kinds(crystals.select(positions), self.config.kind)
        share = torch.ones_like(total)
        share[positions] = torch.tensor([self.share(name) for name in found], dtype=total.dtype)
        self._counts.update(found)
        return keep_share(total, share), share < 1.0

    def share(self, name: str) -> float:
        """Which share of its reward a crystal of this kind keeps."""
        beyond = self._counts[name] - self.config.free + 1
        return min(max(1.0 - beyond / (self.config.fading + 1), 0.0), 1.0)

    def state(self) -> dict[str, int]:
        """Counts so far, as plain values for a checkpoint."""
        return dict(self._counts)

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from the counts of a checkpoint."""
        self._counts = Counter(state)
