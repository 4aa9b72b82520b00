"""Checkpoints of a run and the times at which they are written: `last.ckpt` to resume from, the best as `epoch_*.ckpt`.

What is in them for everybody is said in `latentite/checkpoint/`. What only resuming asks for lies under
`latentite_run`: the settings in force, and the digests of the checkpoints that the run started from; of older ones
less is known. Files are written under a temporary name and renamed.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from latentite.base.files import replacing
from latentite.base.plain import naming
from latentite.checkpoint import (
    PAYLOAD_KEY,
    CheckpointRecord,
    DataCard,
    Stage,
    Weights,
    build_payload,
    export_portable,
    plain,
    read_checkpoint,
    read_training_state,
)
from latentite.models import read_record
from latentite.training.settings import CheckpointConfig, MonitorMode, RunConfig

log = logging.getLogger(__name__)

RUN_KEY = "latentite_run"
"""Section of a checkpoint beside `latentite`: what only resuming asks for (`training/checkpointing.py`)."""


class CheckpointCallback(Checkpoint):
    """Writes the run's checkpoints, and the portable pair at its end."""

    def __init__(
        self,
        config: CheckpointConfig,
        folder: Path,
        *,
        stage: Stage,
        network_config: Any,
        generator: str | None,
        data: Callable[[], DataCard],
        run: Mapping[str, Any],
    ) -> None:
        """Say what and where.

        Args:
            config: how often and how many.
            folder: `checkpoints/` of the run.
            stage: of training.
            network_config: from which the network can be built again; goes into the files.
            generator: name of the generator that is trained, if it is one.
            data: gives the card of the data.
            run: plain values that only resuming asks for.
        """
        super().__init__()
        self.config = config
        self.folder = folder
        self.best: list[tuple[float, str]] = []
        """Score and path of the kept epochs, best first."""
        self._stage = stage
        self._network_config = network_config
        self._generator = generator
        self._data = data
        self._run = run
        self._metrics: dict[str, float] = {}
        self._has_new_metrics = False
        self._last_saved = time.monotonic()
        self._loops_before_validation: dict[str, Any] | None = None

    @property
    def last_path(self) -> Path:
        """Path of `last.ckpt`."""
        return self.folder / "last.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the minutes from here."""
        self._last_saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` after long silence; remember where training stands before a validation."""
        minutes = self.config.every_n_minutes
        due = minutes is not None and time.monotonic() - self._last_saved > 60 * minutes
        # Clocks differ between processes, and all must save together.
        if trainer.world_size > 1 and minutes is not None:
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
        if due and not trainer.is_last_batch:
            self.save_last(trainer)
        if trainer.is_last_batch or isinstance(trainer.val_check_interval, int):
            self._loops_before_validation = copy.deepcopy(trainer.fit_loop.state_dict())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the metrics that this validation measured."""
        if trainer.sanity_checking:
            return
        self._metrics = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }
        self._has_new_metrics = bool(self._metrics)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what is due; all metrics of the epoch are known here."""
        epoch = trainer.current_epoch
        validated, self._has_new_metrics = self._has_new_metrics, False
        if validated and self.config.save_top_k != 0:
            self._keep_best(trainer, epoch)
        period = self.config.every_n_epochs
        due = validated if period is None else (epoch + 1) % period == 0
        if due:
            self.save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave `last.ckpt` of the very end, and the portable pair."""
        self.save_last(trainer)
        if trainer.is_global_zero:
            self._export()

    def take_over(self, path: Path, state: Mapping[str, Any] | None) -> None:
        """Leave what another run has left at its end: `last.ckpt` and the portable pair.

        Args:
            path: its last checkpoint.
            state: of its callback of this kind, as `state_dict` gives it.
        """
        if state is not None:
            self.load_state_dict(dict(state))
        if path.resolve() != self.last_path.resolve():
            with replacing(self.last_path) as temporary:
                shutil.copyfile(path, temporary)
        self._export()

    def _export(self) -> None:
        if self.config.export:
            source = self.best_path or self.last_path
            weights, card = export_portable(source, self.folder / "model")
            log.info("exported %s as %s and %s", source.name, weights.name, card.name)

    @property
    def best_path(self) -> Path | None:
        """The best epoch's checkpoint, if there is one."""
        return Path(self.best[0][1]) if self.best else None

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt` now."""
        self._save(trainer, self.last_path)
        self._last_saved = time.monotonic()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add our own section, with plain values only."""
        section = checkpoint.setdefault(PAYLOAD_KEY, {})
        payload = build_payload(
            stage=self._stage,
            config=self._network_config,
            data=self._data().to_plain(),
            metrics=self._metrics,
            generator=self._generator,
        )
        section.update({key: value for key, value in payload.items() if key != "ema" or key not in section})
        checkpoint[RUN_KEY] = dict(self._run)
        if trainer.validating and self._loops_before_validation is not None:
            # Interrupted in a validation: resume as if it had not begun, its half-counted metrics are lost.
            checkpoint["loops"]["fit_loop"] = self._loops_before_validation

    def state_dict(self) -> dict[str, Any]:
        """The best epochs and their measure, for the resumed run."""
        best = [[score, path] for score, path in self.best]
        return {"best": best, "best_by": self._best_by()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best epochs that still exist, if they were the best by the same metric on the same data."""
        if state_dict.get("best_by", self._best_by()) == self._best_by():
            self.best = [
                (float(score), str(path)) for score, path in state_dict["best"] if Path(path).is_file()
            ]
        elif state_dict["best"]:
            log.info("the best epochs of the checkpoint were measured otherwise; the best are found anew")

    def _best_by(self) -> list[str]:
        """Metric, direction and data that scores must share to be compared."""
        validation = self._data().split("val").content_hash or ""
        return [self.config.monitor, self.config.mode.value, validation]

    def _keep_best(self, trainer: Trainer, epoch: int) -> None:
        score = _score(self._metrics, self.config)
        path = self.folder / f"epoch_{epoch:04d}.ckpt"
        ranked = sorted([(score, str(path)), *self.best], key=lambda entry: entry[0])
        kept = ranked if self.config.save_top_k == -1 else ranked[: self.config.save_top_k]
        if (score, str(path)) not in kept:
            return
        dropped = [Path(entry[1]) for entry in ranked if entry not in kept]
        self.best = kept
        self._save(trainer, path)
        for old in dropped:
            # A resumed run leaves the files of the run before it alone.
            if trainer.is_global_zero and old.parent == self.folder:
                old.unlink(missing_ok=True)

    def _save(self, trainer: Trainer, path: Path) -> None:
        # All processes gather, the first one writes.
        with replacing(path) if trainer.is_global_zero else nullcontext(path) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)  # with optimizer and loops, to resume from


def _score(metrics: Mapping[str, float], config: CheckpointConfig) -> float:
    """The monitored metric, turned so that smaller is better."""
    if config.monitor not in metrics:
        raise ValueError(
            f"callbacks.checkpoint.monitor must be a metric of validation, got {config.monitor!r}; "
            f"there are {', '.join(sorted(metrics))}"
        )
    value = metrics[config.monitor]
    if not torch.isfinite(torch.tensor(value)):
        return float("inf")
    return value if config.mode is MonitorMode.MIN else -value


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
