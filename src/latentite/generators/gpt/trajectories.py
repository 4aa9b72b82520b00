"""`GPTTrajectories`: crystals as the sequences of decisions in which a crystal GPT draws them.

A decision is a space group, a letter, the end of the letters, an element, one free component of the cell, a coarse cell
or a fine bin of a free coordinate. What follows from these (special coordinates, the origin along polar axes) is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.generators.policy import of_members
from latentite.nn.gpt.tokens import letter_tables
from latentite.symmetry.cells import free_components
from latentite.symmetry.orbits import OrbitBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTTrajectories:
    """Drawn crystals, what was asked of each, and the probabilities of the policy that drew them."""

    orbits: OrbitBatch
    """Without properties."""
    reductions: Int[Tensor, "trajectory 3 3"]
    """Matrices that reduce the primitive lattices."""
    log_probs: Float[Tensor, "trajectory decision"]
    """Of each crystal's decisions when it was drawn, nats; 0 after its last one."""
    num_decisions: Int[Tensor, " trajectory"]
    values: dict[str, Tensor]
    """Requests: a column by condition, NaN where a crystal was not asked for it."""

    def __len__(self) -> int:
        return len(self.num_decisions)

    def select(self, members: Int[Tensor, " member"]) -> GPTTrajectories:
        """These trajectories in this order; the positions may be on any device."""
        members = members.to(self.num_decisions.device)
        return GPTTrajectories(
            orbits=self.orbits.select(members),
            reductions=self.reductions[members],
            log_probs=self.log_probs[members],
            num_decisions=self.num_decisions[members],
            values=of_members(self.values, members),
        )

    @classmethod
    def concatenate(
        cls, parts: Sequence[GPTTrajectories], order: Int[Tensor, " member"] | None = None
    ) -> GPTTrajectories:
        """Trajectories of one device as one batch; with an order those of all parts that it names."""
        width = max(part.log_probs.shape[1] for part in parts)
        joined = cls(
            orbits=OrbitBatch.concatenate([part.orbits for part in parts]),
            reductions=torch.cat([part.reductions for part in parts]),
            log_probs=torch.cat(
                [F.pad(part.log_probs, (0, width - part.log_probs.shape[1])) for part in parts]
            ),
            num_decisions=torch.cat([part.num_decisions for part in parts]),
            values={name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values},
        )
        return joined if order is None else joined.select(order)

    def to(self, device: torch.device | str) -> GPTTrajectories:
        """The same on a device."""
        return GPTTrajectories(
            orbits=self.orbits.to(device),
            reductions=self.reductions.to(device),
            log_probs=self.log_probs.to(device),
            num_decisions=self.num_decisions.to(device),
            values={name: column.to(device) for name, column in self.values.items()},
        )

    def state(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return plain | {"orbits": {item.name: getattr(self.orbits, item.name) for item in fields(OrbitBatch)}}

    @staticmethod
    def restored(state: Mapping[str, Any]) -> GPTTrajectories:
        """The way back from `state`."""
        return GPTTrajectories(**{**state, "orbits": OrbitBatch(**state["orbits"])})


def decision_columns(orbits: OrbitBatch) -> tuple[Int[Tensor, "crystal decision"], Int[Tensor, " crystal"]]:
    """Places of the decisions of each crystal in `LogProbability.decisions` of a batch.

    Returns:
        The column of each decision in the order in which they are made (any column after the last one), and how
        many there are.
    """
    exists = _exists(orbits)
    counts = exists.sum(-1)
    columns = (~exists).int().argsort(dim=-1, stable=True)
    return columns[:, : int(counts.max())], counts


def _exists(orbits: OrbitBatch) -> Bool[Tensor, "crystal column"]:
    """Marks the columns of `LogProbability.decisions` that are decisions of a crystal."""
    tables, num = letter_tables(orbits.position.device), orbits.num_orbits
    most = int(num.max())
    slots = torch.arange(most, device=num.device)
    is_orbit = slots < num.unsqueeze(-1)
    skeleton = torch.stack([slots <= num.unsqueeze(-1), is_orbit], dim=-1).flatten(1)
    position = orbits.position.new_zeros(is_orbit.shape)
    position[is_orbit] = orbits.position
    axes = torch.arange(3, device=num.device)
    is_free = axes < tables.num_free[position].unsqueeze(-1)
    # The first orbit is at 0 along polar axes: the choice of the origin is no decision.
    is_free = is_free & ~(tables.is_polar[position] & (slots == 0).view(-1, 1))
    places = torch.cat([is_free.any(-1, keepdim=True), is_free], dim=-1) & is_orbit.unsqueeze(-1)
    one = torch.ones_like(is_orbit[:, :1])
    is_full = (num == most).unsqueeze(-1)
    return torch.cat([one, skeleton, is_full, free_components(orbits.space_group), places.flatten(1)], dim=-1)
