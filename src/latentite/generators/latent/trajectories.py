"""The denoising chain as a Markov decision process: `Chain`, and `LatentTrajectories`, the walks along it.

A state is a crystal's noisy latent with its level, an action is the next latent, and the policy is the Gaussian of a
stochastic sampler's step (Black et al. 2023, arXiv 2305.13301, section 4; Liu et al. 2025, arXiv 2505.05470 for
flows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
from latentite.generators.latent.chain import (
    SamplingConfig,
    sampler_settings,
    sampling_schedule,
)
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
        moments = STOCHASTIC[self.kind](output, states, level, self.settings)
        std = torch.as_tensor(moments.std, dtype=states.dtype, device=states.device).expand(states.shape)
        return Moments(mean=torch.where(real, moments.mean, 0.0), std=torch.where(real, std, 0.0))


def build_chain(diffusion: DiffusionConfig, sampling: SamplingConfig) -> Chain:
    """The decision process of a sampler; DDIM or the flow SDE where the config names none.

    Raises:
        ValueError: for a sampler without noise, or one that does not fit the model.
    """
    default = SamplerKind.DDIM if diffusion.kind is DiffusionKind.DDPM else SamplerKind.FLOW_SDE
    kind, schedule = sampling_schedule(diffusion, replace(sampling, sampler=sampling.sampler or default))
    return Chain(kind=kind, schedule=schedule, settings=sampler_settings(diffusion, sampling))


@dataclass(frozen=True, kw_only=True, slots=True)
class Transitions:
    """Decisions of some trajectories as rows of one batch."""

    crystal: Int[Tensor, " row"]
    """Whose decision it is: position of the trajectory."""
    states: Float[Tensor, "row token channel"]
    next_states: Float[Tensor, "row token channel"]
    levels: Int[Tensor, " row"]
    mask: Bool[Tensor, "row token"]
    old: Moments
    """The policy that drew the next states."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentTrajectories:
    """Walks of many crystals along one chain: every state, and the policy's Gaussian at each decision.

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
    values: dict[str, Tensor] = field(default_factory=dict)
    """Conditions that were asked, by name: `[crystal *channel]`."""
    atomic_numbers: Int[Tensor, "crystal token"] | None = None
    """Elements that were asked, for a structure-prediction model."""

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def num_decisions(self) -> Int[Tensor, " crystal"]:
        """The same for every crystal of a chain."""
        return self.levels.new_full((len(self),), len(self.levels))

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

    def select(self, members: Int[Tensor, " member"]) -> LatentTrajectories:
        """These crystals in this order."""
        return LatentTrajectories.concatenate([self], members)

    def to(self, device: torch.device | str) -> LatentTrajectories:
        """The same on a device."""
        numbers = self.atomic_numbers
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return LatentTrajectories(
            **moved,
            values={name: column.to(device) for name, column in self.values.items()},
            atomic_numbers=None if numbers is None else numbers.to(device),
        )

    def state(self) -> dict[str, Any]:
        """All tensors by name; `LatentTrajectories(**state)` is the way back."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @classmethod
    def concatenate(
        cls, parts: Sequence[LatentTrajectories], order: Int[Tensor, " member"] | None = None
    ) -> LatentTrajectories:
        """Walks along one chain as one batch, padded to the largest; with an order those of all parts that it names."""
        width = max(part.mask.shape[1] for part in parts)
        device = parts[0].mask.device
        places = torch.arange(sum(map(len, parts)), device=device) if order is None else order.to(device)

        def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
            padded = [F.pad(t, (0, 0, 0, width - t.shape[-2])) for t in tensors]
            return torch.cat(padded, dim=dim).index_select(dim, places)

        def joined_tokens(tensors: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(t, (0, width - t.shape[1])) for t in tensors])[places]

        numbers = [part.atomic_numbers for part in parts if part.atomic_numbers is not None]
        return cls(
            states=joined([part.states for part in parts], 1),
            means=joined([part.means for part in parts], 1),
            stds=joined([part.stds for part in parts], 1),
            log_probs=torch.cat([part.log_probs for part in parts], dim=1)[:, places],
            levels=parts[0].levels,
            latents=joined([part.latents for part in parts], 0),
            mask=joined_tokens([part.mask for part in parts]),
            values={
                name: torch.cat([part.values[name] for part in parts])[places] for name in parts[0].values
            },
            atomic_numbers=joined_tokens(numbers) if len(numbers) == len(parts) else None,
        )


_TENSORS = ("states", "means", "stds", "log_probs", "levels", "latents", "mask")


@torch.no_grad()
def roll_out(
    chain: Chain,
    denoise: Denoise,
    start_state: Float[Tensor, "crystal token channel"],
    mask: Bool[Tensor, "crystal token"],
    noise: Noise,
) -> LatentTrajectories:
    """Walk the chain once.

    Args:
        chain: sampler and schedule.
        denoise: (tokens, time) -> raw output of the policy's network.
        start_state: x_T.
        mask: True where a token is real.
        noise: step from 0 -> standard normals (`noise.CrystalNoise`).
    """
    walked = sample(
        chain.kind,
        denoise,
        start_state,
        mask,
        schedule=chain.schedule,
        noise=noise,
        settings=chain.settings,
        record=True,
    )
    assert walked.states is not None
    assert walked.means is not None
    assert walked.stds is not None
    assert walked.log_probs is not None
    last = chain.num_decisions
    return LatentTrajectories(
        states=walked.states[: last + 1],
        means=walked.means[:last],
        stds=walked.stds[:last],
        log_probs=walked.log_probs[:last],
        levels=walked.levels[:last].to(mask.device),
        latents=walked.latents,
        mask=mask,
    )
