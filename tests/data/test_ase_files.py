"""The same atoms have the same ids and labels in every format of ASE, and nothing is unpickled or written."""

from __future__ import annotations

import json
import math
import pickle
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import Trajectory
from ase.io import write as ase_write
from hypothesis import given
from hypothesis import strategies as st

from latentite.data.build import build_split
from latentite.data.options import BuildOptions
from latentite.data.readers.opening import fingerprint
from latentite.data.readers.records import Rejection, id_of
from latentite.data.readers.rows import Row, read
from latentite.data.readers.structure_files import key_value_pairs
from latentite.evaluation.read import read_crystals

LABELS: list[dict[str, object]] = [
    {"material_id": "a-007", "band_gap": 5.5, "note": "white salt", "is_metal": False},
    {"material_id": "0x1", "band_gap": 0.0, "note": "x", "is_metal": True},
    {"material_id": "b", "band_gap": 1e-3},
]
ENERGIES = [-6.8, -7.25, 0.5]


def frames() -> list[Atoms]:
    found = []
    for a, labels, energy in zip((5.64, 5.0, 4.5), LABELS, ENERGIES, strict=True):
        atoms = bulk("NaCl", "rocksalt", a=a)
        atoms.info = dict(labels)
        atoms.set_constraint(FixAtoms([0]))
        atoms.set_initial_magnetic_moments([1.0, 0.0])
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy, forces=np.zeros((2, 3)), stress=np.zeros(6), magmom=2.0
        )
        found.append(atoms)
    return found


def as_trajectory(folder: Path, crystals: Sequence[Atoms]) -> Path:
    with Trajectory(folder / "x.traj", "w") as file:
        for atoms in crystals:
            file.write(atoms)
    return folder / "x.traj"


def as_database(name: str) -> Callable[[Path, Sequence[Atoms]], Path]:
    def write(folder: Path, crystals: Sequence[Atoms]) -> Path:
        with connect(folder / name) as database:
            for atoms in crystals:
                database.write(atoms, **atoms.info, data={"blob": np.arange(3), "inner": {"band_gap": 9.0}})
        return folder / name

    return write


def as_extxyz(folder: Path, crystals: Sequence[Atoms]) -> Path:
    ase_write(folder / "x.extxyz", list(crystals), format="extxyz")
    return folder / "x.extxyz"


WRITERS: dict[str, Callable[[Path, Sequence[Atoms]], Path | Sequence[Atoms]]] = {
    "list": lambda folder, crystals: crystals,
    "trajectory": as_trajectory,
    "database": as_database("x.db"),
    "JSON": as_database("x.json"),
    "extxyz": as_extxyz,
}


@pytest.mark.parametrize("name", WRITERS)
def test_ids_labels_and_energies_are_the_same_in_every_format(name: str, tmp_path: Path) -> None:
    """Once a trajectory had no labels at all, and extxyz alone had energies."""
    source = WRITERS[name](tmp_path, frames())
    found = list(read(source))
    assert all(isinstance(row, Row) for row in found), found
    assert [row.id for row in found] == ["a-007", "0x1", "b"]
    options = BuildOptions(properties=("band_gap", "is_metal", "energy", "magmom", "note"))
    dataset = build_split(source, options=options, use_cache=False, progress=False).dataset
    labels = {key: values.tolist() for key, values in dataset.crystals.properties.items()}
    assert labels["band_gap"] == pytest.approx([5.5, 0.0, 1e-3])
    assert labels["is_metal"] == pytest.approx([0.0, 1.0, math.nan], nan_ok=True)
    assert labels["energy"] == pytest.approx([-6.8, -7.25, 0.5])
    assert labels["magmom"] == [2.0, 2.0, 2.0]
    assert dataset.categories == {"note": ("white salt", "x")}
    assert labels["note"] == pytest.approx([0.0, 1.0, math.nan], nan_ok=True)
    for row, atoms in zip(found, frames(), strict=True):
        assert isinstance(row, Row)
        assert np.allclose(row.frac_coords @ row.lattice, atoms.positions, atol=1e-7)


@pytest.mark.parametrize("name", WRITERS)
def test_atoms_without_an_id_are_called_by_their_position(name: str, tmp_path: Path) -> None:
    crystals = frames()
    for atoms in crystals:
        del atoms.info["material_id"]
    found = list(read(WRITERS[name](tmp_path, crystals)))
    assert [item.id for item in found] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["list", "trajectory", "extxyz"])
