"""One sampling step of each method, as a distribution over the next state.

Pure functions of (network output, state, level): `samplers.py` loops over them, and reinforcement learning calls the
same ones with one level per crystal to get log-probabilities under new weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.diffusion.schedule import (
    Coefficient,
    FlowLevel,
    NoiseLevel,
    Target,
    to_epsilon,
    to_x0,
)

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(tokens `[crystal token channel]`, time `[crystal]`) -> the network's raw output, `[crystal token channel]`
or, with learned variance, `[crystal token 2 channel]`: prediction, then variance."""


class Variance(StrEnum):
    """Variance of an ancestral DDPM step."""

    FIXED_SMALL = "fixed_small"
    """beta-tilde: the posterior's if the data were one point."""
    FIXED_LARGE = "fixed_large"
    """beta: the posterior's if the data were standard normal."""
    LEARNED_RANGE = "learned_range"
    """Between them in log space, by the network (Nichol & Dhariwal 2021, equation 15)."""


@dataclass(kw_only=True, slots=True)
class SamplerSettings:
    """Settings of a sampler: facts about the network, and its own options."""

    target: Target = Target.EPSILON
    """Target of a DDPM network; a flow's network predicts the velocity eps - x0."""
    variance: Variance = Variance.FIXED_SMALL
    """Variance of the ancestral sampler; the others use no variance channels."""
    eta: float = 1.0
    """Noise of DDIM (0 deterministic, 1 as DDPM) and of the flow SDE (0 is the ODE)."""
    noise_scale: float = 1.0
    """The flow SDE's noise is multiplied by it, its drift is not: below 1 samples gather where the density is high
    (Geffner et al. 2025, "Proteina", section 3.3, who do so for protein backbones)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_scale) and self.noise_scale >= 0.0):
            raise ValueError(f"noise_scale must be a number not below 0, got {self.noise_scale}")
        if not (math.isfinite(self.eta) and self.eta >= 0.0):
            raise ValueError(f"eta must be a number not below 0, got {self.eta}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Mean and standard deviation of the next state; std 0 (a float or entries) means no noise there."""

    mean: Float[Tensor, "crystal token channel"]
    std: Coefficient


def split_output(output: Tensor, num_channels: int) -> tuple[Tensor, Tensor | None]:
    """Prediction and variance channels (None when the network has none) of a raw output.

    Raises:
        ValueError: when the output has neither one nor two times the channels.
    """
    if output.shape[-1] == num_channels:
        return output, None
    if output.shape[-1] == 2 * num_channels:
        return output[..., :num_channels], output[..., num_channels:]
    raise ValueError(
        f"a denoiser's output must have {num_channels} channels, or {2 * num_channels} with learned "
        f"variance, got {output.shape[-1]}"
    )


def posterior_mean(x0: Tensor, state: Tensor, level: NoiseLevel) -> Tensor:
    """Mean of q(x_next | x_t, x0) (Ho et al. 2020, equation 7)."""
    return level.mean_x0 * x0 + level.mean_xt * state


def learned_log_variance(channels: Tensor, level: NoiseLevel) -> Tensor:
    """Log-variance of a step from the variance channels: -1 is beta-tilde, 1 is beta (equation 15)."""
    share = 0.5 * (channels + 1.0)
    return share * level.log_beta + (1.0 - share) * level.posterior_log_variance


def ddpm_moments(output: Tensor, state: Tensor, level: NoiseLevel, settings: SamplerSettings) -> Moments:
    """An ancestral step (Ho et al. 2020, algorithm 2); no noise from level 0."""
    prediction, channels = split_output(output, state.shape[-1])
    mean = posterior_mean(to_x0(prediction, state, level, settings.target), state, level)
    std: Coefficient
    if settings.variance is Variance.FIXED_SMALL:
        std = level.posterior_variance**0.5
    elif settings.variance is Variance.FIXED_LARGE:
        std = level.is_noisy * level.beta**0.5
    elif channels is None:
        raise ValueError(
            "variance=learned_range needs a denoiser with variance channels; use fixed_small or fixed_large"
        )
    elif isinstance(level.is_noisy, float) and level.is_noisy == 0.0:
        std = 0.0
    else:
        std = level.is_noisy * (0.5 * learned_log_variance(channels, level)).exp()
    return Moments(mean=mean, std=std)


