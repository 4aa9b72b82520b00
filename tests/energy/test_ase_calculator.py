"""ASE calculators as potentials, without anything that is not in ASE."""

from __future__ import annotations

import math

import pytest
import torch
from lennard_jones import LennardJones
from small_crystals import argon, fcc, packed

from latentite.energy.ase_calculator import ASEPotential
from latentite.energy.contract import check_potential

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
