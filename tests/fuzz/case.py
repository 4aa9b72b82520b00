"""One input of the fuzzer: its files, how it is given to the product, and what is known of its right reading."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers, fractional coordinates and lattice (row vectors, Å)."""

ANY = "*"
"""In place of an id: every crystal of the case."""


class Entry(StrEnum):
    """The part of the product that reads a case."""

    CRYSTALS = "crystals"
    CHECKPOINT = "checkpoint"


@dataclass(kw_only=True, slots=True)
class Case:
    """An input, with everything that its reading is held against.

    `crystals` says what the crystal of an id is; a case may know it for some ids, for all (`ANY`) or for none.
    A reader may always refuse; what it takes must be that crystal.
    """

    format: str
    index: int
    kind: str
    """What was done to a good file, in a few words."""
    source: str
    """Path of the file or folder that is read, inside the case's folder."""
    entry: Entry = Entry.CRYSTALS
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    """Symbolic links by path; `{outside}` in a target is a folder beside the case's."""
    rows: int | None = None
    """How many rows, frames or files a reader must count; None where that is a matter of opinion."""
    crystals: dict[str, Arrays] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    """Ids that no reader may take: the file contradicts itself, or has not one ordered crystal there."""
    shares: dict[int, float] | None = None
    """Of the atoms by atomic number, which every crystal must have; None where that is not known."""
    volume: float | None = None
    """Å^3 per atom, which every crystal must have; None where that is not known."""
    labels: dict[str, float | None] | None = None
    """The number in column `label` by id, None where it is missing; None where that is not tested."""
    arguments: list[str] = field(default_factory=list)
    """Further ones of the command."""
    is_same: bool = False
    """A checkpoint that, if it is read, must give what the undamaged one gives."""

    @property
    def name(self) -> str:
        return f"{self.format}-{self.index}"

    def write(self, folder: Path, outside: Path) -> None:
        """The files under `folder`, ready to be read."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name, target in self.links.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target.format(outside=outside))

    def to_json(self) -> str:
        """Everything but the files."""
        crystals = {
            name: [part.tolist() for part in (numbers, coords, lattice)]
            for name, (numbers, coords, lattice) in self.crystals.items()
        }
        plain = {
            name: getattr(self, name) for name in self.__slots__ if name not in ("files", "links", "crystals")
        }
        return json.dumps({**plain, "crystals": crystals})

    @staticmethod
    def from_json(text: str) -> Case:
        values: dict[str, Any] = json.loads(text)
        values["entry"] = Entry(values["entry"])
        if values["shares"] is not None:
            values["shares"] = {int(number): share for number, share in values["shares"].items()}
        values["crystals"] = {
            name: tuple(np.array(part) for part in arrays) for name, arrays in values["crystals"].items()
        }
        return Case(**values)


Maker = Callable[[int, random.Random], Case]
"""From an index and a source of chance to a case."""


def chance_of(seed: int, format: str, index: int) -> random.Random:
    """The one source of chance of a case, so that it can be made again alone."""
    return random.Random(f"{seed}/{format}/{index}")
