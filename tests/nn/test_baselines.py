"""Element baselines: planted values come back, gaps are refused by name, fidelities lean on the reference."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentite.crystal import FIDELITY, CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.nn.baseline_fit import fit_baselines, formula_units
from latentite.nn.baseline_ridge import PULLS, cross_validated_ridge
from latentite.nn.baselines import ElementBaselines, Extent

PLANTED = {3: -1.9, 8: -4.9, 11: -1.3, 17: -1.8, 26: -8.3, 29: -3.7}
"""Element energies in eV/atom."""


def crystals_of(rows: list[list[int]]) -> CrystalBatch:
    """Crystals of these atomic numbers; positions and cells do not matter here."""
    return CrystalBatch.from_arrays(
        [CrystalArrays(np.array(r), np.zeros((len(r), 3)), np.eye(3)) for r in rows]
    )


def planted(count: int, *, seed: int, numbers: list[int] | None = None) -> tuple[CrystalBatch, torch.Tensor]:
    """Random compositions, and the planted total of each cell."""
    generator = np.random.default_rng(seed)
    elements = numbers or list(PLANTED)
    rows = [generator.choice(elements, size=generator.integers(1, 13)).tolist() for _ in range(count)]
    return crystals_of(rows), torch.tensor([sum(PLANTED[n] for n in row) for row in rows])


@pytest.mark.parametrize("extent", [Extent.TOTAL, Extent.PER_ATOM])
def test_planted_element_energies_are_recovered_through_noise_and_wrong_rows(extent: Extent) -> None:
    batch, total = planted(2000, seed=1)
    generator = torch.Generator().manual_seed(2)
    labels = total + 0.01 * batch.num_atoms * torch.randn(len(batch), generator=generator)
    labels[:30] += 500.0 * batch.num_atoms[:30]  # 1.5 % of rows are nonsense
    if extent is Extent.PER_ATOM:
        labels = labels / batch.num_atoms
    batch = batch.with_properties({"energy": labels})
    baselines, [fit] = fit_baselines(batch, targets=["energy"], extents=[extent])
    for number, value in PLANTED.items():
        assert float(baselines.values[0, 0, number]) == pytest.approx(value, abs=0.01)
    assert fit.fitted == tuple(PLANTED)
    assert (fit.num_rows, fit.num_trimmed) == (2000, 80)
    untrimmed, _ = fit_baselines(batch, targets=["energy"], extents=[extent], trim=0.0)
    worst = max(abs(float(untrimmed.values[0, 0, n]) - v) for n, v in PLANTED.items())
    assert worst > 1.0  # what trimming is for


def test_the_ridge_fit_is_the_solution_of_the_normal_equations() -> None:
    batch, total = planted(60, seed=3)
    labels = total + torch.randn(60, generator=torch.Generator().manual_seed(4))
    baselines, _ = fit_baselines(
        batch.with_properties({"energy": labels}), targets=["energy"], extents=["total"], ridge=0.7, trim=0.0
    )
    counts, units, _ = formula_units(batch)
    used = counts[:, list(PLANTED)]
    expected = np.linalg.solve(used.T @ used + 0.7 * np.eye(6), used.T @ (labels.double().numpy() / units))
    assert np.allclose(baselines.values[0, 0, list(PLANTED)].numpy(), expected, atol=1e-9)


def test_a_fidelity_takes_the_reference_for_elements_that_it_never_saw() -> None:
    first, total = planted(200, seed=5)
    second, shifted = planted(30, seed=6, numbers=[3, 8])
    both = CrystalBatch.concatenate([first, second]).with_properties(
        {
            "energy": torch.cat([total, shifted + 0.5 * second.num_atoms]),
            "fidelity": torch.cat([torch.ones(200), torch.zeros(30)]),
        }
    )
    baselines, fits = fit_baselines(
        both, targets=["energy"], extents=["total"], fidelities=["HSE", "PBE"], reference="PBE"
    )
    hse, pbe = baselines.values[:, 0]
    assert torch.allclose(hse[[3, 8]], pbe[[3, 8]] + 0.5, atol=2e-3)
    assert hse[[11, 17, 26, 29]].equal(pbe[[11, 17, 26, 29]])
    assert {fit.fidelity: fit.inherited for fit in fits} == {"PBE": (), "HSE": (11, 17, 26, 29)}


def test_the_cross_validated_ridge_is_that_of_the_written_out_formula() -> None:
    generator = np.random.default_rng(0)
    for noise, strong in ((0.01, False), (30.0, True)):
        system = generator.integers(0, 4, size=(40, 6)).astype(float)
        target = system @ generator.normal(size=6) + noise * generator.normal(size=40)
        errors = []
        for ridge in PULLS:
            hat = system @ np.linalg.solve(system.T @ system + ridge * np.eye(6), system.T)
            errors.append(np.sum((target - hat @ target) ** 2) / np.trace(np.eye(40) - hat) ** 2)
        chosen = cross_validated_ridge(system, target)
        assert chosen == PULLS[int(np.argmin(errors))]
        assert (chosen > 1.0) is strong


def test_few_noisy_rows_of_a_second_fidelity_leave_the_reference_nearly_as_it_is() -> None:
    """The labels scatter for reasons other than composition: 30 rows once gave baselines off by the scatter."""
    batch, total = planted(1030, seed=5)
    noise = 3.0 * torch.randn(len(batch), generator=torch.Generator().manual_seed(6))
    code = (torch.arange(len(batch)) >= 1000).float()
    batch = batch.with_properties({"energy": total + noise * batch.num_atoms, FIDELITY: code})
    options = {"targets": ["energy"], "extents": ["total"], "fidelities": ("PBE", "HSE")}
    table, _ = fit_baselines(batch, **options)
    loose, _ = fit_baselines(batch, **options, pull=1e-3)

    def shift(baselines: ElementBaselines) -> float:
        values = baselines.values[:, 0, list(PLANTED)]
        return float((values[1] - values[0]).abs().max())

    assert shift(table) < 0.5 * shift(loose)


def test_labels_of_the_same_materials_give_the_change_whatever_their_scatter() -> None:
    batch, total = planted(300, seed=7)
    scatter = 3.0 * torch.randn(300, generator=torch.Generator().manual_seed(8)) * batch.num_atoms
    change = torch.tensor(
        [float((numbers == 8).sum()) for numbers, _, _ in map(astuple, batch.to_arrays())]
    )  # 1 eV per O
    both = CrystalBatch.concatenate([batch, batch.select(torch.arange(60))])
    energy = torch.cat([total + scatter, (total + scatter + change)[:60]])
    code = (torch.arange(360) >= 300).float()
    table, _ = fit_baselines(
        both.with_properties({"energy": energy, FIDELITY: code}),
        targets=["energy"],
        extents=["total"],
        fidelities=("PBE", "HSE"),
        materials=[f"m-{i}" for i in [*range(300), *range(60)]],
    )
    found = (table.values[1] - table.values[0])[0, list(PLANTED)]
    assert np.allclose(found.numpy(), [float(z == 8) for z in PLANTED], atol=0.01)


def test_an_element_without_a_baseline_is_refused_by_name() -> None:
    batch, total = planted(50, seed=7)
    baselines, _ = fit_baselines(
        batch.with_properties({"energy": total}), targets=["energy"], extents=["total"]
    )
    with pytest.raises(ValueError, match="Au must have a baseline of energy at fidelity labels, got none"):
        baselines(crystals_of([[3, 8], [79, 79, 8]]), torch.zeros(2, dtype=torch.long))


def test_a_target_without_baseline_is_zero_for_every_element() -> None:
    baselines = ElementBaselines(fidelities=["PBE"], targets=["band_gap"], extents=["none"])
    assert baselines(crystals_of([[118, 1]]), torch.zeros(1, dtype=torch.long)).tolist() == [[0.0]]


def test_labels_that_are_missing_do_not_enter_and_a_reference_without_labels_is_refused() -> None:
    batch, total = planted(100, seed=8)
    holes = total.clone()
    holes[::2] = torch.nan
    baselines, [fit] = fit_baselines(
        batch.with_properties({"energy": holes}), targets=["energy"], extents=["total"], ridge=0.0
    )
    assert fit.num_rows == 50
    assert torch.allclose(baselines(batch, torch.zeros(100, dtype=torch.long))[:, 0], total, atol=1e-4)
    with pytest.raises(ValueError, match="must have labels at the reference fidelity labels"):
        fit_baselines(
            batch.with_properties({"energy": total * torch.nan}), targets=["energy"], extents=["total"]
        )


@given(st.permutations(range(12)), st.integers(1, 5))
def test_a_baseline_knows_neither_order_nor_size_of_the_cell(order: list[int], repeats: int) -> None:
    row = [3, 3, 8, 8, 8, 26, 29, 29, 29, 29, 11, 17]
    baselines = ElementBaselines(fidelities=["PBE"], targets=["e", "f"], extents=["total", "per_atom"])
    baselines.values[0, :, list(PLANTED)] = torch.tensor(list(PLANTED.values()), dtype=torch.float64)
    batch = crystals_of([row, [row[k] for k in order] * repeats])
    [one, other] = baselines(batch, torch.zeros(2, dtype=torch.long))
    total = sum(PLANTED[n] for n in row)
    assert one.tolist() == pytest.approx([total, total / 12], rel=1e-6)
    assert other.tolist() == pytest.approx([repeats * total, total / 12], rel=1e-6)
