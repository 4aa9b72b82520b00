"""Crystals to orbits and back: nothing is lost, and a crystal has one canonical description."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core.structure_matcher import StructureMatcher

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.build import read_source
from latentite.symmetry import encode as module
from latentite.symmetry.descriptions import Orbits, canonical, equivalent, equivalents
from latentite.symmetry.encode import EncodingError, encode, encode_p1, encode_with_fallback
from latentite.symmetry.orbits import OrbitBatch
from latentite.symmetry.positions import space_group, wyckoff_table

MATCHER = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)


def some_crystals(source: str, count: int) -> list[CrystalArrays]:
    """Crystals of a data set, taken evenly."""
    crystals = read_source(source, split="val", max_atoms=0)[0].crystals.to_arrays()
    return crystals[:: max(1, len(crystals) // count)][:count]


@pytest.fixture(scope="module")
def prototypes() -> list[CrystalArrays]:
    return some_crystals("prototypes", 40)


def same(orbits: Orbits, crystal: CrystalArrays) -> bool:
    """pymatgen takes what the orbits decode to for the crystal."""
    decoded = OrbitBatch.pack([orbits]).to_crystals()
    given = CrystalBatch.from_arrays([crystal])
    return MATCHER.fit(given.to_structures()[0], decoded.to_structures()[0])


def assert_same_orbits(first: Orbits, second: Orbits) -> None:
    assert first.space_group == second.space_group
    np.testing.assert_array_equal(first.position, second.position)
    np.testing.assert_array_equal(first.element, second.element)
    gaps = first.coords - second.coords
    np.testing.assert_allclose(gaps - np.round(gaps), 0, atol=2e-4)
    np.testing.assert_allclose(first.cell, second.cell, atol=2e-4)


def in_another_cell(crystal: CrystalArrays, rng: np.random.Generator) -> CrystalArrays:
    """The same crystal with another basis, origin and order of atoms."""
    while True:
        change = rng.integers(-1, 2, (3, 3))
        if round(np.linalg.det(change)) == 1:
            break
    coords = (crystal.frac_coords + rng.random(3)) @ np.linalg.inv(change)
    order = rng.permutation(crystal.num_atoms)
    return CrystalArrays(crystal.atomic_numbers[order], coords[order], change @ crystal.lattice)


def test_rock_salt_is_two_orbits_without_freedom(rocksalt: CrystalArrays) -> None:
    orbits = encode(rocksalt)
    letters = [wyckoff_table().letter[place] for place in orbits.position]
    assert (orbits.space_group, letters, orbits.element.tolist()) == (225, ["a", "b"], [11, 17])
    np.testing.assert_array_equal(orbits.coords, 0)
    assert OrbitBatch.pack([orbits]).to_crystals().num_atoms.tolist() == [2]


def test_shipped_crystals_come_back_from_their_orbits(prototypes: list[CrystalArrays]) -> None:
    assert all(same(encode_with_fallback(crystal), crystal) for crystal in prototypes)


def test_real_crystals_come_back_from_their_orbits(shared_data: Path) -> None:
    for name in ("mp_20_biternary", "mp_mix"):
        crystals = some_crystals(str(shared_data / name / "val.csv.gz"), 100)
        assert all(same(encode_with_fallback(crystal), crystal) for crystal in crystals)


def test_special_coordinates_are_exact(perovskite: CrystalArrays) -> None:
    coords = OrbitBatch.pack([encode(perovskite)]).to_crystals().frac_coords
    assert set(coords.flatten().tolist()) <= {0.0, 0.5}


def test_the_description_depends_on_neither_cell_nor_origin_nor_order(
    prototypes: list[CrystalArrays],
) -> None:
    """The first draft tried the origin of polar groups at one place of each orbit only: a third of them got other
    coordinates in another cell."""
    rng = np.random.default_rng(0)
    for crystal in prototypes:
        assert_same_orbits(encode(crystal), encode(in_another_cell(crystal, rng)))


def test_polar_crystals_of_the_real_data_have_one_description(shared_data: Path) -> None:
    rng, num_polar = np.random.default_rng(0), 0
    for crystal in some_crystals(str(shared_data / "mp_mix" / "val.csv.gz"), 200):
        orbits = encode(crystal)
        if space_group(orbits.space_group).polar_axes:
            num_polar += 1
            assert_same_orbits(orbits, encode(in_another_cell(crystal, rng)))
            assert starts_at_zero(orbits)
    assert num_polar > 10


def starts_at_zero(orbits: Orbits) -> bool:
    """The first orbit is at 0 along polar axes."""
    polar = wyckoff_table().is_polar[orbits.position[0]]
    return not orbits.coords[0][polar].any()


@given(seed=st.integers(0, 2**32 - 1), place=st.integers(0, 39))
def test_equivalent_descriptions_are_the_same_crystal(
    prototypes: list[CrystalArrays], seed: int, place: int
) -> None:
    crystal = prototypes[place]
    orbits = encode_with_fallback(crystal)
    other = equivalent(orbits, np.random.default_rng(seed))
    assert same(other, crystal)
    assert starts_at_zero(other)
    assert (np.diff(other.position) >= 0).all()
    assert (np.diff(other.element)[np.diff(other.position) == 0] >= 0).all()
    assert_same_orbits(canonical(other), orbits)


def test_all_equivalent_descriptions_are_listed_once_the_canonical_one_first(
    prototypes: list[CrystalArrays],
) -> None:
    rng = np.random.default_rng(0)
    for crystal in prototypes[:20]:
        orbits = encode_with_fallback(crystal)
        listed = equivalents(orbits)
        assert_same_orbits(listed[0], orbits)
        keys = {(*one.position, *one.element, *np.round(one.coords, 4).ravel()) for one in listed}
        assert len(keys) == len(listed)
        drawn = equivalent(orbits, rng)
        assert (*drawn.position, *drawn.element, *np.round(drawn.coords, 4).ravel()) in keys


def test_draws_reach_every_equivalent_description(rocksalt: CrystalArrays) -> None:
    """Sodium on a and chlorine on b, or the other way round."""
    orbits, rng = encode(rocksalt), np.random.default_rng(0)
    drawn = {tuple(equivalent(orbits, rng).element.tolist()) for _ in range(40)}
    assert drawn == {(11, 17), (17, 11)}


def test_a_superstructure_is_not_symmetrised_away(shared_data: Path) -> None:
    """CeSe2 in a cell of nine atoms (mp-1080346): at 0.1 Å it is fluorite with three, which pymatgen does not take for
    the same crystal."""
    dataset = read_source(str(shared_data / "mp_20_biternary" / "train.csv.gz"), split="train", max_atoms=0)[
        0
    ]
    crystal = dataset.crystals.to_arrays()[dataset.ids.index("mp-1080346")]
    assert encode(crystal).space_group == 225
    orbits = encode_with_fallback(crystal)
    assert orbits.space_group == 154
    assert same(orbits, crystal)


def test_a_larger_cell_with_a_little_noise_is_no_superstructure(rocksalt: CrystalArrays) -> None:
    coords = rocksalt.frac_coords + np.random.default_rng(0).normal(0, 0.001, (8, 3))
    noisy = CrystalArrays(rocksalt.atomic_numbers, coords, rocksalt.lattice)
    assert encode(noisy, symprec=0.01).space_group < 3
    assert encode_with_fallback(noisy).space_group == 225


def test_a_crystal_that_fails_at_the_first_tolerance_is_encoded_at_the_second(
    rocksalt: CrystalArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of 22,807 real crystals needs it, so the failure is made."""
    wanted, tolerances = encode(rocksalt), []

    def failing(crystal: CrystalArrays, symprec: float) -> tuple[Orbits, float]:
        tolerances.append(symprec)
        if symprec == 0.1:
            raise EncodingError("made to fail")
        return wanted, 0.0

    monkeypatch.setattr(module, "_encode", failing)
    assert encode_with_fallback(rocksalt) is wanted
    assert tolerances == [0.1, 0.01]


