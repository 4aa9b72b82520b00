"""Options of `latentite data build`, without torch: how rows become a dataset, and how that is divided."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentite.base.options import option
from latentite.base.plain import NOT_TYPED
from latentite.data.readers.checks import Limits

DEFAULT_FRACTIONS: Mapping[str, float] = types.MappingProxyType({"train": 0.8, "val": 0.1, "test": 0.1})


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """Settings of the step from rows to a dataset; limits and form are part of the names of its caches."""

    limits: Limits = field(default_factory=Limits, metadata=NOT_TYPED)
    properties: tuple[str, ...] | None = field(default=None, metadata=option(flag="--property"))
    """Column to keep, one of text as names; repeatable [every column of numbers]."""
    if_present: tuple[str, ...] = field(default=(), metadata=NOT_TYPED)
    """Columns to keep where the source has them, as if they were named in `properties`."""
    derived: tuple[str, ...] = field(default=(), metadata=option(flag="--derive"))
    """Property to compute from the structures, such as density; repeatable."""
    categorical: tuple[str, ...] = ()
    """Column to keep as names, whatever its cells look like; repeatable."""
    canonical: bool = field(default=True, metadata=option(flag="--as-is"))
    """Keep cell, origin and order of atoms of the source.

    True brings every crystal to the canonical form instead."""
    symprec: float = field(default=0.1, metadata=option("Å"))
    """Tolerance of space groups that are derived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetOptions:
    """Settings of the division into train, val and test, and the place of the labels."""

    fractions: Mapping[str, float] = field(default_factory=lambda: DEFAULT_FRACTIONS, metadata=NOT_TYPED)
    """Share of the crystals for each split; one that is left out is 0."""
    group_by: str = field(default="formula", metadata=option("WHAT"))
    """Key of the groups that stay together in one split: formula, none or a property."""
    seed: int = 0
    """Draws the splits."""
    labels: str | Path | None = field(default=None, metadata=option("FILE"))
    """Table (CSV, Parquet) of labels that are joined by id or file name [id_prop.csv in the folder, if any]."""
    id_column: str | None = field(default=None, metadata=option("COLUMN", flag="--id"))
    """Column of ids in the table of --labels [material_id or id]."""
    workers: int | None = None
    """Processes; they do not change the result [all cores]."""
