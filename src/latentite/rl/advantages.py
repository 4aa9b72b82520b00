"""From rewards to advantages: the only place where rewards of different crystals are compared with each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-6
"""Spread of rewards below which a group says nothing: its advantages are 0 rather than rounding blown up."""


def group_normalised(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"], *, scale: bool = True
) -> Float[Tensor, " crystal"]:
    """(r - mean of its group) / std of its group; GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: of each crystal.
        groups: number of each crystal's group, from 0.
        scale: off, only the mean is taken away (Liu et al. 2025, "Dr. GRPO", arXiv 2503.20783).
    """
    count, centred = _centred(rewards, groups)
    if not scale:
        return centred
    std = (_sums(centred**2, groups) / count).sqrt()
    return torch.where(std > EPSILON, 1.0 / std.clamp(min=EPSILON), 0.0)[groups] * centred


def leave_one_out(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"]
) -> Float[Tensor, " crystal"]:
    """r - mean of the others of its group; RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740)."""
    count, centred = _centred(rewards, groups)
    return centred * (count / (count - 1.0))[groups]


def normalised_by(
    values: Float[Tensor, " value"], rewards: Float[Tensor, " crystal"], *, scale: bool = True
) -> Float[Tensor, " value"]:
    """(v - mean of the rewards) / std of the rewards: others measured by what a rollout has reached."""
    rewards = rewards.double()
    centred = values.double() - rewards.mean()
    if not scale:
        return centred
    std = rewards.std(correction=0)
    return centred / std if std > EPSILON else torch.zeros_like(centred)


def places_in_group(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"]
) -> Int[Tensor, " crystal"]:
    """Place of each crystal among its group, the best one 0; of equal ones the first is better."""
    by_reward = rewards.argsort(descending=True, stable=True)
    order = by_reward[groups[by_reward].argsort(stable=True)]
    sizes = torch.bincount(groups)
    firsts = sizes.cumsum(0) - sizes
    place = torch.arange(len(groups), device=groups.device) - firsts[groups[order]]
    return torch.empty_like(place).scatter(0, order, place)


def _sums(values: Tensor, groups: Tensor) -> Tensor:
    return values.new_zeros(int(groups.max()) + 1).index_add(0, groups, values)


def _centred(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Size of each group, and each reward less its group's mean, in float64."""
    rewards = rewards.double()
    count = _sums(torch.ones_like(rewards), groups)
    return count, rewards - (_sums(rewards, groups) / count)[groups]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningRewards:
    """Exponential averages of the rewards of a run, as a baseline that needs no group."""

    state: Float[Tensor, "3"]
    """Averages of reward and squared reward, both biased towards 0, and the weight that corrects them."""

    @staticmethod
    def empty() -> RunningRewards:
        """Before the first rewards."""
        return RunningRewards(state=torch.zeros(3, dtype=torch.float64))

    def updated(self, rewards: Float[Tensor, " crystal"], decay: float) -> RunningRewards:
        """After the rewards of one rollout."""
        values = rewards.double()
        now = torch.stack([values.mean(), (values**2).mean(), values.new_ones(())]).to(self.state.device)
        return RunningRewards(state=decay * self.state + (1.0 - decay) * now)

    def normalised(self, rewards: Float[Tensor, " crystal"]) -> Float[Tensor, " crystal"]:
        """(r - running mean) / running std, with these rewards counted in before (`updated`)."""
        mean, square = (self.state[:2] / self.state[2].clamp(min=EPSILON)).to(rewards.device)
        std = (square - mean**2).clamp(min=0.0).sqrt()
        centred = rewards.double() - mean
        return centred / std if std > EPSILON else torch.zeros_like(centred)
