"""What samples were asked for, held against what they are: every verdict counted by hand."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

import latentite
from latentite import cli
from latentite.evaluation.condition_section import FORMULA, asked_values
from latentite.evaluation.read import read_crystals
from latentite.evaluation.result import Evaluation

ROCK_SALT = {"Na": ("Na", "Cl", 5.64), "Mg": ("Mg", "O", 4.21), "K": ("K", "F", 5.34)}


def rock_salt(name: str) -> Structure:
    cation, anion, a = ROCK_SALT[name]
    return Structure(
        Lattice.from_parameters(*[a / 2**0.5] * 3, 60, 60, 60), [cation, anion], [[0] * 3, [0.5] * 3]
    )


NACL, MGO = rock_salt("Na"), rock_salt("Mg")
VOLUME = NACL.volume / 2

SAMPLES = [  # structure, ask, conditions
    (NACL, "", f"volume_per_atom={1.04 * VOLUME:.10g},num_atoms=2,space_group=225,band_gap=2.0"),
    (NACL, "", f"volume_per_atom={1.06 * VOLUME:.10g},num_atoms=3,space_group=221"),
    (NACL, "NaCl x 2", "chemical_system=Na-Cl,composition=Na0.5Cl0.5"),
    (MGO, "MgO", "chemical_system=Mg-Ca-O,composition=Mg0.333333O0.666667"),
    (MGO, "only O-Mg, with O", ""),
]
"""A volume is hit when it is within 5 % of what was asked: |1 - 1.04| / 1.04 = 3.8 %, |1 - 1.06| / 1.06 = 5.7 %."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `latentite sample` leaves it; the last of six was never made."""
    folder = tmp_path_factory.mktemp("sampled")
    keys = ("format", "status", "settings", "checkpoint", "range", "counts")
    (folder / "manifest.json").write_text(json.dumps(dict.fromkeys(keys)))
    (folder / "cifs").mkdir()
    rows = []
    for index, (structure, ask, conditions) in enumerate(SAMPLES):
        file = f"cifs/{index:06d}.cif"
        (folder / file).write_text(structure.to(fmt="cif"))
        rows.append([index, structure.reduced_formula, len(structure), ask, conditions, 1, file, 7])
    header = ["index", "formula", "num_atoms", "ask", "conditions", "attempts", "file", "seed"]
    rejected = [["index", "attempt", "kind", "reason"], [5, 1, "overlap", "atoms overlap"]]
    for name, table in (("samples.csv", [header, *rows]), ("rejected.csv", rejected)):
        with (folder / name).open("w", newline="") as file_:
            csv.writer(file_).writerows(table)
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> Evaluation:
    return latentite.evaluate(folder, workers=1, out=folder.parent / "report")


def conditions(result: Evaluation) -> dict:
    return next(dict(s.summary["conditions"]) for s in result.sections if "conditions" in s.summary)


def counts(result: Evaluation, name: str) -> tuple[int, int]:
    return result.rates[name].numerator, result.rates[name].denominator


def test_what_was_asked_is_read_off_conditions_and_formulas(folder: Path) -> None:
    asked = asked_values(read_crystals(folder, split="test"))
    assert asked["formula"] == [None, None, "NaCl", "MgO", None]
    assert asked["num_atoms"] == ["2", "3", None, None, None]
    assert asked["chemical_system"] == [None, None, "Na-Cl", "Mg-Ca-O", None]


@pytest.mark.parametrize(
    ("name", "hits", "asked"),
    [
        ("volume_per_atom", [True, False, None, None, None], 2),
        ("num_atoms", [True, False, None, None, None], 2),
        ("space_group", [True, False, None, None, None], 2),
        ("chemical_system", [None, None, True, False, None], 2),
        ("composition", [None, None, True, False, None], 2),
        ("formula", [None, None, True, True, None], 2),
    ],
)
def test_each_property_is_a_hit_or_not(
    result: Evaluation, name: str, hits: list[bool | None], asked: int
) -> None:
    assert result.table[f"hit_{name}"] == hits
    num_hits = sum(hit is True for hit in hits)
    assert counts(result, f"hit_{name}") == counts(result, f"hit_{name}_strict") == (num_hits, asked)


def test_errors_and_what_is_not_measured_stand_in_the_summary(result: Evaluation, folder: Path) -> None:
    found = conditions(result)
    assert found["not_measured"] == {"band_gap": 1}
    assert found["without_structure"] == 1
    volume = found["measured"]["volume_per_atom"]
    assert volume["mean_absolute_error"] == pytest.approx(0.05 * VOLUME, rel=1e-4)
    assert volume["tolerance"] == "within 5 %"
    assert found["measured"]["space_group"]["column"] == "space_group_0.1"
    assert found["measured"]["formula"]["mean_absolute_error"] is None
    page = (folder.parent / "report" / "report.html").read_text(encoding="utf-8")
    assert "Asked, but not measured here: band_gap (1 structures)" in page
    assert "1 requests gave no structure" in page


