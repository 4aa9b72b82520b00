"""`SkeletonNetwork`: the trunk of the crystal GPT, and what it says first: space group, letters and elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentite.nn.element_features import NUM_SYMBOLS, element_features
from latentite.nn.gpt.inputs import PaddedOrbits
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.nn.gpt.tokens import (
    FeaturedEmbedding,
    group_features,
    letter_tables,
    position_features,
)
from latentite.nn.gpt.trunk import CausalTransformer
from latentite.nn.gpt.wishes import Wish, Wishes
from latentite.symmetry.positions import MAX_POSITIONS, NUM_GROUPS

STOP = MAX_POSITIONS
"""End of a skeleton, after all letters."""

NUM_ORDINALS = 64
"""Places of orbits that every network tells apart, so that limits below it change no shape."""


class SkeletonNetwork(nn.Module):
    """Embeddings, trunk, and heads of space groups, letters and elements."""

    def __init__(self, size: GPTSize, limits: GPTLimits) -> None:
        super().__init__()
        self.size, self.limits = size, limits
        width = size.d_model
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.groups = FeaturedEmbedding(group_features(), width)
        self.positions = FeaturedEmbedding(position_features(), width)
        self.elements = FeaturedEmbedding(element_features(), width)
        self.ordinal = nn.Embedding(max(NUM_ORDINALS, limits.max_orbits), width)
        self.stage = nn.Embedding(3, width)
        self.trunk = CausalTransformer(
            d_model=width,
            num_layers=size.num_layers,
            num_heads=size.num_heads,
            dim_feedforward=size.dim_feedforward,
            dropout=size.dropout,
        )
        self.dropout = nn.Dropout(size.dropout)
        self.group_head = nn.Linear(width, NUM_GROUPS + 1)
        self.letter_query = nn.Linear(width, width)
        self.stop_head = nn.Linear(width, 1)
        self.element_head = nn.Sequential(
            nn.Linear(2 * width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width)
        )

    def ordinals(self, num_slots: int) -> Float[Tensor, "orbit channel"]:
        """Embeddings of first, second, ... orbits; those beyond all limits, which have no probability, are alike."""
        slots = torch.arange(num_slots, device=self.ordinal.weight.device)
        return self.ordinal(slots.clamp(max=self.ordinal.num_embeddings - 1))

    def orbit_tokens(self, position: Tensor, element: Tensor) -> Tensor:
        """Embeddings of letters with their elements."""
        return self.positions(position) + self.elements(element)

    # Masks

    def letter_mask(
        self, group: Tensor, last: Tensor, used_atoms: Tensor, is_first: Tensor
    ) -> Bool[Tensor, "*row 28"]:
        """Letters that may follow; the last column is the end.

        Args:
            group: space group of each row.
            last: row of the table of the position before; not read where there is none.
            used_atoms: atoms of the primitive cell so far.
            is_first: whether no orbit is there yet.
        """
        tables = letter_tables(group.device)
        letters = torch.arange(MAX_POSITIONS, device=group.device)
        first = tables.first[group]
        exists = letters < tables.count[group].unsqueeze(-1)
        position = (first.unsqueeze(-1) + letters).clamp(max=len(tables.num_images) - 1)
        own = (last - first).unsqueeze(-1)
        repeatable = (tables.num_free[last] > 0).unsqueeze(-1)
        in_order = is_first.unsqueeze(-1) | (letters > own) | ((letters == own) & repeatable)
        fits = used_atoms.unsqueeze(-1) + tables.num_images[position] <= self.limits.max_atoms
        return torch.cat([exists & in_order & fits, ~is_first.unsqueeze(-1)], dim=-1)

    def element_mask(
        self,
        last_element: Tensor,
        same_letter: Tensor,
        present: Tensor,
        max_elements: Tensor | int | None = None,
    ) -> Bool[Tensor, "*row 119"]:
        """Elements that may sit on a letter: those of one letter in order, and not more kinds than allowed.

        Args:
            last_element: of the orbit before.
            same_letter: whether the letter is that of the orbit before.
            present: elements so far.
            max_elements: largest number of kinds; by default that of the training data.
        """
        symbols = torch.arange(NUM_SYMBOLS, device=present.device)
        limit = self.limits.max_elements if max_elements is None else max_elements
        is_full = present.sum(-1) >= limit
        in_order = ~same_letter.unsqueeze(-1) | (symbols >= last_element.unsqueeze(-1))
        return in_order & (~is_full.unsqueeze(-1) | present) & (symbols > 0)

    def letter_logits(self, hidden: Tensor, group: Tensor) -> Float[Tensor, "*row 28"]:
        """Scores of the letters of each row's group, and of the end."""
        tables = letter_tables(group.device)
        letters = torch.arange(MAX_POSITIONS, device=group.device)
        index = (tables.first[group].unsqueeze(-1) + letters).clamp(max=len(tables.num_images) - 1)
        keys = self.positions.table()[index]
        scores = torch.einsum("...d,...kd->...k", self.letter_query(hidden), keys) * hidden.shape[-1] ** -0.5
        return torch.cat([scores, self.stop_head(hidden)], dim=-1).float()

    def element_logits(self, hidden: Tensor, position: Tensor) -> Float[Tensor, "*row 119"]:
        """Scores of the elements on a letter."""
        query = self.element_head(torch.cat([hidden, self.positions(position)], dim=-1))
        return (query @ self.elements.table().T * hidden.shape[-1] ** -0.5).float()

    # Teacher forcing

    def skeleton_log_prob(
        self, orbits: PaddedOrbits, hidden: Float[Tensor, "crystal token channel"], images: Tensor
    ) -> tuple[
        Float[Tensor, " crystal"], Float[Tensor, "crystal orbit_or_stop"], Float[Tensor, "crystal orbit"]
    ]:
        """Log-probability of the space group, of letters and the end, and of elements.

        Args:
            orbits: in canonical order.
            hidden: of the trunk: start, group, and orbits.
            images: atoms of each orbit, 0 for padding.
        """
        possible = Wishes.of([Wish()]).group_mask(self.limits).to(hidden.device)
        groups = self.group_head(hidden[:, 0]).float().masked_fill(~possible, float("-inf"))
        group = groups.log_softmax(-1).gather(1, orbits.space_group.unsqueeze(-1)).squeeze(-1)
        return group, self._letters(orbits, hidden[:, 1:], images), self._elements(orbits, hidden[:, 1:-1])

    def _letters(self, orbits: PaddedOrbits, hidden: Tensor, images: Tensor) -> Tensor:
        tables = letter_tables(orbits.position.device)
        num_slots = orbits.position.shape[1]
        group = orbits.space_group.unsqueeze(1).expand(-1, num_slots + 1)
        zero = torch.zeros_like(orbits.position[:, :1])
        slots = torch.arange(num_slots + 1, device=zero.device)
        last = torch.cat([zero, orbits.position], dim=1)
        used = torch.cat([zero, images.cumsum(1)], dim=1)
        mask = self.letter_mask(group, last, used, (slots == 0).expand_as(last))
        # After as many orbits as there may be, only the end can follow.
        mask[:, self.limits.max_orbits :, :STOP] = False
        logits = self.letter_logits(hidden, group).masked_fill(~mask, float("-inf"))
        num = orbits.valid.sum(-1, keepdim=True)
        target = torch.cat([orbits.position - tables.first[orbits.space_group].unsqueeze(-1), zero], dim=1)
        target = torch.where(slots == num, STOP, target.clamp(0, STOP))
        chosen = logits.log_softmax(-1).gather(2, target.unsqueeze(-1)).squeeze(-1)
        return torch.where(slots <= num, chosen, 0.0)

    def _elements(self, orbits: PaddedOrbits, hidden: Tensor) -> Tensor:
        previous = torch.cat([torch.zeros_like(orbits.element[:, :1]), orbits.element[:, :-1]], dim=1)
        same = torch.zeros_like(orbits.valid)
        same[:, 1:] = orbits.position[:, 1:] == orbits.position[:, :-1]
        present = F.one_hot(previous, NUM_SYMBOLS).cumsum(1) > 0
        present[..., 0] = False
        allowed = self.element_mask(previous, same, present)
        logits = self.element_logits(hidden, orbits.position).masked_fill(~allowed, float("-inf"))
        chosen = logits.log_softmax(-1).gather(2, orbits.element.unsqueeze(-1)).squeeze(-1)
        return torch.where(orbits.valid, chosen, 0.0)
