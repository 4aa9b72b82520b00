"""The options of a latent diffusion model as users type them, and as typed values.

Without torch, so that a command line can show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentite.base.options import option
from latentite.base.plain import Numbers, Structures, Texts, choice, names, numbers

if TYPE_CHECKING:
    from latentite.diffusion.samplers import SamplerKind
    from latentite.generators.latent.chain import SamplingConfig, SamplingPrecision

HOW, START, LONG = "how it is sampled", "start from structures", "long runs"
"""Headings of the options in the help."""


@dataclass(kw_only=True, slots=True)
class LatentOptions:
    """The options of `latentite sample` that only a latent diffusion model has; text is taken wherever the command
    line takes it."""

    sampler: SamplerKind | str | None = field(default=None, metadata=option(group=HOW, kind=str))
    """ddim, ddpm, dpm_solver; heun, euler, flow_sde for flows [ddim or heun]."""
    steps: int | None = field(default=None, metadata=option(group=HOW))
    """Denoising steps, at most those of the schedule [25 for heun, else 50]."""
    eta: float = field(default=1.0, metadata=option(group=HOW))
    """Noise that ddim and flow_sde add: 0 is deterministic."""
    noise_scale: float = field(default=1.0, metadata=option(group=HOW))
    """Times the noise of flow_sde: below 1 likelier crystals, and fewer kinds of them."""
    guidance: float | str | Mapping[str, float] = field(default=2.0, metadata=option("S", group=HOW))
    """s of u + s (c - u), u without and c with the condition: a number, or name=number,... [2; 1 for a crystal GPT,
    which takes a number]"""
    precision: SamplingPrecision | str = field(default="fp32", metadata=option(group=HOW, kind=str))
    """Of the denoiser: fp32, bf16, fp16."""
    init: Structures | None = field(default=None, metadata=option("FILE", group=START, kind=str))
    """A file or folder of structures to start from.

    In Python also structures themselves."""
    strength: float | None = field(default=None, metadata=option(group=START))
    """Distance from them, from 0 to 1: the share of the steps that are taken, such as 0.3.

    None: all, which is for fixed atoms only."""
    fix_sites: Numbers = field(default=(), metadata=option("LIST", group=START))
    """Atoms of them to keep, counted from 0, such as 0,1."""
    fix_species: Texts = field(default=(), metadata=option("LIST", group=START))
    """Elements whose atoms are kept, such as O."""
    trajectory: bool = field(default=False, metadata=option(group=LONG))
    """Write every state on the way as a crystal, too."""

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
        """Settings of the sampler."""
        from latentite.diffusion.samplers import SamplerKind  # torch takes seconds
        from latentite.generators.latent.chain import SamplingConfig, SamplingPrecision

        return SamplingConfig(
            sampler=None if self.sampler is None else choice("sampler", self.sampler, SamplerKind),
            steps=self.steps,
            eta=self.eta,
            noise_scale=self.noise_scale,
            guidance=parse_guidance(self.guidance),
            precision=choice("precision", self.precision, SamplingPrecision),
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
