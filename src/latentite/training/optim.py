"""Optimizers and learning-rate schedules, from two small configs.

Every stage's Lightning module calls `configure` in `configure_optimizers`; nothing else here knows Lightning.
Comes before `training/vae.py`; `training/fit.py` drives both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

Name = TypeVar("Name", bound=StrEnum)


class OptimizerName(StrEnum):
    """Optimizers that a config may name."""

    ADAMW = "adamw"
    ADAM = "adam"
    SGD = "sgd"


class SchedulerName(StrEnum):
    """Learning-rate schedules that a config may name."""

    CONSTANT = "constant"
    COSINE = "cosine"
    WARMUP_LINEAR = "warmup_linear"
    PLATEAU = "plateau"


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """Which optimizer, and how fast."""

    name: OptimizerName = OptimizerName.ADAMW
    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.0
    """Applied to matrices only; biases, norms and other vectors are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam and AdamW."""
    eps: float = 1e-8
    """Of Adam and AdamW."""
    momentum: float = 0.9
    """Of SGD."""

    def __post_init__(self) -> None:
        self.name = _member(OptimizerName, self.name, "name")
        self.betas = (float(self.betas[0]), float(self.betas[1]))
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        if not self.eps > 0:
            raise ValueError(f"eps must be a positive number, got {self.eps}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum}")


@dataclass(kw_only=True, slots=True)
class SchedulerConfig:
    """How the learning rate changes over the run."""

    name: SchedulerName = SchedulerName.CONSTANT
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly from 0 to `lr` (not for `plateau`)."""
    min_lr_ratio: float = 0.0
    """The rate at the end of `cosine` and `warmup_linear`, and the floor of `plateau`, as a share of `lr`."""
    total_steps: int | None = None
    """Length of the schedule in optimizer steps; null takes the trainer's epochs times batches."""
    patience: int = 10
    """`plateau`: validations without improvement before the rate falls."""
    factor: float = 0.5
    """`plateau`: what the rate is multiplied with."""
    monitor: str = "val/loss"
    """`plateau`: the metric to watch (smaller is better)."""

    def __post_init__(self) -> None:
        self.name = _member(SchedulerName, self.name, "name")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"min_lr_ratio must lie in [0, 1], got {self.min_lr_ratio}")
        if self.total_steps is not None and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"total_steps must be greater than warmup_steps ({self.warmup_steps}), got {self.total_steps}"
            )
        if self.patience < 0:
            raise ValueError(f"patience must be 0 or more, got {self.patience}")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, got {self.factor}")


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    config: OptimizerConfig,
    *,
    slow: Iterable[nn.Parameter] = (),
    slow_ratio: float = 1.0,
) -> Optimizer:
    """The configured optimizer over the parameters that require gradients.

    Args:
        parameters: all of them.
        config: which optimizer.
        slow: those of them that have a learning rate of their own.
        slow_ratio: that rate as a share of `config.lr`.

    Raises:
        ValueError: if there is nothing to train.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ValueError("the optimizer needs at least one parameter that requires gradients, got none")
    slow_ids = {id(parameter) for parameter in slow}
    groups: list[dict[str, Any]] = []
    for is_slow in (False, True):
        chosen = [p for p in trainable if (id(p) in slow_ids) is is_slow]
        rate = {"lr": slow_ratio * config.lr} if is_slow else {}
        if config.weight_decay > 0:
            matrices = [p for p in chosen if p.ndim >= 2]
            groups.append({"params": matrices, "weight_decay": config.weight_decay, **rate})
            chosen = [p for p in chosen if p.ndim < 2]
        groups.append({"params": chosen, "weight_decay": 0.0, **rate})
    groups = [group for group in groups if group["params"]]
    if config.name is OptimizerName.SGD:
        return SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=0.0)
    kind = AdamW if config.name is OptimizerName.ADAMW else Adam
    # fused: one pass over memory, on two CPU cores a sixth of the time of foreach.
    optimizer = kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True)
    # A fused step can undo the scaling of float16 gradients by itself, and then Lightning refuses to clip them.
    # Without this mark the scaler undoes it before, and clipping sees the true gradients.
    optimizer.__dict__.pop("_step_supports_amp_scaling", None)
    return optimizer


def lr_factor(config: SchedulerConfig, total_steps: int) -> Callable[[int], float]:
    """The rate as a share of `lr` after so many optimizer steps (every schedule but `plateau`).

    Cosine: Loshchilov & Hutter, SGDR (arXiv 1608.03983), equation 5, one period, after the warm-up.
    """
    warmup, floor, name = config.warmup_steps, config.min_lr_ratio, config.name

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if name is SchedulerName.CONSTANT:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        falling = (
            1 - progress if name is SchedulerName.WARMUP_LINEAR else (1 + math.cos(math.pi * progress)) / 2
        )
        return floor + (1 - floor) * falling

    return factor


def build_scheduler(
    optimizer: Optimizer, config: SchedulerConfig, total_steps: int
) -> LRScheduler | ReduceLROnPlateau | None:
    """The configured schedule, or None where the rate never changes.

    Args:
        optimizer: what it steers.
        config: which schedule.
        total_steps: length of the run in optimizer steps, used where the config leaves it open.

    Raises:
        ValueError: if a falling schedule is asked for and the length of the run is not known.
    """
    if config.name is SchedulerName.PLATEAU:
        floors = [group["lr"] * config.min_lr_ratio for group in optimizer.param_groups]
        return ReduceLROnPlateau(
            optimizer, mode="min", factor=config.factor, patience=config.patience, min_lr=floors
        )
    if config.name is SchedulerName.CONSTANT and config.warmup_steps == 0:
        return None
    total = config.total_steps or total_steps
    if config.name is not SchedulerName.CONSTANT and not 0 < total < math.inf:
        raise ValueError(
            f"scheduler {config.name} needs the length of the run, got {total_steps} steps; "
            "set trainer.max_epochs, trainer.max_steps or scheduler.total_steps"
        )
    return LambdaLR(optimizer, lr_factor(config, int(total) if math.isfinite(total) else 0))


def configure(
    parameters: Iterable[nn.Parameter],
    optimizer_config: OptimizerConfig,
    scheduler_config: SchedulerConfig,
    *,
    total_steps: float,
    validate_every: int | None = 1,
    slow: Iterable[nn.Parameter] = (),
    slow_ratio: float = 1.0,
) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns.

    Args:
        parameters: of the network.
        optimizer_config: which optimizer.
        scheduler_config: which schedule.
        total_steps: `trainer.estimated_stepping_batches` (infinite where the run has no end).
        validate_every: `trainer.check_val_every_n_epoch`; `plateau` acts only when its metric is new.
        slow: parameters with a learning rate of their own.
        slow_ratio: that rate as a share of the optimizer's.
    """
    optimizer = build_optimizer(parameters, optimizer_config, slow=slow, slow_ratio=slow_ratio)
    scheduler = build_scheduler(optimizer, scheduler_config, total_steps)  # type: ignore[arg-type]  # may be inf
    if scheduler is None:
        return {"optimizer": optimizer}
    entry: dict[str, Any] = {"scheduler": scheduler, "interval": "step", "frequency": 1}
    if isinstance(scheduler, ReduceLROnPlateau):
        # In epochs without validation Lightning would show it the old metric again: no improvement.
        entry |= {"interval": "epoch", "frequency": validate_every or 1, "monitor": scheduler_config.monitor}
    return {"optimizer": optimizer, "lr_scheduler": entry}


def _member(kind: type[Name], value: str, key: str) -> Name:
    """The enum's member of that value, or a sentence that lists them."""
    try:
        return kind(value)
    except ValueError as error:
        raise ValueError(f"{key} must be one of {', '.join(kind)}, got {value!r}") from error
