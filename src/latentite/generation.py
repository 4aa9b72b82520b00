"""New crystals from a checkpoint of any generator: `latentite.generate(...)`, the same as `latentite sample`.

Crystal i of a run is a function of the checkpoint, the options and (seed, i), not of batch size, shard or
interruptions. What an option means is checked before anything is sampled or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from latentite.base.machine import resolve_device
from latentite.base.plain import choice
from latentite.checkpoint import Weights
from latentite.crystal import CrystalBatch
from latentite.generators.jobs import Jobs
from latentite.generators.protocol import Generator
from latentite.generators.table import open_generator
from latentite.hub import DEFAULT_GPT
from latentite.sampling.folder import Counts
from latentite.sampling.options import GenerateConfig
from latentite.sampling.run import (
    Origin,
    plain_settings,
    plan_run,
    refuse_folder,
    run_in_memory,
    run_to_folder,
)

__all__ = ["GenerateConfig", "GenerateResult", "generate", "generate_from", "sample_with", "split_options"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateResult:
    """The crystals of a run, or where they lie, and its counts."""

    counts: Counts
    asked: int
    """Crystals that were asked for here: of this shard."""
    has_requests: bool
    """True if something was asked that can be verified: a formula, elements, a number of atoms."""
    out: Path | None
    crystals: CrystalBatch | None = None
    """In the order of the index; None when they are in files."""
    jobs: Jobs | None = None
    """Of `crystals`: index, attempt and what was asked."""


def generate(ckpt: str | Path = DEFAULT_GPT, **options: Any) -> GenerateResult:
    """Sample crystals with a checkpoint, the bundled one if none is named.

    Args:
        ckpt: a checkpoint file, or a name of `latentite hub list`.
        options: those of `GenerateConfig`, and those of the generator that the checkpoint is (`GENERATORS`), such as
            `generators.latent.options.LatentOptions`.

    Raises:
        ValueError: for what cannot be done, before anything is sampled or written.
        KeyboardInterrupt: passed on; a run in a folder can be resumed.
    """
    return generate_from(*split_options({"ckpt": ckpt, **options}))


def split_options(options: Mapping[str, Any]) -> tuple[GenerateConfig, dict[str, Any]]:
    """The options that every generator has, and the others, which `generate_from` takes as those of the chosen one."""
    general = {item.name for item in fields(GenerateConfig)}
    config = GenerateConfig(**{name: value for name, value in options.items() if name in general})
    return config, {name: value for name, value in options.items() if name not in general}


def generate_from(
    config: GenerateConfig,
    own: Mapping[str, Any] | None = None,
    *,
    command: Sequence[str] = ("latentite.generate",),
) -> GenerateResult:
    """Sample what the options say with the generator that the checkpoint is.

    Args:
        config: the options that every generator has.
        own: those of this one, by name.
        command: how the run was started, for the manifest.
    """
    if config.out is not None:
        refuse_folder(Path(config.out), resume=config.resume)
    device = resolve_device(config.device)
    weights = None if config.weights is None else choice("weights", config.weights, Weights)
    generator = open_generator(config.ckpt, own or {}, weights=weights, device=device)
    return sample_with(generator, config, device=str(device), command=command)


def sample_with(
    generator: Generator, config: GenerateConfig, *, device: str, command: Sequence[str]
) -> GenerateResult:
    """Sample with any generator, into a folder or into memory.

    Args:
        generator: ready to draw; `config.ckpt`, `weights` and `device` have been used to make it.
        config: what is asked of it.
        device: where it computes, for the manifest.
        command: how the run was started, for the manifest.
    """
    run, asks = plan_run(generator, config)
    has_requests = config.num_atoms is not None or any(
        ask.composition or ask.elements or ask.num_atoms for ask in asks
    )
    if config.out is None:
        crystals, jobs, counts = run_in_memory(run)
        return GenerateResult(
            counts=counts,
            asked=run.stop - run.first,
            has_requests=has_requests,
            out=None,
            crystals=crystals,
            jobs=jobs,
        )
    folder, card = Path(config.out), generator.card
    checkpoint = {"file": str(config.ckpt), "sha256": card.sha256, "generator": card.kind}
    if card.weights is not None:
        checkpoint["weights"] = card.weights.value
    origin = Origin(
        settings=plain_settings(generator, config), checkpoint=checkpoint, command=command, device=device
    )
    counts = run_to_folder(run, folder, origin=origin, formats=config.formats(), resume=config.resume)
    return GenerateResult(counts=counts, asked=run.stop - run.first, has_requests=has_requests, out=folder)
