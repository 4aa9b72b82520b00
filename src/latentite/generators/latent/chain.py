"""The chain from noise to crystals: jobs in, crystals out, on whatever device the network is.

Crystal i of a run owns a seed that is a function of (run seed, i, attempt); its noise, its number of atoms and what
is asked of it depend on nothing else. So neither the batch size nor the order nor what else is sampled matters:
exactly for the noise and the plan, and within rounding for the network, whose matrix products may be summed in
another order for another batch (tests hold it to 1e-4 Å with the same elements; the same call on the same machine
gives the same bits).
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.diffusion.guidance import guided, unconditional
from latentite.diffusion.noise import CrystalNoise
from latentite.diffusion.samplers import STEPS, AnySchedule, SamplerKind, sample
from latentite.diffusion.schedule import FlowSchedule, Schedule, Spacing, has_stride, respace
from latentite.diffusion.steps import Denoise, SamplerSettings, Variance
from latentite.generators.elements import choose_elements
from latentite.generators.jobs import Jobs
from latentite.generators.latent.start import Start, StartRows
from latentite.generators.protocol import Advance, Drawn
from latentite.generators.told import told
from latentite.nn.conditions import Conditioning
from latentite.nn.denoiser import Denoiser, OutputLayout
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.transformer import TokenLayout
from latentite.nn.vae import DecodedCrystals, LatentBatch
from latentite.objectives.ldm import Compatibility, DiffusionConfig

MAX_PADDING = 0.045
"""Share of a run's tokens that may be padding."""


def size_batches(
    num_atoms: Int[Tensor, " crystal"], batch_size: int, *, max_padding: float = MAX_PADDING
) -> list[Int[Tensor, " member"]]:
    """Positions of the crystals of each batch.

    Crystals of one size first make batches of their own. Then those that are not full are joined, the cheapest
    pair of neighbouring sizes first, as long as padding stays below `max_padding` of all tokens: a few larger
    batches are much faster than many small ones.

    Args:
        num_atoms: of each crystal.
        batch_size: most crystals in a batch.
        max_padding: share of all tokens; 0 keeps every batch to one size.
    """
    by_size = [(num_atoms == size).nonzero().flatten() for size in num_atoms.unique().tolist()]
    batches = [part for members in by_size for part in members.split(batch_size)]
    full = [part for part in batches if len(part) == batch_size]
    rest = [part for part in batches if len(part) < batch_size]
    largest = [int(num_atoms[part[0]]) for part in rest]
    num_tokens, padding = int(num_atoms.sum()), 0
    while len(rest) > 1:
        costs = [
            (len(rest[i]) * (largest[i + 1] - largest[i]), i)
            for i in range(len(rest) - 1)
            if len(rest[i]) + len(rest[i + 1]) <= batch_size
        ]
        if not costs:
            break
        cost, i = min(costs)
        if padding + cost > max_padding * (num_tokens + padding + cost):
            break
        padding += cost
        rest[i : i + 2] = [torch.cat(rest[i : i + 2])]
        largest[i : i + 2] = [largest[i + 1]]
    return full + rest


class SamplingPrecision(StrEnum):
    """Numbers that the denoiser computes with; the steps between its calls and the decoder stay in fp32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


DEFAULT_STEPS = {kind: 25 if kind is SamplerKind.HEUN else 50 for kind in SamplerKind}
"""By the table of docs/log.md: Heun's 25 steps end where its 50 do in nine crystals of ten, and are as valid."""

SPACINGS = {kind: Spacing.LOG_SNR if kind is SamplerKind.DPM_SOLVER else Spacing.EVEN for kind in SamplerKind}
"""DPM-Solver++ assumes even steps of the logarithm of the signal-to-noise ratio (Lu et al. 2022, appendix)."""

DTYPES = {SamplingPrecision.BF16: torch.bfloat16, SamplingPrecision.FP16: torch.float16}


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    """Settings of a walk from noise to crystals."""

    sampler: SamplerKind | None = None
    """null: DDIM for a DDPM network, Heun's method for a flow's."""
    steps: int | None = None
    """null: those of `DEFAULT_STEPS`."""
    eta: float = 1.0
    """Noise of `ddim` and `flow_sde`."""
    noise_scale: float = 1.0
    """Of `flow_sde`: times its noise; below 1 likelier crystals, and fewer kinds of them."""
    guidance: float | dict[str, float] = 2.0
    """s of u + s (c - u): one for all conditions together, or one for each. Without conditions it does nothing."""
    batch_size: int = 256
    """Most crystals in one pass."""
    precision: SamplingPrecision = SamplingPrecision.FP32

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        scales = self.guidance.values() if isinstance(self.guidance, dict) else [self.guidance]
        if not all(math.isfinite(scale) for scale in scales):
            raise ValueError(f"guidance must be finite, got {self.guidance}")


