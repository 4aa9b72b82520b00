"""Targets and samples whose matches are known: textbooks' structures, right and wrong ones."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from rich.console import Console

import latentite
from latentite.commands.evaluate import rates_table
from latentite.evaluation import prediction_section
from latentite.evaluation.prediction_section import samples_by_formula
from latentite.evaluation.result import Evaluation

FCC = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice(a * FCC), [cation, anion], [[0] * 3, [0.5] * 3])


def caesium_chloride(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [cation, anion], [[0] * 3, [0.5] * 3])


def antifluorite(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice(a * FCC), [anion, cation, cation], [[0] * 3, [0.25] * 3, [0.75] * 3])


def rutile() -> Structure:
    u = 0.305
    anions = [[u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    return Structure(Lattice.tetragonal(4.59, 2.96), ["Ti"] * 2 + ["O"] * 4, [[0] * 3, [0.5] * 3, *anions])


TARGETS = [
    rock_salt("Na", "Cl", 5.64),  # found by the second sample
    rock_salt("Mg", "O", 4.21),  # by the first
    caesium_chloride("K", "F", 3.2),  # by none of its samples
    rutile(),  # no sample at all
    antifluorite("Na", "Cl", 6.6),  # Na2Cl: found, and not valid
    caesium_chloride("Mg", "O", 2.6),  # a polymorph: shares its sample with the other MgO
]
SAMPLES = [
    caesium_chloride("Na", "Cl", 3.4),
    rock_salt("Mg", "O", 4.3),
    rock_salt("Na", "Cl", 5.6),
    rock_salt("K", "F", 5.34),
    antifluorite("Na", "Cl", 6.5),
    rock_salt("Ca", "S", 5.7),  # a sample of no target
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def result(folder: Path) -> Evaluation:
    return latentite.evaluate(SAMPLES, targets=TARGETS, workers=1, out=folder)


def found(result: Evaluation) -> dict:
    return next(dict(s.summary["prediction"]) for s in result.sections if "prediction" in s.summary)


@pytest.mark.parametrize("matcher", ["strict", "loose"])
def test_match_rates_are_those_counted_by_hand(result: Evaluation, matcher: str) -> None:
    rates = {
        name: (one["rate"]["numerator"], one["rate"]["denominator"])
        for name, one in found(result)["matchers"][matcher].items()
    }
    assert rates == {
        "k1_all_pairs": (2, 6),  # MgO and Na2Cl
        "k1_valid_pairs": (1, 6),
        "any_all_pairs": (3, 6),  # and NaCl
        "any_valid_pairs": (2, 6),
    }


@pytest.mark.parametrize(
    ("protocol", "matcher", "corrected"), [("default", "strict", 0.15), ("cdvae", "loose", 0.25)]
)
def test_the_terminal_shows_them_by_the_matcher_of_the_protocol(
    protocol: str, matcher: str, corrected: float
) -> None:
    """Half of the targets are matched without distance, the others count as stol: 0.3 / 2 or 0.5 / 2."""
    result = latentite.evaluate(SAMPLES, targets=TARGETS, protocol=protocol, workers=1)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(rates_table(result))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    shown = {row[0]: row[1] for row in rows if len(row) == 2}
    assert shown["targets"] == "6, of which 1 have no sample; 0 to 2 samples each"
    assert shown[f"matched by the first sample ({matcher})"].startswith("33.3 % (2 of 6;")
    assert shown[f"matched by any sample, METRe ({matcher})"].startswith("50.0 % (3 of 6;")
    assert shown["RMSE of those, first and best sample"] == "0.0000 and 0.0000"
    assert shown[f"cRMSE, {2 * corrected:g} for a target without match"] == f"{corrected:.4f}"


def test_an_unmatched_target_costs_stol_in_the_corrected_rmse(result: Evaluation) -> None:
    """The matches are exact up to the scale, which the matcher leaves out: RMS 0 for three, stol for three."""
    for matcher, stol in (("strict", 0.3), ("loose", 0.5)):
        one = found(result)["matchers"][matcher]["any_all_pairs"]
        assert one["rmse"] == pytest.approx(0.0, abs=1e-6)
        assert one["corrected_rmse"] == pytest.approx(stol / 2, abs=1e-6)


def test_targets_and_samples_are_all_accounted_for(result: Evaluation, folder: Path) -> None:
    content = found(result)
    assert content["targets"]["num_targets"] == 6
    assert content["targets"]["num_formulas"] == 5
    assert content["targets"]["without_samples"] == 1
    assert content["samples_per_target"] == {"min": 0, "max": 2}
    assert content["samples_without_target"] == 1
    with (folder / "targets.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["samples"] for row in rows] == ["2", "1", "1", "0", "1", "1"]
    assert [row["matched_k1_strict"] for row in rows] == ["no", "yes", "no", "no", "yes", "no"]
    assert [row["matched_any_strict"] for row in rows] == ["yes", "yes", "no", "no", "yes", "no"]
    assert rows[0]["rms_k1_strict"] == ""
    assert float(rows[0]["best_rms_strict"]) == pytest.approx(0.0, abs=1e-6)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "6 targets of structures in memory, 5 formulas; 1 have no sample" in page


def test_samples_keep_their_order_and_missing_ones_are_told() -> None:
    table = samples_by_formula(["A", "B", "A", "C", "A"], ["A", "D", "B", "A"])
    assert table.tolist() == [[0, 2, 4], [-1, -1, -1], [1, -1, -1], [0, 2, 4]]
    assert samples_by_formula([], ["A"]).tolist() == [[-1]]


def test_distances_come_back_from_the_store(result: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("all are known")

    monkeypatch.setattr(prediction_section, "sample_distances", never)
    again = latentite.evaluate(SAMPLES, targets=TARGETS, workers=1)
    assert found(again) == found(result)


def test_validity_is_the_protocols(folder: Path) -> None:
    """Na2Cl is valid for nobody; by charge as well."""
    result = latentite.evaluate(SAMPLES, targets=TARGETS, protocol="lemat", workers=1)
    assert found(result)["matchers"]["strict"]["any_valid_pairs"]["rate"]["numerator"] == 2


def test_targets_of_which_none_is_usable_are_refused(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "a.cif").write_text("nothing")
    with pytest.raises(ValueError, match="--targets must hold a usable crystal, got none in"):
        latentite.evaluate(SAMPLES[:1], targets=tmp_path / "targets", workers=1)
