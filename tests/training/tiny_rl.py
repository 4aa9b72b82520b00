"""Tiny runs of the reinforcement learning stage, on a tiny base whose crystals are mostly usable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_run import _changed as changed
from tiny_run import read, tiny_config

from latentite.generators.latent.chain import SamplingConfig
from latentite.rewards.combine import RewardConfig
from latentite.rl.config import RLModuleConfig, TrainRLConfig
from latentite.rl.policy_config import PolicyConfig
from latentite.training.optim import OptimizerConfig
from latentite.training.settings import MonitorMode

VOLUME = {
    "volume": {
        "_target_": "latentite.rewards.properties.PropertyReward",
        "property": "volume_per_atom",
        "maximise": True,
    }
}


def make_usable(path: Path) -> Path:
    """Let the decoder of a checkpoint make cells of about 2.8 Å x atoms^(1/3), so that rewards have work to do."""
    content = read(path)
    weights = {
        name.removeprefix("network.vae.decoder."): tensor for name, tensor in content["state_dict"].items()
    }
    weights["transformer.norm.weight"][0], weights["transformer.norm.bias"][0] = 0.0, 1.0
    weights["lattice_head.weight"].mul_(0.1)
    weights["lattice_head.weight"][:, 0] = torch.tensor([2.8, 2.8, 2.8, 1.57, 1.57, 1.57])
    weights["frac_coords_head.weight"].mul_(3.0)
    torch.save(content, path)
    return path


def tiny_rl_config(
    run_dir: Path, base: Path, *, components: dict | None = None, **changes: Any
) -> TrainRLConfig:
    """Two epochs of two rollouts: three prompts, four crystals each, five steps."""
    shared = tiny_config(run_dir)
    shared.trainer.max_epochs = 2
    shared.trainer.limit_train_batches = 2
    shared.trainer.limit_val_batches = 1
    shared.callbacks.checkpoint.monitor = "val/reward"
    shared.callbacks.checkpoint.mode = MonitorMode.MAX
    module = RLModuleConfig(
        ldm_ckpt_path=str(base),
        rl_configs=PolicyConfig(num_group_samples=4, clip_ratio=0.1, kl_weight=0.1),
        reward_fn=RewardConfig(components=components or VOLUME),
        sampling=SamplingConfig(steps=5),
        optimizer=OptimizerConfig(lr=1e-3),
        num_pictures=0,
    )
    config = TrainRLConfig(
        run_dir=run_dir,
        trainer=shared.trainer,
        logger=shared.logger,
        callbacks=shared.callbacks,
        rl_module=module,
    )
    return changed(config, changes)
