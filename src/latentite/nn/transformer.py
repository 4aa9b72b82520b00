"""A pre-norm transformer over packed crystals: the trunk of the VAE's encoder and decoder.

Tokens (atoms) stay packed through every linear layer, where nearly all the work is; only attention sees a padded
view, so a batch of mixed sizes wastes almost nothing. Tensor names follow `torch.nn.TransformerEncoder`, so public
checkpoints fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.base.plain import check_counts


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedLayout:
    """Place of each packed atom in a padded `[crystal, slot]` view. Derived from `num_atoms` once a batch."""

    num_crystals: int
    num_slots: int
    """Atoms of the largest crystal."""
    slot: Int[Tensor, " atom"] | None
    """Position of each atom in the flattened padded view; None when nothing is padded."""
    attention_mask: Bool[Tensor, "crystal 1 1 slot"] | None
    """True where a key may be attended to; None when nothing is padded."""

    @staticmethod
    def of(num_atoms: Int[Tensor, " crystal"]) -> PackedLayout:
        """Layout of crystals with these numbers of atoms."""
        num_crystals = num_atoms.shape[0]
        if num_crystals == 0:
            return PackedLayout(num_crystals=0, num_slots=0, slot=None, attention_mask=None)
        num_slots = int(num_atoms.max())
        mask = torch.arange(num_slots, device=num_atoms.device) < num_atoms.unsqueeze(-1)
        if int(num_atoms.sum()) == num_crystals * num_slots:
            return PackedLayout(
                num_crystals=num_crystals, num_slots=num_slots, slot=None, attention_mask=None
            )
        return PackedLayout(
            num_crystals=num_crystals,
            num_slots=num_slots,
            slot=mask.flatten().nonzero().squeeze(-1),
            attention_mask=mask[:, None, None, :],
        )

    def pad(self, packed: Float[Tensor, "atom channel"]) -> Float[Tensor, "crystal slot channel"]:
        """Packed values in the padded view, zeros elsewhere."""
        if self.slot is not None:
            padded = packed.new_zeros(self.num_crystals * self.num_slots, packed.shape[-1])
            packed = padded.index_copy(0, self.slot, packed)
        return packed.view(self.num_crystals, self.num_slots, packed.shape[-1])

    def pack(self, padded: Float[Tensor, "crystal slot channel"]) -> Float[Tensor, "atom channel"]:
        """The inverse of `pad`."""
        flat = padded.reshape(self.num_crystals * self.num_slots, padded.shape[-1])
        return flat if self.slot is None else flat.index_select(0, self.slot)


def attend(
    query: Float[Tensor, "crystal head slot channel"],
    key: Float[Tensor, "crystal head slot channel"],
    value: Float[Tensor, "crystal head slot channel"],
    mask: Bool[Tensor, "crystal 1 1 slot"] | None,
) -> Float[Tensor, "crystal head slot channel"]:
    """`softmax(q k^T / sqrt(d)) v` over the slots that the mask allows.

    On a GPU this is torch's fused kernel. On a CPU that kernel is made for long sequences: at 20 slots in
    bfloat16 its backward pass took 53 % of a training step (`docs/log.md`), so there the three products are
    written out, in float32, whose small batched products are the faster ones.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        scale = query.shape[-1] ** -0.5
        scores = (query.float() * scale) @ key.float().mT
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return (scores.softmax(dim=-1) @ value.float()).to(query.dtype)


class Gelu(StrEnum):
    """Forms of the GELU (Hendrycks & Gimpel 2016)."""

    TANH = "tanh"
    EXACT = "exact"


@dataclass(kw_only=True, slots=True)
class TransformerSize:
    """Size of a stack. Defaults are those of the public checkpoints' VAE."""

    d_model: int = 512
    num_heads: int = 8
    dim_feedforward: int = 2048
    num_layers: int = 8
    gelu: Gelu = Gelu.TANH

    def __post_init__(self) -> None:
        check_counts(self, "d_model", "num_heads", "dim_feedforward", "num_layers")
        if self.d_model % self.num_heads or self.d_model % 2:
            raise ValueError(
                f"d_model must be even and divisible by num_heads={self.num_heads}, got {self.d_model}"
            )


class SelfAttention(nn.Module):
    """Multi-head self-attention among the atoms of each crystal (Vaswani et al. 2017, eq. 1), fused."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, tokens: Float[Tensor, "atom channel"], layout: PackedLayout
    ) -> Float[Tensor, "atom channel"]:
        """Attention of each atom to all atoms of its crystal, to be added; the same shape."""
        projected = layout.pad(F.linear(tokens, self.in_proj_weight, self.in_proj_bias))
        query, key, value = rearrange(
            projected, "c s (three h d) -> three c h s d", three=3, h=self.num_heads
        )
        attended = attend(query, key, value, layout.attention_mask)
        return self.out_proj(layout.pack(rearrange(attended, "c h s d -> c s (h d)")))


class TransformerLayer(nn.Module):
    """Pre-norm block: attention, then a GELU feed-forward network, each added to its input."""

    def __init__(self, d_model: int, num_heads: int, dim_feedforward: int, gelu: Gelu) -> None:
        super().__init__()
        self.approximate = "tanh" if gelu is Gelu.TANH else "none"
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = SelfAttention(d_model, num_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)

    def forward(
        self, tokens: Float[Tensor, "atom channel"], layout: PackedLayout
    ) -> Float[Tensor, "atom channel"]:
        """`d_model` channels per packed atom, before and after."""
        tokens = tokens + self.self_attn(self.norm1(tokens), layout)
        hidden = F.gelu(self.linear1(self.norm2(tokens)), approximate=self.approximate)
        return tokens + self.linear2(hidden)


class Transformer(nn.Module):
    """A stack of `TransformerLayer` with a final layer norm."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(size.d_model, size.num_heads, size.dim_feedforward, size.gelu)
            for _ in range(size.num_layers)
        )
        self.norm = nn.LayerNorm(size.d_model)

    def forward(
        self, tokens: Float[Tensor, "atom channel"], layout: PackedLayout
    ) -> Float[Tensor, "atom channel"]:
        """`d_model` channels per packed atom, before and after; no crystal sees another.

        Args:
            tokens: of all atoms, crystal after crystal.
            layout: `PackedLayout.of(num_atoms)`.
        """
        for layer in self.layers:
            tokens = layer(tokens, layout)
        return self.norm(tokens)


def index_embedding(
    index: Int[Tensor, " atom"], d_model: int, *, period: float = 2048.0
) -> Float[Tensor, "atom channel"]:
    """Sine and cosine embedding of an atom's place in its crystal (Vaswani et al. 2017, sec. 3.5).

    Angle k is `index * pi / period ** (2 k / d_model)`, sines first, then cosines, the form that
    AlphaFold-style and Chemeleon2 code use.
    """
    k = torch.arange(d_model // 2, device=index.device)
    angle = index.unsqueeze(-1) * math.pi / period ** (2 * k / d_model)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLayout:
    """Places of the rows that the denoiser computes in the padded input. Derived from the mask, once a batch.

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
