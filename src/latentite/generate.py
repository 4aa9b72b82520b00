"""New crystals from a trained latent diffusion model.

Crystal i of a run owns a seed that is a function of (run seed, i), so it does not depend on the batch size, on
the order, or on what else is sampled. Comes after `nn/ldm.py` and `diffusion/samplers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.diffusion.guidance import unconditional
from latentite.diffusion.noise import CrystalNoise, crystal_seeds
from latentite.diffusion.samplers import AnySchedule, SamplerKind, sample
from latentite.diffusion.schedule import FlowSchedule, respace
from latentite.diffusion.steps import SamplerSettings, Variance
from latentite.latent import LatentBatch
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """How a denoiser's chain is walked."""

    sampler: SamplerKind | None = None
    """null: DDIM for a DDPM network, Heun's method for a flow's."""
    steps: int = 50
    eta: float = 1.0
    """Noise of `ddim` and `flow_sde`."""
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def sampling_schedule(diffusion: DiffusionConfig, config: SamplingConfig) -> tuple[SamplerKind, AnySchedule]:
    """The method and the levels that it walks.

    Raises:
        ValueError: when there are more steps than levels.
    """
    training = diffusion.build_schedule()
    if training is None:
        return config.sampler or SamplerKind.HEUN, FlowSchedule(num_steps=config.steps)
    return config.sampler or SamplerKind.DDIM, respace(training, config.steps)


@torch.no_grad()
def sample_crystals(
    network: LatentDiffusion,
    diffusion: DiffusionConfig,
    num_atoms: Int[Tensor, " crystal"],
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    config: SamplingConfig | None = None,
) -> CrystalBatch:
    """Sample one crystal for each number of atoms, unconditionally, on the network's device.

    Args:
        network: in evaluation mode.
        diffusion: the process that its denoiser was trained on.
        num_atoms: of each crystal, on the CPU.
        seed: of the run.
        indices: place of each crystal in the run, which gives it its seed; 0, 1, 2, ... by default.
        config: sampler, steps, batch size.

    Returns:
        The crystals in the order of `num_atoms`, on the CPU.
    """
    config = config or SamplingConfig()
    device = network.latent_mean.device
    kind, schedule = sampling_schedule(diffusion, config)
    if diffusion.kind is DiffusionKind.DDPM:
        schedule = schedule.to(device)  # type: ignore[union-attr]  # a DDPM's schedule holds tensors
    settings = SamplerSettings(
        target=diffusion.target,
        variance=diffusion.variance if diffusion.learn_variance else Variance.FIXED_SMALL,
        eta=config.eta,
    )
    seeds = crystal_seeds(seed, range(len(num_atoms)) if indices is None else indices)
    order = num_atoms.argsort(stable=True)  # similar sizes together, so that little is padded
    parts = []
    for chosen in order.split(config.batch_size):
        sizes = num_atoms[chosen]
        noise = CrystalNoise(
            [seeds[i] for i in chosen.tolist()],
            num_atoms=sizes,
            num_channels=network.latent_mean.shape[0],
            device=device,
        )
        mask = LatentBatch.token_mask(sizes.to(device))
        found = sample(
            kind,
            unconditional(network.denoiser, mask),
            noise.start(),
            mask,
            schedule=schedule,
            noise=noise,
            settings=settings,
        )
        parts.append(network.decode(LatentBatch(tokens=found.latents, mask=mask)).to_crystals().to("cpu"))
    return CrystalBatch.concatenate(parts).select(order.argsort())
