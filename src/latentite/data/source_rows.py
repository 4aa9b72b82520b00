"""Crystals of one source, the cells of its columns and its rejected rows; read, or taken from the cache.

Crystals and cells lie in files of their own, under a name that changes with all that they depend on: other labels of
the same source need no crystal to be parsed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentite.base.progress import progress_bar
from latentite.crystal import CrystalBatch
from latentite.data.canonical import CANONICAL_VERSION
from latentite.data.cells import CELLS_FORMAT, LabelCollector, RawLabels, read_cells, write_cells
from latentite.data.dataset import (
    FORMAT,
    CrystalDataset,
    content_hash,
    read_dataset,
    read_rejections,
    write_dataset,
)
from latentite.data.labels import unique_ids
from latentite.data.options import BuildOptions
from latentite.data.pack import Packed, pack
from latentite.data.readers.opening import fingerprint, open_records
from latentite.data.readers.records import Rejection, Source, name_of
from latentite.data.readers.rows import pair, walk

log = logging.getLogger(__name__)

READER_VERSION = 5
"""Raised whenever the same source gives other rows or labels; caches of another version are rebuilt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRows:
    """Content of one source, before its columns are decided on."""

    crystals: CrystalDataset
    """Without labels."""
    labels: RawLabels
    rejections: tuple[Rejection, ...]


def cache_key(source: Source, options: BuildOptions) -> str:
    """sha256 over all that the crystals depend on: the content of the source, the versions of reader and canonical
    form, and the limits; which labels are wanted does not matter."""
    parts = {
        "content": fingerprint(source),
        "canonical": CANONICAL_VERSION if options.canonical else None,
        "reader": READER_VERSION,
        "format": [FORMAT, CELLS_FORMAT],
        "limits": asdict(options.limits),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_rows(
    source: Source,
    options: BuildOptions,
    workers: int | None,
    progress: bool,
    *,
    path: Path | None,
    wanted: Collection[str] | None,
) -> SourceRows:
    """Content of a source, from the cache, or read and kept there. A damaged file of the cache is made again."""
    if path is None:
        return _build(source, options, workers, progress)
    cells_path = path.parent.with_name("labels") / path.name
    if path.is_file() and cells_path.is_file():
        try:
            crystals, labels = read_dataset(path), read_cells(cells_path, wanted)
            if len(crystals) != len(labels):
                raise ValueError(
                    f"{cells_path} must have labels of {len(crystals)} crystals, got {len(labels)}"
                )
            rejections = tuple(read_rejections(path))
            return SourceRows(crystals=crystals, labels=labels, rejections=rejections)
        except ValueError as error:
            log.warning("a file of the cache is damaged and is made again: %s", error)
    rows = _build(source, options, workers, progress)
    write_cells(cells_path, rows.labels)
    write_dataset(path, rows.crystals, rejections=rows.rejections, notes=build_notes(options))
    return rows


def build_notes(options: BuildOptions) -> dict[str, str]:
    """Header of a dataset file: how it was made."""
    return {"canonical_version": str(CANONICAL_VERSION), "options": json.dumps(asdict(options))}


def _build(
    source: Source,
    options: BuildOptions,
    workers: int | None,
    progress: bool,
) -> SourceRows:
    work = partial(pack, limits=options.limits, canonical=options.canonical)
    chunks: list[Packed] = []
    ids: list[str] = []
    rejections: list[Rejection] = []
    labels = LabelCollector()
    num_in = 0
    description = name_of(source)
    with progress_bar(f"reading {Path(description).name}", unit="rows", enabled=progress) as bar:
        for chunk, packed in walk(open_records(source), work, workers=workers, on_chunk=bar.advance):
            num_in += len(chunk)
            chunks.append(packed)
            for item in pair(chunk, packed.outcomes):
                if isinstance(item, Rejection):
                    rejections.append(item)
                else:
                    record, _ = item
                    ids.append(record.id)
                    labels.add(record)
    assert num_in == len(ids) + len(rejections), (num_in, len(ids), len(rejections))
    crystals = CrystalBatch(
        atomic_numbers=_join(chunks, "atomic_numbers"),
        frac_coords=_join(chunks, "frac_coords"),
        lattice=_join(chunks, "lattice"),
        num_atoms=_join(chunks, "num_atoms"),
    )
    unique = unique_ids(ids)
    digest = content_hash(crystals, unique, {})
    dataset = CrystalDataset(crystals=crystals, ids=tuple(unique), content_hash=digest)
    log.info("%s: %d in = %d accepted + %d rejected", description, num_in, len(dataset), len(rejections))
    return SourceRows(crystals=dataset, labels=labels.finish(), rejections=tuple(rejections))


def _join(chunks: Sequence[Packed], name: str) -> Tensor:
    if not chunks:
        empty = {"frac_coords": (0, 3), "lattice": (0, 3, 3)}.get(name)
        return torch.zeros(empty) if empty else torch.zeros(0, dtype=torch.long)
    return torch.from_numpy(np.concatenate([getattr(chunk, name) for chunk in chunks]))
