"""A table of crystals with formation energies, and what is made of it: its hull and a potential's element references.

    table = find_table("mp_20")  # or CSV files, or a folder of splits
    hull = table_hull(table)
    references = table_references(table, RelaxHow(potential="chgnet"))

Both cost seconds to minutes, so they lie in the cache under the content of the table (and the identity of the
potential).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from latentite.base.files import cache_dir, parse_json, sha256_file, write_json
from latentite.base.plain import from_plain
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import read_dataset, read_rejections
from latentite.data.labels import require_numbers
from latentite.data.readers.checks import Limits
from latentite.data.readers.records import Rejection, Value
from latentite.data.readers.rows import read
from latentite.data.sources import DATASETS, split_files, splits_folder
from latentite.elements import NUM_ELEMENTS
from latentite.energy.hull import ABOVE_HULL, Hull, hull_from_crystals, read_energies
from latentite.energy.parallel import RelaxHow, double_batch, relax_many
from latentite.energy.potential import TheoryLevel
from latentite.energy.references import ElementReferences, ReferenceTerms, check_same_theory, fit_references
from latentite.energy.settings import RelaxCell, RelaxSettings

log = logging.getLogger(__name__)

FORMAT = 2
"""Of what is kept; raised whenever the same table gives something else."""
FORMATION_ENERGY = "formation_energy_per_atom"
_PROPERTIES = (FORMATION_ENERGY, ABOVE_HULL[0])
MATERIALS_PROJECT = TheoryLevel(functional="PBE(+U)", is_corrected=True)
"""Of the formation energies of the Materials Project and of what follows it."""
THEORY = dict.fromkeys(
    ("mp_20", "mp_20_biternary", "mp_mix", "mpts_52", "mp_120", "alex_mp_20", "alex_mp_20_bandgap"),
    MATERIALS_PROJECT,
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


class NoEnergiesError(ValueError):
    """A table without formation energies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingPhases:
    """Rows of a table that are no phase of its hull: with fewer phases everything looks more stable than it is."""

    num_rows: int
    without_energy: int
    """Crystals whose formation energy is missing."""
    unreadable: int
    """Rows that are no crystals."""

    @property
    def total(self) -> int:
        """Of both kinds."""
        return self.without_energy + self.unreadable

    def __str__(self) -> str:
        return (
            f"{self.total:,} of {self.num_rows:,} phases are missing from the hull ({self.without_energy:,} "
            f"without a formation energy, {self.unreadable:,} unreadable); fewer phases make everything look stable"
        )


@lru_cache(maxsize=1)
def read_rows(table: EnergyTable) -> CrystalBatch:
    """Crystals in float64 with `formation_energy_per_atom` and `energy_above_hull` (eV/atom, NaN where missing).

    Raises:
        NoEnergiesError: naming a file that has no formation energies.
        ValueError: naming the first energy that is no number.
    """
    return _read_table(table)[0]


def missing_phases(table: EnergyTable) -> MissingPhases:
    """Number of rows of a table that its hull lacks; counted once and kept."""
    path = kept_path("missing", {"table": table.sha256})
    if path.is_file():
        try:
            return from_plain(MissingPhases, parse_json(path.read_text(encoding="utf-8")))
        except ValueError as error:
            log.warning("a count in the cache is damaged and is made again: %s", error)
    missing = _read_table(table)[1]
    write_json(path, asdict(missing))
    return missing


def table_hull(table: EnergyTable) -> Hull:
    """The hull of a table, made once, saying how many phases it lacks; see `hull_from_crystals`."""
    if (missing := missing_phases(table)).total:
        log.warning("%s: %s", table.name, missing)
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
    """Path in the cache of something that depends on nothing but the plain values of `key`."""
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
    return cache_dir() / "energy" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """Rows of one file, their energies not yet read."""

    crystals: list[CrystalArrays]
    cells: dict[str, list[Value]]
    """By property."""
    places: list[str]
    unreadable: int


@lru_cache(maxsize=1)
def _read_table(table: EnergyTable) -> tuple[CrystalBatch, MissingPhases]:
    """Crystals with their energies; the kind of a column is decided once for all files of the table."""
    files = [_of_dataset(path) if path.suffix == ".safetensors" else _of_rows(path) for path in table.files]
    places = [place for file in files for place in file.places]
    labels = {}
    for name in _PROPERTIES:
        cells = [cell for file in files for cell in file.cells[name]]
        labels[name] = torch.from_numpy(read_energies(cells, name, where=places.__getitem__))
    known, start = ~labels[FORMATION_ENERGY].isnan(), 0
    for path, file in zip(table.files, files, strict=True):
        if not known[start : start + len(file.places)].any():
            raise NoEnergiesError(
                f"{path} must have a column {FORMATION_ENERGY!r} (eV/atom), and has no number in it"
            )
        start += len(file.places)
    unreadable = sum(file.unreadable for file in files)
    missing = MissingPhases(
        num_rows=len(places) + unreadable, without_energy=int((~known).sum()), unreadable=unreadable
    )
    return double_batch([crystal for file in files for crystal in file.crystals]).with_properties(
        labels
    ), missing


