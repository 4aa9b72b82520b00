"""Bins of coordinates, and the coarse cells that hold the smallest coordinates of orbits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentite.nn.gpt.grid import NUM_BINS, NUM_COARSE, bin_centre, bins_of, coarse_cells
from latentite.symmetry.normalizers import self_maps
from latentite.symmetry.positions import wyckoff_table


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_a_coordinate_is_within_half_a_bin_of_its_centre(value: float) -> None:
    coarse, fine = bins_of(torch.tensor([value, 0.0, 0.0], dtype=torch.float64))
    gap = bin_centre(coarse, fine)[0] - value
    assert abs(gap - gap.round()) <= 0.5 / NUM_BINS + 1e-9


def test_special_values_are_centres_of_bins() -> None:
    special = torch.arange(24, dtype=torch.float64).view(8, 3) / 24
    coarse, fine = bins_of(special)
    assert torch.allclose(bin_centre(coarse, fine).double(), special, atol=1e-7)


def smallest(position: int, coords: np.ndarray) -> np.ndarray:
    """The smallest of the coordinates that describe the same orbit, by trying all maps."""
    linear, shift = self_maps(position)
    images = (np.einsum("kij,j->ki", linear, coords) + shift) % 1
    images = np.round(images, 9) % 1
    return images[np.lexsort(images.T[::-1])[0]]


@pytest.mark.parametrize(
    ("group", "letter"),
    [
        (1, "a"),
        (2, "i"),
        (14, "e"),
        (15, "f"),
        (62, "c"),
        (62, "d"),
        (146, "b"),
        (166, "h"),
        (194, "k"),
        (225, "l"),
    ],
)
def test_smallest_coordinates_are_always_in_a_coarse_cell_that_is_kept(group: int, letter: str) -> None:
    position = wyckoff_table().index(group, letter)
    kept = {tuple(cell) for cell in coarse_cells(position).tolist()}
    num_free = int(wyckoff_table().num_free[position])
    rng = np.random.default_rng(0)
    for _ in range(300):
        coords = np.zeros(3)
        coords[:num_free] = rng.uniform(0, 1, num_free)
        coarse, _ = bins_of(torch.from_numpy(smallest(position, coords)))
        assert tuple(coarse.tolist()) in kept


def test_symmetry_leaves_out_most_coarse_cells_of_a_general_position() -> None:
    position = wyckoff_table().index(225, "l")
    assert len(coarse_cells(position)) < NUM_COARSE**3 / 20
