"""Folders and archives: every entry is read, listed as rejected, or named as left out; nothing leaves its place."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import os
import stat
import zipfile
from pathlib import Path

import pytest
from ase import Atoms
from ase.io import write as ase_write
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from latentite.cli import main
from latentite.data.build import read_source
from latentite.data.dataset_folder import build_dataset
from latentite.data.readers import opening
from latentite.data.readers.files import Format, format_of, without_endings
from latentite.data.readers.opening import fingerprint
from latentite.data.readers.records import Rejection
from latentite.data.readers.rows import Row, read
from latentite.evaluation.read import read_crystals


def cif(a: float) -> str:
    return str(CifWriter(Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])))


POSCAR = "x\n1\n4 0 0\n0 4 0\n0 0 4\nCs Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder as people have them."""
    folder = tmp_path / "mixed"
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / "a.cif").write_text(cif(4.0))
    (folder / "B.CIF").write_text(cif(4.1))
    (folder / "c.cif.txt").write_text(cif(4.2))
    (folder / "d.cif.gz").write_bytes(gzip.compress(cif(4.3).encode()))
    (folder / "e.cif.bz2").write_bytes(bz2.compress(cif(4.4).encode()))
    (folder / "f.cif.xz").write_bytes(lzma.compress(cif(4.5).encode()))
    (folder / "sub" / "POSCAR").write_text(POSCAR)
    (folder / "sub" / "CONTCAR_2.vasp").write_text(POSCAR)
    (folder / "linked.cif").symlink_to(folder / "a.cif")
    (folder / "g.mcif").write_text(cif(4.6))
    ase_write(folder / "h.extxyz", Atoms("Cs", cell=[4] * 3, pbc=True), format="extxyz")
    (folder / "i.csv").write_text("id,cif\nx,y\n")
    (folder / "j.cif").symlink_to(folder / "nowhere")
    (folder / "k.res").write_text("TITL x\n")
    (folder / "l.tar.bz2").write_bytes(b"x")
    (folder / "m.zip").write_bytes(b"PK")
    (folder / "n.cif").write_text("")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.cif")
    for name in (
        ".DS_Store",
        "._a.cif",
        "README.md",
        "INCAR",
        "sub/.git/x.cif",
        "atom_init.json",
        "notes.txt",
    ):
        (folder / name).write_text("x")
    return folder


READ = {"a", "B", "c", "d", "e", "f", "g", "sub", "sub/CONTCAR_2", "linked"}
REJECTED = {
    "h.extxyz": "a table beside structure files: extxyz",
    "i.csv": "a table beside structure files: CSV",
    "j.cif": "a link that leads nowhere",
    "k.res": "a format that is not read",
    "l.tar.bz2": "a format that is not read",
    "m.zip": "an archive inside a folder",
    "n.cif": "an empty file",
    "round": "a link to a folder, which is not followed",
    "pipe.cif": "neither a file nor a folder",
}
LEFT_OUT = 7


