"""Rewards of one rollout over several processes: judged once, all crystals together, in one order.

Rewards compare crystals with each other (duplicates, diversity, normalisation), so that no process could judge its
own alone. Comes after `rewards/`; `rl.py` calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.rewards.combine import RewardTable
from latentite.training.reduce import num_processes
from latentite.training.rollouts import Prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Of all crystals of all processes, ordered by group."""

    rewards: Float[Tensor, " crystal"]
    groups: Int[Tensor, " crystal"]
    means: dict[str, float]
    """For the log."""


def judged_together(
    crystals: CrystalBatch,
    prompts: Prompts,
    judge: Callable[[CrystalBatch], RewardTable],
) -> Judged:
    """The rewards of a rollout.

    Args:
        crystals: of this process, on the CPU.
        prompts: theirs; crystals of a group lie together.
        judge: gives the rewards of a batch; called by the first process only.
    """
    if num_processes() == 1:
        table = judge(crystals)
        return Judged(rewards=table.total, groups=prompts.groups, means=table.means())
    parts: list[Any] | None = [None] * num_processes() if dist.get_rank() == 0 else None
    dist.gather_object((crystals, prompts.groups), parts)
    answer: list[Any] = [None]
    if parts is not None:
        groups = torch.cat([part[1] for part in parts])
        order = groups.argsort(stable=True)
        table = judge(CrystalBatch.concatenate([part[0] for part in parts]).select(order))
        answer = [Judged(rewards=table.total, groups=groups[order], means=table.means())]
    dist.broadcast_object_list(answer)
    judged = answer[0]
    assert isinstance(judged, Judged)
    return judged
