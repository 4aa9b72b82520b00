"""Potentials by name: adapters, any ASE calculator, 7net-0; what makes two the same, and levels of theory as text."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from lennard_jones import LennardJones
from small_crystals import argon, fcc, packed

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy import catalogue
from latentite.energy.catalogue import (
    ASEPotential,
    identity,
    parse_theory,
    potential_by_name,
    sevennet_potential,
)
from latentite.energy.potential import TheoryLevel, check_potential

LJ = "ase.calculators.lj:LennardJones"


def test_emt_keeps_the_contract() -> None:
    potential = ASEPotential("ase.calculators.emt:EMT", elements=[28, 29, 79])
    crystals = packed([fcc(29, 3.7, rattle=0.05), fcc(79, 4.0, rattle=0.05, seed=1)])
    check_potential(potential, crystals, tolerance=1e-6, step=1e-4)
    assert potential.card.name == "ase.calculators.emt:EMT"
    assert potential.card.theory.is_corrected is None


def test_units_and_signs_are_those_of_the_analytic_potential() -> None:
    ase = ASEPotential(LJ, arguments={"sigma": 2.5, "epsilon": 0.2, "rc": 6.0})
    expected, got = LennardJones().compute(argon()), ase.compute(argon())
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-9, rtol=1e-9)


def test_what_the_calculator_refuses_fails_alone() -> None:
    crystals = packed([fcc(29, 3.7), fcc(18, 4.0), fcc(79, 4.1)])  # EMT does not know argon
    result = ASEPotential("ase.calculators.emt:EMT").compute(crystals)
    assert list(result.failures) == [1]
    assert "EMT raised" in result.failures[1]
    assert [math.isnan(e) for e in result.energy.tolist()] == [False, True, False]
    assert result.forces[4:8].isnan().all()
    assert result.forces[:4].isfinite().all()
    alone = ASEPotential("ase.calculators.emt:EMT").compute_energy(crystals)
    torch.testing.assert_close(alone.energy, result.energy, equal_nan=True)
    assert alone.failures == result.failures


@pytest.mark.parametrize(
    ("path", "arguments", "words"),
    [
        ("ase.calculators.emt.EMT", {}, "named as package.module:Class"),
        ("ase.calculators.emt:NoSuch", {}, "cannot be imported"),
        ("no_such_package:Calculator", {}, "cannot be imported"),
        ("ase.calculators.mixing:SumCalculator", {"device": "cpu"}, "does not take"),
    ],
)
def test_a_calculator_that_is_none_is_refused(path: str, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ASEPotential(path, arguments=arguments)


def test_an_unknown_name_lists_the_known_ones_and_how_to_install_them() -> None:
    with pytest.raises(
        ValueError, match=r"chgnet \(pip install 'latentite\[energy\]'\), 7net-0 .*, got 'chgnett'"
    ):
        potential_by_name("chgnett")


@pytest.mark.skipif(importlib.util.find_spec("chgnet") is None, reason="the extra `energy` is not installed")
def test_a_known_name_gives_its_adapter() -> None:
    card = potential_by_name("chgnet").card
    assert card.name == "CHGNet"
    assert identity(card) is not None
    with pytest.raises(ValueError, match="chgnet takes no arguments, got device"):
        potential_by_name("chgnet", arguments={"device": "cpu"})
    with pytest.raises(ValueError, match=r"predicts energies of PBE\(\+U\), corrected, not of r2SCAN"):
        potential_by_name("chgnet", theory=parse_theory("r2SCAN, uncorrected"))


def test_an_alias_is_the_same_potential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        catalogue.POTENTIALS, "7net-0", catalogue.NamedPotential(make=LennardJones, extra="sevennet")
    )
    assert potential_by_name("7net-0") == potential_by_name("sevennet") == LennardJones()


def test_a_calculator_is_known_by_its_package_arguments_and_files(tmp_path: Path) -> None:
    plain = potential_by_name(LJ).card
    other = potential_by_name(LJ, arguments={"sigma": 2.0}).card
    assert plain.version.startswith("ase ")
    assert identity(plain) is not None
    assert identity(plain) != identity(other)
    weights = tmp_path / "weights.pt"
    weights.write_text("a")
    first = potential_by_name(LJ, arguments={"label": str(weights)}).card
    weights.write_text("b")
    second = potential_by_name(LJ, arguments={"label": str(weights)}).card
    assert first.sha256 != second.sha256


def test_a_calculator_of_no_package_has_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_calculators.py").write_text("from ase.calculators.emt import EMT\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert identity(potential_by_name("my_calculators:EMT").card) is None


def test_levels_of_theory_are_read_as_they_are_printed() -> None:
    for is_corrected in (True, False):
        level = TheoryLevel(functional="PBE(+U)", is_corrected=is_corrected)
        assert parse_theory(str(level)) == level
    for text in ("PBE", "PBE, corrections unknown", ", corrected"):
        with pytest.raises(ValueError, match="is written as"):
            parse_theory(text)


needs_sevenn = pytest.mark.skipif(
    importlib.util.find_spec("sevenn") is None, reason="the extra `sevennet` is not installed"
)


@needs_sevenn
def test_it_keeps_the_contract_and_says_what_it_is(
    rocksalt: CrystalArrays, perovskite: CrystalArrays
) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        CrystalArrays(n, c + rng.normal(0, 0.02, c.shape), a @ (np.eye(3) + 0.02))
        for n, c, a in map(astuple, (rocksalt, perovskite))
    ]
    potential = sevennet_potential()
    # float32 inside: differences of energies (eV) over 0.02 Å are good to about 1e-3.
    check_potential(potential, CrystalBatch.from_arrays(arrays), tolerance=2e-3, step=1e-2)
    card = potential.card
    assert card.name == "7net-0"
    assert card.sha256 is not None
    assert len(card.sha256) == 64
    assert len(card.elements) == 89
    assert card.theory.is_corrected is False
    assert card.cutoff == 5.0


@needs_sevenn
def test_rocksalt_keeps_its_energy(rocksalt: CrystalArrays) -> None:
    # What the shipped weights (sevenn 0.13) gave when the adapter was written: guards units and the number of atoms.
    energy = sevennet_potential().compute(CrystalBatch.from_arrays([rocksalt])).energy
    assert float(energy[0]) / 8 == pytest.approx(-3.38, abs=0.03)


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"latentite\[sevennet\]"):
        sevennet_potential()
