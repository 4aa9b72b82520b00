"""Files as people have them: their format, told by their name, and their text.

Text may be plain or compressed, UTF-8 or not; what is not plain UTF-8 is said in one line. A file that unpacks to
hundreds of times its size, or whose line never ends, is refused.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import logging
import lzma
import re
import zlib
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import IO

from latentite.base.files import impostor


class Format(StrEnum):
    """Formats that are read."""

    CIF = "CIF"
    POSCAR = "POSCAR"
    CSV = "CSV"
    JSON = "JSON"
    EXTXYZ = "extxyz"
    PARQUET = "Parquet"
    HDF5 = "HDF5"
    DATABASE = "ASE database"
    TRAJECTORY = "ASE trajectory"
    ZIP = "zip"


STRUCTURES = frozenset({Format.CIF, Format.POSCAR})
"""One crystal per file."""
_TEXT = STRUCTURES | {Format.CSV, Format.JSON, Format.EXTXYZ}
"""May be compressed."""
COMPRESSIONS = (".gz", ".bz2", ".xz")
_ENDINGS = {
    ".cif": Format.CIF,
    ".mcif": Format.CIF,
    ".vasp": Format.POSCAR,
    ".poscar": Format.POSCAR,
    ".contcar": Format.POSCAR,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".json": Format.JSON,
    ".jsonl": Format.JSON,
    ".extxyz": Format.EXTXYZ,
    ".xyz": Format.EXTXYZ,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".h5": Format.HDF5,
    ".hdf5": Format.HDF5,
    ".db": Format.DATABASE,
    ".aselmdb": Format.DATABASE,
    ".traj": Format.TRAJECTORY,
    ".zip": Format.ZIP,
}
_POSCAR_NAME = re.compile(r"(?:poscar|contcar)(?![a-z])")


def without_compression(name: str) -> str:
    """The name without an ending such as `.gz`."""
    ending = next((ending for ending in COMPRESSIONS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def without_endings(name: str) -> str:
    """A structure file's name without the endings that say what it is: `Fe2O3.cif.gz`, `Fe2O3.cif.txt` -> `Fe2O3`."""
    name = without_compression(name)
    if name.lower().endswith((".cif.txt", ".mcif.txt")):
        name = name[: -len(".txt")]
    stem, dot, ending = name.rpartition(".")
    return stem if _ENDINGS.get(dot + ending.lower()) in STRUCTURES else name


def format_of(name: str) -> Format | None:
    """The format that a file's name promises, in upper or lower case; None for a name that promises none.

    `POSCAR` and `CONTCAR` may be followed by anything but a letter (`POSCAR_1`, `POSCAR.relaxed`); some programs save
    a CIF as `.cif.txt`.
    """
    plain = without_compression(name.rpartition("/")[2].lower())
    is_compressed = plain != name.rpartition("/")[2].lower()
    if plain.endswith((".cif.txt", ".mcif.txt")):
        plain = plain.removesuffix(".txt")
    kind = _ENDINGS.get("." + plain.rpartition(".")[2]) if "." in plain else None
    if kind is None and _POSCAR_NAME.match(plain):
        kind = Format.POSCAR
    return None if is_compressed and kind not in _TEXT else kind


def whole_file(path: Path) -> Path:
    """The same path.

    Raises:
        ValueError: when it is no file, or an empty one, a pointer or a page in place of data.
    """
    if not path.is_file():
        raise ValueError(f"{path} must be a file or a folder, got something else")
    if wrong := impostor(path):
        raise ValueError(f"{path} is {wrong}")
    return path


# ------------------------------------------------------------------------------------------- text


log = logging.getLogger(__name__)

LARGEST_RATIO = 200
"""Bytes that one byte of a compressed file may become. Tables of crystals reach 20, bombs start at 1,000."""
ALWAYS_ALLOWED = 64 << 20
"""Bytes that any compressed file may become."""
LONGEST_LINE = 256 << 20
"""Characters; a row of JSON lines with a hundred thousand atoms has a tenth of it."""
_BLOCK = 1 << 20
_UNDECODED = re.compile("[\udc80-\udcff]+")


