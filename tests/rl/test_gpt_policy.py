"""Reinforcement learning of the crystal GPT: its decisions, their probabilities, and what it learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentite import cli
from latentite.base.plain import to_plain
from latentite.checkpoint import CRYSTAL_GPT, PAYLOAD_KEY, OrbitCard, Stage, build_payload, read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.diffusion.noise import seed_uniforms
from latentite.generators.gpt.policy import GPTPolicy, GPTPolicyBase, sampled_entropy
from latentite.generators.gpt.trajectories import GPTTrajectories, decision_columns
from latentite.generators.latent.chain import SamplingConfig
from latentite.generators.policy import Policy, Prompts, Trajectories
from latentite.generators.table import open_generator
from latentite.models import load_gpt
from latentite.nn.condition_values import ConditionConfig, ConditionKind
from latentite.nn.conditions import ConditionModuleConfig
from latentite.nn.gpt.choices import DrawSettings
from latentite.nn.gpt.network import GPTConfig, GPTNetwork
from latentite.nn.gpt.sample import Sampler, num_uniforms
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.nn.lora import LoraConfig
from latentite.rewards.combine import RewardConfig
from latentite.rl.config import KLForm, PolicyConfig, ReplayConfig, RLModuleConfig, TrainRLConfig
from latentite.rl.module import MEMORY_KEY
from latentite.rl.objective import RunningRewards, compute_advantages
from latentite.rl.update import Experience, Learner, minibatches
from latentite.stages import train_rl
from latentite.training.datamodule import CrystalDataModule
from latentite.training.optim import OptimizerConfig
from latentite.training.settings import (
    CallbacksConfig,
    CheckpointConfig,
    DataConfig,
    LoggerConfig,
    MonitorMode,
    TrainerConfig,
    WandbConfig,
    WandbMode,
)

SIZE = GPTSize(d_model=16, num_layers=1, num_heads=2, dim_feedforward=32, num_mixtures=2)
LIMITS = GPTLimits(max_atoms=8, max_orbits=2, max_elements=2)
SAMPLING = SamplingConfig(steps=50, batch_size=64)
ELEMENTS = [8, 12, 14, 26]
GROUPS = [26, 123, 221]
"""One with a polar axis, one tetragonal, one cubic."""


def tiny_base(conditions: list[ConditionConfig] | None = None) -> GPTPolicyBase:
    """An untrained network of few groups and elements."""
    module = None if conditions is None else ConditionModuleConfig(conditions=conditions, hidden_size=16)
    config = GPTConfig(size=SIZE, limits=LIMITS, condition_module=module)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GPTNetwork(config).eval()
    gpt = network.gpt
    with torch.no_grad():
        gpt.group_head.bias.fill_(-30.0)
        gpt.group_head.bias[GROUPS] = 0.0
        gpt.element_volume.fill_(2.7)
        gpt.cell_std.fill_(0.05)
    return GPTPolicyBase(network=network, settings=config)


def tiny_policy(base: GPTPolicyBase | None = None) -> GPTPolicy:
    policy = (base or tiny_base()).plan(SAMPLING, lora=None, per_entry=True).build()
    assert isinstance(policy, GPTPolicy)
    return policy


def prompts_of(run_seed: int, num_samples: int, num_prompts: int = 1) -> Prompts:
    one = CrystalBatch(
        atomic_numbers=torch.tensor([8]),
        frac_coords=torch.zeros(1, 3),
        lattice=3.0 * torch.eye(3)[None],
        num_atoms=torch.tensor([1]),
    )
    return Prompts.of(one.select(torch.zeros(num_prompts).long()), num_samples=num_samples, run_seed=run_seed)


def evaluated(policy: GPTPolicy, trajectories: GPTTrajectories, *, is_on_policy: bool) -> dict[str, Tensor]:
    """All decisions of all trajectories in one pass."""
    steps = torch.arange(int(trajectories.num_decisions.max()))
    (rows,) = policy.passes(trajectories, torch.arange(len(trajectories)), steps, max_tokens=10**6)
    decision = policy.evaluate(
        trajectories,
        rows,
        is_on_policy=torch.full((len(rows.trajectory),), is_on_policy),
        with_reference=True,
    )
    order = rows.trajectory.argsort()
    return {item.name: getattr(decision, item.name)[order] for item in fields(decision) if item.name != "kl"}


def share_of_oxygen(crystals: CrystalBatch) -> Tensor:
    parts = crystals.atomic_numbers.split(crystals.num_atoms.tolist())
    return torch.stack([(numbers == 8).float().mean() for numbers in parts])


def test_the_decisions_are_all_that_is_drawn_and_nothing_that_follows() -> None:
    policy, prompts = tiny_policy(), prompts_of(1, 64)
    assert isinstance(policy, Policy)
    trajectories = policy.rollout(prompts)
    assert isinstance(trajectories, Trajectories)
    orbits = trajectories.orbits
    every = policy.network.log_prob(orbits, trajectories.reductions).decisions.detach()
    columns, counts = decision_columns(orbits)
    is_decision = torch.zeros_like(every, dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        is_decision[row, columns[row, :count]] = True
        assert columns[row, :count].diff().min() > 0
    assert counts.equal(trajectories.num_decisions)
    assert bool((every[~is_decision] == 0.0).all())
    # A decision without alternatives has probability 1: the end of a full crystal, for example.
    assert (every[is_decision] == 0.0).float().mean() < 0.3
    uniforms = seed_uniforms(prompts.seeds, num_uniforms(LIMITS.max_orbits))
    drawn = Sampler(policy.network.gpt, DrawSettings()).draw(uniforms)
    assert drawn.orbits.coords.equal(orbits.coords)
    full = orbits.num_orbits == LIMITS.max_orbits
    told = trajectories.log_probs.sum(-1)
    # The sampler must end a crystal of the most orbits, the network need not.
    torch.testing.assert_close(drawn.log_prob[~full], told[~full], rtol=0, atol=1e-4)
    assert bool((drawn.log_prob[full] >= told[full] - 1e-4).all())


def test_before_the_first_update_ratios_are_one_and_divergences_zero_to_the_bit() -> None:
    policy = tiny_policy()
    trajectories = policy.rollout(prompts_of(2, 48))
    first = evaluated(policy, trajectories, is_on_policy=True)
    assert bool((first["log_ratio"] == 0.0).all())
    assert bool((first["reference_log_ratio"] == 0.0).all())
    assert first["is_real"].sum() == trajectories.num_decisions.sum()
    again = evaluated(policy, trajectories, is_on_policy=False)
    assert again["log_ratio"].abs().max() < 1e-5
    torch.testing.assert_close(first["entropy"].sum(-1), -trajectories.log_probs.sum(-1), rtol=0, atol=1e-4)


def test_a_crystal_does_not_depend_on_those_beside_it() -> None:
    policy, prompts = tiny_policy(), prompts_of(3, 40)
    whole = policy.rollout(prompts)
    small = replace(policy, batch_size=7).rollout(prompts)
    assert whole.orbits.position.equal(small.orbits.position)
    assert whole.orbits.element.equal(small.orbits.element)
    torch.testing.assert_close(whole.orbits.coords, small.orbits.coords, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.log_probs, small.log_probs, rtol=0, atol=1e-3)


def test_the_probabilities_of_selected_joined_and_stored_trajectories_stay_theirs() -> None:
    policy = tiny_policy()
    first, second = policy.rollout(prompts_of(4, 12)), policy.rollout(prompts_of(5, 20))
    order = torch.tensor([31, 2, 0, 17, 25, 11])
    joined = GPTTrajectories.concatenate([first, second], order)
    restored = policy.restored(joined.state())
    for place, member in enumerate(order.tolist()):
        source, row = (first, member) if member < 12 else (second, member - 12)
        count = int(source.num_decisions[row])
        assert int(restored.num_decisions[place]) == count
        assert restored.log_probs[place, :count].equal(source.log_probs[row, :count])
        assert not restored.log_probs[place, count:].any()
    assert evaluated(policy, restored, is_on_policy=False)["log_ratio"].abs().max() < 1e-5
    with pytest.raises(ValueError, match="must hold trajectories of a crystal GPT"):
        policy.restored({"latents": torch.zeros(1)})


def grpo(
    policy: GPTPolicy, config: PolicyConfig, num_updates: int, num_samples: int
) -> Iterator[dict[str, Tensor]]:
    """Updates with the share of oxygen as the reward, as many as are looked at."""
    learner = Learner(policy=policy, config=config)
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=1e-2)
    draws = torch.Generator().manual_seed(0)
    for run_seed in range(num_updates):
        prompts = prompts_of(run_seed, num_samples)
        trajectories = policy.rollout(prompts)
        rewards = share_of_oxygen(policy.crystals(trajectories))
        experience = Experience(
            trajectories=trajectories,
            advantages=compute_advantages(rewards, prompts.groups, config, RunningRewards.empty()),
            is_on_policy=torch.ones(len(trajectories), dtype=torch.bool),
        )
        steps = torch.arange(int(trajectories.num_decisions.max()))
        parts = minibatches(torch.arange(num_samples), num_samples, config.num_minibatches, draws)
        yield learner.update(experience, steps, parts, optimizer, max_norm=1.0) | {"reward": rewards.mean()}


SETTINGS: dict[str, Any] = {
    "num_group_samples": 32,
    "clip_ratio": 0.2,
    "kl_form": KLForm.K3,
    "kl_weight": 0.01,
    "num_minibatches": 1,
    "num_train_steps": None,
}


def test_a_reward_for_oxygen_at_least_doubles_its_share_in_fifty_updates() -> None:
    policy = tiny_policy()
    before = share_of_oxygen(policy.crystals(policy.rollout(prompts_of(1000, 256)))).mean()
    logs: list[dict[str, Tensor]] = []
    for log in grpo(policy, PolicyConfig(**SETTINGS), 50, 32):
        logs.append(log)
        last = torch.stack([each["reward"] for each in logs[-8:]])
        if len(last) == 8 and last.mean() > 2.2 * before:
            break
    after = share_of_oxygen(policy.crystals(policy.rollout(prompts_of(1000, 256)))).mean()
    assert after > 2.0 * before
    assert float(logs[0]["kl"]) == 0.0
    assert float(logs[0]["ratio"]) == 1.0
    assert float(logs[-1]["kl"]) > 0.0


def test_gradients_do_not_depend_on_the_cut_into_passes() -> None:
    policy = tiny_policy()
    trajectories = policy.rollout(prompts_of(6, 24))
    experience = Experience(
        trajectories=trajectories,
        advantages=torch.linspace(-1.0, 1.0, 24),
        is_on_policy=torch.ones(24, dtype=torch.bool),
    )
    steps = torch.arange(int(trajectories.num_decisions.max()))
    gradients = []
    for tokens in (8, 10_000):
        policy.network.zero_grad()
        config = PolicyConfig(**SETTINGS, update_tokens=tokens, entropy_weight=0.1)
        Learner(policy=policy, config=config).gradients(experience, steps, torch.arange(24))
        found = [p.grad.flatten() for p in policy.network.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_the_sampled_entropy_and_its_gradient_are_right_on_average() -> None:
    """The expectation is taken exactly, over all actions."""
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    log_prob = logits.log_softmax(-1)
    exact = -(log_prob.exp() * log_prob).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    average = (log_prob.exp().detach() * sampled_entropy(log_prob)).sum()
    (found,) = torch.autograd.grad(average, logits)
    torch.testing.assert_close(average, exact)
    torch.testing.assert_close(found, wanted)


def test_what_a_crystal_gpt_cannot_do_is_refused_by_name() -> None:
    base = tiny_base()
    with pytest.raises(ValueError, match=r"rl_module\.lora must be null for the generator gpt"):
        base.plan(SAMPLING, lora=LoraConfig(), per_entry=True)
    with pytest.raises(ValueError, match=r"rl_module\.sampling\.steps must be left at 50 .* got 16"):
        base.plan(replace(SAMPLING, steps=16), lora=None, per_entry=True)
    with pytest.raises(ValueError, match=r"rl_module\.sampling\.guidance must be left"):
        base.plan(replace(SAMPLING, guidance=1.5), lora=None, per_entry=True)
    with pytest.raises(ValueError, match=r"data\.target_condition must be some of \[\], .* got density"):
        base.asking(["density"])
    settings = RLModuleConfig(ldm_ckpt_path="gpt.ckpt", reward_fn=RewardConfig(components=REWARD)).sampling
    assert base.plan(settings, lora=None, per_entry=True).settings == base.settings


def test_prompts_ask_for_any_of_the_conditions_and_other_ones_are_not_told() -> None:
    conditions = [
        ConditionConfig(name="density", kind=ConditionKind.SCALAR),
        ConditionConfig(name="num_atoms", kind=ConditionKind.NUM_ATOMS),
    ]
    base = tiny_base(conditions)
    assert base.network.condition_module is not None
    base.network.condition_module.fit_statistics(
        {"density": torch.linspace(1.0, 9.0, 24), "num_atoms": torch.arange(1.0, 25.0)}
    )
    with torch.no_grad():
        for parameter in base.network.condition_module.parameters():
            parameter.normal_()
    prompts = prompts_of(7, 24)
    labelled = prompts.crystals.with_properties({"density": torch.linspace(1.0, 9.0, 24)})
    prompts = replace(prompts, crystals=labelled)
    silent, asked = tiny_policy(base), tiny_policy(base.asking(["density"]))
    assert silent.rollout(prompts).values == {}
    trajectories = asked.rollout(prompts)
    assert trajectories.values["density"].equal(labelled.properties["density"])
    assert set(trajectories.values) == {"density"}
    assert not trajectories.log_probs[:, 0].equal(silent.rollout(prompts).log_probs[:, 0])
    assert evaluated(asked, trajectories, is_on_policy=False)["log_ratio"].abs().max() < 1e-5
    with pytest.raises(ValueError, match=r"data\.target_condition must be \[density\] to resume"):
        silent.restored(trajectories.state())


REWARD = {
    "volume": {
        "_target_": "latentite.rewards.properties.PropertyReward",
        "property": "volume_per_atom",
        "maximise": True,
    }
}


BASE_DATA = {
    "name": "base",
    "splits": {"train": {"num_crystals": 6, "num_atoms_histogram": [0, 1, 2, 0, 0, 2, 0, 0, 1]}},
    "elements": ["O", "Mg", "Si", "Fe"],
    "orbits": {"mode": "symmetry", "symprec": 0.1, "max_orbits": 2, "max_elements": 2},
}


def write_base(path: Path) -> Path:
    """The checkpoint of an untrained network."""
    base = tiny_base()
    payload = build_payload(
        stage=Stage.GPT, config=to_plain(base.settings), data=BASE_DATA, metrics={}, generator=CRYSTAL_GPT
    )
    state = {f"network.{name}": tensor for name, tensor in base.network.state_dict().items()}
    torch.save({"state_dict": state, PAYLOAD_KEY: payload}, path)
    return path


def run(
    folder: Path,
    base: Path,
    *,
    max_epochs: int,
    ckpt_path: Path | None = None,
    kl_form: KLForm = KLForm.K3,
) -> Path:
    """A run of two rollouts an epoch with replay; its last checkpoint."""
    config = TrainRLConfig(
        run_dir=folder,
        data=DataConfig(name="tiny", batch_size=2),
        trainer=TrainerConfig(
            accelerator="cpu", max_epochs=max_epochs, limit_train_batches=2, limit_val_batches=1
        ),
        logger=LoggerConfig(wandb=WandbConfig(mode=WandbMode.DISABLED)),
        callbacks=CallbacksConfig(
            checkpoint=CheckpointConfig(monitor="val/reward", mode=MonitorMode.MAX), progress_bar=False
        ),
        ckpt_path=ckpt_path,
        rl_module=RLModuleConfig(
            ldm_ckpt_path=str(base),
            rl_configs=PolicyConfig(**SETTINGS | {"num_group_samples": 6, "kl_form": kl_form}),
            reward_fn=RewardConfig(components=REWARD),
            replay=ReplayConfig(size=5, num_samples=3),
            optimizer=OptimizerConfig(lr=1e-3),
            num_pictures=0,
        ),
    )
    crystals = prompts_of(0, 4).crystals
    split = CrystalDataset(crystals=crystals, ids=tuple(map(str, range(4))), content_hash="tiny")
    data = CrystalDataModule(config.data, splits={"train": split, "val": split})
    return train_rl(config, datamodule=data).last_path


def test_a_run_is_resumed_to_the_bit_and_ends_in_a_checkpoint_of_a_crystal_gpt(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.ckpt")
    whole = run(tmp_path / "whole", base, max_epochs=2)
    half = run(tmp_path / "half", base, max_epochs=1)
    rest = run(tmp_path / "rest", base, max_epochs=2, ckpt_path=half)
    one, other = (torch.load(path, weights_only=False) for path in (whole, rest))
    assert all(tensor.equal(other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    replays = [content[MEMORY_KEY]["replay"] for content in (one, other)]
    assert replays[0]["names"] == replays[1]["names"]
    assert replays[0]["trajectories"]["log_probs"].equal(replays[1]["trajectories"]["log_probs"])
    written = read_checkpoint(whole)
    assert (written.stage, written.generator) == (Stage.RL, CRYSTAL_GPT)
    network, settings, _ = load_gpt(whole)
    assert settings == tiny_base().settings
    assert written.data.name == "tiny"
    assert written.data.split("train").content_hash == "tiny"
    before = tiny_base().network.state_dict()
    assert any(not before[name].equal(tensor) for name, tensor in network.state_dict().items())


def test_a_divergence_without_closed_form_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    """The first update said so, after a whole rollout."""
    base = write_base(tmp_path / "base.ckpt")
    with pytest.raises(ValueError, match=r"kl_form must be k3 for the generator gpt, .* got closed"):
        run(tmp_path / "run", base, max_epochs=1, kl_form=KLForm.CLOSED)
    assert not (tmp_path / "run").exists()


def test_a_reinforced_model_samples_like_its_base_and_its_card_says_what_it_makes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card had the prompts' sizes, and no elements and orbits: all elements were thought to be known, and sizes of
    the prompts' cells to be all that there are."""
    base = write_base(tmp_path / "base.ckpt")
    last = run(tmp_path / "run", base, max_epochs=1)
    card = read_checkpoint(last).data
    assert card.elements == BASE_DATA["elements"]
    assert card.orbits == OrbitCard(mode="symmetry", symprec=0.1, max_orbits=2, max_elements=2)
    assert card.train_sizes == [0, 1, 2, 0, 0, 2, 0, 0, 1]
    of_base, of_run = (open_generator(path, {}, device=torch.device("cpu")).card for path in (base, last))
    assert of_run.elements == of_base.elements == tuple(ELEMENTS)
    assert of_run.sizes.weights.tolist() == of_base.sizes.weights.tolist()
    assert cli.main(["sample", "--ckpt", str(last), "--formula", "NaCl", "--out", str(tmp_path / "out")]) == 2
    assert "must have elements that the generator gpt makes, got" in capsys.readouterr().err
    assert (
        cli.main(["sample", "--ckpt", str(last), "--num-samples", "4", "--out", str(tmp_path / "out")]) == 0
    )
