"""A tiny data set and tiny runs: everything here trains a few hundred parameters for a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset
from latentite.nn.denoiser import DenoiserConfig, DenoiserSize, TokenIndex
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import DecoderConfig
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMAConfig
from latentite.training.optim import OptimizerConfig, SchedulerConfig
from latentite.training.settings import (
    CallbacksConfig,
    CheckpointConfig,
    DataConfig,
    LoggerConfig,
    TrainerConfig,
    WandbConfig,
    WandbMode,
)
from latentite.training.stage_settings import LDMModuleConfig, TrainLDMConfig, TrainVAEConfig, VAEModuleConfig

Config = TypeVar("Config", TrainVAEConfig, TrainLDMConfig)


def tiny_split(count: int, *, seed: int) -> CrystalDataset:
    """Random crystals of 1 to 6 atoms."""
    generator = np.random.default_rng(seed)
    arrays = []
    for _ in range(count):
        num_atoms = int(generator.integers(1, 7))
        lattice = 4.0 * np.eye(3) + 0.3 * generator.normal(size=(3, 3))
        arrays.append(
            CrystalArrays(generator.integers(1, 90, num_atoms), generator.random((num_atoms, 3)), lattice)
        )
    return CrystalDataset(
        crystals=CrystalBatch.from_arrays(arrays),
        ids=tuple(f"{seed}-{i}" for i in range(count)),
        content_hash=f"tiny-{seed}",
    )


def tiny_datamodule(*, batch_size: int = 8, count: int = 44, seed: int = 0) -> CrystalDataModule:
    """Six batches an epoch, the last one smaller."""
    config = DataConfig(name="tiny", batch_size=batch_size, seed=seed)
    splits = {"train": tiny_split(count, seed=1), "val": tiny_split(12, seed=2)}
    return CrystalDataModule(config, splits=splits)


def tiny_config(run_dir: Path, **changes: object) -> TrainVAEConfig:
    """Every part that has a state: AdamW, cosine with warm-up, EMA, noise, augmentation, clipping."""
    size = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}
    module = VAEModuleConfig(
        encoder=EncoderConfig(**size),
        decoder=DecoderConfig(**size),
        optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.01),
        scheduler=SchedulerConfig(name="cosine", warmup_steps=3, total_steps=24),
        ema=EMAConfig(decay=0.9),
        match_limit=0,
    )
    module.noise.ratio = 0.3
    trainer = TrainerConfig(
        max_epochs=4,
        accelerator="cpu",
        gradient_clip_val=1.0,
        check_val_every_n_epoch=1,
        log_every_n_steps=1,
    )
    logger = LoggerConfig(wandb=WandbConfig(mode=WandbMode.DISABLED))
    callbacks = CallbacksConfig(checkpoint=CheckpointConfig(export=False), progress_bar=False)
    config = TrainVAEConfig(
        run_dir=run_dir, trainer=trainer, logger=logger, callbacks=callbacks, vae_module=module
    )
    return _changed(config, changes)


def tiny_ldm_config(
    run_dir: Path, vae: Path, kind: DiffusionKind = DiffusionKind.FLOW, **changes: object
) -> TrainLDMConfig:
    """A tiny run of the diffusion stage with every part that has a state."""
    diffusion = DiffusionConfig(kind=kind)
    denoiser = DenoiserConfig(
        size=DenoiserSize.CUSTOM,
        depth=1,
        hidden_size=16,
        num_heads=2,
        learn_variance=diffusion.learn_variance,
        index=TokenIndex.NONE,
    )
    module = LDMModuleConfig(
        vae_ckpt_path=str(vae),
        denoiser=denoiser,
        diffusion=diffusion,
        optimizer=OptimizerConfig(lr=3e-3),
        ema=EMAConfig(decay=0.9),
    )
    shared = tiny_config(run_dir)
    config = TrainLDMConfig(
        run_dir=run_dir,
        trainer=shared.trainer,
        logger=shared.logger,
        callbacks=shared.callbacks,
        ldm_module=module,
    )
    return _changed(config, changes)


def _changed(config: Config, changes: dict[str, object]) -> Config:
    """The config with values set by name: `trainer__max_epochs=2`."""
    for key, value in changes.items():
        target: object = config
        *path, last = key.split("__")
        for part in path:
            target = getattr(target, part)
        assert hasattr(target, last), key
        setattr(target, last, value)
    return config


def read(path: Path) -> dict:
    """A checkpoint file, read as safely as it must be readable."""
    return torch.load(path, weights_only=True)


def assert_same(one: object, other: object, where: str = "") -> None:
    """Bit for bit, through dicts and lists."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for position, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{position}]")
    else:
        assert one == other, where
