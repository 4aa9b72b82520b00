"""Tables of formation energies: their hull, and the references of a potential that is known exactly."""

from __future__ import annotations

import csv
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lennard_jones import LennardJones
from small_crystals import fcc, packed

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset_folder import build_dataset
from latentite.data.options import BuildOptions
from latentite.energy import parallel, table
from latentite.energy.parallel import RelaxHow, chunks_of
from latentite.energy.potential import TheoryLevel
from latentite.energy.references import ReferenceTerms
from latentite.energy.table import (
    FORMATION_ENERGY,
    MATERIALS_PROJECT,
    MissingPhases,
    find_table,
    matching_terms,
    missing_phases,
    read_rows,
    spread_sample,
    table_hull,
    table_references,
)
from latentite.formulas import parse_formula

LJ = TheoryLevel(functional="Lennard-Jones", is_corrected=False)
HOW = RelaxHow(
    potential="ase.calculators.lj:LennardJones",
    arguments={"sigma": 2.5, "epsilon": 0.2, "rc": 6.0},
    theory=LJ,
)
MU = {10: -0.5, 18: -1.0, 36: -2.0}


@pytest.fixture
def crystals() -> CrystalBatch:
    """Random mixtures of Ne, Ar and Kr on rattled fcc sites."""
    rng = np.random.default_rng(0)
    arrays = []
    for k in range(30):
        _, coords, lattice = astuple(fcc(18, 3.9 + 0.01 * k, rattle=0.05, seed=k))
        arrays.append(CrystalArrays(rng.choice([10, 18, 36], 4), coords, lattice))
    return packed(arrays)


@pytest.fixture
def folder(crystals: CrystalBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two splits, whose formation energies are the analytic energies less `MU`; one row is no crystal."""
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    read_rows.cache_clear()
    total = LennardJones().compute(crystals).energy
    rows = []
    for k, structure in enumerate(crystals.to_structures()):
        reference = sum(MU[z] for z in structure.atomic_numbers)
        rows.append([f"m-{k}", (float(total[k]) - reference) / 4, 0.1 * (k % 3), structure.to(fmt="cif")])
    for name, part in (("train", rows[:20]), ("test", [*rows[20:], ["bad", -1.0, 0.0, "no cif"]])):
        path = tmp_path / "data" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["material_id", FORMATION_ENERGY, "e_above_hull", "cif"], *part])
    return tmp_path / "data"


def test_every_split_is_read_and_rows_that_are_no_crystals_are_told(
    folder: Path, crystals: CrystalBatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_table(folder)
    rows = read_rows(found)
    assert rows.frac_coords.dtype == torch.float64
    assert torch.equal(rows.atomic_numbers.sort().values, crystals.atomic_numbers.sort().values)
    assert rows.properties["energy_above_hull"][:4].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.0])
    hull = table_hull(found)
    assert "1 of 31 phases are missing from the hull" in caplog.text
    energies = rows.properties[FORMATION_ENERGY] - rows.properties["energy_above_hull"]
    assert min(hull.phases.values()) == pytest.approx(float(energies.min()))


def test_a_hull_is_made_once_and_again_when_its_table_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = table_hull(find_table(folder))
    calls: list[int] = []
    made = table.hull_from_crystals

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return made(*arguments, **keywords)

    monkeypatch.setattr(table, "hull_from_crystals", counted)
    assert table_hull(find_table(folder)).phases == first.phases
    assert calls == []
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace("m-0,", "m-0,-9", 1).replace("-9-", "-9", 1))
    assert min(table_hull(find_table(folder)).phases.values()) < -9
    assert calls == [1]
    kept = next((folder.parent / "cache" / "energy").glob("hull-*.json"))
    for path in kept.parent.glob("hull-*.json"):
        path.write_text("{}")
    table_hull(find_table(folder))
    assert calls == [1, 1]


def spoil(folder: Path, split: str, row: int, text: str, column: int = 1) -> None:
    """Another text in one cell of a table."""
    with (folder / f"{split}.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    lines[row + 1][column] = text
    with (folder / f"{split}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def test_a_hull_says_how_many_phases_are_missing_also_when_it_comes_from_the_cache(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer phases make everything look stable: two rows without an energy were lost without a word."""
    spoil(folder, "train", 3, "-")
    spoil(folder, "test", 0, "N/A")
    found = find_table(folder)
    expected = MissingPhases(num_rows=31, without_energy=2, unreadable=1)
    for _ in range(2):
        table_hull(found)
        assert missing_phases(found) == expected
        assert (
            "3 of 31 phases are missing from the hull (2 without a formation energy, 1 unreadable); "
            "fewer phases make everything look stable"
        ) in caplog.text
        caplog.clear()
        read_rows.cache_clear()
    assert int(read_rows(found).properties[FORMATION_ENERGY].isnan().sum()) == 2


@pytest.mark.parametrize("text", ["-1.5 eV", "-1,5", "~-1", "stable", "TRUE"])
@pytest.mark.parametrize("column", [1, 2])
def test_a_hull_refuses_an_energy_that_is_no_number_and_names_it(
    folder: Path, text: str, column: int
) -> None:
    """The rest of the column once entered without this row; its neighbours then looked stable."""
    spoil(folder, "test", 4, text, column)
    name = (FORMATION_ENERGY, "energy_above_hull")[column - 1]
    with pytest.raises(
        ValueError, match=rf"{name} must be numbers.*'{text}' in row 4 of test.csv \(id m-24\)"
    ):
        table_hull(find_table(folder))
    with pytest.raises(ValueError, match=name):
        table_references(find_table(folder, theory=LJ), HOW, workers=1)


def test_a_hull_refuses_a_built_table_whose_energies_are_names(folder: Path, tmp_path: Path) -> None:
    spoil(folder, "train", 0, "-1.5 eV")
    options = BuildOptions(categorical=(FORMATION_ENERGY,), properties=())
    build_dataset(folder, tmp_path / "built", options=options, progress=False)
    with pytest.raises(ValueError, match=rf"needs {FORMATION_ENERGY} as numbers, got names.*\(id m-0\)"):
        table_hull(find_table(tmp_path / "built"))


def test_references_are_those_that_made_the_table_and_are_fitted_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_table(folder, theory=LJ)
    told: list[int] = []
    fit = table_references(found, HOW, workers=1, advance=told.append)
    assert sum(told) == 30
    assert fit.elements == frozenset(MU)
    np.testing.assert_allclose([fit.weights[z - 1] for z in MU], list(MU.values()), atol=2e-3)  # the ridge
    assert fit.left_out_residual < 2e-3
    assert (fit.theory, fit.table_theory) == (LJ, LJ)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the fit is known already")

    monkeypatch.setattr(table, "relax_many", never)
    np.testing.assert_array_equal(table_references(found, HOW).weights, fit.weights)
    with pytest.raises(AssertionError):
        table_references(found, HOW, seed=1)
    (path,) = (folder.parent / "cache" / "energy").glob("references-*.json")
    path.write_text(json.dumps({"weights": []}))
    with pytest.raises(AssertionError):  # a damaged file is made anew
        table_references(found, HOW)


def test_levels_of_theory_are_checked_before_the_work(folder: Path) -> None:
    told: list[int] = []
    with pytest.raises(ValueError, match="must be of one level of theory"):
        table_references(find_table(folder), HOW, advance=told.append)
    assert told == []
    fit = table_references(find_table(folder), HOW, workers=1, allow_mixed_theory=True)
    assert fit.table_theory is None


def test_tables_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_such"):
        find_table(tmp_path / "no_such")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="must hold splits"):
        find_table(tmp_path / "empty")
    (folder / "train.csv").write_text((folder / "train.csv").read_text().replace(FORMATION_ENERGY, "other"))
    with pytest.raises(ValueError, match=r"train\.csv must have a column 'formation_energy_per_atom'"):
        read_rows(find_table(folder))


