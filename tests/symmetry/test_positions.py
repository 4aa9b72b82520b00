"""The table of Wyckoff positions against spglib, which shares no code with moyopy, where the table is from."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
import spglib
import torch

from latentite.symmetry.cells import FREE, family_of
from latentite.symmetry.normalizers import normalizer, self_maps
from latentite.symmetry.orbits import OrbitBatch
from latentite.symmetry.positions import NUM_GROUPS, read_coordinates, space_group, wyckoff_table


def crystal_of_all_positions(number: int, rng: np.random.Generator) -> OrbitBatch:
    """One orbit of each position of a group, each of its own element, and two more of the general position."""
    table = wyckoff_table()
    first, count = int(table.first[number]), int(table.count[number])
    position = np.array([*range(first, first + count), first + count - 1, first + count - 1])
    coords = rng.uniform(0.02, 0.98, (len(position), 3)) * (np.arange(3) < table.num_free[position, None])
    group = torch.tensor([number])
    components = np.array([3.0, 0.21, 0.43, 0.11, -0.17, 0.07]) * FREE[int(family_of(group))]
    return OrbitBatch(
        space_group=group,
        cell=torch.from_numpy(components)[None],
        num_orbits=torch.tensor([len(position)]),
        position=torch.from_numpy(position),
        element=torch.arange(1, len(position) + 1),
        coords=torch.from_numpy(coords),
    )


def test_the_table_has_all_groups_positions_and_free_coordinates() -> None:
    table = wyckoff_table()
    assert len(table) == 1731
    assert int(table.num_free.sum()) == 1742
    assert set(table.group.tolist()) == set(range(1, NUM_GROUPS + 1))
    assert table.count[47] == 27
    per_cell = [round(1 / np.linalg.det(space_group(int(g)).primitive)) for g in table.group]
    np.testing.assert_array_equal(table.num_images * per_cell, table.multiplicity)


def test_crystals_of_all_positions_give_back_group_and_orbit_sizes_in_spglib() -> None:
    table, rng = wyckoff_table(), np.random.default_rng(0)
    start, found = time.process_time(), 0
    for number in range(1, NUM_GROUPS + 1):
        batch = crystal_of_all_positions(number, rng)
        crystal = batch.to_crystals().to_arrays()[0]
        cell = (crystal.lattice, crystal.frac_coords, crystal.atomic_numbers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = spglib.get_symmetry_dataset(cell, symprec=1e-4)
        assert dataset.number == number
        for element, position in zip(batch.element.tolist(), batch.position.tolist(), strict=True):
            orbit = dataset.crystallographic_orbits[crystal.atomic_numbers == element]
            assert len(orbit) == table.num_images[position]
            assert len(set(orbit.tolist())) == 1
            found += 1
    assert found == len(table) + 2 * NUM_GROUPS
    assert time.process_time() - start < 10


def test_an_orbit_is_as_large_as_the_group_over_the_site_symmetry() -> None:
    table, rng = wyckoff_table(), np.random.default_rng(1)
    for position in range(len(table)):
        group = space_group(int(table.group[position]))
        free = rng.uniform(0.02, 0.98, 3) * (np.arange(3) < table.num_free[position])
        point = table.matrix[position] @ free + table.offset[position]
        gaps = group.rotations @ point + group.translations - point
        num_fixing = int((np.abs(gaps - np.round(gaps)).max(axis=1) < 1e-9).sum())
        assert num_fixing * table.multiplicity[position] == len(group.rotations)


def test_a_free_coordinate_stands_alone_on_its_axis() -> None:
    table = wyckoff_table()
    for position in range(len(table)):
        for column in range(int(table.num_free[position])):
            row = table.matrix[position, table.free_axes[position, column]]
            np.testing.assert_array_equal(row, np.arange(3) == column)
            assert table.offset[position, table.free_axes[position, column]] == 0


def test_coordinates_are_read_as_they_are_printed() -> None:
    matrix, offset = read_coordinates("x,-2x+1/4,3/4")
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [-2, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(offset, [0, 0.25, 0.75])


def test_a_letter_that_a_group_lacks_is_refused_with_those_that_it_has() -> None:
    assert wyckoff_table().letter[wyckoff_table().index(225, "c")] == "c"
    with pytest.raises(ValueError, match="space group 2 must be one of abcdefghi, got 'j'"):
        wyckoff_table().index(2, "j")


@pytest.mark.parametrize("number", [1, 2, 5, 19, 62, 139, 160, 166, 194, 205, 216, 225, 227, 230])
def test_self_maps_give_the_same_orbit(number: int) -> None:
    table, rng = wyckoff_table(), np.random.default_rng(number)
    first, count = int(table.first[number]), int(table.count[number])
    for position in range(first, first + count):
        free = rng.uniform(0.02, 0.98, 3) * (np.arange(3) < table.num_free[position])
        linear, shift = self_maps(position)
        orbits = [orbit_points(position, a @ free + b) for a, b in zip(linear, shift, strict=True)]
        for points in orbits[1:]:
            np.testing.assert_allclose(points, orbits[0], atol=1e-9)


@pytest.mark.parametrize("number", range(1, NUM_GROUPS + 1, 3))
def test_members_of_the_normalizer_permute_the_positions_of_a_group(number: int) -> None:
    table, members = wyckoff_table(), normalizer(number)
    first, count = int(table.first[number]), int(table.count[number])
    own = np.arange(first, first + count)
    np.testing.assert_array_equal(members.target[0], own)
    for target in members.target:
        np.testing.assert_array_equal(np.sort(target), own)
        np.testing.assert_array_equal(table.multiplicity[target], table.multiplicity[own])


def orbit_points(position: int, free: np.ndarray) -> np.ndarray:
    """All points of an orbit in the conventional cell, sorted."""
    table = wyckoff_table()
    group = space_group(int(table.group[position]))
    point = table.matrix[position] @ free + table.offset[position]
    points = group.rotations @ point + group.translations
    points = np.round(points - np.floor(points), 9) % 1
    return np.unique(points, axis=0)
