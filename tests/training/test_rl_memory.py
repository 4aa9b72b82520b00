"""Replay of the best, diversity filter and overlapped rewards: what each does, and that resuming is exact with all."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rl import VOLUME, make_usable, tiny_rl_config
from tiny_run import assert_same, read, tiny_datamodule, tiny_ldm_config

from latentite.crystal import CrystalBatch
from latentite.rewards.combine import RewardConfig
from latentite.rewards.repeats import DiversityFilterConfig, Kind
from latentite.rl.advantages import RunningRewards
from latentite.rl.module import MEMORY_KEY, RLTrainingModule
from latentite.rl.policy_config import Algorithm, Keep, PolicyConfig
from latentite.rl.replay import ReplayBuffer, ReplayConfig
from latentite.rl.rollout import Rollout
from latentite.stages import train_ldm, train_rl
from latentite.training.fit import FitResult, RunStatus


@pytest.fixture(scope="module")
def base(vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_ldm_config(tmp_path_factory.mktemp("ldm"), vae_checkpoint, trainer__max_epochs=1)
    return make_usable(train_ldm(config, datamodule=tiny_datamodule()).last_path)


def run(folder: Path, base: Path, **changes: Any) -> FitResult:
    return train_rl(tiny_rl_config(folder, base, **changes), datamodule=tiny_datamodule(batch_size=3))


def column(result: FitResult, name: str) -> list[float]:
    rows = csv.DictReader((result.run_dir / "metrics.csv").open())
    return [float(row[name]) for row in rows if row.get(name)]


def trained(result: FitResult) -> dict[str, Any]:
    """Of a run's last checkpoint: all that training has changed."""
    content = read(result.last_path)
    keys = ("state_dict", "optimizer_states", "global_step", "epoch", MEMORY_KEY)
    return {key: content[key] for key in keys if key in content}


EVERYTHING = {
    "rl_module__replay": ReplayConfig(size=5, num_samples=3, kind=Kind.CHEMICAL_SYSTEM),
    "rl_module__reward_fn": RewardConfig(
        components=VOLUME,
        diversity_filter=DiversityFilterConfig(kind=Kind.CHEMICAL_SYSTEM, free=1, fading=2),
    ),
}


