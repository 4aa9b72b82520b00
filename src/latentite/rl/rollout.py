"""A rollout, from the policy that draws it to the experience that updates learn from, and the memory of the best ones.

Rewards compare crystals with each other (duplicates, diversity, normalisation), so that no process could compute its
own alone: they are computed once, of all crystals together, in one order. Where they overlap the next rollout, one is
always pending; a checkpoint carries it, so that resuming is exact. Replay keeps each kind of crystal once, by its
best trajectory; what is sound about it is said in `rl/objective.py`, departure 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from latentite.rewards.repeats import DiversityFilter, kinds
from latentite.rl.config import PolicyConfig, ReplayConfig
from latentite.rl.objective import RunningRewards, kept_crystals, replay_advantages
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Memories:
    """Trajectories with their rewards, best first; on the CPU."""

    trajectories: Trajectories
    rewards: Float[Tensor, " trajectory"]
    names: list[str]
    """Kinds; each occurs once."""
    ages: list[int]
    """Rollouts since."""


class ReplayBuffer:
    """Starts empty; `add` after an update, `draw` before the next."""

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.memories: Memories | None = None

    def __len__(self) -> int:
        return 0 if self.memories is None else len(self.memories.names)

    def draw(
        self,
        rewards: Float[Tensor, " crystal"],
        config: PolicyConfig,
        running: RunningRewards,
        generator: torch.Generator,
    ) -> Experience | None:
        """Some of those that are better than a rollout with these rewards; None where there is none.

        Args:
            rewards: of the rollout of now.
            config: of the algorithm.
            running: its statistics.
            generator: of the choice.
        """
        if self.memories is None:
            return None
        advantages = replay_advantages(self.memories.rewards, rewards, config, running)
        worthy = (advantages > 0.0).nonzero().flatten()
        if not len(worthy):
            return None
        chosen = worthy[torch.randperm(len(worthy), generator=generator)[: self.config.num_samples]]
        every = Experience(
            trajectories=self.memories.trajectories,
            advantages=advantages,
            is_on_policy=torch.zeros(len(advantages), dtype=torch.bool),
        )
        return every.select(chosen)

    def remember(
        self,
        trajectories: Trajectories,
        crystals: CrystalBatch,
        rewards: Float[Tensor, " crystal"],
        is_usable: Bool[Tensor, " crystal"],
    ) -> None:
        """`add` the trajectories of a rollout whose crystals are usable, under the names of their kinds."""
        usable = is_usable.nonzero().flatten()
        names = kinds(crystals.select(usable), self.config.kind)
        self.add(trajectories.select(usable), rewards[usable], names)

    def add(
        self, trajectories: Trajectories, rewards: Float[Tensor, " trajectory"], names: Sequence[str]
    ) -> None:
        """Take over what is among the best.

        Args:
            trajectories: of one rollout, whose crystals are usable.
            rewards: theirs.
            names: kinds of their crystals.
        """
        parts, rewards = [trajectories.to("cpu")], rewards.double().cpu()
        names, ages = list(names), [0] * len(names)
        old = self.memories
        if old is not None:
            parts = [old.trajectories, *parts]
            rewards = torch.cat([old.rewards, rewards])
            names = [*old.names, *names]
            ages = [*(age + 1 for age in old.ages), *ages]
        chosen = self._best(rewards, names, ages)
        self.memories = Memories(
            trajectories=type(parts[0]).concatenate(parts, chosen),
            rewards=rewards[chosen],
            names=[names[i] for i in chosen.tolist()],
            ages=[ages[i] for i in chosen.tolist()],
        )

    def _best(self, rewards: Tensor, names: Sequence[str], ages: Sequence[int]) -> Tensor:
        """Positions of the best of each kind that is not too old, best first; of equal ones the older."""
        seen: dict[str, int] = {}
        for position in rewards.argsort(descending=True, stable=True).tolist():
            if ages[position] <= self.config.max_age:
                seen.setdefault(names[position], position)
        return torch.tensor(list(seen.values())[: self.config.size], dtype=torch.long)

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        if self.memories is None:
            return {}
        plain = {item.name: getattr(self.memories, item.name) for item in fields(Memories)}
        return plain | {"trajectories": self.memories.trajectories.state()}

    def restore(self, state: Mapping[str, Any], policy: Policy[Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: when its trajectories are not of this policy.
        """
        if not state:
            return
        state = dict(state)
        if "rollout" in state:  # version 0.1 kept what was asked beside the trajectories
            state["trajectories"] = state.pop("rollout") | {"values": state.pop("values")}
        self.memories = Memories(**{**state, "trajectories": policy.restored(state["trajectories"])})