def sampling_schedule(diffusion: DiffusionConfig, config: SamplingConfig) -> tuple[SamplerKind, AnySchedule]:
    """The method and the levels that it walks.

    Raises:
        ValueError: when there are more steps than levels, the method is for the other kind of network, or has no noise
            to scale.
    """
    training = diffusion.build_schedule()
    kind = config.sampler or (SamplerKind.HEUN if training is None else SamplerKind.DDIM)
    wanted = FlowSchedule if training is None else Schedule
    fitting = [name for name, (walked, _) in STEPS.items() if walked is wanted]
    if kind not in fitting:
        raise ValueError(
            f"sampler must be {' or '.join(fitting)} for this {diffusion.kind} model, got {kind}"
        )
    if config.noise_scale != 1.0 and kind is not SamplerKind.FLOW_SDE:
        raise ValueError(
            f"noise_scale must be 1 for sampler={kind}; only flow_sde has it, got {config.noise_scale}"
        )
    steps = config.steps or DEFAULT_STEPS[kind]
    if training is None:
        return kind, FlowSchedule(num_steps=steps)
    steps = min(steps, training.num_steps) if config.steps is None else steps
    return kind, respace(training, steps, spacing_of(diffusion, kind, steps))


def spacing_of(diffusion: DiffusionConfig, kind: SamplerKind, steps: int) -> Spacing:
    """The spacing of the levels that a method walks in this number of steps."""
    is_strided = diffusion.compatibility is Compatibility.CHEMELEON2 and kind is SamplerKind.DDIM
    if is_strided and has_stride(diffusion.num_steps, steps):
        return Spacing.STRIDE
    return SPACINGS[kind]


def sampler_settings(diffusion: DiffusionConfig, config: SamplingConfig) -> SamplerSettings:
    """The sampler's settings for this network.

    Raises:
        ValueError: for an eta or a noise scale that is no amount of noise.
    """
    return SamplerSettings(
        target=diffusion.target,
        variance=diffusion.variance if diffusion.learn_variance else Variance.FIXED_SMALL,
        eta=config.eta,
        noise_scale=config.noise_scale,
    )


def max_padding(network: LatentDiffusion) -> float:
    """Share of a batch's tokens that may be padding: none where the network's output depends on it."""
    return 0.0 if network.config.denoiser.output_layout is OutputLayout.CHEMELEON2 else MAX_PADDING


