"""Files of other libraries that hold crystals: HDF5, Parquet, ASE's databases, zip archives and folders."""

from __future__ import annotations

import io
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.case import Arrays, Case
from fuzz.damage import damaged
from fuzz.table_cases import cif_of, small_crystal


def make_hdf5(index: int, chance: random.Random) -> Case:
    """Groups by number of atoms; the layout, the types or the bytes may be wrong."""
    import h5py

    case = Case(format="hdf5", index=index, kind="as it is", source="x.h5")
    change = chance.choice((None, None, "damaged bytes", *_HDF5_CHANGES))
    case.kind = change or "as it is"
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        rows = 0
        for number in range(chance.randint(1, 2)):
            symbols, arrays = small_crystal(chance)
            count = chance.randint(1, 3)
            names = [f"g{number}-{row}" for row in range(count)]
            group = file.create_group(f"{number}{len(symbols):03d}")
            _fill(group, arrays, names, count, h5py)
            case.crystals |= dict.fromkeys(names, arrays)
            rows += count
        case.rows = rows
        if change in _HDF5_CHANGES:
            _HDF5_CHANGES[change](case, group, chance, h5py)
    content = stream.getvalue()
    if change == "damaged bytes":
        case.rows, case.crystals, content = None, {}, damaged(content, chance)
    case.files["x.h5"] = content
    return case


def _fill(group: Any, arrays: Arrays, names: list[str], count: int, h5py: Any) -> None:
    numbers, coords, lattice = arrays
    group["coord"] = np.repeat((coords @ lattice)[None], count, axis=0)
    group["numbers"] = np.repeat(numbers[None].astype(np.int32), count, axis=0)
    group["cell"] = np.repeat(lattice[None], count, axis=0)
    group.create_dataset("id", data=names, dtype=h5py.string_dtype("utf-8"))
    group["energy"] = np.linspace(-1.0, -2.0, count)


