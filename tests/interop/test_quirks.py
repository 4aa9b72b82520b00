"""The one setting, `diffusion.compatibility`: what it switches, and that nothing changes without it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from latentite.diffusion.loss import ddpm_loss
from latentite.diffusion.samplers import SamplerKind
from latentite.diffusion.schedule import Schedule, Spacing, ddpm_schedule, even_levels
from latentite.generators.latent.chain import SamplingConfig, sampling_schedule, spacing_of
from latentite.interop.modules import denoiser_module, vae_modules
from latentite.nn.denoiser import DenoiserConfig, OutputLayout
from latentite.nn.vae import VAEConfig
from latentite.objectives.ldm import Compatibility, DiffusionConfig, LDMStageConfig

OURS, THEIRS = DiffusionConfig(), DiffusionConfig(compatibility=Compatibility.CHEMELEON2)


def levels(diffusion: DiffusionConfig, steps: int, sampler: SamplerKind) -> torch.Tensor:
    _, schedule = sampling_schedule(diffusion, SamplingConfig(sampler=sampler, steps=steps))
    assert isinstance(schedule, Schedule)
    return schedule.timesteps


def test_one_setting_switches_the_layout_of_the_output() -> None:
    assert LDMStageConfig(diffusion=OURS).denoiser.output_layout is OutputLayout.PLAIN
    config = LDMStageConfig(diffusion=THEIRS)
    assert config.denoiser.output_layout is OutputLayout.CHEMELEON2
    assert config.denoiser == replace(DenoiserConfig(), output_layout=OutputLayout.CHEMELEON2)


@pytest.mark.parametrize("steps", [1, 7, 10, 25, 50, 100, 333, 334, 999, 1000])
def test_ddim_walks_a_stride_where_there_is_one_and_even_levels_elsewhere(steps: int) -> None:
    strides = [k for k in range(1, 1001) if math.ceil(1000 / k) == steps]
    expected = torch.arange(0, 1000, strides[0]) if strides else even_levels(1000, steps)
    assert levels(THEIRS, steps, SamplerKind.DDIM).equal(expected)
    assert levels(OURS, steps, SamplerKind.DDIM).equal(even_levels(1000, steps))


@pytest.mark.parametrize("sampler", [SamplerKind.DDPM, SamplerKind.DPM_SOLVER])
def test_the_other_samplers_walk_the_same_levels(sampler: SamplerKind) -> None:
    assert levels(THEIRS, 50, sampler).equal(levels(OURS, 50, sampler))
    assert spacing_of(OURS, SamplerKind.DDIM, 50) is Spacing.EVEN


def test_the_density_of_level_zero_without_its_scale_is_that_of_the_standardised_latent() -> None:
    """A network that says noise 0 and variance channel -1: the density has mean x_0 / alpha and variance beta-tilde.

    L_0 in bits is then (r^2 / v + log 2 pi) / 2 log 2 for the residual r, without the term log v.
    """
    schedule = ddpm_schedule()
    latents = torch.full((1, 1, 1), 0.7)
    mask = torch.ones(1, 1, dtype=torch.bool)
    level = schedule.at(0)
    variance = math.exp(float(level.posterior_log_variance))
    noise = torch.full((1, 1, 1), 1.5)
    state = float(level.alpha) * 0.7 + float(level.sigma) * 1.5
    residual = 0.7 - (float(level.mean_x0) * state / float(level.alpha) + float(level.mean_xt) * state)

    def bits(has_density_scale: bool) -> float:
        found = ddpm_loss(
            lambda tokens, time: torch.tensor([[[0.0, -1.0]]]),
            latents,
            mask,
            schedule=schedule,
            steps=torch.zeros(1, dtype=torch.long),
            noise=noise,
            has_density_scale=has_density_scale,
        )
        return float(found.terms["vlb"])

    standardised = (residual**2 / variance + math.log(2 * math.pi)) / (2 * math.log(2.0))
    assert bits(False) == pytest.approx(standardised, rel=1e-4)
    assert bits(True) == pytest.approx(standardised + math.log(variance) / (2 * math.log(2.0)), rel=1e-4)


def test_the_default_sizes_are_those_of_the_public_files() -> None:
    """209 tensors and 51.1 million numbers of the VAE; 340 and 180.6 million with a DiT-B and `latent_std`."""
    with torch.device("meta"):
        vae, denoiser = vae_modules(VAEConfig()), denoiser_module(DenoiserConfig())
    shapes = [t.shape for module in vae.values() for t in module.state_dict().values()]
    assert (len(shapes), sum(s.numel() for s in shapes)) == (209, 51_091_044)
    shapes += [t.shape for t in denoiser.state_dict().values()]
    assert (len(shapes) + 1, sum(s.numel() for s in shapes) + 1) == (340, 180_619_637)
