"""Each algorithm reaches the known optimum of a toy problem: latents that are rewarded for being near a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from latentite.diffusion.noise import CrystalNoise, crystal_seeds
from latentite.diffusion.samplers import SamplerKind
from latentite.diffusion.schedule import FlowSchedule
from latentite.diffusion.steps import Denoise, SamplerSettings
from latentite.generators.latent.chain import SamplingConfig
from latentite.generators.latent.policy import LatentPolicy
from latentite.generators.latent.trajectories import Chain, LatentTrajectories, roll_out
from latentite.generators.policy import Rows
from latentite.rl.config import Algorithm, Keep, PolicyConfig
from latentite.rl.objective import RunningRewards, compute_advantages, kept_crystals, policy_terms

TARGET = torch.tensor([1.0, -0.5])
SIZES = torch.tensor([1, 2]).repeat_interleave(32)
GROUPS = SIZES - 1
MASK = torch.arange(2) < SIZES[:, None]
CHAIN = Chain(
    kind=SamplerKind.FLOW_SDE, schedule=FlowSchedule(num_steps=6), settings=SamplerSettings(eta=0.7)
)


class Toy(nn.Module):
    """The exact velocity of data N(0, 0.25) at first, plus a learned shift for each time."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(7, 2))

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        t = time[:, None, None] / 1000.0
        variance = 0.25 * (1.0 - t) ** 2 + t**2
        shift = self.shift[(6 * t).round().long().flatten()]
        return (t - 0.25 * (1.0 - t)) / variance * tokens + shift[:, None]


class ToyPolicy(LatentPolicy):
    """The policy of latent diffusion with another network."""

    def denoise(self, network: nn.Module, values: dict[str, Tensor], mask: Tensor) -> Denoise:
        return network


def policy_of(toy: Toy) -> ToyPolicy:
    return ToyPolicy(network=toy, reference=Toy(), chain=CHAIN, sampling=SamplingConfig())


def reward(trajectories: LatentTrajectories) -> Tensor:
    """Minus the mean squared distance of a crystal's tokens from the target; 0 is the optimum of the mean."""
    squares = ((trajectories.latents - TARGET) ** 2).sum(-1) * trajectories.mask
    return -squares.sum(1) / trajectories.num_atoms


def rolled(toy: Toy, run_seed: int) -> LatentTrajectories:
    seeds = crystal_seeds(run_seed, range(len(SIZES)))
    noise = CrystalNoise(seeds, num_atoms=SIZES, num_channels=2)
    return roll_out(CHAIN, toy, noise.start(), MASK, noise)


def train(config: PolicyConfig, num_rollouts: int, lr: float, *, delay: int = 0) -> Toy:
    """Train; with a delay each rollout is learnt from so many rollouts after it was drawn."""
    toy, running = Toy(), RunningRewards.empty()
    policy = policy_of(toy)
    optimizer = torch.optim.Adam(toy.parameters(), lr=lr)
    waiting: list[LatentTrajectories] = []
    for run_seed in range(num_rollouts):
        waiting.append(rolled(toy, run_seed))
        if len(waiting) <= delay:
            continue
        trajectories = waiting.pop(0)
        rewards = reward(trajectories)
        running = running.updated(rewards, config.running_decay)
        advantages = compute_advantages(rewards, GROUPS, config, running)
        kept = kept_crystals(rewards, GROUPS, config).nonzero().flatten()
        rows = Rows(trajectory=kept, step=torch.arange(CHAIN.num_decisions).expand(len(kept), -1))
        for epoch in range(config.num_inner_epochs):
            is_on_policy = torch.full((len(kept),), epoch == 0 and delay == 0)
            decisions = policy.evaluate(trajectories, rows, is_on_policy=is_on_policy, with_reference=True)
            terms = policy_terms(decisions, advantages[kept], config)
            optimizer.zero_grad()
            terms.total().backward()
            optimizer.step()
    return toy


def mean_latent(toy: Toy) -> Tensor:
    trajectories = rolled(toy, 10_000)
    return trajectories.latents[trajectories.mask].mean(0)


LEARN: dict[Algorithm, Callable[[PolicyConfig], PolicyConfig]] = {
    Algorithm.GRPO: lambda config: replace(config, num_inner_epochs=2),
    Algorithm.PPO: lambda config: replace(config, num_inner_epochs=2),
    Algorithm.REINFORCE: lambda config: config,
}


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_each_algorithm_reaches_the_optimum(algorithm: Algorithm) -> None:
    config = PolicyConfig(algorithm=algorithm, num_group_samples=32, kl_weight=0.0, clip_ratio=0.2)
    toy = train(LEARN[algorithm](config), 120, 0.03)
    assert (mean_latent(Toy()) - TARGET).norm() > 0.9, "it starts somewhere else"
    assert (mean_latent(toy) - TARGET).norm() < 0.15


@pytest.mark.parametrize("algorithm", [Algorithm.GRPO, Algorithm.PPO])
def test_rollouts_of_the_policy_before_reach_the_optimum_too(algorithm: Algorithm) -> None:
    """As with `reward_workers`: ratios start from the policy that drew."""
    config = PolicyConfig(algorithm=algorithm, num_group_samples=32, kl_weight=0.0, clip_ratio=0.2)
    toy = train(LEARN[algorithm](config), 120, 0.03, delay=1)
    assert (mean_latent(toy) - TARGET).norm() < 0.15


@pytest.mark.parametrize("keep", list(Keep))
def test_the_kept_of_many_lead_to_the_optimum_too(keep: Keep) -> None:
    config = PolicyConfig(num_group_samples=8, best_of=4, keep=keep, kl_weight=0.0, clip_ratio=0.2)
    toy = train(config, 120, 0.03)
    assert (mean_latent(toy) - TARGET).norm() < 0.15


def test_a_strong_reference_holds_the_policy_back() -> None:
    config = PolicyConfig(num_group_samples=32, kl_weight=0.0, clip_ratio=0.2)
    free, held = (mean_latent(train(replace(config, kl_weight=w), 40, 0.03)) for w in (0.0, 100.0))
    start = mean_latent(Toy())
    assert (held - start).norm() < 0.2 * (free - start).norm()
