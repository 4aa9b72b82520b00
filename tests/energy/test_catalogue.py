"""Names of potentials, what makes two the same, and levels of theory as text."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from lennard_jones import LennardJones

from latentite.energy import catalogue
from latentite.energy.catalogue import identity, parse_theory, potential_by_name
from latentite.energy.potential import TheoryLevel

LJ = "ase.calculators.lj:LennardJones"


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
