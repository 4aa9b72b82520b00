"""What is measured of each structure alone: cell, density, distances, SMACT, symmetry, supply risk.

Comes after `read.py` and `metrics/`; `run.py` measures the source and the reference alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from latentite.data.cif import SYMBOLS
from latentite.data.properties import derive_rows
from latentite.evaluation.read import Crystals
from latentite.files import cache_dir, write_json
from latentite.metrics.composition import (
    Composition,
    SmactRule,
    has_unknown_element,
    is_smact_valid,
    reduced_composition,
)
from latentite.metrics.geometry import min_distances, volumes
from latentite.metrics.supply_risk import supply_risk
from latentite.metrics.symmetry import SYMPRECS, space_groups

_DERIVED = ("composition", "chemical_system", "num_elements", "density", "volume_per_atom")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One number per structure and property."""

    formulas: list[str]
    """Reduced, elements in alphabetical order: keys for comparison."""
    chemical_systems: list[str]
    num_atoms: np.ndarray
    num_elements: np.ndarray
    volume: np.ndarray
    """Å^3."""
    volume_per_atom: np.ndarray
    """Å^3."""
    density: np.ndarray
    """g/cm^3."""
    distance: np.ndarray
    """Å, smallest between two atoms; infinite for one atom, NaN where the cell cannot be reduced."""
    own_distance: np.ndarray
    """Å, smallest between an atom and its own image; NaN likewise."""
    compositions: list[Composition]
    space_groups: dict[float, np.ndarray]
    """By tolerance (Å); NaN where none is found."""

    @property
    def failures(self) -> list[tuple[int, str, str]]:
        """Position, metric and reason of everything that could not be computed."""
        found = [
            (int(position), "min_distance", "the cell is too flat to be reduced")
            for position in np.flatnonzero(np.isnan(self.own_distance))
        ]
        for symprec, groups in self.space_groups.items():
            reason = f"no space group was found at {symprec:g} Å"
            found += [(int(p), f"space_group_{symprec:g}", reason) for p in np.flatnonzero(np.isnan(groups))]
        return found

    def columns(self) -> dict[str, list[float | int | bool | str | None]]:
        """The columns of the table."""
        risks = [supply_risk(composition) for composition in self.compositions]
        columns: dict[str, list[float | int | bool | str | None]] = {
            "formula": [_usual_formula(composition) for composition in self.compositions],
            "chemical_system": list(self.chemical_systems),
            "num_atoms": self.num_atoms.tolist(),
            "num_elements": [int(count) for count in self.num_elements],
            "volume": self.volume.tolist(),
            "volume_per_atom": self.volume_per_atom.tolist(),
            "density": self.density.tolist(),
            "min_distance": _cells(np.fmin(self.distance, self.own_distance)),
        }
        for rule in SmactRule:
            columns[rule.value] = [is_smact_valid(c, rule) for c in self.compositions]
        for rule in SmactRule:
            columns[f"{rule.value}_unknown_element"] = [
                has_unknown_element(c, rule) for c in self.compositions
            ]
        for symprec, groups in self.space_groups.items():
            columns[f"space_group_{symprec:g}"] = [None if np.isnan(g) else int(g) for g in groups]
        columns["hhi_production"] = _cells(np.array([risk[0] for risk in risks]))
        columns["hhi_reserves"] = _cells(np.array([risk[1] for risk in risks]))
        return columns


@lru_cache(maxsize=1 << 16)
def _usual_formula(composition: Composition) -> str:
    """The reduced formula in the usual order of the elements, as in `LiFePO4`."""
    from pymatgen.core import Composition as PymatgenComposition

    return PymatgenComposition({SYMBOLS[n - 1]: count for n, count in composition}).reduced_formula


def _cells(values: np.ndarray) -> list[float | int | bool | str | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def measure(
    crystals: Crystals,
    *,
    workers: int | None,
    seconds: dict[str, float],
    stage: Callable[[str, int | None], Callable[[int], None]],
    symprecs: Sequence[float] = SYMPRECS,
    name: str = "",
    keep: bool = False,
) -> Measured:
    """Measure each structure of a source.

    Args:
        crystals: what to measure.
        workers: processes; None for all cores.
        seconds: takes the wall time of each step.
        stage: hears of progress.
        symprecs: tolerances of the space groups, Å.
        name: begins the names of the steps.
        keep: keep the space groups in the cache, under the content of the crystals (for references).
    """
    start = time.perf_counter()
    derived = derive_rows(_DERIVED, crystals.arrays)
    between, own = min_distances(crystals.arrays)
    seconds[f"{name}geometry"] = round(time.perf_counter() - start, 3)
    start = time.perf_counter()
    compositions = [reduced_composition(numbers.tolist()) for numbers, _, _ in crystals.arrays]
    seconds[f"{name}composition"] = round(time.perf_counter() - start, 3)
    start = time.perf_counter()
    file = cache_dir() / "evaluation" / f"space_groups_{crystals.content_hash}.json" if keep else None
    groups = _kept(file, symprecs, len(crystals))
    if groups is None:
        advance = stage(f"{name}space groups", len(crystals))
        groups = space_groups(crystals.arrays, symprecs=symprecs, workers=workers, advance=advance)
        if file is not None:
            write_json(file, {"symprecs": list(symprecs), "space_groups": groups.tolist()})
    seconds[f"{name}space groups"] = round(time.perf_counter() - start, 3)

    def numbers_of(key: str) -> np.ndarray:
        return np.array([row[key] for row in derived], dtype=float)

    return Measured(
        formulas=[str(row["composition"]) for row in derived],
        chemical_systems=[str(row["chemical_system"]) for row in derived],
        num_atoms=np.array([len(numbers) for numbers, _, _ in crystals.arrays], dtype=int),
        num_elements=numbers_of("num_elements"),
        volume=volumes(crystals.arrays),
        volume_per_atom=numbers_of("volume_per_atom"),
        density=numbers_of("density"),
        distance=between,
        own_distance=own,
        compositions=compositions,
        space_groups={symprec: groups[:, i] for i, symprec in enumerate(symprecs)},
    )


def _kept(file: Path | None, symprecs: Sequence[float], count: int) -> np.ndarray | None:
    """Space groups of an earlier evaluation, when the cache has those at the same tolerances."""
    if file is None or not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    found = np.array(content["space_groups"], dtype=float)
    return found if content["symprecs"] == list(symprecs) and len(found) == count else None
