"""Labels in a table of their own meet their crystals by id or file name; what meets nothing is counted."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from latentite.cli import main
from latentite.data.build import build_split, load_splits
from latentite.data.dataset import read_dataset
from latentite.data.dataset_folder import build_dataset
from latentite.data.readers.label_table import LabelTable, join
from latentite.data.readers.opening import fingerprint
from latentite.data.readers.records import Labelled, PayloadKind, Record, Rejection
from latentite.data.readers.rows import Row, read
from latentite.evaluation.read import read_crystals

ALL = {"train": 1.0, "val": 0.0, "test": 0.0}


def cif(a: float) -> str:
    return str(CifWriter(Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])))


@pytest.fixture
def cifs(tmp_path: Path) -> Path:
    folder = tmp_path / "cifs"
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(("007.cif", "b.cif.txt", "c.v2.CIF", "sub/d.cif")):
        (folder / name).write_text(cif(4.0 + 0.1 * k))
    (folder / "spoiled.cif").write_text("no crystal")
    return folder


def labels_of(source: Path | Labelled) -> dict[str, object]:
    """Cells by id, as they stand; what a column of them holds is decided later, over the whole data set."""
    return {item.id: item.properties for item in read(source) if isinstance(item, Row)}


def test_cgcnns_table_labels_its_folder_without_a_word(cifs: Path) -> None:
    (cifs / "id_prop.csv").write_text("007,1.5\nb,2\nsub/d,-0.25\nc.v2,1e-3\nspoiled,9\n")
    (cifs / "atom_init.json").write_text(json.dumps({"1": [0, 1]}))
    assert labels_of(cifs) == {
        "007": {"target": "1.5"},
        "b": {"target": "2"},
        "c.v2": {"target": "1e-3"},
        "sub/d": {"target": "-0.25"},
    }
    evaluated = read_crystals(cifs, split="all")
    assert evaluated.labels["target"] == (1.5, 2.0, 1e-3, -0.25)
    assert [item.id for item in evaluated.rejections] == ["spoiled"]


def test_ids_without_a_match_are_counted_on_both_sides(cifs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (cifs / "id_prop.csv").write_text("007,1.5\nzz,2\nb,3\nyy,4\n")
    found = list(read(cifs))
    rejected = {item.id: item.reason for item in found if isinstance(item, Rejection)}
    assert rejected.keys() == {"spoiled", "yy", "zz"}
    assert "a label without a crystal" in rejected["zz"]
    assert "3 of 5 in the source have no label (c.v2, spoiled, sub/d)" in caplog.text
    assert "2 labels have no crystal (zz, yy)" in caplog.text
    dataset = build_split(cifs, use_cache=False, progress=False).dataset
    assert np.isnan(dataset.crystals.properties["target"].numpy()).tolist() == [False, False, True, True]


def test_several_values_and_a_header_name_the_labels(cifs: Path) -> None:
    (cifs / "id_prop.csv").write_text("007,1.5,2.5\nb,2,3\n")
    assert labels_of(cifs)["007"] == {"target_1": "1.5", "target_2": "2.5"}
    (cifs / "id_prop.csv").write_text("id,band_gap\n007,1.5\n")
    assert labels_of(cifs)["007"] == {"band_gap": "1.5"}


def write_labels(path: Path, delimiter: str = ",", column: str = "name") -> Path:
    rows = [[column, "gap", "kind"], ["007.cif", 1.5, "x"], ["b", 2, "y"], ["d.cif", 3, ""], ["zz", 4, "z"]]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_data_build_joins_a_table_by_file_name(
    delimiter: str, cifs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_labels(tmp_path / "labels.csv", delimiter)
    command = [
        "data",
        "build",
        str(cifs),
        "--labels",
        str(table),
        "--id",
        "name",
        "--out",
        str(tmp_path / "out"),
    ]
    fractions = ["--train-fraction", "1", "--val-fraction", "0", "--test-fraction", "0"]
    assert main([*command, *fractions]) == 0
    assert "1 × a label without a crystal" in capsys.readouterr().out
    dataset = read_dataset(tmp_path / "out" / "train.safetensors")
    found = dict(zip(dataset.ids, dataset.crystals.properties["gap"].tolist(), strict=True))
    assert {name: value for name, value in found.items() if value == value} == {
        "007": 1.5,
        "b": 2.0,
        "sub/d": 3.0,
    }
    said = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert said["labels"] == str(table)
    assert said["num_in"] == said["num_accepted"] + said["num_rejected"] == 6
    splits = load_splits(tmp_path / "out")  # what training reads
    assert list(splits["train"].crystals.properties) == ["gap"]


def test_python_joins_labels_to_lists_and_tables(tmp_path: Path) -> None:
    table = write_labels(tmp_path / "labels.csv", column="id")
    structures = [Structure(Lattice.cubic(a), ["Po"], [[0] * 3]) for a in (3.3, 3.4)]
    for structure, name in zip(structures, ("b", "zz"), strict=True):
        structure.properties = {"id": name}
    summary = build_dataset(structures, tmp_path / "out", labels=table, fractions=ALL, progress=False)
    assert (summary.num_accepted, summary.num_rejected) == (2, 2)
    assert read_dataset(tmp_path / "out" / "train.safetensors").crystals.properties["gap"].tolist() == [
        2.0,
        4.0,
    ]


def test_parquet_labels_are_joined(cifs: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"material_id": ["007", "b"], "gap": [1.5, None]}), tmp_path / "x.parquet")
    found = labels_of(Labelled(source=cifs, labels=tmp_path / "x.parquet"))
    assert found["007"] == {"gap": 1.5}
    assert found["b"] == {"gap": None}


def test_a_table_inside_the_folder_is_not_also_rejected(cifs: Path) -> None:
    table = write_labels(cifs / "labels.csv", column="id")
    found = list(read(Labelled(source=cifs, labels=table)))
    assert {item.id for item in found if isinstance(item, Rejection)} == {"spoiled", "zz"}


def test_id_prop_in_a_zip_is_read(cifs: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(cifs / "007.cif", "007.cif")
        archive.writestr("id_prop.csv", "007,1.5\nzz,2\n")
    row, rejection = read(tmp_path / "x.zip")
    assert isinstance(row, Row)
    assert row.properties == {"target": "1.5"}
    assert isinstance(rejection, Rejection)
    assert rejection.source == f"{tmp_path / 'x.zip'}/id_prop.csv"


REFUSED = {
    "no column of ids": ("nam,gap\n007,1\n", None, "'material_id' or 'id' .* name it with --id"),
    "no column of that name": ("id,gap\n007,1\n", "name", "must have a column 'name'"),
    "an id twice": ("id,gap\n007,1\nb,2\n007,3\n", None, "each id once, got '007' twice"),
    "no id": ("id,gap\n007,1\n,2\n", None, "an id in each row, got none in row 1"),
    "a short row": ("id,gap\n007\n", None, "2 cells in each row, got 1 in row 0"),
    "a column twice": ("id,gap,gap\n007,1,2\n", None, "each column once"),
    "nothing": ("", None, "an empty file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_could_mean_two_things_is_refused(name: str, cifs: Path, tmp_path: Path) -> None:
    text, column, words = REFUSED[name]
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        list(read(Labelled(source=cifs, labels=tmp_path / "labels.csv", id_column=column)))


def test_one_id_for_two_crystals_is_refused(cifs: Path, tmp_path: Path) -> None:
    (cifs / "sub" / "b.cif").write_text(cif(5.0))
    (tmp_path / "labels.csv").write_text("id,gap\nb,1\n")
    labelled = Labelled(source=cifs, labels=tmp_path / "labels.csv")
    with pytest.raises(ValueError, match=r"'b' means both b and sub/b; write it with the folder"):
        list(read(labelled))
    (tmp_path / "labels.csv").write_text("id,gap\nb,1\nsub/b,2\n")
    found = labels_of(labelled)
    assert (found["b"], found["sub/b"]) == ({"gap": "1"}, {"gap": "2"})


def test_a_label_of_both_places_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f'id,gap,cif\na,1,"{cif(4.0)}"\n')
    (tmp_path / "labels.csv").write_text("id,gap\na,2\n")
    with pytest.raises(ValueError, match="'gap' must stand in the source or in"):
        list(read(Labelled(source=tmp_path / "x.csv", labels=tmp_path / "labels.csv")))


def test_options_that_do_not_go_together_are_refused(cifs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be given with --labels"):
        build_dataset(cifs, tmp_path / "out", id_column="x")
    with pytest.raises(FileNotFoundError, match="--labels must be a file that exists"):
        build_dataset(cifs, tmp_path / "out", labels=tmp_path / "none.csv")
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a CSV or Parquet table"):
        build_dataset(cifs, tmp_path / "out", labels=tmp_path / "labels.json")
    (tmp_path / "divided").mkdir()
    (tmp_path / "divided" / "train.csv").write_text(f'id,cif\na,"{cif(4.0)}"\n')
    with pytest.raises(ValueError, match="still to be divided"):
        build_dataset(tmp_path / "divided", tmp_path / "out", labels=write_labels(tmp_path / "labels.csv"))


def test_other_labels_are_another_fingerprint(cifs: Path, tmp_path: Path) -> None:
    table = write_labels(tmp_path / "labels.csv", column="id")
    labelled = Labelled(source=cifs, labels=table)
    before = fingerprint(labelled)
    assert before != fingerprint(cifs)
    table.write_text(table.read_text().replace("1.5", "1.6"))
    assert fingerprint(labelled) != before


@given(st.lists(st.integers(0, 20), unique=True), st.lists(st.integers(0, 20), unique=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everything_that_comes_in_goes_out_once(crystals: list[int], labels: list[int]) -> None:
    records = [
        Record(source="s", row=row, id=str(name), kind=PayloadKind.CIF, payload="")
        for row, name in enumerate(crystals)
    ]
    table = LabelTable(
        source="t", ids=tuple(map(str, labels)), labels=tuple({"x": float(name)} for name in labels)
    )
    found = list(join(iter(records), table))
    assert [item.id for item in found[: len(crystals)]] == list(map(str, crystals))
    for item in found[: len(crystals)]:
        assert isinstance(item, Record)
        assert item.properties == ({"x": float(item.id)} if int(item.id) in labels else {})
    assert {int(item.id) for item in found[len(crystals) :]} == set(labels) - set(crystals)


def path_table(folder: Path, *cells: str, header: tuple[str, ...] = ("id", "gap", "cif")) -> Path:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(
        [f"x{k}", k, cell][-len(header) :] if len(header) == 3 else [cell] for k, cell in enumerate(cells)
    )
    (folder / "table.csv").write_text(text.getvalue(), newline="")
    return folder / "table.csv"


def test_a_csv_of_paths_reads_the_files(cifs: Path, tmp_path: Path) -> None:
    cells = [
        "cifs/007.cif",
        str(cifs / "b.cif.txt"),
        "cifs/sub/../c.v2.CIF",
        "cifs/none.cif",
        "cifs/spoiled.cif",
    ]
    found = list(read(path_table(tmp_path, *cells)))
    assert [item.id for item in found] == ["x0", "x1", "x2", "x3", "x4"]
    assert [isinstance(item, Row) for item in found] == [True, True, True, False, False]
    assert isinstance(found[2], Row)
    assert found[2].properties == {"gap": "2"}
    assert isinstance(found[3], Rejection)
    assert "unreadable file" in found[3].reason
    assert "cifs/none.cif" in found[3].reason


def test_paths_without_ids_are_called_by_their_files(cifs: Path, tmp_path: Path) -> None:
    found = list(read(path_table(tmp_path, "cifs/007.cif", "cifs/b.cif.txt", header=("cif",))))
    assert [item.id for item in found] == ["cifs/007", "cifs/b"]


def test_texts_and_paths_in_one_column_are_not_guessed(cifs: Path, tmp_path: Path) -> None:
    _, rejection = read(path_table(tmp_path, cif(4.0), "cifs/007.cif"))
    assert isinstance(rejection, Rejection)
    assert "the path of a file (cifs/007.cif)" in rejection.reason
    first, second = read(path_table(tmp_path, "cifs/007.cif", cif(4.0)))
    assert isinstance(first, Row)
    assert isinstance(second, Rejection)


def test_a_changed_file_behind_a_path_is_another_fingerprint(cifs: Path, tmp_path: Path) -> None:
    table = path_table(tmp_path, "cifs/007.cif")
    before = fingerprint(table)
    (cifs / "007.cif").write_text(cif(6.0))
    assert fingerprint(table) != before


def test_an_id_twice_at_the_end_of_a_long_table_is_refused_at_once(cifs: Path, tmp_path: Path) -> None:
    """Each id was counted in the whole table until the doubled one was met: hours, for 100,000 rows."""
    rows = "".join(f"m{row},1\n" for row in range(100_000))
    (tmp_path / "long.csv").write_text(f"id,label\n{rows}m99999,2\n")
    with pytest.raises(ValueError, match="must have each id once, got 'm99999' twice"):
        list(read(Labelled(source=cifs, labels=tmp_path / "long.csv")))


def test_a_key_twice_at_the_end_of_a_long_json_is_refused_at_once(tmp_path: Path) -> None:
    entries = "".join(f'"m{row}": 1, ' for row in range(100_000))
    (tmp_path / "long.json").write_text(f'{{{entries}"m99999": 2}}')
    with pytest.raises(ValueError, match="the key 'm99999' stands twice"):
        list(read(tmp_path / "long.json"))


def test_json_that_nests_too_deeply_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Fuzzing: Python's RecursionError came out, of files, of cells of tables and of records in the cache."""
    deep = '{"a":' * 100_000
    (tmp_path / "x.json").write_text(deep)
    with pytest.raises(ValueError, match="must be JSON, got a text that is not: it nests too deeply"):
        list(read(tmp_path / "x.json"))
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "structure"], ["m1", deep]])
    [found] = read(tmp_path / "x.csv")
    assert isinstance(found, Rejection)
    assert found.reason.startswith("unreadable JSON structure: it nests too deeply")
