"""What a network of ours must be for Chemeleon2 to have it too, every unmet demand in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from latentite.checkpoint import CheckpointError
from latentite.diffusion.schedule import Target
from latentite.interop.architecture import CONDITION_KINDS
from latentite.nn.baselines import Extent
from latentite.nn.condition_values import Transform
from latentite.nn.conditions import AbsentPlace
from latentite.nn.decoder import CoordinateHead
from latentite.nn.denoiser import OutputLayout, TokenIndex
from latentite.nn.encoders import EncoderKind
from latentite.nn.features import EncoderFeatures
from latentite.nn.predictor_config import HeadKind, Pooling, PredictorConfig
from latentite.nn.transformer import Gelu
from latentite.nn.vae import VAEConfig
from latentite.objectives.ldm import DiffusionKind, LDMStageConfig


@dataclass(kw_only=True, slots=True)
class Demands:
    """What a network must be for Chemeleon2 to have it."""

    path: Path
    unmet: list[str] = field(default_factory=list)

    def equal(self, name: str, value: object, wanted: object) -> None:
        """A setting must have this value."""
        if value != wanted:
            self.unmet.append(f"{name} must be {wanted}, got {value}")

    def settle(self) -> None:
        """Raise what is unmet, as one CheckpointError."""
        if self.unmet:
            raise CheckpointError(f"{self.path} cannot be written for Chemeleon2: {'; '.join(self.unmet)}")


def demand_vae(demands: Demands, config: VAEConfig, prefix: str) -> None:
    """Of a VAE; `prefix` is what its settings begin with."""
    demands.equal(f"{prefix}atom_type_predict", config.atom_type_predict, True)
    demands.equal(f"{prefix}encoder.kind", config.encoder.kind, EncoderKind.TRANSFORMER)
    demands.equal(f"{prefix}encoder.features", config.encoder.features, EncoderFeatures.PLAIN)
    demands.equal(f"{prefix}decoder.coordinate_head", config.decoder.coordinate_head, CoordinateHead.LINEAR)
    for part, size in (("encoder", config.encoder), ("decoder", config.decoder)):
        demands.equal(f"{prefix}{part}.index_embedding", size.index_embedding, True)


def demand_ldm(demands: Demands, config: LDMStageConfig, state: Mapping[str, Tensor]) -> None:
    """Of a latent diffusion model besides its VAE."""
    denoiser, diffusion = config.denoiser, config.diffusion
    demands.equal("diffusion.kind", diffusion.kind, DiffusionKind.DDPM)
    demands.equal("denoiser.learn_variance", denoiser.learn_variance, True)
    demands.equal("denoiser.output_layout", denoiser.output_layout, OutputLayout.CHEMELEON2)
    demands.equal("denoiser.index", denoiser.index, TokenIndex.SINUSOIDAL)
    demands.equal("denoiser.qk_norm", denoiser.qk_norm, False)
    demands.equal("denoiser.gelu", denoiser.gelu, Gelu.TANH)
    if diffusion.target is Target.V:
        demands.unmet.append("diffusion.target must be epsilon or x0, got v")
    if bool((state["latent_mean"] != 0).any()):
        demands.unmet.append("latent_mean must be zero, as Chemeleon2 only scales latents")
    if len(state["latent_std"].unique()) != 1:
        demands.unmet.append("latent_std must be one number for all channels")
    for condition in () if config.condition_module is None else config.condition_module.conditions:
        if condition.kind not in CONDITION_KINDS.values():
            demands.unmet.append(f"condition {condition.name} must not be of kind {condition.kind}")
        demands.equal(f"condition {condition.name}: transform", condition.transform, Transform.NONE)
    if config.condition_module is not None:
        demands.equal("condition_module.absent", config.condition_module.absent, AbsentPlace.INPUT)


def demand_predictor(demands: Demands, config: PredictorConfig) -> None:
    """Of a predictor besides its VAE."""
    demands.equal("head", config.head, HeadKind.POINT)
    demands.equal("ensemble", config.ensemble, 1)
    demands.equal("number of fidelities", config.num_fidelities, 1)
    demands.equal("dropout", config.dropout, 0.1)
    demands.equal("composition", config.composition, False)
    demands.equal("standardise", config.standardise, False)
    standard = [config.num_features // 4, config.num_features // 2]
    demands.equal("hidden", config.hidden_widths, standard)
    if config.pooling is Pooling.ATTENTION:
        demands.unmet.append(f"pooling must be mean or sum, got {config.pooling}")
    for name in config.targets:
        demands.equal(f"kind of target {name}", "classes" if name in config.classes else "numbers", "numbers")
        demands.equal(f"transforms.{name}", config.transform(name), Transform.NONE)
        demands.equal(f"extents.{name}", config.extent(name), Extent.NONE)
