"""`latentite data`: what is counted is right, and the commands do what they say."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from pymatgen.core import Element, Lattice, Structure
from pymatgen.io.cif import CifWriter
from rich.console import Console

from latentite import cli
from latentite.commands import data as commands
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.data.info import describe, draw, table_position, tables


@pytest.fixture
def splits() -> dict[str, CrystalDataset]:
    salt = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    metal = Structure(Lattice.cubic(3.2), ["W"], [[0, 0, 0]])
    batches = {"train": [salt, salt, metal], "test": [metal]}
    labels = {"train": [1.0, math.nan, 3.0], "test": [math.nan]}
    made = {}
    for name, structures in batches.items():
        crystals = CrystalBatch.from_structures(structures)
        properties = {"gap": torch.tensor(labels[name]), "kind": torch.zeros(len(structures))}
        made[name] = CrystalDataset(
            crystals=crystals.with_properties(properties),
            ids=tuple(f"{name}{k}" for k in range(len(structures))),
            categories={"kind": ("one",)},
            content_hash=name,
        )
    return made


def test_counts_elements_and_labels_are_right(splits: dict[str, CrystalDataset]) -> None:
    info = describe(splits)
    assert info.crystals == {"train": 3, "test": 1}
    assert info.atoms == {"train": 5, "test": 1}
    assert info.atoms_per_cell == {1: 2, 2: 2}
    assert info.elements == {"Cl": 2, "Cs": 2, "W": 2}
    gap = info.labels["gap"]
    assert (gap.missing, gap.total, gap.lowest, gap.mean, gap.highest) == (2, 4, 1.0, 2.0, 3.0)
    assert info.labels["kind"].categories == 1


@pytest.mark.pictures
def test_table_and_picture_are_made(splits: dict[str, CrystalDataset], tmp_path: Path) -> None:
    console = Console(record=True, width=100)
    for table in tables(describe(splits)):
        console.print(table)
    text = console.export_text()
    assert "2 (50.0 %)" in text
    assert "W 2" in text
    picture = draw(splits, tmp_path / "info.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_periodic_table_has_the_usual_places() -> None:
    for number in range(1, 119):
        element = Element.from_Z(number)
        column, row = table_position(number)
        if element.is_lanthanoid or element.is_actinoid:
            assert row in (8.5, 9.5)
        else:
            assert (column, row) == (element.group, element.row)
    assert len({table_position(number) for number in range(1, 119)}) == 118


def run(*argv: str) -> int:
    arguments = cli.parse(argv)
    return arguments.func(arguments)


def write_cifs(folder: Path) -> Path:
    folder.mkdir()
    rows = [["id", "cif", "gap"]]
    for k, symbol in enumerate(["Li", "Na", "K", "Rb", "Cs"]):
        structure = Structure(Lattice.cubic(3.5 + 0.1 * k), [symbol, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        rows.append([symbol, str(CifWriter(structure)), str(k)])
    rows.append(["bad", "", "1"])
    with (folder / "all.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    return folder


def test_commands_build_and_describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    source = write_cifs(tmp_path / "source") / "all.csv"
    out = tmp_path / "out"
    arguments = [
        "--train-fraction",
        "0.6",
        "--val-fraction",
        "0.2",
        "--test-fraction",
        "0.2",
        "--derive",
        "density",
    ]
    assert run("data", "build", str(source), "--out", str(out), "--workers", "1", *arguments) == 0
    text = capsys.readouterr().out
    assert "6 in = 5 accepted + 1 rejected" in text
    assert "3 train, 1 val, 1 test (split by formula)" in text
    assert run("data", "info", str(out)) == 0
    text = capsys.readouterr().out
    assert "density" in text
    assert (out / "info.png").is_file()


def test_csv_to_dataset_is_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    folder = write_cifs(tmp_path / "source")
    out = tmp_path / "out"
    command = ["--csv-folder", str(folder), "--output-folder", str(out), "--train-fraction", "0.5"]
    with pytest.raises(ValueError, match=r"must sum to 1, got 0\.5"):
        commands.csv_to_dataset(command)
    assert commands.csv_to_dataset([*command, "--val-fraction", "0.25", "--test-fraction", "0.25"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "train.safetensors",
        "val.safetensors",
        "test.safetensors",
        "dataset.json",
        "rejected.csv",
    }
