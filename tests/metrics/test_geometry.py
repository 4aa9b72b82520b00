"""Distances against an enumeration of images, in cells of any shape."""

from __future__ import annotations

from dataclasses import astuple
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latentite.crystal_arrays import CrystalArrays
from latentite.metrics.geometry import min_distances, volumes


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
