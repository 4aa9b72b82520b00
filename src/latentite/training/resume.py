"""Going on from a checkpoint: whether it fits, what is different from now on, and whether anything is left to do.

Every setting of a resumed run is in force. What differs from the checkpoint's is said, one line each; what cannot be
taken over is refused by name, before the run leaves anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latentite.base.plain import from_plain
from latentite.checkpoint import DataCard, Stage, plain
from latentite.training.callbacks import EarlyStoppingCallback
from latentite.training.checkpointing import STARTS, ResumePoint, flatten, read_resume_point
from latentite.training.optim import PlateauSchedule, SchedulerConfig, StepSchedule
from latentite.training.settings import RunConfig

log = logging.getLogger(__name__)

UNSAID = (
    *("run_dir", "ckpt_path", "task_name", "allow_other_data", "logger.*", "callbacks.progress_bar"),
    *("data.name", "data.data_dir", "data.cache_dir", "data.workers"),
    *(f"*_module.{key}" for key in STARTS),
)
"""Settings that change nothing, and those whose content is compared instead."""

FIXED = {
    "*_module.optimizer.name": "what one optimizer remembers means nothing to another",
    "*_module.freeze": "the optimizer remembers the parameters that were trained",
    "predictor_module.encoder": "the optimizer remembers the parameters that were trained",
    "predictor_module.encoder_layers": "the optimizer remembers the parameters that were trained",
}
"""Settings that a resumed run cannot change, and why."""

BETWEEN_EPOCHS = (
    *("data.batch_size", "data.batch_atoms", "data.batch_by", "data.bucketed", "data.seed"),
    "data.fidelities.*",
    *("trainer.limit_train_batches", "trainer.accumulate_grad_batches"),
    *("rl_module.sampling.*", "rl_module.rl_configs.num_group_samples", "rl_module.rl_configs.best_of"),
)
"""Settings that say which crystals the rest of an epoch holds: changed in its middle, some would come twice and others
not at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A setting that differs from the checkpoint's."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} in the checkpoint, {_shown(self.now)} from now on"


