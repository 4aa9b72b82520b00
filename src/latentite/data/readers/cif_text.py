"""CIF text to blocks of tags and values, after the grammar of CIF 1.1 (Hall, Allen & Brown 1991; IUCr, Vol. G, 2.2).

Strict where a reader could be led astray: a text field that never ends, a loop that is cut off, a value too many
after a tag that matters. Tags are brought to one form, so that `_cell.length_a` of DDLm, `_CELL_LENGTH_A` and
`_cell_length_a` are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    (?P<text>^;.*?^;)                                # a text field: from one line that starts with ; to the next
    | (?P<comment>\#[^\n]*)
    | (?P<quote>'(?:[^'\n]|'(?=\S))*'(?=\s|\Z)       # ends at a quotation mark before white space
              | "(?:[^"\n]|"(?=\S))*"(?=\s|\Z))
    | (?P<bare>\S+)
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?)(?:\(\d*\))?\Z", re.ASCII)
_FRACTION = re.compile(r"([+-]?\d+)/([1-9]\d*)\Z", re.ASCII)
_MATTERS = ("_cell_", "_symmetry_", "_space_group_", "_atom_site_", "_chemical_formula_sum")
MISSING = frozenset({"?", "."})
"""Values that say "not known" and "does not apply"."""

Value = str | list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One `data_` block: its name, and by tag its value, or its column where the tag stands in a loop."""

    name: str
    values: dict[str, Value] = field(default_factory=dict)

    def text(self, tag: str) -> str | None:
        """The value of a tag; None where it is missing, `?` or `.`.

        Raises:
            ValueError: when a loop gives several different ones.
        """
        values = {value for value in self.column(tag) if value not in MISSING}
        if len(values) > 1:
            raise ValueError(f"{tag} must be one value, got {', '.join(sorted(map(repr, values)))}")
        return values.pop() if values else None

    def column(self, tag: str) -> list[str]:
        """All values of a tag; an empty list where it is missing."""
        value = self.values.get(tag, [])
        return [value] if isinstance(value, str) else value

    @property
    def has_atoms(self) -> bool:
        """True where it has, or should have, a list of atoms."""
        return any(
            tag.startswith(("_atom_site_fract_", "_atom_site_cartn_")) or tag == "_atom_site_label"
            for tag in self.values
        )


def number(text: str) -> float:
    """A CIF number without its standard uncertainty: `5.64(2)` is 5.64, `1/3` a third.

    Raises:
        ValueError: for anything else.
    """
    if parts := _NUMBER.match(text):
        return float(parts[1].replace("d", "e").replace("D", "e"))
    if parts := _FRACTION.match(text):
        return int(parts[1]) / int(parts[2])
    raise ValueError(f"must be a number, got {text!r}")


def read_blocks(text: str) -> list[Block]:
    """Every block of a CIF, in order.

    Raises:
        ValueError: with the line at which the text breaks the grammar.
    """
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    blocks: list[Block] = []
    tokens = _Tokens(text)
    while (token := tokens.take()) is not None:
        kind, word = token
        keyword = word.lower() if kind == "bare" else ""
        if keyword.startswith("data_"):
            blocks.append(Block(name=word[5:]))
        elif not blocks:
            # Some programs write global_ or a title before the first block.
            if keyword.startswith("_") or keyword == "loop_":
                raise tokens.error("a value stands before the first data_ line")
        elif keyword.startswith("save_"):
            raise tokens.error("save frames belong to dictionaries, not to crystals")
        elif keyword == "loop_":
            _read_loop(tokens, blocks[-1])
        elif keyword.startswith("_"):
            _read_pair(tokens, blocks[-1], _canonical(word))
        elif keyword not in ("global_", "stop_"):
            _refuse_stray(tokens, token)
    if not blocks:
        raise ValueError("no data_ line; a CIF begins with one")
    return blocks


