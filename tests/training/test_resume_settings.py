"""A resumed run does what its config says: every setting acts and is said, or is refused by name.

Before, `ckpt_path=` with another rate wrote the new one into config.yaml and trained on with the old one, which the
optimizer's state brought along; weight decay switched on ended in Lightning's words about parameter groups.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_rl import make_usable, tiny_rl_config
from tiny_run import assert_same, read, tiny_datamodule, tiny_ldm_config, tiny_split

from latentite.base.plain import to_plain
from latentite.stages import train_ldm, train_rl, train_vae
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult, RunStatus
from latentite.training.optim import OptimizerName, SchedulerConfig, lr_factor
from latentite.training.settings import DataConfig, EarlyStoppingConfig, MonitorMode, Precision
from latentite.training.vae import VAETrainingModule

CONSTANT = {"vae_module__scheduler": SchedulerConfig()}


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="latentite")


@pytest.fixture
def vae(make_config):
    """`vae("name", trainer__max_epochs=2)` trains a tiny VAE."""

    def run(name: str, **changes: Any) -> FitResult:
        data = changes.pop("datamodule", None) or tiny_datamodule()
        return train_vae(make_config(name, **changes), datamodule=data)

    return run


def groups(result: FitResult) -> list[dict]:
    return read(result.last_path)["optimizer_states"][0]["param_groups"]


def recorded(result: FitResult) -> dict:
    return yaml.safe_load((result.run_dir / "config.yaml").read_text())


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("lr", 1e-5, "vae_module.optimizer.lr: 0.003 in the checkpoint, 1e-05 from now on"),
        (
            "betas",
            (0.5, 0.6),
            "vae_module.optimizer.betas: [0.9,0.999] in the checkpoint, [0.5,0.6] from now on",
        ),
        ("eps", 1e-6, "vae_module.optimizer.eps: 1e-08 in the checkpoint, 1e-06 from now on"),
        ("weight_decay", 0.2, "vae_module.optimizer.weight_decay: 0.01 in the checkpoint, 0.2 from now on"),
        ("weight_decay", 0.0, "vae_module.optimizer.weight_decay: 0.01 in the checkpoint, 0.0 from now on"),
    ],
)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_changed_setting_of_the_optimizer_acts_and_is_said(vae, caplog, schedule, key, value, line):
    shared = CONSTANT if schedule == "constant" else {}
    half = vae("half", trainer__max_epochs=1, **shared)
    changes = {f"vae_module__optimizer__{key}": value, "ckpt_path": half.last_path}
    rest = vae("rest", trainer__max_epochs=2, **shared, **changes)
    assert line in caplog.messages
    assert recorded(rest)["vae_module"]["optimizer"][key] == to_plain(value)
    found = {group[key] for group in groups(rest)}
    if key == "lr":
        schedule_config = SchedulerConfig(name="cosine", warmup_steps=3, total_steps=24)
        share = 1.0 if schedule == "constant" else lr_factor(schedule_config, 24)(12)
        assert found == {value * share}
    elif key == "weight_decay":
        assert found == {value, 0.0}
    else:
        assert found == {value}


def test_weight_decay_switched_on_keeps_what_the_optimizer_remembers(vae):
    """The groups change: matrices apart from vectors. Each parameter must keep its own moments."""
    half = vae("half", trainer__max_epochs=1, vae_module__optimizer__weight_decay=0.0)
    changes = {"trainer__max_steps": 7, "ckpt_path": half.last_path}
    same = vae("same", **changes, vae_module__optimizer__weight_decay=0.0)
    other = vae("other", **changes, vae_module__optimizer__weight_decay=1e-12)
    one, two = read(same.last_path), read(other.last_path)
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=0, atol=1e-7)
    assert one["optimizer_states"][0]["state"][0]["step"] == 7
    assert two["optimizer_states"][0]["state"][0]["step"] == 7


def test_an_unchanged_run_resumes_without_a_line_about_settings(vae, caplog):
    half = vae("half", trainer__max_steps=8)
    vae("rest", trainer__max_steps=-1, ckpt_path=half.last_path)
    said = [line for line in caplog.messages if "from now on" in line]
    assert said == ["trainer.max_steps: 8 in the checkpoint, -1 from now on"]


def test_another_optimizer_is_refused_by_name(vae):
    half = vae("half", trainer__max_epochs=1)
    with pytest.raises(
        ValueError, match=r"vae_module\.optimizer\.name is adamw .* set vae_module\.optimizer\.name=adamw"
    ):
        vae("rest", ckpt_path=half.last_path, vae_module__optimizer__name=OptimizerName.SGD)


@pytest.mark.parametrize("before", ["constant", "plateau", "cosine", "warmup_linear"])
@pytest.mark.parametrize("after", ["constant", "plateau", "cosine", "warmup_linear"])
def test_another_schedule_goes_on_at_the_step_of_the_run(vae, before, after):
    def scheduler(name: str) -> SchedulerConfig:
        return SchedulerConfig(name=name, total_steps=24)

    half = vae("half", trainer__max_epochs=1, vae_module__scheduler=scheduler(before))
    rest = vae(
        "rest", trainer__max_epochs=2, vae_module__scheduler=scheduler(after), ckpt_path=half.last_path
    )
    share = 1.0 if after in ("constant", "plateau") else lr_factor(scheduler(after), 24)(12)
    assert {group["lr"] for group in groups(rest)} == {3e-3 * share}


def test_another_length_of_a_schedule_that_still_runs_acts_and_is_said(vae, caplog):
    half = vae("half", trainer__max_epochs=1)
    rest = vae("rest", trainer__max_epochs=2, vae_module__scheduler__total_steps=48, ckpt_path=half.last_path)
    assert "vae_module.scheduler: 24 steps in the checkpoint, 48 from now on" in caplog.messages
    schedule = SchedulerConfig(name="cosine", warmup_steps=3)
    assert {group["lr"] for group in groups(rest)} == {3e-3 * lr_factor(schedule, 48)(12)}


def test_a_cosine_that_has_ended_is_not_stretched_by_a_longer_run(vae, caplog):
    """Before, the rate jumped from 0 to half of its peak, in silence."""
    cosine = {"vae_module__scheduler__total_steps": None, "vae_module__scheduler__warmup_steps": 0}
    done = vae("done", trainer__max_epochs=2, **cosine)
    with pytest.raises(
        ValueError, match=r"has ended \(step 12 of 12\).*total_steps=12 to .*total_steps=24 to stretch"
    ):
        vae("rest", trainer__max_epochs=4, **cosine, ckpt_path=done.last_path)
    cosine["vae_module__scheduler__total_steps"] = 24
    stretched = vae("stretched", trainer__max_epochs=3, **cosine, ckpt_path=done.last_path)
    assert {group["lr"] for group in groups(stretched)} == {
        3e-3 * lr_factor(SchedulerConfig(name="cosine"), 24)(18)
    }
    cosine["vae_module__scheduler__total_steps"] = 12
    vae("at_the_end", trainer__max_epochs=3, **cosine, ckpt_path=done.last_path)
    assert "has ended (step 12 of 12): the rate stays at 0 of lr, nothing is learnt" in caplog.text


def test_a_run_that_ended_in_its_warm_up_warms_up_on(vae):
    """Before, it was refused as a cosine that had ended, and each of the settings then offered was refused, too."""
    short = {"vae_module__scheduler__total_steps": None, "vae_module__scheduler__warmup_steps": 50}
    done = vae("done", trainer__max_epochs=2, **short)
    rest = vae("rest", trainer__max_epochs=3, **short, ckpt_path=done.last_path)
    assert [group["lr"] for group in groups(done)] == pytest.approx([3e-3 * 13 / 51] * len(groups(done)))
    assert [group["lr"] for group in groups(rest)] == pytest.approx([3e-3 * 19 / 51] * len(groups(rest)))


def test_a_refused_run_leaves_no_config_and_no_checkpoint(vae, make_config):
    cosine = {"vae_module__scheduler__total_steps": None}
    done = vae("done", trainer__max_epochs=1, **cosine)
    config = make_config("rest", trainer__max_epochs=4, **cosine, ckpt_path=done.last_path)
    with pytest.raises(ValueError, match="has ended"):
        train_vae(config, datamodule=tiny_datamodule())
    assert not (config.run_dir / "config.yaml").exists()
    assert not (config.run_dir / "checkpoints").exists()


def test_averaging_changed_on_resume_acts_and_is_said(vae, caplog):
    half = vae("half", trainer__max_epochs=1)
    off = vae("off", trainer__max_epochs=2, vae_module__ema__decay=0.0, ckpt_path=half.last_path)
    assert "vae_module.ema.decay: 0.9 in the checkpoint, 0.0 from now on" in caplog.messages
    assert read(off.last_path)["latentite"]["ema"] is None
    on = vae("on", trainer__max_epochs=3, vae_module__ema__decay=0.5, ckpt_path=off.last_path)
    assert read(on.last_path)["latentite"]["ema"] is not None


def test_a_batch_size_changed_between_epochs_acts_and_in_the_middle_of_one_is_refused(
    vae, monkeypatch, caplog
):
    """In the middle, some crystals would come twice in the epoch and others not at all."""
    original, calls = VAETrainingModule.training_step, []

    def step(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VAETrainingModule, "training_step", step)
        stopped = vae("stopped")
    assert stopped.status is RunStatus.PREEMPTED

    def larger() -> CrystalDataModule:
        return tiny_datamodule(batch_size=22)

    def resume(name: str, path: Path, data: CrystalDataModule, size: int) -> FitResult:
        return vae(name, trainer__max_epochs=3, datamodule=data, ckpt_path=path, data__batch_size=size)

    with pytest.raises(
        ValueError,
        match=r"data\.batch_size is 256 .*in the middle of epoch 2.*max_epochs=2 vae_module\.scheduler\.total_steps=24",
    ):
        resume("refused", stopped.last_path, larger(), 22)
    whole = vae("whole", trainer__max_epochs=2, ckpt_path=stopped.last_path)
    rest = resume("rest", whole.last_path, larger(), 22)
    assert "data.batch_size: 256 in the checkpoint, 22 from now on" in caplog.messages
    assert read(rest.last_path)["global_step"] == 12 + 2


def test_other_data_are_refused_with_both_names_unless_allowed(vae, caplog):
    half = vae("half", trainer__max_epochs=1)

    def other(**splits: Any) -> CrystalDataModule:
        splits = {"train": tiny_split(44, seed=1), "val": tiny_split(12, seed=2)} | splits
        return CrystalDataModule(DataConfig(name="other", batch_size=8), splits=splits)

    for split in ("train", "val"):
        data = other(**{split: tiny_split(20, seed=9)})
        what = (
            rf"{split} split is 'tiny' \(\d+ crystals, hash tiny-\d\), "
            r"that of this run is 'other' \(20 crystals, hash tiny-9\)"
        )
        with pytest.raises(ValueError, match=what + r".*allow_other_data=true"):
            vae(f"refused_{split}", ckpt_path=half.last_path, datamodule=data)
    data = other(train=tiny_split(20, seed=9))
    rest = vae(
        "rest", trainer__max_epochs=2, ckpt_path=half.last_path, datamodule=data, allow_other_data=True
    )
    assert read(rest.last_path)["global_step"] == 6 + 3
    assert any(line.startswith("train split: 'tiny' (44 crystals") for line in caplog.messages)
    vae("same_elsewhere", trainer__max_epochs=2, ckpt_path=half.last_path, datamodule=other())


@pytest.mark.parametrize("limit", ["epochs", "steps", "patience"])
def test_a_finished_run_says_so_and_leaves_what_the_next_job_of_a_chain_needs(vae, caplog, limit):
    """Lightning went through without a step and left an empty folder, in which the next job found no checkpoint."""
    stopping = EarlyStoppingConfig(monitor="val/loss", mode=MonitorMode.MAX, patience=1)
    changes: dict[str, Any] = {
        "epochs": {"trainer__max_epochs": 2},
        "steps": {"trainer__max_steps": 7},
        "patience": {"callbacks__early_stopping": stopping, "trainer__max_epochs": 20},
    }[limit]
    first = vae("first", **changes, callbacks__checkpoint__export=True)
    again = vae("again", **changes, callbacks__checkpoint__export=True, ckpt_path=first.last_path)
    third = vae("third", **changes, ckpt_path=again.run_dir / "checkpoints" / "last.ckpt")
    assert (again.status, third.status) == (RunStatus.FINISHED, RunStatus.FINISHED)
    assert caplog.text.count("already finished") == 2
    wanted = {
        "epochs": "at epoch 2 of 2; raise trainer.max_epochs",
        "steps": "at step 7 of 7",
        "patience": "early",
    }
    assert wanted[limit] in caplog.text
    assert third.last_path.read_bytes() == first.last_path.read_bytes()
    assert (again.run_dir / "checkpoints" / "model.safetensors").is_file()
    assert (again.run_dir / "config.yaml").is_file()
    assert again.metrics["val/loss"] == read(first.last_path)["latentite"]["metrics"]["val/loss"]


def test_a_finished_run_trains_on_when_there_is_more_to_do(vae):
    first = vae("first", trainer__max_epochs=1)
    again = vae("again", trainer__max_epochs=1, ckpt_path=first.last_path)
    rest = vae("rest", trainer__max_epochs=2, ckpt_path=again.last_path)
    whole = vae("whole", trainer__max_epochs=2)
    assert_same(read(whole.last_path)["state_dict"], read(rest.last_path)["state_dict"])


def test_a_new_patience_acts(vae):
    """Lightning restores the old one with the state."""
    short = EarlyStoppingConfig(monitor="val/loss", mode=MonitorMode.MAX, patience=1)
    first = vae("first", callbacks__early_stopping=short, trainer__max_epochs=20)
    epochs = read(first.last_path)["epoch"]
    longer = replace(short, patience=3)
    rest = vae("rest", callbacks__early_stopping=longer, trainer__max_epochs=20, ckpt_path=first.last_path)
    assert read(rest.last_path)["epoch"] >= epochs + 2


def test_best_epochs_by_another_metric_are_not_compared(vae, caplog):
    first = vae("first", trainer__max_epochs=1)
    changes = {"callbacks__checkpoint__monitor": "val/kl", "trainer__max_epochs": 2}
    rest = vae("rest", **changes, ckpt_path=first.last_path)
    assert rest.best_path is not None
    assert rest.best_path.parent == rest.run_dir / "checkpoints"
    assert "the best epochs of the checkpoint were measured otherwise" in caplog.text


def test_a_file_with_weights_only_is_refused(vae):
    first = vae("first", trainer__max_epochs=1, callbacks__checkpoint__export=True)
    content = read(first.last_path)
    del content["optimizer_states"]
    bare = first.run_dir / "bare.ckpt"
    torch.save(content, bare)
    for path in (bare, first.run_dir / "checkpoints" / "model.safetensors"):
        with pytest.raises(
            ValueError, match=r"ckpt_path: .* has weights only, nothing that training could go on from"
        ):
            vae("rest", ckpt_path=path)


def test_parameters_that_only_one_of_two_runs_has_are_refused_by_the_settings(vae):
    first = vae("first", trainer__max_epochs=1)
    changes = {"vae_module__loss_weights__fa": 1.0, "vae_module__fa_dim": 3}
    with pytest.raises(ValueError, match=r"alignment.* absent there .*vae_module\.loss_weights\.fa=0\.0"):
        vae("rest", **changes, ckpt_path=first.last_path)


def test_a_diffusion_run_goes_on_with_its_own_vae_only(vae, vae_checkpoint, tmp_path):
    """The VAE's weights are in the checkpoint: another one would be in config.yaml, but not in the run."""
    first = train_ldm(
        tiny_ldm_config(tmp_path / "first", vae_checkpoint, trainer__max_epochs=1),
        datamodule=tiny_datamodule(),
    )
    other = vae("other_vae", trainer__max_epochs=1, seed=1).last_path
    config = tiny_ldm_config(tmp_path / "rest", other, trainer__max_epochs=2, ckpt_path=first.last_path)
    with pytest.raises(
        ValueError, match=r"ldm_module\.vae_ckpt_path must name the weights that .*got others; set ldm"
    ):
        train_ldm(config, datamodule=tiny_datamodule())
    copied = shutil.copyfile(vae_checkpoint, tmp_path / "copy.ckpt")
    config = tiny_ldm_config(tmp_path / "rest", copied, trainer__max_epochs=2, ckpt_path=first.last_path)
    config.ldm_module.optimizer.lr = 1e-4
    rest = train_ldm(config, datamodule=tiny_datamodule())
    assert {group["lr"] for group in groups(rest)} == {1e-4}


