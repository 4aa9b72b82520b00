"""Settings that all training stages share: data, trainer, loggers, callbacks, and the run itself.

Each stage's config extends `RunConfig` with its module's section. No Lightning here, so that a wrong setting is
refused before anything heavy is imported.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from latentite.base.plain import NOT_TYPED, check_counts, check_seed
from latentite.data.fidelities import FidelityConfig, SplitBy
from latentite.data.options import DEFAULT_FRACTIONS
from latentite.data.splits import check_fractions
from latentite.training.conditions import FROM_CRYSTAL

DEFAULT_BATCH_ATOMS = 4096


class BatchBy(StrEnum):
    """Limits of a batch."""

    CRYSTALS = "crystals"
    """`batch_size` crystals; where `batch_atoms` is given, also so many atoms."""
    ATOMS = "atoms"
    """`batch_atoms` atoms (4096 where null), however many crystals that are."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """The crystals of a run, and their division into batches."""

    name: str = "mp_20"
    """A named data set (`latentite.data.sources`); where `data_dir` is given, only a label."""
    data_dir: Path | None = None
    """Folder made by `latentite data build`, or one with train/val/test files."""
    cache_dir: Path | None = None
    """Folder of packed splits; null takes `LATENTITE_CACHE_DIR`, else `~/.cache/latentite`."""
    batch_size: int = 256
    """Crystals per step, over all processes together; with `batch_atoms` the most that a batch may hold."""
    batch_atoms: int | None = None
    """If given, batches are sized by atoms: at most this many per step."""
    batch_by: BatchBy = BatchBy.CRYSTALS
    eval_batch_size: int | None = None
    """Crystals per batch of validation and test; null takes `batch_size`."""
    bucketed: bool = True
    """Batches of crystals of similar size, so that little is padded."""
    max_atoms: int = 20
    """Crystals with more atoms are rejected when a split is built, and left out (counted, said) of one that is."""
    max_crystals: int | None = None
    """Use only the first so many crystals of each split (for trials)."""
    seed: int | None = None
    """Of the order of the crystals; null takes the run's seed, or 0 where there is no run."""
    target_condition: list[str] | str | None = None
    """Conditions of the diffusion stage: labels, which are loaded with the crystals, and names such as
    `composition` that are read off the crystals themselves (`training/conditions.py`)."""
    properties: list[str] = field(default_factory=list)
    """Further properties to load."""
    atom_features_path: Path | None = None
    """Folder with a foundation model's features of every atom, one file per split (`write_atom_features`)."""
    fidelities: dict[str, FidelityConfig] = field(default_factory=dict)
    """Labels of several levels of theory, by name, in place of one data set (`latentite.data.fidelities`)."""
    reference_fidelity: str | None = None
    """The one that the others are compared with; null takes the first."""
    split_by: SplitBy = SplitBy.ID
    """The key by which rows of two fidelities are the same material, which is then in one split only."""
    split_fractions: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    """Of the materials that no fidelity's source has given a split."""
    split_seed: int = 0
    """Of that division; not the run's seed, so that runs of several seeds have one test split."""
    workers: int | None = None
    """Processes that build a split; null takes all cores."""

    def __post_init__(self) -> None:
        if not self.name and self.data_dir is None:
            raise ValueError("name must not be empty where data_dir is not given")
        check_counts(self, "batch_size", "max_atoms")
        check_counts(self, "batch_atoms", "eval_batch_size", "max_crystals", "workers", or_null=True)
        if self.batch_atoms is not None and self.batch_atoms < self.max_atoms:
            raise ValueError(
                f"batch_atoms must be at least max_atoms ({self.max_atoms}), got {self.batch_atoms}"
            )
        for key in ("seed", "split_seed"):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"{key} must be 0 or more, got {getattr(self, key)}")
        self._check_fidelities()
        if self.data_dir is not None and not self.data_dir.expanduser().is_dir():
            raise ValueError(
                f"data_dir must be an existing folder, got {str(self.data_dir)!r}; "
                "make one with `latentite data build`, or leave it out to use a named data set"
            )

        if self.atom_features_path is not None and not self.atom_features_path.is_dir():
            raise ValueError(
                f"atom_features_path must be an existing folder, got {str(self.atom_features_path)!r}"
            )

    def _check_fidelities(self) -> None:
        check_fractions(self.split_fractions)
        names = list(self.fidelities)
        if self.reference_fidelity is not None and self.reference_fidelity not in names:
            raise ValueError(
                f"reference_fidelity must be one of data.fidelities ({', '.join(names) or 'none are given'}), "
                f"got {self.reference_fidelity!r}"
            )
        if names and not any(weight > 0 for weight in self.fidelity_weights or (1.0,)):
            raise ValueError("fidelities must not all have the weight 0")

    @property
    def reference(self) -> str | None:
        """Name of the reference fidelity; None without fidelities."""
        return self.reference_fidelity or next(iter(self.fidelities), None)

    @property
    def fidelity_weights(self) -> tuple[float, ...] | None:
        """One per fidelity; None where none is given, and every row comes once per epoch."""
        weights = [fidelity.weight for fidelity in self.fidelities.values()]
        if all(weight is None for weight in weights):
            return None
        return tuple(1.0 if weight is None else weight for weight in weights)

    @property
    def conditions(self) -> list[str]:
        """`target_condition` as a list."""
        if isinstance(self.target_condition, str):
            return [self.target_condition]
        return list(self.target_condition or [])

    @property
    def wanted_properties(self) -> tuple[str, ...]:
        """Every property to load, each once, conditions first; what is read off the crystal itself is none."""
        labels = [name for name in self.conditions if name not in FROM_CRYSTAL]
        return tuple(dict.fromkeys([*labels, *self.properties]))


