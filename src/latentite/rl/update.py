"""A rollout made into optimizer steps: minibatches of trajectories, their decisions evaluated in large passes.

A policy cuts the decisions of a minibatch into passes of at most `update_tokens` tokens, whose gradients add up; so
memory is bounded and padding is nearly none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.generators.policy import Policy, Trajectories
from latentite.objectives.terms import LossTerms, num_processes
from latentite.rl.config import PolicyConfig
from latentite.rl.objective import policy_terms


@runtime_checkable
class Optimizer(Protocol):
    """PyTorch's own, or Lightning's wrapper of one."""

    def zero_grad(self) -> None: ...

    def step(self) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """Trajectories with their advantages."""

    trajectories: Trajectories
    advantages: Float[Tensor, " trajectory"]
    is_on_policy: Bool[Tensor, " trajectory"]
    """True where the policy has not moved since it drew the trajectory."""

    def __len__(self) -> int:
        return len(self.trajectories)

    def select(self, members: Int[Tensor, " member"]) -> Experience:
        """Some of them."""
        return Experience(
            trajectories=self.trajectories.select(members),
            advantages=self.advantages[members],
            is_on_policy=self.is_on_policy[members],
        )

    def joined(self, other: Experience) -> Experience:
        """These and others, on the device of these."""
        device = self.advantages.device
        parts = [self.trajectories, other.trajectories.to(device)]
        return Experience(
            trajectories=type(self.trajectories).concatenate(parts),
            advantages=torch.cat([self.advantages, other.advantages.to(device)]),
            is_on_policy=torch.cat([self.is_on_policy, other.is_on_policy.to(device)]),
        )

    def after_update(self) -> Experience:
        """The same once the policy has moved: nothing is on-policy any more."""
        return replace(self, is_on_policy=torch.zeros_like(self.is_on_policy))


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """A policy and how it is improved."""

    policy: Policy[Any]
    config: PolicyConfig

    def update(
        self,
        experience: Experience,
        steps: Int[Tensor, " step"],
        minibatches: Iterable[Int[Tensor, " _"]],
        optimizer: Optimizer,
        *,
        max_norm: float | None,
    ) -> dict[str, Tensor]:
        """One optimizer step for each minibatch.

        Args:
            experience: trajectories to learn from.
            steps: decisions of each that are trained.
            minibatches: positions of the trajectories of each.
            optimizer: of the parameters of the policy's network.
            max_norm: gradients are clipped to this norm; None: not.

        Returns:
            Means of all terms over all minibatches and all processes, `loss`, and the mean norm of the gradients.
        """
        sums, norms = TermSums(), []
        parameters = list(self.policy.network.parameters())
        for members in minibatches:
            optimizer.zero_grad()
            sums.merge(self.gradients(experience, steps, members))
            sum_gradients(parameters)
            norms.append(nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm))
            optimizer.step()
            experience = experience.after_update()
        return sums.values() | {"grad_norm": torch.stack(norms).mean()}

    def gradients(
        self, experience: Experience, steps: Int[Tensor, " step"], members: Int[Tensor, " member"]
    ) -> TermSums:
        """Add the gradient of a minibatch's loss to the parameters, over all processes together.

        Args:
            experience: all of it.
            steps: decisions of each trajectory that are trained.
            members: positions of the trajectories of the minibatch.

        Returns:
            Sums and counts of the terms, of this process.
        """
        trajectories = experience.trajectories
        count = (steps < trajectories.num_decisions[members].unsqueeze(-1)).sum().float()
        if num_processes() > 1:
            dist.all_reduce(count)
        sums = TermSums()
        for rows in self.policy.passes(trajectories, members, steps, max_tokens=self.config.update_tokens):
            decisions = self.policy.evaluate(
                trajectories,
                rows,
                is_on_policy=experience.is_on_policy[rows.trajectory],
                with_reference=self.config.kl_weight != 0.0,
            )
            terms = policy_terms(decisions, experience.advantages[rows.trajectory], self.config)
            terms.total(dict.fromkeys(terms.terms, count)).backward()
            sums.add(terms)
        return sums


class TermSums:
    """Sums and counts of the terms of many passes."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, terms: LossTerms) -> None:
        """Count in a pass."""
        for name, term in terms.terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + term.sum.detach()
            self._counts[name] = self._counts.get(name, 0.0) + term.count
            self._weights[name] = term.weight

    def merge(self, other: TermSums) -> None:
        """Count in all passes of another."""
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0.0) + other._counts[name]
        self._weights |= other._weights

    def values(self) -> dict[str, Tensor]:
        """Mean of each term over all processes, and their weighted sum as `loss`."""
        both = torch.stack([torch.stack(list(self._sums.values())), torch.stack(list(self._counts.values()))])
        if num_processes() > 1:
            dist.all_reduce(both)
        means = dict(zip(self._sums, (both[0] / both[1].clamp(min=1.0)).unbind(), strict=True))
        loss = torch.stack([self._weights[name] * value for name, value in means.items()]).sum()
        return means | {"loss": loss}


def minibatches(
    places: Int[Tensor, " crystal"], num_crystals: int, count: int, generator: torch.Generator
) -> list[Int[Tensor, " member"]]:
    """This process's share of each minibatch; together they are a random cut of all crystals of all processes.

    Args:
        places: of this process's crystals among all.
        num_crystals: of all processes.
        count: of minibatches.
        generator: the same in every process.

    Raises:
        ValueError: when there are fewer crystals than minibatches.
    """
    if count > num_crystals:
        raise ValueError(
            f"num_minibatches must be at most the crystals of a rollout ({num_crystals}), got {count}"
        )
    rank = torch.randperm(num_crystals, generator=generator).argsort()[places]
    share = rank * count // num_crystals
    return [(share == part).nonzero().flatten() for part in range(count)]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in every one of them; absent ones count as zero."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if num_processes() == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    dist.all_reduce(flat)
    start = 0
    for parameter in trained:
        assert parameter.grad is not None
        size = parameter.numel()
        parameter.grad.copy_(flat[start : start + size].view_as(parameter))
        start += size
