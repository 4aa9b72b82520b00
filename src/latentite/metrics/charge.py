"""Charge neutrality: can the atoms of a crystal carry plausible oxidation states that add up to zero?

The order of questions is that of LeMat-GenBench (arXiv 2512.04562, its `ChargeNeutralityMetric`):

1. `METAL`: no bond between unlike elements of which one is electronegative (O'Keeffe & Brese's sixteen: H, B, C,
   Si, N, P, As, Sb, O, S, Se, Te, F, Cl, Br, I); every atom has state 0, and that is neutral.
2. `BOND_VALENCE`: bond lengths point to states (bond valences of O'Keeffe & Brese 1991, JACS 113, 3226; posterior
   of each state as in pymatgen's `BVAnalyzer`) among which a neutral choice exists.
3. `COMPOSITION`: the formula alone allows neutral states that are common enough: geometric mean over the atoms of
   their frequencies above 0.001, states of one element differing by at most 1.
4. `NONE`, or `UNKNOWN` where an element has no states in the table, so that the rule can only say no.

Departures from LeMat-GenBench: (a) its frequencies are counted over LeMat-Bulk and the ICSD; here they are the
occurrences in the ICSD that pymatgen ships, over states other than 0; (b) `BVAnalyzer` tries up to 100,000
combinations of states of symmetry-distinct atoms, gives equivalent atoms equal states and counts each class of atoms
once; here the best neutral choice over all atoms is found exactly and in bounded time, and equivalent atoms may
differ, so that mixed valence (LiTi2O4) is neutral in step 2 already; (c) METAL is decided by the elements, not by
bond sums within 4 Å. So the rates of the two are not the same number. On the 512 non-metallic test crystals of MP-20
(two or three elements) step 2 finds neutral states for all 382 for which `BVAnalyzer` does (the same ones for 347),
and for 41 more.

Frequencies of states are the occurrences in the ICSD that pymatgen ships (`PRIOR_PROB` of its bond valence module);
bond valence sums have its parameters and statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float, Int

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.elements import ATOMIC_NUMBER, NUM_ELEMENTS, SYMBOLS
from latentite.energy.neighbours import neighbour_list
from latentite.formulas import Composition, reduced_composition
from latentite.metrics.fingerprints import is_bounded

MIN_PLAUSIBILITY = 0.001
"""LeMat-GenBench's threshold of the geometric mean of frequencies."""


class ChargeVerdict(StrEnum):
    """Reason for which a crystal counts as neutral, or does not."""

    METAL = "metal"
    BOND_VALENCE = "bond_valence"
    COMPOSITION = "composition"
    NONE = "none"
    UNKNOWN = "unknown"

    @property
    def is_neutral(self) -> bool:
        """True when plausible states add up to zero."""
        return self in (ChargeVerdict.METAL, ChargeVerdict.BOND_VALENCE, ChargeVerdict.COMPOSITION)


def charge_neutrality(
    crystals: Sequence[CrystalArrays], *, distance_scale: float = 1.015
) -> list[ChargeVerdict]:
    """The verdict on each crystal; what is no crystal is judged by its composition.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
        distance_scale: distances are multiplied by it; 1.015 is pymatgen's value for PBE cells, 1 for measured ones.
    """
    compositions = [reduced_composition(crystal.atomic_numbers.tolist()) for crystal in crystals]
    verdicts = [_by_composition(composition) for composition in compositions]
    asked = [position for position, verdict in enumerate(verdicts) if verdict is not ChargeVerdict.METAL]
    states = bond_valence_states([crystals[position] for position in asked], distance_scale=distance_scale)
    for position, choice in zip(asked, states, strict=True):
        if choice is not None:
            verdicts[position] = ChargeVerdict.BOND_VALENCE
    return verdicts


def _by_composition(composition: Composition) -> ChargeVerdict:
    if is_metallic(composition):
        return ChargeVerdict.METAL
    plausibility = charge_plausibility(composition)
    if math.isnan(plausibility):
        return ChargeVerdict.UNKNOWN
    return ChargeVerdict.COMPOSITION if plausibility > MIN_PLAUSIBILITY else ChargeVerdict.NONE