def _of_rows(path: Path) -> _File:
    crystals: list[CrystalArrays] = []
    cells: dict[str, list[Value]] = {name: [] for name in _PROPERTIES}
    places: list[str] = []
    unreadable = 0
    for row in read(path, limits=Limits(max_atoms=None)):
        if isinstance(row, Rejection):
            unreadable += 1
            continue
        crystals.append(CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice))
        places.append(f"row {row.row} of {Path(row.source).name or path.name} (id {row.id})")
        for name, column in cells.items():
            column.append(row.properties.get(name))
    return _File(crystals=crystals, cells=cells, places=places, unreadable=unreadable)


def _of_dataset(path: Path) -> _File:
    dataset = read_dataset(path)
    labels = dataset.crystals.properties
    cells: dict[str, list[Value]] = {}
    for name in _PROPERTIES:
        require_numbers(dataset, name, use=f"a hull of {path}")
        cells[name] = list(labels[name].double().tolist()) if name in labels else [None] * len(dataset)
    return _File(
        crystals=dataset.crystals.to_arrays(),
        cells=cells,
        places=[f"crystal {k} of {path.name} (id {name})" for k, name in enumerate(dataset.ids)],
        unreadable=len(read_rejections(path)),
    )


def table_references(
    table: EnergyTable,
    how: RelaxHow,
    *,
    count: int = 2000,
    seed: int = 0,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    allow_mixed_theory: bool = False,
) -> ElementReferences:
    """Element references between a potential and a table, fitted on single points of a sample and kept.

    Where the potential predicts uncorrected energies of the table's functional, terms for the corrections are
    fitted as well. Rows that the potential cannot judge do not enter.

    Args:
        table: formation energies.
        how: the potential; its settings do not count.
        count: rows of the sample, see `spread_sample`.
        seed: of the sample.
        workers: processes; None for all cores.
        advance: told of how many more rows the energy is known; up to `count` in all.
        allow_mixed_theory: fit although the levels of theory of potential and table differ or are unknown.

    Raises:
        ImportError: when the potential's package is not installed.
        ValueError: when levels of theory are mixed, or no row can be judged.
    """
    how = replace(how, settings=RelaxSettings(cell=RelaxCell.NONE, energy_only=True))
    theory = how.load().card.theory
    terms = matching_terms(theory, table.theory)
    check_same_theory(theory, table.theory, allow_mixed_theory=allow_mixed_theory, terms=terms)
    identity = how.identity()
    key = {"how": identity, "table": table.sha256, "theory": str(table.theory), "terms": terms.value}
    path = None if identity is None else kept_path("references", key | {"count": count, "seed": seed})
    if path is not None and path.is_file():
        try:
            return ElementReferences.from_json(parse_json(path.read_text(encoding="utf-8")))
        except ValueError as error:
            log.warning("element references in the cache are damaged and are fitted again: %s", error)
    rows = read_rows(table)
    chosen = rows.select(spread_sample(rows, count, seed=seed))
    result = relax_many(chosen.to_arrays(), how, workers=workers, advance=advance)
    references = fit_references(
        chosen,
        result.energy,
        chosen.properties[FORMATION_ENERGY],
        terms=terms,
        theory=theory,
        table_theory=table.theory,
        allow_mixed_theory=allow_mixed_theory,
    )
    if path is not None:
        write_json(path, references.to_json())
    return references


def matching_terms(theory: TheoryLevel | None, table: TheoryLevel | None) -> ReferenceTerms:
    """Terms for the corrections where the table has them and the potential has not."""
    is_gap = theory is not None and table is not None and theory.functional == table.functional
    if (
        is_gap
        and theory is not None
        and table is not None
        and (theory.is_corrected, table.is_corrected) == (False, True)
    ):
        return ReferenceTerms.CORRECTIONS
    return ReferenceTerms.ELEMENTS


def spread_sample(
    crystals: CrystalBatch, count: int, *, seed: int = 0, per_element: int = 10
) -> Int[Tensor, " row"]:
    """Positions of rows with a formation energy, drawn so that no element of the table is left out.

    In a random order, first those rows are taken that have an element of which fewer than `per_element` were
    taken, then any others until there are `count`; more than `count` where the elements need them.

    Returns:
        [row] positions, ascending.
    """
    usable = (~crystals.properties[FORMATION_ENERGY].isnan()).nonzero().flatten().numpy()
    order = np.random.default_rng(seed).permutation(usable)
    index, numbers = crystals.crystal_index.numpy(), crystals.atomic_numbers.numpy()
    has = np.zeros((len(crystals), NUM_ELEMENTS + 1), dtype=bool)
    has[index, numbers] = True
    taken = np.zeros(NUM_ELEMENTS + 1, dtype=int)
    first = []
    for row in order.tolist():
        if (taken[has[row]] < per_element).any():
            taken += has[row]
            first.append(row)
    chosen = set(first)
    others = [row for row in order.tolist() if row not in chosen]
    return torch.tensor(sorted([*first, *others[: max(0, count - len(first))]]), dtype=torch.long)