def ddim_moments(output: Tensor, state: Tensor, level: NoiseLevel, settings: SamplerSettings) -> Moments:
    """A DDIM step (Song et al. 2021, equations 12 and 16).

    Their sigma^2 is eta^2 times beta-tilde, and 1 - alpha_bar_next - sigma^2 is written as
    sigma_next^2 (1 - eta^2 beta / sigma^2), which does not cancel near the data.
    """
    prediction, _ = split_output(output, state.shape[-1])
    x0 = to_x0(prediction, state, level, settings.target)
    epsilon = to_epsilon(prediction, state, level, settings.target)
    kept: Coefficient = 1.0 - settings.eta**2 * level.beta / level.sigma**2
    kept = kept.clamp(min=0.0) if isinstance(kept, Tensor) else max(kept, 0.0)
    mean = level.alpha_next * x0 + (level.sigma_next * kept**0.5) * epsilon
    return Moments(mean=mean, std=settings.eta * level.posterior_variance**0.5)


def euler_moments(output: Tensor, state: Tensor, level: FlowLevel, settings: SamplerSettings) -> Moments:
    """An Euler step of the flow: dx/dt = v, from t to t_next < t."""
    del settings
    return Moments(mean=state + (level.flow_time_next - level.flow_time) * output, std=0.0)


def flow_sde_moments(output: Tensor, state: Tensor, level: FlowLevel, settings: SamplerSettings) -> Moments:
    """An Euler-Maruyama step of an SDE with the flow's marginals; no noise on the way to t = 0.

    In reversed time: dx = (-v + g^2/2 score) dtau + g dw for any g(t) (Albergo et al. 2023, stochastic
    interpolants), with score = -eps_hat / t and eps_hat = x + (1 - t) v. With g = eta sqrt(t) the drift
    stays finite at both ends: -v - eta^2/2 eps_hat.
    """
    time = level.flow_time
    length = time - level.flow_time_next
    if isinstance(time, Tensor):
        is_noisy: Coefficient = (torch.as_tensor(level.flow_time_next) > 0.0).to(state.dtype)
    else:
        is_noisy = float(level.flow_time_next > 0.0)
    epsilon = state + (1.0 - time) * output
    mean = state - length * output - (is_noisy * length * (0.5 * settings.eta**2)) * epsilon
    std = settings.noise_scale * settings.eta * (time * length) ** 0.5
    return Moments(mean=mean, std=is_noisy * std)


def dpm_solver_mean(
    x0: Tensor, last: tuple[Tensor, float] | None, state: Tensor, level: NoiseLevel
) -> Tensor:
    """A DPM-Solver++(2M) step (Lu et al. 2022, "DPM-Solver++", algorithm 2).

    Args:
        x0: predicted clean tokens at this level.
        last: those of the step before and its level's lambda = log(alpha / sigma); None at the first step.
        state: the tokens now.
        level: constants as floats.

    The step to the data has h = infinity: of any order it gives x0.
    """
    if level.sigma_next == 0.0:
        return x0
    lambda_now = level.log_alpha_over_sigma
    height = math.log(float(level.alpha_next) / float(level.sigma_next)) - lambda_now
    estimate = x0
    if last is not None:
        last_x0, last_lambda = last
        ratio = (lambda_now - last_lambda) / height
        estimate = x0 + (x0 - last_x0) / (2.0 * ratio)
    kept = float(level.sigma_next) / float(level.sigma)
    return kept * state - float(level.alpha_next) * math.expm1(-height) * estimate


def transition_log_prob(
    next_state: Float[Tensor, "crystal token channel"], moments: Moments, mask: Bool[Tensor, "crystal token"]
) -> Float[Tensor, " crystal"]:
    """log p(next state) of each crystal: the sum over the channels of its tokens (not their mean).

    Entries without noise (std 0) are certain and add nothing, so a deterministic step has log-probability 0
    and a gradient of 0, never NaN.
    """
    std = torch.as_tensor(moments.std, dtype=next_state.dtype, device=next_state.device)
    std = std.expand(next_state.shape)
    counts = mask[..., None] & (std > 0.0)
    safe = torch.where(counts, std, 1.0)
    residual = torch.where(counts, next_state - moments.mean, 0.0) / safe
    log_density = -0.5 * residual**2 - safe.log() - 0.5 * math.log(2.0 * math.pi)
    return torch.where(counts, log_density, 0.0).sum(dim=(1, 2))
