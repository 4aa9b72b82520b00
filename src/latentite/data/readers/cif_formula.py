"""A CIF's own formula, held against the atoms of its sites.

`_chemical_formula_sum` times `_cell_formula_units_Z` is the content of the cell: hydrogen that was never located, an
unread lithium, a wrong choice of origin show there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

_RELATIVE = 0.02
"""How far amounts may be from those of the formula, which may be rounded (`Al0.67 O`)."""
_AMOUNT = r"(\d+\.?\d*|\.\d+)?(?:\(\d+\))?"
_ELEMENTS = re.compile(rf"([A-Z][a-z]?){_AMOUNT}")
_CAPITALS = re.compile(rf"([A-Z]{{1,2}}){_AMOUNT}\Z")
_CHARGE = re.compile(r"\s\d*[+-]\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Formula:
    """What a file says of its content."""

    text: str
    """`_chemical_formula_sum`."""
    units: float | None
    """`_cell_formula_units_Z`; None or 0 where it is not given."""
    is_whole_cell: bool
    """Whether the formula may be that of the whole cell beside a Z, as pymatgen writes it."""

    @property
    def elements(self) -> frozenset[str]:
        """Symbols of the elements that it can mean."""
        return frozenset(symbol for reading in readings(self.text) for symbol in reading)

    def agrees(self, counts: Mapping[str, int]) -> bool:
        """Whether a cell of so many atoms per element is what the formula and Z say."""
        return any(self._is(counts, reading) for reading in readings(self.text))

    def _is(self, counts: Mapping[str, int], formula: Mapping[str, float]) -> bool:
        if counts.keys() != formula.keys():
            return False
        units = sum(counts.values()) / sum(formula.values())
        if any(abs(count - units * formula[symbol]) > _RELATIVE * count for symbol, count in counts.items()):
            return False
        if not self.units or abs(units - self.units) <= _RELATIVE * self.units:
            return True
        if not self.is_whole_cell or abs(units - 1.0) > _RELATIVE:
            return False
        return is_content_of_cell([round(amount) for amount in formula.values()], int(self.units))

    def disagreement(self, counts: Mapping[str, int]) -> str:
        """Both formulas in one sentence."""
        units = f" with {self.units:g} formula units in the cell" if self.units else ""
        sites = " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts)) or "nothing"
        lacking = sorted(self.elements - counts.keys())
        hint = f"; {', '.join(lacking)} may not have been located" if lacking else ""
        return f"the sites make {sites}, but the file's own formula is {self.text!r}{units}{hint}"


def is_content_of_cell(amounts: Iterable[int], units: int) -> bool:
    """Whether a formula with these amounts can be that of a whole cell beside so many units, as pymatgen writes it.

    Its units are those of the reduced formula, for O2, Li2O2 and the like half of that, rounded down.
    """
    common = math.gcd(*amounts)
    return not units or common % units == 0 or common // 2 == units


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Mapping[str, float], ...]:
    """Amounts by symbol that a formula can mean: one reading, or two where it is written in capitals (`CO1`).

    Raises:
        ValueError: for what is no formula.
    """
    stripped = _CHARGE.sub("", text.strip())
    found: list[dict[str, float]] = []
    if "".join(match.group() for match in _ELEMENTS.finditer(stripped)) == re.sub(r"\s", "", stripped):
        found.append(_add_up(match.groups() for match in _ELEMENTS.finditer(stripped)))
    if stripped == stripped.upper():
        parts = [_CAPITALS.match(part) for part in stripped.split()]
        if all(parts):
            found.append(_add_up((part[1].title(), part[2]) for part in parts if part))
    found = [reading for reading in found if reading]
    if not found:
        raise ValueError(
            f"the file's own formula {text!r} is not understood; write it as in 'Fe2 O3' or leave it out"
        )
    return tuple(found)


def _add_up(pairs: Iterable[Sequence[str]]) -> dict[str, float]:
    amounts: dict[str, float] = {}
    for symbol, amount in pairs:
        amounts[symbol] = amounts.get(symbol, 0.0) + (float(amount) if amount else 1.0)
    return {symbol: amount for symbol, amount in amounts.items() if amount}
