"""Stage 2 on a tiny scale: trains on a frozen VAE, resumes exactly, and its checkpoint stands alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same, read, tiny_datamodule, tiny_ldm_config

from latentite.checkpoint import Stage, read_checkpoint
from latentite.generators.jobs import Jobs
from latentite.generators.latent.chain import SamplingConfig, sample_jobs
from latentite.models import load_ldm
from latentite.nn.denoiser import DenoiserConfig
from latentite.objectives.ldm import DiffusionKind, LDMStageConfig
from latentite.stages import train_ldm
from latentite.training.stage_settings import LDMModuleConfig


@pytest.mark.parametrize("kind", DiffusionKind)
def test_a_checkpoint_stands_alone_and_samples(
    kind: DiffusionKind, vae_checkpoint: Path, tmp_path: Path
) -> None:
    config = tiny_ldm_config(tmp_path / "run", vae_checkpoint, kind, trainer__max_epochs=1)
    result = train_ldm(config, datamodule=tiny_datamodule())
    network, settings, _ = load_ldm(result.last_path)
    vae = read_checkpoint(vae_checkpoint, stage=Stage.VAE).state
    for name, value in network.vae.state_dict().items():
        assert value.equal(vae[name]), f"{name} of the VAE moved"
    assert (network.latent_std != 1.0).all()
    sizes = torch.tensor([3, 1, 6, 2, 2, 5, 4])
    crystals = sample_jobs(
        network, settings.diffusion, Jobs.plain(sizes), seed=0, config=SamplingConfig(steps=4)
    ).crystals
    assert crystals.num_atoms.equal(sizes)
    assert crystals.frac_coords.isfinite().all()
    assert crystals.lattice.isfinite().all()


def test_a_sampled_crystal_does_not_depend_on_the_batch_size(vae_checkpoint: Path, tmp_path: Path) -> None:
    config = tiny_ldm_config(tmp_path / "run", vae_checkpoint, trainer__max_epochs=1)
    network, settings, _ = load_ldm(train_ldm(config, datamodule=tiny_datamodule()).last_path)
    sizes = torch.tensor([3, 1, 6, 2, 2, 5, 4])
    together, apart = (
        sample_jobs(
            network,
            settings.diffusion,
            Jobs.plain(sizes),
            seed=0,
            config=SamplingConfig(steps=5, batch_size=size),
        ).crystals
        for size in (64, 1)
    )
    torch.testing.assert_close(apart.frac_coords, together.frac_coords, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(apart.lattice, together.lattice, atol=1e-4, rtol=1e-3)
    jobs = Jobs.plain(sizes[5:], indices=[5, 6])
    alone = sample_jobs(network, settings.diffusion, jobs, seed=0, config=SamplingConfig(steps=5)).crystals
    torch.testing.assert_close(
        alone.lattice, together.select(torch.tensor([5, 6])).lattice, atol=1e-4, rtol=1e-3
    )


def test_resuming_equals_not_stopping_bit_for_bit(vae_checkpoint: Path, tmp_path: Path) -> None:
    whole = train_ldm(
        tiny_ldm_config(tmp_path / "whole", vae_checkpoint, trainer__max_epochs=2),
        datamodule=tiny_datamodule(),
    )
    half = train_ldm(
        tiny_ldm_config(tmp_path / "half", vae_checkpoint, trainer__max_epochs=1),
        datamodule=tiny_datamodule(),
    )
    rest = train_ldm(
        tiny_ldm_config(tmp_path / "rest", vae_checkpoint, trainer__max_epochs=2, ckpt_path=half.last_path),
        datamodule=tiny_datamodule(),
    )
    one, other = read(whole.last_path), read(rest.last_path)
    assert_same(one["state_dict"], other["state_dict"])
    assert_same(one["latentite"]["ema"], other["latentite"]["ema"])
    assert_same(one["optimizer_states"], other["optimizer_states"])


def test_impossible_settings_are_refused(vae_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="vae_ckpt_path must name the VAE's checkpoint"):
        LDMModuleConfig()
    with pytest.raises(ValueError, match=r"learn_variance must be true for this diffusion \(kind=ddpm"):
        LDMModuleConfig(vae_ckpt_path="x", denoiser=DenoiserConfig(learn_variance=False))
    config = LDMStageConfig()
    with pytest.raises(ValueError, match=r"denoiser\.latent_dim must be the VAE's latent_dim \(8\), got 4"):
        replace(config, denoiser=DenoiserConfig(latent_dim=4))
