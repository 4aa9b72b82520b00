"""Columns of symmetry: the same from any source, failures counted, and what of a sample stands in the reference."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from latentite import evaluate


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def caesium_chloride(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def test_letters_site_symmetries_and_prototypes_are_columns() -> None:
    table = evaluate([rock_salt("Na", "Cl", 5.64), caesium_chloride("Cs", "Cl", 4.12)], workers=1).table
    assert table["wyckoff"] == ["a b", "a b"]
    assert table["site_symmetry"] == ["m-3m m-3m", "m-3m m-3m"]
    assert table["prototype"] == ["AB_cF8_225_a_b", "AB_cP2_221_a_b"]


def test_samples_with_the_skeleton_or_the_prototype_of_a_reference_crystal_are_counted() -> None:
    """Another lattice constant changes neither; an element changes the skeleton alone."""
    samples = [rock_salt("Na", "Cl", 6.4), rock_salt("K", "Br", 6.6), caesium_chloride("Cs", "Cl", 4.12)]
    result = evaluate(samples, reference=[rock_salt("Na", "Cl", 5.64)], workers=1)
    assert result.table["decorated_in_reference"] == [True, False, False]
    assert result.table["prototype_in_reference"] == [True, True, False]
    assert (
        result.rates["decorated_in_reference"].numerator,
        result.rates["prototype_in_reference"].numerator,
    ) == (1, 2)


def test_a_crystal_without_labels_has_empty_cells_and_a_reason_and_leaves_the_rates() -> None:
    on_one_site = Structure(Lattice.cubic(4.0), ["Na", "Cl"], np.zeros((2, 3)))
    result = evaluate(
        [on_one_site, rock_salt("K", "Br", 6.6)], reference=[rock_salt("Na", "Cl", 5.64)], workers=1
    )
    assert result.table["wyckoff"][0] is result.table["prototype"][0] is None
    assert result.table["decorated_in_reference"] == [None, False]
    assert result.rates["prototype_in_reference"].denominator == 1
    (failure,) = [failure for failure in result.failures if failure.step == "wyckoff"]
    assert failure.row == 0
    assert "moyopy finds no symmetry" in failure.reason


def test_labels_come_from_the_store_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate([rock_salt("Na", "Cl", 5.64)], workers=1).table
    monkeypatch.setattr("latentite.evaluation.measure.symmetries", None)
    assert evaluate([rock_salt("Na", "Cl", 5.64)], workers=1).table["prototype"] == first["prototype"]