def test_orbits_that_move_atoms_too_far_are_refused(
    rocksalt: CrystalArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moyopy symmetrises is held against the atoms that came in."""
    standardise = module._standardise

    def shifted(crystal: CrystalArrays, symprec: float) -> module._Standardised:
        found = standardise(crystal, symprec)
        return replace(found, moved=found.moved + np.array([0.03, 0, 0]))

    monkeypatch.setattr(module, "_standardise", shifted)
    with pytest.raises(EncodingError, match=r"moves atoms by 0\.169 Å, more than 0\.1 Å"):
        encode(rocksalt)


def test_what_has_no_description_is_refused_with_a_reason(rocksalt: CrystalArrays) -> None:
    on_one_site = CrystalArrays(np.array([11, 17]), np.zeros((2, 3)), 4.0 * np.eye(3))
    with pytest.raises(EncodingError, match=r"moyopy finds no symmetry at 0\.01 Å"):
        encode_with_fallback(on_one_site)
    with pytest.raises(EncodingError, match=r"moyopy finds no symmetry at 0\.1 Å"):
        encode_with_fallback(on_one_site, fallback=None)


def test_cells_that_are_not_primitive_are_encoded_without_a_word(
    rocksalt: CrystalArrays, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """moyopy's Rust code logs "Omitted 32 primitive-cell symmetry operations" of a cell three times as long."""
    coords = np.concatenate([(rocksalt.frac_coords + np.array([0, 0, k])) / [1, 1, 3] for k in range(3)])
    long = CrystalArrays(np.tile(rocksalt.atomic_numbers, 3), coords, rocksalt.lattice * [[1], [1], [3]])
    with caplog.at_level(logging.DEBUG):
        assert encode(long).space_group == 225
    captured = capfd.readouterr()
    assert (caplog.text, captured.out, captured.err) == ("", "", "")


def test_without_symmetry_every_atom_is_an_orbit_and_the_first_is_at_the_origin(
    perovskite: CrystalArrays,
) -> None:
    orbits = encode_p1(perovskite)
    assert orbits.space_group == 1
    assert sorted(orbits.element) == sorted(perovskite.atomic_numbers)
    np.testing.assert_array_equal(orbits.coords[0], 0)
    assert same(orbits, perovskite)


def test_without_symmetry_the_cell_is_reduced_and_keeps_its_atoms(rocksalt: CrystalArrays) -> None:
    skew = in_another_cell(rocksalt, np.random.default_rng(3))
    crystals = OrbitBatch.pack([encode_p1(skew)]).to_crystals()
    assert crystals.num_atoms.tolist() == [8]
    np.testing.assert_allclose(crystals.lengths[0], 5.64, rtol=1e-6)
    np.testing.assert_allclose(crystals.angles[0], 90, rtol=1e-6)
    assert same(encode_p1(skew), rocksalt)
