"""Bytes that went wrong: cut, flipped, doubled, swapped, or replaced by what breaks parsers."""

from __future__ import annotations

import random

TOKENS = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\n",
        b"\r",
        b"\t",
        b" ",
        b",",
        b";",
        b'"',
        b"'",
        b"#",
        b"_",
        b"\\",
        b"{",
        b"[",
        b"(",
        b"%s",
    ),
    *(
        b"NaN",
        b"inf",
        b"-1",
        b"0",
        b"1e999",
        b"99999999999999999999",
        b"-0.0",
        b"1_000",
        b"0x10",
        b"1.5.2",
        b"1D0",
    ),
    *(
        b"data_",
        b"loop_",
        b"global_",
        b"stop_",
        b"save_",
        b"?",
        b".",
        b"None",
        b"null",
        b"true",
        b"__import__('os')",
    ),
    *(
        b"\xe2\x88\x92",
        b"\xc2\xa0",
        b"\xe2\x80\xa8",
        b"\xd9\xa1",
        b"../",
        b"/etc/passwd",
        b"http://localhost:1/x",
        b"A" * 5000,
    ),
)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """One to four wounds."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = chance.choice(_WOUNDS)(data, chance)
    return bytes(data)


def _flip(data: bytearray, chance: random.Random) -> bytearray:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def _overwrite(data: bytearray, chance: random.Random) -> bytearray:
    token = chance.choice(TOKENS)
    place = chance.randint(0, len(data))
    data[place : place + len(token)] = token
    return data


def _insert(data: bytearray, chance: random.Random) -> bytearray:
    place = chance.randint(0, len(data))
    data[place:place] = chance.choice(TOKENS)
    return data


def _number(data: bytearray, chance: random.Random) -> bytearray:
    """Another digit in place of a digit."""
    places = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
    if places:
        data[chance.choice(places)] = chance.choice(b"0123456789-.e ")
    return data


def _delete(data: bytearray, chance: random.Random) -> bytearray:
    start = chance.randint(0, len(data))
    del data[start : start + chance.choice((1, 2, 8, 64, 512))]
    return data


def _cut(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randint(0, len(data))]


def _double(data: bytearray, chance: random.Random) -> bytearray:
    start = chance.randint(0, len(data))
    piece = data[start : start + chance.choice((4, 32, 256))]
    data[start:start] = piece * chance.choice((1, 2, 20))
    return data


def _line(data: bytearray, chance: random.Random) -> bytearray:
    """A line less, twice, or at another place."""
    lines = bytes(data).split(b"\n")
    line = lines.pop(chance.randrange(len(lines)))
    for _ in range(chance.choice((0, 1, 2))):
        lines.insert(chance.randint(0, len(lines)), line)
    return bytearray(b"\n".join(lines))


_WOUNDS = (_flip, _overwrite, _insert, _number, _number, _delete, _cut, _double, _line)
