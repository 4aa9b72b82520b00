"""Augmentation and corruption of a batch, drawn per crystal, on the batch's own device.

The systems before us drew one rotation and one translation for a whole batch; here every crystal has its own (see
`lattice.random_rotations`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from latentite import lattice as lat
from latentite.crystal import CrystalBatch

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
