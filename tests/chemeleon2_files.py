"""Small self-made checkpoints in Chemeleon2's layout, for the tests of importing, sampling and fine-tuning."""

from __future__ import annotations

from pathlib import Path

import torch

from latentite.checkpoint import Stage, build_payload
from latentite.interop.export import export_chemeleon2
from latentite.nn.condition_values import ConditionConfig
from latentite.nn.conditions import AbsentPlace, ConditionModuleConfig
from latentite.nn.denoiser import DenoiserConfig, DenoiserSize
from latentite.nn.encoders import EncoderConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.transformer import Gelu
from latentite.nn.vae import CrystalVAE, DecoderConfig, VAEConfig
from latentite.objectives.ldm import Compatibility, DiffusionConfig, LDMStageConfig

HIDDEN, LATENT = 16, 4
BAND_GAP = (0.75, 1.4)
VAE_NAME, LDM_NAME = "small_vae.ckpt", "small_ldm.ckpt"


def vae_config() -> VAEConfig:
    size = {"d_model": HIDDEN, "num_heads": 2, "dim_feedforward": 32, "num_layers": 2, "gelu": Gelu.EXACT}
    return VAEConfig(encoder=EncoderConfig(**size), decoder=DecoderConfig(**size), latent_dim=LATENT)


def ldm_config(*, is_conditional: bool = False) -> LDMStageConfig:
    conditions = ConditionModuleConfig(
        conditions=[ConditionConfig(name="band_gap", drop_probability=0.0)],
        hidden_size=HIDDEN,
        row_drop_probability=0.2,
        absent=AbsentPlace.INPUT,
    )
    return LDMStageConfig(
        vae=vae_config(),
        denoiser=DenoiserConfig(
            size=DenoiserSize.CUSTOM,
            depth=2,
            hidden_size=HIDDEN,
            num_heads=2,
            mlp_ratio=2.0,
            latent_dim=LATENT,
        ),
        condition_module=conditions if is_conditional else None,
        diffusion=DiffusionConfig(compatibility=Compatibility.CHEMELEON2),
    )


def small_vae(seed: int = 0) -> CrystalVAE:
    """Random weights; decodes to cells of about 2.8 Å x atoms^(1/3) with right angles, atoms anywhere."""
    torch.manual_seed(seed)
    vae = CrystalVAE(vae_config())
    decoder = vae.decoder
    with torch.no_grad():
        decoder.transformer.norm.weight[0], decoder.transformer.norm.bias[0] = 0.0, 1.0
        decoder.lattice_head.weight.mul_(0.1)
        decoder.lattice_head.weight[:, 0] = torch.tensor([2.8, 2.8, 2.8, 1.57, 1.57, 1.57])
        decoder.frac_coords_head.weight.mul_(3.0)
        decoder.atom_types_head.bias[0] = -100.0  # class 0 is no element
    return vae.eval()


def small_ldm(*, is_conditional: bool = False, seed: int = 0) -> LatentDiffusion:
    """Random weights, none of them zero; latents scaled by one number, as Chemeleon2 does."""
    vae = small_vae(seed)
    torch.manual_seed(seed + 1)
    network = LatentDiffusion(ldm_config(is_conditional=is_conditional))
    network.vae.load_state_dict(vae.state_dict())
    for parameter in network.denoiser.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    network.latent_std.fill_(1.3)
    if network.condition_module is not None:
        network.condition_module.encoder("band_gap").set_statistics(*BAND_GAP)
    return network.eval()


def write_ours(path: Path, network: CrystalVAE | LatentDiffusion | PropertyPredictor) -> Path:
    """A checkpoint of ours as training leaves it."""
    stages = {CrystalVAE: Stage.VAE, LatentDiffusion: Stage.LDM, PropertyPredictor: Stage.PREDICTOR}
    stage = stages[type(network)]
    payload = build_payload(stage=stage, config=network.config, data={}, metrics={})
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "latentite": payload}, path)
    return path


def write_vae(folder: Path) -> Path:
    """A VAE as Chemeleon2 would have saved it."""
    return export_chemeleon2(write_ours(folder / "ours_vae.ckpt", small_vae()), folder / VAE_NAME)


def write_ldm(folder: Path, *, is_conditional: bool = False, beside_vae: bool = True) -> Path:
    """A latent diffusion model as Chemeleon2 would have saved it, as a rule with the VAE's file beside it."""
    if beside_vae:
        write_vae(folder)
    ours = write_ours(folder / "ours_ldm.ckpt", small_ldm(is_conditional=is_conditional))
    return export_chemeleon2(ours, folder / LDM_NAME, vae_ckpt_path=f"/elsewhere/{VAE_NAME}")
