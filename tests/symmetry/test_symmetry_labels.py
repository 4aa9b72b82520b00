"""Labels of known crystals, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest

from latentite.crystal_arrays import CrystalArrays
from latentite.symmetry.encode import EncodingError, encode
from latentite.symmetry.labels import SymmetryLabel, label_of, symmetry_label


def labels(crystal: CrystalArrays) -> SymmetryLabel:
    _, found = symmetry_label(crystal, symprec=0.1)
    assert isinstance(found, SymmetryLabel)
    return found


def recoloured(crystal: CrystalArrays, elements: dict[int, int]) -> CrystalArrays:
    numbers = np.array([elements[z] for z in crystal.atomic_numbers.tolist()])
    return CrystalArrays(numbers, crystal.frac_coords, crystal.lattice)


def test_rock_salt_has_the_label_of_aflow(rocksalt: CrystalArrays) -> None:
    number, found = symmetry_label(rocksalt, symprec=0.1)
    assert number == 225
    assert found == SymmetryLabel(
        wyckoff="a b", site_symmetry="m-3m m-3m", prototype="AB_cF8_225_a_b", decorated="225 a:Na b:Cl"
    )


def test_letters_have_counts_and_distorted_samples_the_label_of_their_symmetry(
    perovskite: CrystalArrays,
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.002, perovskite.frac_coords.shape)
    noisy = CrystalArrays(perovskite.atomic_numbers, perovskite.frac_coords + noise, perovskite.lattice)
    assert labels(noisy) == labels(perovskite)
    assert labels(noisy).prototype == "ABC3_cP5_221_a_b_c"


def test_a_prototype_does_not_depend_on_which_element_is_heavier(
    rocksalt: CrystalArrays, perovskite: CrystalArrays
) -> None:
    for crystal in (rocksalt, perovskite):
        elements = sorted(set(crystal.atomic_numbers.tolist()))
        mirrored = dict(zip(elements, reversed(elements), strict=True))
        assert labels(recoloured(crystal, mirrored)).prototype == labels(crystal).prototype
        assert (
            labels(recoloured(crystal, mirrored)).decorated != labels(crystal).decorated
            or crystal is rocksalt
        )


def test_labels_of_both_libraries_agree(perovskite: CrystalArrays, rocksalt: CrystalArrays) -> None:
    for crystal in (perovskite, rocksalt):
        assert label_of(encode(crystal)) == labels(crystal)


def test_rhombohedral_cells_are_counted_as_aflow_does() -> None:
    """Mercury, A_hR1_166_a: one atom in the rhombohedral cell, three in the hexagonal one."""
    angle = np.cos(np.radians(70.5))
    gram = 9.0 * np.array([[1, angle, angle], [angle, 1, angle], [angle, angle, 1]])
    mercury = CrystalArrays(np.array([80]), np.zeros((1, 3)), np.linalg.cholesky(gram))
    assert labels(mercury).prototype == "A_hR1_166_a"
    assert labels(mercury).wyckoff == "a"


def test_a_crystal_without_a_label_has_its_reason(
    rocksalt: CrystalArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = CrystalArrays(np.array([11, 11]), np.zeros((2, 3)), 4.0 * np.eye(3))
    assert symmetry_label(twice, symprec=0.1) == (None, "no space group was found at 0.1 Å")
    on_one_site = CrystalArrays(np.array([11, 17]), np.zeros((2, 3)), 4.0 * np.eye(3))
    number, reason = symmetry_label(on_one_site, symprec=0.1)
    assert number == 221
    assert str(reason).startswith("moyopy finds no symmetry at 0.001 Å")

    def fail(crystal: CrystalArrays, *, symprec: float) -> None:
        raise EncodingError("made to fail")

    monkeypatch.setattr("latentite.symmetry.labels.encode", fail)
    assert symmetry_label(rocksalt, symprec=0.1) == (225, "made to fail")
