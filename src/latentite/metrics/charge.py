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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from latentite.crystal_arrays import CrystalArrays
from latentite.formulas import Composition, reduced_composition
from latentite.metrics.bond_valence import bond_valence_states
from latentite.metrics.oxidation_states import charge_plausibility, is_metallic

MIN_PLAUSIBILITY = 0.001
"""LeMat-GenBench's threshold of the geometric mean of frequencies."""


class ChargeVerdict(StrEnum):
    """Why a crystal counts as neutral, or why not."""

    METAL = "metal"
    BOND_VALENCE = "bond_valence"
    COMPOSITION = "composition"
    NONE = "none"
    UNKNOWN = "unknown"

    @property
    def is_neutral(self) -> bool:
        """Whether plausible states add up to zero."""
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
    for position, found in zip(asked, states, strict=True):
        if found is not None:
            verdicts[position] = ChargeVerdict.BOND_VALENCE
    return verdicts


def _by_composition(composition: Composition) -> ChargeVerdict:
    if is_metallic(composition):
        return ChargeVerdict.METAL
    plausibility = charge_plausibility(composition)
    if math.isnan(plausibility):
        return ChargeVerdict.UNKNOWN
    return ChargeVerdict.COMPOSITION if plausibility > MIN_PLAUSIBILITY else ChargeVerdict.NONE
