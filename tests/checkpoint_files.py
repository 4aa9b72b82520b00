"""Small checkpoints to read, refuse and export, for the tests of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentite.checkpoint import Stage, build_payload


class Head(StrEnum):
    LINEAR = "linear"
    CIRCLE = "circle"


@dataclass(kw_only=True, slots=True)
class TinyConfig:
    width: int = 4
    head: Head = Head.CIRCLE
    path: Path | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    loss_weights: dict[str, float] = field(default_factory=lambda: {"kl": 1e-5})


def tiny_network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    network[1].running_mean.fill_(float(seed))  # type: ignore[operator]  # a buffer
    return network


def lightning_file(path: Path, *, ema: bool = True, **changes: Any) -> Path:
    """A checkpoint in Lightning's layout, without Lightning."""
    network = tiny_network()
    payload = build_payload(
        stage=Stage.VAE,
        config=TinyConfig(width=8),
        data={"content_hash": "ab12", "num_train": 100},
        metrics={"val/match_rate": 0.5},
        ema={name: p + 1 for name, p in network.named_parameters()} if ema else None,
    )
    content = {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"network.{name}": tensor for name, tensor in network.state_dict().items()},
        "loops": {},
        "optimizer_states": [torch.optim.AdamW(network.parameters()).state_dict()],
        "latentite": {**payload, **changes},
    }
    torch.save(content, path)
    return path


def assert_same_state(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
