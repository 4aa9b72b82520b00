"""Optimizers and learning-rate schedules, from two small configs.

Both take only history from a checkpoint (moments, steps, what a plateau has seen): rate, betas, decay and shape of
the schedule are always those of the config, so that a resumed run does what its config says. torch's own restore the
settings as well. Every stage's Lightning module calls `configure` in `configure_optimizers`; nothing else here knows
Lightning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

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
    """The optimizer and its rate."""

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
    """The learning rate over the run."""

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

    @property
    def counts_steps(self) -> bool:
        """True where the rate is a function of the number of optimizer steps."""
        return self.name is not SchedulerName.PLATEAU and (self.falls or self.warmup_steps > 0)

    @property
    def falls(self) -> bool:
        """True where the rate is at its end after a certain number of steps."""
        return self.name in (SchedulerName.COSINE, SchedulerName.WARMUP_LINEAR)


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
    layouts = {is_split: _layout(trainable, slow_ids, is_split=is_split) for is_split in (False, True)}
    groups = [
        {
            "params": group,
            "weight_decay": config.weight_decay if group[0].ndim >= 2 else 0.0,
            **({"lr": slow_ratio * config.lr} if id(group[0]) in slow_ids else {}),
        }
        for group in layouts[config.weight_decay > 0]
    ]
    optimizer: Optimizer
    if config.name is OptimizerName.SGD:
        optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=0.0)
    else:
        kind = AdamW if config.name is OptimizerName.ADAMW else Adam
        # fused: one pass over memory, on two CPU cores a sixth of the time of foreach.
        optimizer = kind(
            groups, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True
        )
    # A fused step can undo the scaling of float16 gradients by itself, and then Lightning refuses to clip them.
    # Without this mark the scaler undoes it before, and clipping sees the true gradients.
    optimizer.__dict__.pop("_step_supports_amp_scaling", None)
    optimizer.register_load_state_dict_pre_hook(
        lambda own, saved: _history_only(own, saved, list(layouts.values()))
    )
    return optimizer


def _layout(
    trainable: Sequence[nn.Parameter], slow_ids: set[int], *, is_split: bool
) -> list[list[nn.Parameter]]:
    """Parameters by group, fast ones first; `is_split`: matrices, which may decay, before vectors."""
    groups = []
    for is_slow in (False, True):
        chosen = [p for p in trainable if (id(p) in slow_ids) is is_slow]
        groups += (
            [[p for p in chosen if p.ndim >= 2], [p for p in chosen if p.ndim < 2]] if is_split else [chosen]
        )
    return [group for group in groups if group]


def _history_only(
    optimizer: Optimizer, saved: dict[str, Any], layouts: Sequence[list[list[nn.Parameter]]]
) -> dict[str, Any]:
    """A saved state with the optimizer's own settings, and its groups: weight decay may have been on or off.

    Args:
        optimizer: what the state is for.
        saved: what a checkpoint holds.
        layouts: in which the groups may have been.

    Raises:
        ValueError: when the state is of other parameters.
    """
    lengths = [len(group["params"]) for group in saved["param_groups"]]
    layout = next((groups for groups in layouts if [len(group) for group in groups] == lengths), None)
    if layout is None:
        raise ValueError(
            f"the optimizer's state must be of {sum(map(len, layouts[0]))} parameters, got groups of {lengths}"
        )
    there = [p for group in layout for p in group]
    ids = [number for group in saved["param_groups"] for number in group["params"]]
    states = {
        id(p): saved["state"][number]
        for p, number in zip(there, ids, strict=True)
        if number in saved["state"]
    }
    own = optimizer.state_dict()["param_groups"]
    here = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        **saved,
        "param_groups": own,
        "state": {number: states[id(p)] for number, p in enumerate(here) if id(p) in states},
    }


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


class StepSchedule(LambdaLR):
    """A rate that is a function of the number of optimizer steps; only that number comes from a checkpoint."""

    def __init__(self, optimizer: Optimizer, config: SchedulerConfig, total_steps: int) -> None:
        self.falls, self.total_steps = config.falls, total_steps  # in checkpoints: how long it was
        super().__init__(optimizer, lr_factor(config, total_steps))

    def factor_at(self, step: int) -> float:
        """The rate as a share of `lr` after so many optimizer steps."""
        return float(self.lr_lambdas[0](step))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of a saved state."""
        history: dict[str, Any] = {
            key: state_dict[key] for key in ("last_epoch", "_step_count") if key in state_dict
        }
        super().load_state_dict({**history, "lr_lambdas": [None] * len(self.lr_lambdas)})
        self._last_lr = [
            rate * factor(self.last_epoch)
            for rate, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class PlateauSchedule(ReduceLROnPlateau):
    """Falls when a metric no longer improves; what it has seen of that metric comes from a checkpoint."""

    def __init__(self, optimizer: Optimizer, config: SchedulerConfig) -> None:
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.monitor = config.monitor
        floors: list[Any] = [rate * config.min_lr_ratio for rate in self.base_lrs]
        super().__init__(optimizer, mode="min", factor=config.factor, patience=config.patience, min_lr=floors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the reductions so far, unless the rate itself is another, and with the best of the same metric."""
        if state_dict.get("monitor", self.monitor) == self.monitor:
            for key in ("best", "num_bad_epochs", "cooldown_counter"):
                setattr(self, key, state_dict[key])
        self.last_epoch = state_dict["last_epoch"]
        rates, bases = state_dict["_last_lr"], state_dict.get("base_lrs", self.base_lrs)
        if bases != self.base_lrs:
            is_same = rates and min(bases) == min(self.base_lrs) and max(bases) == max(self.base_lrs)
            # Only the groups are others (weight decay was switched): all have fallen alike.
            rates = [rates[0] / bases[0] * rate for rate in self.base_lrs] if is_same else self.base_lrs
        self._last_lr = list(rates)
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def build_scheduler(
    optimizer: Optimizer, config: SchedulerConfig, total_steps: int
) -> StepSchedule | PlateauSchedule | None:
    """The configured schedule, or None where the rate never changes.

    Args:
        optimizer: what it steers.
        config: which schedule.
        total_steps: length of the run in optimizer steps, used where the config leaves it open.

    Raises:
        ValueError: if a falling schedule is asked for and the length of the run is not known.
    """
    if config.name is SchedulerName.PLATEAU:
        return PlateauSchedule(optimizer, config)
    if not config.counts_steps:
        return None
    total = config.total_steps or total_steps
    if config.falls and not 0 < total < math.inf:
        raise ValueError(
            f"scheduler {config.name} needs the length of the run, got {total_steps} steps; "
            "set trainer.max_epochs, trainer.max_steps or scheduler.total_steps"
        )
    return StepSchedule(optimizer, config, int(total) if math.isfinite(total) else 0)


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
    """The value that `LightningModule.configure_optimizers` returns.

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
