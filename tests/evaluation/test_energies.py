"""Energies of an evaluation: known answers of an analytic potential, and a reason for every gap."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentite.crystal_arrays import CrystalArrays
from latentite.energy.hull import Hull
from latentite.energy.parallel import RelaxHow
from latentite.energy.potential import TheoryLevel
from latentite.energy.references import ElementReferences, ReferenceTerms
from latentite.energy.relax import RelaxStatus
from latentite.energy.settings import RelaxCell, RelaxSettings
from latentite.evaluation.energies import Energies, energy_store, measure_energies, write_relaxed
from latentite.evaluation.store import structure_hash
from latentite.formulas import parse_formula

LJ = TheoryLevel(functional="Lennard-Jones", is_corrected=False)
SINGLE = RelaxHow(
    potential="ase.calculators.lj:LennardJones",
    arguments={"sigma": 2.5, "epsilon": 0.2, "rc": 6.0},
    theory=LJ,
    settings=RelaxSettings(cell=RelaxCell.NONE),
)
FULL = replace(SINGLE, settings=RelaxSettings(fmax=1e-3, smax=1e-4))


def fcc(numbers: list[int], length: float, *, rattle: float = 0.0, seed: int = 0) -> CrystalArrays:
    coords = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    coords = coords + np.random.default_rng(seed).normal(0, rattle, coords.shape) / length
    return CrystalArrays(np.array(numbers), coords, length * np.eye(3))


@pytest.fixture
def crystals() -> list[CrystalArrays]:
    """Pure argon, Ar3Kr twice, overlapping atoms, neon and argon, and gold, which nobody has a reference for."""
    overlapping = fcc([18, 18, 18, 36], 4.0)
    return [
        fcc([18] * 4, 3.7, rattle=0.05),
        fcc([18, 18, 18, 36], 4.1, rattle=0.1, seed=1),
        fcc([18, 18, 18, 36], 4.0, rattle=0.05, seed=2),
        replace(overlapping, frac_coords=0 * overlapping.frac_coords),
        fcc([10, 10, 18, 18], 4.0, rattle=0.02, seed=3),
        fcc([79] * 4, 4.0),
    ]


@pytest.fixture
def hull() -> Hull:
    """Ar3Kr at -0.5 eV/atom; of neon only the element."""
    return Hull([(parse_formula("Ar3Kr"), -0.5), (parse_formula("Ne"), 0.0)], theory=LJ)


@pytest.fixture
def references() -> ElementReferences:
    """Ne -0.5, Ar -1, Kr -2 eV/atom."""
    weights = np.zeros(118)
    weights[[9, 17, 35]] = (-0.5, -1.0, -2.0)
    return ElementReferences(
        terms=ReferenceTerms.ELEMENTS,
        weights=weights,
        elements=frozenset({10, 18, 36}),
        theory=LJ,
        table_theory=LJ,
        num_rows=100,
        mean_absolute_residual=0.02,
        left_out_residual=0.03,
    )


def by_ase(crystal: CrystalArrays) -> float:
    """eV per cell, by the calculator itself."""
    from ase import Atoms
    from ase.calculators.lj import LennardJones

    numbers, coords, lattice = astuple(crystal)
    atoms = Atoms(numbers=numbers, scaled_positions=coords, cell=lattice, pbc=True)
    atoms.calc = LennardJones(sigma=2.5, epsilon=0.2, rc=6.0)
    return float(atoms.get_potential_energy())


def test_each_structure_has_a_number_or_a_reason(
    crystals: list[CrystalArrays], hull: Hull, references: ElementReferences
) -> None:
    told: list[int] = []
    result = measure_energies(
        crystals, how=SINGLE, hull=hull, references=references, workers=1, advance=told.append
    )
    assert sum(told) == 6
    table = result.columns()
    assert all(len(column) == 6 for column in table.values())
    raw = [by_ase(crystals[k]) / 4 for k in (0, 1, 2, 4, 5)]
    assert [table["energy"][k] for k in (0, 1, 2, 4, 5)] == pytest.approx(raw)
    assert table["energy"][3] is None
    # Ar3Kr: references -1.25 eV/atom, the hull at -0.5; argon: references -1, the hull at 0.
    assert table["energy_above_hull"][:3] == pytest.approx([raw[0] + 1.0, raw[1] + 1.75, raw[2] + 1.75])
    assert table["energy_above_hull"][3:] == [None] * 3
    assert table["num_competing"] == [0, 1, 1, 1, 0, 0]
    assert result.counts == {"single_point": 5, "refused": 1}
    assert {(k, step) for k, step, _ in result.failures} == {
        (3, "energy"),
        (4, "energy_above_hull"),
        (5, "energy_above_hull"),
    }
    assert result.unknown_systems == {"Ar-Ne": 1, "Au": 1}
    assert result.unknown_elements == {"Au": 1}
    assert "relaxed_energy" not in table


def test_relaxed_numbers_stand_beside_the_raw_ones(
    crystals: list[CrystalArrays], hull: Hull, references: ElementReferences
) -> None:
    known: dict[str, Any] = {"hull": hull, "references": references, "workers": 1}
    raw = measure_energies(crystals[:4], how=SINGLE, **known).columns()
    result = measure_energies(crystals[:4], how=FULL, **known)
    table = result.columns()
    assert table["energy"][:3] == pytest.approx(raw["energy"][:3])
    assert table["energy_above_hull"][:3] == pytest.approx(raw["energy_above_hull"][:3])
    assert table["relax_converged"] == [True, True, True, False]
    assert table["energy_status"] == ["converged"] * 3 + ["refused"]
    # Ar3Kr relaxes to one minimum, whatever it started from: every pair is the same to this potential.
    assert table["relaxed_energy"][:3] == pytest.approx([table["relaxed_energy"][0]] * 3, abs=1e-4)
    lower = [table["relaxed_energy"][k] < table["energy"][k] for k in range(3)]
    assert lower == [True] * 3
    shift = table["relaxed_energy"][1] - table["energy"][1]
    height = table["relaxed_energy_above_hull"][1] - table["energy_above_hull"][1]
    assert height == pytest.approx(shift)
    # Displacements with deviation 0.1 Å along each axis: 0.17 Å, some of it as common translation.
    assert 0.05 < table["rmsd_to_relaxed"][1] < 0.25
    cell = result.relaxed.crystals.lattice[0]
    assert table["relaxed_volume_change"][0] == pytest.approx(float(torch.linalg.det(cell)) / 3.7**3 - 1.0)
    assert table["relaxed_volume_change"][3] is None


def test_a_relaxation_that_failed_has_no_relaxed_number(crystals: list[CrystalArrays]) -> None:
    short = replace(FULL, settings=replace(FULL.settings, max_steps=2))
    result = measure_energies(crystals[1:2], how=short, workers=1)
    table = result.columns()
    assert table["energy"][0] is not None
    assert table["relaxed_energy"] == table["rmsd_to_relaxed"] == table["relaxed_volume_change"] == [None]
    assert table["energy_status"] == ["step_limit"]
    ((position, step, reason),) = result.failures
    assert (position, step) == (0, "relax")
    assert "not converged after 2 steps" in reason
    assert "energy_above_hull" not in table


def same(first: Energies, second: Energies) -> bool:
    """To the last bit."""
    pairs = [
        (getattr(first.relaxed, name), getattr(second.relaxed, name))
        for name in ("energy", "forces", "stress")
    ]
    pairs.append((first.relaxed.crystals.frac_coords, second.relaxed.crystals.frac_coords))
    equal = all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in pairs)
    return equal and first.relaxed.reasons == second.relaxed.reasons


def test_results_do_not_depend_on_workers_and_come_back_from_the_store(
    crystals: list[CrystalArrays], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path))
    # Chunks of few atoms, so that there are several.
    monkeypatch.setattr("latentite.energy.parallel.ATOMS_PER_CHUNK", 8)
    store = energy_store(FULL)
    assert store is not None
    hashes = [structure_hash(crystal) for crystal in crystals]
    alone = measure_energies(crystals, how=FULL, workers=1)
    # One half first, as if interrupted after two chunks.
    measure_energies(crystals[:4], how=FULL, workers=1, hashes=hashes[:4], kept=store)
    told: list[int] = []
    both = measure_energies(crystals, how=FULL, workers=2, hashes=hashes, kept=store, advance=told.append)
    assert told[0] == 4
    assert sum(told) == 6
    assert same(alone, both)

    def never(*_: object) -> None:
        raise AssertionError("everything is known already")

    monkeypatch.setattr("latentite.energy.parallel.relax", never)
    assert same(alone, measure_energies(crystals, how=FULL, workers=1, hashes=hashes, kept=store))
    other = energy_store(replace(FULL, settings=replace(FULL.settings, fmax=0.01)))
    assert other is not None
    assert other.path != store.path


def test_what_the_potential_failed_on_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path))
    how = RelaxHow(potential="ase.calculators.emt:EMT", settings=SINGLE.settings)  # knows gold, not argon
    crystals = [fcc([18] * 4, 4.0), fcc([79] * 4, 4.1)]
    store = energy_store(how)
    assert store is not None
    hashes = [structure_hash(crystal) for crystal in crystals]
    result = measure_energies(crystals, how=how, workers=1, hashes=hashes, kept=store)
    assert result.relaxed.status == (RelaxStatus.POTENTIAL_FAILED, RelaxStatus.SINGLE_POINT)
    assert list(store.get_many(hashes)) == hashes[1:]


def test_levels_of_theory_that_do_not_fit_are_refused_before_any_work(
    crystals: list[CrystalArrays], hull: Hull, references: ElementReferences
) -> None:
    with pytest.raises(ValueError, match="need element references"):
        measure_energies(crystals, how=SINGLE, hull=hull)
    other = Hull([(parse_formula("Ar3Kr"), -0.5)])
    told: list[int] = []
    with pytest.raises(ValueError, match="must be of one level of theory"):
        measure_energies(crystals, how=SINGLE, hull=other, references=references, advance=told.append)
    with pytest.raises(ValueError, match=r"but ase\.calculators\.lj:LennardJones predicts"):
        measure_energies(
            crystals, how=replace(SINGLE, theory=None), hull=hull, references=references, advance=told.append
        )
    assert told == []
    known: dict[str, Any] = {"how": SINGLE, "references": references, "workers": 1}
    mixed = measure_energies(crystals, hull=other, allow_mixed_theory=True, **known)
    assert mixed.columns()["energy_above_hull"][1] is not None


def test_the_file_of_relaxed_structures_is_what_ase_reads(
    crystals: list[CrystalArrays], tmp_path: Path
) -> None:
    from ase.io import read

    broken = CrystalArrays(
        np.array([18, 36]), np.array([[0.0, 0.0, np.nan], [0.5, 0.5, 0.5]]), 4.0 * np.eye(3)
    )
    result = measure_energies([*crystals[:4], broken], how=FULL, workers=1)
    path = tmp_path / "relaxed.extxyz"
    ids = ["a", "b 2", "c", "d", "e"]
    write_relaxed(path, result, ids)
    frames = read(path, index=":")
    assert [frame.info["id"] for frame in frames] == ids
    assert [frame.info["status"] for frame in frames] == [status.value for status in result.relaxed.status]
    for k in range(3):
        assert frames[k].get_potential_energy() == pytest.approx(float(result.relaxed.energy[k]))
        start = 4 * k
        np.testing.assert_allclose(
            frames[k].get_forces(), result.relaxed.forces[start : start + 4], atol=1e-7
        )
        np.testing.assert_allclose(
            frames[k].get_stress(voigt=False), result.relaxed.stress[k].numpy(), atol=1e-7
        )
        again = CrystalArrays(frames[k].numbers, frames[k].get_scaled_positions(), np.array(frames[k].cell))
        assert by_ase(again) == pytest.approx(float(result.relaxed.energy[k]), abs=1e-5)
        assert frames[k].info["converged"]
        assert frames[k].info["steps"] == int(result.relaxed.steps[k])
    for frame in frames[3:]:
        assert frame.calc is None
        assert not frame.info["converged"]
    assert "closer than" in frames[3].info["reason"]
    assert "not finite" in frames[4].info["reason"]
    with pytest.raises(ValueError, match="one id per structure"):
        write_relaxed(path, result, ids[:2])


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    result = measure_energies([], how=FULL, workers=1)
    assert result.columns()["energy"] == []
    write_relaxed(tmp_path / "none.extxyz", result, [])
    assert (tmp_path / "none.extxyz").read_text() == ""
