"""Fingerprints: what they must not depend on, hand-computed values, and cells that must not stop a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from latentite.crystal_arrays import CrystalArrays
from latentite.metrics.fingerprints import (
    CUTOFF,
    MAGPIE_PROPERTIES,
    MAGPIE_STATISTICS,
    RADII,
    WIDTH,
    element_property,
    fit_scaling,
    is_bounded,
    magpie,
    radial,
)

MAGPIE_LABELS = [f"{name} {statistic}" for name in MAGPIE_PROPERTIES for statistic in MAGPIE_STATISTICS]


def random_crystal(rng: np.random.Generator) -> CrystalArrays:
    count = int(rng.integers(1, 6))
    lattice = np.diag(rng.uniform(3.0, 6.0, 3)) + rng.normal(0, 0.5, (3, 3))
    return CrystalArrays(rng.choice([3, 8, 26, 55], count), rng.random((count, 3)), lattice)


def supercell(crystal: CrystalArrays, repeats: tuple[int, int, int]) -> CrystalArrays:
    numbers, coords, lattice = astuple(crystal)
    shifts = np.array(list(product(*(range(n) for n in repeats))))
    stacked = ((coords[None] + shifts[:, None]) / repeats).reshape(-1, 3)
    return CrystalArrays(np.tile(numbers, len(shifts)), stacked, lattice * np.array(repeats)[:, None])


@given(
    seed=st.integers(0, 2**32 - 1),
    repeats=st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 3, 1), (1, 2, 2)]),
)
def test_fingerprints_are_the_same_for_every_description_of_a_crystal(
    seed: int, repeats: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    crystal = random_crystal(rng)
    numbers, coords, lattice = astuple(supercell(crystal, repeats))
    # Another origin, orientation, order of atoms, another choice of basis vectors, atoms in other cells.
    coords = coords + rng.random(3)
    lattice = lattice @ Rotation.random(random_state=seed).as_matrix()
    basis = np.eye(3)
    basis[0, 1], basis[2, 0] = rng.integers(-1, 2, 2)
    lattice, coords = basis @ lattice, coords @ np.linalg.inv(basis)
    coords = coords + rng.integers(-2, 3, coords.shape)
    order = rng.permutation(len(numbers))
    other = CrystalArrays(numbers[order], coords[order], lattice)
    np.testing.assert_allclose(magpie([crystal]), magpie([other]), atol=1e-9)
    # Single precision of the positions, seen through Gaussians of 0.25 Å.
    np.testing.assert_allclose(radial([crystal]), radial([other]), atol=2e-4, rtol=1e-3)


def test_crystals_do_not_depend_on_their_neighbours_in_the_list(
    make_random_crystals: Callable[..., list[CrystalArrays]],
) -> None:
    crystals = make_random_crystals(30)
    together = radial(crystals), magpie(crystals)
    for position in (0, 7, 29):
        np.testing.assert_allclose(together[0][position], radial([crystals[position]])[0], rtol=1e-12)
        np.testing.assert_allclose(together[1][position], magpie([crystals[position]])[0], rtol=1e-12)


def test_radial_density_of_a_simple_cubic_crystal_is_the_sum_over_its_shells() -> None:
    """Polonium at a = 3 Å: shells by enumeration, one atom, so no spread, and no polar part."""
    crystal = CrystalArrays(np.array([84]), np.zeros((1, 3)), 3.0 * np.eye(3))
    shells = Counter(
        round(float(np.linalg.norm(3.0 * np.array(shift))), 9)
        for shift in product(range(-3, 4), repeat=3)
        if any(shift)
    )
    density = np.zeros(len(RADII))
    for distance, count in shells.items():
        if distance <= CUTOFF:
            gaussian = np.exp(-0.5 * ((distance - RADII) / WIDTH) ** 2) / (WIDTH * np.sqrt(2 * np.pi))
            density += count * gaussian / (4 * np.pi * RADII**2)
    expected = np.concatenate([density, np.zeros(3 * len(RADII))])
    np.testing.assert_allclose(radial([crystal])[0], expected, atol=1e-6)


def test_exchanging_atoms_shows_in_the_polar_part_only(rocksalt: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(rocksalt)
    mixed = CrystalArrays(numbers[[4, 1, 2, 3, 0, 5, 6, 7]], coords, lattice)
    ordered, disordered = radial([rocksalt, mixed])
    half = 2 * len(RADII)
    np.testing.assert_allclose(ordered[:half], disordered[:half], atol=1e-6)
    assert np.abs(ordered[half:] - disordered[half:]).max() > 1e-3


def test_polar_weights_are_differences_of_electronegativity(rocksalt: CrystalArrays) -> None:
    """In rock salt a neighbour at a / 2 is of the other kind: there the polar density is |3.16 - 0.93| times."""
    row = radial([rocksalt])[0]
    near = int(np.abs(RADII - 2.82).argmin())
    assert row[2 * len(RADII) + near] / row[near] == pytest.approx(3.16 - 0.93, rel=1e-4)


def test_magpie_of_water_by_hand() -> None:
    """H2O: fractions 2/3 and 1/3, so the mode is hydrogen's."""
    crystal = CrystalArrays(np.array([1, 8, 1]), np.zeros((3, 3)), np.eye(3))
    row = dict(zip(MAGPIE_LABELS, magpie([crystal])[0], strict=True))
    assert [row[f"Number {s}"] for s in MAGPIE_STATISTICS] == pytest.approx([1, 8, 7, 10 / 3, 28 / 9, 1])
    chi = (2 * 2.20 + 3.44) / 3
    deviation = (2 * (chi - 2.20) + (3.44 - chi)) / 3
    expected = [2.20, 3.44, 1.24, chi, deviation, 2.20]
    assert [row[f"Electronegativity {s}"] for s in MAGPIE_STATISTICS] == pytest.approx(expected)