def test_ids_stay_the_text_that_they_are(name: str, tmp_path: Path) -> None:
    """ASE's own reader of extxyz makes 7 of the id 007, and True of an id T."""
    crystals = [bulk("NaCl", "rocksalt", a=5.0 + 0.1 * k) for k in range(6)]
    ids = ["007", "1e5", "T", "1_000", "my crystal", "0"]
    for atoms, identifier in zip(crystals, ids, strict=True):
        atoms.info = {"material_id": identifier}
    assert [item.id for item in read(WRITERS[name](tmp_path, crystals))] == ids


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (7.0, "7"),
        (10**20, "1" + "0" * 20),
        ("007", "007"),
        (" 007 ", "007"),
        ("NaN", "NaN"),  # sodium nitride
        (np.int64(0), "0"),
        (np.str_("x"), "x"),
        (b"x", "x"),
        (None, "row"),
        ("", "row"),
        ("  ", "row"),
        ("nan", "row"),
        (float("nan"), "row"),
    ],
)
def test_zero_is_an_id_and_nothing_is_none(value: object, text: str) -> None:
    assert id_of(value, "row") == text


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.parquet", "x.h5"])
def test_tables_keep_ids_as_they_stand(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    cif = "\n".join(
        ["data_x", *(f"_cell_length_{a} 4.0" for a in "abc")]
        + [*(f"_cell_angle_{a} 90" for a in ("alpha", "beta", "gamma")), "loop_"]
        + [f"_atom_site_{part}" for part in ("type_symbol", "fract_x", "fract_y", "fract_z")]
        + ["Po 0 0 0", ""]
    )
    expected = ["007", "0", "12", "3"]
    if name == "x.csv":
        path.write_text("id,cif\n" + "".join(f'{i},"{cif}"\n' for i in ("007", "0", "12", "")))
    elif name == "x.json":
        path.write_text(json.dumps([{"id": i, "cif": cif} for i in ("007", 0, 12, None)]))
    elif name == "x.parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"id": pa.array([7, 0, 12, None]), "cif": [cif] * 4}), path)
        expected[0] = "7"
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            group = file.create_group("1")
            group["coord"], group["numbers"] = np.zeros((4, 1, 3)), np.full((4, 1), 84)
            group["cell"] = np.tile(4.0 * np.eye(3), (4, 1, 1))
            group.create_dataset("id", data=["007", "0", "12", ""], dtype=h5py.string_dtype())
        expected[3] = "1/3"
    assert [item.id for item in read(path)] == expected


def test_a_calculator_that_went_on_to_other_atoms_gives_no_energy() -> None:
    """One calculator for all atoms of a list holds the results of the last."""
    calculator = EMT()
    crystals = [bulk("Cu", "fcc", a=a) for a in (3.6, 3.7)]
    for atoms in crystals:
        atoms.calc = calculator
    energy = crystals[1].get_potential_energy()
    first, second = read(crystals)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert "energy" not in first.properties
    assert second.properties["energy"] == energy


def test_two_energies_of_one_crystal_are_refused() -> None:
    atoms = frames()[0]
    atoms.info["energy"] = -3.0
    [rejection] = read([atoms])
    assert isinstance(rejection, Rejection)
    assert rejection.reason == "two values of energy: -3.0 among the labels, -6.8 of the calculator"


@pytest.mark.parametrize("write", [as_trajectory, as_extxyz, as_database("x.db"), None])
def test_a_crystal_with_two_names_of_one_label_is_rejected(
    write: Callable[[Path, Sequence[Atoms]], Path] | None, tmp_path: Path
) -> None:
    """The label that stood last was once taken for both."""
    crystals = frames()
    crystals[1].info |= {"e_above_hull": 0.1, "energy_above_hull": 0.5}
    first, second, third = read(crystals if write is None else write(tmp_path, crystals))
    assert isinstance(first, Row)
    assert isinstance(second, Rejection)
    assert isinstance(third, Row)
    assert "'e_above_hull' and 'energy_above_hull', two names of one label" in second.reason


def test_arrays_objects_and_names_without_a_value_are_no_labels(tmp_path: Path) -> None:
    """ASE writes None as a name alone, which its reader takes for True, 1.0 as a label."""
    atoms = bulk("NaCl", "rocksalt", a=5.0)
    atoms.info = {"band_gap": None, "k": [1, 2], "d": {"a": 1}, "v": np.zeros(3), "t": ["a"], "x": 1.0}
    [row] = read(as_extxyz(tmp_path, [atoms]))
    assert isinstance(row, Row)
    assert row.properties == {"x": "1.0"}
    [row] = read([atoms])
    assert isinstance(row, Row)
    assert row.properties == {"band_gap": None, "x": 1.0}


CELL = 'Lattice="4 0 0 0 4 0 0 0 4" '
SPOILED = {
    "a name twice": (CELL + "energy=1 energy=2", "twice"),
    "no positions": (CELL + "Properties=species:S:1:scaled:R:3", "no species and pos"),
    "half occupied": (CELL + "occupancy=0.5", "partial occupancy"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_frame_that_could_mean_something_else_is_rejected(name: str, tmp_path: Path) -> None:
    comment, words = SPOILED[name]
    (tmp_path / "x.xyz").write_text(f"1\n{comment}\nPo 0 0 0\n")
    [rejection] = read(tmp_path / "x.xyz")
    assert isinstance(rejection, Rejection)
    assert words in rejection.reason


@pytest.mark.parametrize("symbol", ["X", "Va", "Vac", "Wat"])
def test_a_name_that_is_no_element_is_named_as_text(symbol: str, tmp_path: Path) -> None:
    (tmp_path / "x.extxyz").write_text(f"1\n{CELL}\n{symbol} 0 0 0\n")
    [rejection] = read(tmp_path / "x.extxyz")
    assert isinstance(rejection, Rejection)
    assert f"'{symbol}'" in rejection.reason
    assert "is no element" in rejection.reason


@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), st.text("ab '\"{}[]\\=,.1", min_size=1)))
def test_the_comment_line_is_cut_as_ase_writes_it(labels: dict[str, str]) -> None:
    from ase.io.extxyz import key_val_dict_to_str

    # ASE does not escape backslashes, and quotes neither tabs nor commas nor signs.
    plain = {name: text for name, text in labels.items() if "\\" not in text and "=" not in text}
    found = dict(key_value_pairs(key_val_dict_to_str(plain)))
    assert found == plain


