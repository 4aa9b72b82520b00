"""The denoising chain as a policy that reinforcement learning can train (`generators/policy.py`).

Its decisions are Gaussian, so divergence and entropy have closed forms. All measures of a decision count the entries
that are real and have noise, and sum over a crystal's tokens and channels or take their mean (`per_entry`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.checkpoint import CheckpointRecord
from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import CrystalNoise
from latentite.diffusion.steps import (
    Denoise,
    Moments,
)
from latentite.generators.latent.chain import (
    SamplingConfig,
    denoise_told,
    max_padding,
    size_batches,
)
from latentite.generators.latent.trajectories import (
    Chain,
    LatentTrajectories,
    Transitions,
    build_chain,
    roll_out,
)
from latentite.generators.policy import Decision, PolicyPlan, Prompts, Rows, of_members, passes
from latentite.models import ldm_of
from latentite.nn.condition_values import ConditionConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.lora import LoraConfig
from latentite.nn.vae import LatentBatch
from latentite.objectives.ldm import LDMStageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentPolicy:
    """A latent diffusion model under guidance: the same function where it draws and where it is asked again."""

    network: LatentDiffusion
    reference: LatentDiffusion
    """The frozen one."""
    chain: Chain
    sampling: SamplingConfig
    per_entry: bool = True
    """Log-ratios, divergences and entropies are means over a crystal's entries; off, sums."""

    def to(self, device: torch.device | str) -> LatentPolicy:
        """The same policy with its networks, moved in place, and its chain on a device."""
        return replace(
            self,
            network=self.network.to(device),
            reference=self.reference.to(device),
            chain=self.chain.to(device),
        )

    def compile(self) -> None:
        """Compile the denoiser's blocks in place, of both networks."""
        for network in (self.network, self.reference):
            for block in network.denoiser.blocks:
                block.compile(dynamic=True)

    def denoise(
        self, network: LatentDiffusion, values: dict[str, Tensor], mask: Bool[Tensor, "row token"]
    ) -> Denoise:
        """The denoiser of rows with these conditions."""
        present = {name: torch.ones(len(mask), dtype=torch.bool, device=mask.device) for name in values}
        return denoise_told(network, values, present, mask, self.sampling)

    @torch.no_grad()
    def rollout(self, prompts: Prompts) -> LatentTrajectories:
        """Walk the chain for every prompt, crystals of similar size together; in the order of the prompts."""
        num_atoms = prompts.crystals.num_atoms.cpu()
        device = self.network.latent_mean.device
        module = self.network.condition_module
        values = {} if module is None else module.values(prompts.crystals)
        parts = []
        batches = size_batches(num_atoms, self.sampling.batch_size, max_padding=max_padding(self.network))
        for members in batches:
            noise = CrystalNoise(
                [prompts.seeds[i] for i in members.tolist()],
                num_atoms=num_atoms[members],
                num_channels=self.network.latent_mean.shape[0],
                device=device,
            )
            mask = LatentBatch.token_mask(num_atoms[members]).to(device)
            denoise = self.denoise(self.network, of_members(values, members), mask)
            parts.append(roll_out(self.chain, denoise, noise.start(), mask, noise))
        trajectories = LatentTrajectories.concatenate(parts, torch.cat(batches).argsort())
        numbers = None
        if not self.network.config.vae.atom_type_predict:
            numbers = torch.zeros_like(trajectories.mask, dtype=torch.long)
            numbers[trajectories.mask] = prompts.crystals.atomic_numbers.long()
        return replace(trajectories, values=values, atomic_numbers=numbers)

    @torch.no_grad()
    def crystals(self, trajectories: LatentTrajectories) -> CrystalBatch:
        """The crystals that clean latents stand for, on the CPU."""
        latents = LatentBatch(tokens=trajectories.latents, mask=trajectories.mask)
        asked = trajectories.atomic_numbers
        numbers = None if asked is None else asked[trajectories.mask]
        return self.network.decode(latents, numbers).to_crystals(numbers).to("cpu")

    def passes(
        self,
        trajectories: LatentTrajectories,
        members: Int[Tensor, " member"],
        steps: Int[Tensor, " step"],
        *,
        max_tokens: int | None,
    ) -> Iterator[Rows]:
        """Passes of about `max_tokens` atoms, one step a row."""
        step, crystal = steps.repeat_interleave(len(members)), members.repeat(len(steps))
        is_padded = max_padding(self.network) > 0.0
        for rows in passes(trajectories.num_atoms[crystal], max_tokens, is_padded=is_padded):
            yield Rows(trajectory=crystal[rows], step=step[rows].unsqueeze(-1))

    def evaluate(
        self,
        trajectories: LatentTrajectories,
        rows: Rows,
        *,
        is_on_policy: Bool[Tensor, " row"],
        with_reference: bool,
    ) -> Decision:
        """Probabilities of steps; guidance is part of the policy."""
        num_steps = rows.step.shape[1]
        asked = trajectories.transitions(rows.step.flatten(), rows.trajectory.repeat_interleave(num_steps))
        values = of_members(trajectories.values, asked.crystal)
        new = self._moments(self.network, asked, values)
        reference = None
        if with_reference:
            with torch.no_grad():
                reference = self._moments(self.reference, asked, values)
        return gaussian_decisions(
            asked,
            new,
            reference,
            is_on_policy=is_on_policy.repeat_interleave(num_steps),
            per_entry=self.per_entry,
            num_steps=num_steps,
        )

    def restored(self, state: Mapping[str, Any]) -> LatentTrajectories:
        """Trajectories from the state that a checkpoint holds.

        Raises:
            ValueError: when they are of a chain with another number of decisions.
        """
        trajectories = LatentTrajectories(**state)
        num_decisions = len(trajectories.levels)
        if num_decisions != self.chain.num_decisions:
            raise ValueError(
                f"rl_module.sampling.steps must be {num_decisions + 1} to resume with the trajectories of "
                f"ckpt_path, got {self.chain.num_decisions + 1}"
            )
        return trajectories

    def _moments(self, network: LatentDiffusion, asked: Transitions, values: dict[str, Tensor]) -> Moments:
        return self.chain.moments(
            self.denoise(network, values, asked.mask), asked.states, asked.levels, asked.mask
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentPolicyBase:
    """A trained latent diffusion model that reinforcement learning starts from (`PolicyBase`)."""

    network: LatentDiffusion
    settings: LDMStageConfig

    @staticmethod
    def of(record: CheckpointRecord) -> LatentPolicyBase:
        """From a checkpoint, adapters merged.

        Raises:
            CheckpointError: when it is of no such model, or config and tensors do not fit.
        """
        network, settings, _ = ldm_of(record)
        return LatentPolicyBase(network=network, settings=settings)

    @property
    def conditions(self) -> Sequence[ConditionConfig]:
        """Those of the condition module; none without one."""
        module = self.settings.condition_module
        return () if module is None else module.conditions

    def asking(self, names: Sequence[str]) -> LatentPolicyBase:
        """A denoising chain is asked for all conditions of its model.

        Raises:
            ValueError: for other ones.
        """
        own = [condition.name for condition in self.conditions]
        if list(names) != own:
            raise ValueError(
                f"data.target_condition must be [{', '.join(own)}], the conditions of rl_module.ldm_ckpt_path, "
                f"got [{', '.join(names)}]"
            )
        return self

    def plan(self, sampling: SamplingConfig, *, lora: LoraConfig | None, per_entry: bool) -> PolicyPlan:
        """The chain of a stochastic sampler; arguments as `PolicyBase.plan`.

        Raises:
            ValueError: for a sampler without noise, or one that does not fit the model.
        """
        chain = build_chain(self.settings.diffusion, sampling)
        settings = replace(self.settings, lora=lora)

        def build() -> LatentPolicy:
            network = LatentDiffusion(settings)
            loaded = network.load_state_dict(self.network.state_dict(), strict=False)
            assert not loaded.unexpected_keys, "a fine-tuned network has all that its base has"
            return LatentPolicy(
                network=network,
                reference=self.network.eval().requires_grad_(False),
                chain=chain,
                sampling=sampling,
                per_entry=per_entry,
            )

        return PolicyPlan(settings=settings, build=build)


def gaussian_decisions(
    asked: Transitions,
    new: Moments,
    reference: Moments | None,
    *,
    is_on_policy: Bool[Tensor, " row"],
    per_entry: bool,
    num_steps: int = 1,
) -> Decision:
    """Decisions whose distributions are Gaussians.

    Args:
        asked: states and actions.
        new: the policy that is trained, at these states.
        reference: the frozen one; None: without.
        is_on_policy: True where the policy has not moved since it drew the action.
        per_entry: means over a crystal's entries instead of sums.
        num_steps: so many rows after each other are one row of the result.
    """
    is_own = is_on_policy[:, None, None]
    old = Moments(
        mean=torch.where(is_own, new.mean.detach(), asked.old.mean),
        std=torch.where(is_own, torch.as_tensor(new.std).detach(), torch.as_tensor(asked.old.std)),
    )
    kl = to_reference = None
    if reference is not None:
        kl = kl_divergence(new, reference, asked.mask, per_entry=per_entry).view(-1, num_steps)
        to_reference = log_ratio(asked.next_states, reference, new, asked.mask, per_entry=per_entry)
        to_reference = to_reference.view(-1, num_steps)
    ratio = log_ratio(asked.next_states, new, old, asked.mask, per_entry=per_entry).view(-1, num_steps)
    return Decision(
        is_real=torch.ones_like(ratio, dtype=torch.bool),
        log_ratio=ratio,
        entropy=entropy(new, asked.mask, per_entry=per_entry).view(-1, num_steps),
        kl=kl,
        reference_log_ratio=to_reference,
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