def _open(path: Path, raw: IO[bytes]) -> IO[bytes]:
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # a BinaryIO in all but name
    if name.endswith(".bz2"):
        return bz2.BZ2File(raw)
    return lzma.LZMAFile(raw) if name.endswith(".xz") else raw


def read_blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, unpacked, in blocks of about a megabyte.

    Raises:
        ValueError: when the file is broken, or grows beyond what its size allows.
        OSError: when it cannot be opened.
    """
    with path.open("rb") as raw, _open(path, raw) as handle:
        size = 0
        try:
            while block := handle.read(_BLOCK):
                yield block
                size += len(block)
                if handle is not raw and size > ALWAYS_ALLOWED + LARGEST_RATIO * raw.tell():
                    raise ValueError(
                        f"{path} must not unpack to more than {LARGEST_RATIO} times its size, got a compressed bomb; "
                        "unpack it yourself if you trust it"
                    )
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if handle is raw:
                raise
            kind = {".gz": "gzip", ".bz2": "bzip2"}.get(path.suffix.lower(), "xz")
            raise ValueError(
                f"{path} must be a whole {kind} file, got a broken one ({error}); copy or download it again"
            ) from error


def read_texts(path: Path) -> Iterator[str]:
    """As `read_blocks`, decoded.

    UTF-16 is known by its mark. In other text, bytes that are not UTF-8 are read as Western European (cp1252), as old
    programs write them; both are said once.

    Raises:
        ValueError: for a broken or binary file.
        OSError: when it cannot be opened.
    """
    decoder: codecs.IncrementalDecoder | None = None
    is_said = False
    for block in chain(read_blocks(path), [b""]):
        decoder = decoder or _decoder(path, block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must be whole UTF-16, got a broken one; save it as UTF-8") from error
        if "\0" in text:
            raise ValueError(
                f"{path} must be text, got a binary file (or UTF-16 without its mark: save it as UTF-8)"
            )
        if not text.isascii() and _UNDECODED.search(text):
            text = _UNDECODED.sub(_as_cp1252, text)
            if not is_said:
                log.warning("%s is not UTF-8: what is not is read as Western European text (cp1252)", path)
            is_said = True
        yield text


def _decoder(path: Path, head: bytes) -> codecs.IncrementalDecoder:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        log.warning("%s is UTF-16, as its mark says: read so", path)
        return codecs.getincrementaldecoder("utf-16")("strict")
    return codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")


def _as_cp1252(match: re.Match[str]) -> str:
    return match[0].encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends, `\\r\\n` and `\\n` as they stand.

    Iterating a gzip file itself would cost a Python call per line.

    Raises:
        ValueError: for a broken or binary file, or a line that does not end.
        OSError: when the file cannot be opened.
    """
    pending: list[str] = []
    length = 0
    for text in read_texts(path):
        whole, newline, rest = text.rpartition("\n")
        if newline:
            yield from io.StringIO("".join([*pending, whole, newline]), newline="\n")
            pending, length = [], 0
        pending.append(rest)
        length += len(rest)
        if length > LONGEST_LINE:
            raise ValueError(f"{path} must be text of lines, got one longer than {LONGEST_LINE:,} characters")
    if last := "".join(pending):
        yield last


def read_text(path: Path, *, longest: int | None = None) -> str:
    """A whole file.

    Raises:
        ValueError: for a broken or binary file, or one of more than `longest` characters.
        OSError: when it cannot be opened.
    """
    texts: list[str] = []
    length = 0
    for text in read_texts(path):
        texts.append(text)
        length += len(text)
        if longest is not None and length > longest:
            raise ValueError(f"{path} must be a file of at most {longest:,} characters, got more")
    return "".join(texts)
