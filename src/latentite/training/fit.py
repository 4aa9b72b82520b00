"""Fit or resume: what every training stage has in common.

Seeds, loads the data, builds module, loggers, callbacks and trainer, writes where the run comes from (versions, commit,
command line, data, settings), trains, and says how it ended. `stages.py` calls it once per stage.
"""

from __future__ import annotations

import inspect
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer, seed_everything

from latentite import __version__
from latentite.base.files import replacing, write_json
from latentite.base.plain import to_plain
from latentite.checkpoint import DataCard, Stage
from latentite.training.callbacks import (
    BeginCallback,
    EarlyStoppingCallback,
    EMACallback,
    NanGuardCallback,
    Preempted,
    PreemptionCallback,
    ProgressCallback,
    TimeLimitCallback,
)
from latentite.training.checkpointing import CheckpointCallback, run_record
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMAConfig
from latentite.training.loggers import build_loggers, wandb_mode
from latentite.training.module import StageModule
from latentite.training.resume import ResumedScheduleCallback, Resumption
from latentite.training.settings import RunConfig, with_sections


def write_provenance(config: RunConfig, data: dict[str, Any], *, num_parameters: int) -> None:
    """Write `config.yaml` (every setting, resolved) and `provenance.json` into the run's folder."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with replacing(config.run_dir / "config.yaml") as path:
        path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")
    write_json(
        config.run_dir / "provenance.json",
        {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "latentite": __version__,
            "commit": git_commit(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": package_versions(),
            "seed": config.seed,
            "num_parameters": num_parameters,
            "data": data,
        },
    )


@cache
def git_commit() -> str | None:
    """Commit of the source tree that this package runs from, `-dirty` if it differs; None without git."""
    folder = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


@cache
def package_versions() -> dict[str, str]:
    """Installed version of each package that latentite depends on."""
    try:
        requirements = metadata.requires("latentite") or []
    except metadata.PackageNotFoundError:
        return {}
    versions = {}
    for requirement in requirements:
        name = re.split(r"[\s<>=!~;\[(]", requirement, maxsplit=1)[0]
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


log = logging.getLogger(__name__)


OURS: dict[str, Any] = {
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    # Validation without gradients, but with tensors of which a reward may take some of its own (forces).
    "inference_mode": False,
}
"""Arguments of the trainer besides settings."""


class RunStatus(StrEnum):
    """Ends of a run."""

    FINISHED = "finished"
    PREEMPTED = "preempted"


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """Result of a run."""

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
    generator: str | None = None,
    datamodule: CrystalDataModule | None = None,
    base_data: DataCard | None = None,
) -> FitResult:
    """Train, from the start or from `config.ckpt_path`.

    Args:
        config: the run.
        build_module: makes the stage's module; called after the seed is set.
        stage: of training.
        network_config: from which the network can be built again; goes into the checkpoints.
        ema: averaging of the weights.
        generator: name of the generator that is trained; None for a stage whose networks generate nothing.
        datamodule: instead of the one that `config.data` describes.
        base_data: card of a model whose crystals are what the run's checkpoints make, whatever the run's data are.

    Raises:
        ValueError: for anything that the user can set right, in one sentence.
    """
    config = _with_wandb_mode(config)
    run = run_record(config, stage)
    resumption = Resumption.of(config, stage, network_config, run)
    _quieten()
    seed_everything(config.seed, verbose=False)
    data = datamodule or CrystalDataModule(config.data)
    data.setup("fit")
    module = build_module()
    data_card = partial(_data_card, data, base_data)
    if resumption is not None:
        resumption.check(config, data_card(), module)
    if config.compile:
        module.compile_network()
    checkpoints = CheckpointCallback(
        config.callbacks.checkpoint,
        config.run_dir / "checkpoints",
        stage=stage,
        network_config=network_config,
        generator=generator,
        data=data_card,
        run=run,
    )
    begin = partial(_begin, config, module, data_card)
    if resumption is not None and (reason := resumption.finished(config)):
        return _take_over(config, resumption, reason, checkpoints, begin)
    callbacks = [BeginCallback(begin), *build_callbacks(config, checkpoints, ema)]
    if resumption is not None:
        callbacks.insert(0, ResumedScheduleCallback(resumption.point, module.scheduler_config, stage=stage))
    trainer = build_trainer(config, callbacks, clips=module.automatic_optimization)
    return _train(config, trainer, module, data, checkpoints)


def _data_card(data: CrystalDataModule, base: DataCard | None) -> DataCard:
    """Of the run's data, and of the base's crystals where its model makes these."""
    card = data.data_card()
    return card if base is None else card.with_model_of(base)


def _begin(config: RunConfig, module: StageModule, data_card: Callable[[], DataCard]) -> None:
    """Leave in the folder what the run was told, and say its size."""
    num_parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    write_provenance(config, data_card().to_plain(), num_parameters=num_parameters)
    log.info("%s parameters, run in %s", f"{num_parameters:,}", config.run_dir)


def _train(
    config: RunConfig,
    trainer: Trainer,
    module: StageModule,
    data: CrystalDataModule,
    checkpoints: CheckpointCallback,
) -> FitResult:
    status = RunStatus.FINISHED
    try:
        trainer.fit(module, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    except Preempted:
        status = RunStatus.PREEMPTED
        resume = shlex.quote(f"ckpt_path={checkpoints.last_path}")
        log.warning("saved %s; resume with %s", checkpoints.last_path, resume)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return FitResult(
        status=status,
        run_dir=config.run_dir,
        last_path=checkpoints.last_path,
        best_path=checkpoints.best_path,
        metrics=metrics,
    )


def _take_over(
    config: RunConfig,
    resumption: Resumption,
    reason: str,
    checkpoints: CheckpointCallback,
    begin: Callable[[], None],
) -> FitResult:
    """Train nothing, and leave what the next job of a chain looks for."""
    point = resumption.point
    if getattr(rank_zero_only, "rank", 0) == 0:
        begin()
        checkpoints.take_over(point.path, point.callbacks.get(checkpoints.state_key))
        log.info("%s is %s", point.path, reason)
        if resumption.changes:
            keys = ", ".join(change.key for change in resumption.changes)
            log.info("nothing was trained, so what differs from the checkpoint had no effect: %s", keys)
        log.info("%s is that checkpoint", checkpoints.last_path)
    return FitResult(
        status=RunStatus.FINISHED,
        run_dir=config.run_dir,
        last_path=checkpoints.last_path,
        best_path=checkpoints.best_path,
        metrics=point.metrics,
    )


def _with_wandb_mode(config: RunConfig) -> RunConfig:
    """With what wandb will do in place of what it was asked."""
    wandb = replace(config.logger.wandb, mode=wandb_mode(config.logger.wandb)[0])
    return with_sections(config, logger=replace(config.logger, wandb=wandb))


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
            EarlyStoppingCallback(
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


def build_trainer(config: RunConfig, callbacks: list[Callback], *, clips: bool = True) -> Trainer:
    """Lightning's trainer as configured.

    Args:
        config: the run.
        callbacks: all of them.
        clips: whether the trainer clips gradients; a module that steps by itself does that itself.

    Raises:
        ValueError: for options that there are not, and a number format that the accelerator does not have.
    """
    options = config.trainer
    _check_options(options.options)
    trainer = Trainer(
        default_root_dir=config.run_dir,
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=options.precision.value,
        max_epochs=-1 if options.max_epochs is None else options.max_epochs,
        max_steps=options.max_steps,
        gradient_clip_val=options.gradient_clip_val if clips else None,
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
        enable_progress_bar=config.callbacks.progress_bar,
        **OURS,
        **options.options,
    )
    if trainer.precision != options.precision.value:  # Lightning takes another one, with a warning
        raise ValueError(
            f"trainer.precision must be {trainer.precision} on this machine, got {options.precision}"
        )
    return trainer


def _check_options(options: Mapping[str, Any]) -> None:
    known = set(inspect.signature(Trainer).parameters)
    taken = {"default_root_dir", "logger", "callbacks", *OURS}
    for name in options:
        if name not in known or name in taken:
            what = "is set by the program" if name in taken else "is no option of lightning.pytorch.Trainer"
            raise ValueError(f"trainer.options.{name} {what}; leave it out")


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
        ".*callbacks used to create the checkpoint need to be provided.*",  # said as changed settings
        ".*in eval mode at the start of training.*",  # the frozen VAE of the later stages
    ):
        warnings.filterwarnings("ignore", message=message)
