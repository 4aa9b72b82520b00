"""The stage `gpt` as users start it: two processes train like one, and bf16 like float32."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import read

from latentite.config import compose, load
from latentite.data.build import load_splits
from latentite.data.dataset import CrystalDataset, write_dataset
from latentite.data.sources import resolve
from latentite.nn.gpt.rows import CandidateCells
from latentite.stages import train_gpt
from latentite.training.stage_settings import TrainGPTConfig

TINY = [
    "experiment=prototypes/gpt",
    "data.batch_size=8",
    "data.workers=1",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=1",
    "gpt_module.size.d_model=16",
    "gpt_module.size.num_layers=1",
    "gpt_module.size.num_heads=2",
    "gpt_module.size.dim_feedforward=32",
]
NOISELESS = """
from latentite.config import run_stage
from latentite.nn.gpt.rows import CandidateCells

CandidateCells.draw = lambda self, members, num: self.all_of(members)
run_stage("gpt")
"""


def some(dataset: CrystalDataset, count: int) -> CrystalDataset:
    """Small crystals, some of them without a free coordinate."""
    small = (dataset.crystals.num_atoms <= 6).nonzero().flatten()
    rows = small[torch.linspace(0, len(small) - 1, count).long()]
    return replace(
        dataset,
        crystals=dataset.crystals.select(rows).with_properties({}),
        ids=tuple(dataset.ids[row] for row in rows.tolist()),
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, whole = tmp_path_factory.mktemp("data"), load_splits(resolve("prototypes"))
    write_dataset(folder / "train.safetensors", some(whole["train"], 48))
    write_dataset(folder / "val.safetensors", some(whole["val"], 16))
    return folder


def train_here(data_dir: Path, run_dir: Path, *overrides: str) -> None:
    """What `start` does, in this process: no other interpreter has to import everything."""
    values = compose("train_gpt", [*TINY, f"data.data_dir={data_dir}", *overrides])
    train_gpt(load(TrainGPTConfig, values | {"run_dir": str(run_dir)}))


def start(data_dir: Path, run_dir: Path, script: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, str(script), *TINY, f"data.data_dir={data_dir}", f"hydra.run.dir={run_dir}"]
    return subprocess.Popen(
        [*command, *overrides],
        cwd=run_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "LATENTITE_CACHE_DIR": str(run_dir.parent / "cache"),
        },
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def losses(run_dir: Path, name: str) -> list[float]:
    rows = csv.DictReader((run_dir / "metrics.csv").open())
    return [float(row[name]) for row in rows if row.get(name)]


@pytest.mark.slow
def test_two_processes_train_like_one(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the draws that depend on the process the same network comes out; only rounding differs.

    In one step or another a process has no free coordinate, so that some parameters have no part in its loss.
    """
    script = tmp_path / "noiseless.py"
    script.write_text(NOISELESS)
    same = [
        "gpt_module.size.dropout=0",
        "trainer.gradient_clip_val=null",
        # Steps in proportion to the gradient: Adam would hide a wrong factor.
        "gpt_module.optimizer.name=sgd",
        "gpt_module.optimizer.lr=1e-3",
        "gpt_module.optimizer.weight_decay=0",
        "gpt_module.scheduler.warmup_steps=0",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    pair = start(data_dir, two, script, *same, "trainer=ddp_cpu", "trainer.max_epochs=2")
    monkeypatch.setattr(CandidateCells, "draw", lambda self, members, num: self.all_of(members))
    train_here(data_dir, one, *same)
    finish(pair)
    first, second = (read(folder / "checkpoints" / "last.ckpt") for folder in (one, two))
    assert first["global_step"] == second["global_step"] == 12
    for name, weights in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weights, rtol=1e-3, atol=1e-4)
    assert losses(one, "val/loss")[1] < losses(one, "val/loss")[0]
    assert losses(two, "val/loss") == pytest.approx(losses(one, "val/loss"), rel=1e-3)


@pytest.mark.slow
def test_bf16_trains_as_float32_does(data_dir: Path, tmp_path: Path) -> None:
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    train_here(data_dir, plain)
    train_here(data_dir, mixed, "trainer.precision=bf16-mixed")
    assert losses(mixed, "val/loss") == pytest.approx(losses(plain, "val/loss"), rel=0.1)
