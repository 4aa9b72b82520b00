"""New crystals from a trained latent diffusion model: `latentite.generate(...)`, the same as `latentite sample`.

Crystal i of a run is a function of the checkpoint, the options and (seed, i), not of batch size, shard or
interruptions. What an option means is checked before anything is sampled or written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from latentite.base.devices import resolve_device
from latentite.crystal import CrystalBatch
from latentite.generators.jobs import Jobs
from latentite.hub import DEFAULT_LDM
from latentite.sampling.folder import Counts
from latentite.sampling.model import Model, plain_settings
from latentite.sampling.options import GenerateConfig, parse_shard
from latentite.sampling.run import Origin, refuse_folder, run_in_memory, run_to_folder

__all__ = ["GenerateConfig", "GenerateResult", "generate", "generate_from"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateResult:
    """What a run gives."""

    counts: Counts
    asked: int
    """Crystals that were asked for here: of this shard."""
    has_requests: bool
    """Whether something was asked that can be verified: a formula, elements, a number of atoms."""
    out: Path | None
    crystals: CrystalBatch | None = None
    """In the order of the index; None when they are in files."""
    jobs: Jobs | None = None
    """Of `crystals`: index, attempt and what was asked."""


def generate(ckpt: str | Path = DEFAULT_LDM, **options: Any) -> GenerateResult:
    """Sample crystals with a checkpoint, the bundled one if none is named; the options are those of `GenerateConfig`.

    Raises:
        ValueError: for what cannot be done, before anything is sampled or written.
        KeyboardInterrupt: passed on; a run in a folder can be resumed.
    """
    return generate_from(GenerateConfig(ckpt=ckpt, **options))


def generate_from(
    config: GenerateConfig, *, command: Sequence[str] = ("latentite.generate",)
) -> GenerateResult:
    """Sample what the options say.

    Args:
        config: the options.
        command: how the run was started, for the manifest.
    """
    formats = config.formats()
    shard = parse_shard(config.shard)
    folder = None if config.out is None else Path(config.out)
    if folder is not None:
        refuse_folder(folder, resume=config.resume)
    device = resolve_device(config.device)
    model = Model.load(config, device)
    run = model.run(config, shard)
    has_requests = config.num_atoms is not None or any(
        ask.composition or ask.elements or ask.num_atoms for ask in model.asks
    )
    if folder is None:
        crystals, jobs, counts = run_in_memory(run)
        return GenerateResult(
            counts=counts,
            asked=run.stop - run.first,
            has_requests=has_requests,
            out=None,
            crystals=crystals,
            jobs=jobs,
        )
    origin = Origin(
        settings=plain_settings(config, formats, model),
        checkpoint={
            "file": str(config.ckpt),
            "sha256": model.record.sha256,
            "weights": model.record.weights.value,
        },
        command=command,
        device=str(device),
    )
    counts = run_to_folder(run, folder, origin=origin, formats=formats, resume=config.resume)
    return GenerateResult(counts=counts, asked=run.stop - run.first, has_requests=has_requests, out=folder)


class _CallableModule(ModuleType):
    """Importing this module puts it in place of the function of the same name on the package: so it can be called."""

    def __call__(self, ckpt: str | Path = DEFAULT_LDM, **options: Any) -> GenerateResult:
        return generate(ckpt, **options)


sys.modules[__name__].__class__ = _CallableModule
