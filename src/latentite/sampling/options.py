"""The options that every generator has: as users type them, and as typed values, with one sentence for each mistake.

Without torch, so that a command line can show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from latentite.base.machine import BATCH_SIZE
from latentite.base.options import option
from latentite.base.plain import Numbers, Texts, check_seed, choice, names
from latentite.hub import DEFAULT_GPT

if TYPE_CHECKING:
    from latentite.checkpoint import Weights
    from latentite.sampling.folder import Format

HOW, WHAT, LONG = "how it is sampled", "what is asked", "long runs"
"""Headings of the options in the help."""


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """The options of `latentite sample` that every generator has; text is taken wherever the command line takes it."""

    ckpt: str | Path = field(default=DEFAULT_GPT, metadata=option("CKPT"))
    """A checkpoint file, or a hub name."""
    out: str | Path | None = field(default=None, metadata=option("DIR"))
    """A new or empty folder, or with --resume that of the run.

    None keeps the crystals in memory."""
    num_samples: int = 64
    """Number of crystals; of each request where several are made, such as formulas."""
    batch_size: int = BATCH_SIZE
    """Most crystals at once.

    Halved when memory runs out."""
    seed: int = 0
    """Of everything random."""
    format: Texts = field(default=("cif", "extxyz"), metadata=option("LIST"))
    """One or more of cif, extxyz, json, joined by commas."""
    device: str = field(default="auto", metadata=option(group=HOW))
    """One of auto, cpu, cuda, cuda:1, ..., mps."""
    weights: Weights | str | None = field(default=None, metadata=option(group=HOW, kind=str))
    """ema (moving average) or raw (last step) [ema where there is one]."""
    conditions: str | Mapping[str, object] | None = field(
        default=None, metadata=option("NAME=VALUE,...", group=WHAT)
    )
    """Values of properties, such as band_gap=2.0,chemical_system=Li-Fe-O."""
    num_atoms: str | int | None = field(default=None, metadata=option("N|N:M", group=WHAT))
    """Atoms per cell, such as 12 or 8:20 [as in training]."""
    num_atoms_distribution: str | Path = field(default="train", metadata=option("train|FILE", group=WHAT))
    """From where numbers of atoms are drawn: the training set, or a CSV or JSON of counts."""
    formula: Texts = field(default=(), metadata=option("FORMULA|FILE", group=WHAT, repeatable=True))
    """Exactly this composition; repeatable.

    A file has one formula per line."""
    formula_units: Numbers | None = field(default=None, metadata=option("LIST", group=WHAT))
    """Formula units per cell, such as 1,2,4 [as in training].

    None: as many as sizes of the training set allow, as often as these occur."""
    elements_allowed: Texts | None = field(default=None, metadata=option("LIST", group=WHAT))
    """No other elements, such as Li,Fe,O."""
    elements_required: Texts | None = field(default=None, metadata=option("LIST", group=WHAT))
    """Each of these at least once, such as Li,O."""
    elements_forbidden: Texts | None = field(default=None, metadata=option("LIST", group=WHAT))
    """None of these, such as Pb,Hg."""
    min_distance_scaled: float = field(default=0.0, metadata=option("D", group=WHAT))
    """Sample again while atoms are closer than D times their summed covalent radii, such as 0.7."""
    resume: bool = field(default=False, metadata=option(group=LONG))
    """Go on with the run in DIR, if there is one; a larger --num-samples extends it."""
    shard: str = field(default="1/1", metadata=option("K/N", group=LONG))
    """The K-th of N parts of the run, each into its own DIR."""
    no_replace: bool = field(default=False, metadata=option(group=LONG))
    """Do not sample again what cannot be used."""
    max_attempts: int = field(default=20, metadata=option(group=LONG))
    """Tries at each crystal before it counts as failed."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("num_samples", "batch_size", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.min_distance_scaled < 2:
            raise ValueError(
                "min_distance_scaled must be 0 or more and below 2 (times the sum of two covalent radii), such as 0.7, "
                f"got {self.min_distance_scaled}"
            )
        parse_shard(self.shard)
        self.formats()
        if self.out is None and self.resume:
            raise ValueError("out must be given together with resume, which is about its files")
        if self.size_option is not None and self.formula:
            raise ValueError(
                f"{self.size_option} must not be given with formula or init, which say how many atoms there are; "
                "formula_units chooses the size of the cell"
            )

    @property
    def size_option(self) -> str | None:
        """The option that says how many atoms crystals have; None for the sizes of the training set."""
        if self.num_atoms is not None:
            return "num_atoms"
        return None if str(self.num_atoms_distribution) == "train" else "num_atoms_distribution"

    def formats(self) -> tuple[Format, ...]:
        """The formats to write, each once."""
        from latentite.sampling.folder import Format  # imports torch, which takes seconds

        formats = dict.fromkeys(choice("format", name, Format) for name in names(self.format))
        if not formats:
            raise ValueError(f"format must be one or more of {', '.join(Format)}, got none")
        return tuple(formats)


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
    formulas = []
    for name in names(value):
        path = Path(name)
        if not path.is_file():
            if path.suffix in (".txt", ".csv", ".dat") or "/" in name:
                raise ValueError(
                    f"formula must be a formula or a file with one per line, but {name} does not exist"
                )
            formulas.append(name)
            continue
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        if not any(lines):
            raise ValueError(f"{path} must hold one formula per line, got none")
        formulas += [line for line in lines if line]
    return formulas
