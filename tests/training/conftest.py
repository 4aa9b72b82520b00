"""Fixtures of the training tests; what they are made of is in `tiny_run.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, tiny_datamodule

from latentite.stages import train_vae
from latentite.training.stage_settings import TrainVAEConfig


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


@pytest.fixture(scope="session")
def vae_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE trained for one epoch on the tiny data set."""
    config = tiny_config(tmp_path_factory.mktemp("vae"), trainer__max_epochs=1)
    return train_vae(config, datamodule=tiny_datamodule()).last_path
