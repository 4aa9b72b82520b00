"""The latent diffusion model: a frozen VAE, the statistics of its latents, a denoiser, and its conditions.

Everything that sampling needs travels together, so that a checkpoint of this stage stands alone. Follow one crystal:
`CrystalBatch` -> `encode` -> normalised `LatentBatch` -> noise and `denoiser` (see `diffusion/`) -> `decode` ->
`DecodedCrystals`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite.crystal import CrystalBatch
from latentite.nn.conditions import ConditionModule, ConditionModuleConfig
from latentite.nn.denoiser import Denoiser, DenoiserConfig
from latentite.nn.lora import LoraConfig, add_lora
from latentite.nn.vae import CrystalVAE, DecodedCrystals, LatentBatch, Posterior, VAEConfig


@dataclass(kw_only=True, slots=True)
class LDMConfig:
    """Architecture of a `LatentDiffusion`."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    condition_module: ConditionModuleConfig | None = None
    """Conditions that the model knows; null for an unconditional one."""
    lora: LoraConfig | None = None
    """Adapters of a denoiser that is being fine-tuned; null where it is trained in full, or when they are merged."""

    def __post_init__(self) -> None:
        if self.denoiser.latent_dim != self.vae.latent_dim:
            raise ValueError(
                f"denoiser.latent_dim must be the VAE's latent_dim ({self.vae.latent_dim}), "
                f"got {self.denoiser.latent_dim}"
            )
        width = self.denoiser.shape[1]
        if self.condition_module is not None and self.condition_module.hidden_size != width:
            raise ValueError(
                f"condition_module.hidden_size must be the denoiser's ({width}), "
                f"got {self.condition_module.hidden_size}"
            )


class LatentDiffusion(nn.Module):
    """Frozen VAE, latent statistics, denoiser and conditions. A plain module: training lives in `training/ldm.py`."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: LDMConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = CrystalVAE(config.vae).requires_grad_(False)
        self.denoiser = Denoiser(config.denoiser)
        if config.lora is not None:
            add_lora(self.denoiser, config.lora)
        self.condition_module = (
            None if config.condition_module is None else ConditionModule(config.condition_module)
        )
        self.register_buffer("latent_mean", torch.zeros(config.vae.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.vae.latent_dim))

    @torch.no_grad()
    def fit_statistics(
        self, means: Float[Tensor, "atom channel"], variances: Float[Tensor, "atom channel"]
    ) -> None:
        """Mean and standard deviation per channel of posterior draws over the whole training set.

        Args:
            means: posterior means of every atom.
            variances: posterior variances of every atom.
        """
        self.latent_mean.copy_(means.mean(dim=0))
        spread = means.var(dim=0, unbiased=False) + variances.mean(dim=0)
        self.latent_std.copy_(spread.sqrt().clamp(min=1e-6))

    @torch.no_grad()
    def encode(self, batch: CrystalBatch, generator: torch.Generator | None = None) -> LatentBatch:
        """Normalised latents: a posterior draw, or the posterior mean without a generator."""
        return self.latents(self.vae.encode(batch), batch.num_atoms, generator)

    def latents(
        self,
        posterior: Posterior,
        num_atoms: Int[Tensor, " crystal"],
        generator: torch.Generator | None = None,
    ) -> LatentBatch:
        """Normalised latents from a posterior, as `encode` gives them."""
        latent = posterior.mean if generator is None else posterior.sample(generator)
        latent = (latent.float() - self.latent_mean) / self.latent_std
        return LatentBatch.from_packed(latent, num_atoms)

    @torch.no_grad()
    def decode(
        self, latents: LatentBatch, atomic_numbers: Int[Tensor, " atom"] | None = None
    ) -> DecodedCrystals:
        """Decodes normalised latents; `atomic_numbers` for a structure-prediction VAE."""
        latent = latents.packed * self.latent_std + self.latent_mean
        return self.vae.decode(latent, latents.num_atoms, atomic_numbers)
