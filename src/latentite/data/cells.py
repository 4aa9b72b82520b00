"""Cells of the columns of one source: as they stood there, or computed from its crystals; kept beside the crystals.

Cells of the source are collected while its rows come in and wait here until all splits of a data set are known;
`labels.py` then decides what each column is. Their file lies in the cache beside the crystals, so that other labels of
the same source need no crystal to be parsed again. Computed cells are those of the crystals as they are stored, so that
they are the same whether a data set was just read or comes from the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from latentite.base.machine import map_in_order
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import from_bytes, save_tensors, take, to_bytes
from latentite.data.properties import derive_rows
from latentite.data.readers.records import Record, Value

log = logging.getLogger(__name__)

CELLS_FORMAT = 1
"""Of the file; raised whenever it says something else."""

_CELLS, _NAMES, _SOURCES, _ROWS, _SOURCE_INDEX = "cells.", "names", "sources", "rows", "source_index"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawLabels:
    """Cells of the accepted crystals of one source."""

    names: tuple[str, ...]
    """Of all columns that the source has, in its order."""
    columns: Mapping[str, Sequence[Value]]
    """Cells by name: of all columns, or of those that were asked for."""
    sources: tuple[str, ...]
    """Names of the files (or members of one) that the crystals are from."""
    source_index: np.ndarray
    """[crystal] position in `sources`."""
    rows: np.ndarray
    """[crystal] position within that, from 0."""

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, position: int) -> str:
        """File and row of a crystal, for messages."""
        source = self.sources[int(self.source_index[position])]
        return f"row {int(self.rows[position])} of {Path(source).name or source}"


class LabelCollector:
    """Collects the properties of accepted rows, one by one."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Value]] = {}
        self._sources: dict[str, int] = {}
        self._source_index: list[int] = []
        self._rows: list[int] = []

    def add(self, record: Record) -> None:
        """The labels of the next crystal; a name that it lacks is a missing label."""
        count = len(self._rows)
        for name, value in record.properties.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = []
            if len(column) < count:
                column.extend([None] * (count - len(column)))
            column.append(value)
        self._source_index.append(self._sources.setdefault(record.source, len(self._sources)))
        self._rows.append(record.row)

    def finish(self) -> RawLabels:
        """All of them, every column as long as there are crystals."""
        for column in self._columns.values():
            column.extend([None] * (len(self._rows) - len(column)))
        return RawLabels(
            names=tuple(self._columns),
            columns=self._columns,
            sources=tuple(self._sources),
            source_index=np.array(self._source_index, dtype=np.int64),
            rows=np.array(self._rows, dtype=np.int64),
        )


def write_cells(path: Path, labels: RawLabels) -> None:
    """Write all cells as one file, atomically."""
    tensors = {
        _NAMES: to_bytes(labels.names),
        _SOURCES: to_bytes(labels.sources),
        _ROWS: torch.from_numpy(labels.rows),
        _SOURCE_INDEX: torch.from_numpy(labels.source_index),
    } | {f"{_CELLS}{position}": to_bytes(labels.columns[name]) for position, name in enumerate(labels.names)}
    save_tensors(path, tensors, {"latentite.labels": str(CELLS_FORMAT)})


def read_cells(path: Path, wanted: Collection[str] | None = None) -> RawLabels:
    """The cells of a file of `write_cells`; what is not wanted is not read.

    Args:
        path: of the file.
        wanted: names of columns; None for all.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is another or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"labels were expected at {path}, and there is no such file")
    try:
        with safe_open(path, framework="pt") as handle:
            if (handle.metadata() or {}).get("latentite.labels") != str(CELLS_FORMAT):
                raise ValueError(f"it must have the format {CELLS_FORMAT}")
            names = from_bytes(take(handle, _NAMES))
            labels = RawLabels(
                names=tuple(names),
                columns={
                    name: from_bytes(take(handle, f"{_CELLS}{position}"))
                    for position, name in enumerate(names)
                    if wanted is None or name in wanted
                },
                sources=tuple(from_bytes(take(handle, _SOURCES))),
                source_index=take(handle, _SOURCE_INDEX).numpy(),
                rows=take(handle, _ROWS).numpy(),
            )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a whole file of labels, got another: {error}") from error
    return labels


# ---------------------------------------------------------------------------------- computed cells


DERIVED_FORMAT = 1
"""Of the file; raised whenever a property is computed in another way."""
_CHUNK = 256


def derived_columns(
    names: Sequence[str],
    crystals: CrystalBatch,
    *,
    symprec: float,
    workers: int | None,
    near: Path | None,
) -> dict[str, list[Value]]:
    """Computed properties by name; see `derived_values`.

    Args:
        names: of `properties.DERIVED`.
        crystals: as they are stored.
        symprec: Å; tolerance of the space group.
        workers: processes; None for all cores.
        near: file of the crystals in the cache, in whose neighbourhood the values are kept; None: they are not.
    """
    columns = {}
    for name in names:
        path = near and near.parent.with_name("derived") / f"{near.stem}-{name}-{symprec!r}.safetensors"
        columns[name] = derived_values(name, crystals, symprec=symprec, workers=workers, path=path)
    return columns


def derived_values(
    name: str, crystals: CrystalBatch, *, symprec: float, workers: int | None, path: Path | None
) -> list[Value]:
    """One computed property of every crystal: numbers (NaN where there is none) or names.

    Args:
        name: one of `properties.DERIVED`.
        crystals: as they are stored.
        symprec: Å; tolerance of the space group.
        workers: processes; None for all cores.
        path: where the values are kept; a damaged file is made again. None: they are not.

    Raises:
        ValueError: for an unknown name, with near ones suggested.
    """
    if path is not None and path.is_file():
        try:
            with safe_open(path, framework="pt") as handle:
                if (handle.metadata() or {}).get("latentite.derived") != str(DERIVED_FORMAT):
                    raise ValueError(f"it must have the format {DERIVED_FORMAT}")
                values = from_bytes(take(handle, "values"))
            if len(values) != len(crystals):
                raise ValueError(f"it must have {len(crystals)} values, got {len(values)}")
            return values
        except (SafetensorError, ValueError) as error:
            log.warning("%s in the cache is damaged and is made again: %s", path, error)
    rows = crystals.to_arrays()
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)] or [[]]
    parts = map_in_order(partial(_derive, name, symprec), chunks, workers=workers)
    values = [value for part in parts for value in part]
    if path is not None:
        save_tensors(path, {"values": to_bytes(values)}, {"latentite.derived": str(DERIVED_FORMAT)})
    return values


def _derive(name: str, symprec: float, crystals: list[CrystalArrays]) -> list[Value]:
    return [row[name] for row in derive_rows((name,), crystals, symprec=symprec)]
