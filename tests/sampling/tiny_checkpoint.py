"""A tiny checkpoint whose crystals are mostly usable, and a stand-in for a model that is even faster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tiny_ldm import DDPM, tiny_network

from latentite.checkpoint import LATENT_DIFFUSION, Stage, build_payload
from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import CrystalNoise
from latentite.generators.jobs import Jobs
from latentite.generators.protocol import Advance, Drawn
from latentite.nn.condition_values import ConditionConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig, LDMStageConfig

HISTOGRAM = [0, 3, 5, 2, 8, 4, 6, 1, 7, 0, 2, 0, 4]


def make_usable(network: LatentDiffusion) -> LatentDiffusion:
    """Cells of about 2.8 Å x atoms^(1/3) with right angles, atoms anywhere: some of them overlap."""
    decoder = network.vae.decoder
    with torch.no_grad():
        decoder.transformer.norm.weight[0], decoder.transformer.norm.bias[0] = 0.0, 1.0
        decoder.lattice_head.weight.mul_(0.1)
        decoder.lattice_head.weight[:, 0] = torch.tensor([2.8, 2.8, 2.8, 1.57, 1.57, 1.57])
        decoder.frac_coords_head.weight.mul_(3.0)
    return network


def write_checkpoint(
    path: Path,
    *,
    conditions: tuple[ConditionConfig, ...] = (),
    diffusion: DiffusionConfig = DDPM,
    is_usable: bool = True,
) -> Path:
    """A checkpoint as training leaves it, without its training."""
    network = tiny_network(diffusion, conditions)
    if is_usable:
        make_usable(network)
    config = LDMStageConfig(
        vae=network.config.vae,
        denoiser=network.config.denoiser,
        condition_module=network.config.condition_module,
        diffusion=diffusion,
    )
    payload = build_payload(
        stage=Stage.LDM,
        config=config,
        data={"splits": {"train": {"num_atoms_histogram": HISTOGRAM}}},
        metrics={},
        generator=LATENT_DIFFUSION,
    )
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "latentite": payload}, path)
    return path


def fake_draw(
    *,
    share_bad: float = 0.2,
    seen: Callable[[Jobs, int, CrystalBatch], None] = lambda jobs, size, found: None,
) -> Callable[[Jobs, int, Advance], Drawn]:
    """A sampler whose crystals are a function of (seed 0, index, attempt), some of them collapsed.

    Args:
        share_bad: of the crystals that cannot be used.
        seen: is shown every call and its result.
    """

    def draw(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        noise = CrystalNoise(jobs.seeds(0), num_atoms=jobs.num_atoms, num_channels=3).start()
        mask = torch.arange(noise.shape[1]) < jobs.num_atoms[:, None]
        sheet = torch.arange(noise.shape[1])[:, None] * torch.tensor([0.05, 0.0, 0.0])  # keeps atoms apart
        is_bad = torch.special.ndtr(noise[:, 0, 0]) < share_bad
        crystals = CrystalBatch(
            atomic_numbers=(noise[..., 0].abs() * 30).long().clamp(0, 88)[mask] + 1,
            frac_coords=(sheet + 0.01 * noise.tanh())[mask] % 1.0,
            lattice=torch.diag_embed(torch.where(is_bad[:, None], 0.01, torch.tensor([[30.0, 4.0, 4.0]]))),
            num_atoms=jobs.num_atoms,
        )
        seen(jobs, batch_size, crystals)
        advance(len(jobs))
        return Drawn(crystals=crystals)

    return draw
