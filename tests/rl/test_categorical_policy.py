"""The seam: a policy of tokens, with trajectories of different lengths, learns by the code that trains the chain.

As small as an autoregressive generator can be: a table of logits by the token before, one element per token, and one
token to stop. Its crystals are rewarded for their elements, so that the best trajectory is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch import Trainer
from torch import Tensor, nn

from latentite.checkpoint import PAYLOAD_KEY, Stage, build_payload, read_checkpoint
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.generators.policy import Decision, Policy, PolicyPlan, Prompts, Rows, passes
from latentite.generators.table import GENERATORS, GeneratorKind
from latentite.nn.lora import LoraConfig
from latentite.rewards.combine import RewardConfig, Rewards
from latentite.rl.config import (
    Algorithm,
    Keep,
    KLForm,
    PolicyConfig,
    ReplayConfig,
    RLModuleConfig,
    TrainRLConfig,
)
from latentite.rl.module import MEMORY_KEY, RLTrainingModule
from latentite.rl.objective import RunningRewards, choose_steps, compute_advantages
from latentite.rl.rollout import ReplayBuffer, Rollout, RolloutRewards, experience_of
from latentite.rl.update import Experience, Learner, minibatches
from latentite.stages import train_rl
from latentite.training.datamodule import CrystalDataModule
from latentite.training.optim import OptimizerConfig
from latentite.training.settings import (
    CallbacksConfig,
    CheckpointConfig,
    DataConfig,
    LoggerConfig,
    TrainerConfig,
)

STOP, NUM_TOKENS, MAX_LENGTH = 0, 4, 5
ELEMENTS = torch.tensor([0, 8, 14, 26])
"""Atomic number of each token."""
BEST = [1, 1, STOP]
"""O2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTrajectories:
    tokens: Int[Tensor, "trajectory step"]
    """`STOP` after the end."""
    log_probs: Float[Tensor, "trajectory step"]
    num_decisions: Int[Tensor, " trajectory"]

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, members: Int[Tensor, " member"]) -> TokenTrajectories:
        return TokenTrajectories(**{name: column[members] for name, column in self.state().items()})

    @classmethod
    def concatenate(
        cls, parts: Sequence[TokenTrajectories], order: Int[Tensor, " member"] | None = None
    ) -> TokenTrajectories:
        names = [item.name for item in fields(cls)]
        joined = cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
        return joined if order is None else joined.select(order)

    def to(self, device: torch.device | str) -> TokenTrajectories:
        return TokenTrajectories(**{name: column.to(device) for name, column in self.state().items()})

    def state(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


class Bigrams(nn.Module):
    """Logits of each token after each other one; it cannot stop before the first element."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(MAX_LENGTH, NUM_TOKENS, NUM_TOKENS))

    def forward(self, tokens: Int[Tensor, "row step"]) -> Float[Tensor, "row step token"]:
        """Log-probabilities of the token at each step, by the one before it."""
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        steps = torch.arange(tokens.shape[1])
        logits = self.logits[steps, before]
        cannot_stop = torch.zeros_like(logits, dtype=torch.bool)
        cannot_stop[:, 0, STOP] = True
        return logits.masked_fill(cannot_stop, -1e9).log_softmax(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenPolicy:
    network: Bigrams
    reference: Bigrams

    def to(self, device: torch.device | str) -> TokenPolicy:
        return replace(self, network=self.network.to(device), reference=self.reference.to(device))

    def compile(self) -> None:
        self.network.compile()

    @torch.no_grad()
    def rollout(self, prompts: Prompts) -> TokenTrajectories:
        draws = torch.Generator().manual_seed(prompts.seeds[0])
        tokens = torch.zeros(len(prompts), MAX_LENGTH, dtype=torch.long)
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        lengths = torch.zeros(len(prompts), dtype=torch.long)
        for step in range(MAX_LENGTH):
            probabilities = self.network(tokens)[:, step].exp()
            drawn = torch.multinomial(probabilities, 1, generator=draws).flatten()
            tokens[:, step] = torch.where(ended, STOP, drawn)
            lengths += ~ended
            ended = ended | (drawn == STOP)
        log_probs = self.network(tokens).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return TokenTrajectories(tokens=tokens, log_probs=log_probs, num_decisions=lengths)

    def crystals(self, trajectories: TokenTrajectories) -> CrystalBatch:
        is_atom = trajectories.tokens != STOP
        numbers = ELEMENTS[trajectories.tokens[is_atom]]
        places = (is_atom.cumsum(1) - 1)[is_atom]
        return CrystalBatch(
            atomic_numbers=numbers,
            frac_coords=torch.stack([places / MAX_LENGTH, 0.0 * places, 0.0 * places], dim=1),
            lattice=torch.diag(torch.tensor([15.0, 3.0, 3.0])).expand(len(trajectories), 3, 3).contiguous(),
            num_atoms=is_atom.sum(1),
        )

    def passes(
        self,
        trajectories: TokenTrajectories,
        members: Int[Tensor, " member"],
        steps: Int[Tensor, " step"],
        *,
        max_tokens: int | None,
    ) -> Iterator[Rows]:
        """A row is a whole trajectory: one pass tells all its tokens."""
        for rows in passes(trajectories.num_decisions[members], max_tokens or 1024):
            yield Rows(trajectory=members[rows], step=steps.expand(len(rows), -1))

    def evaluate(
        self,
        trajectories: TokenTrajectories,
        rows: Rows,
        *,
        is_on_policy: Bool[Tensor, " row"],
        with_reference: bool,
    ) -> Decision:
        tokens = trajectories.tokens[rows.trajectory]
        is_real = rows.step < trajectories.num_decisions[rows.trajectory].unsqueeze(-1)

        def of(network: Bigrams) -> tuple[Tensor, Tensor]:
            """Log-probabilities of all tokens at the wanted steps, and of the one that was drawn."""
            every = network(tokens).gather(1, rows.step.unsqueeze(-1).expand(-1, -1, NUM_TOKENS))
            return every, every.gather(-1, tokens.gather(1, rows.step).unsqueeze(-1)).squeeze(-1)

        every, new = of(self.network)
        drawn_with = trajectories.log_probs[rows.trajectory].gather(1, rows.step)
        old = torch.where(is_on_policy.unsqueeze(-1), new.detach(), drawn_with)
        kl = to_reference = None
        if with_reference:
            with torch.no_grad():
                other, reference = of(self.reference)
            kl = (every.exp() * (every - other)).sum(-1)
            to_reference = torch.where(is_real, reference - new, 0.0)
        return Decision(
            is_real=is_real,
            log_ratio=torch.where(is_real, new - old, 0.0),
            entropy=-(every.exp() * every).sum(-1),
            kl=kl,
            reference_log_ratio=to_reference,
        )

    def restored(self, state: Mapping[str, Any]) -> TokenTrajectories:
        return TokenTrajectories(**state)


def new_policy() -> TokenPolicy:
    return TokenPolicy(network=Bigrams(), reference=Bigrams())


def prompts_of(run_seed: int, config: PolicyConfig) -> Prompts:
    one = CrystalBatch(
        atomic_numbers=torch.tensor([8]),
        frac_coords=torch.zeros(1, 3),
        lattice=torch.eye(3)[None],
        num_atoms=torch.tensor([1]),
    )
    return Prompts.of(one.select(torch.zeros(2).long()), num_samples=config.num_drawn, run_seed=run_seed)


def reward(crystals: CrystalBatch) -> Tensor:
    """Minus the distance from two atoms of oxygen and nothing else; 0 at best."""
    values = []
    for numbers in crystals.atomic_numbers.split(crystals.num_atoms.tolist()):
        oxygen = int((numbers == 8).sum())
        values.append(-abs(oxygen - 2.0) - (len(numbers) - oxygen))
    return torch.tensor(values)


def train(
    config: PolicyConfig, policy: Policy[Any], num_rollouts: int, *, replay: ReplayBuffer | None = None
) -> list[dict[str, Tensor]]:
    """Train as `RLTrainingModule` does; the terms of each rollout's updates."""
    learner, running, logs = Learner(policy=policy, config=config), RunningRewards.empty(), []
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=0.1)
    draws = torch.Generator().manual_seed(0)
    for run_seed in range(num_rollouts):
        prompts = prompts_of(run_seed, config)
        trajectories = policy.rollout(prompts)
        crystals = policy.crystals(trajectories)
        rewards = reward(crystals)
        running = running.updated(rewards, config.running_decay)
        is_usable = torch.ones(len(rewards), dtype=torch.bool)
        judged = RolloutRewards(values=rewards, groups=prompts.groups, is_usable=is_usable, means={})
        advantages = compute_advantages(rewards, prompts.groups, config, running)
        rollout = Rollout(
            trajectories=trajectories, prompts=prompts, epoch=0, batch_idx=0, num_updates=0, seconds=0.0
        )
        experience, places, count = experience_of(rollout, judged, advantages, config, is_on_policy=True)
        replayed = None if replay is None else replay.draw(rewards, config, running, draws)
        if replay is not None:
            replay.remember(trajectories, crystals, rewards, is_usable)
        if replayed is not None:
            experience = experience.joined(replayed)
            places, count = (
                torch.cat([places, count + torch.arange(len(replayed))]),
                count + len(replayed),
            )
        steps = choose_steps(int(experience.trajectories.num_decisions.max()), config, draws)
        parts = [
            part
            for _ in range(config.num_inner_epochs)
            for part in minibatches(places, count, config.num_minibatches, draws)
        ]
        logs.append(learner.update(experience, steps, parts, optimizer, max_norm=1.0))
    return logs


