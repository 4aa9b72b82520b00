"""CrystalNN fingerprints: CDVAE's structure fingerprint, from what pymatgen ships.

For each atom, the weights that CrystalNN (Zimmermann & Jain 2020, RSC Adv. 10, 6063) gives to the coordination numbers
1 to 24, and each weight times the order parameters of that number's usual motifs: 61 numbers, those of matminer's
`CrystalNNFingerprint.from_preset("ops")`. A crystal has their mean over its atoms, as CDVAE takes it. It costs about
a quarter of a second per crystal of ten atoms, so it is asked for on its own; `fingerprints.radial` is the quick one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from latentite.base.processes import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.match.search import structure_of
from latentite.metrics.fingerprints import is_bounded

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.core.local_env import CrystalNN, LocalStructOrderParams

MOTIFS: dict[int, tuple[str, ...]] = {
    1: ("sgl_bd",),
    2: ("L-shaped", "water-like", "bent 120 degrees", "bent 150 degrees", "linear"),
    3: ("trigonal planar", "trigonal non-coplanar", "T-shaped"),
    4: (
        *("square co-planar", "tetrahedral", "rectangular see-saw-like", "see-saw-like"),
        "trigonal pyramidal",
    ),
    5: ("pentagonal planar", "square pyramidal", "trigonal bipyramidal"),
    6: ("hexagonal planar", "octahedral", "pentagonal pyramidal"),
    7: ("hexagonal pyramidal", "pentagonal bipyramidal"),
    8: ("body-centered cubic", "hexagonal bipyramidal"),
    9: ("q2", "q4", "q6"),
    10: ("q2", "q4", "q6"),
    11: ("q2", "q4", "q6"),
    12: ("cuboctahedral", "q2", "q4", "q6"),
}
"""Order parameters by coordination number, as matminer's preset "ops" lists them."""
MAX_COORDINATION = 24
NUM_FEATURES = MAX_COORDINATION + sum(len(motifs) for motifs in MOTIFS.values())

_SEARCH_CUTOFF = 7.0
"""Å, CrystalNN's default."""
_MAX_POINTS = 50_000
"""Of one Voronoi tessellation. Where that of `_SEARCH_CUTOFF` fails, pymatgen doubles the radius up to the longest
diagonal of the cell; in a cell of 200 Å that would be millions of points."""
_CHUNK = 16


def crystal_nn(
    crystals: Sequence[CrystalArrays],
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Float[np.ndarray, "crystal 61"]:
    """Mean CrystalNN fingerprint of each crystal; NaN where it cannot be computed (as CDVAE has no fingerprint then).

    Also NaN, unlike in CDVAE: below 2 Å^3 per atom (`fingerprints.is_bounded`) and in needles of cells, where the
    search for neighbours would not end.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more crystals are done.
    """
    chunks = [crystals[start : start + _CHUNK] for start in range(0, len(crystals), _CHUNK)]
    done = map_in_order(_fingerprints, chunks, workers=workers, advance=lambda chunk: advance(len(chunk)))
    return np.concatenate(done) if done else np.zeros((0, NUM_FEATURES))


def _fingerprints(chunk: Sequence[CrystalArrays]) -> np.ndarray:
    result = np.full((len(chunk), NUM_FEATURES), np.nan)
    for position in np.flatnonzero(is_bounded(chunk, _SEARCH_CUTOFF)).tolist():
        if _most_points(chunk[position]) > _MAX_POINTS:
            continue
        structure = structure_of(chunk[position])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of radii that are not tabulated
                sites = [_site_fingerprint(structure, site) for site in range(len(structure))]
        # Voronoi cells of overlapping or isolated atoms fail in many ways, inside pymatgen and inside qhull.
        except (ValueError, ArithmeticError, LookupError, RuntimeError, TypeError):
            continue
        result[position] = np.mean(sites, axis=0)
    return result


def _most_points(crystal: CrystalArrays) -> float:
    """Atoms to be expected in a sphere whose radius is the longest diagonal of the cell."""
    diagonals = np.array(list(product((-1, 1), repeat=3))) @ crystal.lattice
    radius = np.linalg.norm(diagonals, axis=-1).max()
    return float(crystal.num_atoms * (4.0 / 3.0) * np.pi * radius**3 / abs(np.linalg.det(crystal.lattice)))


def _site_fingerprint(structure: Structure, site: int) -> list[float]:
    neighbours, parameters = _tools()
    found = neighbours.get_nn_data(structure, site)
    fingerprint: list[float] = []
    for coordination in range(1, MAX_COORDINATION + 1):
        weight = float(found.cn_weights.get(coordination, 0.0))
        fingerprint.append(weight)
        motifs = parameters.get(coordination, ())
        if weight == 0.0:
            fingerprint += [0.0] * len(motifs)
            continue
        # A plain list of sites, the centre first: all that the order parameters look at.
        sites: Any = [structure[site], *(entry["site"] for entry in found.cn_nninfo[coordination])]
        for motif in motifs:
            value = motif.get_order_parameters(sites, 0, indices_neighs=list(range(1, len(sites))))[0]
            fingerprint.append(weight * (value or 0.0))  # None: the motif has no value here
    return fingerprint


@cache
def _tools() -> tuple[CrystalNN, dict[int, tuple[LocalStructOrderParams, ...]]]:
    """CrystalNN at its defaults, and one order parameter per motif with pymatgen's tuned constants."""
    from pymatgen.core.local_env import CN_OPT_PARAMS, CrystalNN, LocalStructOrderParams

    parameters = {}
    for coordination, motifs in MOTIFS.items():
        tuned: dict[str, list[Any]] = CN_OPT_PARAMS.get(coordination, {})
        built = []
        for motif in motifs:
            kind, *constants = tuned.get(motif, [motif])
            built.append(LocalStructOrderParams([kind], parameters=[constants[0] if constants else None]))
        parameters[coordination] = tuple(built)
    return CrystalNN(), parameters
