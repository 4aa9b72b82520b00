"""Bins of free coordinates: 12 coarse cells along each, 20 fine bins in each of these.

Bin centres are the multiples of 1/240, as special values of all settings are; a coordinate is in the nearest bin.
A coarse cell of a position with three free coordinates is one of 1,728. Symmetry makes most of them equivalent: an
orbit is described by the smallest of its equivalent coordinates (`latentite.symmetry.descriptions`), so cells without
smallest coordinates are left out.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.symmetry.normalizers import self_maps
from latentite.symmetry.positions import wyckoff_table

NUM_COARSE = 12
NUM_FINE = 20
NUM_BINS = NUM_COARSE * NUM_FINE


def bins_of(coords: Float[Tensor, "*orbit 3"]) -> tuple[Int[Tensor, "*orbit 3"], Int[Tensor, "*orbit 3"]]:
    """Coarse cell and fine bin of each coordinate."""
    index = torch.remainder((coords * NUM_BINS).round(), NUM_BINS).long()
    return index // NUM_FINE, index % NUM_FINE


def bin_centre(coarse: Tensor, fine: Tensor) -> Tensor:
    """Coordinate at the centre of a fine bin."""
    return (coarse * NUM_FINE + fine) / NUM_BINS


def coarse_centre(coarse: Tensor) -> Tensor:
    """Coordinate at the centre of a coarse cell."""
    return (coarse * NUM_FINE + (NUM_FINE - 1) / 2) / NUM_BINS


@cache
def coarse_cells(position: int) -> Int[np.ndarray, "cell 3"]:
    """Coarse cells of a position that may hold the smallest coordinates of an orbit; 0 after the last coordinate."""
    num_free = int(wyckoff_table().num_free[position])
    axes = [np.arange(NUM_COARSE) if column < num_free else np.zeros(1, dtype=int) for column in range(3)]
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    low = (cells * NUM_FINE - 0.5) / NUM_BINS
    width = NUM_FINE / NUM_BINS
    linear, shift = self_maps(position)
    keep = np.ones(len(cells), dtype=bool)
    for matrix, offset in zip(linear, shift, strict=True):
        undecided = np.ones(len(cells), dtype=bool)
        for column in range(num_free):
            row = matrix[column]
            is_same = row[column] == 1 and not np.delete(row, column).any() and abs(offset[column] % 1) < 1e-9
            if is_same:
                continue  # This coordinate never differs: the next one decides.
            bottom = low @ row + offset[column] + width * np.minimum(row, 0).sum()
            top = low @ row + offset[column] + width * np.maximum(row, 0).sum()
            # Bins are centred on multiples, so the first cell reaches below 0: there a coordinate wraps.
            whole = np.floor(bottom + 1e-9) == np.floor(top - 1e-9)
            start = np.maximum(low[:, column], 0.0)
            below = whole & (top - np.floor(bottom + 1e-9) <= start + 1e-9) & (low[:, column] >= 0)
            keep &= ~(undecided & below)
            undecided[:] = False
            break
    return cells[keep]


@cache
def cell_tensor(position: int) -> Int[Tensor, "cell 3"]:
    """`coarse_cells` as a tensor."""
    return torch.from_numpy(coarse_cells(position))
