"""Fit or resume: what every training stage has in common.

Seeds, loads the data, builds module, loggers, callbacks and trainer, writes where the run comes from, trains,
and says how it ended. `training/stages.py` calls it once per stage.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from latentite.checkpoint import CheckpointError, Stage, Weights, plain, read_checkpoint
from latentite.training.callbacks import (
    NanGuardCallback,
    Preempted,
    PreemptionCallback,
    ProgressCallback,
    TimeLimitCallback,
)
from latentite.training.checkpointing import CheckpointCallback
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMACallback, EMAConfig
from latentite.training.loggers import build_loggers
from latentite.training.module import StageModule
from latentite.training.provenance import write_provenance
from latentite.training.settings import RunConfig

log = logging.getLogger(__name__)


class RunStatus(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """What a run leaves."""

    status: RunStatus
    run_dir: Path
    last_path: Path
    """`last.ckpt`, to resume from."""
    best_path: Path | None
    """The best epoch by the monitored metric."""
    metrics: dict[str, float]
    """As last measured."""


def fit(
    config: RunConfig,
    build_module: Callable[[], StageModule],
    *,
    stage: Stage,
    network_config: Any,
    ema: EMAConfig,
    datamodule: CrystalDataModule | None = None,
) -> FitResult:
    """Train, from the start or from `config.ckpt_path`.

    Args:
        config: the run.
        build_module: makes the stage's module; called after the seed is set.
        stage: of training.
        network_config: from which the network can be built again; goes into the checkpoints.
        ema: averaging of the weights.
        datamodule: instead of the one that `config.data` describes.

    Raises:
        ValueError: for anything that the user can set right, in one sentence.
    """
    if config.ckpt_path is not None:
        check_resumable(config.ckpt_path, stage, network_config)
    _quieten()
    seed_everything(config.seed, verbose=False)
    data = datamodule or CrystalDataModule(config.data)
    data.setup("fit")
    module = build_module()
    if config.compile:
        module.compile_network()
    checkpoints = CheckpointCallback(
        config.callbacks.checkpoint,
        config.run_dir / "checkpoints",
        stage=stage,
        network_config=network_config,
        data=data.statistics,
    )
    trainer = build_trainer(config, build_callbacks(config, checkpoints, ema))
    if trainer.is_global_zero:
        num_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        write_provenance(config, plain(data.statistics()), num_parameters=num_parameters)
        log.info("%s parameters, run in %s", f"{num_parameters:,}", config.run_dir)
    status = RunStatus.FINISHED
    try:
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    except Preempted:
        status = RunStatus.PREEMPTED
        log.warning("saved %s; resume with ckpt_path=%s", checkpoints.last_path, checkpoints.last_path)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return FitResult(
        status=status,
        run_dir=config.run_dir,
        last_path=checkpoints.last_path,
        best_path=checkpoints.best_path,
        metrics=metrics,
    )


def build_callbacks(config: RunConfig, checkpoints: CheckpointCallback, ema: EMAConfig) -> list[Callback]:
    """All callbacks in the order in which they must act.

    The average moves before anything is saved, and a loss that is no number is seen before that; Lightning
    itself puts `checkpoints` last.
    """
    callbacks: list[Callback] = [NanGuardCallback()]
    if ema.decay > 0:
        callbacks.append(EMACallback(ema))
    if config.callbacks.progress_bar:
        callbacks.append(ProgressCallback())
    stopping = config.callbacks.early_stopping
    if stopping is not None:
        callbacks.append(
            EarlyStopping(
                stopping.monitor,
                mode=stopping.mode.value,
                patience=stopping.patience,
                min_delta=stopping.min_delta,
                check_on_train_epoch_end=False,
            )
        )
    if (seconds := config.trainer.max_seconds) is not None:
        callbacks.append(TimeLimitCallback(seconds))
    return [*callbacks, PreemptionCallback(checkpoints), checkpoints]


def build_trainer(config: RunConfig, callbacks: list[Callback]) -> Trainer:
    """Lightning's trainer as configured."""
    options = config.trainer
    return Trainer(
        default_root_dir=config.run_dir,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision.value,
        max_epochs=-1 if options.max_epochs is None else options.max_epochs,
        max_steps=options.max_steps,
        gradient_clip_val=options.gradient_clip_val,
        accumulate_grad_batches=options.accumulate_grad_batches,
        check_val_every_n_epoch=options.check_val_every_n_epoch,
        val_check_interval=options.val_check_interval,
        limit_train_batches=options.limit_train_batches,
        limit_val_batches=options.limit_val_batches,
        num_sanity_val_steps=options.num_sanity_val_steps,
        log_every_n_steps=options.log_every_n_steps,
        deterministic=options.deterministic,
        detect_anomaly=options.detect_anomaly,
        logger=build_loggers(config.logger, config.run_dir, task_name=config.task_name),
        callbacks=callbacks,
        enable_model_summary=False,
        enable_progress_bar=config.callbacks.progress_bar,
        use_distributed_sampler=False,
        # Validation without gradients, but with tensors of which a reward may take some of its own (forces).
        inference_mode=False,
        **options.options,
    )


def check_resumable(path: Path, stage: Stage, network_config: Any) -> None:
    """Refuse to resume from something else than an earlier state of the same network.

    Raises:
        ValueError: naming the first setting that differs.
    """
    try:
        record = read_checkpoint(path, stage=stage, weights=Weights.RAW)
    except CheckpointError as error:
        raise ValueError(f"ckpt_path: {error}") from error
    here, there = _flatten(plain(network_config)), _flatten(record.config)
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            raise ValueError(
                f"ckpt_path must hold the same network as configured, but {key} is {there.get(key)!r} there "
                f"and {here.get(key)!r} here; set {stage}_module.{key}={there.get(key)}"
            )


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _quieten() -> None:
    """Silence what Lightning says about choices that are ours, and all processes of a run but the first."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logging.getLogger("latentite").setLevel(logging.WARNING)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Total length of .* across ranks is zero.*",
        ".*in eval mode at the start of training.*",  # the frozen VAE of the later stages
    ):
        warnings.filterwarnings("ignore", message=message)
