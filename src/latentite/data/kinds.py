"""Reads a column of labels: numbers, yes and no, names, nothing, or a mixture that is refused.

A cell keeps the text of its source until the cells of all splits of a data set are known. Then `read_column` decides
once for the whole column, so that one odd cell can neither turn numbers into classes nor mean something else in
another file. What is not understood is a problem with its place and text, never a guess.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float

from latentite.data.readers.records import Value
from latentite.formulas import is_formula


class ColumnKind(StrEnum):
    """Kind of the labels of a whole column."""

    NUMBERS = "numbers"
    BOOLEANS = "booleans"
    """Numbers 1 and 0, written as true and false or yes and no."""
    NAMES = "names"
    EMPTY = "empty"
    """Every cell is missing."""
    UNREADABLE = "unreadable"
    """Numbers and texts, or texts that look like numbers: `problem` says where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """Something to be said of a column, with the first cell that it is about."""

    position: int
    text: str
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column that is decided on."""

    kind: ColumnKind
    numbers: Float[np.ndarray, " cell"]
    """NaN where a label is missing; of names and unreadable columns all are."""
    names: tuple[str | None, ...] = ()
    """Of a column of names: its cells, None where missing."""
    problem: Remark | None = None
    """Reason for which it is unreadable."""
    remarks: tuple[Remark, ...] = ()
    """Cells that were taken as missing or read in a way that is worth a line."""

    @property
    def is_numeric(self) -> bool:
        """True where the labels are numbers, also where all are missing."""
        return self.kind in (ColumnKind.NUMBERS, ColumnKind.BOOLEANS, ColumnKind.EMPTY)


_has_digit = re.compile(r"\d").search
_BLANKS = " \t\r\n\v\f\xa0\u2000-\u200d\u202f\u205f\u2060\u3000\ufeff"
_blank_ends = re.compile(rf"\A[{_BLANKS}]+|[{_BLANKS}]+\Z").sub
# Python's float() alone would take "1_000" and the formulas "InF" and "NaN".
_is_number = re.compile(r"[ \t]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t\r\n]*\Z").match

_NOTHING = (
    "nan +nan -nan nan(ind) -nan(ind) nanq snan 1.#qnan 1.#ind -1.#ind nat na n/a n.a. n.a #n/a #na <na> <nan> null "
    "<null> nil none <none> #div/0! #value! #ref! #name? #num! #null! - -- --- \u2013 \u2014 \u2212"
)
_UNKNOWN = "? . .. ... nd n.d. tbd missing unknown undefined unavailable"
_MISSING = frozenset(_NOTHING.split())
"""Texts, in small letters, that stand for a missing label in a column of numbers and in one of names."""
_MISSING_NUMBERS = frozenset([*_UNKNOWN.split(), "not available", "not applicable", "no data"])
"""The same in columns of numbers alone: among names they may be names."""
_INFINITE = frozenset(
    sign + text for sign in ("", "+", "-") for text in ("inf", "infinity", "1.#inf", "\u221e")
)
_BOOLEANS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}

_AS_ASCII = str.maketrans("\uff0b\uff0d\uff0e\uff45\uff25\u2212\u2010\u2011\u2012\u2013\ufe63", "+-.eE------")
_uncertain = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\([0-9]+(?:\.[0-9]+)?\)((?:[eE][+-]?[0-9]+)?)\Z"
).match
_fortran = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))[dD]([+-]?[0-9]+)\Z").match
_comma = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?\Z").match
_may_be_thousands = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}\Z").match
_UNITS = r"(?:[kmM]?eV|Ry|[kMGT]?Pa|k?bar|\u00c5|K|kcal|kJ|[nmk]m|kg|amu|mol|mV|[kMGT]?Hz)\b|[%\u00b0]"
# A number with separators, a sign or a bound before it, an uncertainty or a unit after it.
_quantity = re.compile(
    rf"(?:[~\u2248\u223c<>=\u2264\u2265\u00b1]|ca\.?|approx\.?)*[{_BLANKS}]*[+-]?[.,]?[0-9][0-9.,'_\u2019{_BLANKS}]*"
    rf"(?:[eEdD][+-]?[0-9]+)?[{_BLANKS}]*"
    rf"(?:\([^)]*\)|(?:\u00b1|\+/?-).*|[x\u00d7*][{_BLANKS}]*10.*|[*\u2020\u2021\u00b2\u00b3\u2070-\u2079\u207b]+)?[{_BLANKS}]*"
    rf"(?P<unit>(?:{_UNITS}).*|[^\W\d_]\S*)?\Z"
).match
_LARGEST = float(np.finfo(np.float32).max)
_SENTINELS = (-999.0, -9999.0, -99999.0, 999.0, 9999.0, 99999.0)


def read_column(cells: Sequence[Value], *, as_names: bool = False, only_numbers: bool = False) -> Column:
    """Decide what a column is, from all its cells at once, and read it.

    Args:
        cells: in the order of the crystals: numbers, texts as they stood, None where there is nothing.
        as_names: take everything as names, numbers too.
        only_numbers: of a column of names give the first one only, which saves the time to sort them.
    """
    if as_names:
        return _names(cells)
    nothing, odd = float("nan"), dict[int, str]()
    stripped: dict[str, str] = {}
    values: list[float] = []
    for cell in cells:
        if isinstance(cell, str):
            if _is_number(cell):
                values.append(float(cell))
                continue
            if cell and cell not in stripped:
                stripped[cell] = _strip(cell)
            if cell and stripped[cell]:
                odd[len(values)] = stripped[cell]
            cell = nothing
        values.append(nothing if cell is None else cell)
    return _Reading(cells, np.array(values, dtype=np.float64), odd).column(only_numbers=only_numbers)


class _Reading:
    """A column on its way: plain numbers are read, every other text is sorted by what it may be."""

    def __init__(
        self, cells: Sequence[Value], values: Float[np.ndarray, " cell"], odd: dict[int, str]
    ) -> None:
        self.cells, self.values = cells, values
        infinite = {
            k: f"{values[k]:g}"
            for k in np.flatnonzero(np.isinf(values)).tolist()
            if isinstance(cells[k], float)
        }
        self.infinite = infinite | {
            k: text for k, text in odd.items() if text.lower() in _INFINITE and text != "InF"
        }
        self.values[list(infinite)] = np.nan
        self.plain = np.flatnonzero(~np.isnan(values))
        self.missing: dict[int, str] = {}
        self.booleans: dict[int, str] = {}
        self.cleaned: dict[int, str] = {}
        self.commas: dict[int, str] = {}
        self.texts: dict[int, str] = {}
        kinds = {text: self._kind(text) for text in set(odd.values())}
        for position, text in odd.items():
            if position not in self.infinite:
                group, number = kinds[text]
                group[position] = text
                self.values[position] = number

    def _kind(self, text: str) -> tuple[dict[int, str], float]:
        """The group that a text belongs to, and its number (NaN where it is none by itself)."""
        lowered, nothing = text.lower(), float("nan")
        if lowered in _BOOLEANS:
            return self.booleans, nothing
        if text != "Na" and (lowered in _MISSING or lowered in _MISSING_NUMBERS or not text.strip("*")):
            return self.missing, nothing
        if text[0].isalpha() or not _has_digit(text):
            return self.texts, nothing
        if (number := _cleaned(text)) is not None:
            return self.cleaned, number
        return (self.commas if _comma(text.translate(_AS_ASCII)) else self.texts), nothing

    def column(self, *, only_numbers: bool) -> Column:
        """The decision."""
        has_numbers = len(self.plain) + len(self.cleaned) + len(self.commas) > 0
        if self.texts and not has_numbers:
            like = next((text for text in dict.fromkeys(self.texts.values()) if _is_quantity(text)), None)
            if like is None and only_numbers:
                _, first = min((self.booleans | self.texts).items())
                return Column(kind=ColumnKind.NAMES, numbers=self.values, names=(first,))
            if like is None:
                return _names(self.cells)
            at = next(position for position, text in self.texts.items() if text == like)
            return self._unreadable(at, like, "looks like a number with something beside it")
        if self.texts:
            position, text = next(iter(self.texts.items()))
            count = len(self.plain) + len(self.cleaned) + len(self.commas)
            return self._unreadable(
                position, text, f"is no number, while {count} of {len(self.cells)} cells are"
            )
        if self.commas and (problem := self._read_commas()) is not None:
            return problem
        if self.booleans:
            if has_numbers and not np.isin(self.values[~np.isnan(self.values)], (0.0, 1.0)).all():
                position, text = next(iter(self.booleans.items()))
                return self._unreadable(position, text, "is yes or no, while other cells are numbers")
            for position, text in self.booleans.items():
                self.values[position] = _BOOLEANS[text.lower()]
        kind = (
            ColumnKind.BOOLEANS if self.booleans else ColumnKind.NUMBERS if has_numbers else ColumnKind.EMPTY
        )
        with np.errstate(invalid="ignore"):
            beyond = np.flatnonzero(np.abs(self.values) > _LARGEST)
        if len(beyond):
            position = int(beyond[0])
            return self._unreadable(
                position, str(self.cells[position]), "is larger than a label can be (3.4e38)"
            )
        return Column(kind=kind, numbers=self.values, remarks=tuple(self._remarks()))

    def _unreadable(self, position: int, text: str, words: str) -> Column:
        return Column(
            kind=ColumnKind.UNREADABLE,
            numbers=np.full(len(self.cells), np.nan),
            problem=Remark(position=position, text=text, words=words),
        )

    def _read_commas(self) -> Column | None:
        """Decimal commas, where nothing else can be meant; else the problem."""
        position, text = next(iter(self.commas.items()))
        with_point = [k for k in self.plain.tolist() if not str(self.cells[k]).strip().lstrip("+-").isdigit()]
        if with_point or self.cleaned:
            return self._unreadable(position, text, "has a comma, while other numbers have a point")
        if all(_may_be_thousands(text) for text in self.commas.values()):
            whole, fraction = text.split(",")
            both = f"may be {whole}{fraction} or {whole}.{fraction}"
            return self._unreadable(position, text, f"{both}, and no other cell says which")
        for position, text in self.commas.items():
            self.values[position] = float(text.translate(_AS_ASCII).replace(",", "."))
        return None

    def _remarks(self) -> list[Remark]:
        remarks: list[Remark] = []

        def say(about: dict[int, str], words: str) -> None:
            kinds: dict[str, list[int]] = {}
            for position, text in about.items():
                kinds.setdefault(text if words.endswith("missing") else "", []).append(position)
            for positions in kinds.values():
                text, count = about[positions[0]], _cells(len(positions))
                remarks.append(Remark(position=positions[0], text=text, words=f"{count} {words}"))

        say(self.missing, "taken as missing")
        say(self.infinite, "not finite and taken as missing")
        say(self.cleaned, "cleaned to plain numbers")
        say(self.commas, "read with decimal commas, as the whole column has them")
        if self.booleans and len(self.plain):
            say(self.booleans, "read as 1 or 0, as the numbers of this column are")
        return remarks + _hints(self.values, self.cells)


def _strip(text: str) -> str:
    """Without blanks of any kind at either end."""
    return text if text.isalnum() else _blank_ends("", text)


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count:,} cells"


def _hints(values: Float[np.ndarray, " cell"], cells: Sequence[Value]) -> list[Remark]:
    """Numbers that are read as they stand, and may not be meant so."""
    hints = []
    known = np.abs(values[~np.isnan(values)])
    for number in _SENTINELS:
        if (
            len(positions := np.flatnonzero(values == number))
            and (known[known != abs(number)] < abs(number) / 2).all()
        ):
            words = f"{_cells(len(positions))} kept as numbers; empty them if they stand for missing labels"
            hints.append(Remark(position=int(positions[0]), text=str(cells[positions[0]]), words=words))
    rounded = values.astype(np.float32).astype(np.float64)
    lost = np.flatnonzero((values != rounded) & ~np.isnan(values))
    if len(lost) and (np.abs(values[lost]) > 2**24).any() and (known == np.round(known)).all():
        words = "whole numbers above 16,777,216 lose digits; name the column as categorical if they are codes"
        hints.append(Remark(position=int(lost[0]), text=str(cells[lost[0]]), words=words))
    return hints


def _cleaned(text: str) -> float | None:
    """A text that has one reading as a number only: other signs for minus, an uncertainty, a Fortran exponent."""
    plain = text.translate(_AS_ASCII)
    if not plain.isascii():
        plain = "".join(str(unicodedata.decimal(letter, letter)) for letter in plain)
    if match := _uncertain(plain):
        plain = match[1] + match[2]
    elif match := _fortran(plain):
        plain = f"{match[1]}e{match[2]}"
    return float(plain) if _is_number(plain) else None


def _is_quantity(text: str) -> bool:
    """True for a text that looks like a number, not plainly written; `2H`, `4/mmm`, `3/2` are names."""
    if not _has_digit(text) or (text[0].isalpha() and not text.startswith(("ca", "approx"))):
        return False
    plain = text.translate(_AS_ASCII)
    quantity = _quantity(plain)
    if quantity is None or plain.lower().startswith("0x"):
        return quantity is not None
    unit = quantity["unit"]
    if not unit or re.match(_UNITS, unit):
        return True
    number = plain[: quantity.start("unit")]
    return bool(re.search(rf"[.,~<>{_BLANKS}]", number))


def _names(cells: Sequence[Value]) -> Column:
    """Every cell as a name. In a column of formulas `NaN` and `InF` are compounds, elsewhere nothing."""
    is_number = all(
        cell is None or isinstance(cell, float) or _is_number(cell) or not cell.strip() for cell in cells
    )
    as_names = {cell: _name(cell, is_number=is_number) for cell in set(cells)}
    texts = [as_names[cell] for cell in cells]
    kinds = dict.fromkeys(text for text in texts if text)
    nothing = {text for text in kinds if text.lower() in _MISSING or text.lower() in _INFINITE}
    nothing -= {"Na"}
    if "+" in kinds:
        nothing -= {"-", "\u2212", "\u2013"}
    if formulas := {text for text in nothing if is_formula(text)}:
        others = [text for text in kinds if text not in nothing]
        if others and all(map(is_formula, others)):
            nothing -= formulas
    first, counts = {text: texts.index(text) for text in kinds if text in nothing}, Counter(texts)
    return Column(
        kind=ColumnKind.NAMES if set(kinds) - nothing else ColumnKind.EMPTY,
        numbers=np.full(len(cells), np.nan),
        names=tuple(None if not text or text in nothing else text for text in texts),
        remarks=tuple(
            Remark(position=position, text=text, words=f"{_cells(counts[text])} taken as missing")
            for text, position in first.items()
        ),
    )


def _name(cell: Value, *, is_number: bool) -> str | None:
    """One cell as a name; `225`, `225.0` and the number 225 are one name where the whole column is numbers."""
    if cell is None or (isinstance(cell, str) and not is_number):
        return None if cell is None else _strip(cell)
    if isinstance(cell, str) and not cell.strip():
        return None
    number = float(cell)
    if isinstance(cell, str) and not number.is_integer():
        return cell.strip()
    return str(int(number)) if number.is_integer() else repr(number) if number == number else None
