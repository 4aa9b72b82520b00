"""Properties computed from the crystals of a data set: in several processes, and kept beside the crystals.

The crystals as they are stored are what they are computed from, so that they are the same whether a data set was just
read or comes from the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open

from latentite.base.processes import map_in_order
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.cache import from_bytes, save_tensors, take, to_bytes
from latentite.data.properties import derive_rows
from latentite.data.readers.records import Value

log = logging.getLogger(__name__)

FORMAT = 1
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
                if (handle.metadata() or {}).get("latentite.derived") != str(FORMAT):
                    raise ValueError(f"it must have the format {FORMAT}")
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
        save_tensors(path, {"values": to_bytes(values)}, {"latentite.derived": str(FORMAT)})
    return values


def _derive(name: str, symprec: float, crystals: list[CrystalArrays]) -> list[Value]:
    return [row[name] for row in derive_rows((name,), crystals, symprec=symprec)]
