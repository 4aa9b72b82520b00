"""Labels of a data set: decided once for all its splits, never lost, and read without parsing crystals again."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from latentite.cli import main
from latentite.data import build as build_module
from latentite.data import source_rows
from latentite.data.build import BuiltSplits, build_split, build_splits, load_splits, read_labelled
from latentite.data.cells import read_cells
from latentite.data.dataset import read_dataset, write_dataset
from latentite.data.dataset_folder import build_dataset
from latentite.data.fidelities import FidelityConfig
from latentite.data.labels import require_numbers, share_categories
from latentite.data.options import BuildOptions
from latentite.data.readers.checks import Limits
from latentite.training.data_loading import load_data
from latentite.training.settings import DataConfig


def rock_salt(row: int) -> str:
    """A CIF; every row another cation or lattice constant."""
    cation = ("Na", "K", "Li", "Rb")[row % 4]
    structure = Structure(Lattice.cubic(4.0 + 0.02 * row), [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return str(CifWriter(structure))


def write_table(path: Path, columns: Mapping[str, Sequence[object]], *, start: int = 0) -> Path:
    """A CSV of as many rock salts as the columns are long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["material_id", *columns, "cif"])
        for row, cells in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([f"m{start + row}", *cells, rock_salt(start + row)])
    return path


def built(tmp_path: Path, sources: Mapping[str, Path], **options: object) -> BuiltSplits:
    asked = BuildOptions(**options)  # type: ignore[arg-type]  # any options
    return build_splits(sources, options=asked, cache_dir=tmp_path / "cache", workers=1, progress=False)


def labels_of(result: BuiltSplits, split: str, name: str) -> list[float | None]:
    values = result.results[split].dataset.crystals.properties[name].tolist()
    return [None if math.isnan(value) else round(value, 6) for value in values]


def test_a_dash_in_a_column_of_numbers_is_a_missing_label(tmp_path: Path) -> None:
    """It once made classes of the numbers of its file: 1.1 became 1, 1.2 became 2, ..."""
    path = write_table(tmp_path / "a.csv", {"band_gap": ["-", "1.1", "1.2"]})
    result = built(tmp_path, {"whole": path}, properties=("band_gap",))
    assert labels_of(result, "whole", "band_gap") == [None, 1.1, 1.2]
    assert result.labels.categories == {}
    assert result.labels.remarks == ("band_gap: '-' in row 0 of a.csv (id m0): 1 cell taken as missing",)


def test_kinds_are_decided_over_all_splits_and_not_per_file(tmp_path: Path) -> None:
    """Once `val.csv` alone, with a text in it, had classes where the other splits had numbers."""
    train = write_table(tmp_path / "train.csv", {"a": ["1.5", "2.5"], "b": ["yes", "no"], "c": ["Na", "Na"]})
    val = write_table(tmp_path / "val.csv", {"a": ["high", "3.5"], "b": ["no", "maybe"], "c": ["No", "No"]})
    result = built(tmp_path, {"train": train, "val": val})
    assert list(result.results["train"].dataset.crystals.properties) == []
    assert result.labels.left_out == {
        "a": "'high' in row 0 of val.csv (id m0): is no number, while 3 of 4 cells are",
        "b": "text, such as 'yes'",
        "c": "text, such as 'Na'",
    }
    names = built(tmp_path, {"train": train, "val": val}, properties=("b", "c"))
    assert names.labels.categories == {"b": ("maybe", "no", "yes"), "c": ("Na", "No")}
    assert labels_of(names, "train", "b") == [2.0, 1.0]
    assert labels_of(names, "val", "b") == [1.0, 0.0]


