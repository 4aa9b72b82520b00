"""`PropertyPredictor`: properties of a crystal from what a frozen VAE says of its atoms.

Latent means and, by choice, encoder features of all atoms are pooled into one vector per crystal, which three
linear layers turn into one normalised number per target. Comes after `vae.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentite.crystal import CrystalBatch
from latentite.nn.segment import segment_mean, segment_sum
from latentite.nn.vae import CrystalVAE, VAEConfig


class Pooling(StrEnum):
    """How the atoms of a crystal become one vector."""

    MEAN = "mean"
    SUM = "sum"


@dataclass(kw_only=True, slots=True)
class PredictorConfig:
    """Architecture of a `PropertyPredictor`. Defaults are Chemeleon2's."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    targets: list[str] = field(default_factory=list)
    """Names of the properties, in the order of the outputs."""
    pooling: Pooling = Pooling.MEAN
    use_encoder_features: bool = True
    """Pool the encoder's features besides the latent means."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets must name at least one property, got none")
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets must have different names, got {', '.join(self.targets)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def num_features(self) -> int:
        """Width of the pooled vector."""
        return self.vae.latent_dim + (self.vae.encoder.d_model if self.use_encoder_features else 0)


class PropertyPredictor(nn.Module):
    """Frozen VAE, pooling, and a head for all targets. Tensor names are those of Chemeleon2's predictors."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = CrystalVAE(config.vae).requires_grad_(False)
        width = config.num_features
        self.proj = nn.Sequential(
            *_hidden_layer(width, width // 4, config.dropout),
            *_hidden_layer(width // 4, width // 2, config.dropout),
            nn.Linear(width // 2, len(config.targets)),
        )
        self.register_buffer("mean", torch.zeros(len(config.targets)))
        self.register_buffer("std", torch.ones(len(config.targets)))

    def features(self, batch: CrystalBatch) -> Float[Tensor, "crystal feature"]:
        """Pooled latent means and, if the config says so, encoder features."""
        with torch.no_grad():
            atoms = self.vae.features(batch)
            per_atom = self.vae.posterior(atoms).mean
            if self.config.use_encoder_features:
                per_atom = torch.cat([per_atom, atoms], dim=-1)
        pool = segment_mean if self.config.pooling is Pooling.MEAN else segment_sum
        return pool(per_atom, batch.crystal_index, len(batch))

    def forward(self, batch: CrystalBatch) -> Float[Tensor, "crystal target"]:
        """Targets less their mean, in units of their standard deviation over the training set."""
        return self.proj(self.features(batch))

    def predict(self, batch: CrystalBatch) -> dict[str, Float[Tensor, " crystal"]]:
        """Every target by name, in the unit of its labels."""
        values = self(batch) * self.std + self.mean
        return dict(zip(self.config.targets, values.unbind(-1), strict=True))


def _hidden_layer(num_inputs: int, width: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(num_inputs, width), nn.LayerNorm(width), nn.SiLU(), nn.Dropout(dropout)]
