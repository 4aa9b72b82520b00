"""Callbacks of a run: averaged weights, progress with throughput, a time limit, a clean end on SIGTERM, a stop at NaN.

Checkpoints are in `checkpointing.py`. `training/fit.py` puts them together.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar
from torch import Tensor, nn

from latentite.base.progress import Bar, ProgressBars
from latentite.crystal import CrystalBatch
from latentite.training.checkpointing import CheckpointCallback
from latentite.training.ema import EMAConfig, WeightAverage

log = logging.getLogger(__name__)


class BeginCallback(Callback):
    """Does something once, on the first process, when nothing can be refused any more and training begins."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a checkpoint is restored, before the first step."""
        if trainer.is_global_zero:
            self.action()


class EarlyStoppingCallback(EarlyStopping):
    """Lightning's, but for its patience, which is this run's also where a checkpoint has another."""

    @property
    def state_key(self) -> str:
        """As Lightning's own, so that its checkpoints are read."""
        return f"EarlyStopping{ {'monitor': self.monitor, 'mode': self.mode}!r}"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class Preempted(BaseException):
    """Raised in the training loop after a signal, when `last.ckpt` is written. Never an error."""


class TrainingDiverged(ValueError):
    """The loss is no longer a number."""


class PreemptionCallback(Callback):
    """On SIGTERM (a cluster's preemption) or the first Ctrl-C: finish the step, write `last.ckpt`, end.

    In a validation the weights do not change, so it is abandoned and, on resume, not repeated.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, checkpoints: CheckpointCallback) -> None:
        self.checkpoints = checkpoints
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the handlers before Lightning sets its own."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in self.SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; Lightning's own handlers only end the run."""
        for number in self._previous:
            signal.signal(number, self._handle)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two steps everything that resuming needs is consistent."""
        self._stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Do not wait for the rest of a long validation."""
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back; `teardown` is not called after an exception."""
        self._give_back()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        log.warning("%s: finishing this step and saving; press Ctrl-C again to abort", self.received.name)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self.received is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.checkpoints.save_last(trainer)
            raise Preempted(str(self.checkpoints.last_path))


class TimeLimitCallback(Callback):
    """End the run in good order after so much wall-clock time of this invocation."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask Lightning to stop: it validates first, then checkpoints are written as at any end."""
        over = time.monotonic() - self._start > self.seconds
        if trainer.world_size > 1:
            over = trainer.strategy.reduce_boolean_decision(over, all=False)
        if over and not trainer.should_stop:
            log.info("time limit of %.0f s reached in epoch %d", self.seconds, trainer.current_epoch)
            trainer.should_stop = True


class NanGuardCallback(Callback):
    """End the run when a loss is not a finite number, before it spoils a checkpoint.

    Reading a number from a GPU waits for it, so there only every 20th step is looked at, and the last one of
    an epoch; weights do not recover from NaN, so nothing is missed.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss that this step reported.

        Raises:
            TrainingDiverged: naming epoch and step.
        """
        loss = _loss_of(outputs)
        if loss is None or (loss.is_cuda and batch_idx % 20 and not trainer.is_last_batch):
            return
        if not math.isfinite(value := loss.item()):
            raise TrainingDiverged(
                f"the loss must be a finite number, got {value} in epoch {trainer.current_epoch + 1}, step "
                f"{trainer.global_step}; lower the optimizer's lr, set trainer.gradient_clip_val, or use "
                "trainer.precision=32-true"
            )


def _loss_of(outputs: Any) -> Tensor | None:
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    return loss if isinstance(loss, Tensor) else None


class Throughput:
    """Crystals per second over the last steps."""

    def __init__(self, window: int = 50) -> None:
        self._window = window
        self._marks: list[tuple[float, int]] = []
        self._total = 0

    def add(self, crystals: int) -> float:
        """Count a finished step; gives the rate (0 at the first)."""
        self._total += crystals
        self._marks = [*self._marks[-self._window :], (time.monotonic(), self._total)]
        (start, before), (end, now) = self._marks[0], self._marks[-1]
        return (now - before) / (end - start) if end > start else 0.0


class ProgressCallback(ProgressBar):
    """A rich bar per epoch on a terminal, else one line per validation; both with crystals per second."""

    def __init__(self) -> None:
        super().__init__()
        self._throughput = Throughput()
        self._rate = 0.0
        self._drawn = 0.0
        self._bars: ProgressBars | None = None
        self._bar: Bar | None = None
        self._enabled = True

    def disable(self) -> None:
        """Lightning silences all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if self._bars is None and self._enabled:
            bars = ProgressBars(transient=True)
            if bars.is_shown:
                bars.start()
                self._bars, self._bar = bars, bars.add("")
        if self._bar is not None:
            last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
            total = int(trainer.num_training_batches)
            self._bar.restart(f"epoch {trainer.current_epoch + 1}{last}", total)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CrystalBatch, batch_idx: int
    ) -> None:
        """Count the crystals of all processes."""
        self._rate = self._throughput.add(len(batch) * trainer.world_size)
        now = time.monotonic()
        if self._bar is None or (now - self._drawn < 0.2 and not trainer.is_last_batch):
            return
        self._drawn = now
        loss = _loss_of(outputs)
        shown = "" if loss is None else f"loss {loss.item() / trainer.world_size:.4f}  "
        note = f"{shown}{self._rate:,.0f} crystals/s"
        self._bar.set(batch_idx + 1, note=note)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the rate among the metrics."""
        if trainer.logger is not None and self._rate > 0:
            trainer.logger.log_metrics({"train/crystals_per_second": self._rate}, step=trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line that stays."""
        if trainer.sanity_checking or not self._enabled:
            return
        names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        shown = "  ".join(f"{n.removeprefix('val/')} {float(trainer.callback_metrics[n]):.4g}" for n in names)
        log.info("epoch %d: %s  (%.0f crystals/s)", trainer.current_epoch + 1, shown, self._rate)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._bar = None


class EMACallback(Callback):
    """Keeps the average of `module.network`, validates with it and saves it."""

    def __init__(self, config: EMAConfig) -> None:
        self.config = config
        self.average: WeightAverage | None = None
        self._loaded: Mapping[str, Tensor] | None = None
        self._last_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start, or continue from what the checkpoint held (it is loaded before this hook)."""
        self.average = WeightAverage(_network(pl_module), self.config)
        if self._loaded is not None:
            self.average.load_state_dict(self._loaded)
            self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here (a resumed run's count is restored by now)."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow every optimizer step (not every batch: gradients may be accumulated)."""
        if self.average is not None and trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.average.update(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the averaged weights into the network."""
        if self.average is not None and not self.average.is_swapped:
            self.average.swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take them out again; checkpoints are written after this hook."""
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the trained weights in the network, whatever happened in validation."""
        self.restore()

    def restore(self) -> None:
        """Put the trained weights back if the averaged ones stand in the network."""
        if self.average is not None and self.average.is_swapped:
            self.average.swap()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average under `latentite` -> `ema`; see to it that `state_dict` has the trained weights."""
        if self.average is None:
            return
        checkpoint.setdefault("latentite", {})["ema"] = self.average.state_dict()
        for name, tensor in self.average.trained().items():
            checkpoint["state_dict"][f"network.{name}"] = tensor

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the saved average until the network stands on its device."""
        self._loaded = checkpoint.get("latentite", {}).get("ema")


def _network(module: LightningModule) -> nn.Module:
    network = module.network
    assert isinstance(network, nn.Module), "every stage's Lightning module has its network as `network`"
    return network
