"""Samplers: from noise (or from a noised start) to clean latents in any number of steps.

`sample` is a free function of a `denoise` callable, a schedule and a noise callable: no model class, no
files, no hidden generator. One loop serves every method; what differs is the step (`steps.py`).
Sampling calls it, and reinforcement learning with `record=True`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.diffusion.schedule import (
    FLOW_TIME_SCALE,
    FlowLevel,
    FlowSchedule,
    NoiseLevel,
    Schedule,
    to_x0,
)
from latentite.diffusion.steps import (
    Denoise,
    Moments,
    SamplerSettings,
    ddim_moments,
    ddpm_moments,
    dpm_solver_mean,
    euler_moments,
    flow_sde_moments,
    split_output,
    transition_log_prob,
)

Noise = Callable[[int], Tensor]
"""Sampling step from 0 -> standard normal noise `[crystal token channel]`; `noise.CrystalNoise` is one."""

AnySchedule = Schedule | FlowSchedule


class SamplerKind(StrEnum):
    """The methods: three for DDPM networks, three for flow networks."""

    DDPM = "ddpm"
    DDIM = "ddim"
    DPM_SOLVER = "dpm_solver"
    """DPM-Solver++(2M), deterministic, second order, one evaluation a step."""
    EULER = "euler"
    HEUN = "heun"
    """Second order, two evaluations a step; the last step is Euler's."""
    FLOW_SDE = "flow_sde"
    """Euler-Maruyama, stochastic: for reinforcement learning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """Tokens that are given: at every level they are replaced by their own noised values (inpainting)."""

    latents: Float[Tensor, "crystal token channel"]
    mask: Bool[Tensor, "crystal token"]
    """True where the token is given."""
    noise: Noise
    """Step -> noise put on them; `CrystalNoise.known`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """Result of a sampler."""

    latents: Float[Tensor, "crystal token channel"]
    """Clean latents; padding is exactly zero."""
    levels: Int[Tensor, " step"]
    """Index in the schedule of the level that each step started from."""
    states: Float[Tensor, "state crystal token channel"] | None = None
    """Every state from the start to `latents`: one more than steps. With `trajectory` or `record`."""
    means: Float[Tensor, "step crystal token channel"] | None = None
    """Mean of each transition. With `record`, as the next two."""
    stds: Float[Tensor, "step crystal token channel"] | None = None
    """Its standard deviation; 0 where a step adds no noise, and in padding."""
    log_probs: Float[Tensor, "step crystal"] | None = None
    """log-probability of each transition, summed over the tokens that were drawn (known ones excluded)."""


Step = Callable[["Walk", Tensor, int], Moments]


@dataclass(kw_only=True, slots=True)
class Walk:
    """Inputs that all steps of one sampling run share."""

    denoise: Denoise
    schedule: AnySchedule
    settings: SamplerSettings
    mask: Bool[Tensor, "crystal token"]
    last: tuple[Tensor, float] | None = None
    """Multistep history: x0 of the step before and its lambda."""

    def output(self, state: Tensor, time: float) -> Tensor:
        """The network's output with every crystal at this time; zero in padding, whatever it says there."""
        times = torch.full((state.shape[0],), time, dtype=torch.float32, device=state.device)
        return _replace_padding(self.denoise(state, times).to(state.dtype), self.mask)

    def noise_level(self, step: int) -> NoiseLevel:
        """The DDPM constants of a level."""
        level = self.schedule.at(step)
        assert isinstance(level, NoiseLevel)
        return level

    def flow_level(self, step: int) -> FlowLevel:
        """The times of a flow level."""
        level = self.schedule.at(step)
        assert isinstance(level, FlowLevel)
        return level


def ddpm(walk: Walk, state: Tensor, step: int) -> Moments:
    """Ancestral sampling."""
    level = walk.noise_level(step)
    return ddpm_moments(walk.output(state, float(level.time)), state, level, walk.settings)


def ddim(walk: Walk, state: Tensor, step: int) -> Moments:
    """DDIM with `settings.eta`."""
    level = walk.noise_level(step)
    return ddim_moments(walk.output(state, float(level.time)), state, level, walk.settings)


def dpm_solver(walk: Walk, state: Tensor, step: int) -> Moments:
    """DPM-Solver++(2M)."""
    level = walk.noise_level(step)
    prediction, _ = split_output(walk.output(state, float(level.time)), state.shape[-1])
    x0 = to_x0(prediction, state, level, walk.settings.target)
    mean = dpm_solver_mean(x0, walk.last, state, level)
    walk.last = (x0, level.log_alpha_over_sigma)
    return Moments(mean=mean, std=0.0)


def euler(walk: Walk, state: Tensor, step: int) -> Moments:
    """Euler for flows."""
    level = walk.flow_level(step)
    return euler_moments(walk.output(state, float(level.time)), state, level, walk.settings)


def heun(walk: Walk, state: Tensor, step: int) -> Moments:
    """Heun's trapezoidal step; on the way to t = 0, where networks are hardly trained, Euler's."""
    level = walk.flow_level(step)
    velocity = walk.output(state, float(level.time))
    predicted = euler_moments(velocity, state, level, walk.settings)
    if level.flow_time_next == 0.0:
        return predicted
    corrected = walk.output(predicted.mean, FLOW_TIME_SCALE * float(level.flow_time_next))
    return euler_moments(0.5 * (velocity + corrected), state, level, walk.settings)


