"""Device and batch size of a trained network that is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BATCH_SIZE = 256
"""Crystals at once, unless something else is asked for."""


def resolve_device(name: str, *, needs_float64: bool = False) -> torch.device:
    """The device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Args:
        name: `auto`, or as torch writes it.
        needs_float64: whether the network holds numbers of double precision, which MPS does not have.

    Raises:
        ValueError: for a device that is not there, or that cannot hold the numbers.
    """
    import torch  # takes seconds, and what only prints a help text imports this module too

    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available() and not needs_float64
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {name}") from None
    if device.type == "mps" and needs_float64:
        raise ValueError(
            f"device must be one with double precision for this network, got {name}; use auto or cpu"
        )
    is_there = {
        "cpu": True,
        "mps": has_mps,
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
    }
    if not is_there.get(device.type, False):
        raise ValueError(f"device must be one that torch sees, got {name}; use auto or cpu")
    return device
