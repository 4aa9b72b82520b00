"""Stage 1: the Lightning module that trains a `CrystalVAE`. The maths is in `objectives/vae.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentite.crystal import CrystalBatch
from latentite.data.sampler import corrupt
from latentite.match.reduced import LOOSE, STRICT
from latentite.metrics.errors import reconstruction_table, summarise
from latentite.nn.vae import CrystalVAE
from latentite.objectives.terms import LossTerms
from latentite.objectives.vae import vae_loss
from latentite.training.module import StageModule, Stream
from latentite.training.stage_settings import VAEModuleConfig

ACTIVE_VARIANCE = 0.01
"""A latent channel is active when its posterior mean varies more than this (Burda et al. 2015, sec. 5.2)."""


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
