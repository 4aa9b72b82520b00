"""The demo, with a few random crystals and a tiny network in place of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentite import cli, hub
from latentite.checkpoint import read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset, write_dataset
from latentite.demo import length as demo_length
from latentite.demo import run as demo
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult, RunStatus
from latentite.training.settings import Precision
from latentite.training.stage_settings import TrainVAEConfig


@pytest.fixture
def small_demo(
    tmp_path: Path, crystals: CrystalBatch, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Folder in which the demo will run on sixteen crystals, without bundled weights."""
    folder = tmp_path / "data"
    for split, chosen in (("train", slice(0, 10)), ("val", slice(10, 13)), ("test", slice(13, 16))):
        part = crystals.select(torch.arange(16)[chosen])
        names = tuple(f"{split}-{i}" for i in range(len(part)))
        write_dataset(
            folder / f"{split}.safetensors", CrystalDataset(crystals=part, ids=names, content_hash=split)
        )
    size = {"d_model": 16, "num_heads": 2, "dim_feedforward": 32, "num_layers": 1}
    overrides = [f"vae_module.{part}.{key}={size[key]}" for part in ("encoder", "decoder") for key in size]
    overrides += [f"data.data_dir={folder}", "data.batch_size=4", "callbacks.progress_bar=false"]
    monkeypatch.setitem(demo.OVERRIDES, "vae", [*demo.OVERRIDES["vae"], *overrides])
    tiny = {"size": "custom", "depth": 1, "hidden_size": 16, "num_heads": 2}
    overrides = [f"ldm_module.denoiser.{key}={value}" for key, value in tiny.items()]
    overrides += [f"data.data_dir={folder}", "data.batch_size=4", "callbacks.progress_bar=false"]
    monkeypatch.setitem(demo.OVERRIDES, "ldm", [*demo.OVERRIDES["ldm"], *overrides])
    overrides = ["trainer.max_epochs=2", "predictor_module.hidden=[8]", "trainer.check_val_every_n_epoch=1"]
    overrides += [f"data.data_dir={folder}", "data.batch_size=4", "callbacks.progress_bar=false"]
    monkeypatch.setitem(demo.OVERRIDES, "predictor", [*demo.OVERRIDES["predictor"], *overrides])
    overrides = ["trainer.limit_train_batches=2", "rl_module.sampling.steps=3", "data.eval_batch_size=3"]
    overrides += ["rl_module.rl_configs.num_group_samples=2", "rl_module.rl_configs.num_train_steps=2"]
    overrides += [f"data.data_dir={folder}", "callbacks.progress_bar=false"]
    monkeypatch.setitem(demo.OVERRIDES, "rl", [*demo.OVERRIDES["rl"], *overrides])
    # A fixed number of steps, however busy the machine is.
    for name in ("vae_seconds_per_step", "ldm_seconds_per_step"):
        monkeypatch.setattr(demo, name, lambda *arguments: lambda precision: 0.01)
    monkeypatch.setattr(demo_length, "SLOWEST", 1000.0)
    monkeypatch.setattr(demo, "NUM_SAMPLES", 4)
    monkeypatch.setattr(demo, "NUM_STEPS", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.pictures
def test_demo_leaves_a_report_pictures_and_a_checkpoint_and_prints_the_rates(
    small_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--out", "here", "--minutes", "0.05"]) == 0
    out = small_demo / "here"
    summary = json.loads((out / "reconstruction" / "summary.json").read_text(encoding="utf-8"))
    assert summary["num_evaluated"] == 3
    assert summary["rates"]["match_loose"]["denominator"] == 3
    pictures = (
        "reconstructions",
        "samples",
        "training_vae",
        "training_ldm",
        "training_rl",
        "reconstruction/reconstructions",
        "predictor/parity_test",
        "predictor/calibration_test",
    )
    for name in pictures:
        assert (out / f"{name}.png").stat().st_size > 1000
    for stage in ("vae", "predictor", "ldm", "rl"):
        assert read_checkpoint(out / stage / "checkpoints" / "last.ckpt").stage == stage
    manifest = json.loads((out / "samples" / "manifest.json").read_text(encoding="utf-8"))
    cifs = list((out / "samples" / "cifs").glob("*.cif"))
    assert len(cifs) == manifest["counts"]["written"]
    assert len(cifs) + manifest["counts"]["failed"] == 4
    assert json.loads((out / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert "of 3;" in printed
    assert "asked 4, written" in printed
    assert "density of test crystals predicted with a mean absolute error of" in printed
    assert "predictor/parity_test.png" in printed
    assert re.search(r"reward -?[\d.]+ -> -?[\d.]+, mean density [\d.]+ -> [\d.]+ g/cm\^3", printed)
    assert "training_rl.png" in printed


def test_the_demo_samples_from_bundled_weights_where_there_are_any(tmp_path: Path, own_cache: Path) -> None:
    own = tmp_path / "last.ckpt"
    assert demo.sampled_model(own) == (own, {"steps": demo.NUM_STEPS})
    (tmp_path / "ckpts").mkdir()
    bundled = tmp_path / "ckpts" / f"{hub.DEFAULT_GPT}.safetensors"
    bundled.write_bytes(b"x")
    assert demo.sampled_model(own) == (bundled, {})


def test_demo_without_time_is_refused_before_anything_is_written(
    small_demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--out", "here", "--minutes", "0"]) == 2
    assert "--minutes must be more than 0" in capsys.readouterr().err
    assert not (small_demo / "here").exists()


def test_the_schedule_of_the_demo_ends_with_its_steps(tmp_path: Path) -> None:
    config = demo.demo_config("vae", TrainVAEConfig, tmp_path, seed=3)
    assert config.seed == 3
    assert config.vae_module.scheduler.name == "cosine"
    assert config.data.name == "prototypes"


def test_steps_are_timed_on_throw_away_networks(small_demo: Path) -> None:
    config = demo.demo_config("vae", TrainVAEConfig, small_demo, seed=0)
    data = CrystalDataModule(config.data)
    before = torch.get_rng_state()
    assert 0 < demo_length.vae_seconds_per_step(config.vae_module, data)(Precision.FP32) < 60
    assert torch.get_rng_state().equal(before)


def test_the_demo_says_what_reinforcement_learning_changed(tmp_path: Path) -> None:
    def judged(reward: float) -> demo.Judgement:
        return demo.Judgement(reward=reward, density=2 * reward, valid=0.5, unusable=0.25)

    fit = FitResult(
        status=RunStatus.FINISHED,
        run_dir=tmp_path,
        last_path=tmp_path / "last.ckpt",
        best_path=None,
        metrics={},
    )
    result = demo.Reinforced(
        fit=fit, num_judged=64, before=judged(3.0), after=judged(4.5), picture=tmp_path / "x.png"
    )
    text = "\n".join(result.lines())
    assert "64 crystals of the same seeds" in text
    assert "reward 3.00 -> 4.50, mean density 6.00 -> 9.00 g/cm^3" in text
    assert "SMACT-valid 50% -> 50%, unusable 25% -> 25%" in text
    stopped = replace(fit, status=RunStatus.PREEMPTED)
    with pytest.raises(KeyboardInterrupt):
        demo.finished(stopped)
