"""Noise levels: the DDPM schedules, their respacing, and the straight path of rectified flow.

Everything else in `diffusion/` asks a schedule for the constants of a level. A level's index counts from the
data (0, least noise) to the noise (`num_steps - 1`); sampling walks from the last to the first, and "next"
is the level that sampling goes to (the "previous" one of the papers). `loss.py` and `steps.py` come after.

Constants are computed in float64 on the CPU. Samplers read them as Python floats; training reads a float32
copy on the device, so that 1 - alpha_bar never suffers from float32 cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

Coefficient = float | Tensor
"""A constant of one level: a float, or one per crystal `[crystal 1 1]`."""

MAX_BETA = 0.999
"""Largest share of the signal's variance that one step destroys (Nichol & Dhariwal 2021, section 3.2)."""

FLOW_TIME_SCALE = 1000.0
"""Networks are told 1000 t of a flow, so that one time embedding serves flows and 1000-step schedules."""


class ScheduleKind(StrEnum):
    """Shape of the DDPM noise schedule."""

    LINEAR = "linear"
    COSINE = "cosine"


class Spacing(StrEnum):
    """Choice of the levels of the training schedule that a shorter sampling schedule keeps."""

    EVEN = "even"
    """Evenly spaced, both ends included: the default; every number of steps works."""
    LOG_SNR = "log_snr"
    """Evenly spaced in the logarithm of the signal-to-noise ratio: finer near the data."""
    STRIDE = "stride"
    """Every k-th level from 0, as "ddimN" of improved-diffusion and Chemeleon2; only for some N."""


class Target(StrEnum):
    """Target of a DDPM network."""

    EPSILON = "epsilon"
    X0 = "x0"
    V = "v"


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevel:
    """Constants of one DDPM level, or of one level per crystal."""

    time: Coefficient
    """Time input of the network: the level's index in the training schedule."""
    alpha: Coefficient
    """sqrt(alpha_bar): x_t = alpha x0 + sigma eps."""
    sigma: Coefficient
    alpha_next: Coefficient
    """The same of the level that sampling goes to; (1, 0) from level 0."""
    sigma_next: Coefficient
    beta: Coefficient
    log_beta: Coefficient
    posterior_variance: Coefficient
    """beta-tilde; 0 at level 0."""
    posterior_log_variance: Coefficient
    """Its logarithm, with level 1's value at level 0 where beta-tilde is 0."""
    mean_x0: Coefficient
    """Weight of x0 in the mean of q(x_next | x_t, x0)."""
    mean_xt: Coefficient
    """Weight of x_t there."""
    is_noisy: Coefficient
    """1, but 0 at level 0, from where sampling goes to the data without noise."""

    @property
    def log_alpha_over_sigma(self) -> float:
        """lambda of DPM-Solver: half the logarithm of the signal-to-noise ratio, for a level of floats."""
        return math.log(float(self.alpha) / float(self.sigma))


