"""From prompts to crystals: a rollout of the policy, bucketed by size, and the crystals that it ends in.

A prompt is a crystal of the data: its number of atoms and its conditions are asked, and for a structure-prediction
model its elements. Crystal i of a rollout owns a seed of its own, so that neither batches nor processes matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import CrystalNoise, crystal_seeds
from latentite.diffusion.samplers import SamplerKind
from latentite.diffusion.steps import Denoise
from latentite.generators.latent.batches import size_batches
from latentite.generators.latent.chain import (
    SamplingConfig,
    denoise_told,
    max_padding,
    sampler_settings,
    sampling_schedule,
)
from latentite.latent import LatentBatch
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind
from latentite.rl.rollout import Chain, Rollout, roll_out


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """What each crystal of a rollout is asked."""

    crystals: CrystalBatch
    """One per crystal of the rollout, repeated within a group; on the device."""
    groups: Int[Tensor, " crystal"]
    """Number of the prompt, over all processes; on the CPU."""
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.seeds)

    @staticmethod
    def of(
        batch: CrystalBatch, *, num_samples: int, run_seed: int, rank: int = 0, world_size: int = 1
    ) -> Prompts:
        """`num_samples` crystals for each crystal of this process's batch (crystal k of all is rank k mod world)."""
        prompt = torch.arange(len(batch)) * world_size + rank
        groups = prompt.repeat_interleave(num_samples)
        places = groups * num_samples + torch.arange(num_samples).repeat(len(batch))
        rows = torch.arange(len(batch), device=batch.device).repeat_interleave(num_samples)
        return Prompts(
            crystals=batch.select(rows), groups=groups, seeds=crystal_seeds(run_seed, places.tolist())
        )


def build_chain(diffusion: DiffusionConfig, sampling: SamplingConfig) -> Chain:
    """The decision process of a sampler; DDIM or the flow SDE where the config names none.

    Raises:
        ValueError: for a sampler without noise, or one that does not fit the model.
    """
    default = SamplerKind.DDIM if diffusion.kind is DiffusionKind.DDPM else SamplerKind.FLOW_SDE
    kind, schedule = sampling_schedule(diffusion, replace(sampling, sampler=sampling.sampler or default))
    return Chain(kind=kind, schedule=schedule, settings=sampler_settings(diffusion, sampling))


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """A network under guidance: the same function where it draws and where it is asked for probabilities."""

    network: LatentDiffusion
    sampling: SamplingConfig

    def values(self, crystals: CrystalBatch) -> dict[str, Tensor]:
        """Values of the conditions that these prompts ask for."""
        module = self.network.condition_module
        return {} if module is None else module.values(crystals)

    def denoise(self, values: dict[str, Tensor], mask: Bool[Tensor, "row token"]) -> Denoise:
        """The denoiser of rows with these conditions."""
        present = {name: torch.ones(len(mask), dtype=torch.bool, device=mask.device) for name in values}
        return denoise_told(self.network, values, present, mask, self.sampling)


@torch.no_grad()
def collect(policy: Policy, chain: Chain, prompts: Prompts) -> Rollout:
    """Walk the chain for every prompt, crystals of similar size together; in the order of the prompts."""
    num_atoms = prompts.crystals.num_atoms.cpu()
    device = policy.network.latent_mean.device
    values = policy.values(prompts.crystals)
    parts = []
    padding = max_padding(policy.network)
    batches = size_batches(num_atoms, policy.sampling.batch_size, max_padding=padding)
    for members in batches:
        noise = CrystalNoise(
            [prompts.seeds[i] for i in members.tolist()],
            num_atoms=num_atoms[members],
            num_channels=policy.network.latent_mean.shape[0],
            device=device,
        )
        mask = LatentBatch.token_mask(num_atoms[members]).to(device)
        told = {name: column[members.to(device)] for name, column in values.items()}
        parts.append(roll_out(chain, policy.denoise(told, mask), noise.start(), mask, noise))
    return Rollout.concatenate(parts, torch.cat(batches).argsort())


@torch.no_grad()
def decode(network: LatentDiffusion, rollout: Rollout, prompts: Prompts) -> CrystalBatch:
    """The crystals of a rollout, on the CPU."""
    latents = LatentBatch(tokens=rollout.latents, mask=rollout.mask)
    numbers = None if network.config.vae.atom_type_predict else prompts.crystals.atomic_numbers
    return network.decode(latents, numbers).to_crystals(numbers).to("cpu")
