"""Exponential moving average of the weights: what is validated, saved for use, and resumed exactly.

`WeightAverage` is plain torch; `EMACallback` keeps one for the module's `network`. The averaged weights stand in the
network during every validation and lie in the checkpoint under `latentite` -> `ema`, by parameter name, so that
everything downstream loads what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


@dataclass(kw_only=True, slots=True)
class EMAConfig:
    """Averaging of the weights."""

    decay: float = 0.999
    """Share of the old average kept per optimizer step; 0 switches the averaging off."""
    warmup: bool = True
    """Start with a short memory: the decay of step t is at most (1 + t) / (10 + t)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.decay) and 0 <= self.decay < 1):
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")


class WeightAverage:
    """The moving average of a network's trainable parameters, in float32 or their own precision."""

    def __init__(self, network: nn.Module, config: EMAConfig) -> None:
        """Start from the network's present weights."""
        self.config = config
        self._names = [name for name, p in network.named_parameters() if p.requires_grad]
        self._live = [p for p in network.parameters() if p.requires_grad]
        self._average = [p.detach().clone() for p in self._live]
        self._is_swapped = False

    @property
    def is_swapped(self) -> bool:
        """Whether the averaged weights stand in the network at the moment."""
        return self._is_swapped

    def decay_at(self, step: int) -> float:
        """The decay of that optimizer step (from 1)."""
        if not self.config.warmup:
            return self.config.decay
        return min(self.config.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the network's weights after optimizer step `step` (from 1)."""
        assert not self._is_swapped, "the average cannot follow itself"
        torch._foreach_lerp_(self._average, [p.data for p in self._live], 1 - self.decay_at(step))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's weights and the average; a second call undoes the first."""
        for live, average in zip(self._live, self._average, strict=True):
            # Values are exchanged, not storages: a compiled or DDP-wrapped network holds on to its storages.
            kept = live.detach().clone()
            live.copy_(average)
            average.copy_(kept)
        self._is_swapped = not self._is_swapped

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name (copies would cost memory: treat as read-only)."""
        tensors = [p.detach() for p in self._live] if self._is_swapped else self._average
        return dict(zip(self._names, tensors, strict=True))

    def trained(self) -> dict[str, Tensor]:
        """The weights that the optimizer moves, by parameter name, wherever they are at the moment."""
        tensors = self._average if self._is_swapped else [p.detach() for p in self._live]
        return dict(zip(self._names, tensors, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved average.

        Raises:
            ValueError: if its parameter names are not the network's.
        """
        if set(state) != set(self._names):
            odd = sorted(set(state) ^ set(self._names))[:5]
            raise ValueError(
                f"the saved average must hold the network's parameters, but they differ in {odd}"
            )
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(state[name])


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
