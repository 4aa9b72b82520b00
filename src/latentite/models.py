"""Any trained model of ours by name or path: one loader with one contract.

`load_vae`, `load_ldm`, `load_gpt` and `load_predictor` give the same three things, each with its own types; sampling,
evaluation, prediction, rewards and the training stages that start from a trained model take them here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from torch import nn

from latentite import hub
from latentite.base.plain import ConfigError, from_plain
from latentite.checkpoint import (
    CRYSTAL_GPT,
    LATENT_DIFFUSION,
    CheckpointError,
    CheckpointRecord,
    Stage,
    Weights,
    merge_adapters,
    network_of,
    read_checkpoint,
)
from latentite.nn.gpt.network import GPTConfig, GPTNetwork
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import PredictorConfig
from latentite.nn.vae import CrystalVAE, VAEConfig
from latentite.objectives.ldm import LDMStageConfig

Network = TypeVar("Network", bound=nn.Module)
Settings = TypeVar("Settings")


class Loaded(NamedTuple, Generic[Network, Settings]):
    """A trained model."""

    network: Network
    """On the CPU, in evaluation mode, LoRA adapters merged into its weights."""
    settings: Settings
    """Config from which the network was built."""
    record: CheckpointRecord
    """The rest of the file: stage, which weights, training data, metrics, hash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _ModelType(Generic[Network, Settings]):
    """One kind of model: the stages that leave it, and how it is built again."""

    stages: tuple[Stage, ...]
    settings: type[Settings]
    build: Callable[[Settings], Network]
    required: tuple[str, ...] = ()
    """Keys that a file of any version has, although the settings have defaults for them."""


_VAE = _ModelType(
    stages=(Stage.VAE,),
    settings=VAEConfig,
    build=CrystalVAE,
    required=tuple(item.name for item in fields(VAEConfig)),
)
_LDM = _ModelType(stages=(Stage.LDM, Stage.RL), settings=LDMStageConfig, build=LatentDiffusion)
_GPT = _ModelType(stages=(Stage.GPT, Stage.RL), settings=GPTConfig, build=GPTNetwork)
_PREDICTOR = _ModelType(stages=(Stage.PREDICTOR,), settings=PredictorConfig, build=PropertyPredictor)


def load_vae(name_or_path: str | Path, weights: Weights | str | None = None) -> Loaded[CrystalVAE, VAEConfig]:
    """A trained crystal VAE; arguments and errors as `load_ldm`."""
    return _built(_VAE, read_record(name_or_path, weights=weights))


def load_ldm(
    name_or_path: str | Path, weights: Weights | str | None = None
) -> Loaded[LatentDiffusion, LDMStageConfig]:
    """A trained latent diffusion model, fine-tuned with rewards or not; its VAE is inside.

    Args:
        name_or_path: a checkpoint file (`.ckpt`, `.safetensors` or its card, ours or Chemeleon2's), or a name of
            `latentite hub list`.
        weights: which weights; None takes the EMA where there is one, else the raw weights, unless the file says
            otherwise.

    Raises:
        CheckpointError: when the file is not a checkpoint of such a model, or config and tensors do not fit.
        ValueError: for an unknown name, or a path at which there is no file.
    """
    return ldm_of(merge_adapters(read_record(name_or_path, weights=weights)))


def ldm_of(record: CheckpointRecord) -> Loaded[LatentDiffusion, LDMStageConfig]:
    """The model of a record whose adapters are merged.

    Raises:
        CheckpointError: when the record is not of such a model, or config and tensors do not fit.
    """
    # Only latent diffusion models were written before checkpoints named their generator.
    _require_generator(record, LATENT_DIFFUSION)
    return _built(_LDM, record)


def load_gpt(name_or_path: str | Path, weights: Weights | str | None = None) -> Loaded[GPTNetwork, GPTConfig]:
    """A trained crystal GPT, fine-tuned with rewards or not. Arguments and errors as `load_ldm`."""
    return gpt_of(read_record(name_or_path, weights=weights))


def gpt_of(record: CheckpointRecord) -> Loaded[GPTNetwork, GPTConfig]:
    """The crystal GPT of a record.

    Raises:
        CheckpointError: when the record is not of such a model, or config and tensors do not fit.
    """
    if record.stage in _GPT.stages:
        _require_generator(record, CRYSTAL_GPT)
    return _built(_GPT, record)


def _require_generator(record: CheckpointRecord, name: str) -> None:
    found = record.generator or LATENT_DIFFUSION
    if found != name:
        raise CheckpointError(f"{record.path}: expected a checkpoint of {name}, got one of {found}")


def load_predictor(
    name_or_path: str | Path, weights: Weights | str | None = None
) -> Loaded[PropertyPredictor, PredictorConfig]:
    """A trained property predictor; its VAE's encoder is inside. Arguments and errors as `load_ldm`."""
    return _built(_PREDICTOR, read_record(name_or_path, weights=weights))


def read_record(
    name_or_path: str | Path, *, stage: Stage | None = None, weights: Weights | str | None = None
) -> CheckpointRecord:
    """The checkpoint of a model without its network; `stage` is the one that it must be of, None for any."""
    return read_checkpoint(hub.resolve(name_or_path), stage=stage, weights=weights)


def _built(kind: _ModelType[Network, Settings], record: CheckpointRecord) -> Loaded[Network, Settings]:
    if record.stage not in kind.stages:
        raise CheckpointError(f"{record.path}: expected a {kind.stages[0]} checkpoint, got {record.stage}")
    settings = _settings(kind, record)
    network = network_of(record.state, lambda: kind.build(settings), record.path)
    return Loaded(network.eval(), settings, record)


def _settings(kind: _ModelType[Any, Settings], record: CheckpointRecord) -> Settings:
    if missing := [key for key in kind.required if key not in record.config]:
        raise CheckpointError(
            f"{record.path}: its config must have the key '{missing[0]}', but it is missing"
        )
    try:
        return from_plain(kind.settings, record.config)
    except ConfigError as error:
        raise CheckpointError(f"{record.path}: its config does not describe such a model: {error}") from error
