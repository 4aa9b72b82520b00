"""Space groups by the names that files give them, and their operations, after the tables of spglib.

spglib's database holds 530 settings of the 230 groups (Seto's list): Hall symbols, Hermann-Mauguin symbols and
choices of axes and origin. `named` finds those that a Hermann-Mauguin symbol can mean, in any of the spellings in
use; several remain where the symbol leaves the origin or the axes open, none where the symbol is not understood.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from spglib import SpaceGroupType

NUM_SETTINGS = 530
_GRID = 120
"""Translations are multiples of 1/120: of the 1/24 of the settings, and of the fifths of some supercells."""
_GRID_TOLERANCE = 0.0035  # 0.33 is a third
METRIC_TOLERANCE = 0.02
"""Largest change of the cell's scalar products by an operation, relative to the lengths: 2 % or about one degree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """Symmetry operations `x -> rotation @ x + translation` on fractional coordinates (columns)."""

    rotations: Int[np.ndarray, "operation 3 3"]
    translations: Float[np.ndarray, "operation 3"]
    """Multiples of 1/120, from 0 to 1."""

    def __len__(self) -> int:
        return len(self.rotations)

    @property
    def is_identity(self) -> bool:
        """True for P1: nothing but `x, y, z`."""
        return len(self) == 1 and bool(self.keys()[0] == IDENTITY.keys()[0])

    @staticmethod
    def on_grid(
        rotations: Int[np.ndarray, "operation 3 3"], translations: Float[np.ndarray, "operation 3"]
    ) -> Operations:
        """Operations as a file gives them, each once, sorted, with translations such as 0.333 made exact.

        Raises:
            ValueError: when a translation is no multiple of 1/120.
        """
        steps = translations * _GRID
        if np.abs(steps - np.rint(steps)).max(initial=0.0) > _GRID_TOLERANCE * _GRID:
            raise ValueError("a symmetry operation moves by a fraction of the cell that no space group has")
        given = Operations(rotations=rotations, translations=np.rint(steps) / _GRID % 1.0)
        _, first = np.unique(given.keys(), return_index=True)
        return Operations(rotations=given.rotations[first], translations=given.translations[first])

    def keys(self) -> Int[np.ndarray, " operation"]:
        """One whole number per operation, equal exactly where operations are equal modulo lattice translations."""
        steps = np.rint(self.translations * _GRID).astype(np.int64) % _GRID
        entries = self.rotations.reshape(-1, 9) + 3  # -1, 0 and 1, in cells of unusual axes up to 3
        return entries @ (7 ** np.arange(9)) * _GRID**3 + steps @ (_GRID ** np.arange(3))

    def is_group(self) -> bool:
        """True where the product of any two is among them."""
        if np.abs(self.rotations).max(initial=0) > 3:
            return False
        keys = self.keys()
        rows = self.rotations.reshape(-1, 3).astype(
            np.float64
        )  # floats: numpy multiplies whole numbers slowly
        rotations = (
            (rows @ np.hstack(list(self.rotations))).reshape(len(self), 3, len(self), 3).swapaxes(1, 2)
        )
        moved = (rows @ self.translations.T).reshape(len(self), 3, len(self)).swapaxes(1, 2)
        products = Operations(
            rotations=np.rint(rotations).astype(np.int64).reshape(-1, 3, 3),
            translations=(moved + self.translations[:, None]).reshape(-1, 3),
        )
        return bool(np.isin(products.keys(), keys).all())

    def fits(self, lattice: Float[np.ndarray, "3 3"]) -> bool:
        """True where each leaves the cell (row vectors, Å) as it is, within 2 % or about one degree."""
        metric = lattice @ lattice.T
        lengths = np.sqrt(np.diag(metric))
        moved = np.einsum("aji,jk,akl->ail", self.rotations, metric, self.rotations)
        # Both forms are compared in the lengths of the given cell, so that a long axis hides nothing.
        return bool(np.all(np.abs(moved - metric) <= METRIC_TOLERANCE * np.outer(lengths, lengths)))

    def group_number(self) -> int | None:
        """Number of their space group, 1 to 230; None where spglib finds none."""
        import spglib

        try:
            entry = spglib.get_spacegroup_type_from_symmetry(self.rotations, self.translations)
        except spglib.SpglibError:
            return None
        return None if entry is None else int(entry.number)


