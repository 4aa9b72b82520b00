"""Oxidation states of a composition: the most plausible choice that is neutral.

Frequencies of states are the occurrences in the ICSD that pymatgen ships (`PRIOR_PROB` of its bond valence module).
`best_neutral` finds the best among all choices in bounded time; `bond_valence.py` uses it for single atoms, and
`charge.py` makes verdicts of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from latentite.elements import ATOMIC_NUMBER
from latentite.formulas import Composition

ELECTRONEGATIVE = frozenset((1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 51, 52, 53))
"""Elements that can be anions in bond valences (O'Keeffe & Brese 1991): H, B, C, N, O, F, Si, P, S, Cl, As, Se, Br,
Sb, Te, I."""


def is_metallic(composition: Composition) -> bool:
    """Whether no bond valence can arise: one element only, or none that is electronegative."""
    return len(composition) == 1 or not any(number in ELECTRONEGATIVE for number, _ in composition)


@lru_cache(maxsize=1 << 17)
def charge_plausibility(composition: Composition) -> float:
    """How common the oxidation states of the most plausible neutral assignment are, 0 to 1.

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
