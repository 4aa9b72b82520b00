"""Text as people have it is read as it was meant, with a word about it; bombs and binaries are refused."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import tracemalloc
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from latentite.data.readers import files
from latentite.data.readers.files import read_lines
from latentite.data.readers.records import Rejection
from latentite.data.readers.rows import Row, read
from latentite.data.readers.structure_files import read_extxyz

CIF = str(CifWriter(Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])))


def table(delimiter: str = ",", name: str = "né") -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "cif", "gap, in eV", "note; long"])
    writer.writerow([name, CIF, "1,5", "a;b|c\td"])
    writer.writerow(["b", CIF, "2", ""])
    return text.getvalue()


def check(path: Path) -> None:
    first, second = read(path)
    assert isinstance(first, Row)
    assert (first.id, second.id) == ("né", "b")
    assert first.properties == {"gap, in eV": "1,5", "note; long": "a;b|c\td"}


@pytest.mark.parametrize(
    ("name", "delimiter", "word"),
    [("a.csv", ";", "semicolons"), ("b.csv", "\t", "tabs"), ("c.tsv", ",", "commas"), ("d.csv", "|", "bars")],
)
def test_another_delimiter_is_found_and_said(
    name: str, delimiter: str, word: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_text(table(delimiter), newline="", encoding="utf-8")
    check(tmp_path / name)
    assert f"is separated by {word}" in caplog.text


def test_the_usual_delimiter_is_not_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, delimiter in (("a.csv", ","), ("b.tsv", "\t")):
        (tmp_path / name).write_text(table(delimiter), newline="", encoding="utf-8")
        check(tmp_path / name)
    assert caplog.text == ""


def test_the_line_in_which_excel_names_its_delimiter_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\r\n" + table(";"), newline="", encoding="utf-8")
    check(tmp_path / "a.csv")


ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with its mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16 of big endians": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "cp1252": lambda text: text.encode("cp1252"),
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
def test_encodings_and_compressions_are_read_and_said(
    name: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(pack(ENCODINGS[name](table())))
    check(path)
    words = {"utf-16": "is UTF-16", "cp1252": "is not UTF-8"}.get(name.split(" ")[0], "")
    assert words in caplog.text
    assert words or not caplog.text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table().encode("utf-16-le"), "UTF-16 without its mark: save it as UTF-8"),
        (table().encode("utf-32"), "UTF-16"),
        (b"id,cif\nx,\0\1\2", "must be text, got a binary file"),
        (codecs.BOM_UTF16_LE + b"a", "must be whole UTF-16"),
    ],
)
def test_what_is_no_text_is_refused_with_what_to_do(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(read(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["a.cif", "b.vasp", "c.extxyz", "d.json"])
def test_utf_16_is_read_in_other_formats_of_text(name: str, tmp_path: Path) -> None:
    salt = "x\n1\n4 0 0\n0 4 0\n0 0 4\nPo\n1\nDirect\n0 0 0\n"
    contents = {
        "a.cif": CIF,
        "b.vasp": salt,
        "c.extxyz": '1\nLattice="4 0 0 0 4 0 0 0 4"\nPo 0 0 0\n',
        "d.json": '[{"cif": ' + __import__("json").dumps(CIF) + "}]",
    }
    (tmp_path / name).write_bytes(contents[name].encode("utf-16"))
    [row] = read(tmp_path / name)
    assert isinstance(row, Row)


def test_an_open_quote_never_swallows_the_rows_after_it(tmp_path: Path) -> None:
    """Without `strict`, Python's csv module makes one cell of the rest of the file, and hundreds of rows are gone."""
    text = table().replace(",2,", ',"2,')
    (tmp_path / "a.csv").write_text(text, newline="", encoding="utf-8")
    with pytest.raises(ValueError, match="broken row"):
        list(read(tmp_path / "a.csv"))


def bomb(kind: str, path: Path, unit: bytes) -> Path:
    """A small file that unpacks to 64 MiB."""
    opener = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[kind]
    with opener(path, "wb") as file:  # type: ignore[operator]
        for _ in range(64):
            file.write(unit * ((1 << 20) // len(unit)))
    return path


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_bomb_is_refused_before_it_fills_the_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 1 << 20)
    path = bomb(kind, tmp_path / f"a.csv.{kind}", b"0")
    tracemalloc.start()
    with pytest.raises(ValueError, match="bomb"):
        list(read(path))
    assert tracemalloc.get_traced_memory()[1] < 24 << 20
    tracemalloc.stop()
    [rejection] = read(path.rename(tmp_path / f"a.cif.{kind}"))
    assert isinstance(rejection, Rejection)
    assert "bomb" in rejection.reason
    with pytest.raises(ValueError, match="bomb"):
        list(read_extxyz((tmp_path / f"a.cif.{kind}").rename(tmp_path / f"a.extxyz.{kind}")))


def test_a_bomb_of_empty_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 1 << 20)
    with pytest.raises(ValueError, match="bomb"):
        list(read(bomb("gz", tmp_path / "a.csv.gz", b"\n")))


def test_a_line_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 3 << 20)
    (tmp_path / "a.csv").write_bytes(b"id,cif\n" + b"0" * (5 << 20))
    with pytest.raises(ValueError, match="longer than"):
        list(read(tmp_path / "a.csv"))


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_a_compressed_file_that_was_cut_off_is_named(ending: str, tmp_path: Path) -> None:
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[ending]
    path = tmp_path / f"a.csv.{ending}"
    path.write_bytes(pack(table().encode())[:-20])
    with pytest.raises(ValueError, match="must be a whole"):
        list(read(path))


def test_lines_are_what_python_makes_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK", 7)
    text = "a\n\nbcdefghijklmnop\r\nq\x0cr\u2028s\n\nlast"
    (tmp_path / "a.txt").write_text(text, newline="", encoding="utf-8")
    assert list(read_lines(tmp_path / "a.txt")) == list(io.StringIO(text, newline="\n"))
