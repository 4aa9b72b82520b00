"""Batches of training: which crystals make one, and the noise and symmetry operations drawn for each of its crystals.

Crystals are batched by count or by atoms, bucketed by size, the same for every run of a seed: a plan is a function of
(seed, epoch) alone, so resuming needs no state. The systems before us drew one rotation and one translation for a whole
batch; here every crystal has its own (see `lattice.random_rotations`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentite import lattice as lat
from latentite.base.plain import check_seed
from latentite.crystal import CrystalBatch


@dataclass(kw_only=True, slots=True)
class BatchPlan:
    """Sizes and order of the batches of a split."""

    batch_size: int = 256
    """Crystals per batch over all processes; with `batch_atoms` the most that a batch may hold."""
    batch_atoms: int | None = None
    """If given, a batch holds at most this many atoms (padded to its largest crystal when bucketed)."""
    bucketed: bool = True
    """Batches of crystals of similar size. Off, every batch is a fair random draw."""
    shuffle: bool = True
    seed: int = 0
    window: int | None = None
    """Bucketed and shuffled, crystals are sorted by size within so many batches of a fair random draw; None: within
    the whole split, where a batch may hold crystals of one size only."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        for key in ("batch_atoms", "window"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be at least 1 or null, got {value}")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightedDraw:
    """Draw of the rows of an epoch in which each group (fidelity) has a share.

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
    sort_by: Int[Tensor, " crystal"] | None = None,
) -> list[Int[Tensor, " selected"]]:
    """Positions of the crystals of each batch of one epoch, for one process.

    Every crystal (or, with a draw, every drawn row) is in exactly one batch of the epoch, over all processes
    together. Each global batch is dealt out to the processes (crystal k of the batch to rank k mod world size),
    so all processes take the same number of steps; a last global batch smaller than the world size is dropped
    on every rank. Buckets are by number of atoms, or by `sort_by`.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
    generator = torch.Generator().manual_seed(_mix(plan.seed, epoch))
    rows = torch.arange(len(num_atoms)) if draw is None else draw.rows(epoch)
    order = rows[torch.randperm(len(rows), generator=generator)] if plan.shuffle else rows
    if plan.bucketed:
        # A stable sort of a shuffled order: similar sizes together, random within a size.
        size = num_atoms if sort_by is None else sort_by
        windows = [order]
        if plan.window is not None and plan.shuffle:
            windows = list(order.split(plan.window * plan.batch_size))
        order = torch.cat([part[size[part].argsort(stable=True)] for part in windows])
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


# ------------------------------------------------------------------------- augmentation, corruption


MASK_ELEMENT = 0
"""Atomic number that stands for "unknown element" in a corrupted batch."""


@dataclass(kw_only=True, slots=True)
class AugmentationConfig:
    """Symmetries of a crystal that training draws from."""

    translate: bool = True
    """A uniform shift of the origin."""
    rotate: bool = True
    """A Haar rotation of the lattice; invisible to encoders that see lengths and angles only."""


@dataclass(kw_only=True, slots=True)
class NoiseConfig:
    """Corruption of the encoder's input; the target stays clean (a denoising autoencoder)."""

    ratio: float = 0.0
    """Share of atoms that are corrupted: element masked and position moved."""
    corruption_scale: float = 0.1
    """Standard deviation of the move, Å per axis."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise ValueError(f"noise.ratio must be in [0, 1], got {self.ratio}")
        if self.corruption_scale < 0.0:
            raise ValueError(f"noise.corruption_scale must be 0 or more (Å), got {self.corruption_scale}")


def augment(
    batch: CrystalBatch, config: AugmentationConfig, generator: torch.Generator | None = None
) -> CrystalBatch:
    """The same crystals seen from another origin and orientation, one draw per crystal."""
    frac_coords, lattice = batch.frac_coords, batch.lattice
    if config.translate:
        shift = torch.rand(len(batch), 3, generator=generator, device=batch.device, dtype=frac_coords.dtype)
        frac_coords = lat.wrap(frac_coords + shift[batch.crystal_index])
    if config.rotate:
        rotation = lat.random_rotations(len(batch), generator=generator, device=batch.device)
        lattice = lattice @ rotation.to(lattice.dtype)
    return replace(batch, frac_coords=frac_coords, lattice=lattice)


def corrupt(
    batch: CrystalBatch, config: NoiseConfig, generator: torch.Generator | None = None
) -> tuple[CrystalBatch, Bool[Tensor, " atom"]]:
    """A corrupted copy for the encoder, and which atoms were touched.

    A touched atom loses its element (`MASK_ELEMENT`) and is moved by Gaussian noise of
    `config.corruption_scale` Å per Cartesian axis.
    """
    touched = torch.rand(batch.total_atoms, generator=generator, device=batch.device) < config.ratio
    move = (
        torch.randn(batch.total_atoms, 3, generator=generator, device=batch.device) * config.corruption_scale
    )
    inverse = torch.linalg.inv(batch.lattice.float())[batch.crystal_index]
    frac_move = torch.einsum("ai,aij->aj", move, inverse).to(batch.frac_coords.dtype)
    frac_coords = torch.where(
        touched.unsqueeze(-1), lat.wrap(batch.frac_coords + frac_move), batch.frac_coords
    )
    numbers = batch.atomic_numbers.masked_fill(touched, MASK_ELEMENT)
    return replace(batch, frac_coords=frac_coords, atomic_numbers=numbers), touched