def test_magpie_mode_of_equally_many_is_the_smallest_and_unknown_elements_are_average() -> None:
    labels = MAGPIE_LABELS
    row = magpie([CrystalArrays(np.array([17, 11]), np.zeros((2, 3)), np.eye(3))])[0]
    assert row[labels.index("Electronegativity mode")] == 0.93
    oganesson = magpie([CrystalArrays(np.array([118]), np.zeros((1, 3)), np.eye(3))])[0]
    known = element_property("MeltingT")[1:98]
    assert oganesson[labels.index("MeltingT mean")] == pytest.approx(known.mean())
    assert len(labels) == len(MAGPIE_PROPERTIES) * len(MAGPIE_STATISTICS) == 132


def test_magpie_equals_matminer() -> None:
    """Values of matminer 0.10.1 for SrTiO3, rounded to six digits: every statistic of three properties."""
    crystal = CrystalArrays(np.array([38, 22, 8, 8, 8]), np.zeros((5, 3)), np.eye(3))
    row = dict(zip(MAGPIE_LABELS, magpie([crystal])[0], strict=True))
    expected = {
        "MendeleevNumber": [8.0, 87.0, 79.0, 62.4, 29.52, 87.0],
        "MeltingT": [54.8, 1941.0, 1886.2, 631.08, 691.536, 54.8],
        "GSvolume_pa": [9.105, 54.23, 45.125, 19.647, 13.8332, 9.105],
    }
    for name, values in expected.items():
        assert [row[f"{name} {s}"] for s in MAGPIE_STATISTICS] == pytest.approx(values), name


@pytest.mark.parametrize(
    "lattice",
    [
        np.eye(3) * 0.5,
        np.diag([0.01, 100.0, 100.0]),
        np.diag([1.0, 1.0, 0.0]),
        np.array([[1.0, 0, 0], [500.0, 1.0, 0], [0, 0, 100.0]]) * 0.3,
        np.full((3, 3), np.nan),
        np.eye(3) * 1e4,
    ],
)
def test_what_is_no_crystal_has_no_radial_fingerprint(lattice: np.ndarray) -> None:
    good = CrystalArrays(np.array([3, 8]), np.array([[0.0] * 3, [0.5] * 3]), 4.0 * np.eye(3))
    bad = CrystalArrays(np.array([3, 8, 8]), np.random.default_rng(0).random((3, 3)), lattice)
    rows = radial([bad, good])
    assert np.isnan(rows[0]).all()
    assert np.isfinite(rows[1]).all()
    assert is_bounded([bad, good], CUTOFF).tolist() == [False, True]


def test_nothing_gives_nothing() -> None:
    assert magpie([]).shape == (0, 132)
    assert radial([]).shape == (0, 4 * len(RADII))


def test_scaling_standardises_and_leaves_constant_features_alone() -> None:
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.normal(3, 2, 50), np.full(50, 0.1), rng.normal(0, 1e-9, 50)])
    scaling = fit_scaling(np.vstack([features, [np.nan, 0.1, 0.0]]))
    scaled = scaling.apply(features)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scaled.std(0), [1, 0, 1], atol=1e-9)
    with pytest.raises(ValueError, match="at least one row"):
        fit_scaling(np.full((2, 3), np.nan))
