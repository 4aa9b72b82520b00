"""Losses over several processes: one loss whatever the deal of crystals."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from latentite.objectives.terms import LossTerms


def num_processes() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_loss(terms: LossTerms) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to differentiate, and the values to log, of the batch of all processes together.

    Each term is divided by its count over all processes. DDP averages gradients over processes, so the loss is
    multiplied by their number: the average is then the sum, which is the gradient of one process with all.

    Returns:
        The loss, and detached values: each term unweighted, and their weighted sum as `loss`.
    """
    world = num_processes()
    sums = torch.stack([term.sum.detach() for term in terms.terms.values()])
    counts = torch.stack([term.count for term in terms.terms.values()])
    if world > 1:
        both = torch.stack([sums, counts])
        dist.all_reduce(both)
        sums, counts = both.unbind()
    global_counts = dict(zip(terms.terms, counts.unbind(), strict=True))
    means = (sums / counts.clamp(min=1.0)).unbind()
    values = dict(zip(terms.terms, means, strict=True))
    loss = terms.combined(values, global_counts)
    return terms.total(global_counts) * world, values | {"loss": loss}
