"""The network of a latent diffusion checkpoint: ready to sample from, or to be fine-tuned.

Sampling and training load their models here.
"""

from __future__ import annotations

from pathlib import Path

from latentite import hub
from latentite.base.plain import from_plain
from latentite.checkpoint import (
    LATENT_DIFFUSION,
    CheckpointError,
    CheckpointRecord,
    Stage,
    Weights,
    merge_adapters,
    network_of,
    read_checkpoint,
)
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import LDMStageConfig


def load_ldm(
    path_or_name: str | Path, weights: Weights | str | None = None
) -> tuple[LatentDiffusion, LDMStageConfig, CheckpointRecord]:
    """A trained latent diffusion model on the CPU, in evaluation mode, with LoRA adapters merged into its weights.

    Args:
        path_or_name: a checkpoint file, or a name of `latentite hub list`.
        weights: which weights; None takes the EMA where there is one, else the raw weights.

    Returns:
        The network, what it was built from (with the diffusion process that sampling must walk back), and what
        else the file says.

    Raises:
        CheckpointError: when the file is not a checkpoint of this stage, or of reinforcement learning on it.
        ValueError: for an unknown name, or a path at which there is no file.
    """
    record = merge_adapters(read_checkpoint(hub.resolve(path_or_name), weights=weights))
    return *ldm_of(record), record


def ldm_of(record: CheckpointRecord) -> tuple[LatentDiffusion, LDMStageConfig]:
    """The network of a record whose adapters are merged, and what it was built from, as `load_ldm` gives them.

    Raises:
        CheckpointError: when the record is not of this stage, or of reinforcement learning on it.
    """
    if record.stage not in (Stage.LDM, Stage.RL):
        raise CheckpointError(f"{record.path}: expected a {Stage.LDM} checkpoint, got {record.stage}")
    if record.generator not in (None, LATENT_DIFFUSION):
        raise CheckpointError(
            f"{record.path}: expected a checkpoint of {LATENT_DIFFUSION}, got one of {record.generator}"
        )
    settings = from_plain(LDMStageConfig, record.config)
    return network_of(record.state, lambda: LatentDiffusion(settings), record.path).eval(), settings
