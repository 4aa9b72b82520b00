"""Resuming with settings of the network that are newer than the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentite.checkpoint import DataCard, Stage, plain
from latentite.nn.gpt.circular import CoordDensity
from latentite.nn.gpt.network import GPTConfig
from latentite.training.checkpointing import ResumePoint
from latentite.training.resume import check_network


def point(network: dict[str, Any]) -> ResumePoint:
    """A checkpoint with a network, after one epoch."""
    return ResumePoint(
        path=Path("last.ckpt"),
        stage=Stage.GPT,
        network=network,
        data=DataCard(),
        metrics={},
        epochs=1,
        steps=10,
        is_mid_epoch=False,
        schedule_steps=None,
        settings={},
        starts={},
        shapes={},
        num_trained=0,
        callbacks={},
        remembers=frozenset(),
    )


def test_a_run_from_before_there_was_a_setting_goes_on_with_its_default() -> None:
    """A setting of the network that a checkpoint did not name was taken for another one than the default."""
    older = plain(GPTConfig())
    del older["coord_density"], older["lattice_density"], older["size"]["num_coord_mixtures"]
    check_network(point(older), Stage.GPT, GPTConfig(), [])
    other = GPTConfig(coord_density=CoordDensity.VON_MISES)
    with pytest.raises(ValueError, match=r"coord_density is 'bins' there and 'von_mises' here"):
        check_network(point(older), Stage.GPT, other, [])
