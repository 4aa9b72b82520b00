"""The predictor stage end to end, on a tiny data set: resuming, caching, continuing, fidelities, reports."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import assert_same, read, tiny_config, tiny_split

from latentite.data.dataset import CrystalDataset
from latentite.data.properties import derive
from latentite.models import load_predictor
from latentite.nn.baselines import Extent
from latentite.nn.predictor_config import FidelityMode, HeadKind, Pooling
from latentite.predictor.settings import (
    EncoderTraining,
    PredictorModuleConfig,
    TargetOptions,
    TrainPredictorConfig,
)
from latentite.stages import train_predictor
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMAConfig
from latentite.training.optim import SchedulerConfig
from latentite.training.settings import DataConfig

STATES = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")


def labelled_split(count: int, *, seed: int) -> CrystalDataset:
    """Density, a class that depends on it, and a column with holes."""
    dataset = tiny_split(count, seed=seed)
    density = derive("density", dataset.crystals)
    holes = torch.where(torch.arange(count) % 3 == 0, torch.nan, density.log())
    properties = {"density": density, "dense": (density > 8.0).float(), "log_density": holes}
    return replace(
        dataset,
        crystals=dataset.crystals.with_properties(properties),
        categories={"dense": ("no", "yes")},
    )


def datamodule(batch_size: int = 8) -> CrystalDataModule:
    splits = {
        "train": labelled_split(44, seed=1),
        "val": labelled_split(12, seed=2),
        "test": labelled_split(9, seed=3),
    }
    return CrystalDataModule(DataConfig(name="tiny", batch_size=batch_size), splits=splits)


def config_of(run_dir: Path, vae: Path | None, **changes: object) -> TrainPredictorConfig:
    shared = tiny_config(run_dir)
    names = ["density", "dense", "log_density"]
    settings = {
        "vae_ckpt_path": None if vae is None else str(vae),
        "target_conditions": names,
        "ensemble": 2,
        "ema": EMAConfig(decay=0.9),
        "scheduler": SchedulerConfig(name="cosine", warmup_steps=3, total_steps=24),
        **changes,
    }
    module = PredictorModuleConfig(**settings)
    return TrainPredictorConfig(
        run_dir=run_dir,
        trainer=shared.trainer,
        logger=shared.logger,
        callbacks=shared.callbacks,
        predictor_module=module,
    )


def run(run_dir: Path, vae: Path | None, *, epochs: int = 2, ckpt: Path | None = None, **changes: object):
    config = config_of(run_dir, vae, **changes)
    config.trainer.max_epochs, config.ckpt_path = epochs, ckpt
    return train_predictor(config, datamodule=datamodule())


@pytest.mark.parametrize(
    "changes",
    [{}, {"encoder": EncoderTraining.FULL}, {"pooling": Pooling.ATTENTION, "head": HeadKind.QUANTILE}],
    ids=["cached", "full", "attention"],
)
def test_two_epochs_and_two_more_are_four_epochs(tmp_path, vae_checkpoint, changes):
    whole = run(tmp_path / "whole", vae_checkpoint, epochs=4, **changes)
    half = run(tmp_path / "half", vae_checkpoint, epochs=2, **changes)
    rest = run(tmp_path / "rest", vae_checkpoint, epochs=4, ckpt=half.last_path, **changes)
    first, second = read(whole.last_path), read(rest.last_path)
    for key in STATES:
        assert_same(first[key], second[key], key)
    assert_same(first["latentite"]["ema"], second["latentite"]["ema"], "ema")
    assert_same(first["latentite"]["metrics"], second["latentite"]["metrics"], "metrics")


@pytest.mark.pictures
def test_a_run_reports_both_splits_in_numbers_tables_and_figures(tmp_path, vae_checkpoint):
    result = run(tmp_path / "run", vae_checkpoint)
    folder = tmp_path / "run"
    report = json.loads((folder / "predictor_report.json").read_text(encoding="utf-8"))
    for split, count in (("val", 12), ("test", 9)):
        assert {f"{split}/density_{key}" for key in ("mae", "rmse", "r2")} <= report["metrics"].keys()
        assert 0 <= report["metrics"][f"{split}/dense_accuracy"] <= 1
        for figure in ("parity", "calibration"):
            assert (folder / f"{figure}_{split}.png").stat().st_size > 1000
        with (folder / f"predictions_{split}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        error = [abs(float(row["density"]) - float(row["density_predicted"])) for row in rows]
        assert np.mean(error) == pytest.approx(report["metrics"][f"{split}/density_mae"], rel=1e-4)
    assert result.metrics["test/density_mae"] == report["metrics"]["test/density_mae"]
    assert "val/density_mae" in read(result.last_path)["latentite"]["metrics"]


def test_cached_features_change_nothing_but_the_time(tmp_path, vae_checkpoint):
    cached = run(tmp_path / "cached", vae_checkpoint, dropout=0.0)
    encoded = run(tmp_path / "encoded", vae_checkpoint, dropout=0.0, feature_cache=False)
    one, other = read(cached.last_path)["state_dict"], read(encoded.last_path)["state_dict"]
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(
    ("encoder", "moved", "still"),
    [
        ("frozen", [], ["encoder.atom_type_embedder", "encoder.transformer.layers.0", "quant_conv"]),
        ("last", ["encoder.transformer.layers.0", "quant_conv"], ["encoder.atom_type_embedder", "decoder"]),
        ("full", ["encoder.atom_type_embedder", "encoder.transformer.layers.0", "quant_conv"], ["decoder"]),
    ],
)
def test_only_the_chosen_part_of_the_encoder_moves(tmp_path, vae_checkpoint, encoder, moved, still):
    result = run(
        tmp_path / "run", vae_checkpoint, epochs=1, encoder=EncoderTraining(encoder), encoder_layers=1
    )
    before = {k.removeprefix("network."): v for k, v in read(vae_checkpoint)["state_dict"].items()}
    before |= read(vae_checkpoint)["latentite"]["ema"]  # what a reader gets
    after = read(result.last_path)["state_dict"]

    def has_moved(prefix: str) -> bool:
        return any(
            not after[f"network.vae.{name}"].equal(value)
            for name, value in before.items()
            if name.startswith(prefix)
        )

    assert all(has_moved(prefix) for prefix in moved)
    assert not any(has_moved(prefix) for prefix in still)
    if moved:
        groups = read(result.last_path)["optimizer_states"][0]["param_groups"]
        assert groups[1]["initial_lr"] == pytest.approx(0.1 * groups[0]["initial_lr"])


def test_what_missing_labels_hold_does_not_matter(tmp_path, vae_checkpoint):
    """Nothing but holes in a column of validation gives no metric of it, and no NaN elsewhere."""
    data = datamodule()
    crystals = data.splits["val"].crystals
    empty = crystals.with_properties({**crystals.properties, "log_density": torch.full((12,), torch.nan)})
    data.splits["val"] = replace(data.splits["val"], crystals=empty)
    config = config_of(tmp_path / "run", vae_checkpoint)
    config.trainer.max_epochs = 1
    metrics = train_predictor(config, datamodule=data).metrics
    assert "val/log_density_mae" not in metrics
    assert all(np.isfinite(value) for name, value in metrics.items() if not name.endswith("_r2"))


@pytest.mark.parametrize("mode", list(FidelityMode))
def test_an_added_fidelity_begins_at_the_references_prediction(tmp_path, vae_checkpoint, mode, crystals):
    base = run(
        tmp_path / "base", vae_checkpoint, epochs=1, targets={"density": TargetOptions(extent=Extent.NONE)}
    )
    data = datamodule()
    codes = torch.arange(44) % 2
    train = data.splits["train"].crystals
    data.splits["train"] = replace(
        data.splits["train"], crystals=train.with_properties({**train.properties, "fidelity": codes.float()})
    )
    data.config = FidelityNames(data.config)
    config = config_of(tmp_path / "more", None, predictor_ckpt_path=str(base.last_path), fidelity_mode=mode)
    config.predictor_module.optimizer.lr = 1e-30  # the first weights
    config.trainer.max_epochs = 1
    result = train_predictor(config, datamodule=data)
    old = load_predictor(base.last_path).network
    new = load_predictor(result.last_path).network
    assert new.config.fidelities == ["PBE", "HSE"]
    expected = old.predict(crystals)["density"]
    for code in (0.0, 1.0):
        at = crystals.with_properties({"fidelity": torch.full((len(crystals),), code)})
        torch.testing.assert_close(new.predict(at)["density"], expected)
    assert "val/PBE/density_mae" in result.metrics


class FidelityNames:
    """The data's settings with two fidelities that no file stands behind."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.fidelities = {"PBE": None, "HSE": None}
        self.reference = "PBE"
        self.fidelity_weights = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._config, name)


