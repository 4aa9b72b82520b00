"""The options of a run as users type them, and as typed values, with one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from latentite.base.plain import check_seed
from latentite.checkpoint import Weights
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.checks import Limits
from latentite.data.readers.records import Rejection
from latentite.data.readers.table import read
from latentite.diffusion.samplers import SamplerKind
from latentite.generators.latent.chain import Precision, SamplingConfig
from latentite.hub import DEFAULT_LDM
from latentite.sampling.folder import Format

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


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """The options of `latentite sample`, under the same names; text is taken wherever the command line takes it."""

    ckpt: str | Path = DEFAULT_LDM
    """A checkpoint file, or a name of `latentite hub list`; without any, the bundled model."""
    num_samples: int = 64
    """Crystals; with formulas or structures to start from, for each of them."""
    batch_size: int = 256
    """Most crystals at once; halved when memory runs out."""
    seed: int = 0
    sampler: SamplerKind | str | None = None
    """None: the default for the checkpoint's process."""
    steps: int | None = None
    """None: the sampler's default (`chain.DEFAULT_STEPS`)."""
    eta: float = 1.0
    """Noise of `ddim` and `flow_sde`."""
    noise_scale: float = 1.0
    """Of `flow_sde`: times its noise; below 1 likelier crystals, and fewer kinds of them."""
    guidance: float | str | Mapping[str, float] = 2.0
    """s of u + s (c - u): one number, or `name=number,...`, one for each condition."""
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
    init: Structures | None = None
    """Structures to start from: a file, a folder, or objects."""
    strength: float | None = None
    """Share of the steps that is taken from them, in (0, 1]; None: all, which is for fixed atoms only."""
    fix_sites: Numbers = ()
    """Atoms of `init` to keep, counted from 0."""
    fix_species: Texts = ()
    """Elements whose atoms are kept."""
    out: str | Path | None = None
    """Folder; None keeps the crystals in memory."""
    format: Texts = ("cif", "extxyz")
    """`cif`, `extxyz`, `json`."""
    trajectory: bool = False
    """Write every state on the way as well."""
    device: str = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""
    precision: Precision | str = Precision.FP32
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
        for name in ("num_samples", "batch_size", "steps", "max_attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        is_fixing = bool(numbers("fix_sites", self.fix_sites) or names(self.fix_species))
        if self.init is None and (self.strength is not None or is_fixing):
            raise ValueError(
                "strength, fix_sites and fix_species must be given together with init, got no init"
            )
        if self.init is not None and self.strength is None and not is_fixing:
            raise ValueError(
                "strength must be given with init, such as 0.3: without it, and with no atom fixed, nothing of "
                "the structure would be kept"
            )
        if self.out is None and (self.resume or self.trajectory):
            raise ValueError(
                "out must be given together with resume and trajectory, which are about its files"
            )
        if self.size_option is not None and (self.formula or self.init is not None):
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

    def sampling(self) -> SamplingConfig:
        """How the chain is walked."""
        return SamplingConfig(
            sampler=None if self.sampler is None else choice("sampler", self.sampler, SamplerKind),
            steps=self.steps,
            eta=self.eta,
            noise_scale=self.noise_scale,
            guidance=parse_guidance(self.guidance),
            batch_size=self.batch_size,
            precision=choice("precision", self.precision, Precision),
        )

    def formats(self) -> tuple[Format, ...]:
        """The formats to write, each once."""
        found = dict.fromkeys(choice("format", name, Format) for name in names(self.format))
        if not found:
            raise ValueError(f"format must be one or more of {', '.join(Format)}, got none")
        return tuple(found)


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
            scales = {name.strip(): float(scale) for name, scale in pairs}
            if len(scales) < len(pairs):
                raise ValueError("a name twice")
            return scales
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
        found.append(CrystalArrays(item.atomic_numbers, item.frac_coords, item.lattice))
    if not found:
        raise ValueError(f"init must hold a structure, got none in {source}")
    return CrystalBatch.from_arrays(found)
