"""A Chemeleon2 file's tensors by our names: raw and averaged weights, and statistics that are tensors here only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentite.checkpoint import CheckpointError
from latentite.interop.pickled import (
    DamagedPickleError,
    PickledFile,
    StoredTensor,
    UnsafePickleError,
    read_pickled,
)
from latentite.nn.predictor_config import PredictorConfig
from latentite.objectives.ldm import LDMStageConfig


def read_content(path: Path) -> PickledFile:
    """A file with a state_dict.

    Raises:
        CheckpointError: when it asks to run code, is damaged, or is no checkpoint.
    """
    try:
        file = read_pickled(path)
    except (UnsafePickleError, DamagedPickleError) as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(file.content, dict) or not isinstance(file.content.get("state_dict"), dict):
        raise CheckpointError(f"{path} is no Chemeleon2 checkpoint: it has no state_dict")
    return file


def stored_tensors(file: PickledFile) -> dict[str, StoredTensor]:
    """The tensors of its state_dict, in order, not yet read."""
    tensors = {}
    for name, stored in file.content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(stored, StoredTensor):
            raise CheckpointError(
                f"{file.path}: its state_dict must hold tensors by name, but {name!r} is none"
            )
        if "lora_" in name:
            raise CheckpointError(
                f"{file.path} has LoRA adapters ({name}); merge them in Chemeleon2 and save again, then import"
            )
        tensors[name] = stored
    return tensors


def load_tensor(file: PickledFile, stored: StoredTensor) -> Tensor:
    """One tensor's numbers."""
    try:
        return file.tensor(stored)
    except DamagedPickleError as error:
        raise CheckpointError(str(error)) from error


def ldm_statistics(
    file: PickledFile, tensors: Mapping[str, StoredTensor], conditions: Any, config: LDMStageConfig
) -> dict[str, Tensor]:
    """Our statistics: of the latents, where theirs have no mean, and of numeric conditions."""
    channels = config.vae.latent_dim
    std = torch.ones(())
    if "latent_std" in tensors:
        std = load_tensor(file, tensors["latent_std"]).float()
        if std.numel() not in (1, channels):
            raise CheckpointError(
                f"{file.path}: latent_std must have 1 or {channels} numbers, got {std.numel()}"
            )
    statistics = {
        "latent_mean": torch.zeros(channels),
        "latent_std": std.flatten().expand(channels).clone(),
    }
    module = config.condition_module
    names = [] if module is None else [c.name for c in module.conditions if c.kind == "scalar"]
    for name in names:
        mean, scale = _statistics(file.path, conditions.get("stats"), name)
        statistics[f"condition_module.encoders.{name}.mean"] = torch.tensor(mean)
        statistics[f"condition_module.encoders.{name}.std"] = torch.tensor(scale)
    return statistics


def target_statistics(path: Path, targets: Any, config: PredictorConfig) -> dict[str, Tensor]:
    """Mean and standard deviation of a predictor's targets."""
    pairs = [_statistics(path, targets, name) for name in config.targets]
    mean, std = torch.tensor(pairs, dtype=torch.float32).unbind(-1)
    return {"mean": mean.clone(), "std": std.clone()}


def _statistics(path: Path, entries: Any, name: str) -> tuple[float, float]:
    entry = entries.get(name) if isinstance(entries, dict) else None
    values = [entry.get(key) if isinstance(entry, dict) else None for key in ("mean", "std")]
    mean, std = (float(v) if isinstance(v, int | float) and not isinstance(v, bool) else None for v in values)
    if mean is None or std is None or not std > 0:
        raise CheckpointError(f"{path}: {name} must have a mean and a positive std, got {entry}")
    return mean, std


def ema_weights(file: PickledFile, state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor] | None:
    """`ema_state`: a list in the order of the parameters, which is that of the state_dict."""
    ema = file.content.get("ema_state")
    if ema is None:
        return None
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(item, StoredTensor) for item in shadow):
        raise CheckpointError(f"{file.path}: ema_state must have a list of tensors, shadow_params")
    if len(shadow) != len(names):
        raise CheckpointError(
            f"{file.path}: ema_state must have one tensor for each of the {len(names)} parameters, got {len(shadow)}"
        )
    averaged = {}
    for name, stored in zip(names, shadow, strict=True):
        if stored.shape != tuple(state[name].shape):
            raise CheckpointError(
                f"{file.path}: the EMA of {name} must be {list(state[name].shape)}, got {list(stored.shape)}"
            )
        values = load_tensor(file, stored)
        if not values.equal(state[name]):
            averaged[name] = values
    return averaged or None
