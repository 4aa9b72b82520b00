"""The point at which a checkpoint stands: how far its run is trained, and with which settings.

Checkpoints carry what resuming asks for, and nothing else does, under `latentite_run`: the settings in force, and
what the checkpoints that the run started from weigh. Of older ones less is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentite.base.plain import naming
from latentite.checkpoint import (
    CheckpointRecord,
    DataCard,
    Stage,
    Weights,
    plain,
    read_checkpoint,
    read_training_state,
)
from latentite.models import read_record
from latentite.training.checkpointing import RUN_KEY
from latentite.training.settings import RunConfig

STARTS = ("vae_ckpt_path", "ldm_ckpt_path", "predictor_ckpt_path", "gpt_ckpt_path")
"""Settings of a stage's section that name what it starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """The state of a run in a checkpoint."""

    path: Path
    stage: Stage
    network: dict[str, Any]
    """From which its network can be built again."""
    data: DataCard
    metrics: dict[str, float]
    epochs: int
    """Whole epochs that are trained."""
    steps: int
    """Optimizer steps."""
    is_mid_epoch: bool
    schedule_steps: int | None
    """Length of its falling schedule; None where it has none."""
    settings: dict[str, Any]
    """Of its run, by dotted key; empty where an older version wrote it."""
    starts: dict[str, str]
    """Digest of the weights that each setting such as `ldm_module.vae_ckpt_path` named."""
    shapes: dict[str, tuple[int, ...]]
    """Of the module's tensors."""
    num_trained: int
    """Parameters that the optimizer knows."""
    callbacks: dict[str, Any]
    remembers: frozenset[str]
    """Keys of `rl_memory` that are not empty."""

    @property
    def place(self) -> str:
        """The point in words."""
        return (
            f"in the middle of epoch {self.epochs + 1}" if self.is_mid_epoch else f"after epoch {self.epochs}"
        )

    @property
    def rest_of_epoch(self) -> str:
        """Settings that end the run after the epoch in which it stands, and leave the schedule as it was."""
        epochs = f"trainer.max_epochs={self.epochs + 1}"
        length = self.schedule_steps
        return epochs if length is None else f"{epochs} {self.stage}_module.scheduler.total_steps={length}"


def run_record(config: RunConfig, stage: Stage) -> dict[str, Any]:
    """The record of a run in its checkpoints, as plain values.

    Args:
        config: with the settings in force.
        stage: of training.
    """
    section = getattr(config, f"{stage}_module")
    keys = [key for key in STARTS if getattr(section, key, None)]
    starts = {f"{stage}_module.{key}": weights_digest(getattr(section, key)) for key in keys}
    return {"settings": plain(config, key="settings"), "starts": starts}


def weights_digest(name_or_path: str | Path) -> str:
    """sha256 over the weights of a checkpoint by name: the same for a `.ckpt` and what was exported from it."""
    state = read_record(name_or_path).state
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_resume_point(path: Path, stage: Stage) -> ResumePoint:
    """Reads `ckpt_path`.

    Raises:
        ValueError: when it is no checkpoint of that stage that training can go on from.
    """
    with naming("ckpt_path"):
        content = read_training_state(path)
        record = read_checkpoint(path, stage=stage, weights=Weights.RAW)
    try:
        return _resume_point(record, content)
    except (
        KeyError,
        TypeError,
        AttributeError,
    ) as error:  # sections that are there, but not what Lightning writes
        raise ValueError(f"ckpt_path: {path} is damaged, or Lightning wrote it in another form") from error


def _resume_point(record: CheckpointRecord, content: dict[str, Any]) -> ResumePoint:
    run = content.get(RUN_KEY, {})
    epoch = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    schedule: dict[str, Any] = next(iter(content["lr_schedulers"]), {})
    groups = [group for state in content["optimizer_states"] for group in state["param_groups"]]
    return ResumePoint(
        path=record.path,
        stage=record.stage,
        network=record.config,
        data=record.data,
        metrics=record.metrics,
        epochs=epoch["processed"],
        steps=content["global_step"],
        is_mid_epoch=epoch["processed"] < epoch["started"],
        schedule_steps=schedule.get("total_steps") if schedule.get("falls") else None,
        settings=flatten(run.get("settings", {})),
        starts=run.get("starts", {}),
        shapes={name: tuple(tensor.shape) for name, tensor in content["state_dict"].items()},
        num_trained=sum(len(group["params"]) for group in groups),
        callbacks=content.get("callbacks", {}),
        remembers=frozenset(key for key, value in content.get("rl_memory", {}).items() if value),
    )


def flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one, by dotted key; an empty one is None."""
    return dict(_flat(section, prefix))


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", None if value == {} else value
