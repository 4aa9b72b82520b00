"""POSCAR and CONTCAR text to arrays: every line is understood, or the file is refused by the line that is not.

The format is the one of VASP 5 and 6 (https://www.vasp.at/wiki/index.php/POSCAR). pymatgen's reader is not used:
it multiplies Cartesian positions by a negative scale, which is a volume, and takes a missing line `Direct`, a count
that disagrees with the lines of positions or a token `0.5-0.3` without a word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.elements import ATOMIC_NUMBER

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?")  # Fortran writes 1.0D+00
_COUNT = re.compile(r"\+?\d{1,9}")
_LARGEST = 1e9
"""Beyond any length in Å; a product of three such numbers is still finite."""
_LABEL = re.compile(r"([A-Z][a-z]?)\d*")


def parse_poscar(text: str) -> CrystalArrays:
    """Atomic numbers, fractional coordinates and lattice (row vectors, Å) of a POSCAR.

    Scaling factors: one positive number scales the lattice vectors and Cartesian positions; one negative number is
    minus the volume of the cell (Å^3); three scale their x, y and z components.

    Raises:
        ValueError: naming the line that cannot be read, with its text.
    """
    lines = text.rstrip().split("\n")
    if len(lines) < 8:
        raise _unreadable(f"it has {len(lines)} lines, fewer than the eight of the smallest one")
    factors, vectors = _scale(lines), _rows(lines, 2, 3, "a lattice vector")
    symbols, counts, line = _species(lines)
    is_selective = _first_letter(lines, line) == "s"
    line += is_selective
    is_cartesian = _is_cartesian(lines, line)
    line += 1
    count = sum(counts)
    if count > len(lines) - line:
        raise _unreadable(f"its counts announce {count} atoms, but {len(lines) - line} lines follow")
    positions = _rows(lines, line, count, "a position")
    labels = _labels(lines[line : line + count], 6 if is_selective else 3)
    numbers = _numbers(symbols, counts, labels, line)
    _check_rest(lines, line + count, count)
    if len(factors) == 1 and factors[0] < 0.0:
        volume = abs(float(np.linalg.det(vectors)))
        if volume == 0.0:
            raise ValueError("absurd cell: its volume is zero")
        factors = np.array([(-factors[0] / volume) ** (1.0 / 3.0)])
    lattice = vectors * factors
    if not is_cartesian:
        return CrystalArrays(numbers, positions, lattice)
    if not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-6:
        raise ValueError("absurd cell: its volume is zero or not a number")
    return CrystalArrays(numbers, np.linalg.solve(lattice.T, (positions * factors).T).T, lattice)


def _unreadable(reason: str) -> ValueError:
    return ValueError(f"unreadable POSCAR: {reason}")


def _tokens(line: str) -> list[str]:
    return re.split("[#!]", line, maxsplit=1)[0].split()


def _to_number(token: str) -> float:
    return float(token.translate({ord("D"): "e", ord("d"): "e"}))


def _scale(lines: Sequence[str]) -> np.ndarray:
    """The one or three numbers of line 2; [1] or [3] float64."""
    tokens = _tokens(lines[1])
    if len(tokens) not in (1, 3) or not all(map(_NUMBER.fullmatch, tokens)):
        raise _unreadable(f"line 2 must be one or three scaling factors, got {lines[1].strip()[:60]!r}")
    factors = np.array([_to_number(token) for token in tokens])
    is_possible = (factors != 0.0) & (np.abs(factors) < _LARGEST)
    if not is_possible.all() or (len(factors) == 3 and (factors < 0.0).any()):
        raise _unreadable(
            f"line 2 must be one scaling factor other than 0 (negative for a volume) or three above 0, got "
            f"{lines[1].strip()[:60]!r}"
        )
    return factors


def _rows(lines: Sequence[str], start: int, count: int, what: str) -> np.ndarray:
    """The first three numbers of several lines; [count 3] float64."""
    rows = []
    for position in range(start, start + count):
        tokens = _tokens(lines[position])
        if len(tokens) < 3 or not all(map(_NUMBER.fullmatch, tokens[:3])):
            raise _unreadable(
                f"line {position + 1} must be {what} of three numbers, got {lines[position].strip()[:60]!r}"
            )
        if what == "a lattice vector" and len(tokens) > 3:
            raise _unreadable(
                f"line {position + 1} must be {what} of three numbers, got {len(tokens)} of them"
            )
        rows.append([_to_number(token) for token in tokens[:3]])
    values = np.array(rows, dtype=np.float64).reshape(-1, 3)
    if np.abs(values).max(initial=0.0) > _LARGEST:
        raise _unreadable(f"{what} must be of numbers up to {_LARGEST:g}, got {np.abs(values).max():g}")
    return values


def _species(lines: Sequence[str]) -> tuple[list[str], list[int], int]:
    """Symbols, atoms of each, and the line after them; VASP wraps both lists after twenty.

    VASP 4 writes no symbols: the list is empty then.
    """
    symbols: list[str] = []
    line = 5
    while line < len(lines) and not all(map(_COUNT.fullmatch, _tokens(lines[line]) or ["-"])):
        tokens = _tokens(lines[line])
        if not tokens or _NUMBER.fullmatch(tokens[0]):
            raise _unreadable(
                f"line {line + 1} must be element symbols or whole numbers of atoms, got {lines[line].strip()[:60]!r}"
            )
        symbols += tokens
        line += 1
    counts: list[int] = []
    while line < len(lines) and (not symbols or len(counts) < len(symbols)):
        tokens = _tokens(lines[line])
        if not tokens or not all(map(_COUNT.fullmatch, tokens)):
            break
        counts += map(int, tokens)
        line += 1
    if not counts or not all(counts) or (symbols and len(symbols) != len(counts)):
        raise _unreadable(
            f"it must give a number of atoms above 0 for each element, got the elements "
            f"{' '.join(symbols)[:60] or 'none'} and the numbers {' '.join(map(str, counts))[:60] or 'none'}"
        )
    return symbols, counts, line


def _first_letter(lines: Sequence[str], line: int) -> str:
    return lines[line].strip()[:1].lower() if line < len(lines) else ""


def _is_cartesian(lines: Sequence[str], line: int) -> bool:
    letter = _first_letter(lines, line)
    if not letter or letter not in "ckd":
        got = lines[line].strip()[:60] if line < len(lines) else "the end of the file"
        raise _unreadable(f"line {line + 1} must be Direct or Cartesian, got {got!r}")
    return letter in "ck"


def _labels(lines: Sequence[str], column: int) -> list[str | None]:
    """The element symbol that may stand after each position, as a symbol (`Na`) or a label (`Na1`)."""
    symbols: list[str | None] = []
    for line in lines:
        tokens = _tokens(line)[column:]
        match = _LABEL.fullmatch(tokens[0]) if len(tokens) == 1 else None
        symbols.append(match[1] if match and match[1] in ATOMIC_NUMBER else None)
    return symbols


def _numbers(
    symbols: Sequence[str], counts: Sequence[int], labels: Sequence[str | None], line: int
) -> np.ndarray:
    """Atomic numbers [atom] int64, from the line of symbols (VASP 5) or the symbols after the positions."""
    # VASP 6 writes Fe_pv/5f9c21a0: element, kind of potential, beginning of its hash.
    names = [symbol.split("/")[0].split("_")[0] for symbol in symbols]
    for name, symbol in zip(names, symbols, strict=True):
        if name in ("D", "T"):
            raise ValueError(f"isotope {name}: the element classes know no isotopes; write it as H")
        if name not in ATOMIC_NUMBER:
            raise _unreadable(f"{symbol!r} on the line of elements is no element")
    if not names:
        if None in labels:
            raise ValueError(
                "POSCAR names no elements; write the symbols above the line of counts (VASP 5 format)"
            )
        return np.array([ATOMIC_NUMBER[label or ""] for label in labels], dtype=np.int64)
    each = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    for position, (name, label) in enumerate(zip(each, labels, strict=True)):
        if label is not None and label != name:
            raise _unreadable(
                f"line {line + position + 1} says {label} where the line of elements and its counts say {name}"
            )
    return np.array([ATOMIC_NUMBER[name] for name in each], dtype=np.int64)


def _check_rest(lines: Sequence[str], line: int, count: int) -> None:
    """Refuse what follows the positions, unless it is velocities or the state of VASP's integrator."""
    if line == len(lines) or _first_letter(lines, line) == "l":
        return
    if _first_letter(lines, line) not in ("", "c", "k", "d"):
        raise _unreadable(
            f"its counts announce {count} atoms, but line {line + 1} goes on with {lines[line].strip()[:60]!r}"
        )
    line += 1
    end = line
    while end < len(lines) and lines[end].strip():
        end += 1
    is_state = len(lines[line].split()) == 1
    if not is_state:
        if end - line != count:
            raise _unreadable(
                f"after its {count} positions stand {end - line} lines from line {line + 1} on, which are no velocities"
            )
        _rows(lines, line, count, "a velocity")
