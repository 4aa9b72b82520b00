"""Bond valences: the charge that an atom's bond lengths speak for, and the oxidation states that fit best.

Bond valence sums by O'Keeffe & Brese 1991 (J. Am. Chem. Soc. 113, 3226), with the parameters and the statistics of
the ICSD that pymatgen ships; the posterior of each state is that of pymatgen's `BVAnalyzer`, the search for the best
neutral choice is our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.elements import NUM_ELEMENTS, SYMBOLS
from latentite.energy.neighbours import neighbour_list
from latentite.metrics.fingerprints import is_bounded
from latentite.metrics.oxidation_states import ELECTRONEGATIVE, Options, best_neutral

_RADIUS = 4.0
"""Å; bonds are not longer (`BVAnalyzer`'s default)."""
_SOFTNESS = 0.31
"""Å, as pymatgen has it for these parameters."""
_MIN_SHARE = 0.01
"""Of the most probable state's posterior; less probable states are not considered (`BVAnalyzer`'s)."""
_CHUNK = 256


def bond_valence_sums(
    crystals: Sequence[CrystalArrays], *, distance_scale: float = 1.015
) -> list[Float[np.ndarray, " atom"] | None]:
    """Bond valence sum of every atom, positive for cations; None for a crystal that cannot be asked.

    `sum_j exp((R_ij - d_ij) / 0.31)` over neighbours within 4 Å of another element, where one of the two is
    electronegative, positive towards more electronegative neighbours; with
    `R_ij = r_i + r_j - r_i r_j (sqrt(c_i) - sqrt(c_j))^2 / (c_i r_i + c_j r_j)` (O'Keeffe & Brese 1991, eqs. 1, 3).
    None: an element without r and c, or a cell in which a search for neighbours would not end (`is_bounded`).
    """
    sums: list[Float[np.ndarray, " atom"] | None] = [None] * len(crystals)
    table = _bond_parameters()
    bounded = is_bounded(crystals, _RADIUS)
    usable = [
        p
        for p, crystal in enumerate(crystals)
        if bounded[p] and np.isfinite(table[crystal.atomic_numbers, 0]).all()
    ]
    for start in range(0, len(usable), _CHUNK):
        chosen = usable[start : start + _CHUNK]
        chunk = [crystals[position] for position in chosen]
        numbers = np.concatenate([crystal.atomic_numbers for crystal in chunk])
        pairs = neighbour_list(CrystalBatch.from_arrays(chunk), _RADIUS)
        first, second = numbers[pairs.first], numbers[pairs.second]
        (r1, c1, x1), (r2, c2, x2) = table[first].T, table[second].T
        radius = r1 + r2 - r1 * r2 * (np.sqrt(c1) - np.sqrt(c2)) ** 2 / (c1 * r1 + c2 * r2)
        anions = np.array(sorted(ELECTRONEGATIVE))
        is_bond = (first != second) & (np.isin(first, anions) | np.isin(second, anions))
        valence = np.exp((radius - pairs.distance * distance_scale) / _SOFTNESS) * np.where(
            x1 < x2, 1.0, -1.0
        )
        total = np.bincount(pairs.first, weights=np.where(is_bond, valence, 0.0), minlength=len(numbers))
        ends = np.cumsum([crystal.num_atoms for crystal in chunk])[:-1]
        for position, atoms in zip(chosen, np.split(total, ends), strict=True):
            sums[position] = atoms
    return sums


def bond_valence_states(
    crystals: Sequence[CrystalArrays], *, distance_scale: float = 1.015
) -> list[Int[np.ndarray, " atom"] | None]:
    """The most probable neutral choice of oxidation states, atom by atom; None where there is none.

    The posterior of a state is `N(sum; mean, std) x occurrence` with the statistics of the ICSD that pymatgen
    ships; states below 1 % of the best one are left out, then the product over the atoms is maximised among the
    choices that add up to zero.
    """
    result: list[Int[np.ndarray, " atom"] | None] = []
    sums = bond_valence_sums(crystals, distance_scale=distance_scale)
    for crystal, valences in zip(crystals, sums, strict=True):
        if valences is None:
            result.append(None)
            continue
        atoms = zip(crystal.atomic_numbers.tolist(), valences.tolist(), strict=True)
        options = [_posterior(number, valence) for number, valence in atoms]
        best = best_neutral(options) if all(options) else None
        result.append(np.array(best.charges, dtype=int) if best is not None else None)
    return result


def _posterior(number: int, valence: float) -> Options:
    """States of an atom with this bond valence sum, with the logarithm of their unnormalised posterior."""
    states, means, deviations, logarithms = _valence_statistics(number)
    if not len(states):
        return []
    scores = logarithms - 0.5 * ((valence - means) / deviations) ** 2
    kept = scores > scores.max() + math.log(_MIN_SHARE)
    return list(zip(states[kept].tolist(), scores[kept].tolist(), strict=True))


@cache
def _valence_statistics(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """States of an element; mean and standard deviation of their valence sums; log(occurrence / deviation)."""
    from pymatgen.core.bond_valence import ICSD_BV_DATA, PRIOR_PROB

    rows = [
        (int(species.oxi_state), data["mean"], data["std"], math.log(PRIOR_PROB[species] / data["std"]))
        for species, data in ICSD_BV_DATA.items()
        if species.symbol == SYMBOLS[number - 1]
        and species.oxi_state
        and float(species.oxi_state).is_integer()
        and data["std"] > 0
        and PRIOR_PROB.get(species, 0) > 0
    ]
    states, means, deviations, logarithms = (
        (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0) for _ in range(4))
    )
    return states.astype(int), means, deviations, logarithms


@cache
def _bond_parameters() -> Float[np.ndarray, "number 3"]:
    """r (Å), c and Pauling electronegativity by atomic number from 0 on; NaN where there is no r and c."""
    from pymatgen.core.bond_valence import BV_PARAMS

    table = np.full((NUM_ELEMENTS + 1, 3), np.nan)
    for element, parameters in BV_PARAMS.items():
        table[element.Z] = parameters["r"], parameters["c"], element.X
    return table