ELECTRONEGATIVE = frozenset((1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 51, 52, 53))
"""Elements that can be anions in bond valences (O'Keeffe & Brese 1991): H, B, C, N, O, F, Si, P, S, Cl, As, Se, Br,
Sb, Te, I."""


def is_metallic(composition: Composition) -> bool:
    """True when no bond valence can arise: one element only, or none that is electronegative."""
    return len(composition) == 1 or not any(number in ELECTRONEGATIVE for number, _ in composition)


@lru_cache(maxsize=1 << 17)
def charge_plausibility(composition: Composition) -> float:
    """Frequency of the oxidation states of the most plausible neutral assignment, 0 to 1.

    The geometric mean over the atoms of p(state | element), the frequency among the entries of the ICSD with a
    state other than 0. Atoms of one element have one state, or two that differ by 1 (mixed valence). 0 when no
    assignment is neutral, 1 for metals (`is_metallic`; state 0), NaN when an element has no states in the table.
    """
    if is_metallic(composition):
        return 1.0
    options = []
    for number, count in composition:
        frequencies = _frequencies().get(number)
        if not frequencies:
            return math.nan
        options.append(_mixed_valences(frequencies, count))
    best = best_neutral(options)
    return math.exp(best.score / sum(count for _, count in composition)) if best is not None else 0.0


Options = list[tuple[int, float]]
"""Charges that something can have, each with its log-probability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeutralChoice:
    """Charges that add up to 0."""

    score: float
    """Sum of their log-probabilities."""
    charges: list[int]
    """In the order of the options."""


def best_neutral(options: Sequence[Options]) -> NeutralChoice | None:
    """One charge of each such that they add up to 0 and the log-probabilities to the most; None when none do.

    Dynamic programming over the sum so far: time (number of choices) x (range of sums), nothing exponential.
    """
    reach = min(
        sum(max(0, *(charge for charge, _ in choices)) for choices in options),
        sum(max(0, *(-charge for charge, _ in choices)) for choices in options),
    )  # a sum beyond what the other sign can undo leads nowhere
    size = 2 * reach + 1
    best = np.full(size, -np.inf)
    best[reach] = 0.0
    trace = []
    for choices in options:
        following = np.full(size, -np.inf)
        picked = np.zeros(size, dtype=np.int64)
        for charge, score in choices:
            if abs(charge) > 2 * reach:
                continue
            low, high = max(0, charge), min(size, size + charge)
            candidate = best[low - charge : high - charge] + score
            better = candidate > following[low:high]
            following[low:high][better] = candidate[better]
            picked[low:high][better] = charge
        trace.append(picked)
        best = following
    if not np.isfinite(best[reach]):
        return None
    charges, place = [], reach
    for picked in reversed(trace):
        charges.append(int(picked[place]))
        place -= charges[-1]
    return NeutralChoice(score=float(best[reach]), charges=charges[::-1])


def _mixed_valences(frequencies: dict[int, float], count: int) -> Options:
    """Total charges of `count` atoms of one element in one state or in two neighbouring ones."""
    options: dict[int, float] = {}
    for state, frequency in frequencies.items():
        above = frequencies.get(state + 1)
        for raised in range(count if above is not None else 1):
            score = (count - raised) * math.log(frequency) + raised * math.log(above or 1.0)
            total = count * state + raised
            options[total] = max(score, options.get(total, -math.inf))
    return sorted(options.items())


@cache
def _frequencies() -> dict[int, dict[int, float]]:
    """p(state | element) over the states other than 0 that the ICSD has, by atomic number."""
    from pymatgen.core.bond_valence import PRIOR_PROB

    counts: dict[int, dict[int, float]] = {}
    for species, count in PRIOR_PROB.items():
        state = float(species.oxi_state or 0)
        if state and state.is_integer() and count > 0:
            counts.setdefault(ATOMIC_NUMBER[species.symbol], {})[int(state)] = float(count)
    return {
        number: {state: count / sum(states.values()) for state, count in states.items()}
        for number, states in counts.items()
    }


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
