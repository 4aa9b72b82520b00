"""`ElementBaselines`: what a label is by composition alone, one number per fidelity, target and element.

A network then learns only what is left: y = b(composition) + f(crystal). An element without a baseline is NaN in
the table and refused by name, never taken for 0. `baseline_fit.py` fits the table and keeps it as
YAML; the predictor adds it to what its heads say.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite.crystal import FIDELITY, CrystalBatch
from latentite.elements import NUM_ELEMENTS, symbol_of
from latentite.nn.segment import segment_sum

__all__ = ["FIDELITY", "ElementBaselines", "Extent"]


class Extent(StrEnum):
    """Growth of a target with its crystal."""

    PER_ATOM = "per_atom"
    """Intensive, per atom (a formation energy in eV/atom): the baseline is the mean over the atoms."""
    TOTAL = "total"
    """Of the whole cell (a total energy in eV): the baseline is the sum over the atoms."""
    NONE = "none"
    """Without a baseline (a band gap): it is 0 for every crystal."""


class ElementBaselines(nn.Module):
    """A table of element energies (or whatever the targets are), and their sum over each crystal.

    The table is empty at first: zero for targets of extent `none`, NaN for all others.
    """

    values: Tensor
    """[fidelity target 119] float64; the last axis is the atomic number, NaN where there is no baseline."""

    def __init__(
        self, *, fidelities: Sequence[str], targets: Sequence[str], extents: Sequence[Extent | str]
    ) -> None:
        """An empty table.

        Args:
            fidelities: their names, in the order of the config.
            targets: names of the columns.
            extents: one for each target.

        Raises:
            ValueError: for repeated or no names, or another number of extents than targets.
        """
        super().__init__()
        for what, names in (("fidelities", fidelities), ("targets", targets)):
            if not names or len(set(names)) != len(names):
                raise ValueError(f"{what} must be different names, at least one, got {list(names)}")
        if len(extents) != len(targets):
            raise ValueError(f"extents must be one for each of {len(targets)} targets, got {len(extents)}")
        self.fidelities, self.targets = tuple(fidelities), tuple(targets)
        self.extents = tuple(Extent(extent) for extent in extents)
        values = torch.full((len(fidelities), len(targets), NUM_ELEMENTS + 1), torch.nan, dtype=torch.float64)
        values[:, [extent is Extent.NONE for extent in self.extents]] = 0.0
        self.register_buffer("values", values)

    def forward(
        self, batch: CrystalBatch, fidelity_index: Int[Tensor, " crystal"]
    ) -> Float[Tensor, "crystal target"]:
        """The baseline of every target, in the unit of its labels.

        Args:
            batch: only its atomic numbers count.
            fidelity_index: position of each crystal's fidelity.

        Raises:
            ValueError: naming element, fidelity and target where there is no baseline.
        """
        result = self.unchecked(batch.atomic_numbers, batch.crystal_index, batch.num_atoms, fidelity_index)
        if bool(result.isnan().any()):
            raise ValueError("; ".join(self.missing(batch, fidelity_index)))
        return result.to(batch.frac_coords.dtype)

    def unchecked(
        self,
        atomic_numbers: Int[Tensor, " atom"],
        crystal_index: Int[Tensor, " atom"],
        num_atoms: Int[Tensor, " crystal"],
        fidelity_index: Int[Tensor, " crystal"],
    ) -> Float[Tensor, "crystal target"]:
        """The same in float64, NaN where an element has no baseline; nothing depends on values, so it exports."""
        per_atom = self.values[fidelity_index[crystal_index], :, atomic_numbers]  # [atom target]
        total = segment_sum(per_atom, crystal_index, num_atoms.shape[0])
        is_mean = torch.tensor([extent is Extent.PER_ATOM for extent in self.extents], device=total.device)
        return torch.where(is_mean, total / num_atoms[:, None], total)

    def missing(self, batch: CrystalBatch, fidelity_index: Int[Tensor, " crystal"]) -> list[str]:
        """A sentence for every element of the batch that lacks a baseline; empty when all have one."""
        owners = fidelity_index[batch.crystal_index]
        pairs = torch.stack([owners, batch.atomic_numbers], dim=1).unique(dim=0)
        is_missing = self.values[pairs[:, 0], :, pairs[:, 1]].isnan()
        sentences = []
        for row, column in is_missing.nonzero().tolist():
            fidelity, number = pairs[row].tolist()
            sentences.append(
                f"{symbol_of(number)} must have a baseline of {self.targets[column]} at fidelity "
                f"{self.fidelities[fidelity]}, got none: no crystal of the training split has this element; "
                "add one, or leave such crystals out"
            )
        return sentences
