"""Rewards of one rollout over several processes: judged once, all crystals together, in one order.

Rewards compare crystals with each other (duplicates, diversity, normalisation), so that no process could judge its
own alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.objectives.terms import num_processes
from latentite.rewards.combine import Rewards, RewardTable
from latentite.rewards.repeats import DiversityFilter
from latentite.rewards.workers import RewardWorkers
from latentite.rl.rollouts import Prompts
from latentite.sampling.checks import geometry_refusals


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
