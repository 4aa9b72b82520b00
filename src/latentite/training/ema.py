"""Exponential moving average of the weights: what is validated, saved for use, and resumed exactly.

Plain torch. `EMACallback` (`callbacks.py`) keeps one for the module's `network`: the averaged weights stand in the
network during every validation and lie in the checkpoint under `latentite` -> `ema`, by parameter name, so that
everything downstream loads what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
