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
from latentite.rewards.repeats import CrystalKind, DiversityFilterConfig
from latentite.rl.config import Algorithm, Keep, ReplayConfig
from latentite.rl.module import MEMORY_KEY, RLTrainingModule
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
    "rl_module__replay": ReplayConfig(size=5, num_samples=3, kind=CrystalKind.CHEMICAL_SYSTEM),
    "rl_module__reward_fn": RewardConfig(
        components=VOLUME,
        diversity_filter=DiversityFilterConfig(kind=CrystalKind.CHEMICAL_SYSTEM, free=1, fading=2),
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
    assert [rollout["batch_idx"] for rollout in trained(part)[MEMORY_KEY]["pending"]] == [1]
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
