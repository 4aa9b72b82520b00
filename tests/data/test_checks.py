"""Limits on crystals: each broken one is named, and distances are right in every cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import Limits, refusals, too_close
from latentite.elements import MAX_ATOMIC_NUMBER, NUM_ELEMENT_CLASSES

CUBE = 4.0 * np.eye(3)


def crystal(numbers: list[int], coords: list[list[float]], lattice: np.ndarray = CUBE) -> CrystalArrays:
    return CrystalArrays(
        np.array(numbers, dtype=np.int64),
        np.array(coords, dtype=float).reshape(-1, 3),
        np.asarray(lattice, dtype=float),
    )


GOOD = crystal([55, 17], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (crystal([55] * 3, [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]]), "3 atoms, more than the limit of 2"),
        (crystal([55, 17], [[0, 0, 0], [0.1, 0, 0]]), "atoms 1 (Cs) and 2 (Cl) are 0.400 Å apart"),
        (crystal([55, 17], [[0, 0, 0], [0, 0, 0.95]]), "are 0.200 Å apart"),
        (crystal([55], [[0, 0, 0]], np.diag([0.3, 9, 9])), "its own periodic image are 0.300 Å apart"),
        (crystal([55, 17], [[0, 0, 0], [0.5, 0.5, np.nan]]), "coordinates are not finite"),
        (crystal([55, 17], [[0, 0, 0], [0.5, 0.5, np.inf]]), "coordinates are not finite"),
        (crystal([55], [[0, 0, 0]], np.full((3, 3), np.nan)), "absurd cell: its vectors"),
        (crystal([55], [[0, 0, 0]], np.ones((3, 3))), "absurd cell: its volume is zero"),
        (crystal([55], [[0, 0, 0]], np.zeros((3, 3))), "absurd cell: its volume is zero"),
        (
            crystal([55], [[0, 0, 0]], np.array([[1, 0, 0], [1e9, 1, 0], [0, 0, 4]])),
            "absurd cell: so skew that a b c is 1.0e+09 times its volume",
        ),
        (crystal([55], [[0, 0, 0]], 0.9 * np.eye(3)), "absurd cell: 0.729 Å^3 per atom"),
        (crystal([55], [[0, 0, 0]], 11 * np.eye(3)), "absurd cell: 1331 Å^3 per atom"),
        (crystal([100], [[0, 0, 0]]), "atomic number 100 (Fm) is beyond 99"),
        (crystal([0], [[0, 0, 0]]), "atomic number 0 is no element"),
        (crystal([], np.zeros((0, 3)).tolist()), "no atoms"),
    ],
)
def test_each_broken_limit_is_named(broken: CrystalArrays, words: str) -> None:
    reasons = refusals([GOOD, broken, GOOD], Limits(max_atoms=2))
    assert reasons[0] is None
    assert reasons[2] is None
    assert reasons[1] is not None
    assert words in reasons[1]


def test_no_limit_of_atoms_when_none() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(3) / 3] * 3, indexing="ij"), -1).reshape(-1, 3)
    large = crystal([11] * 27, grid.tolist(), 9 * np.eye(3))
    assert refusals([large], Limits(max_atoms=None)) == [None]
    assert refusals([large], Limits()) != [None]


@pytest.mark.parametrize(
    "wrong",
    [{"max_atoms": 0}, {"min_distance": -1.0}, {"min_volume_per_atom": 5.0, "max_volume_per_atom": 4.0}],
)
def test_impossible_limits_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)  # type: ignore[arg-type]  # a test of wrong values


@given(
    seed=st.integers(0, 2**32 - 1), num_atoms=st.integers(1, 7), skew=st.integers(0, 3), thin=st.booleans()
)
def test_closest_pair_is_that_of_pymatgen_in_any_cell(
    seed: int, num_atoms: int, skew: int, thin: bool
) -> None:
    """Oracle: pymatgen's periodic distance matrix and the shortest vector of its reduced lattice."""
    generator = np.random.default_rng(seed)
    lattice = np.diag(generator.uniform(2.0, 6.0, 3)) + generator.uniform(-0.5, 0.5, (3, 3))
    if thin:
        lattice[0] *= 0.2
    change = np.eye(3)
    change[0, 1], change[1, 2] = skew, -skew  # the same lattice in a skewed basis
    lattice = change @ lattice
    coords = generator.uniform(-1, 2, (num_atoms, 3))
    structure = Structure(Lattice(lattice), ["H"] * num_atoms, coords)
    distances = structure.distance_matrix + 1e9 * np.eye(num_atoms)
    shortest = min(distances.min(), min(structure.lattice.get_niggli_reduced_lattice().abc))
    [found] = too_close(coords[None], lattice[None], 0.9)
    if shortest < 0.9 - 1e-9:
        assert found is not None
        assert found[2] == pytest.approx(shortest, abs=1e-6)
    else:
        assert found is None


def test_distances_of_many_atoms_are_checked_row_by_row() -> None:
    side = 8
    grid = np.stack(np.meshgrid(*[np.arange(side) / side] * 3, indexing="ij"), -1).reshape(-1, 3)
    lattice = side * 2.0 * np.eye(3)
    assert too_close(grid[None], lattice[None], 0.5) == [None]
    grid[100] = grid[400] + [0.01, 0, 0]
    [pair] = too_close(grid[None], lattice[None], 0.5)
    assert pair is not None
    assert pair[:2] == (100, 400)
    assert pair[2] == pytest.approx(0.16)


def test_every_element_that_enters_has_a_class_in_the_networks() -> None:
    """Fermium entered, and ended the training at the embedding: class 0 is "unknown", so the last one is 99."""
    assert refusals([crystal([MAX_ATOMIC_NUMBER], [[0, 0, 0]])], Limits()) == [None]
    assert MAX_ATOMIC_NUMBER == NUM_ELEMENT_CLASSES - 1
    assert refusals([crystal([NUM_ELEMENT_CLASSES], [[0, 0, 0]])], Limits()) == [
        "atomic number 100 (Fm) is beyond 99, the last element class"
    ]
