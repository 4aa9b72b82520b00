"""The options of a crystal GPT as users type them, and as typed values.

Without torch, so that a command line can show them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from latentite.base.options import option
from latentite.base.plain import Numbers, Texts, names

HOW, SYMMETRY = "how a crystal GPT is sampled", "symmetry (crystal GPT)"
"""Headings of the options in the help."""

_RANGE = re.compile(r"(\d+)\s*[:-]\s*(\d+)")
_LAST_GROUP = 230


@dataclass(kw_only=True, slots=True)
class GPTOptions:
    """The options of `latentite sample` that only a crystal GPT has; text is taken as the command line takes it."""

    guidance: float | str = field(default=1.0, metadata=option("S", group=HOW))
    """s of u + s (c - u) for the logits of groups, letters and elements, u without and c with the condition."""
    temperature: float = field(default=1.0, metadata=option("T", group=HOW))
    """Of groups, letters, elements and cells: below 1 likelier crystals, and fewer kinds of them."""
    temperature_coords: float = field(default=1.0, metadata=option("T", group=HOW))
    """Of coordinates."""
    top_p: float = field(default=1.0, metadata=option("P", group=HOW))
    """Choose among the likeliest groups, letters, elements and coordinates that hold this share."""
    max_elements: int | None = field(default=None, metadata=option(group=HOW))
    """Most different elements of a crystal [as in training]."""
    space_group: Texts | Numbers = field(default=(), metadata=option("LIST", group=SYMMETRY))
    """One of these: numbers, ranges and symbols such as 225,Fd-3m,195:230."""
    wyckoff: Texts = field(default=(), metadata=option("LETTERS", group=SYMMETRY))
    """Exactly these Wyckoff positions, one letter for each orbit, such as a,b,e,e."""

    def __post_init__(self) -> None:
        self.guidance = _scale(self.guidance)
        space_groups(self.space_group)
        wyckoff_letters(self.wyckoff)
        # The rest is checked where it is used, when the generator is made.


def _scale(value: float | str) -> float:
    try:
        scale = float(value)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(f"guidance must be one number for a crystal GPT, such as 1.5, got {value}")
    return scale


def space_groups(value: Texts | Numbers) -> tuple[int, ...]:
    """Numbers of the space groups of a list of numbers, ranges and symbols, increasing; empty for an empty one.

    Raises:
        ValueError: for what is no space group.
    """
    parts = [value] if isinstance(value, int) else names(value) if isinstance(value, str) else list(value)
    groups: set[int] = set()
    for part in parts:
        text = str(part).strip()
        if (span := _RANGE.fullmatch(text)) is not None:
            first, last = int(span[1]), int(span[2])
            if not 1 <= first <= last <= _LAST_GROUP:
                raise ValueError(
                    f"a range of space_group must go upwards within 1 to {_LAST_GROUP}, such as 195:230, got {text}"
                )
            groups.update(range(first, last + 1))
        elif text:
            groups.add(_space_group(text))
    return tuple(sorted(groups))


def _space_group(text: str) -> int:
    from latentite.nn.condition_values import (
        ConditionConfig,
        ConditionKind,
        parse_value,
    )  # torch takes seconds

    number = parse_value(text, ConditionConfig(name="space_group", kind=ConditionKind.SPACE_GROUP))
    assert isinstance(number, int)
    return number


def wyckoff_letters(value: Texts) -> tuple[int, ...]:
    """Places in the alphabet of Wyckoff letters, increasing: `a,b,e,e`, `a b e e` and `abee` are the same.

    Raises:
        ValueError: for anything but letters.
    """
    from latentite.symmetry.positions import LETTERS

    text = value if isinstance(value, str) else " ".join(value)
    letters = re.sub(r"[\s,]+", "", text)
    if wrong := next((letter for letter in letters if letter not in LETTERS), None):
        raise ValueError(
            f"wyckoff must be letters from a to z and A, one for each orbit (a letter twice for two orbits), such as "
            f"a,b,e,e, got {wrong!r} in {text!r}"
        )
    return tuple(sorted(LETTERS.index(letter) for letter in letters))
