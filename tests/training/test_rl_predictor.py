"""A predictor of stage 4 as the reward of stage 3: what it predicts is what is paid, and wrong ones are refused."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_rl import make_usable, tiny_rl_config
from tiny_run import tiny_config, tiny_datamodule, tiny_ldm_config, tiny_split

from latentite.data.canonical import canonicalize_many
from latentite.data.dataset import CrystalDataset
from latentite.data.properties import derive
from latentite.models import load_predictor
from latentite.predictor.predict import predict_dataset
from latentite.predictor.settings import PredictorModuleConfig, TrainPredictorConfig
from latentite.rewards.combine import RewardConfig, Rewards
from latentite.rewards.predictor import PredictorReward
from latentite.rewards.protocol import check_reward
from latentite.stages import train_ldm, train_predictor, train_rl
from latentite.training.datamodule import CrystalDataModule
from latentite.training.settings import DataConfig


def labelled(count: int, seed: int) -> CrystalDataset:
    dataset = tiny_split(count, seed=seed)
    density, volume = (derive(name, dataset.crystals) for name in ("density", "volume_per_atom"))
    return replace(dataset, crystals=dataset.crystals.with_properties({"density": density, "volume": volume}))


@pytest.fixture(scope="module")
def predictor(vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble of two targets, trained for an epoch."""
    folder = tmp_path_factory.mktemp("predictor")
    shared = tiny_config(folder, trainer__max_epochs=1)
    module = PredictorModuleConfig(
        vae_ckpt_path=str(vae_checkpoint), target_conditions=["density", "volume"], ensemble=2
    )
    config = TrainPredictorConfig(
        run_dir=folder,
        trainer=shared.trainer,
        logger=shared.logger,
        callbacks=shared.callbacks,
        predictor_module=module,
    )
    splits = {"train": labelled(44, 1), "val": labelled(12, 2)}
    data = CrystalDataModule(DataConfig(name="tiny", batch_size=8), splits=splits)
    return train_predictor(config, datamodule=data).last_path


def test_what_is_predicted_is_what_is_paid(predictor: Path) -> None:
    """Against `latentite predict`, which wants canonical crystals and is given them here."""
    crystals = tiny_split(9, seed=7).crystals
    network = load_predictor(predictor).network
    canonical = type(crystals).from_arrays(canonicalize_many(crystals.to_arrays()))
    dataset = CrystalDataset(crystals=canonical, ids=tuple("abcdefghi"), content_hash="x")
    table = predict_dataset(network, dataset)
    values, spreads = torch.tensor(table.columns["volume"]), torch.tensor(table.columns["volume_std"])
    structures = crystals.to_structures()
    for goal, wanted in (
        ({"maximise": True, "scale": 2.0}, values / 2.0),
        ({"target": 20.0}, -(values - 20.0).abs()),
    ):
        reward = PredictorReward(predictor, "volume", batch_size=4, **goal)
        torch.testing.assert_close(reward(structures, crystals), wanted.float(), rtol=1e-4, atol=1e-4)
        check_reward(reward, crystals)
    limit = float(spreads.median())
    sure = PredictorReward(predictor, "volume", max_std=limit * 1.0001, maximise=True)(structures, crystals)
    assert sure.isnan().sum() == 4, "half of nine are less sure than the fifth"


def test_predictions_beyond_floor_and_cap_earn_no_more(predictor: Path) -> None:
    crystals = tiny_split(9, seed=7).crystals
    spec = {
        "_target_": "latentite.rewards.predictor.PredictorReward",
        "predictor": str(predictor),
        "property": "volume",
        "maximise": True,
    }
    free = Rewards.build(RewardConfig(components={"predictor": spec}))(crystals).total
    low, high = (float(free.quantile(q)) for q in (0.3, 0.6))
    bound = Rewards.build(RewardConfig(components={"predictor": spec | {"floor": low, "cap": high}}))(
        crystals
    )
    torch.testing.assert_close(bound.total, free.clamp(low, high))
    assert free.max() > high


def test_a_run_is_trained_towards_a_prediction(predictor: Path, vae_checkpoint: Path, tmp_path: Path) -> None:
    base = train_ldm(
        tiny_ldm_config(tmp_path / "ldm", vae_checkpoint, trainer__max_epochs=1), datamodule=tiny_datamodule()
    ).last_path
    spec = {
        "_target_": "latentite.rewards.predictor.PredictorReward",
        "predictor": str(predictor),
        "property": "density",
        "target": 5.0,
    }
    config = tiny_rl_config(
        tmp_path / "rl", make_usable(base), components={"gap": spec}, trainer__max_epochs=1
    )
    result = train_rl(config, datamodule=tiny_datamodule(batch_size=3))
    rows = [row for row in csv.DictReader((result.run_dir / "metrics.csv").open()) if row["reward/gap/raw"]]
    assert [float(row["reward/gap/failed"]) for row in rows] == [0.0, 0.0]
    assert all(float(row["reward/gap/raw"]) < 0.0 for row in rows)


def test_wrong_predictors_and_goals_are_refused_before_a_run(predictor: Path, vae_checkpoint: Path) -> None:
    for arguments, message in (
        ({"predictor": None, "maximise": True}, "predictor must name a checkpoint of a property predictor"),
        ({"predictor": predictor, "maximise": True}, r"property must be one of density, volume, .* got None"),
        ({"predictor": predictor, "property": "gap", "maximise": True}, r"density, volume, .* got 'gap'"),
        ({"predictor": predictor, "property": "density"}, "a goal must be exactly one of"),
        (
            {"predictor": predictor, "property": "density", "maximise": True, "max_std": 0.0},
            "max_std must be above 0",
        ),
        ({"predictor": vae_checkpoint, "maximise": True}, "expected a predictor checkpoint"),
        ({"predictor": "nowhere.ckpt", "maximise": True}, "nowhere.ckpt"),
    ):
        with pytest.raises(ValueError, match=message):
            PredictorReward(**arguments)
