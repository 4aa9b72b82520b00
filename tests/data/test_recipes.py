"""Data sets that are made from public ones: from a small MP-20 and MPTS-52 on a loopback server or in a folder."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
from pathlib import Path

import pytest

from latentite.base.download import DownloadError
from latentite.data.download_record import CHECKSUMS_VARIABLE
from latentite.data.sources import DATASETS, resolve

MP_20 = {
    "train": ["NaCl", "TiO2", "Fe", "LiFePO4", "SrTiO3"],
    "val": ["TiO2", "MgO", "Si"],
    "test": ["MgO", "NaCl", "GaN"],
}
MPTS_52 = {"train": ["LiFePO4", "TiO2"], "val": ["MgO", "CaCO3"], "test": ["GaN", "KClO3"]}


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with both public tables; nothing may be downloaded."""
    monkeypatch.setenv("LATENTITE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LATENTITE_DATASETS_URL", "http://127.0.0.1:1")
    monkeypatch.delenv(CHECKSUMS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    for split in MP_20:
        write(tmp_path / "data" / "mp_20" / f"{split}.csv", "mp", split, MP_20[split])
        write(tmp_path / "data" / "mpts_52" / f"{split}.csv.gz", "ts", split, MPTS_52[split])
    return tmp_path / "data"


def write(path: Path, prefix: str, split: str, formulas: list[str]) -> None:
    """A table as the public ones are, with CIFs that only have a formula."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hull = "e_above_hull" if prefix == "mp" else "energy_above_hull"
    columns = ["material_id", "formation_energy_per_atom", hull, "cif"]
    columns += ["band_gap"] if prefix == "mp" else ["year"]
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, formula in enumerate(formulas):
            cif = f"# generated using pymatgen\ndata_{formula}\n_chemical_formula_sum   {quoted(formula)}\n"
            writer.writerow([f"{prefix}-{split}-{number}", -1.5, 0.25, cif, 2007])


def quoted(formula: str) -> str:
    """As pymatgen writes it: two formula units, with blanks."""
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    return "'" + " ".join(f"{symbol}{2 * int(count or 1)}" for symbol, count in parts) + "'"


def read(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        split: list(csv.DictReader((folder / f"{split}.csv").open(newline="")))
        for split in ("train", "val", "test")
    }


def ids(rows: list[dict[str, str]]) -> list[str]:
    return [row["material_id"] for row in rows]


def test_biternary_rows_keep_their_split_and_no_formula_stands_in_two(
    public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        folder = resolve("mp_20_biternary")
    rows = read(folder)
    assert ids(rows["train"]) == ["mp-train-0", "mp-train-1", "mp-train-4"]
    assert ids(rows["val"]) == ["mp-val-1"]
    assert ids(rows["test"]) == ["mp-test-2"]
    assert list(rows["train"][0]) == [
        "material_id",
        "formation_energy_per_atom",
        "e_above_hull",
        "cif",
        "band_gap",
    ]
    assert "val: 3 rows = 1 kept" in caplog.text
    assert "1 left out (formula in an earlier split)" in caplog.text


def test_the_mix_has_every_row_once_and_every_formula_in_one_split(public: Path) -> None:
    rows = read(resolve("mp_mix"))
    everything = [row for split in rows.values() for row in split]
    assert len(everything) == 5 + 6 == len(set(ids(everything)))
    splits: dict[str, set[str]] = {}
    for split, members in rows.items():
        for row in members:
            splits.setdefault(row["reduced_formula"], set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert splits["TiO2"] == {"train"}
    assert splits["MgO"] == {"val"}
    assert splits["GaN"] == {"test"}
    by_id = {row["material_id"]: row for row in everything}
    assert by_id["ts-train-1"] == {
        "material_id": "ts-train-1",
        "reduced_formula": "TiO2",
        "cif": by_id["ts-train-1"]["cif"],
        "formation_energy_per_atom": "-1.5",
        "band_gap": "",
        "e_above_hull": "0.25",
        "year": "2007",
        "source": "mpts_52",
    }
    assert by_id["mp-val-1"]["source"] == "mp_20_biternary"


def test_rows_of_both_public_sets_are_taken_once(public: Path) -> None:
    write(public / "mpts_52" / "train.csv.gz", "mp", "train", ["NaCl", "KBr"])
    rows = read(resolve("mp_mix"))
    everything = [row for split in rows.values() for row in split]
    twice = [row for row in everything if row["material_id"] == "mp-train-0"]
    assert [row["source"] for row in twice] == ["mp_20_biternary"]


def test_what_is_made_is_recorded_made_once_and_held_against_its_record(public: Path) -> None:
    folder = resolve("mp_mix")
    record = json.loads((folder / "source.json").read_text())
    assert set(record["made_from"]) == {
        *(f"mp_20_biternary/{split}.csv" for split in MP_20),
        *(f"mpts_52/{split}.csv.gz" for split in MP_20),
    }
    assert sum(facts["rows"] for facts in record["files"].values()) == 11
    assert resolve("mp_mix") == folder
    (folder / "val.csv").write_text("something else")
    with pytest.raises(DownloadError, match=r"val\.csv has changed"):
        resolve("mp_mix")


def test_the_users_own_checksums_are_for_downloads_alone(
    public: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = resolve("mp_20_biternary")
    (tmp_path / "sums").write_text("nonsense\n")
    monkeypatch.setenv(CHECKSUMS_VARIABLE, str(tmp_path / "sums"))
    assert resolve("mp_20_biternary") == folder


def test_a_public_set_that_cannot_be_had_is_named(public: Path) -> None:
    for file in (public / "mpts_52").iterdir():
        file.unlink()
    with pytest.raises(
        DownloadError, match=r"mp_mix .* made from mp_20_biternary and mpts_52: mpts_52 is not"
    ):
        resolve("mp_mix")
    assert not (public.parent / "cache" / "datasets" / "mp_mix").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("material_id,cif\nmp-1,data_x\n", r"the CIF of mp-1 must have a _chemical_formula_sum"),
        ("id,structure\nmp-1,x\n", r"must have a column cif"),
        ("material_id,cif\nmp-1,_chemical_formula_sum Fe2\n", r"val\.csv must have a row, got none"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_and_leave_nothing(
    public: Path, content: str, words: str
) -> None:
    (public / "mp_20" / "val.csv").write_text(content)
    with pytest.raises(DownloadError, match=words):
        resolve("mp_20_biternary")
    assert not (public.parent / "cache" / "datasets" / "mp_20_biternary").exists()


def test_every_recipe_is_made_from_data_sets_that_can_be_had() -> None:
    for name, dataset in DATASETS.items():
        for parent in dataset.made_from:
            assert DATASETS[parent].address or DATASETS[parent].made_from, name
