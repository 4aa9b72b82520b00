"""Rollouts of whole networks: guidance is part of the policy, and nothing depends on batches or processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import tiny_datamodule, tiny_ldm_config

from latentite.crystal import CrystalBatch
from latentite.generators.latent.chain import SamplingConfig
from latentite.models import load_ldm
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig, DiffusionKind
from latentite.rl.gaussian import log_ratio
from latentite.rl.rollout import Chain
from latentite.rl.rollouts import Policy, Prompts, build_chain, collect, decode
from latentite.stages import train_ldm
from latentite.training.conditions import ConditionModuleOptions

CONDITIONS = ["composition", "num_atoms"]


@pytest.fixture(scope="module", params=[DiffusionKind.DDPM, DiffusionKind.FLOW])
def model(
    request: pytest.FixtureRequest, vae_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LatentDiffusion, DiffusionConfig]:
    folder = tmp_path_factory.mktemp(f"conditional_{request.param}")
    config = tiny_ldm_config(folder, vae_checkpoint, request.param, trainer__max_epochs=1)
    config.ldm_module.condition_module = ConditionModuleOptions()
    data = tiny_datamodule()
    data.config.target_condition = CONDITIONS
    network, settings, _ = load_ldm(train_ldm(config, datamodule=data).last_path)
    assert network.condition_module is not None
    with torch.no_grad():  # hardly trained, it would hardly listen
        network.condition_module.proj[-1].weight.mul_(30.0)
    return network, settings.diffusion


def crystals(count: int = 6) -> CrystalBatch:
    return tiny_datamodule().splits["val"].crystals.select(torch.arange(count))


def policy_of(model: tuple[LatentDiffusion, DiffusionConfig], guidance: float) -> tuple[Policy, Chain]:
    sampling = SamplingConfig(steps=6, guidance=guidance, batch_size=4)
    return Policy(network=model[0], sampling=sampling), build_chain(model[1], sampling)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_probabilities_are_asked_of_the_guided_policy_that_drew(
    model: tuple[LatentDiffusion, DiffusionConfig], guidance: float
) -> None:
    policy, chain = policy_of(model, guidance)
    prompts = Prompts.of(crystals(), num_samples=2, run_seed=3)
    rollout = collect(policy, chain, prompts)
    step = torch.arange(rollout.num_decisions).repeat_interleave(len(prompts))
    rows = rollout.transitions(step, torch.arange(len(prompts)).repeat(rollout.num_decisions))
    values = policy.values(prompts.crystals)

    def ratio(asked: Policy) -> torch.Tensor:
        told = {name: column[rows.crystal] for name, column in values.items()}
        moments = chain.moments(asked.denoise(told, rows.mask), rows.states, rows.levels, rows.mask)
        return log_ratio(rows.next_states, moments, rows.old, rows.mask, per_entry=False)

    # The chain of a network this small goes far from the data (states of 270, noise of 0.01): rounding, no more.
    assert ratio(policy).abs().max() < 5e-3
    other = Policy(network=policy.network, sampling=SamplingConfig(guidance=guidance + 4.0))
    assert ratio(other).abs().max() > 0.05, "the test must be able to fail"


def test_a_crystal_does_not_depend_on_batches_or_processes(
    model: tuple[LatentDiffusion, DiffusionConfig],
) -> None:
    policy, chain = policy_of(model, 2.0)
    whole = Prompts.of(crystals(), num_samples=2, run_seed=3)
    latents = collect(policy, chain, whole).latents
    for rank in range(2):
        share = crystals().select(torch.arange(rank, 6, 2))
        part = Prompts.of(share, num_samples=2, run_seed=3, rank=rank, world_size=2)
        mine = torch.isin(whole.groups, part.groups)
        assert [seed for seed, is_mine in zip(whole.seeds, mine, strict=True) if is_mine] == part.seeds
        found = collect(policy, chain, part).latents
        torch.testing.assert_close(found, latents[mine][:, : found.shape[1]], rtol=1e-4, atol=1e-4)


def test_crystals_of_a_group_have_what_their_prompt_asks(
    model: tuple[LatentDiffusion, DiffusionConfig],
) -> None:
    policy, chain = policy_of(model, 2.0)
    prompts = Prompts.of(crystals(), num_samples=3, run_seed=0)
    found = decode(policy.network, collect(policy, chain, prompts), prompts)
    assert found.num_atoms.tolist() == crystals().num_atoms.repeat_interleave(3).tolist()
    assert prompts.groups.tolist() == torch.arange(6).repeat_interleave(3).tolist()
    assert len(set(prompts.seeds)) == 18
