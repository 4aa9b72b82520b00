"""Supply risk: how concentrated the market of a compound's elements is.

The Herfindahl-Hirschman index (0 to 10,000) of an element's production and of its reserves by country, as tabulated
by Gaultois et al. 2013 (Chem. Mater. 25, 2911); that of a compound is the mean over its elements, weighted by mass.
The table ships with smact.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from latentite.elements import SYMBOLS
from latentite.formulas import Composition


def supply_risk(composition: Composition) -> tuple[float, float]:
    """HHI of production and of reserves, 0 to 10,000; NaN when an element is not in the table."""
    masses, risks = zip(*[(count * _element(n)[0], _element(n)[1:]) for n, count in composition], strict=True)
    production, reserves = np.average(np.array(risks), axis=0, weights=masses)
    return float(production), float(reserves)


@cache
def _element(number: int) -> tuple[float, float, float]:
    """Mass (g/mol), HHI of production and of reserves."""
    from pymatgen.core import Element
    from smact.data_loader import lookup_element_hhis

    symbol = SYMBOLS[number - 1]
    found = lookup_element_hhis(symbol)
    production, reserves = found if found is not None else (np.nan, np.nan)
    return float(Element(symbol).atomic_mass), production, reserves
