"""AMD and PDD against their definition, and what must not change them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentite.crystal_arrays import CrystalArrays
from latentite.match.descriptor import (
    amd_distances,
    average_minimum_distances,
    neighbour_distances,
)


def by_brute_force(crystal: CrystalArrays, k: int, reach: int = 7) -> np.ndarray:
    """All distances to a supercell of (2 reach + 1)^3 cells, sorted."""
    _, coords, lattice = astuple(crystal)
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    everything = (coords[:, None] + steps).reshape(-1, 3) @ lattice
    rows = [np.sort(np.linalg.norm(everything - centre, axis=1))[1 : k + 1] for centre in coords @ lattice]
    return np.array(rows)


def disguised(crystal: CrystalArrays, seed: int) -> CrystalArrays:
    """The same crystal, or its mirror image: another cell of it or a supercell, orientation, origin, order."""
    generator = np.random.default_rng(seed)
    numbers, coords, lattice = astuple(crystal)
    rotation = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    shear = np.eye(3)
    shear[0, 1], shear[2, 0] = generator.integers(-2, 3, size=2)
    coords = coords @ np.linalg.inv(shear) + generator.random(3)
    lattice = shear @ lattice @ rotation
    if generator.random() < 0.5:
        coords = np.concatenate((coords, coords + np.eye(3)[0])) / (1.0 + np.eye(3)[0])
        numbers, lattice = np.tile(numbers, 2), np.diag((2.0, 1.0, 1.0)) @ lattice
    order = generator.permutation(len(numbers))
    return CrystalArrays(numbers[order], coords[order], lattice)


def test_distances_equal_those_of_a_large_supercell(
    make_random_crystals: Callable[..., list[CrystalArrays]],
) -> None:
    crystals = make_random_crystals(6, seed=3, max_atoms=6)
    for crystal, found in zip(crystals, neighbour_distances(crystals, k=60), strict=True):
        np.testing.assert_allclose(found, by_brute_force(crystal, 60), atol=1e-9)


def test_rock_salt_has_its_textbook_shells(rocksalt: CrystalArrays) -> None:
    """6 neighbours at a/2, 12 at a/sqrt 2, 8 at a sqrt 3/2, 6 at a; every atom alike."""
    shells = [0.5] * 6 + [0.5**0.5] * 12 + [0.75**0.5] * 8 + [1.0] * 6
    found = average_minimum_distances([rocksalt], k=32)
    np.testing.assert_allclose(found, 5.64 * np.array([shells]), atol=1e-9)


@given(seed=st.integers(0, 2**32 - 1))
def test_neither_cell_nor_orientation_nor_order_matters(
    make_random_crystals: Callable[..., list[CrystalArrays]], seed: int
) -> None:
    crystal = make_random_crystals(1, seed=seed, max_atoms=5)[0]
    other = disguised(crystal, seed)
    amds = average_minimum_distances([crystal, other], k=40)
    np.testing.assert_allclose(amds[0], amds[1], atol=1e-8)


@given(seed=st.integers(0, 2**32 - 1))
def test_small_moves_change_little(
    make_random_crystals: Callable[..., list[CrystalArrays]], seed: int
) -> None:
    """Atoms that move by at most e change each distance, and so AMD, by at most 2 e."""
    numbers, coords, lattice = astuple(make_random_crystals(1, seed=seed, max_atoms=5)[0])
    step = np.random.default_rng(seed).normal(size=coords.shape)
    step *= 0.01 / np.linalg.norm(step, axis=1, keepdims=True)
    moved = CrystalArrays(numbers, coords + step @ np.linalg.inv(lattice), lattice)
    crystal = CrystalArrays(numbers, coords, lattice)
    amds = average_minimum_distances([crystal, moved], k=30)
    assert amd_distances(amds[:1], amds[1:])[0, 0] <= 0.02 + 1e-9


def test_the_batch_does_not_matter(make_random_crystals: Callable[..., list[CrystalArrays]]) -> None:
    crystals = make_random_crystals(5, seed=9)
    together = average_minimum_distances(crystals, k=20)
    alone = np.concatenate([average_minimum_distances([one], k=20) for one in crystals])
    np.testing.assert_array_equal(together, alone)
    assert average_minimum_distances([], k=20).shape == (0, 20)


def test_what_has_no_neighbours_is_refused(rocksalt: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(rocksalt)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        average_minimum_distances([rocksalt], k=0)
    with pytest.raises(ValueError, match="crystal 1 must have atoms"):
        average_minimum_distances([rocksalt, CrystalArrays(numbers, coords * np.nan, lattice)])
    with pytest.raises(ValueError, match="crystal 0"):
        average_minimum_distances([CrystalArrays(numbers, coords, lattice * [[1.0], [1.0], [0.0]])])
