"""What a run does and leaves: checkpoints, averaged weights, logs, limits, refusals."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from dataclasses import replace

import pytest
import torch
import yaml
from tiny_run import assert_same, read, tiny_datamodule, tiny_split

from latentite.base import files
from latentite.base.plain import from_plain, to_plain
from latentite.checkpoint import read_checkpoint
from latentite.nn.vae import CrystalVAE, VAEConfig
from latentite.stages import train_vae
from latentite.training.callbacks import TrainingDiverged
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import RunStatus
from latentite.training.settings import DataConfig, EarlyStoppingConfig, MonitorMode
from latentite.training.vae import VAETrainingModule


def test_a_run_leaves_what_the_house_promises(make_config):
    config = make_config("run", callbacks__checkpoint__export=True, callbacks__checkpoint__save_top_k=2)
    result = train_vae(config, datamodule=tiny_datamodule())
    folder = config.run_dir / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names[-3:] == ["last.ckpt", "model.json", "model.safetensors"]
    assert [name[:6] for name in names[:-3]] == ["epoch_", "epoch_"]
    provenance = json.loads((config.run_dir / "provenance.json").read_text())
    assert provenance["data"]["splits"]["train"] == {
        "content_hash": "tiny-1",
        "num_crystals": 44,
        "num_atoms_histogram": torch.bincount(tiny_split(44, seed=1).crystals.num_atoms).tolist(),
    }
    assert provenance["seed"] == 0
    assert "torch" in provenance["packages"]
    assert yaml.safe_load((config.run_dir / "config.yaml").read_text()) == to_plain(config)
    rows = list(csv.DictReader((config.run_dir / "metrics.csv").open()))
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert len(losses) == 4
    best = read(result.best_path)["latentite"]["metrics"]["val/loss"]
    assert best == pytest.approx(min(losses))
    card = json.loads((folder / "model.json").read_text())
    assert card["metrics"]["val/loss"] == best
    assert card["data"]["splits"]["val"]["content_hash"] == "tiny-2"


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(make_config, monkeypatch):
    """After a power cut the new name stood on an empty file: `replacing` syncs first, as for all other files."""
    synced, renamed = [], []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(
        files.os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd))
    )
    monkeypatch.setattr(files.os, "replace", lambda a, b: (renamed.append((str(a), str(b))), rename(a, b)))
    result = train_vae(make_config("run", trainer__max_epochs=1), datamodule=tiny_datamodule())
    before = [a for a, b in renamed if b == str(result.last_path)]
    assert before
    assert set(before) <= set(synced)
    assert not [path for path in result.last_path.parent.iterdir() if path.name.endswith(".tmp")]


def test_checkpoints_hold_plain_values_and_build_the_network_again(make_config):
    config = make_config("run", trainer__max_epochs=1)
    result = train_vae(config, datamodule=tiny_datamodule())
    checkpoint = read(result.last_path)  # weights_only=True

    def check(value: object) -> None:
        if isinstance(value, dict):
            [check(entry) for pair in value.items() for entry in pair]
        elif isinstance(value, (list, tuple)):
            [check(entry) for entry in value]
        else:
            assert value is None or type(value) in (str, int, float, bool, torch.Tensor), type(value)

    check(checkpoint["latentite"])
    assert "hyper_parameters" not in checkpoint
    record = read_checkpoint(result.last_path, stage="vae")
    CrystalVAE(from_plain(VAEConfig, record.config)).load_state_dict(record.state)


def test_the_average_that_is_saved_is_what_is_validated(make_config):
    """Regression: averaged weights were once validated but not saved, and started afresh on resume."""
    config = make_config("run", trainer__max_epochs=2)
    result = train_vae(config, datamodule=tiny_datamodule())
    checkpoint = read(result.last_path)
    average = checkpoint["latentite"]["ema"]
    module = VAETrainingModule(config.vae_module, seed=config.seed)
    assert set(average) == {name for name, _ in module.network.named_parameters()}
    assert any(not average[n].equal(checkpoint["state_dict"][f"network.{n}"]) for n in average)

    def loss_of(state: dict) -> float:
        module.network.load_state_dict(state)
        module.eval()
        total, count = 0.0, 0
        for position, batch in enumerate(tiny_datamodule().val_dataloader()):
            with torch.no_grad():
                terms = module._terms(batch, module.generator(2, 0, position, 0))
            total, count = total + len(batch) * terms.total().item(), count + len(batch)
        return total / count

    reported = checkpoint["latentite"]["metrics"]["val/loss"]
    assert loss_of(average) == pytest.approx(reported, rel=1e-5)
    raw = {n.removeprefix("network."): t for n, t in checkpoint["state_dict"].items()}
    assert abs(loss_of(raw) - reported) > 1e-4 * reported


def test_early_stopping_ends_the_run(make_config):
    stopping = EarlyStoppingConfig(monitor="val/loss", mode=MonitorMode.MAX, patience=1)
    config = make_config("run", callbacks__early_stopping=stopping, trainer__max_epochs=20)
    train_vae(config, datamodule=tiny_datamodule())
    assert read(config.run_dir / "checkpoints" / "last.ckpt")["epoch"] < 10


def test_the_time_limit_ends_the_run_with_a_validation_and_a_checkpoint(make_config):
    config = make_config("run", trainer__max_epochs=100_000, trainer__max_time=2)
    start = time.monotonic()
    result = train_vae(config, datamodule=tiny_datamodule())
    assert time.monotonic() - start < 60
    assert result.status is RunStatus.FINISHED
    assert math.isfinite(read(result.last_path)["latentite"]["metrics"]["val/loss"])


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(make_config):
    config = make_config("run", vae_module__optimizer__lr=1e30, trainer__gradient_clip_val=None)
    with pytest.raises(TrainingDiverged, match=r"finite number, got (nan|inf) in epoch \d+, step \d+; lower"):
        train_vae(config, datamodule=tiny_datamodule())
    assert not (config.run_dir / "checkpoints" / "last.ckpt").exists()


def test_a_monitor_that_is_not_measured_is_refused_with_what_is(make_config):
    config = make_config("run", callbacks__checkpoint__monitor="val/nothing")
    with pytest.raises(ValueError, match=r"got 'val/nothing'; there are .*val/loss"):
        train_vae(config, datamodule=tiny_datamodule())


def test_an_empty_training_split_is_refused():
    splits = {"train": tiny_split(0, seed=1)}
    with pytest.raises(ValueError, match="must hold at least one crystal, got none"):
        CrystalDataModule(DataConfig(name="tiny"), splits=splits).setup("fit")


def test_training_without_a_validation_split_works(make_config):
    data = CrystalDataModule(DataConfig(name="tiny", batch_size=8), splits={"train": tiny_split(9, seed=1)})
    result = train_vae(make_config("run", trainer__max_epochs=1), datamodule=data)
    assert read(result.last_path)["global_step"] == 2


def test_one_crystal_is_enough(make_config):
    """Regression: a batch of one once crashed."""
    splits = {name: tiny_split(1, seed=1) for name in ("train", "val")}
    data = CrystalDataModule(DataConfig(name="tiny", batch_size=8), splits=splits)
    config = make_config("run", trainer__max_epochs=3)
    checkpoint = read(train_vae(config, datamodule=data).last_path)
    assert checkpoint["global_step"] == 3  # one batch of one an epoch
    metrics = checkpoint["latentite"]["metrics"]
    assert {"val/loss", "val/coordinate_rmse", "val/active_units"} <= metrics.keys()
    assert [name for name, value in metrics.items() if not math.isfinite(value)] == []
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    rows = list(csv.DictReader((config.run_dir / "metrics.csv").open()))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))


def test_bf16_trains(make_config):
    from latentite.training.settings import Precision

    config = make_config("run", trainer__precision=Precision.BF16_MIXED, trainer__max_epochs=1)
    checkpoint = read(train_vae(config, datamodule=tiny_datamodule()).last_path)
    assert all(t.dtype is torch.float32 for t in checkpoint["state_dict"].values())


def test_a_run_resumed_into_its_folder_keeps_the_older_metrics(make_config):
    first = make_config("run", trainer__max_epochs=1)
    result = train_vae(first, datamodule=tiny_datamodule())
    before = (first.run_dir / "metrics.csv").read_text()
    train_vae(
        make_config("run", trainer__max_epochs=2, ckpt_path=result.last_path), datamodule=tiny_datamodule()
    )
    assert (first.run_dir / "metrics_1.csv").read_text() == before
    assert (first.run_dir / "metrics.csv").exists()


def test_batches_of_an_epoch_hold_every_crystal_once_over_all_processes():
    config = DataConfig(name="tiny", batch_size=8)
    data = CrystalDataModule(config, splits={"train": replace(tiny_split(44, seed=1))})
    loader = data.train_dataloader()
    seen = torch.cat(loader.batches(3))
    assert_same(seen.sort().values, torch.arange(44))
    assert not torch.equal(seen, torch.cat(loader.batches(4)))
