"""A reward may take gradients of its own, in rollouts and in validation: potentials do."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tiny_rl import make_usable, tiny_rl_config
from tiny_run import tiny_datamodule, tiny_ldm_config

from latentite.crystal import CrystalBatch
from latentite.objectives.ldm import DiffusionKind
from latentite.stages import train_ldm, train_rl


class Steepness:
    """Minus the largest slope of sum(x^2) over a crystal's coordinates, by autograd."""

    def __call__(self, structures: list[object], batch: CrystalBatch) -> torch.Tensor:
        coords = batch.frac_coords.clone().requires_grad_()
        (slope,) = torch.autograd.grad((coords * batch.frac_coords).sum(), coords)
        largest = torch.zeros(len(batch)).index_reduce(
            0, batch.crystal_index, slope.abs().amax(dim=1), "amax", include_self=False
        )
        return -largest


@pytest.fixture
def base(vae_checkpoint: Path, tmp_path: Path) -> Path:
    config = tiny_ldm_config(tmp_path / "base", vae_checkpoint, DiffusionKind.FLOW, trainer__max_epochs=1)
    return make_usable(train_ldm(config, datamodule=tiny_datamodule()).last_path)


def test_rewards_with_gradients_work_in_validation(base: Path, tmp_path: Path) -> None:
    target = f"{Path(__file__)}:Steepness"
    config = tiny_rl_config(tmp_path / "run", base, components={"slope": {"_target_": target}})
    train_rl(config, datamodule=tiny_datamodule(batch_size=3))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    failed = [float(row["val/reward/slope/failed"]) for row in rows if row["val/reward/slope/failed"]]
    assert failed
    assert set(failed) == {0.0}
