"""Options of a run as users type them, to typed values, with one sentence for each mistake.

Depends on `chain.py` and the readers of `data/` only; `generate.py` uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch

from latentite.crystal import CrystalBatch
from latentite.data.checks import Limits
from latentite.data.records import Rejection
from latentite.data.table import read

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

Texts = str | Sequence[str]
"""Several names: a sequence, or one text with commas."""
Numbers = int | str | Sequence[int]
"""Several whole numbers: one, a sequence, or a text with commas."""
Structures: TypeAlias = "str | Path | Structure | Atoms | Sequence[Structure | Atoms]"
"""A file, a folder, or objects."""

Choice = TypeVar("Choice", bound=StrEnum)


def choice(option: str, value: str, kind: type[Choice]) -> Choice:
    """One of an enum's values.

    Raises:
        ValueError: for any other.
    """
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{option} must be one of {', '.join(kind)}, got {value}") from None


def names(value: Texts) -> list[str]:
    """`a,b` or a sequence as a list, without empty parts."""
    parts = value.split(",") if isinstance(value, str) else value
    return [text for part in parts if (text := part.strip())]


def numbers(option: str, value: Numbers) -> list[int]:
    """`1,2,4`, one number or a sequence as a list.

    Raises:
        ValueError: for what is no whole number.
    """
    parts: Sequence[int | str] = [value] if isinstance(value, int) else value
    parts = names(value) if isinstance(value, str) else parts
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise ValueError(f"{option} must be whole numbers such as 1,2,4, got {value}") from None


def parse_guidance(value: float | str | Mapping[str, float]) -> float | dict[str, float]:
    """`2.0`, or `name=number,...`: one scale for each condition.

    Raises:
        ValueError: for any other text.
    """
    if isinstance(value, Mapping):
        return {name: float(scale) for name, scale in value.items()}
    try:
        if isinstance(value, str) and "=" in value:
            pairs = [part.split("=") for part in names(value)]
            return {name.strip(): float(scale) for name, scale in pairs}
        return float(value)
    except ValueError:
        raise ValueError(
            f"guidance must be a number, or name=number,name=number with one for each condition, got {value}"
        ) from None


def parse_shard(value: str) -> tuple[int, int]:
    """`k/n` as k and n.

    Raises:
        ValueError: unless k is one of 1, ..., n.
    """
    number, _, count = value.partition("/")
    if number.strip().isdecimal() and count.strip().isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise ValueError(f"shard must be k/n with k from 1 to n, such as 2/8, got {value}")


def read_formulas(value: Texts) -> list[str]:
    """Formulas, where each may also be a file with one formula per line (# begins a remark).

    Raises:
        ValueError: for a file without formulas, or what looks like a file and is none.
    """
    found = []
    for name in names(value):
        path = Path(name)
        if not path.is_file():
            if path.suffix in (".txt", ".csv", ".dat") or "/" in name:
                raise ValueError(
                    f"formula must be a formula or a file with one per line, but {name} does not exist"
                )
            found.append(name)
            continue
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        if not any(lines):
            raise ValueError(f"{path} must hold one formula per line, got none")
        found += [line for line in lines if line]
    return found


def source_of(value: Structures) -> str | Path | Sequence[Structure | Atoms]:
    """What the readers take: a path, or a list of structures."""
    if isinstance(value, (str, Path, list, tuple)):
        return value
    return [value]  # type: ignore[list-item]  # one Structure, which is itself a sequence of sites


def read_structures(source: str | Path | Sequence[Structure | Atoms]) -> CrystalBatch:
    """Every structure of a source in its own cell and order of atoms.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when one of them is no usable crystal.
    """
    found = []
    for item in read(source, limits=Limits(max_atoms=None)):
        if isinstance(item, Rejection):
            raise ValueError(
                f"init must hold usable structures, got {item.id} in {item.source}: {item.reason}"
            )
        found.append((item.atomic_numbers, item.frac_coords, item.lattice))
    if not found:
        raise ValueError(f"init must hold a structure, got none in {source}")
    return CrystalBatch.from_arrays(found)


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        ValueError: for a device that is not there.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {name}") from None
    is_there = {
        "cpu": True,
        "mps": has_mps,
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
    }
    if not is_there.get(device.type, False):
        raise ValueError(f"device must be one that torch sees, got {name}; use auto or cpu")
    return device
