"""Distances of candidate places."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentite.nn.gpt.placement import half_shell, nearest, radial_basis
from latentite.symmetry.dataset import minkowski_reductions


def reduced_lattice(seed: int) -> Tensor:
    """A random cell of 3 to 9 Å with reduced vectors."""
    rng = np.random.default_rng(seed)
    lattice = np.diag(rng.uniform(3, 9, 3)) + rng.normal(0, 1.0, (3, 3))
    reduction = minkowski_reductions(lattice[None])[0]
    return torch.from_numpy(reduction @ lattice)


def brute_force(frac: Tensor, lattice: Tensor) -> Tensor:
    """Shortest distance to the images in seven cells each way."""
    cells = torch.tensor(list(itertools.product(range(-3, 4), repeat=3)), dtype=frac.dtype)
    return ((frac.unsqueeze(1) + cells) @ lattice).norm(dim=-1).amin(-1)


@given(st.integers(0, 10_000))
def test_the_nearest_image_is_that_of_a_search_over_many_cells(seed: int) -> None:
    lattice = reduced_lattice(seed)
    frac = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    shifts = half_shell(torch.device("cpu")).double() @ lattice
    found = nearest(frac.unsqueeze(0), lattice.unsqueeze(0), shifts.unsqueeze(0))[0]
    assert torch.allclose(found, brute_force(frac - frac.round(), lattice), atol=1e-9)


@given(st.integers(0, 10_000))
def test_in_a_wide_cell_short_distances_need_no_other_cell(seed: int) -> None:
    lattice = reduced_lattice(seed) * 2.5
    apart = float((1 / torch.linalg.inv(lattice).norm(dim=0)).min())
    frac = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.5
    shifts = half_shell(torch.device("cpu")).double() @ lattice
    exact = nearest(frac.unsqueeze(0), lattice.unsqueeze(0), shifts.unsqueeze(0))[0]
    quick = nearest(frac.unsqueeze(0), lattice.unsqueeze(0), shifts.unsqueeze(0), is_wide=True)[0]
    is_short = exact < apart / 2
    assert torch.allclose(exact[is_short], quick[is_short], atol=1e-9)
    assert bool((quick >= exact - 1e-9).all())


@pytest.mark.parametrize("scaled", [0.0, 0.1, 0.3])
def test_whatever_is_too_near_looks_like_a_clash(scaled: float) -> None:
    """Distances far below every bond once looked like none at all, and samples had atoms on top of each other."""
    clash = radial_basis(torch.tensor(0.5))
    assert torch.equal(radial_basis(torch.tensor(scaled)), clash)
    assert float(clash.sum()) > 1


def test_what_is_not_there_counts_nothing() -> None:
    """Padding once added to the sums of the bins of long distances, so that a crystal depended on its batch."""
    assert float(radial_basis(torch.tensor(10.0)).abs().max()) < 1e-6
