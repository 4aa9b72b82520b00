"""Replay of the best: what the buffer keeps and for how long, and what of it is trained on again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentite.diffusion.samplers import SamplerKind
from latentite.diffusion.schedule import FlowSchedule
from latentite.diffusion.steps import SamplerSettings
from latentite.generators.latent.chain import SamplingConfig
from latentite.generators.latent.policy import LatentPolicy
from latentite.generators.latent.trajectories import Chain, LatentTrajectories
from latentite.rl.config import Algorithm, PolicyConfig, ReplayConfig
from latentite.rl.objective import RunningRewards
from latentite.rl.rollout import ReplayBuffer


def policy_of(steps: int) -> LatentPolicy:
    chain = Chain(
        kind=SamplerKind.FLOW_SDE, schedule=FlowSchedule(num_steps=steps), settings=SamplerSettings()
    )
    network = nn.Identity()
    return LatentPolicy(network=network, reference=network, chain=chain, sampling=SamplingConfig())


def walks(first: int, count: int, x: list[int], steps: int = 2) -> LatentTrajectories:
    """Crystals of one atom whose every number is their own."""
    own = torch.arange(first, first + count, dtype=torch.float32)
    each = own[None, :, None, None].expand(steps, count, 1, 1)
    return LatentTrajectories(
        states=own[None, :, None, None].expand(steps + 1, count, 1, 1).clone(),
        means=each.clone(),
        stds=each.clone(),
        log_probs=own.expand(steps, count).clone(),
        levels=torch.arange(steps),
        latents=each[0].clone(),
        mask=torch.ones(count, 1, dtype=torch.bool),
        values={"x": torch.tensor(x)},
    )


def test_the_buffer_keeps_the_best_of_each_kind_for_a_while() -> None:
    buffer = ReplayBuffer(ReplayConfig(size=3, max_age=1))
    buffer.add(
        walks(0, 5, [0, 1, 2, 3, 4]), torch.tensor([1.0, 5.0, 3.0, 4.0, 0.0]), ["A", "A", "B", "B", "C"]
    )
    assert buffer.memories is not None
    assert buffer.memories.rewards.tolist() == [5.0, 4.0, 0.0], "the best A, the best B, C"
    assert buffer.memories.trajectories.latents.flatten().tolist() == [1.0, 3.0, 4.0]
    assert buffer.memories.trajectories.values["x"].tolist() == [1, 3, 4]
    buffer.add(walks(10, 2, [10, 11]), torch.tensor([6.0, 2.0]), ["B", "D"])
    assert buffer.memories.names == ["B", "A", "D"], "a better B, and no room for C"
    assert buffer.memories.trajectories.states[:, :, 0, 0].tolist() == [[10.0, 1.0, 11.0]] * 3
    buffer.add(walks(20, 1, [20]), torch.tensor([0.5]), ["E"])
    assert buffer.memories.names == ["B", "D", "E"], "A is too old"
    again = ReplayBuffer(ReplayConfig(size=3, max_age=1))
    again.restore(buffer.state(), policy_of(3))
    assert again.memories is not None
    assert again.memories.names == buffer.memories.names
    assert again.memories.rewards.equal(buffer.memories.rewards)
    assert again.memories.trajectories.values["x"].tolist() == [10, 11, 20]
    with pytest.raises(ValueError, match=r"rl_module\.sampling\.steps must be 3 to resume .*, got 5"):
        again.restore(buffer.state(), policy_of(5))


def test_a_buffer_of_an_earlier_version_is_read() -> None:
    """It kept the conditions that were asked beside the trajectories."""
    buffer = ReplayBuffer(ReplayConfig())
    buffer.add(walks(0, 2, [5, 6]), torch.tensor([1.0, 2.0]), ["A", "B"])
    state = buffer.state()
    before = state.pop("trajectories")
    values = before.pop("values")
    before.pop("atomic_numbers")
    again = ReplayBuffer(ReplayConfig())
    again.restore(state | {"rollout": before, "values": values}, policy_of(3))
    assert again.memories is not None
    assert again.memories.trajectories.values["x"].tolist() == [6, 5]
    again.add(walks(2, 1, [7]), torch.tensor([3.0]), ["C"])
    assert again.memories.trajectories.values["x"].tolist() == [7, 6, 5]


@pytest.mark.parametrize("algorithm", [Algorithm.GRPO, Algorithm.PPO])
def test_only_what_is_better_than_now_is_replayed(algorithm: Algorithm) -> None:
    buffer = ReplayBuffer(ReplayConfig(num_samples=2))
    config = PolicyConfig(algorithm=algorithm)
    draw = torch.Generator().manual_seed(0)
    now = torch.tensor([1.0, 3.0])  # mean 2, standard deviation 1
    running = RunningRewards.empty().updated(now, 0.9)
    assert buffer.draw(now, config, running, draw) is None
    buffer.add(walks(0, 4, [0, 1, 2, 3]), torch.tensor([1.0, 3.5, 5.0, 30.0]), ["A", "B", "C", "D"])
    found = buffer.draw(now, config, running, draw)
    assert found is not None
    assert len(found) == 2
    assert not found.is_on_policy.any()
    wanted = {1.0: 1.5, 2.0: 3.0, 3.0: 5.0}  # D would have 28: clipped
    for own, advantage in zip(
        found.trajectories.latents.flatten().tolist(), found.advantages.tolist(), strict=True
    ):
        assert advantage == pytest.approx(wanted[own])
    assert buffer.draw(now + 100.0, config, running.updated(now + 100.0, 0.0), draw) is None
