"""Training losses of the diffusion stage, per crystal and per term, not yet reduced.

DDPM with epsilon, x0 or v targets and, with learned range variance, the rescaled VLB term of Nichol &
Dhariwal (2021); velocity matching of rectified flows (Liu et al. 2022, logit-normal times of Esser et al.
2024). Each crystal's value is the mean over its own real tokens and channels, so padding adds exactly
nothing. `objectives/ldm.py` comes after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.diffusion.schedule import (
    FLOW_TIME_SCALE,
    NoiseLevel,
    Schedule,
    Target,
    target_of,
    to_x0,
)
from latentite.diffusion.steps import (
    Denoise,
    Variance,
    learned_log_variance,
    posterior_mean,
    split_output,
)

VLB_STEPS = 1000
"""The VLB term is weighted by num_steps / 1000 (improved-diffusion's rescaled objective)."""


class FlowTimes(StrEnum):
    """Distribution of the times of flow training."""

    UNIFORM = "uniform"
    LOGIT_NORMAL = "logit_normal"


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionLoss:
    """Loss of each crystal, by term."""

    terms: dict[str, Float[Tensor, " crystal"]]
    """"mse" (of the target), and "vlb" (bits per dimension, rescaled) with learned variance."""
    time: Float[Tensor, " crystal"]
    """Time input of the network, 0 (data) to 1000 (noise) as a rule: log the loss against it."""

    @property
    def total(self) -> Float[Tensor, " crystal"]:
        """Sum of the terms."""
        return torch.stack(list(self.terms.values())).sum(dim=0)


def draw_steps(num_crystals: int, schedule: Schedule, generator: torch.Generator) -> Int[Tensor, " crystal"]:
    """A uniform level for each crystal."""
    return torch.randint(schedule.num_steps, (num_crystals,), generator=generator, device=generator.device)


def draw_flow_times(
    num_crystals: int,
    generator: torch.Generator,
    *,
    kind: FlowTimes = FlowTimes.LOGIT_NORMAL,
    mean: float = 0.0,
    std: float = 1.0,
) -> Float[Tensor, " crystal"]:
    """A time in [0, 1] for each crystal: uniform, or sigmoid(mean + std n)."""
    if kind is FlowTimes.UNIFORM:
        return torch.rand(num_crystals, generator=generator, device=generator.device)
    normal = torch.randn(num_crystals, generator=generator, device=generator.device)
    return torch.sigmoid(mean + std * normal)


def ddpm_loss(
    denoise: Denoise,
    latents: Float[Tensor, "crystal token channel"],
    mask: Bool[Tensor, "crystal token"],
    *,
    schedule: Schedule,
    steps: Int[Tensor, " crystal"],
    noise: Float[Tensor, "crystal token channel"],
    target: Target = Target.EPSILON,
    variance: Variance = Variance.LEARNED_RANGE,
    has_density_scale: bool = True,
) -> DiffusionLoss:
    """Loss of a DDPM network at one level per crystal.

    Args:
        denoise: (x_t, time) -> raw output; twice the channels with learned variance.
        latents: x0.
        mask: True where a token is real.
        schedule: the training schedule, on the latents' device.
        steps: level of each crystal (`draw_steps`).
        noise: standard normals.
        target: what the network predicts.
        variance: adds the VLB term when learned; else the variance is fixed and only "mse" is there.
        has_density_scale: off, level 0's density is that of the standardised latents, without its log-variance
            (as Chemeleon2 has it).

    Raises:
        ValueError: when the output's channels and `variance` do not fit.
    """
    level = schedule.at(steps)
    latents, noise = _masked(latents, mask), _masked(noise, mask)
    state = level.alpha * latents + level.sigma * noise
    time = torch.as_tensor(level.time)[:, 0, 0]
    prediction, channels = split_output(denoise(state, time).to(latents.dtype), latents.shape[-1])
    if (channels is not None) != (variance is Variance.LEARNED_RANGE):
        raise ValueError(
            f"variance={variance} must fit the denoiser, which gives "
            f"{'no ' if channels is None else ''}variance channels; change diffusion.variance"
        )
    error = (prediction - target_of(latents, noise, level, target)) ** 2
    terms = {"mse": _mean(error, mask)}
    if channels is not None:
        # the mean is trained by the MSE alone; the VLB trains the variance (equation 16 and below)
        x0 = to_x0(prediction.detach(), state, level, target)
        bits = _variational_bits(latents, x0, state, level, channels, has_density_scale)
        terms["vlb"] = _mean(bits, mask) * (schedule.num_steps / VLB_STEPS)
    return DiffusionLoss(terms=terms, time=time)


def flow_loss(
    denoise: Denoise,
    latents: Float[Tensor, "crystal token channel"],
    mask: Bool[Tensor, "crystal token"],
    *,
    flow_times: Float[Tensor, " crystal"],
    noise: Float[Tensor, "crystal token channel"],
) -> DiffusionLoss:
    """Velocity matching: at x_t = (1 - t) x0 + t eps the network should say eps - x0."""
    latents, noise = _masked(latents, mask), _masked(noise, mask)
    share = flow_times[:, None, None]
    time = FLOW_TIME_SCALE * flow_times
    velocity = denoise((1.0 - share) * latents + share * noise, time).to(latents.dtype)
    if velocity.shape != latents.shape:
        raise ValueError(
            f"a flow's denoiser must have {latents.shape[-1]} output channels, got {velocity.shape[-1]}; "
            "turn learned variance off"
        )
    return DiffusionLoss(terms={"mse": _mean((velocity - (noise - latents)) ** 2, mask)}, time=time)


def _variational_bits(
    latents: Tensor,
    x0: Tensor,
    state: Tensor,
    level: NoiseLevel,
    channels: Tensor,
    has_density_scale: bool,
) -> Tensor:
    """L_{t-1} or L_0 of Ho et al. 2020, equation 5, per entry in bits."""
    mean = posterior_mean(x0, state, level)
    log_variance = learned_log_variance(channels, level)
    true_mean = posterior_mean(latents, state, level)
    true_log_variance = torch.as_tensor(level.posterior_log_variance)
    divergence = 0.5 * (
        log_variance
        - true_log_variance
        - 1.0
        + (true_log_variance - log_variance).exp()
        + (true_mean - mean) ** 2 * (-log_variance).exp()
    )
    # Latents are real numbers, so L_0 is a density's (improved-diffusion bins pixels; Chemeleon2 leaves out
    # the log-variance of the density, which only matters for the variance of level 0, where none is used).
    log_likelihood = _log_density(latents, mean, log_variance)
    if not has_density_scale:
        log_likelihood = log_likelihood + 0.5 * log_variance
    is_noisy = torch.as_tensor(level.is_noisy) > 0.0
    return torch.where(is_noisy, divergence, -log_likelihood) / math.log(2.0)


def _log_density(latents: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(x0; mean, variance)."""
    squares = (latents - mean) ** 2 * (-log_variance).exp()
    return -0.5 * (squares + log_variance + math.log(2.0 * math.pi))


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[..., None], values, 0.0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each crystal's real tokens and channels."""
    count = mask.sum(dim=-1) * values.shape[-1]
    return _masked(values, mask).sum(dim=(1, 2)) / count.clamp(min=1)
