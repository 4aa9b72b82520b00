"""Stage 2: the Lightning module that trains a denoiser in a frozen VAE's latent space.

The maths is in `objectives/ldm.py`. Comes after `module.py`; `fit.py` drives it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from latentite import hub
from latentite.checkpoint import CheckpointRecord, Stage, load_network_state, read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.data.augment import AugmentationConfig
from latentite.diffusion.loss import DiffusionLoss
from latentite.latent import LatentBatch
from latentite.nn.adapters import LoraConfig
from latentite.nn.conditions import ConditionModuleConfig
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
from latentite.training.latent_cache import CachedBatch, CachedLatents, encode_split
from latentite.training.module import StageModule, Stream
from latentite.training.optim import OptimizerConfig, SchedulerConfig

log = logging.getLogger(__name__)


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
    """Path or name (`latentite hub list`) of the VAE's checkpoint. Required, but for fine-tuning."""
    ldm_ckpt_path: str | None = None
    """Fine-tuning: path or name of the base, a checkpoint of this stage. VAE, statistics, denoiser and diffusion
    are then the base's, whatever the other settings say, and its conditions stay."""
    lora: LoraConfig | None = None
    """Fine-tuning: train low-rank adapters of the denoiser (and the condition module in full) instead of all
    weights; `{}` takes all defaults. An implementation of our own (`nn/adapters.py`)."""
    freeze: list[str] = field(default_factory=list)
    """Fine-tuning: beginnings of the names of parameters that stay as they are, for example `denoiser.blocks.0`."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sample_posterior: bool = True
    """Train on posterior draws; off, on posterior means."""
    condition_module: ConditionModuleOptions | None = None
    """How the conditions of `data.target_condition` are trained; null for an unconditional model."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    latent_cache: int = 0
    """Augmented copies of the training set that are encoded once, before training, and kept on the device; each
    step then draws from them instead of encoding. 0: off. Without augmentation all copies are one."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.9999))

    def __post_init__(self) -> None:
        if not self.vae_ckpt_path and not self.ldm_ckpt_path:
            raise ValueError(
                "vae_ckpt_path must name the VAE's checkpoint (a path or a name of `latentite hub list`), "
                "or ldm_ckpt_path that of a base to fine-tune"
            )
        if not self.ldm_ckpt_path and (self.lora is not None or self.freeze):
            raise ValueError(
                f"ldm_ckpt_path must name the base to fine-tune where {'freeze' if self.lora is None else 'lora'} "
                "is given"
            )
        if self.latent_cache < 0:
            raise ValueError(f"latent_cache must be 0 (off) or more, got {self.latent_cache}")
        if self.latent_cache > 1 and not (self.augmentation.translate or self.augmentation.rotate):
            raise ValueError(
                f"latent_cache must be 0 or 1 without augmentation, where all copies are equal, got {self.latent_cache}"
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

    def __init__(
        self,
        config: LDMModuleConfig,
        network: LatentDiffusion,
        *,
        seed: int = 0,
        fit_latent_statistics: bool = True,
        fit_condition_statistics: bool = True,
    ) -> None:
        """Take a network whose VAE holds its trained weights.

        Args:
            config: with the diffusion process of the network.
            network: parameters that stay as they are require no gradients.
            seed: of all draws.
            fit_latent_statistics: off where the network brings its own, as in fine-tuning.
            fit_condition_statistics: off where its conditions bring theirs.
        """
        super().__init__(
            seed=seed,
            augmentation=config.augmentation,
            optimizer=config.optimizer,
            scheduler=config.scheduler,
        )
        self.config = config
        self.network = network
        self.schedule = config.diffusion.build_schedule()
        self._fit_latent_statistics = fit_latent_statistics
        self._fit_condition_statistics = fit_condition_statistics
        self._cache: CachedLatents | None = None

    def compile_network(self) -> None:
        """Compile the denoiser's blocks in place; names of parameters stay as they are."""
        for block in self.network.denoiser.blocks:
            block.compile(dynamic=True)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resumed run has its statistics already."""
        self._fit_latent_statistics = self._fit_condition_statistics = False

    def on_fit_start(self) -> None:
        """Latents are normalised, and cached where that is asked, before the first batch."""
        if self.schedule is not None:
            self.schedule = self.schedule.to(self.device)
        self._prepare_latents()

    def on_fit_end(self) -> None:
        """The cache is given back."""
        self._cache = None
        self.datamodule.serve_train_from(None)

    def on_train_epoch_start(self) -> None:
        """The VAE is frozen; Lightning sets all of the module to training."""
        self.network.vae.eval()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout of adapters draws from a seed of the step."""
        if self.network.config.lora is not None:
            # Dropout knows torch's own generator only; seeded anew in each step, resuming is exact.
            draws = self.generator(Stream.DROPOUT, self.current_epoch, batch_idx, self.global_rank)
            torch.manual_seed(draws.initial_seed())

    def training_terms(self, batch: CrystalBatch | CachedBatch, generator: torch.Generator) -> LossTerms:
        """The diffusion loss of a batch, encoded now or taken from the cache."""
        drawn = generator if self.config.sample_posterior else None
        if isinstance(batch, CachedBatch):
            assert self._cache is not None
            posterior = self._cache.posterior(batch, generator)
            latents = self.network.latents(posterior, batch.num_atoms, drawn)
            values = self._cache.condition_values(batch)
        else:
            latents = self.network.encode(self.augmented(batch, generator), drawn)
            values = self._condition_values(batch)
        return loss_terms(self._loss(latents, values, generator, Shown.DRAWN))

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
        latents = self.network.encode(batch, generator if self.config.sample_posterior else None)
        return self._loss(latents, self._condition_values(batch), generator, shown)

    def _loss(
        self, latents: LatentBatch, values: dict[str, Tensor], generator: torch.Generator, shown: Shown
    ) -> DiffusionLoss:
        condition = self._condition(values, len(latents.mask), generator, shown)
        denoiser = self.network.denoiser
        return diffusion_loss(
            lambda tokens, time: denoiser(tokens, time, latents.mask, condition),
            latents,
            self.config.diffusion,
            schedule=self.schedule,
            generator=generator,
        )

    def _condition_values(self, crystals: CrystalBatch) -> dict[str, Tensor]:
        module = self.network.condition_module
        return {} if module is None else module.values(crystals)

    def _condition(
        self, values: dict[str, Tensor], num_crystals: int, generator: torch.Generator, shown: Shown
    ) -> Tensor | None:
        """Conditioning vectors of a batch; None for an unconditional model."""
        module = self.network.condition_module
        if module is None:
            return None
        if shown is Shown.NONE:
            return module.absent(num_crystals)
        return module(values, None if shown is Shown.ALL else module.hide(values, generator=generator))

    def _prepare_latents(self) -> None:
        """Encode the training set where its statistics or its cache are wanted.

        Every process encodes the whole set, with the same draws, so that statistics agree without talking and
        any process can serve any crystal. A resumed run keeps its statistics and finds the same cache again.
        """
        num_copies = self.config.latent_cache
        self._cache = None
        if num_copies or self._fit_latent_statistics:
            cached = self._encode_training_set(max(num_copies, 1))
            if self._fit_latent_statistics:
                self.network.fit_statistics(cached.means.flatten(0, 1), cached.logvars.flatten(0, 1).exp())
            self._cache = cached if num_copies else None
        if self._fit_condition_statistics and self.network.condition_module is not None:
            values = self._condition_values(self.datamodule.splits["train"].crystals)
            self.network.condition_module.fit_statistics(values)
        self.datamodule.serve_train_from(self._cache)

    def _encode_training_set(self, num_copies: int) -> CachedLatents:
        crystals = self.datamodule.splits["train"].crystals
        start = time.monotonic()
        with self.trainer.precision_plugin.forward_context():  # as a training step would encode
            cached = encode_split(
                self.network.vae.eval(),
                crystals,
                num_copies=num_copies,
                augmentation=self.config.augmentation,
                values=self._condition_values(crystals),
                generator=lambda copy, chunk: self.generator(Stream.STATISTICS, copy, chunk, 0),
            )
        log.info(
            "encoded %d crystals %d times in %.1f s (%.1f MB)",
            len(crystals),
            num_copies,
            time.monotonic() - start,
            cached.num_bytes / 1e6,
        )
        return cached


