"""A rollout on its way from the policy that drew it to the updates that it allows.

Where rewards overlap the next rollout, one is always under way; a checkpoint carries it, so that resuming is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.generators.latent.policy import Prompts, Rollout
from latentite.rewards.combine import Rewards, RewardTable
from latentite.rewards.diversity_filter import DiversityFilter
from latentite.rewards.workers import RewardWorkers
from latentite.rl.config import PolicyConfig
from latentite.rl.objective import kept_crystals
from latentite.rl.update import Lesson
from latentite.sampling.checks import geometry_refusals
from latentite.training.reduce import num_processes


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Of all crystals of all processes, ordered by group."""

    rewards: Float[Tensor, " crystal"]
    groups: Int[Tensor, " crystal"]
    is_usable: Bool[Tensor, " crystal"]
    means: dict[str, float]
    """For the log."""

    @staticmethod
    def of(table: RewardTable, groups: Int[Tensor, " crystal"]) -> Judged:
        """What an update needs of a table."""
        return Judged(rewards=table.total, groups=groups, is_usable=table.is_usable, means=table.means())


def start_rewards(
    rewards: Rewards | RewardWorkers, crystals: CrystalBatch, *, repeats: DiversityFilter | None = None
) -> Callable[[], RewardTable]:
    """The rewards of crystals, to be had later; those of impossible geometry are not usable.

    Args:
        rewards: what is wanted.
        crystals: on the CPU.
        repeats: takes from the rewards of what came often before, and counts these; None: nothing.
    """
    is_usable = torch.tensor([refusal is None for refusal in geometry_refusals(crystals)])
    finish = rewards.start(crystals, is_usable)

    def filtered() -> RewardTable:
        table = finish()
        if repeats is None:
            return table
        total, is_repeated = repeats(table.total, crystals, table.is_usable)
        return replace(table, total=total, is_repeated=is_repeated)

    return filtered


def start_judging(
    crystals: CrystalBatch,
    prompts: Prompts,
    start: Callable[[CrystalBatch], Callable[[], RewardTable]],
) -> Callable[[], Judged]:
    """The rewards of a rollout, to be had later; all processes must call for them.

    Args:
        crystals: of this process, on the CPU.
        prompts: theirs; crystals of a group lie together.
        start: begins to judge a batch; called by the first process only.
    """
    if num_processes() == 1:
        finish = start(crystals)
        return lambda: Judged.of(finish(), prompts.groups)
    parts: list[Any] | None = [None] * num_processes() if dist.get_rank() == 0 else None
    dist.gather_object((crystals, prompts.groups), parts)
    if parts is None:
        return lambda: _shared(None)
    groups = torch.cat([part[1] for part in parts])
    order = groups.argsort(stable=True)
    finish = start(CrystalBatch.concatenate([part[0] for part in parts]).select(order))
    return lambda: _shared(Judged.of(finish(), groups[order]))


def _shared(judged: Judged | None) -> Judged:
    """The first process's in all of them."""
    answer: list[Any] = [judged]
    dist.broadcast_object_list(answer)
    assert isinstance(answer[0], Judged)
    return answer[0]
