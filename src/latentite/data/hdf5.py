"""HDF5 files grouped by number of atoms, as potentials are trained on: read as a source, written from a dataset.

    /028/coord    [row 28 3]  Å, Cartesian
    /028/numbers  [row 28]    atomic numbers
    /028/cell     [row 3 3]   Å, row vectors
    /028/energy   [row]       and any other dataset of one number or text per row: a property
    /028/id       [row]       text, optional (or material_id)

Datasets of other shapes (`forces` [row 28 3], ...) are no labels of a crystal and are left alone. Comes after
`records.py`, which calls `read_hdf5`; needs h5py (`pip install 'latentite[hdf5]'`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentite.data.records import Kind, Record, Rejection, Value, id_of, to_properties
from latentite.files import replacing

if TYPE_CHECKING:
    from latentite.data.dataset import CrystalDataset

_BLOCK = 1024
"""Rows read at once, fewer where they have many atoms."""
_BLOCK_ATOMS = 1 << 20
_MOST_ATOMS = 1_000_000
_ID_NAMES = ("material_id", "id")
_GEOMETRY = ("coord", "numbers", "cell")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ValueError("HDF5 files need h5py; install it with `pip install 'latentite[hdf5]'`") from error
    return h5py


def read_hdf5(path: Path) -> Iterator[Record | Rejection]:
    """Every row of every group, in the order of the groups' names; the layout is checked before the first row.

    A record's source is `FILE::GROUP`, its row the position within the group.

    Raises:
        ValueError: without h5py, for a file that is no HDF5 or is cut short, or naming the group and dataset that
            do not fit the layout.
    """
    h5py = _h5py()
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"{path} must be a whole HDF5 file, got one that cannot be opened: {error}"
        ) from error
    try:
        groups = _groups(file, h5py)
        if not groups:
            raise ValueError(
                f"{path} must have groups with the datasets coord and numbers, got "
                f"{', '.join(map(str, file)) or 'an empty file'}"
            )
        for name, group in groups.items():
            _check_group(f"{path}::{name}", group, h5py)
    except ValueError:
        file.close()
        raise

    def rows() -> Iterator[Record | Rejection]:
        with file:
            for name, group in groups.items():
                yield from _group_rows(path, name, group, h5py)

    return rows()


def _groups(file: Any, h5py: Any) -> dict[str, Any]:
    """Groups with crystals in them, the file itself being one where its datasets are not grouped."""
    _check_links(file.filename, file, h5py)
    found = {name: member for name, member in file.items() if isinstance(member, h5py.Group)}
    candidates = {"/": file, **dict(sorted(found.items()))}
    return {name: group for name, group in candidates.items() if "coord" in group or "numbers" in group}


def _check_links(where: str, group: Any, h5py: Any) -> None:
    """Refuse what would read other files, which HDF5 can do behind the back of its reader."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise ValueError(
                f"{where}/{name} must be in this file, got a link to another; copy it into this one"
            )
        member = group.get(name)
        if isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
            raise ValueError(
                f"{where}/{name} must be in this file, got data of other files; copy them into this one"
            )


def _check_group(where: str, group: Any, h5py: Any) -> None:
    _check_links(where, group, h5py)
    if missing := [name for name in ("coord", "numbers") if name not in group]:
        raise ValueError(f"{where} must have the datasets coord and numbers, got none called {missing[0]}")
    shape = group["numbers"].shape
    count, num_atoms = shape if len(shape) == 2 else (-1, -1)
    if num_atoms > _MOST_ATOMS:
        raise ValueError(
            f"{where}/numbers must have at most {_MOST_ATOMS:,} atoms in a row, got {num_atoms:,}"
        )
    expected = {"numbers": (count, num_atoms), "coord": (count, num_atoms, 3), "cell": (count, 3, 3)}
    for name, wanted in expected.items():
        if name in group and (count < 0 or group[name].shape != wanted):
            text = "[row atom]" if count < 0 else str(list(wanted))
            raise ValueError(f"{where}/{name} must have the shape {text}, got {list(group[name].shape)}")
    for name, member in group.items():
        if len(getattr(member, "shape", ())) == 1 and len(member) != count:
            raise ValueError(f"{where}/{name} must have {count} rows as numbers has, got {len(member)}")


