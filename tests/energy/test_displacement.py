"""Displacements of a relaxation, on the torus."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_crystals import packed

from latentite.crystal_arrays import CrystalArrays
from latentite.energy.relax import displacement_rmsd, volume_change

CELL = np.array([[4.0, 0.0, 0.0], [0.5, 5.0, 0.0], [0.0, -0.7, 6.0]])


def test_one_atom_that_moves_against_three_at_rest() -> None:
    coords = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    before = packed([CrystalArrays(np.full(4, 6), coords, 10.0 * np.eye(3))])
    moved = coords.copy()
    moved[0, 0] = 0.96  # by -0.4 Å through the wall of the cell
    after = packed([CrystalArrays(np.full(4, 6), moved, 10.0 * np.eye(3))])
    # Less the mean of -0.1: one atom by -0.3, three by 0.1.
    expected = math.sqrt((0.3**2 + 3 * 0.1**2) / 4)
    assert float(displacement_rmsd(before, after)) == pytest.approx(expected)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 9))
def test_translations_lattice_vectors_and_order_do_not_count(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    numbers, coords = np.full(count, 6), rng.random((count, 3))
    steps = rng.normal(0, 0.03, (count, 3))
    before = packed([CrystalArrays(numbers, coords, CELL)])
    after = packed([CrystalArrays(numbers, coords + steps, 1.02 * CELL)])
    residual = (steps - steps.mean(0)) @ (1.01 * CELL)
    expected = math.sqrt((residual**2).sum() / count)
    assert float(displacement_rmsd(before, after)) == pytest.approx(expected, abs=1e-9)
    far = coords + steps + rng.random(3) + rng.integers(-2, 3, (count, 3))
    order = rng.permutation(count)
    other = packed([CrystalArrays(numbers, far[order], 1.02 * CELL)])
    shuffled = packed([CrystalArrays(numbers, coords[order], CELL)])
    assert float(displacement_rmsd(shuffled, other)) == pytest.approx(expected, abs=1e-9)


def test_a_strain_alone_is_no_displacement_but_a_change_of_volume() -> None:
    before = packed([CrystalArrays(np.array([6, 7]), np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.9]]), CELL)] * 2)
    after = replace(before, lattice=before.lattice * torch.tensor([1.1, 0.9])[:, None, None])
    assert displacement_rmsd(before, after).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert volume_change(before, after).tolist() == pytest.approx([1.1**3 - 1, 0.9**3 - 1])


def test_no_number_for_what_is_none() -> None:
    before = packed([CrystalArrays(np.array([6]), np.array([[np.nan, 0.0, 0.0]]), CELL)])
    assert displacement_rmsd(before, before).isnan().all()
