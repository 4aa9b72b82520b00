"""Fixtures of the training tests; what they are made of is in `tiny_run.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config

from latentite.training.stages import TrainVAEConfig


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., TrainVAEConfig]:
    """`make_config("name", trainer__max_epochs=2)`: a tiny run in its own folder."""

    def make(name: str, **changes: object) -> TrainVAEConfig:
        return tiny_config(tmp_path / name, **changes)

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads only wait for each other on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
