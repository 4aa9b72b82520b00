"""The crystal VAE: an encoder, a small Gaussian latent per atom, and a decoder.

Follow one crystal: `CrystalBatch` -> `encode` -> `Posterior` (mean and log-variance per atom) -> `sample` -> `decode`
-> `DecodedCrystals` -> `to_crystals` -> `CrystalBatch`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite.crystal import CrystalBatch
from latentite.nn.decoder import DecodedCrystals, DecoderConfig, TransformerDecoder
from latentite.nn.encoders import EncoderConfig, build_encoder
from latentite.nn.transformer import PackedLayout


@dataclass(kw_only=True, slots=True)
class VAEConfig:
    """Architecture of a `CrystalVAE`. Defaults are those of the public checkpoints."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    latent_dim: int = 8
    """Numbers per atom."""
    atom_type_predict: bool = True
    """Off: the structure-prediction (CSP) variant, whose decoder is told the elements."""

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior:
    """Independent Gaussians `q(z | crystal)`, one vector per atom."""

    mean: Float[Tensor, "atom channel"]
    logvar: Float[Tensor, "atom channel"]

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "atom channel"]:
        """`mean + std * noise` (Kingma & Welling 2013, sec. 2.4)."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Float[Tensor, "atom channel"]:
        """KL divergence from N(0, 1), nats per channel (Kingma & Welling 2013, appendix B)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class CrystalVAE(nn.Module):
    """Encoder, latent bottleneck, decoder. A plain module: training lives in `training/vae.py`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.decoder = TransformerDecoder(config.decoder, atom_type_predict=config.atom_type_predict)
        self.quant_conv = nn.Linear(config.encoder.d_model, 2 * config.latent_dim, bias=False)
        self.post_quant_conv = nn.Linear(config.latent_dim, config.decoder.d_model, bias=False)

    def features(self, batch: CrystalBatch) -> Float[Tensor, "atom feature"]:
        """The encoder's features of each atom, before the bottleneck."""
        return self.encoder(batch, PackedLayout.of(batch.num_atoms))

    def posterior(self, features: Float[Tensor, "atom feature"]) -> Posterior:
        """The posterior that belongs to encoder features."""
        mean, logvar = self.quant_conv(features).chunk(2, dim=-1)
        return Posterior(mean=mean, logvar=logvar.clamp(-30.0, 20.0))

    def encode(self, batch: CrystalBatch) -> Posterior:
        """Posterior of every atom of a batch."""
        return self.posterior(self.features(batch))

    def decode(
        self,
        latent: Float[Tensor, "atom channel"],
        num_atoms: Int[Tensor, " crystal"],
        atomic_numbers: Int[Tensor, " atom"] | None = None,
    ) -> DecodedCrystals:
        """Crystals that a latent stands for; `atomic_numbers` for the structure-prediction variant only."""
        return self.decoder(self.post_quant_conv(latent), num_atoms, atomic_numbers)

    def reconstruct(self, batch: CrystalBatch) -> DecodedCrystals:
        """Encode, take the posterior mean, decode."""
        return self.decode(self.encode(batch).mean, batch.num_atoms, batch.atomic_numbers)
