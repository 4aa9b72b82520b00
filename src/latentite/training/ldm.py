"""Stage 2: the Lightning module that trains a denoiser in a frozen VAE's latent space.

The maths is in `objectives/ldm.py`. Comes after `module.py`; `fit.py` drives it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from latentite import hub
from latentite.checkpoint import CheckpointRecord, Stage, load_network_state, read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.data.augment import AugmentationConfig, augment
from latentite.diffusion.loss import DiffusionLoss
from latentite.nn.denoiser import DenoiserConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.vae import VAEConfig
from latentite.objectives.ldm import (
    DiffusionConfig,
    LDMStageConfig,
    diffusion_loss,
    loss_by_level,
    loss_terms,
)
from latentite.objectives.terms import LossTerms
from latentite.plain import from_plain
from latentite.training.conditions import ConditionModuleOptions, resolve_conditions
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMAConfig
from latentite.training.module import StageModule, Stream
from latentite.training.optim import OptimizerConfig, SchedulerConfig

_ENCODE_CHUNK = 1024


class Shown(StrEnum):
    """Which conditions a loss lets the denoiser see."""

    ALL = "all"
    NONE = "none"
    DRAWN = "drawn"
    """Each hidden at random, as training needs for guidance and for requests of any subset."""


@dataclass(kw_only=True, slots=True)
class LDMModuleConfig:
    """Everything about the diffusion stage but its data: the `ldm_module` group."""

    vae_ckpt_path: str | None = None
    """Path or name (`latentite hub list`) of the VAE's checkpoint. Required."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample_posterior: bool = True
    """Train on posterior draws; off, on posterior means."""
    condition_module: ConditionModuleOptions | None = None
    """How the conditions of `data.target_condition` are trained; null for an unconditional model."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.9999))

    def __post_init__(self) -> None:
        if not self.vae_ckpt_path:
            raise ValueError(
                "vae_ckpt_path must name the VAE's checkpoint (a path or a name of `latentite hub list`)"
            )
        if self.denoiser.learn_variance != self.diffusion.learn_variance:
            raise ValueError(
                f"denoiser.learn_variance must be {str(self.diffusion.learn_variance).lower()} for this diffusion "
                f"(kind={self.diffusion.kind}, variance={self.diffusion.variance}), "
                f"got {str(self.denoiser.learn_variance).lower()}"
            )


class LDMTrainingModule(StageModule):
    """Trains `network.denoiser` and `network.condition_module`; the VAE stays as it is."""

    network: LatentDiffusion

    def __init__(self, config: LDMModuleConfig, network: LatentDiffusion, *, seed: int = 0) -> None:
        """Take a network whose VAE holds its trained weights."""
        super().__init__(
            seed=seed,
            augmentation=config.augmentation,
            optimizer=config.optimizer,
            scheduler=config.scheduler,
        )
        self.config = config
        self.network = network
        self.schedule = config.diffusion.build_schedule()
        self._has_statistics = False

    def compile_network(self) -> None:
        """Compile the denoiser's blocks in place; names of parameters stay as they are."""
        for block in self.network.denoiser.blocks:
            block.compile(dynamic=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._has_statistics = True

    def on_fit_start(self) -> None:
        if self.schedule is not None:
            self.schedule = self.schedule.to(self.device)
        if not self._has_statistics:
            self._fit_statistics()

    def on_train_epoch_start(self) -> None:
        self.network.vae.eval()

    def training_terms(self, batch: CrystalBatch, generator: torch.Generator) -> LossTerms:
        return loss_terms(self._loss(batch, generator, Shown.DRAWN))

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """The loss with every condition shown and, for a conditional model, with all hidden: the gap is their use."""
        found = self._validation_loss(batch, batch_idx, Shown.ALL)
        metrics = {**loss_by_level(found), "loss": found.total.mean()}
        if self.network.condition_module is not None:
            metrics["loss_absent"] = self._validation_loss(batch, batch_idx, Shown.NONE).total.mean()
        logged = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(logged, batch_size=len(batch), on_epoch=True, sync_dist=True)

    def _validation_loss(self, batch: CrystalBatch, batch_idx: int, shown: Shown) -> DiffusionLoss:
        generator = self.generator(Stream.VALIDATION, 0, batch_idx, self.global_rank)
        return self._loss(batch, generator, shown)

    def _loss(self, batch: CrystalBatch, generator: torch.Generator, shown: Shown) -> DiffusionLoss:
        latents = self.network.encode(batch, generator if self.config.sample_posterior else None)
        condition = self._condition(batch, generator, shown)
        denoiser = self.network.denoiser
        return diffusion_loss(
            lambda tokens, time: denoiser(tokens, time, latents.mask, condition),
            latents,
            self.config.diffusion,
            schedule=self.schedule,
            generator=generator,
        )

    def _condition(self, batch: CrystalBatch, generator: torch.Generator, shown: Shown) -> Tensor | None:
        """Conditioning vectors of a batch; None for an unconditional model."""
        module = self.network.condition_module
        if module is None:
            return None
        if shown is Shown.NONE:
            return module.absent(len(batch))
        values = module.values(batch)
        return module(values, None if shown is Shown.ALL else module.hide(values, generator=generator))

    @torch.no_grad()
    def _fit_statistics(self) -> None:
        """Statistics of the latents over the whole augmented training set, the same on every process."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own attribute
        assert isinstance(data, CrystalDataModule)
        crystals = data.splits["train"].crystals
        means, variances = [], []
        for number, index in enumerate(torch.arange(len(crystals)).split(_ENCODE_CHUNK)):
            generator = self.generator(Stream.STATISTICS, 0, number, 0)
            batch = augment(crystals.select(index).to(self.device), self.config.augmentation, generator)
            posterior = self.network.vae.encode(batch)
            means.append(posterior.mean.float())
            variances.append(posterior.logvar.float().exp())
        self.network.fit_statistics(torch.cat(means), torch.cat(variances))
        if self.network.condition_module is not None:
            values = self.network.condition_module.values(crystals)
            self.network.condition_module.fit_statistics(values)
        self._has_statistics = True


def read_vae(config: LDMModuleConfig, data: CrystalDataModule) -> tuple[CheckpointRecord, LDMStageConfig]:
    """The trained VAE, and what a checkpoint of this run will need to build its network again.

    Raises:
        ValueError: when the VAE's checkpoint cannot be used, or conditions and data do not fit.
    """
    assert config.vae_ckpt_path is not None
    record = read_checkpoint(hub.resolve(config.vae_ckpt_path), stage=Stage.VAE)
    settings = LDMStageConfig(
        vae=from_plain(VAEConfig, record.config),
        denoiser=config.denoiser,
        diffusion=config.diffusion,
        condition_module=resolve_conditions(
            data.config.conditions,
            config.condition_module,
            categories=data.splits["train"].categories,
            hidden_size=config.denoiser.shape[1],
        ),
    )
    return record, settings


def build_network(record: CheckpointRecord, settings: LDMStageConfig) -> LatentDiffusion:
    """A new network with the trained VAE in it; the denoiser's weights are drawn."""
    network = LatentDiffusion(settings)
    load_network_state(record, network.vae)
    return network
