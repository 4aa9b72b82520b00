"""The options that every generator has: as users type them, and as typed values, with one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from latentite.base.plain import Numbers, Texts, check_seed, choice, names
from latentite.checkpoint import Weights
from latentite.hub import DEFAULT_LDM
from latentite.sampling.folder import Format


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """The options of `latentite sample` that every generator has; text is taken wherever the command line takes it."""

    ckpt: str | Path = DEFAULT_LDM
    """A checkpoint file, or a name of `latentite hub list`; without any, the bundled model."""
    num_samples: int = 64
    """Crystals; of each request where several are made, such as formulas."""
    batch_size: int = 256
    """Most crystals at once; halved when memory runs out."""
    seed: int = 0
    conditions: str | Mapping[str, object] | None = None
    """`band_gap=2.0,chemical_system=Li-Fe-O`."""
    num_atoms: str | int | None = None
    """`12` or `8:20`."""
    num_atoms_distribution: str | Path = "train"
    """`train`, or a file with counts (`sizes.read_num_atoms`)."""
    formula: Texts = ()
    """Formulas, or files with one formula per line."""
    formula_units: Numbers | None = None
    """Formula units per cell; None: as many as sizes of the training set allow, as often as these occur."""
    elements_allowed: Texts | None = None
    elements_required: Texts | None = None
    elements_forbidden: Texts | None = None
    out: str | Path | None = None
    """Folder; None keeps the crystals in memory."""
    format: Texts = ("cif", "extxyz")
    """`cif`, `extxyz`, `json`."""
    device: str = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""
    shard: str = "1/1"
    """`k/n`: the k-th of n parts of the run, k from 1."""
    resume: bool = False
    """Go on with the run in `out`."""
    no_replace: bool = False
    """Do not sample again what cannot be used."""
    max_attempts: int = 20
    """At each crystal."""
    weights: Weights | str | None = None
    """None: EMA where there is one."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("num_samples", "batch_size", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
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
