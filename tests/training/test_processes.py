"""Runs as users start them, in processes of their own: SIGTERM, two processes at once, torch.compile."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same, read, tiny_split

from latentite.config import compose, config_dir, load
from latentite.data.dataset import write_dataset
from latentite.nn.vae import Posterior
from latentite.stages import train_vae
from latentite.training.stage_settings import TrainVAEConfig

SCRIPT = config_dir().parent / "src" / "train_vae.py"
TINY = [
    "experiment=prototypes/vae_dng",
    "data.batch_size=8",
    "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=1",
    "vae_module.match_limit=0",
    "vae_module.scheduler.total_steps=1000",
    "vae_module.noise.ratio=0",
    "callbacks.checkpoint.monitor=val/loss",
    "callbacks.checkpoint.mode=min",
]
for part in ("encoder", "decoder"):
    TINY += [f"vae_module.{part}.{key}" for key in ("d_model=16", "dim_feedforward=32", "num_layers=1")]
    TINY.append(f"vae_module.{part}.num_heads=2")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "train.safetensors", tiny_split(48, seed=1))
    write_dataset(folder / "val.safetensors", tiny_split(16, seed=2))
    return folder


def start(data_dir: Path, run_dir: Path, *overrides: str, script: Path = SCRIPT) -> subprocess.Popen:
    command = [sys.executable, str(script), *TINY, f"data.data_dir={data_dir}"]
    return subprocess.Popen(
        [*command, f"hydra.run.dir={run_dir}", *overrides],
        cwd=run_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train_here(data_dir: Path, run_dir: Path, *overrides: str) -> None:
    """What `start` does, in this process: no second interpreter has to import everything."""
    values = compose("train_vae", [*TINY, f"data.data_dir={data_dir}", *overrides])
    train_vae(load(TrainVAEConfig, values | {"run_dir": str(run_dir)}))


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def losses(run_dir: Path, name: str) -> list[float]:
    rows = csv.DictReader((run_dir / "metrics.csv").open())
    return [float(row[name]) for row in rows if row.get(name)]


@pytest.mark.slow
def test_sigterm_saves_ends_with_zero_and_says_how_to_resume(data_dir, tmp_path):
    first, rest, whole = (tmp_path / name for name in ("first", "rest", "whole"))
    process = start(data_dir, first, "trainer.max_epochs=100000")
    deadline = time.monotonic() + 120
    while not (first / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    last = first / "checkpoints" / "last.ckpt"
    assert f"resume with ckpt_path={last}" in output
    assert "Traceback" not in output
    epochs = read(last)["epoch"] + 2
    train_here(data_dir, rest, f"trainer.max_epochs={epochs}", f"ckpt_path={last}")
    train_here(data_dir, whole, f"trainer.max_epochs={epochs}")
    one, other = (read(folder / "checkpoints" / "last.ckpt") for folder in (rest, whole))
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(one[key], other[key], key)


NOISELESS = """
from latentite.config import run_stage
from latentite.nn.vae import Posterior

Posterior.sample = lambda self, generator=None: self.mean
run_stage("vae")
"""


@pytest.mark.slow
def test_two_processes_train_like_one(data_dir, tmp_path, monkeypatch):
    """Data parallel with gloo, without the draws that depend on the process: the same network comes out.

    Batches are sharded and losses are divided by global counts, so that only rounding differs.
    """
    script = tmp_path / "noiseless.py"
    script.write_text(NOISELESS)
    same = [
        "trainer.max_epochs=2",
        "trainer.gradient_clip_val=null",
        "vae_module.augmentation.translate=false",
        "vae_module.augmentation.rotate=false",
        # Steps in proportion to the gradient: Adam would hide a wrong factor.
        "vae_module.optimizer.name=sgd",
        "vae_module.optimizer.lr=1e-3",
        "vae_module.scheduler.warmup_steps=0",
    ]
    one, two = tmp_path / "one", tmp_path / "two"
    pair = start(data_dir, two, *same, "trainer=ddp_cpu", script=script)
    monkeypatch.setattr(Posterior, "sample", lambda self, generator=None: self.mean)
    train_here(data_dir, one, *same)
    finish(pair)
    first, second = (read(folder / "checkpoints" / "last.ckpt") for folder in (one, two))
    assert first["global_step"] == second["global_step"] == 12
    for name, weights in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], weights, rtol=1e-3, atol=1e-4)
    assert losses(one, "val/loss")[1] < 0.95 * losses(one, "val/loss")[0]
    assert losses(two, "val/loss") == pytest.approx(losses(one, "val/loss"), rel=1e-2)