Config = TypeVar("Config", bound="RunConfig")


class Precision(StrEnum):
    """Number formats of training."""

    FP32 = "32-true"
    BF16_MIXED = "bf16-mixed"
    FP16_MIXED = "16-mixed"


class WandbMode(StrEnum):
    """Modes of wandb."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


class MonitorMode(StrEnum):
    """Direction in which a metric is better."""

    MIN = "min"
    MAX = "max"


_DURATION = re.compile(r"^(?:(\d+):)?(\d{1,4}):(\d{1,2}):(\d{1,2})$")


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Lightning's trainer: the options in common use by name, any other under `options`."""

    max_epochs: int | None = 5000
    """Null or -1: no limit (then give max_steps or max_time)."""
    max_steps: int = -1
    """Optimizer steps; -1: no limit."""
    max_time: str | int | None = None
    """Wall-clock limit of this invocation, `HH:MM:SS`, `DD:HH:MM:SS` or seconds; then validate, save, end."""
    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    """Processes of this machine, one for each device; -1: one for every device that there is."""
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Precision = Precision.FP32
    gradient_clip_val: float | None = 10.0
    """Largest norm of the gradient; null: no clipping."""
    accumulate_grad_batches: int = 1
    check_val_every_n_epoch: int | None = 50
    val_check_interval: int | float | None = None
    """Validate every so many batches (whole number) or fraction of an epoch, instead of at its end."""
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    num_sanity_val_steps: int = 0
    log_every_n_steps: int = 10
    deterministic: bool = False
    detect_anomaly: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `lightning.pytorch.Trainer`, passed on as they are."""

    def __post_init__(self) -> None:
        check_counts(self, "num_nodes", "accumulate_grad_batches", "log_every_n_steps")
        if self.max_epochs is not None and self.max_epochs != -1 and self.max_epochs < 1:
            raise ValueError(f"max_epochs must be at least 1, or -1 for no limit, got {self.max_epochs}")
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or -1 for no limit, got {self.max_steps}")
        if self.max_epochs in (None, -1) and self.max_steps == -1 and self.max_time is None:
            raise ValueError("max_epochs must be given where neither max_steps nor max_time limits the run")
        check_counts(self, "check_val_every_n_epoch", or_null=True)
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise ValueError(f"gradient_clip_val must be above 0 or null, got {self.gradient_clip_val}")
        if doubled := sorted(self.options.keys() & {item.name for item in fields(self)}):
            raise ValueError(f"options must not hold {doubled[0]}; set trainer.{doubled[0]} itself")
        _ = self.max_seconds

    @property
    def max_seconds(self) -> float | None:
        """`max_time` in seconds."""
        if self.max_time is None:
            return None
        if isinstance(self.max_time, int):
            seconds = self.max_time
        else:
            match = _DURATION.match(self.max_time)
            if match is None:
                raise ValueError(f"max_time must be HH:MM:SS, DD:HH:MM:SS or seconds, got {self.max_time!r}")
            days, hours, minutes, rest = (int(part or 0) for part in match.groups())
            seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
        if seconds <= 0:
            raise ValueError(f"max_time must be longer than 0 seconds, got {self.max_time!r}")
        return float(seconds)


@dataclass(kw_only=True, slots=True)
class WandbConfig:
    """Weights & Biases. Without an API key `online` becomes `offline` by itself; `WANDB_MODE` overrides."""

    mode: WandbMode = WandbMode.ONLINE
    project: str = "latentite"
    name: str | None = None
    """Of the run; null takes the task and the time."""
    group: str | None = None
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class LoggerConfig:
    """Loggers of metrics: always `metrics.csv` of the run, and wandb if wanted."""

    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """`last.ckpt` to resume from, and the best `epoch_*.ckpt`."""

    monitor: str = "val/loss"
    """Validation metric that says which epochs are best."""
    mode: MonitorMode = MonitorMode.MIN
    save_top_k: int = 1
    """Number of best checkpoints to keep; 0: none, -1: every validated epoch."""
    every_n_epochs: int | None = None
    """Write `last.ckpt` every so many epochs; null: after each validation. Always at the end of the run."""
    every_n_minutes: float | None = 30.0
    """Write `last.ckpt` also after so many minutes without one, in the middle of an epoch; null: never."""
    export: bool = True
    """At the end write the best (else the last) checkpoint as `model.safetensors` and `model.json`."""

    def __post_init__(self) -> None:
        if self.save_top_k < -1:
            raise ValueError(f"save_top_k must be -1 (all), 0 (none) or more, got {self.save_top_k}")
        check_counts(self, "every_n_epochs", or_null=True)
        if self.every_n_minutes is not None and not self.every_n_minutes > 0:
            raise ValueError(f"every_n_minutes must be above 0 or null, got {self.every_n_minutes}")


@dataclass(kw_only=True, slots=True)
class EarlyStoppingConfig:
    """End the run when a validation metric no longer improves."""

    monitor: str = "val/loss"
    mode: MonitorMode = MonitorMode.MIN
    patience: int = 20
    """Validations without improvement."""
    min_delta: float = 0.0
    """Smallest change that counts as an improvement."""

    def __post_init__(self) -> None:
        check_counts(self, "patience")
        if self.min_delta < 0:
            raise ValueError(f"min_delta must be 0 or more, got {self.min_delta}")


@dataclass(kw_only=True, slots=True)
class CallbacksConfig:
    """Callbacks around the training steps."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    early_stopping: EarlyStoppingConfig | None = None
    progress_bar: bool = True
    """Off (or where the output is no terminal), one line per validation instead."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Settings of every training run; a stage's config adds the section of its module."""

    task_name: str = "train"
    run_dir: Path = field(default=Path("logs/train/run"), metadata=NOT_TYPED)
    """Everything that the run leaves lies here."""
    seed: int = 0
    """Of weights, data order, noise; 0 is a seed like any other."""
    compile: bool = False
    """`torch.compile` the network."""
    ckpt_path: Path | None = None
    """Checkpoint to resume from: weights, optimizer, schedule, EMA and position in the data. Every other setting is
    that of this run; what differs from the checkpoint's is said, or refused (`training/resume.py`)."""
    allow_other_data: bool = False
    """Resume on other crystals or labels than the checkpoint's."""
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.data.seed is None:
            self.data = replace(self.data, seed=self.seed)
        if self.ckpt_path is not None and not self.ckpt_path.is_file():
            raise ValueError(f"ckpt_path must be an existing checkpoint file, got {str(self.ckpt_path)!r}")


def with_sections(config: Config, **sections: Any) -> Config:
    """A copy of a run's config with other sections, which were checked when they were made."""
    changed = copy.copy(config)
    for name, section in sections.items():
        setattr(changed, name, section)
    return changed
