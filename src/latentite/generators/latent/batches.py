"""Jobs into batches of similar sizes, so that little is padded."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

MAX_PADDING = 0.045
"""Share of a run's tokens that may be padding."""


def size_batches(
    num_atoms: Int[Tensor, " crystal"], batch_size: int, *, max_padding: float = MAX_PADDING
) -> list[Int[Tensor, " member"]]:
    """Positions of the crystals of each batch.

    Crystals of one size first make batches of their own. Then those that are not full are joined, the cheapest
    pair of neighbouring sizes first, as long as padding stays below `max_padding` of all tokens: a few larger
    batches are much faster than many small ones.

    Args:
        num_atoms: of each crystal.
        batch_size: most crystals in a batch.
        max_padding: share of all tokens; 0 keeps every batch to one size.
    """
    by_size = [(num_atoms == size).nonzero().flatten() for size in num_atoms.unique().tolist()]
    batches = [part for members in by_size for part in members.split(batch_size)]
    full = [part for part in batches if len(part) == batch_size]
    rest = [part for part in batches if len(part) < batch_size]
    largest = [int(num_atoms[part[0]]) for part in rest]
    num_tokens, padding = int(num_atoms.sum()), 0
    while len(rest) > 1:
        costs = [
            (len(rest[i]) * (largest[i + 1] - largest[i]), i)
            for i in range(len(rest) - 1)
            if len(rest[i]) + len(rest[i + 1]) <= batch_size
        ]
        if not costs:
            break
        cost, i = min(costs)
        if padding + cost > max_padding * (num_tokens + padding + cost):
            break
        padding += cost
        rest[i : i + 2] = [torch.cat(rest[i : i + 2])]
        largest[i : i + 2] = [largest[i + 1]]
    return full + rest
