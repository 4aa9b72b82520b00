"""The options of a latent diffusion model as users type them, and as typed values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from latentite.base.plain import Numbers, Texts, choice, names, numbers
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import Limits
from latentite.data.readers.records import Rejection
from latentite.data.readers.rows import read
from latentite.diffusion.samplers import SamplerKind
from latentite.generators.latent.chain import Precision, SamplingConfig

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

Structures: TypeAlias = "str | Path | Structure | Atoms | Sequence[Structure | Atoms]"
"""A file, a folder, or objects."""


@dataclass(kw_only=True, slots=True)
class LatentOptions:
    """The options of `latentite sample` that only a latent diffusion model has; text is taken wherever the command
    line takes it."""

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
    precision: Precision | str = Precision.FP32
    trajectory: bool = False
    """Write every state on the way as well."""
    init: Structures | None = None
    """Structures to start from: a file, a folder, or objects."""
    strength: float | None = None
    """Share of the steps that is taken from them, in (0, 1]; None: all, which is for fixed atoms only."""
    fix_sites: Numbers = ()
    """Atoms of `init` to keep, counted from 0."""
    fix_species: Texts = ()
    """Elements whose atoms are kept."""

    def __post_init__(self) -> None:
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

    def sampling(self) -> SamplingConfig:
        """How the chain is walked."""
        return SamplingConfig(
            sampler=None if self.sampler is None else choice("sampler", self.sampler, SamplerKind),
            steps=self.steps,
            eta=self.eta,
            noise_scale=self.noise_scale,
            guidance=parse_guidance(self.guidance),
            precision=choice("precision", self.precision, Precision),
        )


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
    structures = []
    for item in read(source, limits=Limits(max_atoms=None)):
        if isinstance(item, Rejection):
            raise ValueError(
                f"init must hold usable structures, got {item.id} in {item.source}: {item.reason}"
            )
        structures.append(CrystalArrays(item.atomic_numbers, item.frac_coords, item.lattice))
    if not structures:
        raise ValueError(f"init must hold a structure, got none in {source}")
    return CrystalBatch.from_arrays(structures)