def read_vae(config: LDMModuleConfig, data: CrystalDataModule) -> tuple[CheckpointRecord, LDMStageConfig]:
    """The trained VAE, and what a checkpoint of this run will need to build its network again.

    Raises:
        ValueError: when the VAE's checkpoint cannot be used, or conditions and data do not fit.
    """
    assert config.vae_ckpt_path is not None
    try:
        record = read_checkpoint(hub.resolve(config.vae_ckpt_path), stage=Stage.VAE)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"ldm_module.vae_ckpt_path: {error}") from error
    settings = LDMStageConfig(
        vae=from_plain(VAEConfig, record.config),
        denoiser=config.denoiser,
        diffusion=config.diffusion,
        condition_module=run_conditions(config, data, hidden_size=config.denoiser.shape[1]),
    )
    return record, settings


def run_conditions(
    config: LDMModuleConfig, data: CrystalDataModule, *, hidden_size: int
) -> ConditionModuleConfig | None:
    """The conditions of a run on these data, for a denoiser of that width; None for an unconditional run."""
    return resolve_conditions(
        data.config.conditions,
        config.condition_module,
        categories=data.splits["train"].categories,
        hidden_size=hidden_size,
    )


def build_network(record: CheckpointRecord, settings: LDMStageConfig) -> LatentDiffusion:
    """A new network with the trained VAE in it; the denoiser's weights are drawn."""
    network = LatentDiffusion(settings)
    load_network_state(record, network.vae)
    return network
