"""The options that commands about a trained network and a source of crystals share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from latentite.base.devices import BATCH_SIZE, resolve_device
from latentite.base.options import option

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkOptions:
    """A trained network, the crystals that it is shown, and how it is run."""

    checkpoint: str = field(metadata=option("CKPT", positional=True))
    """A .ckpt or .safetensors file, or a hub name."""
    source: str = field(metadata=option("SOURCE", positional=True))
    """Crystals: CSV, Parquet, JSON, extxyz, a folder of CIFs, ..., a folder made by `latentite data build` (its
    --split), or the name of a dataset."""
    split: Literal["train", "val", "test"] = "test"
    """The split of a folder that has splits."""
    batch_size: int = BATCH_SIZE
    """Crystals at once."""
    device: str = "auto"
    """One of auto, cpu, cuda, cuda:1, ..., mps."""
    weights: Literal["ema", "raw"] | None = None
    """Moving average or last step [ema where there is one]."""

    def check_running(self, *, needs_float64: bool = False) -> torch.device:
        """The device, once nothing speaks against running the network on it.

        Raises:
            ValueError: for a batch size below 1, or a device that is not there.
        """
        if self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        return resolve_device(self.device, needs_float64=needs_float64)
