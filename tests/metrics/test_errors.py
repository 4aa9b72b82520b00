"""Errors of reconstructed crystals and of predicted properties."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core.structure_matcher import StructureMatcher

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.match.reduced import LOOSE, STRICT
from latentite.metrics.errors import (
    atom_errors,
    classification_metrics,
    reconstruction_table,
    regression_metrics,
    summarise,
)


def test_a_copy_is_perfect(crystals: CrystalBatch) -> None:
    summary = summarise(reconstruction_table(crystals, crystals))
    assert summary["match_rate_loose"] == summary["match_rate_strict"] == 1.0
    assert summary["element_accuracy"] == summary["composition_correct"] == 1.0
    assert summary["coordinate_rmse"] < 1e-6
    assert summary["rmsd_strict"] < 1e-6


def test_a_common_shift_is_no_error_of_the_crystal_but_is_reported(crystals: CrystalBatch) -> None:
    shifted = replace(crystals, frac_coords=lat.wrap(crystals.frac_coords + torch.tensor([0.3, 0.45, -0.2])))
    errors = atom_errors(crystals, shifted)
    assert errors["coordinate_rmse"].max() < 1e-4
    assert errors["coordinate_rmse_absolute"].min() > 0.3
    assert summarise(reconstruction_table(crystals, shifted))["match_rate_strict"] == 1.0


def test_known_displacements_give_their_rmse(crystals: CrystalBatch) -> None:
    """Atoms moved by +d and -d in turn along x (Å): the mean shift is known, so is what is left."""
    pair = crystals.select(torch.nonzero(crystals.num_atoms % 2 == 0).squeeze(-1))
    sign = torch.where(pair.token_index % 2 == 0, 1.0, -1.0)
    cart = torch.zeros(pair.total_atoms, 3)
    cart[:, 0] = 0.07 * sign
    frac = torch.einsum("ai,aij->aj", cart, torch.linalg.inv(pair.lattice)[pair.crystal_index])
    errors = atom_errors(pair, replace(pair, frac_coords=lat.wrap(pair.frac_coords + frac)))
    torch.testing.assert_close(
        errors["coordinate_rmse"], torch.full((len(pair),), 0.07), atol=1e-4, rtol=1e-3
    )


def test_cell_errors_are_mean_absolute_errors(crystals: CrystalBatch) -> None:
    lengths, angles = lat.parameters_from_lattice(crystals.lattice)
    other = replace(crystals, lattice=lat.lattice_from_parameters(lengths + 0.3, angles))
    errors = atom_errors(crystals, other)
    torch.testing.assert_close(errors["length_error"], torch.full((16,), 0.3), atol=1e-4, rtol=1e-3)
    assert errors["angle_error"].max() < 1e-2


def test_wrong_elements_are_counted_and_never_match(crystals: CrystalBatch) -> None:
    numbers = crystals.atomic_numbers.clone()
    numbers[crystals.first_atom] = numbers[crystals.first_atom] % 90 + 1
    table = reconstruction_table(crystals, replace(crystals, atomic_numbers=numbers))
    expected = 1 - 1 / crystals.num_atoms.double().numpy()
    np.testing.assert_allclose(table["element_accuracy"], expected, atol=1e-6)
    assert np.isnan(table["rmsd_loose"]).all()


def test_an_exchanged_pair_of_atoms_keeps_the_composition(rocksalt: tuple) -> None:
    """The order of atoms is trusted by the accuracy, not by the composition nor by the matcher."""
    batch = CrystalBatch.from_arrays([rocksalt])
    order = torch.tensor([4, 1, 2, 3, 0, 5, 6, 7])
    exchanged = replace(
        batch, atomic_numbers=batch.atomic_numbers[order], frac_coords=batch.frac_coords[order]
    )
    table = reconstruction_table(batch, exchanged)
    assert table["element_accuracy"][0] == pytest.approx(0.75)
    assert table["composition_correct"][0] == 1.0
    assert np.isfinite(table["rmsd_strict"][0])


def test_verdicts_equal_the_plain_matcher(crystals: CrystalBatch) -> None:
    torch.manual_seed(1)
    noise = torch.randn_like(crystals.frac_coords) * torch.linspace(0, 0.12, 16)[
        crystals.crystal_index
    ].unsqueeze(-1)
    noisy = replace(crystals, frac_coords=lat.wrap(crystals.frac_coords + noise))
    table = reconstruction_table(crystals, noisy)
    pairs = list(zip(crystals.to_structures(), noisy.to_structures(), strict=True))
    for settings in (LOOSE, STRICT):
        matcher = StructureMatcher(settings.ltol, settings.stol, settings.angle_tol)
        expected = [matcher.get_rms_dist(a, b) is not None for a, b in pairs]
        assert np.isfinite(table[f"rmsd_{settings.name}"]).tolist() == expected
    assert 0 < np.isfinite(table["rmsd_strict"]).sum() < 16  # the case tells them apart


def test_flat_cells_match_nothing_and_harm_nothing(crystals: CrystalBatch) -> None:
    lattice = crystals.lattice.clone()
    lattice[3] *= 1e-4
    lattice[4] = torch.nan
    table = reconstruction_table(crystals, replace(crystals, lattice=lattice))
    assert np.isnan(table["rmsd_loose"][[3, 4]]).all()
    assert np.isfinite(np.delete(table["rmsd_loose"], [3, 4])).all()


def test_known_answers():
    labels = np.array([1.0, 2.0, np.nan, 6.0])
    found = regression_metrics(labels, np.array([2.0, 2.0, 99.0, 4.0]))
    # errors 1, 0, -2; mean label 3, squares about it 4 + 1 + 9
    assert found["mae"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert found["r2"] == pytest.approx(1 - 5 / 14)


def test_nothing_is_said_without_labels_and_no_r2_without_spread():
    assert regression_metrics(np.array([np.nan]), np.array([1.0])) == {}
    assert classification_metrics(np.array([np.nan]), np.array([1.0])) == {}
    assert math.isnan(regression_metrics(np.ones(3), np.zeros(3))["r2"])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-10, 10))
def test_a_constant_offset_is_its_own_error(values, offset):
    labels = np.array(values)
    found = regression_metrics(labels, labels + offset)
    assert found["mae"] == pytest.approx(abs(offset), abs=1e-9)
    assert found["rmse"] == pytest.approx(abs(offset), abs=1e-9)


def test_accuracy_counts_labelled_crystals():
    found = classification_metrics(np.array([0.0, 1.0, np.nan, 2.0]), np.array([0.0, 2.0, 1.0, 2.0]))
    assert found == {"accuracy": pytest.approx(2 / 3)}