def chance_of_best(policy: TokenPolicy) -> float:
    """Probability of the best trajectory, exactly."""
    tokens = torch.tensor([BEST + [STOP] * (MAX_LENGTH - len(BEST))])
    with torch.no_grad():
        log_probs = policy.network(tokens).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return float(log_probs[0, : len(BEST)].sum().exp())


SETTINGS: dict[str, Any] = {
    "num_group_samples": 32,
    "kl_weight": 0.0,
    "clip_ratio": 0.2,
    "num_train_steps": None,
}


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_each_algorithm_teaches_a_policy_of_tokens_the_known_optimum(algorithm: Algorithm) -> None:
    num_inner_epochs = 1 if algorithm is Algorithm.REINFORCE else 2
    policy = new_policy()
    assert chance_of_best(policy) < 0.03
    train(PolicyConfig(algorithm=algorithm, num_inner_epochs=num_inner_epochs, **SETTINGS), policy, 60)
    assert chance_of_best(policy) > 0.9


def test_replay_best_of_and_some_of_the_steps_work_for_tokens_too() -> None:
    config = PolicyConfig(best_of=2, keep=Keep.EXTREMES, **SETTINGS | {"num_train_steps": 2})
    policy, replay = new_policy(), ReplayBuffer(ReplayConfig())
    train(config, policy, 80, replay=replay)
    assert chance_of_best(policy) > 0.9
    assert replay.memories is not None
    assert replay.memories.rewards[0] == 0.0
    again = ReplayBuffer(ReplayConfig())
    again.restore(replay.state(), policy)
    assert again.state()["trajectories"]["tokens"].equal(replay.state()["trajectories"]["tokens"])


