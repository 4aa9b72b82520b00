"""HDF5 files grouped by number of atoms, as potentials are trained on: read as a source, written from a dataset.

    /028/coord    [row 28 3]  Å, Cartesian
    /028/numbers  [row 28]    atomic numbers
    /028/cell     [row 3 3]   Å, row vectors
    /028/energy   [row]       and any other dataset of one number or text per row: a property
    /028/id       [row]       text, optional (or material_id)

Datasets of other shapes (`forces` [row 28 3], ...) are no labels of a crystal and are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentite.base.files import replacing
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.records import (
    PayloadKind,
    Record,
    Rejection,
    Value,
    id_of,
    refuse_two_names,
    to_properties,
)

if TYPE_CHECKING:
    from latentite.data.dataset import CrystalDataset

_BLOCK = 1024
"""Rows read at once; more where the file's chunks have more, as a chunk is unpacked whole each time."""
_LARGEST_CHUNK = 1 << 28
"""Bytes of a chunk once it is unpacked; a small file can declare any."""
_LARGEST_NUMBER = 1e6
"""Beyond any atomic number, so that what is no such number is told from what is one of no element."""
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
        groups = _groups(file, path, h5py)
        if not groups:
            raise ValueError(
                f"{path} must have groups with the datasets coord and numbers, got "
                f"{', '.join(map(str, file)) or 'an empty file'}"
            )
        for name, group in groups.items():
            _check_group(f"{path}::{name}", group, h5py)
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for a damaged table of contents
        file.close()
        raise _damaged(path, error) from error
    except ValueError:
        file.close()
        raise

    def rows() -> Iterator[Record | Rejection]:
        with file:
            for name, group in groups.items():
                try:
                    yield from _group_rows(path, name, group, h5py)
                except (OSError, RuntimeError) as error:  # numbers that are damaged
                    raise _damaged(f"{path}::{name}", error) from error

    return rows()


def _damaged(where: Path | str, error: Exception) -> ValueError:
    return ValueError(f"{where} must be a whole HDF5 file, got a damaged one ({error}); copy it again")


def _members(group: Any, where: str, h5py: Any) -> dict[str, Any]:
    """Members of a group by name. A link may lead into another file or nowhere, so none is followed."""
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(
                f"{where}/{name} must be data of the file itself, got a link to {link.path}; copy it in"
            )
    return dict(group.items())


def _groups(file: Any, path: Path, h5py: Any) -> dict[str, dict[str, Any]]:
    """Members of the groups with crystals in them, the file itself being one where its datasets are not grouped."""
    top = _members(file, str(path), h5py)
    with_crystals = {"/": top} if _has_crystals(top) else {}
    for name, member in sorted(top.items()):
        if isinstance(member, h5py.Group) and _has_crystals(member):
            with_crystals[name] = _members(member, f"{path}::{name}", h5py)
    return with_crystals


def _has_crystals(names: Iterable[str]) -> bool:
    return not {"coord", "numbers"}.isdisjoint(names)


def _check_group(where: str, group: Mapping[str, Any], h5py: Any) -> None:
    if missing := [name for name in ("coord", "numbers") if name not in group]:
        raise ValueError(f"{where} must have the datasets coord and numbers, got none called {missing[0]}")
    datasets = {name: member for name, member in group.items() if isinstance(member, h5py.Dataset)}
    for name in _GEOMETRY:
        if name in group and (name not in datasets or datasets[name].dtype.kind not in "iuf"):
            raise ValueError(f"{where}/{name} must be a dataset of numbers, got {_kind(group[name])}")
    shape = datasets["numbers"].shape
    count, num_atoms = shape if shape is not None and len(shape) == 2 else (-1, -1)
    expected = {"numbers": (count, num_atoms), "coord": (count, num_atoms, 3), "cell": (count, 3, 3)}
    for name, wanted in expected.items():
        if name in datasets and (count < 0 or datasets[name].shape != wanted):
            text = "[row atom]" if count < 0 else str(list(wanted))
            raise ValueError(
                f"{where}/{name} must have the shape {text}, got {list(datasets[name].shape or ())}"
            )
    for name, member in datasets.items():
        if len(member.shape or ()) == 1 and len(member) != count:
            raise ValueError(f"{where}/{name} must have {count} rows as numbers has, got {len(member)}")
        if name in _GEOMETRY or _is_label(member, h5py):
            _check_stored(f"{where}/{name}", member)