class _Tokens:
    """The tokens of a text with one token of foresight, and where they stand."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._stream = self._scan()
        self._position = 0
        self._next = next(self._stream, None)
        self.last_tag = ""

    def _scan(self) -> Iterator[tuple[str, str, int]]:
        for match in _TOKEN.finditer(self._text):
            kind, word = match.lastgroup or "", match.group()
            if kind == "comment":
                continue
            if kind == "text":
                word = word[1:-1].strip()
            elif kind == "quote":
                word = word[1:-1]
            elif word[0] == ";" and self._starts_line(match.start()):
                self._position = match.start()
                raise self.error("a text field begins and never ends; the file is cut off")
            is_open = kind == "bare" and word[0] in "'\""
            yield ("open quote" if is_open else "bare" if kind == "bare" else "value"), word, match.start()

    def _starts_line(self, position: int) -> bool:
        return position == 0 or self._text[position - 1] == "\n"

    def take(self) -> tuple[str, str] | None:
        """The next token as (bare, value or open quote; text), None at the end."""
        token = self._next
        if token is None:
            return None
        self._position = token[2]
        self._next = next(self._stream, None)
        return token[:2]

    def next_is_value(self) -> bool:
        """True where the next token is a value: no tag, no keyword, not the end."""
        if self._next is None:
            return False
        kind, word, _ = self._next
        lowered = word.lower()
        is_keyword = lowered.startswith(("_", "data_", "save_")) or lowered in ("loop_", "global_", "stop_")
        return kind != "bare" or not is_keyword

    def error(self, reason: str) -> ValueError:
        """The reason with the line of the token taken last."""
        line = self._text.count("\n", 0, self._position) + 1
        return ValueError(f"line {line}: {reason}")


def _canonical(tag: str) -> str:
    return tag.lower().replace(".", "_").rstrip("_")


def _store(tokens: _Tokens, block: Block, tag: str, value: Value) -> None:
    if tag.startswith(_MATTERS) and block.values.get(tag, value) != value:
        raise tokens.error(f"{tag} is given twice, with different values")
    block.values[tag] = value


def _read_pair(tokens: _Tokens, block: Block, tag: str) -> None:
    tokens.last_tag = tag
    if tokens.next_is_value():
        token = tokens.take()
        assert token is not None
        _refuse_open_quote(tokens, token, [tag])
        _store(tokens, block, tag, token[1])
    elif tag.startswith(_MATTERS):
        raise tokens.error(f"{tag} has no value")


def _read_loop(tokens: _Tokens, block: Block) -> None:
    tags: list[str] = []
    while not tokens.next_is_value() and (token := tokens.take()) is not None:
        if not token[1].startswith("_"):
            raise tokens.error(
                "a loop_ must name its tags and then give values; the file is cut off or broken"
            )
        tags.append(_canonical(token[1]))
    values: list[str] = []
    while tokens.next_is_value() and (token := tokens.take()) is not None:
        _refuse_open_quote(tokens, token, tags)
        values.append(token[1])
    matters = any(tag.startswith(_MATTERS) for tag in tags)
    if not tags or (matters and (not values or len(values) % len(tags))):
        raise tokens.error(
            f"the loop of {tags[0] if tags else 'nothing'} has {len(tags)} columns and {len(values)} values; "
            "the file is cut off or broken"
        )
    for column, tag in enumerate(tags):
        _store(tokens, block, tag, values[column :: len(tags)])


def _refuse_open_quote(tokens: _Tokens, token: tuple[str, str], tags: list[str]) -> None:
    if token[0] == "open quote" and any(tag.startswith(_MATTERS) for tag in tags):
        raise tokens.error(f"a quotation begins and never ends: {token[1][:40]}")


def _refuse_stray(tokens: _Tokens, token: tuple[str, str]) -> None:
    """A value too many is harmless after a title, and changes the meaning of what matters."""
    _refuse_open_quote(tokens, token, [tokens.last_tag])
    if tokens.last_tag.startswith(_MATTERS):
        raise tokens.error(
            f"{tokens.last_tag} has more than one value ({token[1][:40]!r}); quote values with blanks"
        )
