"""The denoising chain as a Markov decision process: `Chain`, and `Rollout`, what one walk along it leaves.

A state is a crystal's noisy latent with its level, an action is the next latent, and the policy is the Gaussian of a
stochastic sampler's step (Black et al. 2023, arXiv 2305.13301, section 4; Liu et al. 2025, arXiv 2505.05470 for
flows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
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