def test_blanks_around_signs_and_empty_texts_stay_where_they_are() -> None:
    assert key_value_pairs("a = 1 b=' x ' c") == [("a", "1"), ("b", " x "), ("c", None)]
    assert key_value_pairs('a="" b=3') == [("a", ""), ("b", "3")]
    assert key_value_pairs("") == []


class Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (Path.write_text, (Path("trapped"), "x"))  # type: ignore[return-value]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.traj").write_bytes(b"PickleTrajectory" + pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="must be an ASE trajectory"):
        read(tmp_path / "x.traj")
    (tmp_path / "y.traj").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="must be an ASE trajectory"):
        read(tmp_path / "y.traj")
    path = as_database("x.db")(tmp_path, frames())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET data = ?", (pickle.dumps(Trap()),))
    assert len(list(read(path))) == 3
    assert not (tmp_path / "trapped").exists()


def test_a_damaged_row_of_a_database_is_rejected_alone(tmp_path: Path) -> None:
    path = as_database("x.db")(tmp_path, frames())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE systems SET positions = x'0102' WHERE id = 2")
    first, second, third = read(path)
    assert isinstance(second, Rejection)
    assert "unreadable ASE row" in second.reason
    assert [first.id, third.id] == ["a-007", "b"]


def test_a_foreign_sqlite_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """ASE makes its tables in any sqlite file that has none: reading changed other people's files."""
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="must be an ASE database"):
        read(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.db"]


@pytest.mark.parametrize("cut", [10, 60, 400])
def test_a_trajectory_that_was_cut_off_is_refused(cut: int, tmp_path: Path) -> None:
    path = as_trajectory(tmp_path, frames())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match="ASE trajectory"):
        read(path)


def test_a_damaged_frame_of_a_trajectory_is_rejected_alone(tmp_path: Path) -> None:
    path = as_trajectory(tmp_path, frames())
    head, _, tail = path.read_bytes().rpartition(b'"positions."')
    path.write_bytes(head + b'"pasitions."' + tail)
    first, second, third = read(path)
    assert isinstance(third, Rejection)
    assert "unreadable frame" in third.reason
    assert [first.id, second.id] == ["a-007", "0x1"]


def test_data_build_and_evaluate_see_the_same_labels_of_a_trajectory(tmp_path: Path) -> None:
    path = as_trajectory(tmp_path, frames())
    built = build_split(path, use_cache=False, progress=False).dataset
    assert np.allclose(built.crystals.properties["energy"].numpy(), ENERGIES)
    assert read_crystals(path, split="all").labels["energy"] == tuple(ENERGIES)


def test_another_energy_is_another_fingerprint() -> None:
    first, second = frames(), frames()
    second[0].calc = SinglePointCalculator(second[0], energy=-1.0)
    assert fingerprint(first) == fingerprint(frames())
    assert fingerprint(first) != fingerprint(second)
