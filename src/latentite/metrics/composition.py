"""Numbers of a composition alone: SMACT validity and supply risk.

SMACT validity: can the elements of a formula carry charges that make it neutral and sensible?
The rule (Davies et al. 2016, Chem 1, 617; as CDVAE uses it): a formula of one element is valid; one of metals only
is valid (an alloy); any other is valid when its elements can be given one oxidation state each such that the
charges sum to zero and every cation is less electronegative (Pauling) than every anion. What differs between
papers is the list of oxidation states:

- `smact_pauling`: `smact14`, the list of the first smact releases, behind the published numbers of the CDVAE
  family (MP-20 itself: 90.4 %);
- `smact_icsd24`: smact 4's default, states reported at least three times in the ICSD of 2024 and not rare
  (`consensus=3`, `commonality="low"`), as Chemeleon2 uses it. Of the 10,458 train rows of MP-20 with two or three
  elements 91.1 % are valid under it, 89.2 % under the other; neither contains the other.

An element without states in the list (noble gases, Pm, ...) makes a formula invalid under both, as smact does.
The verdicts equal `smact.screening.smact_validity`, which tries all combinations of states (millions for eight
elements); here the sums that can be reached are followed instead.

Supply risk: how concentrated the market of a compound's elements is. The Herfindahl-Hirschman index (0 to 10,000) of
an element's production and of its reserves by country, as tabulated by Gaultois et al. 2013 (Chem. Mater. 25, 2911);
that of a compound is the mean over its elements, weighted by mass. The table ships with smact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache, lru_cache

import numpy as np

from latentite.elements import SYMBOLS
from latentite.formulas import Composition


class SmactRule(StrEnum):
    """Lists of oxidation states."""

    PAULING = "smact_pauling"
    ICSD24 = "smact_icsd24"


@lru_cache(maxsize=1 << 18)
def is_smact_valid(composition: Composition, rule: SmactRule) -> bool:
    """True when a reduced composition is valid under the rule."""
    elements = [_element(number, rule) for number, _ in composition]
    if len(elements) == 1 or all(element.is_metal for element in elements):
        return True
    if any(not element.states or element.electronegativity is None for element in elements):
        return False
    # Whoever is a cation is less electronegative than whoever is an anion: so some level divides them, and
    # elements of equal electronegativity stand on the same side of it.
    levels = sorted({element.electronegativity or 0.0 for element in elements})
    for level in levels:
        sums = {0}
        for element, (_, count) in zip(elements, composition, strict=True):
            is_cation = (element.electronegativity or 0.0) <= level
            charges = [count * s for s in element.states if (s >= 0 if is_cation else s <= 0)]
            sums = {total + charge for total in sums for charge in charges}
        if 0 in sums:
            return True
    return False


def has_unknown_element(composition: Composition, rule: SmactRule) -> bool:
    """True when an element has no oxidation state in the list, so that the rule can only say no."""
    return any(not _element(number, rule).states for number, _ in composition)


class _Element:
    __slots__ = ("electronegativity", "is_metal", "states")

    def __init__(self, states: Sequence[int], electronegativity: float | None, is_metal: bool) -> None:
        self.states = tuple(states)
        self.electronegativity = electronegativity
        self.is_metal = is_metal


@cache
def _element(number: int, rule: SmactRule) -> _Element:
    import smact

    symbol = SYMBOLS[number - 1]
    try:
        element = smact.Element(symbol)
    except NameError:  # smact knows no element of this name
        return _Element((), None, symbol in smact.metals)
    states = element.oxidation_states_smact14 if rule is SmactRule.PAULING else _icsd24().get(symbol)
    return _Element(states or (), element.pauling_eneg, symbol in smact.metals)


@lru_cache(maxsize=1)
def _icsd24() -> Mapping[str, list[int]]:
    from smact.utils.oxidation import ICSD24OxStatesFilter

    table = ICSD24OxStatesFilter().filter(consensus=3, include_zero=False, commonality="low")
    return {
        str(symbol): [int(state) for state in str(states).split()]
        for symbol, states in zip(table["element"], table["oxidation_state"], strict=True)
    }


def supply_risk(composition: Composition) -> tuple[float, float]:
    """HHI of production and of reserves, 0 to 10,000; NaN when an element is not in the table."""
    masses, risks = zip(
        *[(count * _element_risk(n)[0], _element_risk(n)[1:]) for n, count in composition], strict=True
    )
    production, reserves = np.average(np.array(risks), axis=0, weights=masses)
    return float(production), float(reserves)


@cache
def _element_risk(number: int) -> tuple[float, float, float]:
    """Mass (g/mol), HHI of production and of reserves."""
    from pymatgen.core import Element
    from smact.data_loader import lookup_element_hhis

    symbol = SYMBOLS[number - 1]
    indices = lookup_element_hhis(symbol)
    production, reserves = indices if indices is not None else (np.nan, np.nan)
    return float(Element(symbol).atomic_mass), production, reserves
