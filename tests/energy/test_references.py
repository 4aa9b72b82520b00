"""Element references against energies that were made from known ones."""

from __future__ import annotations

import json
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy.potential import TheoryLevel
from latentite.energy.references import ElementReferences, ReferenceTerms, check_same_theory, fit_references

PBE = TheoryLevel(functional="PBE(+U)", is_corrected=True)
UNCORRECTED = TheoryLevel(functional="PBE(+U)", is_corrected=False)
UNKNOWN = TheoryLevel(functional="unknown", is_corrected=None)
ELEMENTS = (3, 8, 16, 26, 29)
MU = dict(zip(ELEMENTS, (-1.9, -4.9, -4.1, -8.5, -3.7), strict=True))


def made(seed: int, count: int) -> tuple[CrystalBatch, Tensor, Tensor]:
    """Crystals of random composition, their formation energies (eV/atom) and total energies (eV)."""
    rng = np.random.default_rng(seed)
    arrays = [
        CrystalArrays(rng.choice(ELEMENTS, n), rng.random((n, 3)), 9.0 * np.eye(3))
        for n in rng.integers(1, 9, count)
    ]
    formation = rng.normal(-1.0, 0.5, count)
    total = [
        len(n) * e + sum(MU[z] for z in n.tolist())
        for (n, _, _), e in zip(map(astuple, arrays), formation, strict=True)
    ]
    return CrystalBatch.from_arrays(arrays), torch.tensor(total), torch.from_numpy(formation)


def test_known_references_come_back() -> None:
    crystals, total, formation = made(0, 200)
    fit = fit_references(crystals, total, formation, ridge=0.0, theory=PBE, table_theory=PBE)
    assert fit.elements == frozenset(ELEMENTS)
    np.testing.assert_allclose([fit.weights[z - 1] for z in ELEMENTS], list(MU.values()), atol=1e-5)
    assert fit.mean_absolute_residual < 1e-6
    others, total, formation = made(1, 50)
    assert fit.residual(others, total, formation).abs().max() < 1e-5
    predicted, reasons = fit.formation_energy(others, total)
    torch.testing.assert_close(predicted, formation, atol=1e-5, rtol=0)
    assert reasons == [None] * 50


def test_the_ridge_is_that_of_the_normal_equations() -> None:
    crystals, total, formation = made(0, 30)
    noisy = formation + torch.from_numpy(np.random.default_rng(5).normal(0, 0.1, 30))
    fit = fit_references(crystals, total, noisy, ridge=0.5, theory=PBE, table_theory=PBE)
    counts = np.stack([np.bincount(n, minlength=119)[1:] for n, _, _ in map(astuple, crystals.to_arrays())])
    x = (counts / counts.sum(1, keepdims=True))[:, np.array(ELEMENTS) - 1]
    y = (total / crystals.num_atoms - noisy).numpy()
    expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(5), x.T @ y)
    np.testing.assert_allclose(fit.weights[np.array(ELEMENTS) - 1], expected, atol=1e-9)
    assert fit.mean_absolute_residual == pytest.approx(np.abs(x @ expected - y).mean())


def test_an_element_never_seen_is_refused_by_name_and_the_others_are_not() -> None:
    crystals, total, formation = made(0, 100)
    fit = fit_references(crystals, total, formation, theory=PBE, table_theory=PBE)
    numbers = crystals.atomic_numbers.clone()
    numbers[crystals.first_atom[2]] = 79
    predicted, reasons = fit.formation_energy(replace(crystals, atomic_numbers=numbers), total)
    assert reasons[2] == "no element reference for Au: the table that was fitted has none"
    assert [k for k, reason in enumerate(reasons) if reason is not None] == [2]
    assert predicted.isnan().nonzero().flatten().tolist() == [2]


