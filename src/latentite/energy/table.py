"""A table of crystals with formation energies, and the hull that it gives.

    table = find_table("mp_20")  # or CSV files, or a folder of splits
    hull = table_hull(table)
    references = table_references(table, RelaxHow(potential="chgnet"))  # of `reference_fit.py`

What is made of a table is kept in the cache under its content. Comes after `hull_sources.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from latentite.crystal import CrystalBatch
from latentite.data.build import split_files
from latentite.data.cache import read_dataset
from latentite.data.checks import Limits
from latentite.data.sources import DATASETS, splits_folder
from latentite.data.table import Rejection, read
from latentite.energy.hull import Hull
from latentite.energy.hull_sources import ABOVE_HULL, hull_from_crystals
from latentite.energy.parallel import double_batch
from latentite.energy.potential import TheoryLevel
from latentite.files import cache_dir, sha256_file

log = logging.getLogger(__name__)

FORMAT = 1
"""Of what is kept; raised whenever the same table gives something else."""
FORMATION_ENERGY = "formation_energy_per_atom"
MATERIALS_PROJECT = TheoryLevel(functional="PBE(+U)", is_corrected=True)
"""Of the formation energies of the Materials Project and of what follows it."""
THEORY = dict.fromkeys(
    ("mp_20", "mp_20_biternary", "mpts_52", "mp_120", "alex_mp_20", "alex_mp_20_bandgap"), MATERIALS_PROJECT
)
"""Level of theory of the data sets whose level is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyTable:
    """Files of crystals with formation energies."""

    name: str
    files: tuple[Path, ...]
    theory: TheoryLevel | None
    sha256: str
    """Of the content of all files."""


def find_table(
    source: str | Path | Sequence[str | Path],
    *,
    theory: TheoryLevel | None = None,
    data_dir: str | Path | None = None,
) -> EnergyTable:
    """The table of a name or path, with every split that there is: missing phases make things look stable.

    Args:
        source: name of a data set, a folder of splits, a file that the readers know, or several of these.
        theory: level of the formation energies; known for the data sets of `THEORY` by name.
        data_dir: folder with the splits of `source`, or with a folder of that name; `source` is then a label only,
            as in a stage's `data.data_dir`. None: named ones are looked for.

    Raises:
        FileNotFoundError: when there is no such path and no data set of that name.
        ValueError: when a data set's level of theory is another than the one given, or there are two.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    files: list[Path] = []
    theories = {theory} - {None}
    for item in sources:
        path = Path(item)
        is_label = data_dir is not None
        if is_label or (not path.exists() and str(item) in DATASETS):
            path = splits_folder(str(item), Path(data_dir).expanduser() if data_dir is not None else None)
            theories |= {THEORY.get(str(item))} - {None}
        if not path.exists():
            raise FileNotFoundError(f"a table of energies was expected at {path}, and there is nothing")
        files += list(split_files(path).values()) if path.is_dir() else [path]
        if path.is_dir() and not split_files(path):
            raise FileNotFoundError(f"{path} must hold splits such as train.csv, and holds none")
    if len(theories) > 1:
        raise ValueError(
            f"a table must be of one level of theory, got {' and '.join(sorted(map(str, theories)))}"
        )
    digest = hashlib.sha256(json.dumps([sha256_file(path) for path in files]).encode()).hexdigest()
    return EnergyTable(
        name=", ".join(map(str, sources)),
        files=tuple(files),
        theory=next(iter(theories), None),
        sha256=digest,
    )


@lru_cache(maxsize=1)
def read_rows(table: EnergyTable) -> CrystalBatch:
    """Crystals in float64 with `formation_energy_per_atom` and `energy_above_hull` (eV/atom, NaN where missing).

    Raises:
        ValueError: naming a file that has no formation energies.
    """
    parts: list[CrystalBatch] = []
    for path in table.files:
        part = _of_dataset(path) if path.suffix == ".safetensors" else _of_rows(path)
        if part.properties[FORMATION_ENERGY].isnan().all():
            raise ValueError(
                f"{path} must have a column {FORMATION_ENERGY!r} (eV/atom), and has no number in it"
            )
        parts.append(part)
    return CrystalBatch.concatenate(parts)


def table_hull(table: EnergyTable) -> Hull:
    """The hull of a table, made once; see `hull_sources.hull_from_crystals`."""
    path = kept_path("hull", {"table": table.sha256, "theory": str(table.theory)})
    if path.is_file():
        try:
            return Hull.read(path)
        except ValueError as error:
            log.warning("a hull in the cache is damaged and is made again: %s", error)
    hull = hull_from_crystals(read_rows(table), theory=table.theory)
    hull.write(path)
    return hull


def kept_path(name: str, key: Mapping[str, Any]) -> Path:
    """Where the cache keeps something that depends on nothing but the plain values of `key`."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
    return cache_dir() / "energy" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _of_rows(path: Path) -> CrystalBatch:
    arrays, heights, energies = [], [], []
    num_rejected = 0
    for row in read(path, limits=Limits(max_atoms=None)):
        if isinstance(row, Rejection):
            num_rejected += 1
            continue
        arrays.append((row.atomic_numbers, row.frac_coords, row.lattice))
        energies.append(_number(row.properties.get(FORMATION_ENERGY)))
        heights.append(_number(row.properties.get(ABOVE_HULL[0])))
    if num_rejected:
        log.warning(
            "%d of %d rows of %s are no crystals and do not enter",
            num_rejected,
            num_rejected + len(arrays),
            path,
        )
    return double_batch(arrays).with_properties(
        {
            FORMATION_ENERGY: torch.tensor(energies, dtype=torch.float64),
            ABOVE_HULL[0]: torch.tensor(heights, dtype=torch.float64),
        }
    )


def _of_dataset(path: Path) -> CrystalBatch:
    crystals = read_dataset(path).crystals
    missing = torch.full((len(crystals),), torch.nan)
    return double_batch(crystals.to_arrays()).with_properties(
        {name: crystals.properties.get(name, missing).double() for name in (FORMATION_ENERGY, ABOVE_HULL[0])}
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