def find_changes(point: ResumePoint, settings: Mapping[str, Any]) -> list[Change]:
    """Settings in force that differ from the checkpoint's; none where it does not say."""
    before, now = point.settings, flatten(settings)
    if not before:
        return []
    keys = [*now, *(key for key in before if key not in now)]
    return [
        Change(key=key, before=before.get(key), now=now.get(key))
        for key in keys
        if before.get(key) != now.get(key) and not _is_one_of(key, UNSAID)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumption:
    """A run that goes on from a checkpoint."""

    point: ResumePoint
    changes: list[Change]

    @staticmethod
    def of(config: RunConfig, stage: Stage, network_config: Any, run: Mapping[str, Any]) -> Resumption | None:
        """Reads `config.ckpt_path`; None for a new run.

        Args:
            config: with the settings in force.
            stage: of training.
            network_config: from which its network can be built again.
            run: its `run_record`.

        Raises:
            ValueError: naming what cannot be gone on with.
        """
        if config.ckpt_path is None:
            return None
        point = read_resume_point(config.ckpt_path, stage)
        changes = find_changes(point, run["settings"])
        check_start(point, run["starts"], changes)
        check_network(point, stage, network_config, changes)
        return Resumption(point=point, changes=changes)

    def check(self, config: RunConfig, data: DataCard, module: LightningModule) -> None:
        """Refuse other data and other parameters; say what is different from now on.

        Args:
            config: of the run.
            data: `CrystalDataModule.data_card()`.
            module: of the run, new.

        Raises:
            ValueError: naming both data sets, or the settings that may be the reason.
        """
        lines = check_data(self.point, data, is_allowed=config.allow_other_data)
        check_module(self.point, module, self.changes)
        if self.finished(config):
            return
        log.info("resuming %s, %s (step %d)", self.point.path, self.point.place, self.point.steps)
        if not self.point.settings:
            log.info("it does not say with which settings it was trained; those of this run are in force")
        for line in [*self.changes, *lines]:
            log.info("%s", line)

    def finished(self, config: RunConfig) -> str | None:
        """Reason for which nothing is left to train, in one phrase; None where something is."""
        point, limits, stopping = self.point, config.trainer, config.callbacks.early_stopping
        last = limits.max_epochs
        if last is not None and last != -1 and point.epochs >= last:
            return f"already finished at epoch {point.epochs} of {last}; raise trainer.max_epochs to train on"
        if limits.max_steps != -1 and point.steps >= limits.max_steps:
            return f"already finished at step {point.steps} of {limits.max_steps}; raise trainer.max_steps to train on"
        if stopping is None:
            return None
        key = EarlyStoppingCallback(stopping.monitor, mode=stopping.mode.value).state_key
        waited = point.callbacks.get(key, {}).get("wait_count", 0)
        if waited < stopping.patience:
            return None
        return (
            f"already finished, stopped early after epoch {point.epochs} ({waited} validations without improvement); "
            "raise callbacks.early_stopping.patience, or set callbacks.early_stopping=null, to train on"
        )


def check_start(point: ResumePoint, starts: Mapping[str, str], changes: list[Change]) -> None:
    """Refuse what a resumed run cannot take over.

    Args:
        point: where it goes on.
        starts: digests of the weights that the run's settings name, as `run_record` gives them.
        changes: of its settings.

    Raises:
        ValueError: naming the setting, and what to do.
    """
    for key in sorted(starts.keys() | point.starts.keys()) if point.settings else ():
        if starts.get(key) != point.starts.get(key):
            before = _shown(point.settings.get(key))
            raise ValueError(
                f"{key} must name the weights that the run of ckpt_path started from ({before}), got "
                f"{'none' if key not in starts else 'others'}; set {key}={before}, or start a new run without ckpt_path"
            )
    for change in changes:
        why = next((why for pattern, why in FIXED.items() if fnmatchcase(change.key, pattern)), None)
        if why is not None:
            raise ValueError(_refusal(change, why))
        if point.is_mid_epoch and _is_one_of(change.key, BETWEEN_EPOCHS):
            raise ValueError(
                f"{_refusal(change, f'the checkpoint stands {point.place}')}, or first finish that epoch with "
                f"{change.key}={_shown(change.before)} {point.rest_of_epoch}"
            )
        if "replay" in point.remembers and change.key.startswith("rl_module.reward_fn."):
            raise ValueError(
                _refusal(change, "the replayed trajectories in the checkpoint were judged by its rewards")
            )


def check_network(point: ResumePoint, stage: Stage, network_config: Any, changes: list[Change]) -> None:
    """Refuse another network than the checkpoint's.

    Raises:
        ValueError: naming the first setting that differs.
    """
    here = flatten(plain(network_config))
    # What the checkpoint does not name is newer than it, and was at its default.
    there = flatten(plain(from_plain(type(network_config), point.network)))
    key = next((key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)), None)
    if key is None:
        return
    # A network is described by settings, and by what data and earlier stages make of them.
    own = [change for change in changes if change.key == f"{stage}_module.{key}"]
    own = own or [c for c in changes if c.key.startswith((f"{stage}_module.", "data.target_condition"))]
    advice = own[0] if own else Change(key=f"{stage}_module.{key}", before=there.get(key), now=here.get(key))
    raise ValueError(
        f"ckpt_path must hold the same network as configured, but {key} is {there.get(key)!r} there "
        f"and {here.get(key)!r} here; set {advice.key}={_shown(advice.before)}"
    )


def check_module(point: ResumePoint, module: LightningModule, changes: list[Change]) -> None:
    """Refuse a module with other tensors than the checkpoint's, or others to be trained.

    Raises:
        ValueError: naming the settings that may be the reason.
    """
    here = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    num_trained = sum(parameter.requires_grad for parameter in module.parameters())
    odd = sorted(
        name for name in here.keys() | point.shapes.keys() if here.get(name) != point.shapes.get(name)
    )
    if not odd and num_trained == point.num_trained:
        return
    what = (
        f"{odd[0]} is {_shape(point.shapes.get(odd[0]))} there and {_shape(here.get(odd[0]))} here"
        if odd
        else f"{point.num_trained} parameters were trained there and {num_trained} are here"
    )
    wanted = " ".join(f"{c.key}={_shown(c.before)}" for c in changes if "_module." in c.key)
    raise ValueError(
        f"ckpt_path must hold the same trained parameters as configured, but {what}"
        + (f"; set {wanted}, as in the checkpoint" if wanted else "")
    )