def test_decimal_commas_are_decided_over_all_splits(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.csv", {"a": ["1,234", "2,345"]})
    val = write_table(tmp_path / "val.csv", {"a": ["0,5", "7"]})
    result = built(tmp_path, {"train": train, "val": val}, properties=("a",))
    assert labels_of(result, "train", "a") == [1.234, 2.345]
    with pytest.raises(
        ValueError, match=r"got '1,234' in row 0 of train.csv \(id m0\): may be 1234 or 1.234"
    ):
        built(tmp_path, {"train": train}, properties=("a",))


def test_a_column_that_was_asked_for_is_refused_with_column_row_and_text(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"band_gap": ["1.1", "1.2", "1.00 eV"], "y": [1, 2, 3]})
    for options in ({"properties": ("band_gap",)}, {"if_present": ("band_gap",)}):
        with pytest.raises(
            ValueError, match=r"band_gap must be numbers.*'1.00 eV' in row 2 of a.csv \(id m2\)"
        ):
            built(tmp_path, {"whole": path}, **options)
    named = built(tmp_path, {"whole": path}, categorical=("band_gap",))
    assert named.labels.categories == {"band_gap": ("1.00 eV", "1.1", "1.2")}


def test_a_column_that_was_not_asked_for_is_listed_with_why_it_was_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"y": [1, 2, 3], "gap": ["1.1", "1.2", "?eV"], "colour": ["white"] * 3, "note": ["", "-", ""]}
    path = write_table(tmp_path / "a.csv", columns)
    assert main(["data", "build", str(path), "--out", str(tmp_path / "out"), "--group-by", "none"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert report["properties"] == ["y"]
    assert report["columns_left_out"] == {
        "gap": "'?eV' in row 2 of a.csv (id m2): is no number, while 2 of 3 cells are",
        "colour": "text, such as 'white'",
        "note": "empty",
    }
    for name, why in report["columns_left_out"].items():
        assert f"column left out: {name} ({why})" in printed
    chosen = built(tmp_path, {"whole": path}, properties=("y",))
    assert chosen.labels.left_out == dict.fromkeys(("gap", "colour", "note"), "not asked for")


def test_a_column_that_was_asked_for_never_vanishes(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.csv", {"a": ["", "-"], "y": [1, 2]})
    result = built(tmp_path, {"train": train}, properties=("a",))
    assert labels_of(result, "train", "a") == [None, None]
    assert "a: no crystal has this label" in result.labels.remarks
    val = write_table(tmp_path / "val.csv", {"y": [1]})
    with pytest.raises(ValueError, match="column of every split, also of val, got 'a'; it has 'y'"):
        built(tmp_path, {"train": train, "val": val}, properties=("a",))


def test_a_column_that_a_split_lacks_is_missing_there_and_said(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.csv", {"a": [1, 2], "y": [1, 2]})
    val = write_table(tmp_path / "val.csv", {"y": [1]})
    result = built(tmp_path, {"train": train, "val": val})
    assert labels_of(result, "val", "a") == [None]
    assert result.labels.remarks == ("a: val has no such column, so that all its labels are missing",)


def test_splits_of_numbers_and_of_names_are_refused_when_they_are_brought_together(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.csv", {"a": ["x", "y"]})
    val = write_table(tmp_path / "val.csv", {"a": ["1", "2"]})
    first = build_split(
        train, options=BuildOptions(properties=("a",)), use_cache=False, progress=False
    ).dataset
    second = build_split(
        val, options=BuildOptions(properties=("a",)), use_cache=False, progress=False
    ).dataset
    with pytest.raises(
        ValueError, match="a must be numbers in every split or names in every one, got numbers in val"
    ):
        share_categories({"train": first, "val": second})


def test_one_split_of_a_folder_is_read_as_the_whole_folder_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    write_table(tmp_path / "data" / "train.csv", {"a": ["1", "2"]})
    write_table(tmp_path / "data" / "val.csv", {"a": ["3 eV", "4"]})
    with pytest.raises(ValueError, match=r"a must be numbers.*'3 eV' in row 0 of val.csv"):
        read_labelled(str(tmp_path / "data"), split="train", options=BuildOptions(properties=("a",)))
    dataset, _ = read_labelled(str(tmp_path / "data"), split="train", options=BuildOptions(properties=()))
    assert len(dataset) == 2


def test_labels_that_training_asks_for_are_refused_at_any_fidelity(tmp_path: Path) -> None:
    """A column that could not be read at one fidelity was left out there, and all its labels were missing."""
    low = write_table(tmp_path / "low.csv", {"gap": ["1.0", "1.1", "1.2", "1.3"]})
    high = write_table(tmp_path / "high.csv", {"gap_hse": ["1.5 eV", "1.6", "1.7", "1.8"]})
    config = DataConfig(
        fidelities={
            "pbe": FidelityConfig(path=low),
            "hse": FidelityConfig(path=high, columns={"gap": "gap_hse"}),
        },
        properties=["gap"],
        cache_dir=tmp_path / "cache",
    )
    with pytest.raises(ValueError, match=r"gap_hse must be numbers.*'1.5 eV' in row 0 of high.csv \(id m0\)"):
        load_data(config)


def test_names_where_numbers_are_needed_are_refused_with_the_first_crystal(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"energy": ["", "low", "high"]})
    dataset = build_split(
        path, options=BuildOptions(properties=("energy",)), use_cache=False, progress=False
    ).dataset
    with pytest.raises(ValueError, match=r"a hull needs energy as numbers.*'low' in row 1 \(id m1\)"):
        require_numbers(dataset, "energy", use="a hull")
    require_numbers(dataset, "another", use="a hull")


def test_a_baseline_of_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The codes 0, 1, 2, ... of an energy column with a stray text once were fitted as energies."""
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "sae.yaml"
    for cells, words in (
        (["low", "high", "low"], "'low' in row 0"),
        (["-1.0 eV", "-2.0", "-3.0"], "'-1.0 eV' in row 0"),
    ):
        path = write_table(tmp_path / "a.csv", {"e_per_atom": cells})
        assert main(["baseline", "fit", str(path), "--property", "e_per_atom", "--out", str(out)]) != 0
        assert words in capsys.readouterr().err
        assert not out.exists()


# ---------------------------------------------------------------------------------------- caches


def test_other_properties_of_the_same_source_parse_no_crystal_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(tmp_path / "a.csv", {"a": [1, 2, 3], "b": ["x", "y", "x"], "c": ["", 5, 6]})
    first = built(tmp_path, {"whole": path}, properties=("a",))

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a crystal is parsed again")

    monkeypatch.setattr(source_rows, "pack", never)
    monkeypatch.setattr(source_rows, "open_records", never)
    for options in (
        {},
        {"properties": ("b", "c")},
        {"categorical": ("a",)},
        {"derived": ("density", "composition")},
    ):
        again = built(tmp_path, {"whole": path}, **options)
        assert again.results["whole"].path == first.results["whole"].path
    assert labels_of(built(tmp_path, {"whole": path}), "whole", "c") == [None, 5.0, 6.0]
    assert again.labels.categories["composition"] == ("ClK", "ClLi", "ClNa")
    with pytest.raises(AssertionError, match="parsed again"):
        built(tmp_path, {"whole": path}, limits=Limits(max_atoms=1))


def test_derived_properties_are_the_same_from_the_cache_and_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentite.data import cells

    path = write_table(tmp_path / "a.csv", {"a": [1, 2, 3]})
    names = ("density", "space_group", "chemical_system", "electronegativity_difference")
    fresh = build_split(path, options=BuildOptions(derived=names), use_cache=False, progress=False).dataset
    built(tmp_path, {"whole": path})
    first = built(tmp_path, {"whole": path}, derived=names).results["whole"].dataset
    monkeypatch.setattr(cells, "derive_rows", lambda *a, **k: pytest.fail("computed again"))
    again = built(tmp_path, {"whole": path}, derived=names).results["whole"].dataset
    assert fresh.content_hash == first.content_hash == again.content_hash
    shutil.rmtree(tmp_path / "cache" / "decided")
    again = built(tmp_path, {"whole": path}, derived=names).results["whole"].dataset
    assert again.content_hash == fresh.content_hash
    shutil.rmtree(tmp_path / "cache" / "decided")
    for kept in (tmp_path / "cache" / "derived").iterdir():
        spoil(kept)
    monkeypatch.undo()
    assert (
        built(tmp_path, {"whole": path}, derived=names).results["whole"].dataset.content_hash
        == fresh.content_hash
    )


def spoil(path: Path) -> None:
    """Turn some of the last bits of a file, as a bad disk does."""
    content = bytearray(path.read_bytes())
    content[-9] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("folder", ["packed", "labels", "decided"])
@pytest.mark.parametrize("damage", ["bits", "cut", "empty", "other"])
def test_a_damaged_file_of_the_cache_is_made_again_and_never_trusted(
    folder: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_table(tmp_path / "a.csv", {"a": [1, 2, 3], "b": ["x", "y", "x"]})
    options = BuildOptions(properties=("a", "b"))
    first = built(tmp_path, {"whole": path}, properties=("a", "b")).results["whole"].dataset
    [kept] = (tmp_path / "cache" / folder).iterdir()
    sound = kept.read_bytes()
    if damage == "bits":
        spoil(kept)
    else:
        kept.write_bytes({"cut": sound[: len(sound) // 2], "empty": b"", "other": b"PK" + sound}[damage])
    if folder != "decided":
        shutil.rmtree(tmp_path / "cache" / "decided")
    again = build_split(path, options=options, cache_dir=tmp_path / "cache", progress=False).dataset
    assert again.content_hash == first.content_hash
    assert "is damaged and is made again" in caplog.text
    caplog.clear()
    build_split(path, options=options, cache_dir=tmp_path / "cache", progress=False)
    assert "damaged" not in caplog.text


def test_every_turned_byte_of_a_dataset_is_refused_or_without_effect(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", {"a": [1, 2, 3], "b": ["x", "y", "x"]})
    dataset = build_split(
        path, options=BuildOptions(properties=("a", "b")), use_cache=False, progress=False
    ).dataset
    file = tmp_path / "one.safetensors"
    write_dataset(file, dataset)
    sound = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(sound), 150).tolist():
        content = bytearray(sound)
        content[place] ^= 0x55
        file.write_bytes(content)
        try:
            again = read_dataset(file)
        except ValueError:
            continue
        assert again.ids == dataset.ids
        assert again.categories == dataset.categories
        for name, values in dataset.crystals.properties.items():
            torch.testing.assert_close(
                again.crystals.properties[name], values, rtol=0, atol=0, equal_nan=True
            )


def test_the_same_request_is_decided_on_once_and_says_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_table(
        tmp_path / "a.csv", {"a": ["-", "2", "3"], "b": ["x", "y", "x"], "c": ["1 eV", "2", "3"]}
    )
    first = built(tmp_path, {"whole": path})
    monkeypatch.setattr(build_module, "decide_labels", lambda *arguments: pytest.fail("decided again"))
    again = built(tmp_path, {"whole": path})
    assert again.labels.left_out == first.labels.left_out
    assert again.labels.remarks == first.labels.remarks
    assert again.results["whole"].dataset.content_hash == first.results["whole"].dataset.content_hash


def test_cells_are_kept_as_they_stood(tmp_path: Path) -> None:
    cells = [" 1.00 ", "", "\u22121", "#N/A", "caf\u00e9"]
    path = write_table(tmp_path / "a.csv", {"a": cells, "b": [1, 2, 3, 4, 5]})
    built(tmp_path, {"whole": path}, properties=())
    [kept] = (tmp_path / "cache" / "labels").iterdir()
    labels = read_cells(kept)
    assert labels.names == ("a", "b")
    assert labels.columns["a"] == cells
    assert labels.place(3) == "row 3 of a.csv"
    assert list(read_cells(kept, {"b"}).columns) == ["b"]


def test_a_built_folder_and_its_tables_have_the_same_labels(tmp_path: Path) -> None:
    columns = {"a": ["1.5", "N/A", "2.5", "3.5"], "b": ["x", "y", "x", "z"]}
    write_table(tmp_path / "data" / "train.csv", columns)
    write_table(tmp_path / "data" / "val.csv", columns, start=4)
    options = BuildOptions(properties=("a", "b"))
    tables = load_splits(tmp_path / "data", options=options, cache_dir=tmp_path / "cache", progress=False)
    build_dataset(
        tmp_path / "data", tmp_path / "out", options=options, cache_dir=tmp_path / "cache", progress=False
    )
    folder = load_splits(tmp_path / "out", options=options)
    assert {split: found.content_hash for split, found in folder.items()} == {
        split: found.content_hash for split, found in tables.items()
    }
