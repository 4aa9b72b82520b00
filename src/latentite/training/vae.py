"""Stage 1: the Lightning module that trains a `CrystalVAE`. The maths is in `objectives/vae.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig, NoiseConfig, corrupt
from latentite.metrics.reconstruction import LOOSE, STRICT, reconstruction_table, summarise
from latentite.nn.decoder import DecoderConfig
from latentite.nn.encoders import EncoderConfig
from latentite.nn.vae import CrystalVAE, VAEConfig
from latentite.objectives.terms import LossTerms
from latentite.objectives.vae import CoordinateLoss, LossWeights, vae_loss
from latentite.training.ema import EMAConfig
from latentite.training.module import StageModule, Stream
from latentite.training.optim import OptimizerConfig, SchedulerConfig

ACTIVE_VARIANCE = 0.01
"""A latent channel is active when its posterior mean varies more than this (Burda et al. 2015, sec. 5.2)."""


@dataclass(kw_only=True, slots=True)
class VAEModuleConfig(VAEConfig):
    """Everything about the VAE stage but its data: the `vae_module` group."""

    # slots=True makes new classes, so inherited fields are listed again where a reader looks for them
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)
    coordinate_loss: CoordinateLoss = CoordinateLoss.WRAPPED
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    latent_noise: float = 0.0
    """Noise on the latents that the decoder sees in training, as a fraction of their spread per channel; makes it
    forgive the errors of a diffusion model."""
    fa_dim: int = 0
    """Width of the per-atom features of `data.atom_features_path`; needed when `loss_weights.fa` is not 0."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    match_limit: int = 1000
    """At most so many validation crystals go through `StructureMatcher` (about 150 a second); 0 for none."""

    def __post_init__(self) -> None:
        VAEConfig.__post_init__(self)
        if not 0.0 <= self.latent_noise < 1.0:
            raise ValueError(f"latent_noise must be at least 0 and below 1, got {self.latent_noise}")
        if self.match_limit < 0:
            raise ValueError(f"match_limit must be 0 or more, got {self.match_limit}")
        if self.loss_weights.fa > 0 and self.fa_dim < 1:
            raise ValueError(f"fa_dim must be at least 1 when loss_weights.fa is not 0, got {self.fa_dim}")

    def architecture(self) -> VAEConfig:
        """The part that a checkpoint needs to build the network."""
        return VAEConfig(
            encoder=self.encoder,
            decoder=self.decoder,
            latent_dim=self.latent_dim,
            atom_type_predict=self.atom_type_predict,
        )


class VAETrainingModule(StageModule):
    """Trains a `CrystalVAE`."""

    network: CrystalVAE

    def __init__(self, config: VAEModuleConfig, *, seed: int = 0) -> None:
        super().__init__(
            seed=seed,
            augmentation=config.augmentation,
            optimizer=config.optimizer,
            scheduler=config.scheduler,
        )
        self.config = config
        self.network = CrystalVAE(config.architecture())
        self.alignment = nn.Linear(config.latent_dim, config.fa_dim) if config.loss_weights.fa > 0 else None
        self._validated: list[tuple[CrystalBatch, CrystalBatch, Tensor]] = []

    def compile_network(self) -> None:
        """Compile the two trunks in place; names of parameters stay as they are."""
        for part in (self.network.encoder, self.network.decoder):
            trunk = getattr(part, "transformer", None)
            if isinstance(trunk, nn.Module):
                trunk.compile(dynamic=True)

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """Losses now; the reconstructions are kept for the end of the epoch."""
        generator = self.generator(Stream.VALIDATION, 0, batch_idx, self.global_rank)
        terms = self._terms(batch, generator)
        size = len(batch)
        metrics = {f"val/{name}": value for name, value in terms.values().items()}
        self.log_dict({**metrics, "val/loss": terms.total()}, batch_size=size, on_epoch=True, sync_dist=True)
        mean = self.network.encode(batch).mean
        decoded = self.network.decode(mean, batch.num_atoms, batch.atomic_numbers)
        given = None if self.config.atom_type_predict else batch.atomic_numbers
        self._validated.append((batch.to("cpu"), decoded.to_crystals(given).to("cpu"), mean.float().cpu()))

    def on_validation_epoch_end(self) -> None:
        """Reconstruction metrics over the whole split, match rates over at most `match_limit` crystals."""
        if not self._validated:
            return
        originals, rebuilt, means = zip(*self._validated, strict=True)
        self._validated.clear()
        original = CrystalBatch.concatenate([b.with_properties({}) for b in originals])
        other = CrystalBatch.concatenate(rebuilt)
        summary = summarise(reconstruction_table(original, other, matchers=()))
        num_matched = min(len(original), self.config.match_limit)
        if num_matched and not self.trainer.sanity_checking:
            # A spread over the whole split: the sampler may have sorted it by size.
            chosen = torch.linspace(0, len(original) - 1, num_matched).round().long()
            pairs = reconstruction_table(
                original.select(chosen), other.select(chosen), matchers=(LOOSE, STRICT)
            )
            summary |= {k: v for k, v in summarise(pairs).items() if k.startswith(("match_rate", "rmsd"))}
        active = (torch.cat(means).var(dim=0) > ACTIVE_VARIANCE).sum()
        summary["active_units"] = float(active)
        self.log_dict({f"val/{name}": value for name, value in summary.items()}, sync_dist=True)
        if "match_rate_loose" in summary:
            self.log(
                "val/match_rate", summary["match_rate_loose"], prog_bar=True, logger=False, sync_dist=True
            )

    def training_terms(self, batch: CrystalBatch, generator: torch.Generator) -> LossTerms:
        """The loss of a batch that is augmented now."""
        return self._terms(self.augmented(batch, generator), generator)

    def _terms(self, target: CrystalBatch, generator: torch.Generator) -> LossTerms:
        noise = self.config.noise
        corrupted = corrupt(target, noise, generator)[0] if noise.ratio > 0 and self.training else None
        return vae_loss(
            self.network,
            target,
            self.config.loss_weights,
            encoder_input=corrupted,
            coordinate_kind=self.config.coordinate_loss,
            alignment=self.alignment,
            latent_noise=self.config.latent_noise if self.training else 0.0,
            generator=generator,
        )
