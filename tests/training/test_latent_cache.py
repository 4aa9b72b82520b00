"""The latent cache changes the speed of training and, without augmentation, nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same, read, tiny_datamodule, tiny_ldm_config, tiny_split

from latentite.data.sampler import AugmentationConfig, seeded_generator
from latentite.models import load_vae
from latentite.nn.vae import CrystalVAE
from latentite.stages import train_ldm
from latentite.training.latent_cache import CachedLatents, encode_split
from latentite.training.ldm import LDMTrainingModule
from latentite.training.stage_settings import TrainLDMConfig

OFF = AugmentationConfig(translate=False, rotate=False)


@pytest.fixture
def vae(vae_checkpoint: Path) -> CrystalVAE:
    return load_vae(vae_checkpoint)[0]


def encoded(vae: CrystalVAE, num_copies: int, augmentation: AugmentationConfig) -> CachedLatents:
    return encode_split(
        vae,
        tiny_split(30, seed=3).crystals,
        num_copies=num_copies,
        augmentation=augmentation,
        values={"size": tiny_split(30, seed=3).crystals.num_atoms.float()},
        generator=lambda copy, chunk: seeded_generator(0, copy, chunk),
    )


def test_a_cached_batch_is_what_encoding_these_crystals_gives(vae: CrystalVAE) -> None:
    cached = encoded(vae, 1, OFF)
    index = torch.tensor([7, 2, 29, 2])
    batch = cached.select(index)
    found = cached.posterior(batch, torch.Generator())
    with torch.no_grad():
        wanted = vae.encode(tiny_split(30, seed=3).crystals.select(index))
    torch.testing.assert_close(found.mean, wanted.mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.logvar, wanted.logvar, atol=1e-6, rtol=1e-5)
    assert len(batch) == 4
    assert cached.condition_values(batch)["size"].equal(batch.num_atoms.float())


def test_all_atoms_of_a_crystal_come_from_one_copy_and_all_copies_are_used(vae: CrystalVAE) -> None:
    cached = encoded(vae, 3, AugmentationConfig())
    assert not cached.means[0].allclose(cached.means[1], atol=1e-3), "copies must differ"
    marked = replace(cached, means=torch.arange(3.0)[:, None, None].expand_as(cached.means))
    batch = cached.select(torch.arange(30))
    copies = marked.posterior(batch, seeded_generator(1)).mean[:, 0]
    of_crystal = torch.segment_reduce(copies, "max", lengths=batch.num_atoms)
    assert copies.equal(of_crystal.repeat_interleave(batch.num_atoms))
    assert set(of_crystal.tolist()) == {0.0, 1.0, 2.0}


def cached_config(run_dir: Path, vae: Path, num_copies: int, **changes: object) -> TrainLDMConfig:
    return tiny_ldm_config(run_dir, vae, ldm_module__latent_cache=num_copies, **changes)


@pytest.mark.parametrize("sample_posterior", [False, True])
def test_without_augmentation_the_losses_are_those_without_cache(
    sample_posterior: bool, vae_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[int, list[float]] = {0: [], 1: []}
    original = LDMTrainingModule.training_step

    def step(self: LDMTrainingModule, batch: object, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx)  # type: ignore[arg-type]  # either kind of batch
        losses[self.config.latent_cache].append(float(loss.detach()))
        return loss

    monkeypatch.setattr(LDMTrainingModule, "training_step", step)
    for num_copies in losses:
        config = cached_config(
            tmp_path / str(num_copies),
            vae_checkpoint,
            num_copies,
            trainer__max_epochs=2,
            ldm_module__augmentation=OFF,
            ldm_module__sample_posterior=sample_posterior,
        )
        train_ldm(config, datamodule=tiny_datamodule())
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)


def test_the_encoder_works_once_per_copy_and_for_validation_only(
    vae_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    original = CrystalVAE.encode
    monkeypatch.setattr(CrystalVAE, "encode", lambda self, b: calls.append(len(b)) or original(self, b))
    train_ldm(cached_config(tmp_path, vae_checkpoint, 3, trainer__max_epochs=1), datamodule=tiny_datamodule())
    assert calls == [44, 44, 44, 8, 4]


def test_resuming_with_a_cache_equals_not_stopping_bit_for_bit(vae_checkpoint: Path, tmp_path: Path) -> None:
    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> Path:
        changes = {"trainer__max_epochs": epochs, "ckpt_path": ckpt_path}
        config = cached_config(tmp_path / name, vae_checkpoint, 4, **changes)
        return train_ldm(config, datamodule=tiny_datamodule()).last_path

    one, other = read(run("whole", 3)), read(run("rest", 3, run("half", 2)))
    assert_same(one["state_dict"], other["state_dict"])
    assert_same(one["latentite"], other["latentite"])
    assert_same(one["optimizer_states"], other["optimizer_states"])


def test_the_data_module_serves_crystals_again_after_the_run(vae_checkpoint: Path, tmp_path: Path) -> None:
    data = tiny_datamodule()
    for name, num_copies in (("cached", 2), ("plain", 0)):
        config = cached_config(tmp_path / name, vae_checkpoint, num_copies, trainer__max_epochs=1)
        train_ldm(config, datamodule=data)
    assert data.train_dataloader().source is data.splits["train"].crystals


def test_copies_that_would_be_equal_are_refused(vae_checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_ldm_config(tmp_path, vae_checkpoint).ldm_module
    with pytest.raises(ValueError, match=r"latent_cache must be 0 or 1 without augmentation.*got 2"):
        replace(config, augmentation=OFF, latent_cache=2)
    with pytest.raises(ValueError, match=r"latent_cache must be 0 \(off\) or more, got -1"):
        replace(config, latent_cache=-1)
