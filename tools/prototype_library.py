"""Prototypes and statistics that pymatgen ships, from which `make_prototypes.py` builds crystals.

Three tables, all under pymatgen's MIT licence and read through its public names: the AFLOW library of
crystallographic prototypes (Mehl et al. 2017, doi 10.1016/j.commatsci.2017.01.017), the data-mined
probabilities of ionic substitution (Hautier et al. 2011, doi 10.1021/ic102031h) and the bond lengths of
data-mined lattice scaling (Chu et al. 2018, doi 10.1016/j.commatsci.2018.01.040).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from latentite.crystal_arrays import CrystalArrays
from latentite.data.canonical import canonicalize_many
from latentite.data.niggli import multiply
from latentite.elements import ATOMIC_NUMBER

MAX_ATOMS = 20
"""Larger prototypes are left out."""

_IMAGES = np.stack(np.meshgrid(*[np.arange(-2.0, 3.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
_SAME_STRUCTURE = 0.02  # relative difference of neighbour distances below which two prototypes are one
_NUM_NEIGHBOURS = 12
_LIGHTEST_EXCLUDED = 84  # from polonium on, only thorium and uranium are kept
_EXCLUDED = frozenset({"Pm", "Tc", "He", "Ne", "Ar", "Kr", "Xe"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Prototype:
    """A crystal whose elements may be exchanged: its sites carry a kind (0, 1, ...), not an element."""

    name: str
    """AFLOW label: stoichiometry, Pearson symbol, space group number, Wyckoff letters."""
    elements: tuple[str, ...]
    """Element of each kind in the compound that the prototype is named after."""
    charges: tuple[int, ...] | None
    """Sign of each kind's charge there, or None for elements and for compounds without charge balance."""
    kinds: Int[np.ndarray, " atom"]
    frac_coords: Float[np.ndarray, "atom 3"]
    lattice: Float[np.ndarray, "3 3"]
    """Å, at the volume of that compound."""
    nearest: Float[np.ndarray, "atom kind"]
    """Å; from each site to the nearest other site of each kind."""

    @property
    def counts(self) -> Int[np.ndarray, " kind"]:
        """Atoms of each kind in the cell."""
        return np.bincount(self.kinds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Species:
    """The ions that the substitution table knows, and how readily one stands for another."""

    symbols: tuple[str, ...]
    charges: Int[np.ndarray, " species"]
    log_weight: Float[np.ndarray, "species species"]
    """Symmetric; the logarithm of the probability of finding the pair in the same place, up to a constant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ElementTable:
    """Numbers of the elements, by symbol."""

    electronegativity: dict[str, float]
    """Pauling."""
    radius: dict[str, float]
    """Å; in a bond between atoms of equal electronegativity."""
    radius_slope: dict[str, float]
    """Å; change of the radius with the standard deviation of the electronegativity over the sites."""
    mass: dict[str, float]
    """g/mol."""


def load_elements() -> ElementTable:
    """The elements that have all three numbers, without noble gases and short-lived ones."""
    from pymatgen.analysis.structure_prediction.volume_predictor import bond_params
    from pymatgen.core import Element

    kept = []
    for symbol in sorted(bond_params, key=ATOMIC_NUMBER.__getitem__):
        is_long_lived = ATOMIC_NUMBER[symbol] < _LIGHTEST_EXCLUDED or symbol in ("Th", "U")
        if is_long_lived and symbol not in _EXCLUDED:
            kept.append(symbol)
    return ElementTable(
        electronegativity={symbol: float(Element(symbol).X) for symbol in kept},
        radius={symbol: float(bond_params[symbol]["r"]) for symbol in kept},
        radius_slope={symbol: float(bond_params[symbol]["k"]) for symbol in kept},
        mass={symbol: float(Element(symbol).atomic_mass) for symbol in kept},
    )


def load_species() -> Species:
    """The ions of pymatgen's table, in a fixed order."""
    from pymatgen.analysis.structure_prediction.substitution_probability import SubstitutionProbability

    table = SubstitutionProbability()
    known = sorted(table.species, key=lambda s: (ATOMIC_NUMBER[s.symbol], s.oxi_state))
    return Species(
        symbols=tuple(s.symbol for s in known),
        charges=np.array([round(s.oxi_state) for s in known]),
        log_weight=np.array([[float(table.get_lambda(one, two)) for two in known] for one in known]),
    )


@cache
def load_prototypes() -> tuple[Prototype, ...]:
    """The ordered AFLOW prototypes of at most `MAX_ATOMS` atoms, each once, in the library's order."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    entries = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        structure = entry["snl"].structure
        if structure.is_ordered and len(structure) <= MAX_ATOMS:
            entries.append((entry["tags"]["aflow"], structure))
    arrays = canonicalize_many(
        [CrystalArrays(np.array(s.atomic_numbers), s.frac_coords, s.lattice.matrix) for _, s in entries]
    )
    prototypes: list[Prototype] = []
    seen: dict[tuple[int, ...], list[np.ndarray]] = {}
    for (name, structure), crystal in zip(entries, arrays, strict=True):
        kinds = np.unique(crystal.atomic_numbers, return_inverse=True)[1]
        distances = _distances(crystal.frac_coords, crystal.lattice)
        fingerprint = _fingerprint(kinds, distances, float(np.linalg.det(crystal.lattice)))
        alike = seen.setdefault(tuple(np.sort(np.bincount(kinds)).tolist()), [])
        if any(np.abs(fingerprint / other - 1.0).max() < _SAME_STRUCTURE for other in alike):
            continue
        alike.append(fingerprint)
        elements = tuple(e.symbol for e in sorted(structure.composition.elements, key=lambda e: e.Z))
        prototypes.append(
            Prototype(
                name=name,
                elements=elements,
                charges=_charge_signs(structure, elements),
                kinds=kinds,
                frac_coords=crystal.frac_coords,
                lattice=crystal.lattice,
                nearest=np.stack(
                    [distances[:, kinds == kind].min(axis=(1, 2)) for kind in range(len(elements))], axis=1
                ),
            )
        )
    return tuple(prototypes)


def _charge_signs(structure: Any, elements: tuple[str, ...]) -> tuple[int, ...] | None:
    """Signs of the likeliest oxidation states of a pymatgen structure; None where no guess balances."""
    if len(elements) == 1:
        return None
    guesses = structure.composition.oxi_state_guesses()
    if not guesses:
        return None
    return tuple(int(np.sign(guesses[0][symbol])) for symbol in elements)


def _distances(coords: np.ndarray, lattice: np.ndarray) -> Float[np.ndarray, "atom atom image"]:
    """Distances (Å) of sites to images of sites in a Niggli cell; a site is infinitely far from itself."""
    difference = coords[None, :, None] - coords[:, None, None] + _IMAGES
    cartesian = multiply(difference.reshape(-1, 1, 3), lattice[None])
    distances = np.sqrt((cartesian * cartesian).sum(axis=-1)).reshape(difference.shape[:-1])
    distances[distances < 1e-6] = np.inf
    return distances


def _fingerprint(kinds: np.ndarray, distances: np.ndarray, volume: float) -> Float[np.ndarray, " number"]:
    """Sorted neighbour distances of every site, to all sites and to those of its own kind, free of scale."""
    flat = np.sort(distances.reshape(len(kinds), -1), axis=1)[:, :_NUM_NEIGHBOURS]
    is_own = kinds[:, None] == kinds
    own = np.where(is_own[:, :, None], distances, np.inf).reshape(len(kinds), -1)
    own = np.sort(own, axis=1)[:, :_NUM_NEIGHBOURS]
    shares = np.array([Counter(kinds.tolist())[kind] for kind in kinds.tolist()], dtype=float)[:, None]
    rows = np.concatenate([shares, flat / volume ** (1.0 / 3.0), own / volume ** (1.0 / 3.0)], axis=1)
    return rows[np.lexsort(np.round(rows, 2).T[::-1])].ravel()