@torch.no_grad()
def sample_jobs(
    network: LatentDiffusion,
    diffusion: DiffusionConfig,
    jobs: Jobs,
    *,
    seed: int,
    config: SamplingConfig | None = None,
    start: Start | None = None,
    trajectory: bool = False,
    advance: Advance = lambda count: None,
) -> Drawn:
    """Sample one crystal for each job, on the network's device.

    Args:
        network: in evaluation mode.
        diffusion: the process that its denoiser was trained on.
        jobs: see `sizes.plan_jobs`; what they ask is taken as possible (`asks.build_asks` checks it).
        seed: of the run.
        config: sampler, steps, guidance, batch size, precision.
        start: structures to start from, with what is kept of them; the asks say which (`Ask.start`).
        trajectory: decode every state on the way.
        advance: told after each batch how many crystals more are sampled.

    Raises:
        ValueError: when the sampler does not fit the network.
    """
    config = config or SamplingConfig()
    kind, schedule = sampling_schedule(diffusion, config)
    settings = sampler_settings(diffusion, config)
    chain = _Chain(
        network=network, kind=kind, schedule=schedule, settings=settings, config=config, start=start
    )
    if not len(jobs):
        empty = CrystalBatch.from_arrays([])
        return Drawn(crystals=empty, trajectory=[empty] if trajectory else None)
    batches = size_batches(jobs.num_atoms, config.batch_size, max_padding=max_padding(network))
    walks = []
    for members in batches:
        walks.append(chain.walk(jobs.select(members), seed, trajectory=trajectory))
        advance(len(members))
    order = torch.cat(batches).argsort()
    states = [CrystalBatch.concatenate(list(parts)).select(order) for parts in zip(*walks, strict=True)]
    crystals = states[-1]
    return Drawn(
        crystals=crystals,
        trajectory=states if trajectory else None,
        fixed_deviation=None if start is None else start.deviation(jobs, crystals),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chain:
    """Everything that all batches share."""

    network: LatentDiffusion
    kind: SamplerKind
    schedule: AnySchedule
    settings: SamplerSettings
    config: SamplingConfig
    start: Start | None

    def walk(self, jobs: Jobs, seed: int, *, trajectory: bool) -> list[CrystalBatch]:
        """One batch; its last state, or all of them."""
        device = self.network.latent_mean.device
        mask = LatentBatch.token_mask(jobs.num_atoms).to(device)
        noise = CrystalNoise(
            jobs.seeds(seed),
            num_atoms=jobs.num_atoms,
            num_channels=self.network.latent_mean.shape[0],
            device=device,
        )
        begin = None if self.start is None else self.start.rows(jobs, self.schedule, noise)
        walked = sample(
            self.kind,
            denoise_of(self.network, jobs, mask, self.config),
            noise.start() if begin is None else begin.state,
            mask,
            schedule=self.schedule,
            noise=noise,
            settings=self.settings,
            start=None if begin is None else begin.level,
            known=None if begin is None else begin.known,
            trajectory=trajectory,
        )
        states = [walked.latents] if walked.states is None else list(walked.states)
        return [self._decode(state, mask, jobs, begin) for state in states]

    def _decode(
        self, tokens: Tensor, mask: Bool[Tensor, "crystal token"], jobs: Jobs, begin: StartRows | None
    ) -> CrystalBatch:
        """Crystals that latents stand for, with the elements that the jobs ask for, on the CPU."""
        latents = LatentBatch(tokens=tokens, mask=mask)
        if not self.network.config.vae.atom_type_predict:
            numbers = given_elements(jobs).to(tokens.device)
            return self.network.decode(latents, numbers).to_crystals(numbers).to("cpu")
        decoded: DecodedCrystals = self.network.decode(latents)
        fixed = None if begin is None else begin.fixed_numbers
        asks = [jobs.asked[ask] for ask in jobs.asks.unique().tolist()]
        if fixed is None and all(ask.composition is None and ask.elements is None for ask in asks):
            return decoded.to_crystals().to("cpu")
        assert decoded.element_logits is not None
        numbers = choose_elements(decoded.element_logits, jobs, fixed)
        return decoded.to_crystals(numbers.to(tokens.device)).to("cpu")


def given_elements(jobs: Jobs) -> Tensor:
    """Atomic numbers `[atom]` of jobs for a structure-prediction model, which must be told them.

    Raises:
        ValueError: for a job that asks for no composition.
    """
    compositions = [jobs.asked[ask].composition for ask in jobs.asks.tolist()]
    if any(composition is None for composition in compositions):
        raise ValueError("formula must be given: this model predicts structures, not elements")
    return torch.tensor([z for composition in compositions for z in composition or ()])


def denoise_of(
    network: LatentDiffusion, jobs: Jobs, mask: Bool[Tensor, "crystal token"], config: SamplingConfig
) -> Denoise:
    """The network under guidance, told what each job asks. One pass where every scale is 0, or the only one is 1.

    A number of atoms is known of every job, so a model that has it as a condition is told it, unless guidance
    is 0. With a scale for each condition, those that follow from the job and are not named have scale 1.
    """
    module = network.condition_module
    values, present = ({}, {}) if module is None else told(module, jobs)
    return denoise_told(network, values, present, mask, config)


def denoise_told(
    network: LatentDiffusion,
    values: dict[str, Tensor],
    present: dict[str, Tensor],
    mask: Bool[Tensor, "crystal token"],
    config: SamplingConfig,
) -> Denoise:
    """The network under guidance, told these values of its conditions; `present` masks crystals that give them."""
    call = _Call(denoiser=network.denoiser, precision=config.precision)
    module = network.condition_module
    if module is None:
        return unconditional(call, mask)
    count = len(mask)
    absent = module.absent(count)
    if isinstance(config.guidance, dict):
        names = list(values)
        scales = [config.guidance.get(name, 1.0) for name in names]
        groups = [[name] for name in names]
    else:
        scales, groups = [config.guidance], [list(values)]
    conditions = [
        module({name: values[name] for name in group}, present, num_crystals=count) if group else absent
        for group in groups
    ]
    if not values:
        conditions, scales = [absent], [0.0]
    return guided(call, mask, absent=absent, conditions=conditions, scales=scales)


@dataclass(kw_only=True, slots=True)
class _Call:
    """The denoiser as guidance calls it, in the chosen precision; a mask's layout is made once, not at each step."""

    denoiser: Denoiser
    precision: SamplingPrecision
    layouts: dict[int, TokenLayout] = field(default_factory=dict)

    def __call__(self, tokens: Tensor, time: Tensor, mask: Tensor, condition: Conditioning | None) -> Tensor:
        layout = self.layouts.get(len(mask))
        if layout is None:
            layout = self.layouts[len(mask)] = self.denoiser.layout(mask)
        dtype = DTYPES.get(self.precision)
        with nullcontext() if dtype is None else torch.autocast(tokens.device.type, dtype=dtype):
            return self.denoiser(tokens, time, mask, condition, layout=layout)