def test_an_unknown_value_is_a_miss_only_in_the_strict_rate(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentite.evaluation import condition_section

    monkeypatch.setitem(condition_section._COLUMNS, "space_group", ("duplicate_of_strict",))
    result = latentite.evaluate(folder, workers=1)
    # Of the two that were asked, the first is no copy: its cell is empty. The second is a copy of "0".
    assert result.table["hit_space_group"][:2] == [None, False]
    assert counts(result, "hit_space_group") == (0, 1)
    assert counts(result, "hit_space_group_strict") == (0, 2)


def test_a_tolerance_is_absolute_and_replaces_the_default(folder: Path) -> None:
    wide = latentite.evaluate(folder, tolerances={"volume_per_atom": 0.061 * VOLUME}, workers=1)
    assert counts(wide, "hit_volume_per_atom") == (2, 2)
    narrow = latentite.evaluate(folder, tolerances={"volume_per_atom": 0.039 * VOLUME}, workers=1)
    assert counts(narrow, "hit_volume_per_atom") == (0, 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("densty=0.1", "--tolerance must name what the samples were asked, which is volume_per_atom,"),
        ("num_atoms=-1", "--tolerance num_atoms must be a number of at least 0, got -1"),
        ("num_atoms", "--tolerance must be written NAME=VALUE with a number, got 'num_atoms'"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    code = cli.main(["evaluate", str(folder), "--out", str(tmp_path / "out"), "--tolerance", option])
    errors = capsys.readouterr().err.strip()
    assert (code, "\n" in errors) == (2, False)
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_structures_that_were_asked_nothing_have_no_such_section() -> None:
    result = latentite.evaluate([NACL], workers=1)
    assert not any("conditions" in section.summary for section in result.sections)
    with pytest.raises(ValueError, match="which is nothing"):
        latentite.evaluate([NACL], tolerances={"density": 1.0})


def test_a_formula_that_looks_like_a_missing_number_was_asked_as_well(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    table = tmp_path / "run" / "samples.csv"
    table.write_text(table.read_text().replace("NaCl x 2", "NaN"))
    asked = asked_values(read_crystals(tmp_path / "run", split="test"))
    assert asked["formula"] == [None, None, "NaN", "MgO", None]


@pytest.mark.parametrize(
    ("label", "formula"),
    [
        ("LiFePO4 x 4", "LiFePO4"),
        ("Nd(AsRh)2 x 2", "Nd(AsRh)2"),
        ("Nd(Mo3Se4)2", "Nd(Mo3Se4)2"),
        ("K4(Fe(CN)6)", "K4(Fe(CN)6)"),
        ("Ca3[PO4]2 x 2", "Ca3[PO4]2"),
        ("Li Fe O2", "Li Fe O2"),
        ("only Li-Fe-O, with Li", None),
        ("without Pb-Hg", None),
        ("elements allowed: Li, O", None),
    ],
)
def test_labels_with_and_without_a_formula(label: str, formula: str | None) -> None:
    found = FORMULA.fullmatch(label)
    assert (found[1] if found else None) == formula


def asking(folder: Path, target: Path, conditions: str) -> Path:
    """The folder, with something else asked of the first sample."""
    shutil.copytree(folder, target)
    table = target / "samples.csv"
    rows = list(csv.reader(table.read_text().splitlines()))
    rows[1][4] = conditions
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return target


def test_a_target_of_zero_needs_a_tolerance_of_its_own(folder: Path, tmp_path: Path) -> None:
    """Its tolerance was 5 % of 0, so that nothing hit what every crystal of the hull has within rounding."""
    run = asking(folder, tmp_path / "run", "volume_per_atom=0")
    words = r"--tolerance volume_per_atom=NUMBER must be given, .* asked for volume_per_atom = 0: the default of 5 %"
    with pytest.raises(ValueError, match=words):
        latentite.evaluate(run, workers=1)
    wide = latentite.evaluate(run, tolerances={"volume_per_atom": VOLUME + 1}, workers=1)
    assert wide.table["hit_volume_per_atom"][0] is True
    exact = latentite.evaluate(run, tolerances={"volume_per_atom": 0.0}, workers=1)
    assert exact.table["hit_volume_per_atom"][0] is False


def test_an_energy_of_zero_without_tolerance_is_refused_before_anything_is_computed(
    folder: Path, tmp_path: Path
) -> None:
    run = asking(folder, tmp_path / "run", "e_above_hull=0.0,band_gap=0")
    stages: list[str] = []

    def stage(text: str, total: int | None) -> Callable[[int], None]:
        stages.append(text)
        return lambda count: None

    with pytest.raises(ValueError, match="--tolerance energy_above_hull=NUMBER must be given"):
        latentite.evaluate(run, relax="ase.calculators.emt:EMT", workers=1, stage=stage)
    assert stages == ["read structures"]
    # Without a potential neither is measured, so nothing of them can be wrong.
    found = conditions(latentite.evaluate(run, workers=1))
    assert found["not_measured"] == {"energy_above_hull": 1, "band_gap": 1}
