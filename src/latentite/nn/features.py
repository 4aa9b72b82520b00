"""How an encoder sees coordinates and cell: the numbers that go into its first layers.

`plain` gives the raw numbers that the public checkpoints were trained on; `fourier` gives periodic functions of the
coordinates and a cell description that no rotation changes.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from latentite import lattice as lat
from latentite.crystal import CrystalBatch


class EncoderFeatures(StrEnum):
    """Which numbers an encoder is given."""

    PLAIN = "plain"
    """Lattice matrix (9 numbers, Å) and fractional coordinates (3), as the public checkpoints have."""
    FOURIER = "fourier"
    """Scaled lengths and angles (6, standardised) and sin, cos of 2 pi k x for the first frequencies k."""


TYPICAL_SCALED_LENGTH = (2.7, 0.8)
"""Rough mean and spread of lengths / num_atoms^(1/3), Å, over MP-20: only to bring inputs near unit scale."""
TYPICAL_ANGLE = (math.pi / 2, 0.35)
"""Rough mean and spread of cell angles, radians."""


def fourier_coordinates(
    frac_coords: Float[Tensor, "atom 3"], num_frequencies: int
) -> Float[Tensor, "atom feature"]:
    """`sin(2 pi k x)` and `cos(2 pi k x)` for k = 1..K and the three axes: periodic by construction."""
    k = torch.arange(1, num_frequencies + 1, device=frac_coords.device, dtype=frac_coords.dtype)
    angle = 2 * math.pi * frac_coords.unsqueeze(-1) * k  # [atom 3 frequency]
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)


def coordinate_features(
    batch: CrystalBatch, features: EncoderFeatures, num_frequencies: int
) -> Float[Tensor, "atom feature"]:
    """Numbers that describe where each atom is."""
    if features is EncoderFeatures.PLAIN:
        return batch.frac_coords
    return fourier_coordinates(batch.frac_coords, num_frequencies)


def cell_parameters(batch: CrystalBatch) -> Float[Tensor, "crystal 6"]:
    """Scaled lengths (Å per atom^(1/3)) and angles (radians), brought near zero mean and unit spread."""
    lengths, angles = lat.parameters_from_lattice(batch.lattice)
    scaled = lat.scaled_lengths(lengths, batch.num_atoms)
    return torch.cat(
        [
            (scaled - TYPICAL_SCALED_LENGTH[0]) / TYPICAL_SCALED_LENGTH[1],
            (torch.deg2rad(angles) - TYPICAL_ANGLE[0]) / TYPICAL_ANGLE[1],
        ],
        dim=-1,
    )


def lattice_features(batch: CrystalBatch, features: EncoderFeatures) -> Float[Tensor, "crystal feature"]:
    """Numbers that describe each cell."""
    if features is EncoderFeatures.PLAIN:
        return batch.lattice.flatten(1)
    return cell_parameters(batch)


def num_coordinate_features(features: EncoderFeatures, num_frequencies: int) -> int:
    """Width of `coordinate_features`."""
    return 3 if features is EncoderFeatures.PLAIN else 6 * num_frequencies


def num_lattice_features(features: EncoderFeatures) -> int:
    """Width of `lattice_features`."""
    return 9 if features is EncoderFeatures.PLAIN else 6
