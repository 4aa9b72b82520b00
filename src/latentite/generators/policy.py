"""`Policy`: a generator that reinforcement learning can train, since it makes each crystal by a sequence of decisions.

A trajectory is the sequence that ends in one crystal: the noisy steps of a denoising chain, the tokens of a language
model. `rl/` knows a generator by this file alone; a generator that can be trained has a policy beside its other code
(`latent/policy.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.checkpoint import DataCard
from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import crystal_seeds
from latentite.nn.condition_values import ConditionConfig
from latentite.nn.lora import LoraConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Requests, one for each crystal of a rollout.

    A prompt is a crystal of the data: its conditions are asked, its number of atoms of a model that must be told it,
    and its elements of one that predicts structures. Each crystal of a rollout owns a seed, so that neither batches
    nor processes matter.
    """

    crystals: CrystalBatch
    """One per crystal of the rollout, repeated within a group; on the device."""
    groups: Int[Tensor, " crystal"]
    """Number of the prompt, over all processes; on the CPU."""
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.seeds)

    @staticmethod
    def of(
        batch: CrystalBatch, *, num_samples: int, run_seed: int, rank: int = 0, world_size: int = 1
    ) -> Prompts:
        """`num_samples` crystals for each crystal of this process's batch (crystal k of all is rank k mod world)."""
        prompt = torch.arange(len(batch)) * world_size + rank
        groups = prompt.repeat_interleave(num_samples)
        places = groups * num_samples + torch.arange(num_samples).repeat(len(batch))
        rows = torch.arange(len(batch), device=batch.device).repeat_interleave(num_samples)
        return Prompts(
            crystals=batch.select(rows), groups=groups, seeds=crystal_seeds(run_seed, places.tolist())
        )


Own = TypeVar("Own", bound="Trajectories")


@runtime_checkable
class Trajectories(Protocol):
    """Trajectories of one policy, with all that is needed to ask for the probabilities of their decisions again.

    Among it are what was asked of each crystal and the probabilities of the policy that drew it.
    """

    def __len__(self) -> int: ...

    @property
    def num_decisions(self) -> Int[Tensor, " trajectory"]:
        """Length of each trajectory."""
        ...

    def select(self: Own, members: Int[Tensor, " member"]) -> Own:
        """These trajectories in this order; the positions may be on any device."""
        ...

    @classmethod
    def concatenate(cls: type[Own], parts: Sequence[Own], order: Int[Tensor, " member"] | None = None) -> Own:
        """Trajectories of one device as one batch; with an order those of all parts that it names."""
        ...

    def to(self: Own, device: torch.device | str) -> Own:
        """The same on a device."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint; `Policy.restored` is the way back."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Decisions that are evaluated in one forward pass."""

    trajectory: Int[Tensor, " row"]
    """Positions among the trajectories; a trajectory may have several rows."""
    step: Int[Tensor, "row step"]
    """Decisions of that trajectory, from 0; a step beyond its end is none (`Decision.is_real`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Log-probabilities of decisions under the policy of now, relative to others; with gradients.

    Log-probabilities come as differences because a policy may know these better than their two sides: those of a
    Gaussian over many numbers are large, and their difference would be rounding.
    """

    is_real: Bool[Tensor, "row step"]
    """False where a trajectory has no such decision; everything else is finite there, and not looked at."""
    log_ratio: Float[Tensor, "row step"]
    """log p(action) - log p_old(action), p_old the policy that drew it. On-policy, p_old is p without its gradient: 0
    to the bit."""
    entropy: Float[Tensor, "row step"]
    """Of the distribution that the action was drawn from, nats."""
    kl: Float[Tensor, "row step"] | None = None
    """KL(policy || reference) of these distributions; None without a reference, or where it has no closed form."""
    reference_log_ratio: Float[Tensor, "row step"] | None = None
    """log p_reference(action) - log p(action); None without a reference."""


T = TypeVar("T", bound=Trajectories)