def test_every_entry_of_a_folder_is_read_rejected_or_named(
    mixed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once `.mcif`, `.cif.txt`, `.bz2`, tables and broken links beside CIFs were passed over without a word."""
    caplog.set_level("INFO")
    found = list(read(mixed))
    assert {item.id for item in found if isinstance(item, Row)} == READ
    reasons = {item.source: item.reason for item in found if isinstance(item, Rejection)}
    assert reasons.keys() == REJECTED.keys()
    for name, words in REJECTED.items():
        assert words in reasons[name], (name, reasons[name])
    assert [item.row for item in found] == list(range(len(READ) + len(REJECTED)))
    assert "left out, as no crystals" in caplog.text
    assert "README" in caplog.text or ".md" in caplog.text


def test_build_evaluate_and_predict_count_the_same_entries(mixed: Path, tmp_path: Path) -> None:
    summary = build_dataset(
        mixed, tmp_path / "out", fractions={"train": 1.0, "val": 0.0, "test": 0.0}, progress=False
    )
    assert (summary.num_accepted, summary.num_rejected) == (len(READ), len(REJECTED))
    with (tmp_path / "out" / "rejected.csv").open() as file:
        assert {row["source"] for row in csv.DictReader(file)} == REJECTED.keys()
    evaluated = read_crystals(mixed, split="all")
    assert (len(evaluated), len(evaluated.rejections)) == (len(READ), len(REJECTED))
    dataset, rejections = read_source(str(mixed), split="test", max_atoms=0)
    assert (len(dataset), len(rejections)) == (len(READ), len(REJECTED))


MAGNETIC = """data_iron
_cell_length_a 2.866
_cell_length_b 2.866
_cell_length_c 2.866
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_magn.number_BNS 97.151
"""
OPERATIONS = """loop_
_space_group_symop_magn_operation.id
_space_group_symop_magn_operation.xyz
1 x,y,z,+1
loop_
_space_group_symop_magn_centering.id
_space_group_symop_magn_centering.xyz
1 x,y,z,+1
2 x+1/2,y+1/2,z+1/2,+1
"""
SITE = """loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Fe1 Fe 0 0 0
"""


def test_a_magnetic_cif_is_read_by_its_operations_or_rejected_never_p1(tmp_path: Path) -> None:
    (tmp_path / "a.mcif").write_text(MAGNETIC + OPERATIONS + SITE)
    (tmp_path / "b.mcif").write_text(MAGNETIC + SITE)
    row, rejection = read(tmp_path)
    assert isinstance(row, Row)
    assert row.atomic_numbers.tolist() == [26, 26]
    assert isinstance(rejection, Rejection)
    assert "magn" in rejection.reason


def test_a_zip_of_a_folder_gives_what_the_folder_gives(mixed: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(mixed.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, path.relative_to(mixed))
    found = list(read(tmp_path / "a.zip"))
    gone = {"j.cif", "round", "pipe.cif"}
    assert {item.id for item in found if isinstance(item, Row)} == READ - {"linked"}
    assert {item.source for item in found if isinstance(item, Rejection)} == REJECTED.keys() - gone


def test_a_link_to_etc_and_a_circle_of_links_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a.cif").write_text(cif(4.0))
    (folder / "etc").symlink_to("/etc")
    (folder / "me").symlink_to(".")
    (folder / "one.cif").symlink_to("two.cif")
    (folder / "two.cif").symlink_to("one.cif")
    (folder / "null.cif").symlink_to("/dev/zero")
    found = list(read(folder))
    assert [item.id for item in found if isinstance(item, Row)] == ["a"]
    assert {item.source for item in found if isinstance(item, Rejection)} == {
        "etc",
        "me",
        "one.cif",
        "two.cif",
        "null.cif",
    }


def test_tables_of_a_folder_are_read_and_what_lies_beside_them_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text(f'id,cif\n{name},"{cif(4.0)}"\n')
    (folder / "c.cif").symlink_to("nowhere")
    (folder / "d.res").write_text("x")
    found = list(read(folder))
    assert [item.id for item in found] == ["a.csv", "b.csv", "c", "d.res"]


def test_a_new_broken_link_is_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text(cif(4.0))
    before = fingerprint(tmp_path)
    (tmp_path / ".DS_Store").write_text("x")
    assert fingerprint(tmp_path) == before
    (tmp_path / "b.cif").symlink_to("nowhere")
    after = fingerprint(tmp_path)
    assert after != before
    (tmp_path / "nowhere").write_text(cif(5.0))
    assert fingerprint(tmp_path) != after


def test_a_folder_without_any_crystal_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.res").write_text("x")
    (tmp_path / "b.md").write_text("x")
    with pytest.raises(ValueError, match=r"must hold CIF or POSCAR files, or tables .* got \.res, \.md"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.CIF", Format.CIF),
        ("a.cif.TXT", Format.CIF),
        ("a.mcif.gz", Format.CIF),
        ("POSCAR", Format.POSCAR),
        ("sub/POSCAR.relaxed", Format.POSCAR),
        ("CONTCAR_3", Format.POSCAR),
        ("POSCAR.gz", Format.POSCAR),
        ("poscar.csv", Format.CSV),
        ("poscars", None),
        ("a.vasp.xz", Format.POSCAR),
        ("a.jsonl.bz2", Format.JSON),
        ("a.db.gz", None),
        ("a.tar.gz", None),
        ("cif", None),
        ("a.txt", None),
    ],
)
def test_a_name_says_the_format(name: str, found: Format | None) -> None:
    assert format_of(name) is found


def test_ids_are_names_without_endings() -> None:
    assert [without_endings(name) for name in ("a.cif.gz", "a.cif.txt", "a.b.VASP", "v1.2", "POSCAR_1")] == [
        "a",
        "a",
        "a.b",
        "v1.2",
        "POSCAR_1",
    ]


def write_zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.cif", cif(4.0))
        for name, content in entries:
            archive.writestr(name, content)
    return path


def link(name: str, mode: int = stat.S_IFLNK) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (mode | 0o777) << 16
    return info


UNSAFE: dict[str, tuple[tuple[str | zipfile.ZipInfo, str], str]] = {
    "a name that climbs": (("../../climbed.cif", cif(4.0)), "below one folder"),
    "a name that climbs inside": (("x/../../climbed.cif", cif(4.0)), "below one folder"),
    "an absolute name": (("/tmp/climbed.cif", cif(4.0)), "below one folder"),
    "a name of Windows": (("..\\climbed.cif", cif(4.0)), "below one folder"),
    "a drive": (("C:/climbed.cif", cif(4.0)), "below one folder"),
    "a link": ((link("b.cif"), "/etc/passwd"), "a link or a device"),
    "a link to a folder": ((link("etc"), "/etc"), "a link or a device"),
    "a device": ((link("b.cif", stat.S_IFCHR), ""), "a link or a device"),
    "a bomb": (("b.cif", "0" * (100 << 20)), "not unpack to more than 200 times"),
}


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("command", ["build", "evaluate", "read"])
def test_an_unsafe_archive_is_refused_in_one_sentence_and_writes_nothing(
    name: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entry, words = UNSAFE[name]
    for folder in ("in", "temporary"):
        (tmp_path / folder).mkdir()
    path = write_zip(tmp_path / "in" / "x.zip", entry)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    if command == "build":
        assert main(["data", "build", str(path), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert words in said
    else:
        with pytest.raises(ValueError, match=words):
            read_crystals(path, split="all") if command == "evaluate" else list(read(path))
    left = {entry.relative_to(tmp_path).as_posix() for entry in tmp_path.rglob("*")}
    assert left <= {"in", "in/x.zip", "temporary", "out"}


def test_a_name_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    """The second would overwrite the first, and one crystal be gone."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(tmp_path / "x.zip", ("a.cif", cif(5.0)))
    with pytest.raises(ValueError, match=r"each name once, got 'a\.cif'"):
        read(path)


def test_an_archive_in_an_archive_is_not_unpacked(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", inner)
        archive.writestr("a.cif", cif(4.0))
    first, second = read(tmp_path / "outer.zip")
    assert isinstance(first, Row)
    assert isinstance(second, Rejection)
    assert "an archive inside" in second.reason


def test_a_compressed_bomb_in_an_archive_is_a_rejection(tmp_path: Path) -> None:
    packed = gzip.compress(b"\n" * (80 << 20))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.cif", cif(4.0))
        archive.writestr("b.cif.gz", packed)
    _, rejection = read(tmp_path / "x.zip")
    assert isinstance(rejection, Rejection)
    assert "at most 67,108,864 characters" in rejection.reason


def test_paths_in_a_table_of_an_archive_do_not_lead_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret.cif").write_text(cif(4.0))
    text = io.StringIO()
    csv.writer(text).writerows(
        [["id", "cif"], ["in", "cifs/b.cif"], ["out", str(tmp_path / "secret.cif")], ["up", "../../x.cif"]]
    )
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("t.csv", text.getvalue())
        archive.writestr("cifs/b.txt", cif(4.0))
    found = {item.id: getattr(item, "reason", "") for item in read(tmp_path / "x.zip")}
    assert "out of the archive" in found["out"]
    assert "out of the archive" in found["up"]
    assert "unreadable file" in found["in"]


def test_more_files_than_anyone_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MOST_MEMBERS", 3)
    path = write_zip(tmp_path / "x.zip", *((f"{k}.cif", "x") for k in range(3)))
    with pytest.raises(ValueError, match="4 files"):
        read(path)
