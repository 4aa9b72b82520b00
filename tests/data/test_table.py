"""Readers: every format gives the same crystals, and every bad row a rejection that names its cause."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from ase.io import write as ase_write
from pymatgen.core import Composition, Element, Lattice, Species, Structure
from pymatgen.io.cif import CifWriter

from known_crystals import rock_salt, rutile
from latentite.data.kinds import read_column
from latentite.data.readers.checks import Limits
from latentite.data.readers.opening import fingerprint
from latentite.data.readers.records import Rejection, to_value
from latentite.data.readers.rows import Row, read


def structures() -> list[Structure]:
    """Rocksalt and rutile types and a triclinic one."""
    return [
        rock_salt("Na", "Cl", 5.64),
        rutile(4.59, 2.96),
        Structure(
            Lattice.from_parameters(4, 5, 6, 80, 95, 100), ["K", "I"], [[0.1, 0.2, 0.3], [0.6, 0.71, 0.83]]
        ),
    ]


LABELS = [
    {"band_gap": 5.0, "note": "salt"},
    {"band_gap": 3.0, "note": "white"},
    {"band_gap": None, "note": None},
]


def write_csv(folder: Path, name: str = "crystals.csv") -> Path:
    path = folder / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["", "material_id", "band_gap", "note", "cif"])
        for k, (structure, labels) in enumerate(zip(structures(), LABELS, strict=True)):
            cells = ["" if value is None else value for value in labels.values()]
            writer.writerow([k, f"c{k}", *cells, str(CifWriter(structure))])
    return path


def write_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [labels[name] for labels in LABELS] for name in LABELS[0]}
    columns |= {"id": ["c0", "c1", "c2"], "cif": [str(CifWriter(s)) for s in structures()]}
    pq.write_table(pa.table(columns), folder / "crystals.parquet")
    return folder / "crystals.parquet"


def json_entries() -> list[dict]:
    pairs = zip(structures(), LABELS, strict=True)
    return [
        {"material_id": f"c{k}", "structure": s.as_dict(), **labels} for k, (s, labels) in enumerate(pairs)
    ]


def write_json(folder: Path) -> Path:
    path = folder / "crystals.json.gz"
    path.write_bytes(gzip.compress(json.dumps(json_entries()).encode()))
    return path


def write_json_by_id(folder: Path) -> Path:
    entries = {entry.pop("material_id"): entry for entry in json_entries()}
    (folder / "by_id.json").write_text(json.dumps(entries))
    return folder / "by_id.json"


def write_json_lines(folder: Path) -> Path:
    path = folder / "crystals.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in json_entries()))
    return path


def atoms_list() -> list[Atoms]:
    frames = []
    for k, (structure, labels) in enumerate(zip(structures(), LABELS, strict=True)):
        atoms = structure.to_ase_atoms()
        atoms.info = {
            "material_id": f"c{k}",
            **{name: value for name, value in labels.items() if value is not None},
        }
        frames.append(atoms)
    return frames


def write_extxyz(folder: Path) -> Path:
    ase_write(folder / "crystals.extxyz", atoms_list(), format="extxyz")
    return folder / "crystals.extxyz"


def write_ase_db(folder: Path) -> Path:
    with connect(folder / "crystals.db") as database:
        for k, atoms in enumerate(atoms_list()):
            labels = {name: value for name, value in LABELS[k].items() if value is not None}
            database.write(Atoms(atoms), material_id=f"c{k}", **labels)
    return folder / "crystals.db"


def write_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "crystals.zip", "w") as archive:
        archive.write(write_csv(folder), "inner/crystals.csv")
    return folder / "crystals.zip"


def python_list(folder: Path) -> list[Structure | Atoms]:
    mixed: list[Structure | Atoms] = [*structures()]
    mixed[1] = atoms_list()[1]
    for k in (0, 2):
        mixed[k].properties = {"material_id": f"c{k}", **LABELS[k]}
    return mixed


FORMATS: dict[str, Callable] = {
    "csv": write_csv,
    "csv.gz": lambda folder: write_csv(folder, "crystals.csv.gz"),
    "parquet": write_parquet,
    "json.gz": write_json,
    "json by id": write_json_by_id,
    "jsonl": write_json_lines,
    "extxyz": write_extxyz,
    "ase db": write_ase_db,
    "zip": write_zip,
    "python list": python_list,
}


def rows_of(source: object, **limits: float) -> list[Row]:
    items = list(read(source, limits=Limits(**limits)))  # type: ignore[arg-type]  # any format
    assert all(isinstance(item, Row) for item in items), items
    return items  # type: ignore[return-value]  # just checked


def rejections_of(source: object, **limits: float) -> list[Rejection]:
    items = list(read(source, limits=Limits(**limits)))  # type: ignore[arg-type]  # any format
    return [item for item in items if isinstance(item, Rejection)]


def assert_is(row: Row, structure: Structure) -> None:
    """Same cell parameters, elements and periodic distances; orientation and order are free."""
    found = Structure(Lattice(row.lattice), row.atomic_numbers.tolist(), row.frac_coords)
    np.testing.assert_allclose(found.lattice.parameters, structure.lattice.parameters, atol=1e-5)
    assert found.composition == structure.composition
    np.testing.assert_allclose(
        np.sort(found.distance_matrix, axis=None), np.sort(structure.distance_matrix, axis=None), atol=1e-5
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = rows_of(FORMATS[name](tmp_path))
    assert [row.id for row in rows] == ["c0", "c1", "c2"]
    assert [row.row for row in rows] == [0, 1, 2]
    for row, structure in zip(rows, structures(), strict=True):
        assert_is(row, structure)
        assert row.atomic_numbers.dtype == np.int64
        assert row.frac_coords.dtype == row.lattice.dtype == np.float64
    for name in {name for labels in LABELS for name in labels}:
        column = read_column([row.properties.get(name) for row in rows])
        expected = [labels.get(name) for labels in LABELS]
        found = column.names or [None if value != value else value for value in column.numbers.tolist()]
        assert list(found) == expected


def test_folder_of_cifs_and_poscars_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    first, second, third = structures()
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.cif").write_text(str(CifWriter(second, symprec=0.01)))
    (tmp_path / "a.vasp").write_text(first.to(fmt="poscar"))
    (tmp_path / "sub" / "POSCAR").write_text(third.to(fmt="poscar"))
    (tmp_path / "notes.txt").write_text("not a crystal")
    rows = rows_of(tmp_path)
    assert [row.id for row in rows] == ["a", "b", "sub"]
    assert [row.source for row in rows] == ["a.vasp", "b.cif", "sub/POSCAR"]
    for row, structure in zip(rows, (first, second, third), strict=True):
        assert_is(row, structure)


def cif(structure: Structure) -> bytes:
    return str(CifWriter(structure)).encode()


def half_occupied() -> Structure:
    return Structure(Lattice.cubic(4), [Composition("Fe0.5Ni0.5"), "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])


SPOILED = {
    "pointer.cif": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "Git-LFS pointer"),
    "page.cif": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
    "empty.cif": (b"", "empty file"),
    "blank.cif": (b" \n\n", "empty file"),
    "truncated.cif": (cif(structures()[0])[:500], "unreadable CIF"),
    "binary.cif": (b"\x89PNG\0\0\xff", "binary file"),
    "partial.cif": (cif(half_occupied()), "partial occupancy"),
    "heavy_water.cif": (cif(structures()[2]).replace(b"  K  K0", b"  D  D0"), "isotope D"),
    "tritium.cif": (cif(structures()[2]).replace(b"  K  K0", b"  T  T0"), "isotope T"),
    "overlap.cif": (
        cif(structures()[2]).replace(b"0.60000000  0.71000000  0.83", b"0.10000000  0.20000000  0.30"),
        "0.000 Å apart",
    ),
    "impossible.cif": (cif(structures()[2]).replace(b"80.00000000", b"2.00000000"), "absurd cell"),
    "tiny.cif": (cif(structures()[2]).replace(b"_a   4.0", b"_a   0.04"), "absurd cell"),
    "huge.cif": (cif(structures()[2]).replace(b"_a   4.0", b"_a   4000.0"), "absurd cell"),
    "infinite.cif": (cif(structures()[2]).replace(b"0.30000000", b"1e999"), "not finite"),
    "large.cif": (cif(structures()[0] * (2, 2, 1)), "32 atoms, more than the limit of 20"),
    "letters.vasp": (b"not\na\nPOSCAR\n", "unreadable POSCAR"),
    "nameless.vasp": (b"x\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n", "names no elements"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_file_is_rejected_by_its_cause(name: str, tmp_path: Path) -> None:
    content, reason = SPOILED[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.cif").write_bytes(cif(structures()[0]))
    items = list(read(tmp_path))
    assert len(items) == 2
    [rejection] = [item for item in items if isinstance(item, Rejection)]
    assert rejection.source == name
    assert rejection.id == name.rsplit(".", 1)[0]
    assert reason in rejection.reason
    assert "\n" not in rejection.reason


def test_atoms_on_top_of_each_other_are_rejected_with_their_distance(tmp_path: Path) -> None:
    close = Structure(Lattice.cubic(5), ["K", "I"], [[0, 0, 0.97], [0, 0, 0.02]])
    (tmp_path / "close.cif").write_bytes(cif(close))
    [rejection] = rejections_of(tmp_path)
    assert "0.250 Å apart, closer than 0.5 Å" in rejection.reason
    assert rows_of(tmp_path, min_distance=0.2)


def test_isotopes_and_dummies_of_python_objects_are_rejected() -> None:
    heavy = Structure(Lattice.cubic(4), [Element("D"), "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    charged = Structure(Lattice.cubic(4), [Species("Fe", 2), Species("O", -2)], [[0, 0, 0], [0.5, 0.5, 0.5]])
    dummy = Structure(Lattice.cubic(4), ["X"], [[0, 0, 0]])
    first, second, third = read([heavy, charged, dummy])
    assert isinstance(first, Rejection)
    assert "isotope D" in first.reason
    assert isinstance(second, Row)
    assert second.atomic_numbers.tolist() == [26, 8]
    assert isinstance(third, Rejection)
    assert "no element" in third.reason


def test_molecules_without_a_cell_are_rejected() -> None:
    [item] = read([Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])])
    assert isinstance(item, Rejection)
    assert "not periodic" in item.reason


def test_broken_frame_of_extxyz_does_not_end_the_reading(tmp_path: Path) -> None:
    path = write_extxyz(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    frame = 8 + 2  # rocksalt comes first
    spoiled = [*lines[:frame], *lines[:5], *lines[frame:], "2\n", 'Lattice="1 0 0" broken\n', "X\n"]
    path.write_text("".join(spoiled))
    items = list(read(path))
    assert isinstance(items[0], Row)
    assert isinstance(items[-1], Rejection)
    assert "truncated" in items[-1].reason
    assert [item.id for item in items if isinstance(item, Row)][-1] == "c2"


def test_rows_with_missing_fields_or_structures_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "crystals.csv"
    good = str(CifWriter(structures()[0]))
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [["id", "cif"], ["a", good], ["b"], ["c", ""], ["d", "{not json"], ["e", good]]
        )
    items = list(read(path))
    assert [type(item) for item in items] == [Row, Rejection, Rejection, Rejection, Row]
    assert [item.row for item in items] == [0, 1, 2, 3, 4]
    reasons = [item.reason for item in items if isinstance(item, Rejection)]
    assert "1 fields where the header has 2" in reasons[0]
    assert "the column 'cif' is empty" in reasons[1]
    assert "unreadable JSON structure" in reasons[2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        ("a.csv", b"<html>error</html>", "HTML page"),
        ("a.parquet", b"", "empty file"),
        (
            "a.csv",
            b"id,formula\n1,NaCl\n",
            "column named 'cif' or 'structure', got the columns 'id', 'formula'",
        ),
        ("a.csv", b"id,cif,gap,gap\n", "must name each column once, got 'gap' twice"),
        ("a.csv.gz", gzip.compress(b"id,cif\n" + b"1,x\n" * 9, mtime=0)[:-12], "broken one"),
        ("a.parquet", b"PAR1 not really", "must be a Parquet file"),
        ("a.json", b"{broken", "must be JSON"),
        ("a.json", b"3", "must hold a list or an object"),
        ("a.zip", b"PK\x03\x04 not really", "broken one"),
        ("a.db", b"not sqlite at all, not json", "ASE database"),
        ("a.docx", b"PK", "must be CSV, Parquet"),
    ],
)
def test_unusable_source_is_one_clear_error(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.") as caught:
        list(read(tmp_path / name))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="empty folder"):
        read(tmp_path)


def test_headers_are_checked_before_the_first_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,formula\n")
    with pytest.raises(ValueError, match="'cif'"):
        read(path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1.5", "1.5"),
        (" -2e-3 ", " -2e-3 "),
        ("True", "True"),
        ("nan", "nan"),
        ("", ""),
        (None, None),
        (False, 0.0),
        (float("nan"), None),
        (np.float64(2.5), 2.5),
        ("['Ag', 'Ca']", "['Ag', 'Ca']"),
        ("__import__('os').system('true')", "__import__('os').system('true')"),
        (["Ag"], "['Ag']"),
    ],
)
def test_cells_are_kept_as_they_stand_and_are_never_evaluated(cell: object, value: object) -> None:
    """What a text means is decided when its whole column is known; once `-` became a class of its own."""
    assert to_value(cell) == value


def test_old_names_of_columns_become_ours(tmp_path: Path) -> None:
    path = tmp_path / "crystals.csv"
    header = ["material_id", "e_above_hull", "spacegroup.number", "Unnamed: 0", "cif"]
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, ["a", "0.1", "225", "7", str(CifWriter(structures()[0]))]])
    [row] = rows_of(path)
    assert row.properties == {"energy_above_hull": "0.1", "space_group": "225"}


def test_two_names_of_one_label_in_a_table_are_refused(tmp_path: Path) -> None:
    """Who asked for `e_above_hull` once got the column `energy_above_hull`, and no word of it."""
    path = tmp_path / "crystals.csv"
    header = ["material_id", "e_above_hull", "energy_above_hull", "cif"]
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, ["a", "0.1", "0.5", str(CifWriter(structures()[0]))]])
    with pytest.raises(ValueError, match="'e_above_hull' and 'energy_above_hull', two names of one label"):
        rows_of(path)


def test_fingerprint_changes_with_any_content(tmp_path: Path) -> None:
    path = write_csv(tmp_path)
    before = fingerprint(path)
    assert fingerprint(path) == before
    path.write_text(path.read_text().replace("5.0,salt", "5.1,salt"))
    assert fingerprint(path) != before
    first, second = structures()[:2]
    assert fingerprint([first, second]) != fingerprint([second, first])
    moved = first.copy()
    moved.translate_sites([0], [0.01, 0, 0])
    assert fingerprint([first]) != fingerprint([moved])


def test_a_reason_is_one_short_line_however_long_the_damaged_text_is(tmp_path: Path) -> None:
    """Fuzzing: a damaged operation of 5,000 characters was quoted whole, on the screen and in rejected.csv."""
    operation = "x,y," + "A" * 5000
    text = "data_x\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
    text += (
        f"_cell_angle_gamma 90\nloop_\n_symmetry_equiv_pos_as_xyz\n'{operation}'\nloop_\n_atom_site_label\n"
    )
    text += "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nFe 0 0 0\n"
    (tmp_path / "x.cif").write_text(text)
    [found] = read(tmp_path / "x.cif")
    assert isinstance(found, Rejection)
    assert found.reason.startswith("the symmetry operation 'x,y,AAA")
    assert found.reason.endswith("write it as in 'x, -y+1/2, z'")
    assert len(found.reason) < 700


@pytest.mark.parametrize(
    "spoil",
    [
        {"sites": [1]},
        {"sites": None},
        {"lattice": [1, 2]},
        {"lattice": {"matrix": 5}},
        {"sites": [{"species": 7, "abc": [0, 0, 0]}]},
    ],
    ids=str,
)
def test_a_reason_speaks_of_the_file_and_not_of_pythons_objects(
    tmp_path: Path, spoil: dict[str, object]
) -> None:
    """Fuzzing: "'int' object is not subscriptable" and "'NoneType' object ..." were given as reasons."""
    entry = {**Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]]).as_dict(), **spoil}
    (tmp_path / "x.json").write_text(json.dumps([entry]))
    [found] = read(tmp_path / "x.json")
    assert isinstance(found, Rejection)
    assert found.reason.startswith("unreadable structure: ")
    assert "object" not in found.reason
