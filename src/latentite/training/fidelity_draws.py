"""How many rows of each fidelity training took, beside how many it was asked for: a line in the log of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from latentite.crystal import FIDELITY
from latentite.data.sampler import WeightedDraw
from latentite.training.datamodule import CrystalDataModule
from latentite.training.reduce import num_processes


class FidelityDraws:
    """Counts the rows of the batches that this process trains on."""

    def __init__(self, names: Sequence[str], epoch_rows: Sequence[int], device: torch.device | str) -> None:
        """Start at zero.

        Args:
            names: of the fidelities.
            epoch_rows: of each, what an epoch should have.
            device: where the batches are: counting must not wait for it.
        """
        self._names, self._epoch_rows = tuple(names), tuple(epoch_rows)
        self._counts = torch.zeros(len(self._names), dtype=torch.long, device=device)

    @classmethod
    def of(cls, data: CrystalDataModule, device: torch.device | str) -> FidelityDraws:
        """For the fidelities of the data; without any it counts nothing."""
        names, weights = list(data.config.fidelities), data.config.fidelity_weights
        if not names:
            return cls([], [], device)
        group = data.splits["train"].crystals.properties[FIDELITY].long()
        if weights is None:
            return cls(names, torch.bincount(group, minlength=len(names)).tolist(), device)
        return cls(names, WeightedDraw(group=group, weights=weights).counts(), device)

    def add(self, fidelity: Int[Tensor, " crystal"]) -> None:
        """Count a batch: the position of each row's fidelity."""
        if self._names:
            self._counts.index_add_(0, fidelity, torch.ones_like(fidelity))

    def describe(self) -> str:
        """What all processes drew so far, and the same number of rows as asked for; empty without fidelities."""
        if not self._names:
            return ""
        counts = self._counts.clone()
        if num_processes() > 1:
            dist.all_reduce(counts)
        drawn, length = counts.tolist(), sum(self._epoch_rows)
        parts = [
            f"{name} {count:,} ({sum(drawn) * wanted / length:,.0f})"
            for name, count, wanted in zip(self._names, drawn, self._epoch_rows, strict=True)
        ]
        return f"rows drawn (asked for): {', '.join(parts)}"
