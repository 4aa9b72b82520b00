"""Chemeleon2's checkpoints as bases of our stages: fine-tuned, resumed, rewarded, and carried on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_rl import tiny_rl_config
from tiny_run import assert_same, read, tiny_datamodule, tiny_ldm_config

import latentite
from chemeleon2_files import BAND_GAP, LATENT, write_ldm, write_vae
from latentite.diffusion.samplers import SamplerKind
from latentite.generators.latent.chain import SamplingConfig
from latentite.interop.chemeleon2 import import_checkpoint
from latentite.interop.export import export_chemeleon2
from latentite.models import load_ldm
from latentite.nn.conditions import AbsentPlace
from latentite.nn.denoiser import OutputLayout
from latentite.nn.lora import LoraConfig
from latentite.objectives.ldm import Compatibility
from latentite.rl.rollouts import Policy, Prompts, build_chain, collect
from latentite.rl.update import passes
from latentite.stages import train_ldm, train_rl
from latentite.training.conditions import ConditionModuleOptions
from latentite.training.datamodule import CrystalDataModule
from latentite.training.stage_settings import TrainLDMConfig


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))


def finetune(run_dir: Path, base: Path, *, epochs: int = 1, **changes: object) -> TrainLDMConfig:
    config = tiny_ldm_config(run_dir, base, trainer__max_epochs=epochs, ldm_module__ldm_ckpt_path=str(base))
    config.ldm_module.vae_ckpt_path = None
    for name, value in changes.items():
        setattr(config.ldm_module, name, value)
    return config


def data_for(names: list[str] | None = None) -> CrystalDataModule:
    data = tiny_datamodule(count=24)
    data.config.target_condition = names
    return data


def test_fine_tuning_keeps_the_habits_of_the_base_and_can_be_given_back(tmp_path: Path) -> None:
    base = write_ldm(tmp_path)
    result = train_ldm(finetune(tmp_path / "run", base), datamodule=data_for())
    before, after = load_ldm(base), load_ldm(result.last_path, weights="raw")
    assert after[1].diffusion.compatibility is Compatibility.CHEMELEON2
    assert after[1].denoiser.output_layout is OutputLayout.CHEMELEON2
    one, other = before[0].state_dict(), after[0].state_dict()
    moved = {name for name in one if not one[name].equal(other[name])}
    assert moved
    assert all(name.startswith("denoiser.") for name in moved)
    theirs = export_chemeleon2(
        result.last_path, tmp_path / "back.ckpt", weights="raw", vae_ckpt_path="small_vae.ckpt"
    )
    back = import_checkpoint(theirs)
    assert all(back.state[name].equal(other[name]) for name in other)


def test_a_fine_tuning_that_was_interrupted_resumes_exactly(tmp_path: Path) -> None:
    base = write_ldm(tmp_path)
    whole = train_ldm(finetune(tmp_path / "whole", base, epochs=2), datamodule=data_for())
    half = train_ldm(finetune(tmp_path / "half", base, epochs=1), datamodule=data_for())
    config = finetune(tmp_path / "rest", base, epochs=2)
    config.ckpt_path = half.last_path
    rest = train_ldm(config, datamodule=data_for())
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_same(read(whole.last_path)[key], read(rest.last_path)[key], key)


def test_adapters_and_new_conditions_on_an_imported_base(tmp_path: Path) -> None:
    names = ["volume_per_atom"]
    config = finetune(
        tmp_path / "run",
        write_ldm(tmp_path),
        lora=LoraConfig(rank=2, alpha=4.0),
        condition_module=ConditionModuleOptions(),
    )
    result = train_ldm(config, datamodule=data_for(names))
    network, settings, _ = load_ldm(result.last_path)
    assert network.condition_module is not None
    assert list(network.condition_module.names) == names
    assert settings.condition_module is not None
    assert settings.condition_module.absent is AbsentPlace.OUTPUT  # new conditions have no habits to keep
    assert settings.denoiser.output_layout is OutputLayout.CHEMELEON2


def test_an_imported_conditional_base_keeps_its_conditions_and_their_statistics(tmp_path: Path) -> None:
    data = data_for(["band_gap"])
    for name, split in data.splits.items():
        labels = torch.linspace(0.0, 5.0, len(split.crystals))
        labelled = split.crystals.with_properties({"band_gap": labels})
        data.splits[name] = replace(split, crystals=labelled)
    base = write_ldm(tmp_path, is_conditional=True)
    config = finetune(tmp_path / "run", base, condition_module=ConditionModuleOptions())
    network, settings, _ = load_ldm(train_ldm(config, datamodule=data).last_path)
    assert network.condition_module is not None
    assert network.condition_module.statistics == {"band_gap": pytest.approx(BAND_GAP)}
    assert settings.condition_module is not None
    assert settings.condition_module.absent is AbsentPlace.INPUT
    assert settings.condition_module.conditions[0].unit == "eV"  # the file does not say it, the run does


def test_a_new_diffusion_model_in_the_latents_of_an_imported_vae(tmp_path: Path) -> None:
    config = tiny_ldm_config(tmp_path / "run", write_vae(tmp_path), trainer__max_epochs=1)
    config.ldm_module.denoiser.latent_dim = LATENT
    network, settings, _ = load_ldm(train_ldm(config, datamodule=data_for()).last_path)
    assert settings.diffusion.compatibility is Compatibility.NONE
    expected = import_checkpoint(tmp_path / "small_vae.ckpt").state
    assert all(network.vae.state_dict()[name].equal(expected[name]) for name in expected)


def test_reinforcement_learning_from_an_imported_model_resumes_and_can_be_sampled(tmp_path: Path) -> None:
    base = write_ldm(tmp_path)

    def run(name: str, epochs: int, start: Path | None = None) -> Path:
        config = tiny_rl_config(tmp_path / name, base)
        config.trainer.max_epochs, config.trainer.limit_train_batches = epochs, 1
        config.ckpt_path = start
        return train_rl(config, datamodule=tiny_datamodule(batch_size=3)).last_path

    whole = run("whole", 2)
    rest = run("rest", 2, start=run("half", 1))
    assert_same(read(whole)["state_dict"], read(rest)["state_dict"], "state_dict")
    network, settings, _ = load_ldm(whole)
    assert settings.denoiser.output_layout is OutputLayout.CHEMELEON2
    before, after = load_ldm(base)[0].state_dict(), network.state_dict()
    assert any(not before[name].equal(after[name]) for name in before)
    found = latentite.generate(str(whole), num_samples=3, steps=5, num_atoms="2:4", seed=0)
    assert len(found.crystals) == 3


def test_the_policy_of_an_imported_model_is_the_same_in_its_updates(tmp_path: Path) -> None:
    """Its variance channel depends on padding, and updates see crystals in other company than rollouts do."""
    torch.manual_seed(0)
    network, settings, _ = load_ldm(write_ldm(tmp_path))
    sampling = SamplingConfig(sampler=SamplerKind.DDPM, steps=5)
    policy, chain = Policy(network=network, sampling=sampling), build_chain(settings.diffusion, sampling)
    crystals = tiny_datamodule().splits["val"].crystals
    assert len(crystals.num_atoms.unique()) > 1
    rollout = collect(policy, chain, Prompts.of(crystals, num_samples=2, run_seed=1))
    crystal = torch.arange(len(rollout)).repeat(rollout.num_decisions)
    step = torch.arange(rollout.num_decisions).repeat_interleave(len(rollout))

    @torch.no_grad()
    def difference(is_padded: bool) -> float:
        worst = 0.0
        for rows in passes(rollout.num_atoms[crystal], 8192, is_padded=is_padded):
            asked = rollout.transitions(step[rows], crystal[rows])
            found = chain.moments(policy.denoise({}, asked.mask), asked.states, asked.levels, asked.mask)
            worst = max(worst, float(((found.std - asked.old.std) / (asked.old.std + 1e-12)).abs().max()))
        return worst

    assert difference(is_padded=False) < 1e-4
    assert difference(is_padded=True) > 1e-3, "the test must be able to fail"