@pytest.mark.parametrize("form", list(KLForm))
def test_the_first_ratio_is_one_to_the_bit_and_the_first_divergence_zero(form: KLForm) -> None:
    config = PolicyConfig(num_minibatches=1, kl_form=form, **SETTINGS | {"kl_weight": 0.1})
    logs = train(config, new_policy(), 2)
    assert float(logs[0]["ratio"]) == 1.0
    assert float(logs[0]["kl"]) == 0.0
    assert float(logs[1]["kl"]) > 1e-4


REWARD = """
import torch

def oxygen(structures, batch):
    return torch.tensor([sum(site.specie.symbol == "O" for site in s) / len(s) for s in structures])
"""


def test_the_training_module_of_the_stage_trains_a_policy_of_tokens(tmp_path: Path) -> None:
    """With replay; the share of oxygen is rewarded, and the chance of it at the first place more than doubles."""
    (tmp_path / "oxygen.py").write_text(REWARD)
    config = RLModuleConfig(
        ldm_ckpt_path="none",
        rl_configs=PolicyConfig(**SETTINGS | {"num_group_samples": 16}),
        reward_fn=RewardConfig(components={"oxygen": {"_target_": f"{tmp_path / 'oxygen.py'}:oxygen"}}),
        replay=ReplayConfig(),
        optimizer=OptimizerConfig(lr=0.1),
        num_pictures=0,
    )
    policy = new_policy()
    one = prompts_of(0, config.rl_configs).crystals
    data = CrystalDataset(crystals=one, ids=tuple(map(str, range(len(one)))), content_hash="tokens")
    module = RLTrainingModule(config, policy, Rewards.build(config.reward_fn))
    before = {name: tensor.clone() for name, tensor in policy.reference.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=15,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module,
        datamodule=CrystalDataModule(
            DataConfig(name="tokens", batch_size=2), splits={"train": data, "val": data}
        ),
    )
    start = torch.zeros(1, MAX_LENGTH, dtype=torch.long)
    assert float(policy.network(start)[0, 0, 1].detach().exp()) > 2.0 / 3.0, "it began with a third"
    assert all(before[name].equal(tensor) for name, tensor in policy.reference.state_dict().items())
    assert trainer.callback_metrics["train/reward"] > 0.6
    assert trainer.callback_metrics["reward/unusable"] == 0.0
    memory: dict[str, Any] = {}
    module.on_save_checkpoint(memory)
    assert len(memory[MEMORY_KEY]["replay"]["names"]) > 1


class TokenBase:
    conditions = ()

    def asking(self, names: Sequence[str]) -> TokenBase:
        return self

    def plan(self, sampling: Any, *, lora: LoraConfig | None, per_entry: bool) -> PolicyPlan:
        return PolicyPlan(settings={"length": MAX_LENGTH}, build=new_policy)


