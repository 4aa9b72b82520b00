"""Which formats there are, and how many inputs each of them gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fuzz import checkpoint_cases, cif_cases, container_cases, label_cases, table_cases
from fuzz.case import Case, Maker, chance_of

FORMATS: dict[str, tuple[Maker, int]] = {
    "cif": (cif_cases.make, 30),
    "poscar": (table_cases.make_poscar, 12),
    "extxyz": (table_cases.make_extxyz, 10),
    "csv": (table_cases.make_csv, 10),
    "json": (table_cases.make_json, 10),
    "hdf5": (container_cases.make_hdf5, 12),
    "parquet": (container_cases.make_parquet, 4),
    "ase": (container_cases.make_ase, 6),
    "zip": (container_cases.make_archive, 5),
    "folder": (container_cases.make_folder, 3),
    "labels": (label_cases.make_labels, 6),
    "checkpoint": (checkpoint_cases.make, 20),
}
"""By name: what makes a case, and its share of the inputs."""


def cases(count: int, *, seed: int, formats: Sequence[str] | None = None, first: int = 0) -> Iterator[Case]:
    """About `count` cases, the formats after one another in their shares."""
    chosen = list(formats or FORMATS)
    total = sum(FORMATS[name][1] for name in chosen)
    for name in chosen:
        maker, share = FORMATS[name]
        for index in range(first, first + max(1, round(count * share / total))):
            yield maker(index, chance_of(seed, name, index))