def check_data(point: ResumePoint, data: DataCard, *, is_allowed: bool) -> list[str]:
    """Refuse other crystals or labels than those that the checkpoint was trained and validated on.

    Args:
        point: where the run goes on.
        data: `CrystalDataModule.data_card()`.
        is_allowed: `allow_other_data`.

    Returns:
        What is to be said of data that are others and allowed.

    Raises:
        ValueError: naming both data sets.
    """
    lines = []
    for split, verb in (("train", "trained"), ("val", "validated")):
        if point.data.split(split).content_hash == data.split(split).content_hash:
            continue
        there, here = _data_set(point.data, split), _data_set(data, split)
        if not is_allowed:
            raise ValueError(
                f"ckpt_path was {verb} on other data: its {split} split is {there}, that of this run is {here}; "
                "give the same data, or set allow_other_data=true"
            )
        if split == "train" and point.is_mid_epoch:
            raise ValueError(
                f"allow_other_data=true needs a checkpoint from the end of an epoch, but {point.path} stands "
                f"{point.place}; first finish that epoch on {there} with {point.rest_of_epoch}"
            )
        lines.append(f"{split} split: {there} in the checkpoint, {here} from now on")
    return lines


class ResumedScheduleCallback(Callback):
    """Places the learning-rate schedule where the run goes on, and refuses to stretch one that has ended."""

    def __init__(self, point: ResumePoint, config: SchedulerConfig, *, stage: Stage) -> None:
        self.point, self.config, self.section = point, config, f"{stage}_module.scheduler"
        self._checkpoint: dict[str, Any] = {}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning restores the schedule of this from it when the new one is there."""
        self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The new schedule is known by now, and not restored yet."""
        before: dict[str, Any] = next(iter(self._checkpoint["lr_schedulers"]), {})
        new = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
        if isinstance(new, StepSchedule):
            self._check_end(new)
            if "lr_lambdas" not in before:  # a rate that never changed, or a plateau's
                steps = self.point.steps
                self._checkpoint["lr_schedulers"] = [{"last_epoch": steps, "_step_count": steps + 1}]
        elif isinstance(new, PlateauSchedule) and "num_bad_epochs" not in before:
            self._checkpoint["lr_schedulers"] = []  # it has seen nothing yet

    def _check_end(self, new: StepSchedule) -> None:
        """Say that a falling schedule has another length, or has ended.

        Raises:
            ValueError: where one that has ended would begin again because the run became longer.
        """
        if not self.config.falls:
            return
        step, old, now = self.point.steps, self.point.schedule_steps, new.total_steps
        # A run that ended in its warm-up has nothing to stretch: the warm-up goes on where it stood.
        has_ended = old is not None and self.config.warmup_steps < old <= step < now
        if has_ended and self.config.total_steps is None:
            raise ValueError(
                f"the {self.config.name} schedule of ckpt_path has ended (step {step} of {old}), and the longer run "
                f"would stretch it to {now} steps and raise the rate to {new.factor_at(step):.3g} of lr at once; set "
                f"{self.section}.total_steps={old} to train on at the last rate, {self.section}.total_steps={now} to "
                f"stretch it, or {self.section}.name=constant with the rate that you want"
            )
        if old is not None and now != old:
            log.info("%s: %d steps in the checkpoint, %d from now on", self.section, old, now)
        if step >= now:
            share = new.factor_at(step)
            log.info(
                "%s has ended (step %d of %d): the rate stays at %.3g of lr%s",
                self.section,
                step,
                now,
                share,
                ", nothing is learnt" if share == 0 else "",
            )


def _is_one_of(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _refusal(change: Change, why: str) -> str:
    return (
        f"{change.key} is {_shown(change.before)} in ckpt_path and {_shown(change.now)} here, which resuming does not "
        f"allow: {why}; set {change.key}={_shown(change.before)}"
    )


def _shown(value: Any) -> str:
    """As it would be typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return str(value)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _data_set(data: DataCard, split: str) -> str:
    if split not in data.splits:
        return f"absent in {data.name!r}"
    digest = str(data.splits[split].content_hash)
    # Behind the 64 digits stands what was left out.
    return f"{data.name!r} ({data.splits[split].num_crystals} crystals, hash {digest[:12]}{digest[64:]})"
