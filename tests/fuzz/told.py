"""What a damaged file still says of its own content, read line by line and by other means than the product's.

A changed digit of a position cannot be noticed by anybody. An atom that was lost, an element that became another one
or a cell of another size can, where the file names its formula, its units or its counts.
"""

from __future__ import annotations

import re

import numpy as np

from latentite.elements import ATOMIC_NUMBER

Told = tuple[dict[int, float], float | None]
"""Shares of the atoms by atomic number, and the volume per atom (Å^3) where that is told too."""

_AMOUNTS = re.compile(r"([A-Z][a-z]?)(\d*)")
_VALUE = r"^{tag}[ \t]+('[^'\n]*'|[^\s'\"]+)[ \t]*$"


def told_by_cif(content: bytes) -> Told | None:
    """Formula, and volume by cell and Z; None where the text does not say it plainly and once."""
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        return None
    if re.search(r"^;|\r|\0", text, re.MULTILINE) or len(re.findall("data_", text, re.IGNORECASE)) != 1:
        return None
    formula = _once(text, "_chemical_formula_sum")
    if formula is None or not re.fullmatch(r"([A-Z][a-z]?\d+ ?)+", formula):
        return None
    counts = _counts(_AMOUNTS.findall(formula))
    if counts is None:
        return None
    total = sum(counts.values())
    cell = [_once(text, f"_cell_{name}") for name in ("length_a", "length_b", "length_c")]
    cell += [_once(text, f"_cell_angle_{name}") for name in ("alpha", "beta", "gamma")]
    units = _once(text, "_cell_formula_units_Z")
    plain = [value for value in (*cell, units) if value and re.fullmatch(r"\d+(\.\d+)?", value)]
    volume = None
    if len(plain) == 7 and float(plain[6]) > 0:
        lengths = [float(value) for value in plain[:3]]
        cosines = np.cos(np.deg2rad([float(value) for value in plain[3:6]]))
        square = 1 - (cosines**2).sum() + 2 * cosines.prod()
        volume = float(np.prod(lengths) * np.sqrt(max(square, 0.0)) / (total * float(plain[6])))
    return {number: count / total for number, count in counts.items()}, volume


def _once(text: str, tag: str) -> str | None:
    found = re.findall(_VALUE.format(tag=re.escape(tag)), text, re.MULTILINE)
    if len(found) != 1 or text.lower().count(tag.lower()) != 1:
        return None
    return str(found[0]).strip("'")


def told_by_poscar(content: bytes) -> Told | None:
    """Elements and counts of lines 6 and 7, volume of lines 2 to 5; None where they are not plain."""
    lines = content.decode("latin-1").replace("\r\n", "\n").split("\n")
    if len(lines) < 9 or "\r" in "".join(lines):
        return None
    symbols, amounts = lines[5].split(), lines[6].split()
    names = [re.split("[_/]", symbol)[0] for symbol in symbols]
    if len(names) != len(amounts):
        return None
    counts = _counts(list(zip(names, amounts, strict=True)))
    if counts is None:
        return None
    total = sum(counts.values())
    try:
        factors = [float(value) for value in lines[1].split()]
        vectors = np.array([[float(value) for value in line.split()] for line in lines[2:5]])
        determinant = abs(np.linalg.det(vectors))
    except ValueError:
        return {number: count / total for number, count in counts.items()}, None
    volume = None
    if len(factors) == 1:
        volume = -factors[0] if factors[0] < 0 else determinant * factors[0] ** 3
    if len(factors) == 3:
        volume = determinant * abs(np.prod(factors))
    return {
        number: count / total for number, count in counts.items()
    }, None if volume is None else volume / total


def _counts(pairs: list[tuple[str, str]]) -> dict[int, int] | None:
    counts: dict[int, int] = {}
    for symbol, amount in pairs:
        if symbol not in ATOMIC_NUMBER or not amount.isdigit() or int(amount) == 0:
            return None
        counts[ATOMIC_NUMBER[symbol]] = counts.get(ATOMIC_NUMBER[symbol], 0) + int(amount)
    return counts or None