def test_config_yaml_of_fine_tuning_has_the_network_of_the_base(vae_checkpoint, tmp_path):
    base = train_ldm(
        tiny_ldm_config(tmp_path / "base", vae_checkpoint, trainer__max_epochs=1),
        datamodule=tiny_datamodule(),
    )
    config = tiny_ldm_config(
        tmp_path / "tuned",
        vae_checkpoint,
        trainer__max_epochs=1,
        ldm_module__ldm_ckpt_path=str(base.last_path),
    )
    config.ldm_module.denoiser.depth = 5
    tuned = train_ldm(config, datamodule=tiny_datamodule())
    assert recorded(tuned)["ldm_module"]["denoiser"]["depth"] == 1


def test_reinforcement_learning_records_the_clipping_that_it_does_and_resumes_with_new_settings(
    vae_checkpoint, tmp_path, caplog
):
    """config.yaml said `gradient_clip_val: null`, as Lightning was told, while the module clipped."""
    ldm = train_ldm(
        tiny_ldm_config(tmp_path / "ldm", vae_checkpoint, trainer__max_epochs=1), datamodule=tiny_datamodule()
    )
    base = make_usable(ldm.last_path)

    def run(name: str, **changes: Any) -> FitResult:
        config = tiny_rl_config(tmp_path / name, base, **changes)
        return train_rl(config, datamodule=tiny_datamodule(batch_size=3))

    half = run("half", trainer__max_epochs=1)
    assert recorded(half)["trainer"]["gradient_clip_val"] == 1.0
    changes = {"rl_module__optimizer__lr": 1e-5, "trainer__gradient_clip_val": 0.5}
    rest = run("rest", ckpt_path=half.last_path, **changes)
    assert {group["lr"] for group in groups(rest)} == {1e-5}
    assert "rl_module.optimizer.lr: 0.001 in the checkpoint, 1e-05 from now on" in caplog.messages
    assert "trainer.gradient_clip_val: 1.0 in the checkpoint, 0.5 from now on" in caplog.messages
    with pytest.raises(ValueError, match=r"gradient_clip_algorithm must be left out"):
        tiny_rl_config(tmp_path, base).__class__(
            trainer=replace(
                tiny_rl_config(tmp_path, base).trainer, options={"gradient_clip_algorithm": "value"}
            ),
            rl_module=tiny_rl_config(tmp_path, base).rl_module,
        )


def test_a_number_format_that_would_be_another_is_refused(vae):
    """Lightning takes bf16 on a CPU, and config.yaml would say fp16."""
    with pytest.raises(
        ValueError, match=r"trainer\.precision must be bf16-mixed on this machine, got 16-mixed"
    ):
        vae("run", trainer__precision=Precision.FP16_MIXED)


@pytest.mark.parametrize("name", ["logger", "inference_mode", "nothing"])
def test_options_of_the_trainer_that_cannot_act_are_refused(vae, name):
    with pytest.raises(ValueError, match=rf"trainer\.options\.{name} is .*; leave it out"):
        vae("run", trainer__options={name: None})
