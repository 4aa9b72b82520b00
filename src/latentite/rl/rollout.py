"""A rollout from the policy that draws it to the experience that updates learn from, with its rewards in between.

Rewards compare crystals with each other (duplicates, diversity, normalisation), so that no process could compute its
own alone: they are computed once, of all crystals together, in one order. Where they overlap the next rollout, one is
always pending; a checkpoint carries it, so that resuming is exact.
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
from latentite.generators.policy import Policy, Prompts, Trajectories
from latentite.objectives.terms import num_processes
from latentite.rewards.combine import Rewards, RewardTable, RewardWorkers
from latentite.rewards.repeats import DiversityFilter
from latentite.rl.config import PolicyConfig
from latentite.rl.objective import kept_crystals
from latentite.rl.update import Experience
from latentite.sampling.window import geometry_refusals


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """Trajectories of one training step, as this process drew them."""

    trajectories: Trajectories
    prompts: Prompts
    epoch: int
    batch_idx: int
    """Of the training step within the epoch."""
    num_updates: int
    """Optimizer steps of the run before it was drawn."""
    seconds: float
    """That drawing took."""

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        crystals = {item.name: getattr(self.prompts.crystals, item.name) for item in fields(CrystalBatch)}
        prompts = {"crystals": crystals, "groups": self.prompts.groups, "seeds": self.prompts.seeds}
        plain = {item.name: getattr(self, item.name) for item in fields(Rollout)}
        return plain | {"trajectories": self.trajectories.state(), "prompts": prompts}

    @staticmethod
    def restored(state: Mapping[str, Any], policy: Policy[Any], device: torch.device) -> Rollout:
        """From the plain values of a checkpoint.

        Raises:
            ValueError: when they are not of this policy.
        """
        crystals = CrystalBatch(**state["prompts"]["crystals"]).to(device)
        prompts = Prompts(**{**state["prompts"], "crystals": crystals})
        trajectories = policy.restored(state["trajectories"]).to(device)
        return Rollout(**{**state, "trajectories": trajectories, "prompts": prompts})


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingRollout:
    """A rollout whose rewards are being computed."""

    rollout: Rollout
    crystals: CrystalBatch
    """The ends of its trajectories, on the CPU."""
    wait: Callable[[], RolloutRewards]
    """Waits for the rewards."""


def experience_of(
    rollout: Rollout,
    rewards: RolloutRewards,
    advantages: Float[Tensor, " crystal"],
    config: PolicyConfig,
    *,
    is_on_policy: bool,
) -> tuple[Experience, Int[Tensor, " member"], int]:
    """The experience that a rollout gives: all of it, or with `best_of` what is kept.

    Args:
        rollout: of this process.
        rewards: of all processes.
        advantages: of the crystals of all processes.
        config: of the algorithm.
        is_on_policy: the policy has not moved since.

    Returns:
        The experience of this process, the places of its crystals among those of all processes, and how many these are.
    """
    groups, device = rollout.prompts.groups, rollout.prompts.crystals.device
    places = groups * config.num_drawn + torch.arange(len(groups)) % config.num_drawn
    experience = Experience(
        trajectories=rollout.trajectories,
        advantages=advantages[places].to(device),
        is_on_policy=torch.full((len(groups),), is_on_policy, device=device),
    )
    if config.best_of == 1:
        return experience, places, len(advantages)
    kept = kept_crystals(rewards.values, rewards.groups, config)
    mine = kept[places].nonzero().flatten()
    return experience.select(mine.to(device)), (kept.cumsum(0) - 1)[places[mine]], int(kept.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutRewards:
    """Rewards of all crystals of all processes, ordered by group."""

    values: Float[Tensor, " crystal"]
    groups: Int[Tensor, " crystal"]
    is_usable: Bool[Tensor, " crystal"]
    means: dict[str, float]
    """For the log."""

    @staticmethod
    def of(table: RewardTable, groups: Int[Tensor, " crystal"]) -> RolloutRewards:
        """The part of a table that an update needs."""
        return RolloutRewards(
            values=table.total, groups=groups, is_usable=table.is_usable, means=table.means()
        )


def start_rewards(
    rewards: Rewards | RewardWorkers, crystals: CrystalBatch, *, repeats: DiversityFilter | None = None
) -> Callable[[], RewardTable]:
    """Begin to compute the rewards of crystals; those of impossible geometry are not usable.

    Args:
        rewards: what is wanted.
        crystals: on the CPU.
        repeats: takes from the rewards of what came often before, and counts these; None: nothing.

    Returns:
        A function that waits for the rewards.
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


def start_rollout_rewards(
    crystals: CrystalBatch,
    prompts: Prompts,
    start: Callable[[CrystalBatch], Callable[[], RewardTable]],
) -> Callable[[], RolloutRewards]:
    """Begin to compute the rewards of a rollout; all processes must call, and wait.

    Args:
        crystals: of this process, on the CPU.
        prompts: theirs; crystals of a group lie together.
        start: begins to compute those of a batch; called by the first process only.

    Returns:
        A function that waits for the rewards.
    """
    if num_processes() == 1:
        finish = start(crystals)
        return lambda: RolloutRewards.of(finish(), prompts.groups)
    parts: list[Any] | None = [None] * num_processes() if dist.get_rank() == 0 else None
    dist.gather_object((crystals, prompts.groups), parts)
    if parts is None:
        return lambda: _shared(None)
    groups = torch.cat([part[1] for part in parts])
    order = groups.argsort(stable=True)
    finish = start(CrystalBatch.concatenate([part[0] for part in parts]).select(order))
    return lambda: _shared(RolloutRewards.of(finish(), groups[order]))


def _shared(rewards: RolloutRewards | None) -> RolloutRewards:
    """The first process's in all of them."""
    answer: list[Any] = [rewards]
    dist.broadcast_object_list(answer)
    assert isinstance(answer[0], RolloutRewards)
    return answer[0]
