"""What is evaluated, and what it is held against: any source to crystals as they are, nothing cleaned away.

Unlike a dataset, an evaluation must see overlapping atoms and collapsed cells; so the limits are open, and only
what is no crystal at all becomes a failure. Comes after `data/`, before `run.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentite.crystal import CrystalBatch
from latentite.data.build import split_files
from latentite.data.cache import read_dataset, read_rejections
from latentite.data.checks import Limits, refusals
from latentite.data.cif import Arrays
from latentite.data.labels import unique_ids
from latentite.data.records import Rejection
from latentite.data.sources import DATASETS, resolve
from latentite.data.table import Row, read

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

OPEN_LIMITS = Limits(max_atoms=None, min_distance=0.0, min_volume_per_atom=0.0, max_volume_per_atom=math.inf)
"""Lets through every cell with a volume and finite coordinates."""

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crystals:
    """Crystals of a source as they stand there, and the rows that are none."""

    name: str
    ids: tuple[str, ...]
    """Unique: a repeated id gets a number."""
    sources: tuple[str, ...]
    rows: tuple[int, ...]
    """Position of each within its source, from 0."""
    arrays: tuple[Arrays, ...]
    rejections: tuple[Rejection, ...]
    content_hash: str
    """sha256 of ids and arrays."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_in(self) -> int:
        """Rows of the source: crystals + rejections."""
        return len(self.ids) + len(self.rejections)


def read_crystals(
    source: str | Path | Sequence[Structure | Atoms] | CrystalBatch,
    *,
    split: str,
    advance: Callable[[int], None] = lambda count: None,
) -> Crystals:
    """All crystals of a source.

    Args:
        source: a file or folder that the readers know, a folder of splits, the name of a dataset, pymatgen
            structures, ASE atoms or a `CrystalBatch`.
        split: which split of a folder of splits or a named dataset: train, val, test or all.
        advance: told how many more rows are read.

    Raises:
        FileNotFoundError: when there is no such path and no dataset of that name.
        ValueError: when the source as a whole cannot be used, or has no such split.
    """
    if isinstance(source, CrystalBatch):
        rows = _rows_of_batch("memory", source, None)
        reasons = refusals([(row.atomic_numbers, row.frac_coords, row.lattice) for row in rows], OPEN_LIMITS)
        refused = [
            Rejection(source=row.source, row=row.row, id=row.id, reason=reason)
            for row, reason in zip(rows, reasons, strict=True)
            if reason is not None
        ]
        kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        return _pack("crystals in memory", kept, refused)
    if not isinstance(source, (str, Path)):
        return _collect("structures in memory", [source], advance)
    path = Path(source)
    if not path.exists() and str(source) in DATASETS:
        path = resolve(str(source))
    if not path.is_dir() or not (files := split_files(path)):
        return _collect(str(source), [path], advance)
    if split not in SPLITS:
        raise ValueError(f"the split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split != "all" and split not in files:
        raise ValueError(f"{path} must have a {split} split, got {', '.join(files)}; name one of these")
    chosen = list(files.values()) if split == "all" else [files[split]]
    return _collect(f"{source} ({split})", chosen, advance)


def _collect(
    name: str, sources: Sequence[Path | Sequence[Structure | Atoms]], advance: Callable[[int], None]
) -> Crystals:
    rows: list[Row] = []
    rejections: list[Rejection] = []
    for source in sources:
        if isinstance(source, Path) and source.suffix == ".safetensors":
            dataset = read_dataset(source)
            rows += _rows_of_batch(source.name, dataset.crystals, dataset.ids)
            rejections += read_rejections(source)
            advance(len(dataset))
            continue
        for item in read(source, limits=OPEN_LIMITS):
            if isinstance(item, Rejection):
                rejections.append(item)
            else:
                rows.append(item)
            advance(1)
    return _pack(name, rows, rejections)


def _rows_of_batch(source: str, crystals: CrystalBatch, ids: Sequence[str] | None) -> list[Row]:
    return [
        Row(
            source=source,
            row=position,
            id=str(position) if ids is None else ids[position],
            atomic_numbers=numbers,
            frac_coords=coords,
            lattice=lattice,
        )
        for position, (numbers, coords, lattice) in enumerate(crystals.to_arrays())
    ]


def _pack(name: str, rows: Sequence[Row], rejections: Sequence[Rejection]) -> Crystals:
    ids = tuple(unique_ids([row.id for row in rows]))
    arrays = tuple((row.atomic_numbers, row.frac_coords, row.lattice) for row in rows)
    digest = hashlib.sha256()
    for identifier, crystal in zip(ids, arrays, strict=True):
        digest.update(f"{identifier}\0{len(crystal[0])}\0".encode())
        for array in crystal:
            digest.update(array.tobytes())
    return Crystals(
        name=name,
        ids=ids,
        sources=tuple(row.source for row in rows),
        rows=tuple(row.row for row in rows),
        arrays=arrays,
        rejections=tuple(rejections),
        content_hash=digest.hexdigest(),
    )
