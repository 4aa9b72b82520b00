"""Derived properties against pymatgen and spglib, over random and textbook crystals."""

from __future__ import annotations

import csv
import gzip
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import DERIVED, composition_vectors, derive, derive_rows, space_group_number
from latentite.data.readers.cif import parse_p1


def values(name: str, crystals: CrystalBatch) -> np.ndarray:
    result = derive(name, crystals)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == torch.float32
    return result.numpy()


def test_numbers_agree_with_pymatgen(crystals: CrystalBatch) -> None:
    structures = crystals.to_structures()
    np.testing.assert_allclose(values("density", crystals), [float(s.density) for s in structures], rtol=1e-5)
    np.testing.assert_allclose(
        values("volume_per_atom", crystals), [s.volume / len(s) for s in structures], rtol=1e-5
    )
    assert values("num_elements", crystals).tolist() == [len(s.composition) for s in structures]
    expected = []
    for structure in structures:
        negativities = [element.X for element in structure.composition]
        expected.append(max(negativities) - min(negativities) if not np.isnan(negativities).any() else np.nan)
    np.testing.assert_allclose(values("electronegativity_difference", crystals), expected, atol=1e-5)


def test_names_agree_with_pymatgen(crystals: CrystalBatch) -> None:
    from pymatgen.core import Composition

    structures = crystals.to_structures()
    assert derive("chemical_system", crystals) == [s.chemical_system for s in structures]
    for formula, structure in zip(derive("composition", crystals), structures, strict=True):
        assert Composition(str(formula)).reduced_composition == structure.composition.reduced_composition
        assert Composition(str(formula)).get_integer_formula_and_factor()[1] == 1


def test_a_composition_vector_holds_the_fraction_of_every_element(crystals: CrystalBatch) -> None:
    vectors = composition_vectors(crystals)
    assert vectors.shape == (len(crystals), 100)
    for vector, structure in zip(vectors, crystals.to_structures(), strict=True):
        expected = {
            element.Z: structure.composition.get_atomic_fraction(element) for element in structure.composition
        }
        found = {int(place) + 1: float(vector[place]) for place in vector.nonzero().ravel()}
        assert found == pytest.approx(expected)
    heavy = CrystalBatch.from_arrays([CrystalArrays(np.array([101]), np.zeros((1, 3)), 4.0 * np.eye(3))])
    with pytest.raises(ValueError, match="atomic numbers must be 1 to 100, got 101"):
        composition_vectors(heavy)


def test_space_groups_of_textbook_crystals(rocksalt: CrystalArrays, perovskite: CrystalArrays) -> None:
    crystals = CrystalBatch.from_arrays([rocksalt, perovskite])
    assert values("space_group", crystals).tolist() == [225.0, 221.0]
    shift = np.zeros((5, 3))
    shift[0, 0] = 0.05  # one atom 0.2 Å off: a polar axis is left
    moved = CrystalArrays(perovskite.atomic_numbers, perovskite.frac_coords + shift, perovskite.lattice)
    assert space_group_number(*astuple(moved)) == 99
    assert space_group_number(*astuple(moved), symprec=0.5) == 221


def test_space_groups_agree_with_moyopy_and_with_the_table(shared_data: Path) -> None:
    from moyopy import Cell, MoyoDataset

    with gzip.open(shared_data / "mp_20_biternary" / "val.csv.gz", "rt", newline="") as handle:
        rows = [row for row, _ in zip(csv.DictReader(handle), range(200), strict=False)]
    crystals = [parse_p1(row["cif"]) for row in rows]
    found = [space_group_number(*astuple(crystal)) for crystal in crystals if crystal is not None]
    cells = [Cell(m.tolist(), x.tolist(), z.tolist()) for z, x, m in map(astuple, filter(None, crystals))]
    peers = [MoyoDataset(cell, symprec=0.1).number for cell in cells]
    assert np.mean([one == other for one, other in zip(found, peers, strict=True)]) > 0.98
    table = [int(row["spacegroup.number"]) for row in rows]
    assert np.mean([one == other for one, other in zip(found, table, strict=True)]) > 0.98


def test_an_element_without_electronegativity_gives_a_missing_value() -> None:
    argon = CrystalBatch.from_arrays(
        [CrystalArrays(np.array([18, 11]), np.array([[0.0] * 3, [0.5] * 3]), 4.0 * np.eye(3))]
    )
    assert np.isnan(values("electronegativity_difference", argon)).all()


def test_rows_and_batches_get_the_same(crystals: CrystalBatch) -> None:
    names = list(DERIVED)
    rows = derive_rows(names, crystals.to_arrays())
    for name in names:
        column = derive(name, crystals)
        listed = column if isinstance(column, list) else column.tolist()
        for row, value in zip(rows, listed, strict=True):
            assert row[name] == (value if isinstance(value, str) else pytest.approx(value, nan_ok=True))
    assert derive_rows([], crystals.to_arrays()) == [{}] * len(crystals)
    assert derive_rows(names, []) == []


def test_no_crystals_give_no_values() -> None:
    empty = CrystalBatch.from_arrays([])
    for name in DERIVED:
        assert len(derive(name, empty)) == 0


def test_an_unknown_property_gets_suggestions(crystals: CrystalBatch) -> None:
    with pytest.raises(ValueError, match="got 'spacegroup'; did you mean space_group"):
        derive("spacegroup", crystals)
    with pytest.raises(ValueError, match="take one of num_elements"):
        derive_rows(["xyz"], [])
