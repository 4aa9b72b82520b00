"""Two evaluations of planted sets, compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import mannwhitneyu

import latentite
from latentite import cli
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.evaluation.compare import compare_runs, write_comparison
from latentite.metrics.rates import Rate, difference

Runs = tuple[Path, Path]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, planted: Callable[[int, int], list[CrystalArrays]]
) -> Runs:
    """Against the same reference: 12 distinct crystals with 2 copies, and 8 with 6."""
    folder = tmp_path_factory.mktemp("runs")
    known = CrystalBatch.from_arrays(planted(3, 0))
    for name, counts in {"a": (12, 2), "b": (8, 6)}.items():
        batch = CrystalBatch.from_arrays(planted(*counts))
        latentite.evaluate(batch, reference=known, workers=1, out=folder / name)
    return folder / "a", folder / "b"


def test_rates_have_the_difference_of_the_second_and_the_first(runs: Runs) -> None:
    found = {pair.name: pair for pair in compare_runs(*runs).rates}
    first, second = Rate(numerator=12, denominator=14), Rate(numerator=8, denominator=14)
    assert (found["unique"].first, found["unique"].second) == (first, second)
    assert found["unique"].difference == difference(second, first)
    assert found["unique"].label == "unique"
    assert found["unique_strict"].label is None
    assert set(found) >= {"readable", "valid", "novel", "valid_unique_novel", "symmetric"}


def test_numbers_and_columns_stand_side_by_side(runs: Runs) -> None:
    found = compare_runs(*runs)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in runs]
    numbers = {pair.name: (pair.first, pair.second) for pair in found.numbers}
    for name in ("all", "valid"):
        expected = tuple(s["distributions"]["wasserstein"]["density_g_per_cm3"][name] for s in summaries)
        assert numbers[f"distributions.wasserstein.density_g_per_cm3.{name}"] == expected
    columns = {pair.name: pair for pair in found.columns}
    assert {"num_atoms", "volume_per_atom", "density", "min_distance"} <= columns.keys()
    assert not {"id", "row", "valid", "space_group_0.1", "duplicate_of_strict"} & columns.keys()
    assert columns["density"].counts == (14, 14)


def test_formulas_that_look_like_numbers_are_names(runs: Runs, tmp_path: Path) -> None:
    """`float` reads the formulas NaN and InF: in a run of one formula their median stood in the comparison."""
    import pandas as pd

    for folder in runs:
        shutil.copytree(folder, tmp_path / folder.name)
        path = tmp_path / folder.name / "structures.csv"
        pd.read_csv(path).assign(formula="InF").to_csv(path, index=False)
    found = compare_runs(*(tmp_path / folder.name for folder in runs))
    assert "formula" not in {pair.name for pair in found.columns}


def test_the_rank_test_sees_the_cells_of_both_tables(runs: Runs) -> None:
    import pandas as pd

    tables = [pd.read_csv(folder / "structures.csv") for folder in runs]
    found = {pair.name: pair for pair in compare_runs(*runs).columns}["volume_per_atom"]
    values = [table["volume_per_atom"] for table in tables]
    assert found.medians == (pytest.approx(values[0].median()), pytest.approx(values[1].median()))
    assert found.p_value == pytest.approx(mannwhitneyu(*values).pvalue)


def test_a_run_does_not_differ_from_itself(runs: Runs) -> None:
    found = compare_runs(runs[0], runs[0])
    assert found.differing == {} == found.versions
    for pair in found.rates:
        assert pair.difference is not None
        assert not pair.difference.is_clear
        assert pair.difference.value == 0.0


def changed(folder: Path, target: Path, change: Callable[[dict[str, object]], None]) -> Path:
    shutil.copytree(folder, target)
    content = json.loads((target / "summary.json").read_text())
    change(content)
    (target / "summary.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["protocol"].update(name="cdvae", matcher="loose"),
            "protocol.name is 'default' and 'cdvae'",
        ),
        (lambda c: c["matchers"]["strict"].update(ltol=0.25), "matchers is"),
        (lambda c: c["reference"].update(content_hash="0"), "reference.content_hash is"),
        (lambda c: c.update(reference=None), "reference.content_hash is"),
        (
            lambda c: c.update(energies={"potential": "other", "settings": {}, "hull": None}),
            "energies.potential is None and 'other'",
        ),
        (lambda c: c["protocol"].update(stable_below=0.02), "protocol.stable_below is 0.0 and 0.02"),
        (lambda c: c["protocol"].update(msun="msun"), "protocol.msun is None and 'msun'"),
        (lambda c: c["features"].update(seed=1), "features.seed is 0 and 1"),
        (lambda c: c.update(features=None), "features.seed is 0 and None"),
    ],
)
def test_other_settings_are_refused_by_name_unless_forced(
    runs: Runs, tmp_path: Path, change: Callable[[dict[str, object]], None], words: str
) -> None:
    other = changed(runs[1], tmp_path / "other", change)
    with pytest.raises(ValueError, match="to be compared") as error:
        compare_runs(runs[0], other)
    assert words in str(error.value)
    forced = compare_runs(runs[0], other, force=True)
    assert words.split(" is")[0] in forced.differing


def test_a_hull_is_known_by_its_content_and_not_by_its_name(runs: Runs, tmp_path: Path) -> None:
    def of(name: str, sha256: str) -> Callable[[dict[str, object]], None]:
        fitted = {"table": name, "terms": "elements", "num_rows": 5, "mean_absolute_residual": 0.01}
        hull = {"name": name, "sha256": sha256, "theory": "PBE", "element_references": fitted}
        return lambda content: content.update(energies={"potential": "p", "settings": {}, "hull": hull})

    first = changed(runs[0], tmp_path / "first", of("mp_20", "1"))
    compare_runs(first, changed(runs[1], tmp_path / "same", of("data/mp_20", "1")))
    with pytest.raises(ValueError, match=r"energies\.hull\.sha256 is '1' and '2'"):
        compare_runs(first, changed(runs[1], tmp_path / "other", of("mp_20", "2")))


def test_an_interrupted_evaluation_is_refused(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "a")
    record = tmp_path / "a" / "evaluation.json"
    record.write_text(record.read_text().replace('"finished"', '"interrupted"'))
    with pytest.raises(ValueError, match="must be finished, got one that is interrupted"):
        compare_runs(tmp_path / "a", runs[1])
    with pytest.raises(FileNotFoundError, match=r"there is no .*summary\.json"):
        compare_runs(runs[0], tmp_path)


def test_files_hold_the_comparison_and_ask_nothing_of_the_network(runs: Runs, tmp_path: Path) -> None:
    found = compare_runs(*runs)
    write_comparison(found, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["rates"]["unique"]["first"]["numerator"] == 12
    assert content["rates"]["unique"]["second_minus_first"]["difference"] == pytest.approx(-4 / 14)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.endswith("</html>")
    assert "-28.6" in page
    for word in ("<script", "http:", "https:", "<link", "@import", "url("):
        assert word not in page


def test_the_command_of_two_words(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["evaluate", "compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "-28.6" in printed
    assert "unique " in printed
    assert "unique_strict" not in printed
    assert (tmp_path / "out" / "compare.json").is_file()
    assert cli.main(["evaluate", "compare", str(runs[0]), str(tmp_path)]) == 2
    with pytest.raises(SystemExit, match="0"):
        cli.main(["evaluate", "compare", "--help"])
    assert "usage: latentite evaluate compare" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_summary_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"summary\.json must be the summary of an evaluation"):
        compare_runs(tmp_path, tmp_path)


def test_a_folder_called_compare_is_a_source_when_given_as_a_path(
    planted: Callable[[int, int], list[CrystalArrays]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "compare").mkdir()
    for place, one in enumerate(CrystalBatch.from_arrays(planted(2, 0)).to_structures()):
        (tmp_path / "compare" / f"{place}.cif").write_text(one.to(fmt="cif"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "./compare", "--out", "report", "--workers", "1"]) == 0
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["num_scored"] == 2


def _forget(place: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        for key in parents:
            content = content[key]
        del content[last]

    return change


@pytest.mark.parametrize(
    "place",
    [
        "relax",
        "symprecs",
        "matchers",
        "protocol.min_volume",
        "protocol.name",
        "reference.content_hash",
        "features.seed",
    ],
)
def test_settings_that_both_summaries_leave_out_are_not_taken_as_equal(
    runs: Runs, tmp_path: Path, place: str
) -> None:
    """Two reports of a version that did not write a setting "agreed" in it, whatever it was."""
    others = [changed(folder, tmp_path / folder.name, _forget(place)) for folder in runs]
    for pair in (others, [runs[0], others[1]]):
        with pytest.raises(
            ValueError, match=rf"summary\.json must say {place}, which another version"
        ) as error:
            compare_runs(*pair)
        assert "evaluate again, or add --force" in str(error.value)
        assert compare_runs(*pair, force=True).differing[place][1] == "not said"


def test_parts_that_neither_evaluation_has_agree(runs: Runs, tmp_path: Path) -> None:
    """No reference, no energies, no features: nothing that could be measured differently."""

    def without(content: dict[str, Any]) -> None:
        for part in ("reference", "features", "energies", "conditions", "prediction"):
            content[part] = None

    others = [changed(folder, tmp_path / folder.name, without) for folder in runs]
    assert compare_runs(*others).differing == {}
    empty = changed(runs[1], tmp_path / "empty", lambda c: c.update(conditions={"tolerances": {}}))
    assert compare_runs(runs[0], empty).differing == {}  # no tolerances are what no conditions have
