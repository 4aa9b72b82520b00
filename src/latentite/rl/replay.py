"""The best trajectories of a run so far, to be trained on again: a bounded memory that a checkpoint carries.

Each kind of crystal is there once, by its best; what is too old or no longer better than the policy is left out. What
is sound about it is said in `rl/objective.py`, departure 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.generators.policy import Policy, Trajectories
from latentite.rewards.repeats import kinds
from latentite.rl.config import PolicyConfig, ReplayConfig
from latentite.rl.objective import RunningRewards, replay_advantages
from latentite.rl.update import Experience


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
