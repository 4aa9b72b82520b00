"""`LossTerms`: what every objective gives back, named and not yet reduced to one number.

Each term is a sum with its count, so that several processes can divide by the count of all of them and the
loss of a run does not depend on how its batches were dealt out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A sum over a batch, how many entries were summed, and the weight in the total."""

    sum: Float[Tensor, ""]
    count: Float[Tensor, ""]
    weight: float

    @staticmethod
    def mean_of(values: Float[Tensor, " *any"], weight: float) -> Term:
        """The term whose value is the mean of these values (fp32 whatever the precision of training)."""
        values = values.float()
        count = torch.tensor(float(values.numel()), device=values.device)
        return Term(sum=values.sum(), count=count, weight=weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """Named terms of one batch."""

    terms: dict[str, Term]
    over_present: bool = False
    """Divide the total by the weights of the terms that have entries: labels with holes, where most terms of a batch
    may be empty."""

    def values(self, counts: dict[str, Tensor] | None = None) -> dict[str, Float[Tensor, ""]]:
        """Unweighted value of each term, over these counts or its own."""
        own = {name: term.count for name, term in self.terms.items()}
        return {name: term.sum / (counts or own)[name].clamp(min=1.0) for name, term in self.terms.items()}

    def total(self, counts: dict[str, Tensor] | None = None) -> Float[Tensor, ""]:
        """Weighted sum of the values. Terms of weight 0 are for the log only and touch no gradient."""
        own = {name: term.count for name, term in self.terms.items()}
        return self.combined(self.values(counts), counts or own)

    def combined(self, values: dict[str, Tensor], counts: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Weighted sum of values that were divided by these counts."""
        used = {name: term.weight for name, term in self.terms.items() if term.weight != 0.0}
        total = torch.stack([weight * values[name] for name, weight in used.items()]).sum()
        if not self.over_present:
            return total
        present = torch.stack([weight * (counts[name] > 0) for name, weight in used.items()]).sum()
        return total / torch.where(present > 0, present, 1.0)


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
