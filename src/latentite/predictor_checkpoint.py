"""The network of a predictor's checkpoint: ready to predict with, or to go on training."""

from __future__ import annotations

from pathlib import Path

from latentite import hub
from latentite.base.plain import from_plain
from latentite.checkpoint import CheckpointRecord, Stage, Weights, network_of, read_checkpoint
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import PredictorConfig


def load_predictor(
    path_or_name: str | Path, weights: Weights | str | None = None
) -> tuple[PropertyPredictor, CheckpointRecord]:
    """A trained predictor on the CPU, in evaluation mode, and what else its file says.

    Args:
        path_or_name: a checkpoint file, ours or Chemeleon2's, or a name of `latentite hub list`.
        weights: which weights; None takes the EMA where there is one, else the raw weights.

    Raises:
        CheckpointError: when the file is not a checkpoint of this stage.
        ValueError: for an unknown name, or a path at which there is no file.
    """
    record = read_checkpoint(hub.resolve(path_or_name), stage=Stage.PREDICTOR, weights=weights)
    settings = from_plain(PredictorConfig, record.config)
    return network_of(record.state, lambda: PropertyPredictor(settings), record.path).eval(), record