def test_resuming_is_exact_with_replay_and_filter(base: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", base, **EVERYTHING)
    half = run(tmp_path / "half", base, trainer__max_epochs=1, **EVERYTHING)
    rest = run(tmp_path / "rest", base, ckpt_path=half.last_path, **EVERYTHING)
    assert_same(trained(whole), trained(rest))
    memory = read(whole.last_path)[MEMORY_KEY]
    assert len(memory["replay"]["names"]) == 5
    assert sum(memory["diversity_filter"].values()) > 24
    assert max(column(whole, "train/replayed")) > 0
    plain = run(tmp_path / "plain", base)
    assert MEMORY_KEY not in read(plain.last_path)
    moved = (trained(plain)["state_dict"], trained(whole)["state_dict"])
    assert any(not moved[0][name].equal(moved[1][name]) for name in moved[0]), "it must make a difference"


@pytest.mark.slow
def test_overlapped_rewards_train_the_same_with_any_number_of_workers_and_resume_in_mid_epoch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preempted in the second of three steps, when one rollout is under way."""
    again = {"again": VOLUME["volume"] | {"maximise": False, "target": 20.0}}
    shared = {"components": VOLUME | again, "trainer__limit_train_batches": 3, "trainer__max_epochs": 2}
    one = run(tmp_path / "one", base, rl_module__reward_workers=1, **shared)
    two = run(tmp_path / "two", base, rl_module__reward_workers=2, **shared)
    assert_same(trained(one), trained(two))
    assert MEMORY_KEY not in trained(one), "nothing is under way at the end of an epoch"
    inline = run(tmp_path / "inline", base, **shared)
    assert trained(inline)["global_step"] == trained(one)["global_step"] == 12
    assert len(column(one, "train/reward")) == 4, (
        "the first step of an epoch learns nothing, the last one twice"
    )
    assert column(one, "reward/volume/failed") == [0.0] * 4
    states = (trained(inline)["state_dict"], trained(one)["state_dict"])
    assert any(not states[0][name].equal(states[1][name]) for name in states[0]), "off-policy by one rollout"
    original, calls = RLTrainingModule.training_step, []

    def step(self: RLTrainingModule, batch: CrystalBatch, batch_idx: int) -> torch.Tensor | None:
        calls.append(batch_idx)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RLTrainingModule, "training_step", step)
        part = run(tmp_path / "part", base, rl_module__reward_workers=1, **shared)
    assert part.status is RunStatus.PREEMPTED
    assert [flight["batch_idx"] for flight in trained(part)[MEMORY_KEY]["in_flight"]] == [1]
    rest = run(tmp_path / "rest", base, rl_module__reward_workers=1, ckpt_path=part.last_path, **shared)
    assert_same(trained(one), trained(rest))


def test_only_what_is_kept_of_many_is_trained(base: Path, tmp_path: Path) -> None:
    for keep in Keep:
        result = run(
            tmp_path / keep,
            base,
            trainer__max_epochs=1,
            rl_module__rl_configs__best_of=3,
            rl_module__rl_configs__keep=keep,
        )
        # Mean advantage of what is trained: the surrogate of the first minibatch is minus it.
        loss = column(result, "train/policy")
        assert (max(loss) < -0.2) if keep is Keep.BEST else (abs(loss[0]) < 0.5)


def test_what_does_not_go_together_is_refused(base: Path, tmp_path: Path) -> None:
    config = tiny_rl_config(tmp_path, base).rl_module
    config.rl_configs.algorithm = Algorithm.REINFORCE
    config.reward_workers = 1
    with pytest.raises(ValueError, match="reward_workers must be 0 for reinforce"):
        config.__post_init__()
    config.reward_workers, config.replay = 0, ReplayConfig()
    with pytest.raises(ValueError, match="replay must be null for reinforce"):
        config.__post_init__()
    with pytest.raises(ValueError, match=r"rl_module\.replay must be null in a run of several processes"):
        config.check_processes(2)
    config.reward_workers, config.replay = 2, None
    with pytest.raises(
        ValueError, match=r"rl_module\.reward_workers must be 0 in a run of several processes"
    ):
        config.check_processes(2)
    config.check_processes(1)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        ReplayConfig(size=0)


def rollout(first: int, count: int, steps: int = 2) -> Rollout:
    """Crystals of one atom whose every number is their own."""
    own = torch.arange(first, first + count, dtype=torch.float32)
    each = own[None, :, None, None].expand(steps, count, 1, 1)
    return Rollout(
        states=own[None, :, None, None].expand(steps + 1, count, 1, 1).clone(),
        means=each.clone(),
        stds=each.clone(),
        log_probs=own.expand(steps, count).clone(),
        levels=torch.arange(steps),
        latents=each[0].clone(),
        mask=torch.ones(count, 1, dtype=torch.bool),
    )


def test_the_buffer_keeps_the_best_of_each_kind_for_a_while() -> None:
    buffer = ReplayBuffer(ReplayConfig(size=3, max_age=1))
    values = {"x": torch.arange(5)}
    buffer.add(rollout(0, 5), values, torch.tensor([1.0, 5.0, 3.0, 4.0, 0.0]), ["A", "A", "B", "B", "C"])
    assert buffer.memories is not None
    assert buffer.memories.rewards.tolist() == [5.0, 4.0, 0.0], "the best A, the best B, C"
    assert buffer.memories.rollout.latents.flatten().tolist() == [1.0, 3.0, 4.0]
    assert buffer.memories.values["x"].tolist() == [1, 3, 4]
    buffer.add(rollout(10, 2), {"x": torch.tensor([10, 11])}, torch.tensor([6.0, 2.0]), ["B", "D"])
    assert buffer.memories.names == ["B", "A", "D"], "a better B, and no room for C"
    assert buffer.memories.rollout.states[:, :, 0, 0].tolist() == [[10.0, 1.0, 11.0]] * 3
    buffer.add(rollout(20, 1), {"x": torch.tensor([20])}, torch.tensor([0.5]), ["E"])
    assert buffer.memories.names == ["B", "D", "E"], "A is too old"
    again = ReplayBuffer(ReplayConfig(size=3, max_age=1))
    again.restore(buffer.state(), 2)
    assert_same(again.state(), buffer.state())
    with pytest.raises(ValueError, match=r"rl_module\.sampling\.steps must be 3 to resume .*, got 5"):
        again.restore(buffer.state(), 4)


@pytest.mark.parametrize("algorithm", [Algorithm.GRPO, Algorithm.PPO])
def test_only_what_is_better_than_now_is_replayed(algorithm: Algorithm) -> None:
    buffer = ReplayBuffer(ReplayConfig(num_samples=2))
    config = PolicyConfig(algorithm=algorithm)
    draw = torch.Generator().manual_seed(0)
    now = torch.tensor([1.0, 3.0])  # mean 2, standard deviation 1
    running = RunningRewards.empty().updated(now, 0.9)
    assert buffer.draw(now, config, running, draw) is None
    buffer.add(rollout(0, 4), {}, torch.tensor([1.0, 3.5, 5.0, 30.0]), ["A", "B", "C", "D"])
    found = buffer.draw(now, config, running, draw)
    assert found is not None
    assert len(found) == 2
    assert not found.is_first.any()
    wanted = {1.0: 1.5, 2.0: 3.0, 3.0: 5.0}  # D would have 28: clipped
    for own, advantage in zip(
        found.rollout.latents.flatten().tolist(), found.advantages.tolist(), strict=True
    ):
        assert advantage == pytest.approx(wanted[own])
    assert buffer.draw(now + 100.0, config, running.updated(now + 100.0, 0.0), draw) is None