def _group_rows(path: Path, name: str, group: Any, h5py: Any) -> Iterator[Record | Rejection]:
    labels = {
        key: member
        for key, member in group.items()
        if isinstance(member, h5py.Dataset) and member.ndim == 1 and key not in _GEOMETRY
    }
    id_name = next((key for key in _ID_NAMES if key in labels), None)
    source, count = f"{path}::{name}", len(group["numbers"])
    step = max(1, min(_BLOCK, _BLOCK_ATOMS // max(1, group["numbers"].shape[1])))
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        columns = {key: _cells(member, block, h5py) for key, member in labels.items()}
        ids = columns.pop(id_name) if id_name else [None] * (block.stop - block.start)
        arrays = _arrays(group, block)
        for offset, (value, crystal) in enumerate(zip(ids, arrays, strict=True)):
            row = start + offset
            identifier = id_of(value, f"{name}/{row}")
            if isinstance(crystal, str):
                yield Rejection(source=source, row=row, id=identifier, reason=crystal)
                continue
            yield Record(
                source=source,
                row=row,
                id=identifier,
                kind=Kind.ARRAYS,
                payload=crystal,
                properties=to_properties({key: cells[offset] for key, cells in columns.items()}),
            )


def _cells(member: Any, block: slice, h5py: Any) -> list[Value]:
    is_text = h5py.check_string_dtype(member.dtype) is not None
    return (member.asstr(errors="replace")[block] if is_text else member[block]).tolist()


def _arrays(group: Any, block: slice) -> list[tuple[np.ndarray, np.ndarray, np.ndarray] | str]:
    """Atomic numbers, fractional coordinates and lattice of each row, or why it is no crystal."""
    numbers, coords = group["numbers"][block], group["coord"][block].astype(np.float64)
    if "cell" not in group:
        return ["no cell: not a periodic crystal"] * len(numbers)
    lattices = group["cell"][block].astype(np.float64)
    is_cell = np.isfinite(lattices).all((1, 2))
    is_cell[is_cell] = np.abs(np.linalg.det(lattices[is_cell])) > 1e-6
    usable = np.where(is_cell[:, None, None], lattices, np.eye(3))
    fractions = np.linalg.solve(usable.transpose(0, 2, 1), coords.transpose(0, 2, 1)).transpose(0, 2, 1)
    return [
        (numbers[k].astype(np.int64), fractions[k], lattices[k])
        if is_cell[k]
        else "absurd cell: its volume is zero or not a number"
        for k in range(len(numbers))
    ]


def write_hdf5(path: str | Path, dataset: CrystalDataset) -> None:
    """Write a dataset, atomically: one group per number of atoms, rows in the order of the dataset.

    Properties are float64 with NaN where a label is missing, categorical ones text with "" there.

    Raises:
        ValueError: without h5py, or when a property has the name of a part of the layout.
    """
    h5py = _h5py()
    crystals, text = dataset.crystals, h5py.string_dtype("utf-8")
    if clash := [name for name in crystals.properties if name in (*_GEOMETRY, *_ID_NAMES)]:
        raise ValueError(f"a property must not be called {clash[0]} in an HDF5 file; rename it")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for size in crystals.num_atoms.unique().tolist():
            index = (crystals.num_atoms == size).nonzero().flatten()
            chosen = crystals.select(index)
            group = file.create_group(f"{size:03d}")
            coords = chosen.cart_coords.double().numpy()
            group.create_dataset("coord", data=coords.reshape(-1, size, 3))
            group.create_dataset("numbers", data=chosen.atomic_numbers.int().numpy().reshape(-1, size))
            group.create_dataset("cell", data=chosen.lattice.double().numpy())
            group.create_dataset("id", data=[dataset.ids[k] for k in index.tolist()], dtype=text)
            for name, values in chosen.properties.items():
                if name in dataset.categories:
                    names = (*dataset.categories[name], "")
                    codes = values.nan_to_num(len(names) - 1).long().tolist()
                    group.create_dataset(name, data=[names[code] for code in codes], dtype=text)
                else:
                    group.create_dataset(name, data=values.double().numpy())