def _another(name: str, values: Any) -> Any:
    """A change that puts `values(dataset)` in the place of a dataset, and leaves the reader no right answer."""

    def change(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
        old = group[name][()]
        del group[name]
        group[name] = values(old, chance)
        _last_group_unknown(case, group)
        if name != "id":
            case.refused += [f"g{int(group.name[1])}-{row}" for row in range(len(old))]

    return change


def _last_group_unknown(case: Case, group: Any) -> None:
    prefix = f"g{int(group.name[1])}-"
    case.crystals = {name: arrays for name, arrays in case.crystals.items() if not name.startswith(prefix)}
    case.rows = None


def _unwritten(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    """A small file that declares very many rows."""
    count = chance.choice((10**6, 10**8, 10**12))
    atoms = 2
    for name, shape in (("numbers", (count, atoms)), ("coord", (count, atoms, 3)), ("cell", (count, 3, 3))):
        del group[name]
        group.create_dataset(name, shape=shape, dtype="f8" if name != "numbers" else "i4", chunks=True)
    for name in ("id", "energy"):
        del group[name]
    _last_group_unknown(case, group)


def _bomb(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    """A hundred megabytes of zeros in a few kilobytes."""
    count, atoms = 20_000, 8
    for name, shape in (("numbers", (count, atoms)), ("coord", (count, atoms, 3)), ("cell", (count, 3, 3))):
        del group[name]
        group.create_dataset(
            name,
            data=np.zeros(shape, dtype="f8" if name != "numbers" else "i4"),
            compression="gzip",
            chunks=shape,
        )
    for name in ("id", "energy"):
        del group[name]
    _last_group_unknown(case, group)


def _huge_chunk(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    old = group["coord"][()]
    del group["coord"]
    shape = (10**7, old.shape[1], 3)
    group.create_dataset("coord", shape=old.shape, maxshape=(None, *old.shape[1:]), chunks=shape, dtype="f8")
    _last_group_unknown(case, group)


def _external_link(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    """A dataset that stands in another file, which the source does not contain."""
    target = "../../outside/other.h5"
    name = chance.choice(("coord", "numbers", "cell", "energy"))
    del group[name]
    group[name] = h5py.ExternalLink(chance.choice((target, "/etc/passwd", "other.h5")), "/x")
    _last_group_unknown(case, group)


def _external_storage(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    """Numbers that are read from a file that the source does not contain."""
    name = chance.choice(("coord", "cell", "energy"))
    shape = group[name].shape
    del group[name]
    target = chance.choice(("/etc/passwd", "/etc/services", "other.bin"))
    group.create_dataset(name, shape=shape, dtype="f8", external=[(target, 0, h5py.h5f.UNLIMITED)])
    _last_group_unknown(case, group)
    case.refused += [f"g{int(group.name[1])}-{row}" for row in range(shape[0])]


def _virtual(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    shape = group["coord"].shape
    del group["coord"]
    layout = h5py.VirtualLayout(shape=shape, dtype="f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=shape)
    group.create_virtual_dataset("coord", layout, fillvalue=chance.choice((0.0, 0.5)))
    _last_group_unknown(case, group)
    case.refused += [f"g{int(group.name[1])}-{row}" for row in range(shape[0])]


def _soft_link(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    name = chance.choice(("coord", "numbers", "extra", "cell"))
    if name in group:
        del group[name]
    group[name] = h5py.SoftLink(chance.choice(("/nowhere", f"{group.name}/{name}", group.name, "/")))
    _last_group_unknown(case, group)


def _loop(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    group["self"] = group
    group.file["other"] = group.file["/"]


def _member(case: Case, group: Any, chance: random.Random, h5py: Any) -> None:
    """One more thing in the group, of a kind that is no label."""
    count = len(group["numbers"])
    kind = chance.choice(
        ("compound", "group", "type", "matrix", "bytes", "complex", "reference", "empty", "scalar")
    )
    if kind == "compound":
        group["more"] = np.zeros(count, dtype=[("a", "f8"), ("b", "i4")])
    elif kind == "group":
        group.create_group("more")
    elif kind == "type":
        group["more"] = np.dtype("f8")
    elif kind == "matrix":
        group["more"] = np.zeros((count, 3, 3))
    elif kind == "bytes":
        group["more"] = np.array([b"\xff\xfe"] * count)
    elif kind == "complex":
        group["more"] = np.ones(count, dtype=complex)
    elif kind == "reference":
        group.create_dataset("more", data=[group.ref] * count, dtype=h5py.ref_dtype)
    elif kind == "empty":
        group["more"] = h5py.Empty("f8")
    else:
        group["more"] = 1.5


_HDF5_CHANGES: dict[str, Any] = {
    "numbers are fractions": _another("numbers", lambda old, chance: old + chance.choice((0.5, 0.1))),
    "numbers are text": _another("numbers", lambda old, chance: old.astype("S4")),
    "numbers are huge": _another(
        "numbers", lambda old, chance: old.astype("u8") + chance.choice((2**63, 300))
    ),
    "numbers are negative": _another("numbers", lambda old, chance: -old),
    "numbers have one axis": _another("numbers", lambda old, chance: old[0]),
    "numbers are true": _another("numbers", lambda old, chance: old > 1),
    "numbers are complex": _another("numbers", lambda old, chance: old.astype(complex)),
    "numbers are nan": _another("numbers", lambda old, chance: np.where(old == old.max(), np.nan, old)),
    "coord is nan": _another("coord", lambda old, chance: old * np.nan),
    "coord is complex": _another("coord", lambda old, chance: old.astype(complex)),
    "coord is text": _another("coord", lambda old, chance: old.astype("S9")),
    "coord is compound": _another("coord", lambda old, chance: old.astype([("x", "f8")])),
    "coord is flat": _another("coord", lambda old, chance: old[:, 0]),
    "cell is zero": _another("cell", lambda old, chance: old * 0.0),
    "cell is text": _another("cell", lambda old, chance: old.astype("S9")),
    "cell is three numbers": _another("cell", lambda old, chance: old[:, 0]),
    "ids are numbers": _another("id", lambda old, chance: np.arange(len(old))),
    "ids are too few": _another("id", lambda old, chance: old[:-1]),
    "id is one text": _another("id", lambda old, chance: "abc"),
    "rows that are not written": _unwritten,
    "zeros that unpack": _bomb,
    "a chunk of gigabytes": _huge_chunk,
    "a link to another file": _external_link,
    "numbers of another file": _external_storage,
    "a virtual dataset": _virtual,
    "a soft link": _soft_link,
    "a loop of groups": _loop,
    "a member more": _member,
}


def make_parquet(index: int, chance: random.Random) -> Case:
    """A Parquet table of CIFs with a label."""
    import pyarrow
    import pyarrow.parquet

    case = Case(format="parquet", index=index, kind="as it is", source="x.parquet", rows=chance.randint(1, 4))
    assert case.rows is not None
    rows = [small_crystal(chance) for _ in range(case.rows)]
    names = [f"mp-{row}" for row in range(case.rows)]
    table: dict[str, Any] = {"material_id": names, "cif": [cif_of(*row) for row in rows]}
    case.crystals = {name: arrays for name, (_, arrays) in zip(names, rows, strict=True)}
    values = chance.choice(
        (
            [1.5] * case.rows,
            [b"\xff"] * case.rows,
            [[1.0, 2.0]] * case.rows,
            [{"a": 1}] * case.rows,
            [None] * case.rows,
            [True] * case.rows,
            [10**18] * case.rows,
            [float("inf")] * case.rows,
        )
    )
    table["label"] = values
    if chance.random() < 0.3:
        case.kind = "ids are numbers"
        table["material_id"] = list(range(case.rows))
        case.crystals = {str(row): arrays for row, (_, arrays) in enumerate(rows)}
    stream = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table(table), stream, compression=chance.choice(("none", "gzip", "snappy"))
    )
    content = stream.getvalue()
    if chance.random() < 0.6:
        case.kind, case.rows, case.crystals = "damaged bytes", None, {}
        content = damaged(content, chance)
    case.files["x.parquet"] = content
    return case


def make_ase(index: int, chance: random.Random) -> Case:
    """ASE's sqlite and JSON databases and trajectories."""
    from ase import Atoms
    from ase.db import connect
    from ase.io import write

    ending = chance.choice((".db", ".json", ".traj"))
    case = Case(format="ase", index=index, kind="as it is", source=f"x{ending}", rows=chance.randint(1, 3))
    assert case.rows is not None
    frames = []
    for row in range(case.rows):
        symbols, arrays = small_crystal(chance)
        frames.append(Atoms(symbols, scaled_positions=arrays[1], cell=arrays[2], pbc=True))
        case.crystals[f"n{row}"] = arrays
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / case.source
        if ending == ".traj":
            write(path, frames)
            case.crystals = {str(row): arrays for row, arrays in enumerate(case.crystals.values())}
        else:
            with connect(path) as database:
                for row, atoms in enumerate(frames):
                    database.write(atoms, material_id=f"n{row}", gap=0.5 * row)
        content = path.read_bytes()
    if chance.random() < 0.7:
        case.kind, case.rows, case.crystals = "damaged bytes", None, {}
        content = damaged(content, chance)
    case.files[case.source] = content
    return case


def make_archive(index: int, chance: random.Random) -> Case:
    """A zip of CIFs, with members that reach out, link out, or unpack to far more than they are."""
    case = Case(format="zip", index=index, kind="as it is", source="x.zip", rows=chance.randint(1, 3))
    assert case.rows is not None
    stream = io.BytesIO()
    kind = chance.choice(("as it is", "damaged bytes", *_MEMBERS))
    case.kind = kind
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in range(case.rows):
            symbols, arrays = small_crystal(chance)
            archive.writestr(f"c{row}.cif", cif_of(symbols, arrays))
            case.crystals[f"c{row}"] = arrays
        if kind in _MEMBERS:
            case.rows = None
            _MEMBERS[kind](archive, cif_of(*small_crystal(chance)), chance)
    content = stream.getvalue()
    if kind == "damaged bytes":
        case.rows, case.crystals, content = None, {}, damaged(content, chance)
    case.files["x.zip"] = content
    return case


def _reaching_out(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    name = chance.choice(
        (
            "../out.cif",
            "../../outside/out.cif",
            "/tmp/latentite-fuzz-out.cif",
            "a/../../../out.cif",
            "C:\\x.cif",
        )
    )
    archive.writestr(zipfile.ZipInfo(name), text)


def _linking_out(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    member = zipfile.ZipInfo("link.cif")
    member.create_system, member.external_attr = 3, 0o120777 << 16
    archive.writestr(member, chance.choice(("/etc/passwd", "../../outside/secret.cif")))


def _unpacking(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    with archive.open("big.cif", "w", force_zip64=True) as member:
        block = bytes(1 << 20)
        for _ in range(chance.choice((5, 5, 5, 600))):
            member.write(block)


def _many(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    for number in range(1000):
        archive.writestr(f"m/{number}.txt", "")


def _clashing(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    archive.writestr("a", "a file")
    archive.writestr("a/b.cif", text)


def _folder_as_file(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    archive.writestr("y.cif/", "")
    archive.writestr("z.cif/inner.cif", text)


def _strange_name(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    archive.writestr(
        chance.choice(("é.cif", "a" * 250 + ".cif", "a\nb.cif", " .cif", "-x.cif", "[bold].cif", "%s.cif")),
        text,
    )


def _inner_archive(archive: zipfile.ZipFile, text: str, chance: random.Random) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as second:
        second.writestr("y.cif", text)
    archive.writestr("inner.zip", inner.getvalue())


_MEMBERS: dict[str, Any] = {
    "a name that reaches out": _reaching_out,
    "a link": _linking_out,
    "a member that unpacks to much": _unpacking,
    "many members": _many,
    "a file that is a folder too": _clashing,
    "folders called like files": _folder_as_file,
    "a strange name": _strange_name,
    "an archive inside": _inner_archive,
}


def make_folder(index: int, chance: random.Random) -> Case:
    """A folder of CIFs with links and files that are no crystals."""
    case = Case(format="folder", index=index, kind="as it is", source="crystals")
    for row in range(chance.randint(1, 3)):
        symbols, arrays = small_crystal(chance)
        case.files[f"crystals/c{row}.cif"] = cif_of(symbols, arrays).encode()
        case.crystals[f"c{row}"] = arrays
    case.kind = chance.choice(
        ("as it is", "a dangling link", "a link to itself", "an empty file", "a binary file", "a pickle")
    )
    case.rows = len(case.files)
    if case.kind == "a dangling link":
        case.links["crystals/d.cif"] = "nowhere.cif"
        case.rows += 1
    if case.kind == "a link to itself":
        case.links["crystals/again"] = "."
        case.rows += 1  # a link to a folder is not followed, and listed
    if case.kind == "an empty file":
        case.files["crystals/d.cif"] = b""
        case.rows += 1
    if case.kind == "a binary file":
        case.files["crystals/POSCAR"] = chance.randbytes(300)
        case.rows += 1
    if case.kind == "a pickle":
        case.files["crystals/x.pkl"] = b"\x80\x04cos\nsystem\nX\x04\x00\x00\x00trueR."
        case.rows += 1
    return case