@runtime_checkable
class Policy(Protocol[T]):
    """A trainable generator together with the frozen reference that it must stay near."""

    @property
    def network(self) -> nn.Module:
        """The network that is trained and that a checkpoint holds."""
        ...

    def to(self, device: torch.device | str) -> Policy[T]:
        """The same policy with all that belongs to it, the reference included, on a device."""
        ...

    def compile(self) -> None:
        """`torch.compile` the parts that gain from it, in place; names of parameters stay."""
        ...

    def rollout(self, prompts: Prompts) -> T:
        """Draw one trajectory for each prompt, in their order; without gradients."""
        ...

    def crystals(self, trajectories: T) -> CrystalBatch:
        """The crystal that each trajectory ends in, on the CPU.

        A trajectory that ends in none gives one whose cell is not finite; it counts as unusable.
        """
        ...

    def passes(
        self,
        trajectories: T,
        members: Int[Tensor, " member"],
        steps: Int[Tensor, " step"],
        *,
        max_tokens: int | None,
    ) -> Iterator[Rows]:
        """These decisions of these trajectories, cut into forward passes.

        Args:
            trajectories: where the decisions are from.
            members: positions of the trajectories that are evaluated.
            steps: decisions of each of them, in increasing order.
            max_tokens: bounds the memory of a pass; None: as fits the device.
        """
        ...

    def evaluate(
        self, trajectories: T, rows: Rows, *, is_on_policy: Bool[Tensor, " row"], with_reference: bool
    ) -> Decision:
        """Probabilities of decisions.

        Args:
            trajectories: where the decisions are from.
            rows: which.
            is_on_policy: True where the policy has not moved since it drew them.
            with_reference: compare with the reference, which costs a pass.
        """
        ...

    def restored(self, state: Mapping[str, Any]) -> T:
        """Trajectories from the state that a checkpoint holds, on the device that they were on.

        Raises:
            ValueError: when they are not of a policy like this one.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyPlan:
    """A policy that is checked but not built: adapters are drawn when it is, after the run's seed is set."""

    settings: Any
    """Config from which the trained network can be built again, for the run's checkpoints."""
    build: Callable[[], Policy[Any]]
    """The policy, equal to its reference."""
    has_closed_kl: bool = True
    """True where its decisions have a `Decision.kl`."""
    base_data: DataCard | None = None
    """The base's card, where it is that, and not the prompts, which says what crystals the model makes."""


class PolicyBase(Protocol):
    """A trained generator that reinforcement learning may start from."""

    @property
    def conditions(self) -> Sequence[ConditionConfig]:
        """The properties that it is asked for, in their order."""
        ...

    def asking(self, names: Sequence[str]) -> PolicyBase:
        """The same base, asked for these conditions (`data.target_condition`).

        Raises:
            ValueError: when it cannot be.
        """
        ...

    def plan(self, sampling: Any, *, lora: LoraConfig | None, per_entry: bool) -> PolicyPlan:
        """Check what a run wants of it.

        Args:
            sampling: how trajectories are drawn (`rl_module.sampling`).
            lora: train adapters of this kind instead of all weights.
            per_entry: log-ratios, divergences and entropies are means over a crystal's entries; off, sums.

        Raises:
            ValueError: for what this generator cannot do.
        """
        ...


def of_members(values: Mapping[str, Tensor], members: Int[Tensor, " member"]) -> dict[str, Tensor]:
    """Requests of some crystals, by condition; positions and values may be on different devices."""
    return {name: column[members.to(column.device)] for name, column in values.items()}


def passes(
    sizes: Int[Tensor, " row"], max_tokens: int | None, *, is_padded: bool = True
) -> Iterator[Int[Tensor, " member"]]:
    """Rows cut into passes of about `max_tokens` tokens (one row at least), rows of one size together.

    Args:
        sizes: tokens of each row.
        max_tokens: tokens in a pass; None: 1024 on a CPU (its caches), else 8192 (they fill a GPU).
        is_padded: a pass may have rows of different sizes.
    """
    if not len(sizes):
        return
    wanted = max_tokens or (1024 if sizes.device.type == "cpu" else 8192)
    order = sizes.argsort(stable=True)
    part = (sizes[order].cumsum(0) - 1) // wanted
    keys = torch.stack([part, part if is_padded else sizes[order]])
    _, counts = keys.unique_consecutive(dim=1, return_counts=True)
    yield from order.split(counts.tolist())
