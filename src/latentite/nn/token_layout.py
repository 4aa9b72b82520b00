"""`TokenLayout`: where packed latent tokens sit, and how a value per crystal meets its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.nn.transformer import PackedLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLayout:
    """Where the rows that the denoiser computes sit in the padded input. Derived from the mask, once a batch.

    `of` packs: only atoms are computed, but it asks the device for their number. `dense` computes padding as
    well and needs no number from the device, which CUDA graphs want.
    """

    packed: PackedLayout
    crystal_index: Int[Tensor, " row"] | None
    """For each row its crystal; None when every crystal has the same number of rows."""
    token_index: Int[Tensor, " row"]
    """For each row its place in its crystal; padding repeats that of the last atom."""

    @staticmethod
    def of(mask: Bool[Tensor, "crystal token"]) -> TokenLayout:
        """Layout that leaves padding out. A crystal's atoms come first in its row of the mask."""
        num_atoms = mask.sum(dim=-1)
        packed = PackedLayout.of(num_atoms)
        if packed.slot is None:
            token_index = torch.arange(packed.num_slots, device=mask.device).repeat(packed.num_crystals)
            return TokenLayout(packed=packed, crystal_index=None, token_index=token_index)
        return TokenLayout(
            packed=packed,
            crystal_index=packed.slot // packed.num_slots,
            token_index=packed.slot % packed.num_slots,
        )

    @staticmethod
    def dense(mask: Bool[Tensor, "crystal token"]) -> TokenLayout:
        """Layout that computes every token; padding is still never attended to."""
        packed = PackedLayout(
            num_crystals=mask.shape[0],
            num_slots=mask.shape[1],
            slot=None,
            attention_mask=mask[:, None, None, :],
        )
        token_index = (mask.cumsum(dim=-1) - 1).clamp(min=0).flatten()
        return TokenLayout(packed=packed, crystal_index=None, token_index=token_index)

    def grouped(self, rows: Float[Tensor, "row channel"]) -> Float[Tensor, "*row channel"]:
        """Rows in the form that broadcasts against `spread`."""
        return rows if self.crystal_index is not None else rows.unflatten(0, (-1, self.packed.num_slots))

    def spread(self, per_crystal: Float[Tensor, "crystal channel"]) -> Float[Tensor, "*row channel"]:
        """Values of crystals in the form that broadcasts against `grouped`; no copy where sizes are equal."""
        if self.crystal_index is None:
            return per_crystal.unsqueeze(1)
        return per_crystal.index_select(0, self.crystal_index)

    def modulate(
        self,
        rows: Float[Tensor, "row channel"],
        shift: Float[Tensor, "crystal channel"],
        scale: Float[Tensor, "crystal channel"],
    ) -> Float[Tensor, "row channel"]:
        """`norm(rows) * (1 + scale) + shift`, with a layer norm that has no weights of its own."""
        normed = self.grouped(F.layer_norm(rows, rows.shape[-1:], eps=1e-6))
        return torch.addcmul(self.spread(shift), normed, self.spread(1.0 + scale)).view_as(rows)

    def gate(
        self,
        rows: Float[Tensor, "row channel"],
        gate: Float[Tensor, "crystal channel"],
        branch: Float[Tensor, "row channel"],
    ) -> Float[Tensor, "row channel"]:
        """`rows + gate * branch`."""
        gated = torch.addcmul(self.grouped(rows), self.spread(gate), self.grouped(branch))
        return gated.view_as(rows)
