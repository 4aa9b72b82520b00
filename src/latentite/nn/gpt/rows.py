"""Orbits that wait for their places, the cells that each may be in, and passes of similar ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.nn.gpt.grid import cell_tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceRows:
    """Orbits that are to be placed."""

    crystal: Tensor
    orbit: Tensor
    position: Tensor
    radius: Tensor
    hidden: Tensor
    coarse: Tensor
    fine: Tensor
    fixed: Tensor

    def select(self, index: Tensor) -> PlaceRows:
        return PlaceRows(**{name: getattr(self, name)[index] for name in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateCells:
    """Coarse cells that each place may be in; a fixed coordinate is in the first one."""

    cells: Int[Tensor, "cell 3"]
    first: Int[Tensor, " place"]
    count: Int[Tensor, " place"]

    @staticmethod
    def of(position: Int[Tensor, " place"], fixed: Bool[Tensor, "place 3"]) -> CandidateCells:
        """Of places by their positions."""
        kinds = position * 8 + (fixed.long() * torch.tensor([1, 2, 4], device=position.device)).sum(-1)
        unique, inverse = kinds.unique(return_inverse=True)
        cells = [_cells_of_kind(kind) for kind in unique.tolist()]
        count = torch.tensor([len(one) for one in cells], device=position.device)
        first = count.cumsum(0) - count
        return CandidateCells(
            cells=torch.cat(cells).to(position.device), first=first[inverse], count=count[inverse]
        )

    def all_of(
        self, members: Int[Tensor, " member"]
    ) -> tuple[Int[Tensor, "member cell"], Float[Tensor, "member cell"]]:
        """All cells of some places, padded, and 0, or minus infinity for padding."""
        count = self.count[members]
        slots = torch.arange(int(count.max()), device=count.device)
        exists = slots < count.unsqueeze(-1)
        index = self.first[members].unsqueeze(-1) + torch.where(exists, slots, 0)
        return index, torch.zeros(exists.shape, device=count.device).masked_fill(~exists, float("-inf"))

    def draw(
        self, members: Int[Tensor, " member"], num: int
    ) -> tuple[Int[Tensor, "member cell"], Float[Tensor, "member cell"]]:
        """So many cells of each place at random, and what makes them stand for all."""
        count = self.count[members].unsqueeze(-1)
        drawn = (torch.rand(len(members), num, device=count.device) * count).long()
        index = self.first[members].unsqueeze(-1) + drawn
        return index, (count.float() / num).log().expand(-1, num)


@cache
def _cells_of_kind(kind: int) -> Int[Tensor, "cell 3"]:
    position, flags = divmod(kind, 8)
    cells = cell_tensor(position)
    for axis in range(3):
        if flags >> axis & 1:
            cells = cells[cells[:, axis] == 0]
    return cells


def buckets(counts: Tensor, neighbours: Tensor, wide: Tensor, cost: float) -> list[Tensor]:
    """Places in groups of similar size whose padded candidates times neighbours stay below a cost."""
    groups: list[Tensor] = []
    for flag in (False, True):
        members = torch.nonzero(wide == flag).squeeze(-1)
        order = members[(counts[members] * 1000 + neighbours[members]).argsort(stable=True)]
        current: list[int] = []
        most = largest = real = 0
        for place, count, near in zip(
            order.tolist(), counts[order].tolist(), neighbours[order].tolist(), strict=True
        ):
            size = count * (near + 1)
            padded = (len(current) + 1) * max(most, count) * max(largest, near + 1)
            if current and (padded > cost or (padded > 1.6 * (real + size) and len(current) >= 12)):
                groups.append(torch.tensor(current, device=counts.device))
                current, most, largest, real = [], 0, 0, 0
            current.append(place)
            most, largest, real = max(most, count), max(largest, near + 1), real + size
        if current:
            groups.append(torch.tensor(current, device=counts.device))
    return groups
