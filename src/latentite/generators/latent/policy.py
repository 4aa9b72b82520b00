"""The denoising chain as a Markov decision process: `Chain`, and `Rollout`, what one walk along it leaves.

A state is a crystal's noisy latent with its level, an action is the next latent, and the policy is the Gaussian of a
stochastic sampler's step (Black et al. 2023, arXiv 2305.13301, section 4; Liu et al. 2025, arXiv 2505.05470 for
flows).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import CrystalNoise, crystal_seeds
from latentite.diffusion.samplers import STEPS, AnySchedule, Noise, SamplerKind, sample
from latentite.diffusion.schedule import Schedule
from latentite.diffusion.steps import (
    Denoise,
    Moments,
    SamplerSettings,
    ddim_moments,
    ddpm_moments,
    flow_sde_moments,
)
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

STOCHASTIC: dict[SamplerKind, Callable[[Tensor, Tensor, Any, SamplerSettings], Moments]] = {
    SamplerKind.DDPM: ddpm_moments,
    SamplerKind.DDIM: ddim_moments,
    SamplerKind.FLOW_SDE: flow_sde_moments,
}
"""Samplers whose steps are Gaussians, with the function of one step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """A stochastic sampler on a schedule."""

    kind: SamplerKind
    schedule: AnySchedule
    settings: SamplerSettings

    def __post_init__(self) -> None:
        if self.kind not in STOCHASTIC:
            raise ValueError(
                f"sampler must be one with noise in its steps ({', '.join(STOCHASTIC)}) for reinforcement learning, "
                f"got {self.kind}"
            )
        if not isinstance(self.schedule, STEPS[self.kind][0]):
            raise ValueError(
                f"sampler {self.kind} needs a {STEPS[self.kind][0].__name__}, got a {type(self.schedule).__name__}"
            )
        noise = {"eta": self.settings.eta, "noise_scale": self.settings.noise_scale}
        for name in (
            key for key, value in noise.items() if value == 0.0 and self.kind is not SamplerKind.DDPM
        ):
            raise ValueError(
                f"{name} must be above 0 for reinforcement learning with {self.kind} (without noise a step has no "
                "probability), got 0"
            )
        if self.schedule.num_steps < 2:
            raise ValueError(
                f"steps must be at least 2 for reinforcement learning (the last step adds no noise), "
                f"got {self.schedule.num_steps}"
            )

    @property
    def num_decisions(self) -> int:
        """Steps that draw something: all but the last one, which goes to the data without noise."""
        return self.schedule.num_steps - 1

    def to(self, device: torch.device | str) -> Chain:
        """The chain for index tensors on this device."""
        if not isinstance(self.schedule, Schedule):
            return self
        return replace(self, schedule=self.schedule.to(device))

    def moments(
        self,
        denoise: Denoise,
        states: Float[Tensor, "row token channel"],
        levels: Int[Tensor, " row"],
        mask: Bool[Tensor, "row token"],
    ) -> Moments:
        """The policy at many states at once, each with a level of its own; mean and std are 0 in padding."""
        level = self.schedule.at(levels)
        time = torch.as_tensor(level.time).flatten()
        real = mask[..., None]
        output = torch.where(real, denoise(states, time).to(states.dtype), 0.0)
        found = STOCHASTIC[self.kind](output, states, level, self.settings)
        std = torch.as_tensor(found.std, dtype=states.dtype, device=states.device).expand(states.shape)
        return Moments(mean=torch.where(real, found.mean, 0.0), std=torch.where(real, std, 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Transitions:
    """Some decisions of a rollout as rows of one batch."""

    crystal: Int[Tensor, " row"]
    """Whose decision it is: position in the rollout."""
    states: Float[Tensor, "row token channel"]
    next_states: Float[Tensor, "row token channel"]
    levels: Int[Tensor, " row"]
    mask: Bool[Tensor, "row token"]
    old: Moments
    """The policy that drew the next states."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A walk of many crystals along a chain: every state, and the policy's Gaussian at each decision.

    Padding is zero everywhere. The last, deterministic step is part of `latents` only.
    """

    states: Float[Tensor, "state crystal token channel"]
    """From the start to what the last decision drew: one more than decisions."""
    means: Float[Tensor, "step crystal token channel"]
    stds: Float[Tensor, "step crystal token channel"]
    log_probs: Float[Tensor, "step crystal"]
    """Of each decision, summed over a crystal's tokens and channels."""
    levels: Int[Tensor, " step"]
    """Index in the schedule of the level that each decision starts from."""
    latents: Float[Tensor, "crystal token channel"]
    """Clean latents."""
    mask: Bool[Tensor, "crystal token"]

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def num_decisions(self) -> int:
        """Per crystal."""
        return self.levels.shape[0]

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms of each crystal."""
        return self.mask.sum(dim=-1)

    def transitions(self, step: Int[Tensor, " row"], crystal: Int[Tensor, " row"]) -> Transitions:
        """These decisions as rows, padded to the largest crystal among them only."""
        mask = self.mask[crystal]
        width = int(mask.sum(dim=-1).max()) if len(mask) else 0
        return Transitions(
            crystal=crystal,
            states=self.states[step, crystal, :width],
            next_states=self.states[step + 1, crystal, :width],
            levels=self.levels[step],
            mask=mask[:, :width],
            old=Moments(mean=self.means[step, crystal, :width], std=self.stds[step, crystal, :width]),
        )

    def select(self, crystals: Int[Tensor, " crystal"]) -> Rollout:
        """These crystals in this order."""
        return Rollout.concatenate([self], crystals)

    def to(self, device: torch.device | str) -> Rollout:
        """The same on a device."""
        return Rollout(**{name: tensor.to(device) for name, tensor in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint; `Rollout(**state)` is the way back."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @staticmethod
    def concatenate(parts: Sequence[Rollout], order: Int[Tensor, " crystal"]) -> Rollout:
        """Rollouts of one chain as one, padded to the largest, those crystals and in the order that is given."""
        width = max(part.mask.shape[1] for part in parts)

        def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
            padded = [F.pad(t, (0, 0, 0, width - t.shape[-2])) for t in tensors]
            return torch.cat(padded, dim=dim).index_select(dim, order.to(tensors[0].device))

        masks = [F.pad(part.mask, (0, width - part.mask.shape[1])) for part in parts]
        places = order.to(masks[0].device)
        return Rollout(
            states=joined([part.states for part in parts], 1),
            means=joined([part.means for part in parts], 1),
            stds=joined([part.stds for part in parts], 1),
            log_probs=torch.cat([part.log_probs for part in parts], dim=1)[:, places],
            levels=parts[0].levels,
            latents=joined([part.latents for part in parts], 0),
            mask=torch.cat(masks)[places],
        )


@torch.no_grad()
def roll_out(
    chain: Chain,
    denoise: Denoise,
    start_state: Float[Tensor, "crystal token channel"],
    mask: Bool[Tensor, "crystal token"],
    noise: Noise,
) -> Rollout:
    """Walk the chain once.

    Args:
        chain: sampler and schedule.
        denoise: (tokens, time) -> raw output of the policy's network.
        start_state: x_T.
        mask: True where a token is real.
        noise: step from 0 -> standard normals (`noise.CrystalNoise`).
    """
    found = sample(
        chain.kind,
        denoise,
        start_state,
        mask,
        schedule=chain.schedule,
        noise=noise,
        settings=chain.settings,
        record=True,
    )
    assert found.states is not None
    assert found.means is not None
    assert found.stds is not None
    assert found.log_probs is not None
    last = chain.num_decisions
    return Rollout(
        states=found.states[: last + 1],
        means=found.means[:last],
        stds=found.stds[:last],
        log_probs=found.log_probs[:last],
        levels=found.levels[:last].to(mask.device),
        latents=found.latents,
        mask=mask,
    )


def log_ratio(
    next_states: Float[Tensor, "row token channel"],
    new: Moments,
    old: Moments,
    mask: Bool[Tensor, "row token"],
    *,
    per_entry: bool,
) -> Float[Tensor, " row"]:
    """log p_new(next state) - log p_old(next state).

    Taken entry by entry before anything is summed: the two sums are large and nearly equal, and their difference
    would be rounding. Equal moments give exactly 0.
    """
    counts, new_std, old_std = _counted(new, old, mask)
    z_new = (next_states - new.mean) / new_std
    z_old = (next_states - old.mean) / old_std
    difference = 0.5 * (z_old - z_new) * (z_old + z_new) - (new_std / old_std).log()
    return _reduced(difference, counts, per_entry=per_entry)


def kl_divergence(
    new: Moments, reference: Moments, mask: Bool[Tensor, "row token"], *, per_entry: bool
) -> Float[Tensor, " row"]:
    """KL(new || reference) in closed form."""
    counts, new_std, reference_std = _counted(new, reference, mask)
    ratio = new_std / reference_std
    distance = (new.mean - reference.mean) / reference_std
    return _reduced(0.5 * (ratio**2 + distance**2 - 1.0) - ratio.log(), counts, per_entry=per_entry)


def k3(log_ratio_to_new: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Estimator of KL(new || reference) from actions of the new policy: r - 1 - log r, r = p_reference / p_new.

    Schulman 2020, "Approximating KL divergence"; never negative, unbiased.

    Args:
        log_ratio_to_new: log p_reference(action) - log p_new(action).
    """
    return log_ratio_to_new.expm1() - log_ratio_to_new


def entropy(moments: Moments, mask: Bool[Tensor, "row token"], *, per_entry: bool) -> Float[Tensor, " row"]:
    """Differential entropy, nats."""
    counts, std, _ = _counted(moments, moments, mask)
    return _reduced(0.5 * math.log(2.0 * math.pi * math.e) + std.log(), counts, per_entry=per_entry)


def _counted(one: Moments, other: Moments, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entries that are real and have noise, and both stds, 1 elsewhere, so that nothing is divided by 0."""
    one_std, other_std = (
        torch.as_tensor(m.std, dtype=m.mean.dtype, device=m.mean.device).expand(m.mean.shape)
        for m in (one, other)
    )
    counts = mask[..., None] & (one_std > 0.0) & (other_std > 0.0)
    return counts, torch.where(counts, one_std, 1.0), torch.where(counts, other_std, 1.0)


def _reduced(values: Tensor, counts: Tensor, *, per_entry: bool) -> Tensor:
    total = torch.where(counts, values, 0.0).sum(dim=(1, 2))
    return total / counts.sum(dim=(1, 2)).clamp(min=1) if per_entry else total


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