def _kind(member: Any) -> str:
    return f"a dataset of {member.dtype}" if hasattr(member, "dtype") else "a group"


def _check_stored(where: str, dataset: Any) -> None:
    """Refuses numbers that stand in another file or were never written, which HDF5 would read as zeros."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(
            f"{where} must hold its numbers itself, got a dataset that reads them from another file"
        )
    if dataset.chunks is None:
        is_whole = dataset.size == 0 or dataset.id.get_storage_size() > 0
    else:
        pairs = zip(dataset.shape, dataset.chunks, strict=True)
        is_whole = dataset.id.get_num_chunks() == math.prod(-(-size // step) for size, step in pairs)
        chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk_bytes > _LARGEST_CHUNK:
            raise ValueError(
                f"{where} must have chunks of at most {_LARGEST_CHUNK} bytes, got {chunk_bytes}; write smaller ones"
            )
    if not is_whole:
        raise ValueError(
            f"{where} declares {dataset.size} values that were not all written; write the file again"
        )


def _is_label(member: Any, h5py: Any) -> bool:
    """True where a member is one number or text per row; anything else is no label of a crystal."""
    if not isinstance(member, h5py.Dataset) or member.ndim != 1:
        return False
    return member.dtype.kind in "biuf" or h5py.check_string_dtype(member.dtype) is not None


def _group_rows(path: Path, name: str, group: Mapping[str, Any], h5py: Any) -> Iterator[Record | Rejection]:
    labels = {
        key: member for key, member in group.items() if key not in _GEOMETRY and _is_label(member, h5py)
    }
    id_name = next((key for key in _ID_NAMES if key in labels), None)
    source, count = f"{path}::{name}", len(group["numbers"])
    refuse_two_names(labels, source)
    read = [*labels.values(), *(group[key] for key in _GEOMETRY if key in group)]
    row_bytes = sum(member.dtype.itemsize * math.prod(member.shape[1:]) for member in read)
    longest = max([_BLOCK, *(member.chunks[0] for member in read if member.chunks)])
    step = max(_BLOCK, min(longest, _LARGEST_CHUNK // max(row_bytes, 1)))
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
                kind=PayloadKind.ARRAYS,
                payload=crystal,
                properties=to_properties({key: cells[offset] for key, cells in columns.items()}),
            )


def _cells(member: Any, block: slice, h5py: Any) -> list[Value]:
    is_text = h5py.check_string_dtype(member.dtype) is not None
    return (member.asstr(errors="replace")[block] if is_text else member[block]).tolist()


def _arrays(group: Mapping[str, Any], block: slice) -> list[CrystalArrays | str]:
    """Each row, or why it is no crystal."""
    numbers, coords = group["numbers"][block].astype(np.float64), group["coord"][block].astype(np.float64)
    is_whole = ((numbers == np.floor(numbers)) & (np.abs(numbers) < _LARGEST_NUMBER)).all(1)
    if "cell" not in group:
        return ["no cell: not a periodic crystal"] * len(numbers)
    lattices = group["cell"][block].astype(np.float64)
    is_cell = np.isfinite(lattices).all((1, 2))
    is_cell[is_cell] = np.abs(np.linalg.det(lattices[is_cell])) > 1e-6
    usable = np.where(is_cell[:, None, None], lattices, np.eye(3))
    fractions = np.linalg.solve(usable.transpose(0, 2, 1), coords.transpose(0, 2, 1)).transpose(0, 2, 1)
    return [
        "absurd cell: its volume is zero or not a number"
        if not is_cell[k]
        else CrystalArrays(numbers[k].astype(np.int64), fractions[k], lattices[k])
        if is_whole[k]
        else "atomic numbers that are no whole numbers"
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