def flow_sde(walk: Walk, state: Tensor, step: int) -> Moments:
    """Euler-Maruyama on an SDE with the flow's marginals."""
    level = walk.flow_level(step)
    return flow_sde_moments(walk.output(state, float(level.time)), state, level, walk.settings)


STEPS: dict[SamplerKind, tuple[type[AnySchedule], Step]] = {
    SamplerKind.DDPM: (Schedule, ddpm),
    SamplerKind.DDIM: (Schedule, ddim),
    SamplerKind.DPM_SOLVER: (Schedule, dpm_solver),
    SamplerKind.EULER: (FlowSchedule, euler),
    SamplerKind.HEUN: (FlowSchedule, heun),
    SamplerKind.FLOW_SDE: (FlowSchedule, flow_sde),
}
"""Each method with the kind of schedule it walks."""


@torch.no_grad()
def sample(
    kind: SamplerKind,
    denoise: Denoise,
    start_state: Float[Tensor, "crystal token channel"],
    mask: Bool[Tensor, "crystal token"],
    *,
    schedule: AnySchedule,
    noise: Noise,
    settings: SamplerSettings | None = None,
    start: int | None = None,
    known: Known | None = None,
    trajectory: bool = False,
    record: bool = False,
) -> Sampled:
    """Sample clean latents.

    Args:
        kind: the method.
        denoise: (tokens, time) -> raw network output; called once a step (twice by Heun's).
        start_state: x_T, or latents noised to level `start` (`noised`).
        mask: True where a token is real.
        schedule: every level of it from `start` down to 0 is one step.
        noise: step from 0 -> standard normals; deterministic methods never call it.
        settings: the network's target and variance, and eta.
        start: level of `start_state` (`start_level`); the noisiest by default.
        known: given tokens; the result holds them exactly.
        trajectory: keep every state.
        record: keep states, means, stds and log-probabilities as well.

    Raises:
        ValueError: when the method and the schedule do not fit, or `start` is no level.
    """
    wanted, take_step = STEPS[kind]
    if not isinstance(schedule, wanted):
        raise ValueError(f"sampler {kind} needs a {wanted.__name__}, got a {type(schedule).__name__}")
    first = schedule.num_steps - 1 if start is None else start
    walk = Walk(denoise=denoise, schedule=schedule, settings=settings or SamplerSettings(), mask=mask)
    drawn = mask if known is None else mask & ~known.mask
    state = _replace_padding(start_state, mask)
    if known is not None:
        state = _replace_known(state, known, schedule, first, 0, mask)
    kept = _Recorder(states=[state] if trajectory or record else None, is_full=record)
    for count, step in enumerate(range(first, -1, -1)):
        moments = take_step(walk, state, step)
        if isinstance(moments.std, float) and moments.std == 0.0:
            drawn_state = moments.mean
        else:
            drawn_state = moments.mean + moments.std * noise(count)
        state = _replace_padding(drawn_state, mask)
        if known is not None:
            state = _replace_known(state, known, schedule, step - 1, count + 1, mask)
        kept.add(state, moments, mask, drawn)
    return kept.result(state, torch.arange(first, -1, -1))


def start_level(schedule: AnySchedule, strength: float) -> int:
    """The level from which `strength` of the schedule's steps are taken (at least one).

    Raises:
        ValueError: when strength is not in (0, 1].
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    return max(1, round(strength * schedule.num_steps)) - 1


def noised(
    latents: Float[Tensor, "crystal token channel"],
    noise: Float[Tensor, "crystal token channel"],
    schedule: AnySchedule,
    level: int,
) -> Float[Tensor, "crystal token channel"]:
    """Latents with the noise of a level; level -1 is the data themselves."""
    if level == -1:
        return latents
    constants = schedule.at(level)
    return constants.alpha * latents + constants.sigma * noise


def _replace_padding(state: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[..., None], state, 0.0)


def _replace_known(
    state: Tensor, known: Known, schedule: AnySchedule, level: int, count: int, mask: Tensor
) -> Tensor:
    given = known.latents if level == -1 else noised(known.latents, known.noise(count), schedule, level)
    return torch.where((known.mask & mask)[..., None], given, state)


class _Recorder:
    """Collects what was asked for along the way."""

    def __init__(self, *, states: list[Tensor] | None, is_full: bool) -> None:
        self._states = states
        self._is_full = is_full
        self._means: list[Tensor] = []
        self._stds: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def add(self, state: Tensor, moments: Moments, mask: Tensor, drawn: Tensor) -> None:
        """One transition."""
        if self._states is not None:
            self._states.append(state)
        if self._is_full:
            std = torch.as_tensor(moments.std, dtype=state.dtype, device=state.device).expand(state.shape)
            self._means.append(_replace_padding(moments.mean, mask))
            self._stds.append(_replace_padding(std, mask))
            self._log_probs.append(transition_log_prob(state, moments, drawn))

    def result(self, latents: Tensor, levels: Tensor) -> Sampled:
        """Everything stacked."""
        return Sampled(
            latents=latents,
            levels=levels,
            states=None if self._states is None else torch.stack(self._states),
            means=torch.stack(self._means) if self._is_full else None,
            stds=torch.stack(self._stds) if self._is_full else None,
            log_probs=torch.stack(self._log_probs) if self._is_full else None,
        )
