"""Which crystals make a batch: by count or by atoms, bucketed by size, the same for every run of a seed.

A plan is a function of (seed, epoch) alone, so resuming needs no state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from latentite.base.plain import check_seed


@dataclass(kw_only=True, slots=True)
class BatchPlan:
    """How a split is cut into batches."""

    batch_size: int = 256
    """Crystals per batch over all processes; with `batch_atoms` the most that a batch may hold."""
    batch_atoms: int | None = None
    """If given, a batch holds at most this many atoms (padded to its largest crystal when bucketed)."""
    bucketed: bool = True
    """Batches of crystals of similar size. Off, every batch is a fair random draw."""
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.batch_atoms is not None and self.batch_atoms < 1:
            raise ValueError(f"batch_atoms must be at least 1 or null, got {self.batch_atoms}")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightedDraw:
    """Which rows an epoch holds when each group (fidelity) has a share of them.

    An epoch is as long as all rows of groups with a weight together, and each group has its share of it to the
    row. Within a group the rows take turns: none comes again before all others have come, over epochs too.
    """

    group: Int[Tensor, " crystal"]
    weights: tuple[float, ...]
    """One per group; only their ratios count."""
    seed: int = 0

    def __post_init__(self) -> None:
        total = sum(self.weights)
        if min(self.weights) < 0 or not 0 < total < float("inf"):
            raise ValueError(f"weights must be 0 or more and not all 0, got {list(self.weights)}")
        sizes = self.sizes
        for position, weight in enumerate(self.weights):
            if weight > 0 and not sizes[position]:
                raise ValueError(f"group {position} must have rows to draw, got none for its weight {weight}")

    @property
    def sizes(self) -> list[int]:
        """Rows of each group."""
        return torch.bincount(self.group, minlength=len(self.weights)).tolist()

    def counts(self) -> list[int]:
        """Rows that an epoch draws from each group: the exact shares, rounded so that they add up."""
        length = sum(size for size, weight in zip(self.sizes, self.weights, strict=True) if weight > 0)
        shares = [length * weight / sum(self.weights) for weight in self.weights]
        counts = [int(share) for share in shares]
        by_remainder = sorted(range(len(shares)), key=lambda k: counts[k] - shares[k])
        for position in by_remainder[: length - sum(counts)]:
            counts[position] += 1
        return counts

    def rows(self, epoch: int) -> Int[Tensor, " drawn"]:
        """Positions of the rows of that epoch, repeats among them; group by group."""
        drawn = []
        for position, (size, count) in enumerate(zip(self.sizes, self.counts(), strict=True)):
            if not count:
                continue
            members = (self.group == position).nonzero().flatten()
            start, stop = epoch * count, (epoch + 1) * count
            turns = [
                torch.randperm(size, generator=seeded_generator(self.seed, position, turn))
                for turn in range(start // size, (stop - 1) // size + 1)
            ]
            skipped = start - start // size * size
            drawn.append(members[torch.cat(turns)[skipped : skipped + count]])
        return torch.cat(drawn)


def epoch_batches(
    num_atoms: Int[Tensor, " crystal"],
    plan: BatchPlan,
    *,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    draw: WeightedDraw | None = None,
) -> list[Int[Tensor, " selected"]]:
    """Positions of the crystals of each batch of one epoch, for one process.

    Every crystal (or, with a draw, every drawn row) is in exactly one batch of the epoch, over all processes
    together. Each global batch is dealt out to the processes (crystal k of the batch to rank k mod world size),
    so all processes take the same number of steps; a last global batch smaller than the world size is dropped
    on every rank.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
    generator = torch.Generator().manual_seed(_mix(plan.seed, epoch))
    rows = torch.arange(len(num_atoms)) if draw is None else draw.rows(epoch)
    order = rows[torch.randperm(len(rows), generator=generator)] if plan.shuffle else rows
    if plan.bucketed:
        # A stable sort of a shuffled order: similar sizes together, random within a size.
        order = order[num_atoms[order].argsort(stable=True)]
    batches = _cut(num_atoms[order], order, plan)
    if plan.bucketed and plan.shuffle:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    if world_size > 1:
        batches = [batch[rank::world_size] for batch in batches if len(batch) >= world_size]
    return batches


def _cut(sizes: Tensor, order: Tensor, plan: BatchPlan) -> list[Tensor]:
    """Cut an order into batches under the limits of the plan."""
    if plan.batch_atoms is None:
        return list(order.split(plan.batch_size)) if len(order) else []
    if len(sizes) and int(sizes.max()) > plan.batch_atoms:
        raise ValueError(
            f"batch_atoms must be at least the largest crystal ({int(sizes.max())} atoms), got {plan.batch_atoms}"
        )
    batches, start, atoms, largest = [], 0, 0, 0
    for position, size in enumerate(sizes.tolist()):
        held = position - start
        largest_now = max(largest, size)
        cost = largest_now * (held + 1) if plan.bucketed else atoms + size
        if held and (cost > plan.batch_atoms or held == plan.batch_size):
            batches.append(order[start:position])
            start, atoms, largest_now = position, 0, size
        atoms, largest = atoms + size, largest_now
    if start < len(order):
        batches.append(order[start:])
    return batches


def padding_waste(num_atoms: Int[Tensor, " crystal"], batches: list[Int[Tensor, " selected"]]) -> float:
    """Share of token slots that hold no atom when each batch is padded to its largest crystal."""
    slots = sum(int(num_atoms[batch].max()) * len(batch) for batch in batches)
    atoms = sum(int(num_atoms[batch].sum()) for batch in batches)
    return 1.0 - atoms / slots if slots else 0.0


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several small integers (splitmix64), so that (0, 1) and (1, 0) differ."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def seeded_generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator owned by a tuple such as (run seed, epoch, batch): the draw depends on nothing else."""
    return torch.Generator(device=device).manual_seed(_mix(*numbers))
