"""Fingerprints that need no trained network: one row of numbers per crystal, for what it is made of and how.

- `magpie`: Magpie's statistics of the elements' properties (Ward et al. 2016, npj Comput. Mater. 2, 16028), in
  the columns and order of matminer's `ElementProperty.from_preset("magpie")`, from the table of Magpie that smact
  ships (hydrogen to berkelium);
- `radial`: how dense the surroundings of an atom are at each distance, mean and spread over the atoms; the
  same again with every neighbour weighted by the difference of electronegativity, so that exchanging cations
  and anions is seen;
- `crystal_nn`: CDVAE's structure fingerprint. For each atom, the weights that CrystalNN (Zimmermann & Jain 2020, RSC
  Adv. 10, 6063) gives to the coordination numbers 1 to 24, and each weight times the order parameters of that
  number's usual motifs: 61 numbers, those of matminer's `CrystalNNFingerprint.from_preset("ops")`; then the mean over
  the atoms. It costs about a quarter of a second per crystal of ten atoms, three hundred times as much as `radial`.

The first two are the same for every cell and supercell of a crystal, wherever its origin and in whatever orientation
and order of atoms. `distributions.py` uses any of them, standardised by `fit_scaling` of a training set.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from latentite.base.machine import map_in_order
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import PackedArrays
from latentite.elements import NUM_ELEMENTS, SYMBOLS
from latentite.energy.neighbours import neighbour_list
from latentite.match.reduced import structure_of

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.core.local_env import CrystalNN, LocalStructOrderParams

MAGPIE_PROPERTIES = (
    *("Number", "MendeleevNumber", "AtomicWeight", "MeltingT", "Column", "Row", "CovalentRadius"),
    *("Electronegativity", "NsValence", "NpValence", "NdValence", "NfValence", "NValence", "NsUnfilled"),
    *("NpUnfilled", "NdUnfilled", "NfUnfilled", "NUnfilled", "GSvolume_pa", "GSbandgap", "GSmagmom"),
    "SpaceGroupNumber",
)
"""K, pm, Å^3 per atom, eV and Bohr magnetons where they have a unit."""
MAGPIE_STATISTICS = ("minimum", "maximum", "range", "mean", "avg_dev", "mode")
"""Over the elements; mean and mean absolute deviation are weighted by atomic fractions, the mode is the value of the
most abundant element, the smallest value where several are."""

RADII = np.arange(1.0, 7.01, 0.25)
"""Å; where `radial` looks."""
WIDTH = 0.25
"""Å; standard deviation of its Gaussians."""
CUTOFF = 8.0
"""Å; neighbours beyond it, four standard deviations behind the last radius, do not count."""

_PAIRS_AT_ONCE = 200_000
_MAX_PAIRS = 500_000


def magpie(crystals: Sequence[CrystalArrays]) -> Float[np.ndarray, "crystal 132"]:
    """Magpie's composition fingerprint: every property's six statistics, property by property.

    An element that the table does not have (beyond berkelium) takes the mean over the elements that it has.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
    """
    if not crystals:
        return np.zeros((0, len(MAGPIE_PROPERTIES) * len(MAGPIE_STATISTICS)))
    crystal, numbers, counts = _pack(crystals).species()
    values = _magpie_table()[numbers]  # element-of-crystal property
    starts = np.searchsorted(crystal, np.arange(len(crystals)))

    def total(rows: np.ndarray) -> np.ndarray:
        return np.add.reduceat(rows, starts, axis=0)

    fractions = (counts / total(counts)[crystal])[:, None]
    smallest, largest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    mean = total(fractions * values)
    deviation = total(fractions * np.abs(values - mean[crystal]))
    is_most = counts == np.maximum.reduceat(counts, starts)[crystal]
    mode = np.minimum.reduceat(np.where(is_most[:, None], values, np.inf), starts)
    statistics = (smallest, largest, largest - smallest, mean, deviation, mode)
    return np.stack(statistics, axis=-1).reshape(len(crystals), -1)


def radial(crystals: Sequence[CrystalArrays]) -> Float[np.ndarray, "crystal 100"]:
    """Radial density around the atoms, smooth in every coordinate; NaN for what is no crystal.

    Around atom i the density (atoms per Å^3) at radius r and its polar counterpart are

        p_i(r) = sum_j w_ij N(d_ij; r, WIDTH) / (4 pi r^2),   w_ij = 1  or  |x_i - x_j|

    over all neighbours and images j within `CUTOFF`, with N the normal density and x Pauling's
    electronegativity from Magpie's table. The row holds, at the 25 `RADII`: mean of p over the atoms, its standard
    deviation, and both again for the polar weights. NaN rows: `is_bounded` says which.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
    """
    result = np.full((len(crystals), 4 * len(RADII)), np.nan)
    pairs = _expected_pairs(crystals, CUTOFF)
    usable = np.flatnonzero(pairs <= _MAX_PAIRS)
    chunk = np.cumsum(pairs[usable]) // _PAIRS_AT_ONCE
    for chosen in np.split(usable, np.flatnonzero(np.diff(chunk)) + 1):
        if len(chosen):
            result[chosen] = _radial([crystals[position] for position in chosen])
    return result


def is_bounded(crystals: Sequence[CrystalArrays], cutoff: float) -> Bool[np.ndarray, " crystal"]:
    """True where a search for neighbours within `cutoff` (Å) ends soon, so that nothing generated can stop a run.

    Finite numbers, 2 to 2000 Å^3 per atom (diamond has 5.7; `energy/gate.py` asks for as much), lattice planes at least
    0.1 Å apart, and no more than half a million pairs to be expected.
    """
    return _expected_pairs(crystals, cutoff) <= _MAX_PAIRS


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """Mean and standard deviation of each feature, of a training set; a constant feature is only shifted."""

    mean: Float[np.ndarray, " feature"]
    deviation: Float[np.ndarray, " feature"]

    def apply(self, features: Float[np.ndarray, "crystal feature"]) -> Float[np.ndarray, "crystal feature"]:
        """`(features - mean) / deviation`."""
        return (features - self.mean) / self.deviation


def fit_scaling(features: Float[np.ndarray, "crystal feature"]) -> Scaling:
    """The scaling that gives these features mean 0 and standard deviation 1; rows that are not finite do not count.

    Raises:
        ValueError: when no row is finite.
    """
    rows = features[np.isfinite(features).all(axis=-1)]
    if len(rows) == 0:
        raise ValueError("a scaling needs at least one row of finite features, got none")
    deviation = rows.std(axis=0)
    is_constant = deviation <= 1e-12 * np.abs(rows).max(axis=0)
    return Scaling(mean=rows.mean(axis=0), deviation=np.where(is_constant, 1.0, deviation))


@cache
def element_property(name: str) -> Float[np.ndarray, " number"]:
    """One of `MAGPIE_PROPERTIES` by atomic number from 0 on; row 0 and unknown elements have the mean."""
    return _magpie_table()[:, MAGPIE_PROPERTIES.index(name)]


def _expected_pairs(crystals: Sequence[CrystalArrays], cutoff: float) -> Float[np.ndarray, " crystal"]:
    """Pairs within the cut-off if the density were uniform; infinite for what is no crystal."""
    result = np.full(len(crystals), np.inf)
    for position, crystal in enumerate(crystals):
        count, lattice = crystal.num_atoms, crystal.lattice
        if not (count and np.isfinite(lattice).all() and np.isfinite(crystal.frac_coords).all()):
            continue
        volume = abs(float(np.linalg.det(lattice)))
        if not 2.0 * count < volume < 2000.0 * count:
            continue
        spacing = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0).max()
        if spacing >= 0.1:
            result[position] = count**2 * (4.0 / 3.0) * np.pi * cutoff**3 / volume
    return result


def _radial(crystals: list[CrystalArrays]) -> np.ndarray:
    from scipy.sparse import csr_array

    pairs = neighbour_list(CrystalBatch.from_arrays(crystals), CUTOFF)
    packed = _pack(crystals)
    negativity = element_property("Electronegativity")[packed.atomic_numbers]
    weights = (np.ones(len(pairs.first)), np.abs(negativity[pairs.first] - negativity[pairs.second]))
    deviation = (pairs.distance[:, None] - RADII) / WIDTH
    gaussians = np.exp(-0.5 * deviation**2) / (np.sqrt(2 * np.pi) * WIDTH * 4 * np.pi * RADII**2)
    crystal = np.repeat(np.arange(len(crystals)), packed.num_atoms)
    num_atoms = packed.num_atoms[:, None]
    order = np.arange(len(pairs.first))
    blocks = []
    for weight in weights:
        shape = (len(packed.atomic_numbers), len(order))
        density = csr_array((weight, (pairs.first, order)), shape=shape) @ gaussians  # atom radius
        mean = np.add.reduceat(density, packed.first_atom) / num_atoms
        spread = np.add.reduceat((density - mean[crystal]) ** 2, packed.first_atom) / num_atoms
        blocks += [mean, np.sqrt(spread)]
    return np.concatenate(blocks, axis=1)


def _pack(crystals: Sequence[CrystalArrays]) -> PackedArrays:
    return PackedArrays(
        atomic_numbers=np.concatenate([crystal.atomic_numbers for crystal in crystals]),
        frac_coords=np.concatenate([crystal.frac_coords for crystal in crystals]),
        lattice=np.stack([crystal.lattice for crystal in crystals]),
        num_atoms=np.array([crystal.num_atoms for crystal in crystals]),
    )


@cache
def _magpie_table() -> Float[np.ndarray, "number property"]:
    """Magpie's properties by atomic number from 0 on."""
    from smact.data_loader import lookup_element_magpie_data

    table = np.full((NUM_ELEMENTS + 1, len(MAGPIE_PROPERTIES)), np.nan)
    for number, symbol in enumerate(SYMBOLS, start=1):
        row = lookup_element_magpie_data(symbol)
        if row is not None:
            table[number] = [row[name] for name in MAGPIE_PROPERTIES]
    return np.where(np.isnan(table), np.nanmean(table, axis=0), table)


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
NUM_CRYSTAL_NN_FEATURES = MAX_COORDINATION + sum(len(motifs) for motifs in MOTIFS.values())

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
    done = map_in_order(_crystal_nn_chunk, chunks, workers=workers, advance=lambda chunk: advance(len(chunk)))
    return np.concatenate(done) if done else np.zeros((0, NUM_CRYSTAL_NN_FEATURES))


def _crystal_nn_chunk(chunk: Sequence[CrystalArrays]) -> np.ndarray:
    result = np.full((len(chunk), NUM_CRYSTAL_NN_FEATURES), np.nan)
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
    environment = neighbours.get_nn_data(structure, site)
    fingerprint: list[float] = []
    for coordination in range(1, MAX_COORDINATION + 1):
        weight = float(environment.cn_weights.get(coordination, 0.0))
        fingerprint.append(weight)
        motifs = parameters.get(coordination, ())
        if weight == 0.0:
            fingerprint += [0.0] * len(motifs)
            continue
        # A plain list of sites, the centre first: all that the order parameters look at.
        sites: Any = [structure[site], *(entry["site"] for entry in environment.cn_nninfo[coordination])]
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
