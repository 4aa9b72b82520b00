"""The generators by the names that checkpoints have for them, and from a checkpoint to its generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from latentite.checkpoint import (
    CRYSTAL_GPT,
    LATENT_DIFFUSION,
    CheckpointError,
    CheckpointRecord,
    Weights,
    merge_adapters,
)
from latentite.generators.gpt.generator import GPTGenerator
from latentite.generators.gpt.options import GPTOptions
from latentite.generators.gpt.policy import GPTPolicyBase
from latentite.generators.latent.generator import LatentGenerator
from latentite.generators.latent.options import LatentOptions
from latentite.generators.latent.policy import LatentPolicyBase
from latentite.generators.policy import PolicyBase
from latentite.generators.protocol import Generator
from latentite.models import read_record


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorKind:
    """A kind of generator: its options, and how it is made."""

    options: type[Any]
    """Dataclass of the options that are its own; no name of them is one of `GenerateConfig`."""
    build: Callable[[CheckpointRecord, Any, torch.device], Generator]
    """From a checkpoint and its own options, on a device."""
    policy: Callable[[CheckpointRecord], PolicyBase] | None
    """From a checkpoint to what reinforcement learning can start from; None for a kind that it cannot train."""


GENERATORS: dict[str, GeneratorKind] = {
    LATENT_DIFFUSION: GeneratorKind(
        options=LatentOptions, build=LatentGenerator.build, policy=LatentPolicyBase.of
    ),
    CRYSTAL_GPT: GeneratorKind(options=GPTOptions, build=GPTGenerator.build, policy=GPTPolicyBase.of),
}
"""By the name that a checkpoint's record has under `generator`."""


def open_generator(
    ckpt: str | Path,
    own: Mapping[str, Any],
    *,
    weights: Weights | None = None,
    device: torch.device,
) -> Generator:
    """The generator that a checkpoint is.

    Args:
        ckpt: a checkpoint file, or a name of `latentite hub list`.
        own: options of the generator, by name.
        weights: which weights; None takes those that the file gives to who does not choose.
        device: where it computes.

    Raises:
        CheckpointError: when the file is no checkpoint of a generator that is known here.
        ValueError: for an unknown name, a path at which there is no file, or an option that cannot be.
    """
    record = merge_adapters(read_record(ckpt, weights=weights))
    name, kind = _kind_of(record)
    known = [item.name for item in fields(kind.options)]
    unknown = next((option for option in own if option not in known), None)
    if unknown is not None:
        raise ValueError(
            f"{unknown} must not be given: {ckpt} is of the generator {name}, whose own options are {', '.join(known)}"
        )
    return kind.build(record, kind.options(**own), device)


def open_policy_base(ckpt: str | Path) -> tuple[str, PolicyBase]:
    """The name of the generator that a checkpoint is, and what reinforcement learning starts from.

    Args:
        ckpt: a checkpoint file, or a name of `latentite hub list`.

    Raises:
        CheckpointError: when the file is no checkpoint of a generator that is known here.
        ValueError: for an unknown name, a path at which there is no file, or a generator that cannot be trained so.
    """
    record = merge_adapters(read_record(ckpt))
    name, kind = _kind_of(record)
    if kind.policy is None:
        trainable = ", ".join(other for other, its in GENERATORS.items() if its.policy is not None)
        raise ValueError(
            f"{record.path} must be of a generator that reinforcement learning can train ({trainable}), got {name}"
        )
    return name, kind.policy(record)


def _kind_of(record: CheckpointRecord) -> tuple[str, GeneratorKind]:
    # Only latent diffusion models were written before checkpoints named their generator.
    name = record.generator or LATENT_DIFFUSION
    if name not in GENERATORS:
        raise CheckpointError(
            f"{record.path}: generator must be one of {', '.join(GENERATORS)}, got {name!r:.80}; use the version of "
            "latentite that wrote it"
        )
    return name, GENERATORS[name]
