"""The third stage in processes of their own: two train like one, and a reward from a file by the documented command."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_rl import make_usable
from tiny_run import read, tiny_datamodule, tiny_ldm_config, tiny_split

from latentite.config import compose, config_dir, load
from latentite.data.dataset import write_dataset
from latentite.models import load_ldm
from latentite.rl.config import TrainRLConfig
from latentite.stages import train_ldm, train_rl

ROOT = config_dir().parent
SCRIPT = ROOT / "src" / "train_rl.py"
TINY = [
    "data.batch_size=4",
    "data.eval_batch_size=8",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "rl_module.rl_configs.num_group_samples=4",
    "rl_module.rl_configs.clip_ratio=0.1",
    "rl_module.sampling.steps=4",
    "rl_module.num_pictures=0",
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "train.safetensors", tiny_split(24, seed=1))
    write_dataset(folder / "val.safetensors", tiny_split(8, seed=2))
    return folder


@pytest.fixture(scope="module")
def base(vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_ldm_config(tmp_path_factory.mktemp("ldm"), vae_checkpoint, trainer__max_epochs=1)
    return make_usable(train_ldm(config, datamodule=tiny_datamodule()).last_path)


def overrides_of(data_dir: Path, base: Path, experiment: str) -> list[str]:
    own = [f"experiment={experiment}", f"data.data_dir={data_dir}", f"rl_module.ldm_ckpt_path={base}"]
    return [*TINY, *own]


def train_here(data_dir: Path, base: Path, run_dir: Path, *overrides: str) -> None:
    """In this process: no second interpreter has to import everything."""
    values = compose("train_rl", [*overrides_of(data_dir, base, "prototypes/rl_density"), *overrides])
    train_rl(load(TrainRLConfig, values | {"run_dir": str(run_dir)}))


def start(
    data_dir: Path, base: Path, run_dir: Path, *overrides: str, experiment: str = "prototypes/rl_density"
) -> subprocess.Popen[str]:
    own = [*overrides_of(data_dir, base, experiment), f"hydra.run.dir={run_dir}"]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *own, *overrides],
        cwd=run_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    return output


def column(run_dir: Path, name: str) -> list[float]:
    rows = csv.DictReader((run_dir / "metrics.csv").open())
    return [float(row[name]) for row in rows if row.get(name)]


@pytest.mark.slow
def test_two_processes_train_like_one(data_dir: Path, base: Path, tmp_path: Path) -> None:
    """Rewards are normalised over all crystals and compared over the whole batch, so a wrong gather would show.

    Steps in proportion to the gradient: Adam would hide a wrong factor.
    """
    same = [
        "rl_module.optimizer.name=sgd",
        "rl_module.optimizer.lr=0.1",
        "trainer.gradient_clip_val=null",
        "rl_module.rl_configs.baseline=batch",
        "rl_module.reward_fn.components.density.normalize=standard",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    pair = start(data_dir, base, two, *same, "trainer=ddp_cpu")
    train_here(data_dir, base, one, *same)
    finish(pair)
    first, second = (read(folder / "checkpoints" / "last.ckpt") for folder in (one, two))
    assert first["global_step"] == second["global_step"] == 4
    original = load_ldm(base)[0].state_dict()
    moved = 0.0
    for name, weights in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weights, rtol=1e-3, atol=1e-5)
        if name.startswith("network.denoiser"):
            moved = max(moved, float((weights - original[name.removeprefix("network.")]).abs().max()))
    assert moved > 1e-4, "training must have changed something"
    for name in ("train/reward", "train/policy", "train/kl"):
        assert column(one, name) == pytest.approx(column(two, name), rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_a_reward_in_a_file_of_ones_own_trains_by_the_documented_command(
    data_dir: Path, base: Path, tmp_path: Path
) -> None:
    """The one of the documentation, copied to where the user works."""
    shutil.copy(ROOT / "examples" / "my_reward.py", tmp_path)
    run_dir = tmp_path / "run"
    finish(
        start(
            data_dir,
            base,
            run_dir,
            "rl_module.reward_fn.components.custom._target_=my_reward.py:MyReward",
            experiment="rl_custom_reward",
        )
    )
    assert len(column(run_dir, "reward/custom/raw")) == 2
    assert column(run_dir, "reward/custom/failed") == [0.0, 0.0]
    load_ldm(run_dir / "checkpoints" / "last.ckpt")
