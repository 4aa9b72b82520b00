"""One rollout made into optimizer steps: minibatches of crystals, their decisions flattened into large passes.

Rows are (denoising step, crystal) pairs. Those of a minibatch are sorted by size and cut into passes of at most
`update_tokens` atoms, whose gradients add up; so memory is bounded and padding is nearly none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.diffusion.steps import Moments
from latentite.generators.latent.chain import max_padding
from latentite.objectives.terms import LossTerms, num_processes
from latentite.rl.policy import policy_terms
from latentite.rl.policy_config import PolicyConfig
from latentite.rl.rollout import Chain, Rollout, Transitions
from latentite.rl.rollouts import Policy


class Stepping(Protocol):
    """What is needed of an optimizer; Lightning's wrapper of one has it as well."""

    def zero_grad(self) -> None: ...

    def step(self) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """Trajectories to learn from."""

    rollout: Rollout
    values: dict[str, Tensor]
    """Conditions that their crystals were asked."""
    advantages: Float[Tensor, " crystal"]
    is_first: Bool[Tensor, " crystal"]
    """Whether the policy is still the one that drew them."""

    def __len__(self) -> int:
        return len(self.rollout)

    def select(self, crystals: Int[Tensor, " member"]) -> Lesson:
        """Some of them."""
        return Lesson(
            rollout=self.rollout.select(crystals),
            values={name: column[crystals] for name, column in self.values.items()},
            advantages=self.advantages[crystals],
            is_first=self.is_first[crystals],
        )

    def joined(self, other: Lesson) -> Lesson:
        """These and others, on the device of these."""
        device = self.advantages.device
        both = torch.arange(len(self) + len(other))
        return Lesson(
            rollout=Rollout.concatenate([self.rollout, other.rollout.to(device)], both),
            values={
                name: torch.cat([column, other.values[name].to(device)])
                for name, column in self.values.items()
            },
            advantages=torch.cat([self.advantages, other.advantages.to(device)]),
            is_first=torch.cat([self.is_first, other.is_first.to(device)]),
        )

    def moved_on(self) -> Lesson:
        """The same after an update: no probability is that of the present policy any more."""
        return replace(self, is_first=torch.zeros_like(self.is_first))


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """What all updates of a run share."""

    chain: Chain
    policy: Policy
    reference: Policy
    """The frozen one."""
    config: PolicyConfig

    def improve(
        self,
        lesson: Lesson,
        steps: Int[Tensor, " step"],
        parts: Iterable[Int[Tensor, " member"]],
        optimizer: Stepping,
        parameters: Sequence[nn.Parameter],
        *,
        max_norm: float | None,
    ) -> dict[str, Tensor]:
        """One optimizer step for each minibatch.

        Args:
            lesson: what is learnt from.
            steps: decisions that are trained.
            parts: crystals of each minibatch.
            optimizer: of the parameters.
            parameters: those of the policy.
            max_norm: gradients are clipped to this norm; None: not.

        Returns:
            Means of all terms over all of it and all processes, `loss`, and the mean norm of the gradients.
        """
        sums, norms = Sums(), []
        for crystals in parts:
            optimizer.zero_grad()
            sums.merge(self.gradients(lesson, steps, crystals))
            sum_gradients(parameters)
            norms.append(nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm))
            optimizer.step()
            lesson = lesson.moved_on()
        return sums.values() | {"grad_norm": torch.stack(norms).mean()}

    def gradients(
        self, lesson: Lesson, steps: Int[Tensor, " step"], crystals: Int[Tensor, " member"]
    ) -> Sums:
        """Add the gradient of a minibatch's loss to the parameters, over all processes together.

        Args:
            lesson: all of it.
            steps: decisions that are trained.
            crystals: those of the minibatch.

        Returns:
            Sums and counts of the terms, of this process.
        """
        step = steps.repeat_interleave(len(crystals))
        crystal = crystals.repeat(len(steps))
        count = torch.tensor(float(len(step)), device=lesson.advantages.device)
        if num_processes() > 1:
            dist.all_reduce(count)
        sums = Sums()
        is_padded = max_padding(self.policy.network) > 0.0
        sizes = lesson.rollout.num_atoms[crystal]
        tokens = self.config.update_tokens or pass_tokens(lesson.advantages.device)
        for rows in passes(sizes, tokens, is_padded=is_padded):
            terms = self._terms(lesson, lesson.rollout.transitions(step[rows], crystal[rows]))
            terms.total(dict.fromkeys(terms.terms, count)).backward()
            sums.add(terms)
        return sums

    def _terms(self, lesson: Lesson, rows: Transitions) -> LossTerms:
        told = {name: column[rows.crystal] for name, column in lesson.values.items()}
        new = self._moments(self.policy, rows, told)
        reference = None
        if self.config.kl_weight != 0.0:
            with torch.no_grad():
                reference = self._moments(self.reference, rows, told)
        advantages, is_first = lesson.advantages[rows.crystal], lesson.is_first[rows.crystal]
        return policy_terms(rows, new, reference, advantages, self.config, is_first=is_first)

    def _moments(self, policy: Policy, rows: Transitions, told: dict[str, Tensor]) -> Moments:
        return self.chain.moments(policy.denoise(told, rows.mask), rows.states, rows.levels, rows.mask)


class Sums:
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

    def merge(self, other: Sums) -> None:
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
    """Which of this process's crystals belong to each minibatch; a random cut of all crystals of all processes.

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


def pass_tokens(device: torch.device) -> int:
    """Atoms in one pass where nobody says otherwise: what stays in a CPU's caches, what fills a GPU."""
    return 1024 if device.type == "cpu" else 8192


def passes(
    num_atoms: Int[Tensor, " row"], max_tokens: int, *, is_padded: bool = True
) -> Iterator[Int[Tensor, " member"]]:
    """Rows cut into passes of about `max_tokens` atoms (one row at least), rows of one size together.

    Args:
        num_atoms: of each row.
        max_tokens: atoms in a pass.
        is_padded: whether a pass may have rows of different sizes.
    """
    if not len(num_atoms):
        return
    order = num_atoms.argsort(stable=True)
    part = (num_atoms[order].cumsum(0) - 1) // max_tokens
    keys = torch.stack([part, part if is_padded else num_atoms[order]])
    _, counts = keys.unique_consecutive(dim=1, return_counts=True)
    yield from order.split(counts.tolist())


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