def test_a_named_data_set_knows_its_level_of_theory(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTITE_DATA_DIR", str(shared_data))
    monkeypatch.chdir(shared_data.parent)
    found = find_table(["mpts_52", "mp_20_biternary"])
    assert found.theory == MATERIALS_PROJECT
    assert len(found.files) == 6
    with pytest.raises(ValueError, match="must be of one level of theory"):
        find_table("mpts_52", theory=LJ)


def test_the_sample_covers_every_element_and_is_the_seeds() -> None:
    rng = np.random.default_rng(0)
    arrays = [
        CrystalArrays(rng.choice([8, 12, 14], 3), rng.random((3, 3)), 6.0 * np.eye(3)) for _ in range(300)
    ]
    arrays[77] = CrystalArrays(np.array([79, 8]), rng.random((2, 3)), 6.0 * np.eye(3))  # the only gold
    arrays[78] = CrystalArrays(np.array([92, 8]), rng.random((2, 3)), 6.0 * np.eye(3))  # without an energy
    energies = torch.zeros(300)
    energies[78] = torch.nan
    crystals = packed(arrays).with_properties({FORMATION_ENERGY: energies})
    chosen = spread_sample(crystals, 40, seed=3)
    assert len(chosen) == len(set(chosen.tolist())) == 40
    assert 77 in chosen.tolist()
    assert 78 not in chosen.tolist()
    assert torch.equal(chosen, spread_sample(crystals, 40, seed=3))
    assert not torch.equal(chosen, spread_sample(crystals, 40, seed=4))
    assert len(spread_sample(crystals, 1000)) == 299
    assert 77 in spread_sample(crystals, 1).tolist()


def test_terms_for_corrections_only_where_the_potential_lacks_them() -> None:
    uncorrected = TheoryLevel(functional="PBE(+U)", is_corrected=False)
    assert matching_terms(uncorrected, MATERIALS_PROJECT) == ReferenceTerms.CORRECTIONS
    for pair in ((MATERIALS_PROJECT, MATERIALS_PROJECT), (LJ, MATERIALS_PROJECT), (uncorrected, None)):
        assert matching_terms(*pair) == ReferenceTerms.ELEMENTS


def test_chunks_hold_every_crystal_once_and_few_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ATOMS_PER_CHUNK", 9)
    arrays = [fcc(18, 4.0)] * 5
    big = CrystalArrays(np.full(12, 18), np.zeros((12, 3)), np.eye(3))
    assert chunks_of([*arrays[:3], big, *arrays[3:]]) == [[0, 1], [2], [3], [4, 5]]
    assert chunks_of([]) == []


def test_the_formula_of_the_table_is_found(folder: Path) -> None:
    hull = table_hull(find_table(folder))
    assert hull.query(parse_formula("ArKr")).num_competing > 0
