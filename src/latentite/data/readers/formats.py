"""What a file holds, told by its name: the formats that are read, and the compressions that they may be in."""

from __future__ import annotations

import re
from enum import StrEnum


class Format(StrEnum):
    """What the reader of a file must understand."""

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
    found = _ENDINGS.get("." + plain.rpartition(".")[2]) if "." in plain else None
    if found is None and _POSCAR_NAME.match(plain):
        found = Format.POSCAR
    return None if is_compressed and found not in _TEXT else found