def write_tokens(path: Path) -> Path:
    """A checkpoint of the generator of tokens."""
    payload = build_payload(stage=Stage.LDM, config={}, data={}, metrics={}, generator="tokens")
    torch.save({"state_dict": {"network.row": torch.zeros(1)}, PAYLOAD_KEY: payload}, path)
    return path


def tokens_run(folder: Path) -> tuple[TrainRLConfig, CrystalDataModule]:
    """A run of two rollouts that starts from `write_tokens`."""
    (folder / "oxygen.py").write_text(REWARD)
    module = RLModuleConfig(
        ldm_ckpt_path=str(write_tokens(folder / "tokens.ckpt")),
        rl_configs=PolicyConfig(**SETTINGS | {"num_group_samples": 4}),
        reward_fn=RewardConfig(components={"oxygen": {"_target_": f"{folder / 'oxygen.py'}:oxygen"}}),
        num_pictures=0,
    )
    config = TrainRLConfig(
        run_dir=folder / "run",
        data=DataConfig(name="tokens", batch_size=2),
        trainer=TrainerConfig(accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=1),
        logger=LoggerConfig(),
        callbacks=CallbacksConfig(checkpoint=CheckpointConfig(monitor="val/reward"), progress_bar=False),
        rl_module=module,
    )
    one = prompts_of(0, module.rl_configs).crystals
    split = CrystalDataset(crystals=one, ids=tuple(map(str, range(len(one)))), content_hash="tokens")
    return config, CrystalDataModule(config.data, splits={"train": split, "val": split})


def test_the_stage_trains_the_generator_that_the_checkpoint_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its entry in the table alone; what the run writes has the name of the generator."""
    kind = GeneratorKind(options=dict, build=lambda *_: None, policy=lambda _: TokenBase())
    monkeypatch.setitem(GENERATORS, "tokens", kind)
    config, data = tokens_run(tmp_path)
    written = read_checkpoint(train_rl(config, datamodule=data).last_path)
    assert (written.stage, written.generator) == (Stage.RL, "tokens")
    assert written.config == {"length": MAX_LENGTH}


def test_a_generator_without_a_policy_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = GeneratorKind(options=dict, build=lambda *_: None, policy=None)
    monkeypatch.setitem(GENERATORS, "tokens", kind)
    config, data = tokens_run(tmp_path)
    refused = r"rl_module\.ldm_ckpt_path: .* must be of a .* can train \(latent_diffusion, gpt\), got tokens"
    with pytest.raises(ValueError, match=refused):
        train_rl(config, datamodule=data)


def test_a_strong_reference_holds_a_policy_of_tokens_back() -> None:
    free, held = new_policy(), new_policy()
    for policy, weight in ((free, 0.0), (held, 100.0)):
        train(PolicyConfig(**SETTINGS | {"kl_weight": weight}), policy, 40)
    start = chance_of_best(new_policy())
    assert chance_of_best(held) - start < 0.2 * (chance_of_best(free) - start)


def test_steps_beyond_the_end_of_a_trajectory_count_for_nothing() -> None:
    """Loss and gradient are means over the decisions that were made, however they are cut into passes."""
    policy, config = new_policy(), PolicyConfig(algorithm=Algorithm.REINFORCE, **SETTINGS)
    trajectories = policy.rollout(prompts_of(1, config))
    assert len(trajectories.num_decisions.unique()) > 2
    advantages = torch.linspace(-1.0, 1.0, len(trajectories))
    experience = Experience(
        trajectories=trajectories,
        advantages=advantages,
        is_on_policy=torch.ones(len(trajectories), dtype=torch.bool),
    )
    members, steps = torch.arange(len(trajectories)), torch.arange(MAX_LENGTH)
    gradients = []
    for tokens in (1, 7, 1000):
        policy.network.zero_grad()
        Learner(policy=policy, config=replace(config, update_tokens=tokens)).gradients(
            experience, steps, members
        )
        assert policy.network.logits.grad is not None
        gradients.append(policy.network.logits.grad.clone())
    by_hand = Bigrams()
    log_probs = by_hand(trajectories.tokens).gather(-1, trajectories.tokens.unsqueeze(-1)).squeeze(-1)
    is_real = steps < trajectories.num_decisions.unsqueeze(-1)
    entropy_term = config.entropy_weight * sum(
        -(row.exp() * row).sum()
        for whole, length in zip(
            by_hand(trajectories.tokens), trajectories.num_decisions.tolist(), strict=True
        )
        for row in whole[:length]
    )
    loss = -((log_probs * advantages.unsqueeze(-1))[is_real].sum() + entropy_term) / is_real.sum()
    (wanted,) = torch.autograd.grad(loss, by_hand.logits)
    for gradient in gradients:
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)
