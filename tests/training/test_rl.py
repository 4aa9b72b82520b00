"""The third stage end to end on tiny models: it learns, resumes exactly, and leaves a model to sample from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rl import VOLUME, make_usable, tiny_rl_config
from tiny_run import assert_same, read, tiny_datamodule, tiny_ldm_config

from latentite.models import load_ldm
from latentite.nn.lora import LoraConfig
from latentite.objectives.ldm import DiffusionKind
from latentite.rl.policy_config import Algorithm, Baseline
from latentite.rl.update import minibatches, passes
from latentite.stages import train_ldm, train_rl
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult


@pytest.fixture(scope="module", params=[DiffusionKind.DDPM, DiffusionKind.FLOW])
def base(
    request: pytest.FixtureRequest, vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(f"ldm_{request.param}")
    config = tiny_ldm_config(folder, vae_checkpoint, request.param, trainer__max_epochs=1)
    return make_usable(train_ldm(config, datamodule=tiny_datamodule()).last_path)


def data() -> CrystalDataModule:
    return tiny_datamodule(batch_size=3)


def run(folder: Path, base: Path, **changes: Any) -> FitResult:
    return train_rl(tiny_rl_config(folder, base, **changes), datamodule=data())


def column(result: FitResult, name: str) -> list[float]:
    rows = csv.DictReader((result.run_dir / "metrics.csv").open())
    return [float(row[name]) for row in rows if row.get(name)]


def test_a_run_logs_its_parts_and_leaves_a_model_to_sample_from(base: Path, tmp_path: Path) -> None:
    result = run(tmp_path, base, rl_module__num_pictures=2)
    for name in (
        "train/reward",
        "train/kl",
        "train/ratio",
        "train/clipped",
        "train/grad_norm",
        "time/rollout",
    ):
        assert len(column(result, name)) == 4, name
    for name in ("reward/volume/raw", "reward/volume/weighted", "reward/volume/failed", "reward/unusable"):
        assert len(column(result, name)) == 4, name
    assert len(column(result, "val/reward")) == 2
    before, after = load_ldm(base)[0].state_dict(), load_ldm(result.last_path)[0].state_dict()
    moved = {name.split(".")[0] for name in before if not before[name].equal(after[name])}
    assert moved == {"denoiser"}
    for path in (result.best_path, result.run_dir / "checkpoints" / "last.ckpt"):
        assert path is not None
        assert not any("reference" in name for name in read(path)["state_dict"])


def test_two_epochs_are_one_and_one_more(base: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", base)
    half = run(tmp_path / "half", base, trainer__max_epochs=1)
    rest = run(tmp_path / "rest", base, ckpt_path=half.last_path)
    one, other = read(whole.last_path), read(rest.last_path)
    for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert_same(one[key], other[key], key)


def test_the_first_divergence_is_zero_and_the_first_ratio_one(base: Path, tmp_path: Path) -> None:
    result = run(
        tmp_path,
        base,
        rl_module__rl_configs__num_minibatches=1,
        trainer__max_epochs=1,
        rl_module__optimizer__lr=3e-3,
    )
    assert column(result, "train/kl")[0] == pytest.approx(0.0, abs=1e-7)
    assert column(result, "train/kl")[1] > 1e-6
    assert column(result, "train/ratio") == [1.0, 1.0]


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_all_algorithms_run_with_all_their_parts(algorithm: Algorithm, base: Path, tmp_path: Path) -> None:
    result = run(
        tmp_path,
        base,
        trainer__max_epochs=1,
        rl_module__rl_configs__algorithm=algorithm,
        rl_module__rl_configs__baseline=Baseline.BATCH,
        rl_module__rl_configs__num_group_samples=1,
        rl_module__rl_configs__num_train_steps=2,
        rl_module__lora=LoraConfig(rank=2, dropout=0.5),
    )
    assert load_ldm(result.last_path)[1].lora is None
    assert all(value == value for value in column(result, "train/loss"))


BROKEN = """
import torch

def broken(structures, batch):
    raise RuntimeError("no")

def nan(structures, batch):
    return torch.full((len(structures),), float("nan"))
"""


def test_a_broken_reward_does_not_end_the_run(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(BROKEN)
    bad = {name: {"_target_": f"{path}:{name}", "normalize": "standard"} for name in ("broken", "nan")}
    result = run(tmp_path / "run", base, components=VOLUME | bad, trainer__max_epochs=1)
    failed, unusable = column(result, "reward/nan/failed"), column(result, "reward/unusable")
    assert failed == column(result, "reward/broken/failed")
    assert failed == pytest.approx([12 * (1.0 - share) for share in unusable])
    assert all(value == value for value in column(result, "train/reward"))


def test_the_size_of_passes_does_not_matter(base: Path, tmp_path: Path) -> None:
    """SGD: steps in proportion to the gradient."""
    runs = [
        run(
            tmp_path / str(tokens),
            base,
            trainer__max_epochs=1,
            rl_module__rl_configs__update_tokens=tokens,
            rl_module__optimizer__name="sgd",
        )
        for tokens in (7, 8192)
    ]
    one, other = (read(result.last_path)["state_dict"] for result in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_rows_are_cut_into_passes_and_minibatches_without_loss() -> None:
    sizes = torch.tensor([3, 1, 20, 2, 2, 5, 1])
    parts = list(passes(sizes, 6))
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
    assert all(int(sizes[part].sum()) <= 6 + int(sizes[part].max()) for part in parts)
    assert len(parts) > 3
    draws = [torch.Generator().manual_seed(0) for _ in range(3)]
    whole = minibatches(torch.arange(10), 10, 3, draws[0])
    assert sorted(torch.cat(whole).tolist()) == list(range(10))
    mine, others = torch.arange(0, 10, 2), torch.arange(1, 10, 2)
    split = [minibatches(places, 10, 3, draw) for places, draw in ((mine, draws[1]), (others, draws[2]))]
    for part in range(3):
        both = torch.cat([mine[split[0][part]], others[split[1][part]]])
        assert both.sort().values.equal(whole[part])
    with pytest.raises(ValueError, match=r"num_minibatches must be at most .* \(2\), got 3"):
        minibatches(torch.arange(2), 2, 3, draws[0])


def test_what_cannot_be_trained_is_refused(base: Path, vae_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="eta must be above 0 for reinforcement learning"):
        run(tmp_path, base, rl_module__sampling__eta=0.0)
    with pytest.raises(ValueError, match=r"^rl_module\.ldm_ckpt_path: .*expected a ldm checkpoint, got vae"):
        run(tmp_path, vae_checkpoint)
    config = tiny_rl_config(tmp_path, base)
    conditional = data()
    conditional.config.target_condition = ["composition"]
    with pytest.raises(ValueError, match=r"data\.target_condition must be \[\], .* got \[composition\]"):
        train_rl(config, datamodule=conditional)