_LEVEL_FIELDS = tuple(field.name for field in fields(NoiseLevel))


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A DDPM schedule, respaced or not. Make it with `ddpm_schedule` and `respace`."""

    timesteps: Int[Tensor, " step"]
    """Index of each level in the training schedule, increasing; on the CPU."""
    alphas_cumprod: Float[Tensor, " step"]
    """alpha_bar of each level, float64, on the CPU."""
    table: Float[Tensor, "step constant"]
    """Constants in the order of `NoiseLevel`, float64, on the CPU."""
    device_table: Float[Tensor, "step constant"]
    """The same in float32 on the device of training."""

    @property
    def num_steps(self) -> int:
        """Number of levels."""
        return self.timesteps.shape[0]

    def to(self, device: torch.device | str) -> Schedule:
        """The schedule for index tensors on this device."""
        return replace(self, device_table=self.device_table.to(device))

    def at(self, step: int | Int[Tensor, " crystal"]) -> NoiseLevel:
        """Constants of one level (floats), or of one per crystal (`[crystal 1 1]` float32 tensors)."""
        if isinstance(step, int):
            row: list[Coefficient] = self.table[_checked(step, self.num_steps)].tolist()
        else:
            row = [column[:, None, None] for column in self.device_table[step].unbind(-1)]
        return NoiseLevel(**dict(zip(_LEVEL_FIELDS, row, strict=True)))


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowLevel:
    """One level of a rectified flow: x_t = (1 - t) x0 + t eps; data at t = 0, noise at t = 1."""

    flow_time: Coefficient
    """t in (0, 1]."""
    flow_time_next: Coefficient

    @property
    def time(self) -> Coefficient:
        """Time input of the network: 1000 t."""
        return FLOW_TIME_SCALE * self.flow_time

    @property
    def alpha(self) -> Coefficient:
        """Weight of the data at this level."""
        return 1.0 - self.flow_time

    @property
    def sigma(self) -> Coefficient:
        """Weight of the noise at this level."""
        return self.flow_time

    @property
    def alpha_next(self) -> Coefficient:
        """Weight of the data at the level that sampling goes to."""
        return 1.0 - self.flow_time_next

    @property
    def sigma_next(self) -> Coefficient:
        """Weight of the noise there."""
        return self.flow_time_next


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSchedule:
    """Sampling times of a rectified flow: level i stands at t = (i + 1) / num_steps."""

    num_steps: int

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.num_steps}")

    def at(self, step: int | Int[Tensor, " crystal"]) -> FlowLevel:
        """One level, or one per crystal as `[crystal 1 1]` float32 tensors."""
        if isinstance(step, int):
            index: Coefficient = float(_checked(step, self.num_steps))
        else:
            index = step[:, None, None].float()
        return FlowLevel(flow_time=(index + 1.0) / self.num_steps, flow_time_next=index / self.num_steps)


def linear_betas(num_steps: int) -> Float[Tensor, " step"]:
    """beta from 1e-4 to 0.02 over 1000 steps (Ho et al. 2020); times 1000 / num_steps for other counts."""
    scale = 1000.0 / num_steps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64)
    return betas.clamp(max=MAX_BETA)


def cosine_betas(num_steps: int) -> Float[Tensor, " step"]:
    """beta of alpha_bar = cos^2((t + 0.008) / 1.008 pi / 2) (Nichol & Dhariwal 2021, equation 17)."""
    times = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alphas_cumprod = torch.cos((times + 0.008) / 1.008 * math.pi / 2.0) ** 2
    return (1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)


BETAS: dict[ScheduleKind, Callable[[int], Tensor]] = {
    ScheduleKind.LINEAR: linear_betas,
    ScheduleKind.COSINE: cosine_betas,
}


def ddpm_schedule(kind: ScheduleKind = ScheduleKind.LINEAR, num_steps: int = 1000) -> Schedule:
    """The training schedule of this kind.

    Raises:
        ValueError: when num_steps is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    betas = BETAS[kind](num_steps)
    return _from_betas(betas, torch.arange(num_steps))


def respace(schedule: Schedule, num_steps: int, spacing: Spacing = Spacing.EVEN) -> Schedule:
    """The schedule of `num_steps` of these levels; the network is still told the original ones.

    Raises:
        ValueError: when there are fewer levels than steps, or no stride gives this number of steps.
    """
    total = schedule.num_steps
    if not 1 <= num_steps <= total:
        raise ValueError(f"steps must be from 1 to the schedule's {total}, got {num_steps}")
    if spacing is Spacing.STRIDE:
        kept = stride_levels(total, num_steps)
    elif spacing is Spacing.LOG_SNR:
        kept = _log_snr_levels(schedule, num_steps)
    else:
        kept = even_levels(total, num_steps)
    alphas_cumprod = schedule.alphas_cumprod[kept]
    before = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    shorter = _from_betas(1.0 - alphas_cumprod / before, schedule.timesteps[kept])
    return shorter.to(schedule.device_table.device)


def even_levels(total: int, num_steps: int) -> Int[Tensor, " step"]:
    """`num_steps` levels evenly spaced from the first to the last of `total`; one step is the last alone.

    Integer arithmetic: neighbours are at least one apart, so rounding never joins two of them.
    """
    if num_steps == 1:
        return torch.tensor([total - 1])
    index = torch.arange(num_steps)
    return (2 * index * (total - 1) + (num_steps - 1)) // (2 * (num_steps - 1))