def test_a_frozen_trunk_stays_and_the_rest_moves(tmp_path, vae_checkpoint):
    base = run(tmp_path / "base", vae_checkpoint, epochs=1, ensemble=1)
    more = run(tmp_path / "more", None, epochs=1, predictor_ckpt_path=str(base.last_path), freeze=["proj.0"])
    one, other = read(base.last_path)["latentite"]["ema"], read(more.last_path)["state_dict"]
    assert one["proj.0.weight"].equal(other["network.proj.0.weight"])
    assert not one["proj.8.weight"].equal(other["network.proj.8.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_conditions": ["hardness"]}, "target hardness must be a label of the crystals"),
        ({"freeze": ["trunk"]}, "predictor_module.freeze must hold beginnings"),
        ({"encoder": EncoderTraining.LAST, "encoder_layers": 7}, "encoder_layers must be at most 1"),
    ],
)
def test_mistakes_are_named(tmp_path, vae_checkpoint, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", vae_checkpoint, **changes)


@pytest.mark.parametrize("key", ["vae_ckpt_path", "predictor_ckpt_path"])
def test_a_checkpoint_that_is_not_there_is_named_with_its_key(tmp_path, key):
    missing = {"vae_ckpt_path": None} | {key: str(tmp_path / "none.ckpt")}
    config = config_of(tmp_path / "run", None, **missing)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"predictor_module\.{key}: .*none\.ckpt"):
        train_predictor(config, datamodule=datamodule())


def test_other_targets_than_those_of_the_base_are_refused(tmp_path, vae_checkpoint):
    base = run(tmp_path / "base", vae_checkpoint, epochs=1)
    with pytest.raises(ValueError, match="target_conditions must be"):
        run(tmp_path / "x", None, predictor_ckpt_path=str(base.last_path), target_conditions=["density"])
