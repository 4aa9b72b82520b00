"""The best trajectories of a run so far, to be trained on again: a bounded memory that a checkpoint carries.

Each kind of crystal is there once, by its best; what is too old or no longer better than the policy is left out. What
is sound about it is said in `rl/policy.py`, departure 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.rewards.repeats import Kind, kinds
from latentite.rl.advantages import RunningRewards
from latentite.rl.policy import replay_advantages
from latentite.rl.policy_config import PolicyConfig
from latentite.rl.rollout import Rollout
from latentite.rl.update import Lesson


@dataclass(kw_only=True, slots=True)
class ReplayConfig:
    """How much is kept and used: `rl_module.replay`."""

    size: int = 64
    """Trajectories that are kept; one is about 100 kB (50 steps, 20 atoms, 8 channels), also in checkpoints."""
    num_samples: int = 16
    """Drawn for each rollout's updates, of those that are better than the rollout's mean."""
    max_age: int = 50
    """Rollouts after which a trajectory is dropped."""
    kind: Kind = Kind.FORMULA
    """Of each kind only the best is kept."""

    def __post_init__(self) -> None:
        for name in ("size", "num_samples", "max_age"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Memories:
    """Trajectories with what is known of them, best first; on the CPU."""

    rollout: Rollout
    values: dict[str, Tensor]
    """Conditions that were asked."""
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
    ) -> Lesson | None:
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
        every = Lesson(
            rollout=self.memories.rollout,
            values=self.memories.values,
            advantages=advantages,
            is_first=torch.zeros(len(advantages), dtype=torch.bool),
        )
        return every.select(chosen)

    def remember(
        self,
        rollout: Rollout,
        values: Mapping[str, Tensor],
        crystals: CrystalBatch,
        rewards: Float[Tensor, " crystal"],
        is_usable: Bool[Tensor, " crystal"],
    ) -> None:
        """`add` the crystals of a rollout that can be, under the names of their kinds."""
        usable = is_usable.nonzero().flatten()
        there = usable.to(rollout.mask.device)
        told = {name: column[there] for name, column in values.items()}
        names = kinds(crystals.select(usable), self.config.kind)
        self.add(rollout.select(there), told, rewards[usable], names)

    def add(
        self,
        rollout: Rollout,
        values: Mapping[str, Tensor],
        rewards: Float[Tensor, " crystal"],
        names: Sequence[str],
    ) -> None:
        """Take over what is among the best.

        Args:
            rollout: usable crystals of one rollout.
            values: conditions that they were asked.
            rewards: theirs.
            names: their kinds.
        """
        columns = {name: column.cpu() for name, column in values.items()}
        rollout, rewards, names, ages = (
            rollout.to("cpu"),
            rewards.double().cpu(),
            list(names),
            [0] * len(names),
        )
        old = self.memories
        parts = [rollout]
        if old is not None:
            parts = [old.rollout, rollout]
            columns = {name: torch.cat([old.values[name], column]) for name, column in columns.items()}
            rewards = torch.cat([old.rewards, rewards])
            names = [*old.names, *names]
            ages = [*(age + 1 for age in old.ages), *ages]
        chosen = self._best(rewards, names, ages)
        self.memories = Memories(
            rollout=Rollout.concatenate(parts, chosen),
            values={name: column[chosen] for name, column in columns.items()},
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
        found = {item.name: getattr(self.memories, item.name) for item in fields(Memories)}
        return found | {"rollout": self.memories.rollout.state()}

    def restore(self, state: Mapping[str, Any], num_decisions: int) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: when its trajectories are of a chain with another number of decisions.
        """
        if not state:
            return
        rollout = Rollout(**state["rollout"])
        if rollout.num_decisions != num_decisions:
            raise ValueError(
                f"rl_module.sampling.steps must be {rollout.num_decisions + 1} to resume with the replayed "
                f"trajectories of ckpt_path, got {num_decisions + 1}"
            )
        self.memories = Memories(**{**state, "rollout": rollout})