def stride_levels(total: int, num_steps: int) -> Int[Tensor, " step"]:
    """Levels 0, k, 2k, ... for the smallest k that gives exactly `num_steps` ("ddimN").

    Raises:
        ValueError: when no k does; of 999 counts for 1000 levels 937 have none.
    """
    if has_stride(total, num_steps):
        return torch.arange(0, total, -(-total // num_steps))
    raise ValueError(
        f"steps must be a count that some stride over {total} levels gives, got {num_steps}; "
        "use spacing=even, which takes any count"
    )


def has_stride(total: int, num_steps: int) -> bool:
    """True if `stride_levels` has an answer: the smallest stride with at most this many levels has as many."""
    return num_steps > 0 and len(range(0, total, -(-total // num_steps))) == num_steps


def _log_snr_levels(schedule: Schedule, num_steps: int) -> Tensor:
    """The levels nearest to an even spacing of log(alpha / sigma), moved apart where they would coincide."""
    total = schedule.num_steps
    if num_steps == 1:
        return torch.tensor([total - 1])
    log_snr = 0.5 * (schedule.alphas_cumprod.log() - (-schedule.alphas_cumprod).log1p())
    wanted = torch.linspace(float(log_snr[0]), float(log_snr[-1]), num_steps, dtype=torch.float64)
    # log_snr falls, so the search is among its negatives
    right = torch.searchsorted(-log_snr, -wanted).clamp(1, total - 1)
    is_left_nearer = (log_snr[right - 1] - wanted).abs() < (log_snr[right] - wanted).abs()
    nearest = torch.where(is_left_nearer, right - 1, right)
    index = torch.arange(num_steps)
    spread = (nearest - index).cummax(0).values + index
    return torch.minimum(spread, total - num_steps + index)


def _from_betas(betas: Tensor, timesteps: Tensor) -> Schedule:
    """All constants of a schedule (Ho et al. 2020, equations 4 and 7) in float64."""
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    before = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    variance, variance_before = 1.0 - alphas_cumprod, 1.0 - before
    posterior_variance = betas * variance_before / variance
    # beta-tilde is 0 at level 0; the logarithm borrows level 1's value (improved-diffusion does the same)
    positive = torch.cat([posterior_variance[1:2] if len(betas) > 1 else betas, posterior_variance[1:]])
    columns = {
        "time": timesteps.double(),
        "alpha": alphas_cumprod.sqrt(),
        "sigma": variance.sqrt(),
        "alpha_next": before.sqrt(),
        "sigma_next": variance_before.sqrt(),
        "beta": betas,
        "log_beta": betas.log(),
        "posterior_variance": posterior_variance,
        "posterior_log_variance": positive.log(),
        "mean_x0": betas * before.sqrt() / variance,
        "mean_xt": variance_before * (1.0 - betas).sqrt() / variance,
        "is_noisy": (torch.arange(len(betas)) > 0).double(),
    }
    table = torch.stack([columns[name] for name in _LEVEL_FIELDS], dim=-1)
    return Schedule(
        timesteps=timesteps, alphas_cumprod=alphas_cumprod, table=table, device_table=table.float()
    )


def _checked(step: int, num_steps: int) -> int:
    if not 0 <= step < num_steps:
        raise ValueError(f"a level must be from 0 to {num_steps - 1}, got {step}")
    return step


def to_x0(
    prediction: Tensor, state: Tensor, level: NoiseLevel, target: Target
) -> Float[Tensor, "crystal token channel"]:
    """Clean tokens that a prediction implies; v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D)."""
    if target is Target.X0:
        return prediction
    if target is Target.V:
        return level.alpha * state - level.sigma * prediction
    return (state - level.sigma * prediction) / level.alpha


def to_epsilon(
    prediction: Tensor, state: Tensor, level: NoiseLevel, target: Target
) -> Float[Tensor, "crystal token channel"]:
    """The noise that a prediction implies."""
    if target is Target.EPSILON:
        return prediction
    if target is Target.V:
        return level.sigma * state + level.alpha * prediction
    return (state - level.alpha * prediction) / level.sigma


def target_of(latents: Tensor, noise: Tensor, level: NoiseLevel, target: Target) -> Tensor:
    """Target of the network at this level."""
    if target is Target.X0:
        return latents
    if target is Target.V:
        return level.alpha * noise - level.sigma * latents
    return noise
