"""The chain as a decision process: one policy, whether it is asked step by step or all at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentite.diffusion.noise import CrystalNoise
from latentite.diffusion.samplers import SamplerKind
from latentite.diffusion.schedule import FlowSchedule, ddpm_schedule, respace
from latentite.diffusion.steps import Denoise, SamplerSettings, Variance
from latentite.generators.latent.trajectories import Chain, LatentTrajectories, roll_out

CHANNELS = 3
SIZES = torch.tensor([1, 4, 2, 4, 3])


def chain(kind: SamplerKind, steps: int = 8, variance: Variance = Variance.FIXED_SMALL) -> Chain:
    schedule = (
        FlowSchedule(num_steps=steps) if kind is SamplerKind.FLOW_SDE else respace(ddpm_schedule(), steps)
    )
    return Chain(kind=kind, schedule=schedule, settings=SamplerSettings(variance=variance, eta=0.8))


CHAINS = [
    chain(SamplerKind.DDPM),
    chain(SamplerKind.DDPM, variance=Variance.FIXED_LARGE),
    chain(SamplerKind.DDPM, variance=Variance.LEARNED_RANGE),
    chain(SamplerKind.DDIM),
    chain(SamplerKind.FLOW_SDE),
]


def denoiser(mask: Tensor, outputs: int = 2 * CHANNELS) -> Denoise:
    """A network that mixes the tokens of a crystal and knows the time; nonsense in padding."""
    weights = torch.randn(CHANNELS, outputs, generator=torch.Generator().manual_seed(0))

    def denoise(tokens: Tensor, time: Tensor) -> Tensor:
        mean = (tokens * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return ((tokens + mean + time[:, None, None] / 1000.0) @ weights).tanh() + 7.0 * ~mask[..., None]

    return denoise


def walk(
    one: Chain, sizes: Tensor = SIZES, seeds: range | None = None, width: int | None = None
) -> LatentTrajectories:
    outputs = CHANNELS if one.kind is SamplerKind.FLOW_SDE else 2 * CHANNELS
    noise = CrystalNoise(
        list(seeds or range(len(sizes))), num_atoms=sizes, num_channels=CHANNELS, num_tokens=width
    )
    mask = torch.arange(noise.num_tokens) < sizes[:, None]
    return roll_out(one, denoiser(mask, outputs), noise.start(), mask, noise)


@pytest.mark.parametrize("one", CHAINS, ids=lambda c: f"{c.kind}-{c.settings.variance}")
def test_log_probabilities_are_those_of_torch_distributions(one: Chain) -> None:
    found = walk(one)
    assert found.states.shape == (one.num_decisions + 1, len(SIZES), 4, CHANNELS)
    for crystal, size in enumerate(SIZES.tolist()):
        normal = torch.distributions.Normal(
            found.means[:, crystal, :size].double(), found.stds[:, crystal, :size].double()
        )
        wanted = normal.log_prob(found.states[1:, crystal, :size].double()).sum((1, 2))
        torch.testing.assert_close(found.log_probs[:, crystal].double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("one", CHAINS, ids=lambda c: f"{c.kind}-{c.settings.variance}")
def test_the_policy_asked_for_all_rows_at_once_is_the_one_that_walked(one: Chain) -> None:
    found = walk(one)
    step, crystal = (
        index.flatten()
        for index in torch.meshgrid(torch.arange(one.num_decisions), torch.arange(5), indexing="ij")
    )
    shuffled = torch.randperm(len(step), generator=torch.Generator().manual_seed(1))
    rows = found.transitions(step[shuffled], crystal[shuffled])
    outputs = CHANNELS if one.kind is SamplerKind.FLOW_SDE else 2 * CHANNELS
    again = one.moments(denoiser(rows.mask, outputs), rows.states, rows.levels, rows.mask)
    torch.testing.assert_close(again.mean, rows.old.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.as_tensor(again.std), torch.as_tensor(rows.old.std), rtol=1e-5, atol=1e-6
    )


def test_a_crystal_does_not_depend_on_its_batch_or_padding() -> None:
    one = chain(SamplerKind.DDIM)
    together = walk(one)
    for crystal in range(5):
        alone = walk(one, SIZES[crystal : crystal + 1], range(crystal, crystal + 1), width=6)
        torch.testing.assert_close(
            alone.log_probs[:, 0], together.log_probs[:, crystal], rtol=1e-4, atol=1e-4
        )


def test_rollouts_are_joined_in_the_order_that_is_asked_for() -> None:
    one = chain(SamplerKind.DDIM)
    whole = walk(one)
    first, second = torch.tensor([1, 3]), torch.tensor([0, 2, 4])
    parts = [walk_of(one, members) for members in (first, second)]
    joined = LatentTrajectories.concatenate(parts, torch.cat([first, second]).argsort())
    assert joined.mask.equal(whole.mask)
    torch.testing.assert_close(joined.latents, whole.latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined.states, whole.states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(joined.log_probs, whole.log_probs, rtol=1e-4, atol=1e-4)


def walk_of(one: Chain, members: Tensor) -> LatentTrajectories:
    sizes = SIZES[members]
    noise = CrystalNoise(members.tolist(), num_atoms=sizes, num_channels=CHANNELS)
    mask = torch.arange(noise.num_tokens) < sizes[:, None]
    return roll_out(one, denoiser(mask), noise.start(), mask, noise)


def test_chains_without_probabilities_are_refused() -> None:
    schedule = respace(ddpm_schedule(), 8)
    with pytest.raises(
        ValueError, match=r"eta must be above 0 for reinforcement learning with ddim .* got 0"
    ):
        Chain(kind=SamplerKind.DDIM, schedule=schedule, settings=SamplerSettings(eta=0.0))
    with pytest.raises(ValueError, match=r"sampler must be one with noise .*ddpm, ddim, flow_sde.* got heun"):
        Chain(kind=SamplerKind.HEUN, schedule=FlowSchedule(num_steps=4), settings=SamplerSettings())
    with pytest.raises(ValueError, match="sampler flow_sde needs a FlowSchedule, got a Schedule"):
        Chain(kind=SamplerKind.FLOW_SDE, schedule=schedule, settings=SamplerSettings())
    with pytest.raises(ValueError, match="steps must be at least 2"):
        Chain(kind=SamplerKind.FLOW_SDE, schedule=FlowSchedule(num_steps=1), settings=SamplerSettings())
