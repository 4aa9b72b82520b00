"""Stage 2 on a tiny scale: trains on a frozen VAE, resumes exactly, and its checkpoint stands alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same, read, tiny_config, tiny_datamodule

from latentite.checkpoint import Stage, read_checkpoint
from latentite.generate import SamplingConfig, sample_crystals
from latentite.ldm_checkpoint import load_ldm
from latentite.nn.denoiser import DenoiserConfig, DenoiserSize, TokenIndex
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind, LDMStageConfig
from latentite.training.ema import EMAConfig
from latentite.training.ldm import LDMModuleConfig
from latentite.training.optim import OptimizerConfig
from latentite.training.stages import TrainLDMConfig, train_ldm, train_vae


@pytest.fixture(scope="module")
def vae_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("vae"), trainer__max_epochs=1)
    return train_vae(config, datamodule=tiny_datamodule()).last_path


def ldm_config(
    run_dir: Path, vae: Path, kind: DiffusionKind = DiffusionKind.FLOW, **changes: object
) -> TrainLDMConfig:
    """A tiny run with every part that has a state."""
    shared = tiny_config(run_dir, **changes)
    diffusion = DiffusionConfig(kind=kind)
    denoiser = DenoiserConfig(
        size=DenoiserSize.CUSTOM,
        depth=1,
        hidden_size=16,
        num_heads=2,
        learn_variance=diffusion.learn_variance,
        index=TokenIndex.NONE,
    )
    module = LDMModuleConfig(
        vae_ckpt_path=str(vae),
        denoiser=denoiser,
        diffusion=diffusion,
        optimizer=OptimizerConfig(lr=3e-3),
        ema=EMAConfig(decay=0.9),
    )
    return TrainLDMConfig(
        run_dir=run_dir,
        trainer=shared.trainer,
        callbacks=shared.callbacks,
        ckpt_path=shared.ckpt_path,
        ldm_module=module,
    )


@pytest.mark.parametrize("kind", DiffusionKind)
def test_a_checkpoint_stands_alone_and_samples(
    kind: DiffusionKind, vae_checkpoint: Path, tmp_path: Path
) -> None:
    config = ldm_config(tmp_path / "run", vae_checkpoint, kind, trainer__max_epochs=1)
    result = train_ldm(config, datamodule=tiny_datamodule())
    network, settings, _ = load_ldm(result.last_path)
    vae = read_checkpoint(vae_checkpoint, stage=Stage.VAE).state
    for name, value in network.vae.state_dict().items():
        assert value.equal(vae[name]), f"{name} of the VAE moved"
    assert (network.latent_std != 1.0).all()
    sizes = torch.tensor([3, 1, 6, 2, 2, 5, 4])
    crystals = sample_crystals(network, settings.diffusion, sizes, seed=0, config=SamplingConfig(steps=4))
    assert crystals.num_atoms.equal(sizes)
    assert crystals.frac_coords.isfinite().all()
    assert crystals.lattice.isfinite().all()


def test_a_sampled_crystal_does_not_depend_on_the_batch_size(vae_checkpoint: Path, tmp_path: Path) -> None:
    config = ldm_config(tmp_path / "run", vae_checkpoint, trainer__max_epochs=1)
    network, settings, _ = load_ldm(train_ldm(config, datamodule=tiny_datamodule()).last_path)
    sizes = torch.tensor([3, 1, 6, 2, 2, 5, 4])
    together, apart = (
        sample_crystals(network, settings.diffusion, sizes, config=SamplingConfig(steps=5, batch_size=size))
        for size in (64, 1)
    )
    torch.testing.assert_close(apart.frac_coords, together.frac_coords, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(apart.lattice, together.lattice, atol=1e-4, rtol=1e-3)
    alone = sample_crystals(
        network, settings.diffusion, sizes[5:], indices=[5, 6], config=SamplingConfig(steps=5)
    )
    torch.testing.assert_close(
        alone.lattice, together.select(torch.tensor([5, 6])).lattice, atol=1e-4, rtol=1e-3
    )


def test_resuming_equals_not_stopping_bit_for_bit(vae_checkpoint: Path, tmp_path: Path) -> None:
    whole = train_ldm(
        ldm_config(tmp_path / "whole", vae_checkpoint, trainer__max_epochs=2), datamodule=tiny_datamodule()
    )
    half = train_ldm(
        ldm_config(tmp_path / "half", vae_checkpoint, trainer__max_epochs=1), datamodule=tiny_datamodule()
    )
    rest = train_ldm(
        ldm_config(tmp_path / "rest", vae_checkpoint, trainer__max_epochs=2, ckpt_path=half.last_path),
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
