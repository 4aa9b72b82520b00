"""Stage 2: the Lightning module that trains a denoiser in a frozen VAE's latent space, and the start of its run.

The maths is in `objectives/ldm.py`. A run starts with a new network in a VAE's latent space, or from a trained base.
Fine-tuning takes VAE, latent statistics, denoiser and diffusion process from the base; conditions may be added to an
unconditional base, or are those that it has.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from latentite.base.plain import naming
from latentite.checkpoint import Stage
from latentite.crystal import CrystalBatch
from latentite.diffusion.loss import DiffusionLoss
from latentite.models import load_ldm, load_vae, read_record
from latentite.nn.conditions import Conditioning, ConditionModuleConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.lora import trainable_summary
from latentite.nn.vae import CrystalVAE, LatentBatch
from latentite.objectives.ldm import LDMStageConfig, diffusion_loss, loss_by_level, loss_terms
from latentite.objectives.terms import LossTerms
from latentite.training.conditions import (
    check_conditions,
    check_labels,
    kept_conditions,
    resolve_conditions,
)
from latentite.training.datamodule import CrystalDataModule
from latentite.training.latent_cache import CachedBatch, CachedLatents, encode_split
from latentite.training.module import StageModule, Stream, freeze_parameters
from latentite.training.stage_settings import LDMModuleConfig

log = logging.getLogger(__name__)


class Shown(StrEnum):
    """Conditions that a loss lets the denoiser see."""

    ALL = "all"
    NONE = "none"
    DRAWN = "drawn"
    """Each hidden at random, as training needs for guidance and for requests of any subset."""


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
        losses = self._validation_loss(batch, batch_idx, Shown.ALL)
        metrics = {**loss_by_level(losses), "loss": losses.total.mean()}
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
    ) -> Conditioning | None:
        """The conditioning of a batch; None for an unconditional model."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPlan:
    """The parts from which a run builds its network."""

    settings: LDMStageConfig
    """From which a checkpoint of the run can build it again."""
    vae: CrystalVAE | None
    """The trained VAE of a new network; None in fine-tuning, where the base has it."""
    base: LatentDiffusion | None
    """The model that is fine-tuned."""


def plan_network(config: LDMModuleConfig, data: CrystalDataModule) -> NetworkPlan:
    """Read what the network is made from.

    Raises:
        ValueError: when a checkpoint cannot be used, or VAE, base, conditions and data do not fit together.
    """
    if config.ldm_ckpt_path is not None:
        return _plan_from_base(config, config.ldm_ckpt_path, data)
    vae, settings = read_vae(config, data)
    return NetworkPlan(settings=settings, vae=vae, base=None)


def build_module(config: LDMModuleConfig, plan: NetworkPlan, *, seed: int) -> LDMTrainingModule:
    """The training module with its network; what is new in that is drawn from torch's own generator."""
    settings = plan.settings
    if plan.base is None:
        assert plan.vae is not None
        network = build_network(plan.vae, settings)
    else:
        network = LatentDiffusion(settings)
        _start_from(plan.base, network)
        freeze_parameters(network, config.freeze, setting="ldm_module.freeze")
        log.info("fine-tuning %s: %s", config.ldm_ckpt_path, trainable_summary(network))
    return LDMTrainingModule(
        replace(config, denoiser=settings.denoiser, diffusion=settings.diffusion),
        network,
        seed=seed,
        fit_latent_statistics=plan.base is None,
        fit_condition_statistics=plan.base is None or plan.base.condition_module is None,
    )


def read_vae(config: LDMModuleConfig, data: CrystalDataModule) -> tuple[CrystalVAE, LDMStageConfig]:
    """The trained VAE, and what a checkpoint of this run will need to build its network again.

    Raises:
        ValueError: when the VAE's checkpoint cannot be used, or conditions and data do not fit.
    """
    assert config.vae_ckpt_path is not None
    with naming("ldm_module.vae_ckpt_path"):
        vae = load_vae(config.vae_ckpt_path)
    settings = LDMStageConfig(
        vae=vae.settings,
        denoiser=config.denoiser,
        diffusion=config.diffusion,
        condition_module=_run_conditions(config, data, hidden_size=config.denoiser.shape[1]),
    )
    return vae.network, settings


def _run_conditions(
    config: LDMModuleConfig, data: CrystalDataModule, *, hidden_size: int
) -> ConditionModuleConfig | None:
    """The conditions of a run on these data, for a denoiser of that width; None for an unconditional run."""
    train = data.splits["train"]
    module = resolve_conditions(
        data.config.conditions, config.condition_module, categories=train.categories, hidden_size=hidden_size
    )
    check_labels([] if module is None else module.conditions, train)
    return module


def build_network(vae: CrystalVAE, settings: LDMStageConfig) -> LatentDiffusion:
    """A new network with the trained VAE in it; the denoiser's weights are drawn."""
    network = LatentDiffusion(settings)
    network.vae.load_state_dict(vae.state_dict())
    return network


def _plan_from_base(config: LDMModuleConfig, path: str, data: CrystalDataModule) -> NetworkPlan:
    check_conditions(data.config.conditions, config.condition_module)
    with naming("ldm_module.ldm_ckpt_path"):
        base, settings, _ = load_ldm(path)
    if config.vae_ckpt_path:
        _check_same_vae(config, config.vae_ckpt_path, base)
    conditions = _run_conditions(config, data, hidden_size=settings.denoiser.shape[1])
    if settings.condition_module is not None:
        conditions = kept_conditions(settings.condition_module, conditions)
    settings = replace(settings, condition_module=conditions, lora=config.lora)
    return NetworkPlan(settings=settings, vae=None, base=base)


def _check_same_vae(config: LDMModuleConfig, path: str, base: LatentDiffusion) -> None:
    there, own = read_record(path, stage=Stage.VAE).state, base.vae.state_dict()
    if there.keys() != own.keys() or not all(own[name].equal(there[name]) for name in own):
        raise ValueError(
            f"vae_ckpt_path must be the VAE that {config.ldm_ckpt_path} was trained on, got another one "
            f"({path}); leave it out (ldm_module.vae_ckpt_path=null): the base brings its own"
        )


def _start_from(base: LatentDiffusion, network: LatentDiffusion) -> None:
    """Load a base into a network that has adapters or conditions besides; its outputs are the base's.

    Adapters start at zero by themselves. The last layer of new conditions is set to zero: their vector, which
    is added to the embedding of time, then is zero whatever is asked for.
    """
    loaded = network.load_state_dict(base.state_dict(), strict=False)
    assert not loaded.unexpected_keys, "a fine-tuned network has all that its base has"
    if base.condition_module is None and network.condition_module is not None:
        last = network.condition_module.proj[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
