"""The diffusion stage's objective: one noise level per crystal, one `LossTerms`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from torch import Tensor

from latentite.diffusion.loss import (
    DiffusionLoss,
    FlowTimes,
    ddpm_loss,
    draw_flow_times,
    draw_steps,
    flow_loss,
)
from latentite.diffusion.schedule import Schedule, ScheduleKind, Target, ddpm_schedule
from latentite.diffusion.steps import Denoise, Variance
from latentite.nn.denoiser import OutputLayout
from latentite.nn.ldm import LDMConfig
from latentite.nn.vae import LatentBatch
from latentite.objectives.terms import LossTerms, Term


class DiffusionKind(StrEnum):
    """Processes that the denoiser learns to reverse."""

    DDPM = "ddpm"
    FLOW = "flow"


class Compatibility(StrEnum):
    """Whose habits a model keeps; other than `none` only for imported checkpoints."""

    NONE = "none"
    CHEMELEON2 = "chemeleon2"
    """The denoiser's output is laid out as `OutputLayout.CHEMELEON2` says, DDIM walks every k-th level where some k
    gives the number of steps, and the density of level 0 leaves out the log-variance in training."""


MAX_STEPS = 1_000_000
"""Of a schedule, a table with a row for each; a card from elsewhere may announce any number."""


@dataclass(kw_only=True, slots=True)
class DiffusionConfig:
    """The noising process and what the network says of it. Defaults are Chemeleon2's."""

    kind: DiffusionKind = DiffusionKind.DDPM
    schedule: ScheduleKind = ScheduleKind.LINEAR
    """`ddpm`: shape of the noise schedule."""
    num_steps: int = 1000
    """`ddpm`: levels of the schedule."""
    target: Target = Target.EPSILON
    """`ddpm`: what the network predicts; a flow's predicts the velocity."""
    variance: Variance = Variance.LEARNED_RANGE
    """`ddpm`: with `learned_range` the denoiser must have `learn_variance`."""
    flow_times: FlowTimes = FlowTimes.LOGIT_NORMAL
    """`flow`: how training times are drawn."""
    flow_time_mean: float = 0.0
    flow_time_std: float = 1.0
    compatibility: Compatibility = Compatibility.NONE

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps must be from 1 to {MAX_STEPS:,}, got {self.num_steps}")
        if not self.flow_time_std > 0:
            raise ValueError(f"flow_time_std must be positive, got {self.flow_time_std}")

    @property
    def learn_variance(self) -> bool:
        """True where the denoiser needs variance channels."""
        return self.kind is DiffusionKind.DDPM and self.variance is Variance.LEARNED_RANGE

    def build_schedule(self) -> Schedule | None:
        """The training schedule; None for a flow, which has none."""
        return ddpm_schedule(self.schedule, self.num_steps) if self.kind is DiffusionKind.DDPM else None


@dataclass(kw_only=True, slots=True)
class LDMStageConfig(LDMConfig):
    """Settings in a checkpoint of this stage, to sample and to go on training."""

    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    def __post_init__(self) -> None:
        # slots=True replaces the class, so the zero-argument super() would not find it
        LDMConfig.__post_init__(self)
        if self.diffusion.compatibility is Compatibility.CHEMELEON2 and self.denoiser.learn_variance:
            self.denoiser = replace(self.denoiser, output_layout=OutputLayout.CHEMELEON2)


def diffusion_loss(
    denoise: Denoise,
    latents: LatentBatch,
    config: DiffusionConfig,
    *,
    schedule: Schedule | None,
    generator: torch.Generator,
) -> DiffusionLoss:
    """Loss per crystal and term, at a random noise level for each.

    Args:
        denoise: (tokens, time) -> the denoiser's raw output.
        latents: normalised.
        config: of the process.
        schedule: `config.build_schedule()` on the latents' device.
        generator: source of levels and noise, on the latents' device.
    """
    tokens, count = latents.tokens, latents.tokens.shape[0]
    noise = torch.randn(tokens.shape, generator=generator, device=tokens.device)
    if schedule is None:
        times = draw_flow_times(
            count, generator, kind=config.flow_times, mean=config.flow_time_mean, std=config.flow_time_std
        )
        return flow_loss(denoise, tokens, latents.mask, flow_times=times, noise=noise)
    steps = draw_steps(count, schedule, generator)
    return ddpm_loss(
        denoise,
        tokens,
        latents.mask,
        schedule=schedule,
        steps=steps,
        noise=noise,
        target=config.target,
        variance=config.variance,
        has_density_scale=config.compatibility is not Compatibility.CHEMELEON2,
    )


def loss_terms(loss: DiffusionLoss) -> LossTerms:
    """The terms as means over crystals."""
    return LossTerms(terms={name: Term.mean_of(values, 1.0) for name, values in loss.terms.items()})


def loss_by_level(loss: DiffusionLoss, *, num_bins: int = 4, max_time: float = 1000.0) -> dict[str, Tensor]:
    """Mean of the total in equal bins of the time that the network was told, for the log; empty bins left out."""
    total = loss.total.detach().float()
    bins = (loss.time / max_time * num_bins).long().clamp(0, num_bins - 1)
    losses = {}
    for index in range(num_bins):
        inside = bins == index
        if bool(inside.any()):
            losses[f"level_{index + 1}_of_{num_bins}"] = total[inside].mean()
    return losses