IDENTITY = Operations(rotations=np.eye(3, dtype=np.int64)[None], translations=np.zeros((1, 3)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A space group in one choice of axes and origin: one row of spglib's table."""

    hall_number: int
    """Position in the table, from 1."""
    number: int
    choice: str
    """Axes and origin: `H`, `R`, `1`, `2`, `b1`, `cab`, ...; empty where there is one only."""
    centring: str = ""
    """Letter of a centred cell of a triclinic group (`C -1`), which the table does not list."""

    def operations(self) -> Operations:
        """All operations of the group in this setting."""
        return _operations(self)


_CENTRINGS = {
    "A": [(0, 1, 1)],
    "B": [(1, 0, 1)],
    "C": [(1, 1, 0)],
    "I": [(1, 1, 1)],
    "F": [(0, 1, 1), (1, 0, 1), (1, 1, 0)],
}
"""Vectors of centred cells in halves of the axes."""


@lru_cache(maxsize=64)
def _operations(setting: Setting) -> Operations:
    import spglib

    tables = spglib.get_symmetry_from_database(setting.hall_number)
    assert tables is not None, setting
    rotations = np.array(tables["rotations"], dtype=np.int64)
    translations = np.rint(np.array(tables["translations"]) * _GRID) / _GRID % 1.0
    shifts = np.array([(0, 0, 0), *_CENTRINGS.get(setting.centring, [])]) / 2.0
    return Operations(
        rotations=np.tile(rotations, (len(shifts), 1, 1)),
        translations=(shifts[:, None] + translations).reshape(-1, 3) % 1.0,
    )


@lru_cache(maxsize=1)
def _table() -> list[tuple[Setting, SpaceGroupType]]:
    import spglib

    rows: list[tuple[Setting, SpaceGroupType]] = []
    for hall_number in range(1, NUM_SETTINGS + 1):
        kind = spglib.get_spacegroup_type(hall_number)
        assert kind is not None, "spglib's table has 530 rows"
        rows.append((Setting(hall_number=hall_number, number=kind.number, choice=kind.choice), kind))
    return rows


# ------------------------------------------------------------------------------------------ names


def named(symbol: str) -> frozenset[Setting]:
    """Settings that a Hermann-Mauguin symbol can mean, whatever its spelling; none where it is not understood.

    Understood are blanks or none, lower and upper case, `21`, `2_1`, `2(1)` and `2~1~`, short and full symbols,
    a bar as minus or overline, `m3m` for `m-3m`, and after the symbol the choice of axes and origin as `:H`,
    ` R`, `:2`, ` S`, ` Z`, `:b1`, `(origin choice 2)`, `(hexagonal axes)`.
    """
    return _names().get(_spelling(symbol), frozenset())


def with_hall_symbol(symbol: str) -> frozenset[Setting]:
    """The setting of a Hall symbol (several rows where they are equal); none where the table has no such symbol."""
    return _rows_by_text("hall_symbol").get(_words(symbol), frozenset())


def with_schoenflies_symbol(symbol: str) -> frozenset[Setting]:
    """As `with_number`, for a Schoenflies symbol such as `Oh^5`."""
    rows = _rows_by_text("schoenflies").get(_words(symbol), frozenset())
    return frozenset().union(*(with_number(row.number) for row in rows))


def with_number(number: int) -> frozenset[Setting]:
    """Settings that a number alone can mean: the standard axes, with either origin or kind of rhombohedral axes."""
    rows = [setting for setting, _ in _table() if setting.number == number]
    return frozenset([row for row in rows if row.choice in ("1", "2", "H", "R")] or rows[:1])


def with_choice(code: str) -> frozenset[Setting]:
    """Settings, of all groups, with one code of axes and origin (`_space_group_IT_coordinate_system_code`)."""
    wanted = code.lower().removesuffix("abc")
    return frozenset(setting for setting, _ in _table() if setting.choice.lower() == wanted)


def _words(symbol: str) -> str:
    return " ".join(symbol.replace("_", " ").split()).lower()


@lru_cache(maxsize=2)
def _rows_by_text(column: str) -> dict[str, frozenset[Setting]]:
    by_text: dict[str, set[Setting]] = {}
    for setting, kind in _table():
        by_text.setdefault(_words(getattr(kind, column)), set()).add(setting)
    return {text: frozenset(settings) for text, settings in by_text.items()}


_OVERLINE = re.compile("(\\d)[\u0304\u0305]|\\\\(?:overline|bar)\\{(\\d)\\}")
_TITLES = {
    "origin choice": ":", "origin": ":", "hexagonal axes": ":h", "rhombohedral axes": ":r",
    "hexagonal": ":h", "rhombohedral": ":r", "setting": "",
}  # fmt: skip


def _spelling(symbol: str) -> str:
    """One spelling for all of one symbol: lower case, no blanks, `21/c`, `-3`, the choice after a colon."""
    text = re.sub("[\u2010-\u2015\u2212\u00ad]", "-", unicodedata.normalize("NFKD", symbol).lower())
    text = _OVERLINE.sub(lambda match: f"-{match[1] or match[2]}", text)
    text = re.sub(r"\s+\((?:no\.?\s*)?\d+\)\s*$|\s*#\s*\d+\s*$|</?su[bp]>", "", text)  # the group's number
    for title, short in _TITLES.items():
        text = text.replace(title, short)
    return re.sub(r":+", ":", re.sub(r"[\s_~\\{}$()\"']", "", text))


_ORIGINS = {"1": ("1", "s"), "2": ("2", "z")}
_OLDER = {
    191: "abm2 bma2 b2cm c2mb cm2a ac2m",
    203: "aba2 bba2 b2cb c2cb cc2a ac2a",
    304: "cmca ccmb abma acam bbcm bmab",
    316: "cmma cmmb abmm acmm bmcm bmam",
    322: "ccca ccca cccb cccb abaa abaa acaa acaa bbcb bbcb bbab bbab",
}
"""By their first row, symbols of the groups 39, 41, 64, 67 and 68 before the e glide of 1992 (de Wolff et al., Acta
Cryst. A48, 727), in the order of the table; most files have these."""


@lru_cache(maxsize=1)
def _names() -> dict[str, frozenset[Setting]]:
    """Settings by every spelling that can mean them."""
    by_name: dict[str, set[Setting]] = {}
    for setting, kind in _table():
        for symbol in _symbols(setting, kind):
            for suffix in ("", *_suffixes(setting.choice)):
                by_name.setdefault(symbol + suffix, set()).add(setting)
    for letter, bar in itertools.product(_CENTRINGS, ("", "-")):
        group = 2 if bar else 1
        centred = Setting(hall_number=group, number=group, choice="", centring=letter)
        by_name[f"{letter.lower()}{bar}1"] = {centred}
    return {name: frozenset(settings) for name, settings in by_name.items()}


def _symbols(setting: Setting, kind: SpaceGroupType) -> set[str]:
    """All spellings of the symbol of a row, without its choice."""
    full = _spelling(kind.international_full)
    if 3 <= setting.number <= 15:
        # Monoclinic: `P 1 21/n 1`, and `P 21/n` without the ones; the table's short symbol is not the row's own.
        return {full, "".join(_spelling(part) for part in kind.international_full.split() if part != "1")}
    symbols = {full, _spelling(kind.international_short), *map(_spelling, kind.international.split("="))}
    for first, older in _OLDER.items():
        if 0 <= setting.hall_number - first < len(older.split()):
            symbols.add(older.split()[setting.hall_number - first])
    if setting.number >= 195:
        symbols |= {
            re.sub(r"^(.[a-z])-3", r"\g<1>3", symbol) for symbol in symbols
        }  # m3m, as it was before 1983
    return symbols


def _suffixes(choice: str) -> list[str]:
    """Spellings of a choice after the symbol: `:2` or ICSD's ` Z` for an origin, `:H` or ` H` for axes."""
    if not choice:
        return []
    head, rest = choice[0], choice[1:].lower()
    if head in _ORIGINS:
        # The symbol tells the axes already: `P n c b :2` is the table's `2cab`.
        written = [f":{origin}{axes}" for origin in _ORIGINS[head] for axes in {"", rest}]
        return [*written, _ORIGINS[head][1]]
    lowered = choice.lower()
    return [f":{lowered}", lowered] if lowered in ("h", "r") else [f":{lowered}"]