@pytest.mark.usefixtures("no_shape_checks")
def test_rows_without_a_number_do_not_enter() -> None:
    crystals, total, formation = made(0, 100)
    formation[3], total[5] = torch.nan, torch.nan
    fit = fit_references(crystals, total, formation, theory=PBE, table_theory=PBE)
    assert fit.num_rows == 98
    with pytest.raises(ValueError, match="got none"):
        fit_references(crystals, total * torch.nan, formation, theory=PBE, table_theory=PBE)
    with pytest.raises(ValueError, match="got 99 for 100"):
        fit_references(crystals, total[1:], formation, theory=PBE, table_theory=PBE)


def test_corrections_are_taken_up_by_their_terms() -> None:
    """-0.7 eV per O where O is the anion (in sulphates too), -2.2 eV per Fe in oxides, nothing in sulphides."""
    crystals, total, formation = made(0, 400)
    corrected = []
    for (numbers, _, _), energy in zip(map(astuple, crystals.to_arrays()), total.tolist(), strict=True):
        is_oxide = 8 in numbers and len(set(numbers.tolist())) > 1
        oxygen, iron, sulphur = ((numbers == z).sum() for z in (8, 26, 16))
        is_sulphide = 16 in numbers and 8 not in numbers and len(set(numbers.tolist())) > 1
        corrected.append(energy + is_oxide * (0.7 * oxygen + 2.2 * iron) + is_sulphide * 0.5 * sulphur)
    total = torch.tensor(corrected)
    kinds = {"theory": UNCORRECTED, "table_theory": PBE, "ridge": 1e-8}
    fit = fit_references(crystals, total, formation, terms=ReferenceTerms.CORRECTIONS, **kinds)
    assert fit.mean_absolute_residual < 1e-4
    with pytest.raises(ValueError, match="one level of theory"):
        fit_references(crystals, total, formation, **kinds)
    plain = fit_references(crystals, total, formation, allow_mixed_theory=True, **kinds)
    assert plain.mean_absolute_residual > 0.05


@pytest.mark.parametrize("pair", [(PBE, UNCORRECTED), (PBE, None), (None, None), (UNKNOWN, UNKNOWN)])
def test_levels_of_theory_are_not_mixed_unless_told(pair: tuple) -> None:
    with pytest.raises(ValueError, match="must be of one level of theory"):
        check_same_theory(*pair)
    check_same_theory(*pair, allow_mixed_theory=True)
    check_same_theory(PBE, PBE)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_the_left_out_residual_is_that_of_fits_without_each_row(ridge: float) -> None:
    crystals, total, formation = made(0, 25)
    noisy = formation + torch.from_numpy(np.random.default_rng(5).normal(0, 0.1, 25))
    gold = CrystalBatch.from_arrays([CrystalArrays(np.array([79, 8]), np.zeros((2, 3)), 9.0 * np.eye(3))])
    crystals = CrystalBatch.concatenate([crystals, gold])  # its only row: without it gold is unknown
    total, noisy = torch.cat([total, torch.tensor([-20.0])]), torch.cat([noisy, torch.tensor([-1.0])])
    known = {"ridge": ridge, "theory": PBE, "table_theory": PBE}
    fit = fit_references(crystals, total, noisy, **known)
    missed = []
    for k in range(25):
        rest, row = torch.tensor([i for i in range(26) if i != k]), torch.tensor([k])
        without = fit_references(crystals.select(rest), total[rest], noisy[rest], **known)
        missed.append(float(without.residual(crystals.select(row), total[row], noisy[row]).abs()))
    assert fit.left_out_residual == pytest.approx(np.mean(missed), rel=1e-6)


def test_references_come_back_from_json() -> None:
    fit = fit_references(*made(0, 40), theory=PBE, table_theory=PBE)
    again = ElementReferences.from_json(json.loads(json.dumps(fit.to_json())))
    np.testing.assert_array_equal(again.weights, fit.weights)
    assert replace(again, weights=fit.weights).to_json() == fit.to_json()
    assert again.elements == fit.elements
    assert again.theory == PBE
    with pytest.raises(ValueError, match="were expected"):
        ElementReferences.from_json({"weights": []})
