"""Volumes, smallest distances, space groups and average minimum distances, against enumeration and references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from known_crystals import rock_salt
from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import space_group_number
from latentite.metrics import geometry
from latentite.metrics.geometry import (
    SYMPRECS,
    amd_distances,
    average_minimum_distances,
    min_distances,
    neighbour_distances,
    space_groups,
    volumes,
)


def by_enumeration(crystal: CrystalArrays, reach: int) -> tuple[float, float]:
    _, coords, cell = astuple(crystal)
    shifts = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    wrapped = coords - np.floor(coords)
    own = np.linalg.norm(shifts[(shifts != 0).any(-1)] @ cell, axis=-1).min()
    between = np.inf
    for i in range(len(coords)):
        for j in range(i):
            vectors = (wrapped[i] - wrapped[j] + shifts) @ cell
            between = min(between, np.linalg.norm(vectors, axis=-1).min())
    return float(between), float(own)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5), skew=st.integers(0, 3))
def test_distances_are_those_of_all_images_in_any_cell(seed: int, count: int, skew: int) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.0, 9.0, 3)) + rng.normal(0, 0.7, (3, 3))
    change = np.eye(3)
    change[0, 1], change[1, 2] = rng.integers(-skew, skew + 1, 2)
    crystal = CrystalArrays(np.full(count, 6), rng.uniform(-1, 2, (count, 3)), change @ cell)
    between, own = min_distances([crystal])
    expected = by_enumeration(crystal, reach=9)
    np.testing.assert_allclose([between[0], own[0]], expected, atol=1e-6)


def test_crystals_of_all_sizes_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    crystals = [
        CrystalArrays(np.full(n, 6), rng.random((n, 3)), np.eye(3) * (3 + n)) for n in (1, 4, 2, 4, 1, 20)
    ]
    between, own = min_distances(crystals)
    for position, crystal in enumerate(crystals):
        alone = min_distances([crystal])
        assert (between[position], own[position]) == (alone[0][0], alone[1][0])
    assert np.isinf(between[[0, 4]]).all()
    np.testing.assert_allclose(own, [4, 7, 5, 7, 4, 23])
    np.testing.assert_allclose(volumes(crystals), own**3)


def test_atoms_on_one_site_are_at_distance_zero_also_across_the_border() -> None:
    crystal = CrystalArrays(np.array([1, 8]), np.array([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]]), np.eye(3) * 4)
    assert min_distances([crystal])[0][0] == 0.0


def test_nothing_gives_nothing() -> None:
    assert len(min_distances([])[0]) == 0
    assert len(volumes([])) == 0


def arrays(structure: Structure) -> CrystalArrays:
    return CrystalArrays(np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix)


def known() -> list[CrystalArrays]:
    return [
        arrays(rock_salt("Na", "Cl", 5.6)),
        arrays(Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])),
        arrays(
            Structure(Lattice.from_parameters(4, 5, 6, 80, 85, 95), ["Cs", "Cl"], [[0] * 3, [0.4, 0.3, 0.2]])
        ),
    ]


def test_known_crystals_have_their_groups_at_every_tolerance() -> None:
    groups = space_groups(known(), workers=1)
    assert groups.tolist() == [[225] * 3, [221] * 3, [1] * 3]


def test_a_small_displacement_is_symmetric_at_the_larger_tolerance_only() -> None:
    numbers, coords, lattice = astuple(known()[1])
    moved = coords + np.array([[0.0, 0.0, 0.0], [0.0121, 0.0, 0.0]])  # 0.05 Å
    groups = dict(
        zip(SYMPRECS, space_groups([CrystalArrays(numbers, moved, lattice)], workers=1)[0], strict=True)
    )
    assert groups[0.01] == 99
    assert groups[0.1] == groups[0.2] == 221


def test_both_libraries_agree_on_known_crystals() -> None:
    for numbers, coords, lattice in map(astuple, known()):
        found = space_group_number(numbers, coords, lattice, symprec=0.1)
        assert (
            found == space_groups([CrystalArrays(numbers, coords, lattice)], symprecs=(0.1,), workers=1)[0, 0]
        )


@pytest.mark.parametrize(
    ("lengths", "count"),
    [((1.705, 41.878, 55.792), 5), ((1.022, 4.619, 169.964), 16), ((0.135, 1.0, 6.9), 4)],
)
def test_collapsed_and_long_cells_are_searched_to_an_end(
    lengths: tuple[float, float, float], count: int
) -> None:
    """moyopy 0.21 searched cells of these shapes without end, and one sample held up a whole evaluation."""
    rng = np.random.default_rng(0)
    crystals = [
        CrystalArrays(
            np.full(count, 6), rng.random((count, 3)), Lattice.from_parameters(*lengths, 75, 100, 65).matrix
        )
        for _ in range(5)
    ]
    assert space_groups(crystals, workers=1).shape == (5, len(SYMPRECS))


def test_workers_do_not_change_the_result_and_progress_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_CHUNK", 4)  # several tasks for each worker, the last one smaller
    crystals = known() * 6
    told: list[int] = []
    one = space_groups(crystals, workers=1, advance=told.append)
    np.testing.assert_array_equal(one, space_groups(crystals, workers=2))
    assert sum(told) == len(crystals) == 18
    assert len(told) == 5


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
