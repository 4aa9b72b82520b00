"""An evaluation of a set whose answer is known, and what is left on disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Element, Lattice, Structure

import latentite
from latentite import cli
from latentite.crystal import CrystalBatch
from latentite.evaluation.result import Evaluation


def rock_salts(*pairs: tuple[str, str]) -> list[Structure]:
    return [
        Structure(Lattice.from_parameters(a, a, a, 60, 60, 60), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])
        for cation, anion in pairs
        for a in [(float(Element(cation).atomic_radius) + 2.4) / np.sqrt(2) * 1.4]
    ]


KNOWN = rock_salts(("Na", "Cl"), ("Mg", "O"), ("K", "Br"), ("Ca", "S"))
NEW = rock_salts(("Li", "F"), ("Rb", "I"), ("Ba", "O"), ("Sr", "Se"), ("Cs", "Cl"))


def in_another_cell(structure: Structure) -> Structure:
    """The same crystal: another cell, origin and order of atoms."""
    other = structure.copy()
    other.make_supercell([[1, 1, 0], [0, 2, 1], [0, 0, 1]])
    return Structure(other.lattice, other.species[::-1], other.frac_coords[::-1] + np.array([0.2, 0.7, 0.4]))


def overlapping(structure: Structure) -> Structure:
    """The atoms nearly on one site, in an alloy's cell so that nothing else is wrong."""
    return Structure(structure.lattice, structure.species, [[0, 0, 0], [0.02, 0.0, 0.0]])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: 5 new crystals, 3 duplicates of them, 2 known ones in another cell, 2 overlaps, 3 unreadable."""
    folder = tmp_path_factory.mktemp("samples")
    crystals = {f"a_new_{i}": one for i, one in enumerate(NEW)}
    crystals |= {f"b_copy_{i}": in_another_cell(one) for i, one in enumerate(NEW[:3])}
    crystals |= {f"c_known_{i}": in_another_cell(one) for i, one in enumerate(KNOWN[1:3])}
    crystals |= {
        f"d_overlap_{i}": overlapping(one) for i, one in enumerate(rock_salts(("Ca", "O"), ("K", "F")))
    }
    for name, one in crystals.items():
        (folder / f"{name}.cif").write_text(one.to(fmt="cif"))
    (folder / "e_broken.cif").write_text((folder / "a_new_0.cif").read_text()[:300])
    (folder / "e_empty.cif").write_text("")
    (folder / "e_words.cif").write_text("not a crystal at all")
    return folder


@pytest.fixture(scope="module")
def result(samples: Path) -> Evaluation:
    return latentite.evaluate(samples, reference=KNOWN, workers=1, out=samples.parent / "report")


def counts(result: Evaluation, name: str) -> tuple[int, int]:
    return result.rates[name].numerator, result.rates[name].denominator


def test_a_planted_set_is_reported_exactly(result: Evaluation) -> None:
    assert counts(result, "readable") == (12, 15)
    assert counts(result, "min_distance_ok") == (10, 12)
    assert counts(result, "volume_ok") == (12, 12)
    assert counts(result, "smact_pauling") == (12, 12)
    assert counts(result, "unique") == (9, 12)
    assert counts(result, "novel") == (10, 12)
    assert counts(result, "new_formula") == (10, 12)
    assert counts(result, "valid_unique_novel") == (5, 15)  # of all that came in
    failures = [(item.id, item.step) for item in result.failures]
    assert failures == [("e_broken", "read"), ("e_empty", "read"), ("e_words", "read")]
    assert all(item.reason for item in result.failures)


def test_each_copy_names_what_it_is_a_copy_of(result: Evaluation) -> None:
    rows = dict(zip(result.table["id"], range(len(result.crystals)), strict=True))
    for i in range(3):
        assert result.table["duplicate_of_strict"][rows[f"b_copy_{i}"]] == f"a_new_{i}"
    for i in range(2):  # the reference is a list, whose ids are positions
        assert result.table["matched_reference_strict"][rows[f"c_known_{i}"]] == str(i + 1)


def test_the_folder_holds_every_row_and_the_same_counts(result: Evaluation, samples: Path) -> None:
    folder = samples.parent / "report"
    rows = list(csv.DictReader((folder / "structures.csv").open(encoding="utf-8")))
    failed = list(csv.DictReader((folder / "failed.csv").open(encoding="utf-8")))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert len(rows) == summary["num_scored"] == 12
    assert len(failed) == summary["num_failed"] == 3
    assert summary["num_in"] == 15
    assert sum(row["unique"] == "yes" for row in rows) == summary["rates"]["unique"]["numerator"]
    assert {row["space_group_0.1"] for row in rows if row["id"].startswith("a_")} == {"225"}
    assert rows[0]["formula"] == "LiF"
    assert summary["reference"]["num_structures"] == 4
    assert summary["matchers"]["strict"] == {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
    assert summary["distributions"]["wasserstein"]["num_elements"]["all"] == 0.0


@pytest.mark.pictures
def test_the_page_is_whole_and_asks_nothing_of_the_network(result: Evaluation, samples: Path) -> None:
    page = (samples.parent / "report" / "report.html").read_text(encoding="utf-8")
    assert page.endswith("</html>")
    assert page.count("<svg") == page.count("</svg>") == 7
    assert "data:image/png;base64," in page
    for word in ("<script", "src='http", 'src="http', "<link", "@import", "url(http"):
        assert word not in page
    assert "5 of 15" in page


def test_the_same_structures_in_memory_and_with_two_workers_give_the_same(
    result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path))
    batch = CrystalBatch.from_arrays(list(result.crystals.arrays))
    again = latentite.evaluate(batch, reference=KNOWN, workers=2)
    for name in ("unique", "novel", "valid", "space_group_0.1", "formula"):
        assert again.table[name] == result.table[name]


def test_a_source_of_which_nothing_is_readable_is_reported_and_not_refused(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.cif").write_text("nothing")
    found = latentite.evaluate(tmp_path / "samples", workers=1, out=tmp_path / "report")
    assert counts(found, "readable") == (0, 1)
    assert counts(found, "unique") == (0, 0)
    assert "0 scored + 1 failed" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_not_a_number_in_memory_fails_alone(tmp_path: Path) -> None:
    batch = CrystalBatch.from_structures(NEW[:2])
    batch.frac_coords[0, 0] = float("nan")
    found = latentite.evaluate(batch, workers=1)
    assert [item.step for item in found.failures] == ["read"]
    assert counts(found, "readable") == (1, 2)


def test_protocols_differ_in_what_counts(tmp_path: Path) -> None:
    """One atom whose cell vector is 0.4 Å: valid for CDVAE, which does not look at own images."""
    thin = Structure(Lattice.orthorhombic(0.4, 5, 5), ["Fe"], [[0, 0, 0]])
    verdicts = {
        name: latentite.evaluate([thin], protocol=name, workers=1).table["structure_valid"][0]
        for name in ("cdvae", "default")
    }
    assert verdicts == {"cdvae": True, "default": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--relax", "best"], "a potential must be chgnet"),
        (["--protocol", "best"], "--protocol must be one of default"),
        (["--reference", "no_such_dataset"], "no_such_dataset"),
    ],
)
def test_mistakes_are_one_sentence(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    code = cli.main(["evaluate", str(samples), "--out", str(tmp_path / "out"), *options])
    errors = capsys.readouterr().err.strip()
    assert code == 2
    assert message in errors
    assert "\n" not in errors
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_rates(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code = cli.main(["evaluate", str(samples), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert code == 0
    printed = capsys.readouterr().out
    assert "15 in = 12 scored + 3 failed" in printed
    assert "75.0 % (9 of 12" in printed
    assert "novel" not in printed  # no reference, so nothing is said of it


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("SOURCE", {"source": "mp_20_biternry"}),
        ("--reference", {"source": "prototypes", "reference": "mp_20_biternry"}),
        ("--targets", {"source": "prototypes", "targets": "mp_20_biternry"}),
    ],
)
def test_a_name_that_is_nothing_is_refused_with_its_option_and_near_names(
    option: str, given: dict[str, str]
) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^{option} must be .* did you mean mp_20_biternary"):
        latentite.evaluate(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_what_would_only_fail_late_is_refused_before_anything_is_written(
    options: dict[str, int], message: str, tmp_path: Path
) -> None:
    """A negative seed was found when the gallery was drawn, after all the work."""
    with pytest.raises(ValueError, match=message):
        latentite.evaluate("prototypes", out=tmp_path / "report", **options)
    assert list(tmp_path.iterdir()) == []
