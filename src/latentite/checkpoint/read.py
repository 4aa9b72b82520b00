"""Any checkpoint to its record, and a `.ckpt` to the portable pair."""

from __future__ import annotations

from pathlib import Path

from latentite.checkpoint.lightning_file import record_from_lightning
from latentite.checkpoint.network import merge_adapters
from latentite.checkpoint.portable import read_portable, write_portable
from latentite.checkpoint.record import (
    CheckpointError,
    CheckpointRecord,
    Stage,
    Weights,
    require_file,
)


def read_checkpoint(
    path: str | Path, *, stage: Stage | str | None = None, weights: Weights | str | None = None
) -> CheckpointRecord:
    """Reads a `.ckpt`, or a portable pair by its `.safetensors` or `.json`, without executing anything in it.

    Args:
        path: the file.
        stage: the stage that it must be of; None for any.
        weights: which weights; None takes the EMA where there is one, else the raw weights, unless the file
            says otherwise (`default_weights`).

    Raises:
        CheckpointError: with one sentence on what is wrong with the file, by name.
    """
    path = Path(path)
    require_file(path)
    if path.suffix in (".safetensors", ".json"):
        record = read_portable(path)
        if weights is not None and record.weights != weights:
            raise CheckpointError(f"{path} holds {record.weights} weights only, got weights={weights!s}")
    else:
        record = record_from_lightning(path, None if weights is None else Weights(weights))
    if stage is not None and record.stage != stage:
        raise CheckpointError(f"{path}: expected a {stage} checkpoint, got {record.stage}")
    return record


def export_portable(
    path_ckpt: str | Path, out_stem: str | Path, *, weights: Weights | str | None = None
) -> tuple[Path, Path]:
    """Writes `OUT_STEM.safetensors` and its card `OUT_STEM.json`; the same input gives the same bytes.

    Adapters are merged (`merge_adapters`): what is published is a plain network.

    Returns:
        The paths of the weights and of the card.
    """
    return write_portable(merge_adapters(read_checkpoint(path_ckpt, weights=weights)), out_stem)
