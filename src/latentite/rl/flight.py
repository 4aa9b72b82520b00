"""A rollout on its way from the policy that drew it to the updates that it allows.

Where rewards overlap the next rollout, one is always under way; a checkpoint carries it, so that resuming is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.rl.gather import Judged
from latentite.rl.policy import kept_crystals
from latentite.rl.policy_config import PolicyConfig
from latentite.rl.rollout import Rollout
from latentite.rl.rollouts import Prompts
from latentite.rl.update import Lesson


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A rollout as it was drawn."""

    rollout: Rollout
    prompts: Prompts
    epoch: int
    batch_idx: int
    """Of the training step within the epoch."""
    drawn_at: int
    """Optimizer steps of the run before it."""
    seconds: float
    """That drawing took."""

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        crystals = {item.name: getattr(self.prompts.crystals, item.name) for item in fields(CrystalBatch)}
        found = {item.name: getattr(self, item.name) for item in fields(Drawn)}
        prompts = {"crystals": crystals, "groups": self.prompts.groups, "seeds": self.prompts.seeds}
        return found | {"rollout": self.rollout.state(), "prompts": prompts}

    @staticmethod
    def restored(state: Mapping[str, Any], device: torch.device) -> Drawn:
        """From the plain values of a checkpoint."""
        prompts = state["prompts"]
        asked = CrystalBatch(**prompts["crystals"]).to(device)
        rollout = Rollout(**state["rollout"]).to(device)
        return Drawn(**{**state, "rollout": rollout, "prompts": Prompts(**{**prompts, "crystals": asked})})


@dataclass(frozen=True, kw_only=True, slots=True)
class Flight:
    """A rollout whose rewards are being computed."""

    drawn: Drawn
    crystals: CrystalBatch
    """What it ended in, on the CPU."""
    finish: Callable[[], Judged]
    """Waits for the rewards."""


def lesson_of(
    drawn: Drawn,
    judged: Judged,
    values: dict[str, Tensor],
    advantages: Float[Tensor, " crystal"],
    config: PolicyConfig,
    *,
    is_first: bool,
) -> tuple[Lesson, Int[Tensor, " member"], int]:
    """What is learnt from a rollout: all of it, or with `best_of` what is kept.

    Args:
        drawn: by this process.
        judged: the crystals of all processes.
        values: conditions of this process's crystals.
        advantages: of the crystals of all processes.
        config: of the algorithm.
        is_first: whether the policy has not moved since.

    Returns:
        The lesson of this process, the places of its crystals among those of all processes, and how many these are.
    """
    groups, device = drawn.prompts.groups, drawn.rollout.mask.device
    places = groups * config.num_drawn + torch.arange(len(groups)) % config.num_drawn
    lesson = Lesson(
        rollout=drawn.rollout,
        values=values,
        advantages=advantages[places].to(device),
        is_first=torch.full((len(groups),), is_first, device=device),
    )
    if config.best_of == 1:
        return lesson, places, len(advantages)
    kept = kept_crystals(judged.rewards, judged.groups, config)
    mine = kept[places].nonzero().flatten()
    return lesson.select(mine.to(device)), (kept.cumsum(0) - 1)[places[mine]], int(kept.sum())
