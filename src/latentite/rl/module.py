"""Stage 3: the Lightning module that fine-tunes a latent diffusion model towards rewards.

A training step is a rollout, its rewards, and the updates that they allow; the maths is in `rl/policy.py`.
With `reward_workers` a step draws a rollout and learns from the one before it; the last step of an epoch learns from
both. The network is always in evaluation mode: dropout in one of the two passes of a ratio would be noise in it. Comes
after `rl_config.py`, `rollouts.py`, `flight.py` and `rl_update.py`; `fit.py` drives it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import LDMStageConfig
from latentite.objectives.terms import LossTerms
from latentite.rewards.combine import Rewards
from latentite.rewards.repeats import DiversityFilter
from latentite.rewards.workers import RewardWorkers
from latentite.rl.advantages import RunningRewards
from latentite.rl.config import RLModuleConfig
from latentite.rl.flight import Drawn, Flight, lesson_of
from latentite.rl.gather import Judged, start_judging, start_rewards
from latentite.rl.policy import choose_steps, compute_advantages
from latentite.rl.replay import ReplayBuffer
from latentite.rl.rollouts import Policy, Prompts, build_chain, collect, decode
from latentite.rl.update import Learner, minibatches
from latentite.training.datamodule import CrystalDataModule
from latentite.training.module import StageModule, Stream
from latentite.training.optim import SchedulerConfig

MEMORY_KEY = "rl_memory"
"""Section of a checkpoint: what the stage remembers besides weights. Absent where nothing is on that does."""


class RLTrainingModule(StageModule):
    """Fine-tunes `network.denoiser` and `network.condition_module`; the reference stays as it was."""

    network: LatentDiffusion
    running_rewards: Tensor

    def __init__(
        self,
        config: RLModuleConfig,
        network: LatentDiffusion,
        reference: LatentDiffusion,
        settings: LDMStageConfig,
        rewards: Rewards | RewardWorkers,
        *,
        seed: int = 0,
        max_norm: float | None = 1.0,
    ) -> None:
        """Take the network to train and the frozen reference, which start equal.

        Args:
            config: of the stage.
            network: what is trained.
            reference: what it must stay near.
            settings: of both, with the diffusion process.
            rewards: what is wanted.
            seed: of all draws.
            max_norm: gradients are clipped to this norm; None: not.
        """
        super().__init__(
            seed=seed,
            augmentation=AugmentationConfig(),
            optimizer=config.optimizer,
            scheduler=SchedulerConfig(),
        )
        self.automatic_optimization = False
        self.config = config
        self.network = network.eval()
        # In a tuple, so that it is neither a parameter nor in checkpoints: it is read from its own.
        self._reference = (reference.eval().requires_grad_(False),)
        self.rewards = rewards
        self.max_norm = max_norm
        self.chain = build_chain(settings.diffusion, config.sampling)
        self.register_buffer("running_rewards", RunningRewards.empty().state)
        wanted = config.reward_fn.diversity_filter
        self.diversity_filter = None if wanted is None else DiversityFilter(wanted)
        self.replay = None if config.replay is None else ReplayBuffer(config.replay)
        self._in_flight: list[Flight] = []
        self._resumed: dict[str, Any] = {}

    def compile_network(self) -> None:
        """Compile the denoiser's blocks in place, of both networks."""
        for network in (self.network, *self._reference):
            for block in network.denoiser.blocks:
                block.compile(dynamic=True)

    def training_terms(self, batch: CrystalBatch, generator: torch.Generator) -> LossTerms:
        """Not of this stage: a step is many updates."""
        raise NotImplementedError("reinforcement learning has no single loss per batch")

    def on_fit_start(self) -> None:
        """Check the processes, make the rewards ready, and put back what was in flight when the run was stopped."""
        self.config.check_processes(self.trainer.world_size)
        reference = self._reference[0].to(self.device)
        self.chain = self.chain.to(self.device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own attribute
        assert isinstance(data, CrystalDataModule)
        self.rewards.set_reference(data.splits["train"].crystals)
        self._learner = Learner(
            chain=self.chain,
            policy=Policy(network=self.network, sampling=self.config.sampling),
            reference=Policy(network=reference, sampling=self.config.sampling),
            config=self.config.rl_configs,
        )
        drawn = [Drawn.restored(state, self.device) for state in self._resumed.get("in_flight", ())]
        self._in_flight = [self._take_off(one) for one in drawn]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found: dict[str, Any] = {}
        if self._in_flight:
            found["in_flight"] = [flight.drawn.state() for flight in self._in_flight]
        if self.diversity_filter is not None:
            found["diversity_filter"] = self.diversity_filter.state()
        if self.replay is not None:
            found["replay"] = self.replay.state()
        if found:
            checkpoint[MEMORY_KEY] = found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get(MEMORY_KEY, {})
        if self.diversity_filter is not None:
            self.diversity_filter.restore(self._resumed.get("diversity_filter", {}))
        if self.replay is not None:
            self.replay.restore(self._resumed.get("replay", {}), self.chain.num_decisions)

    def on_train_epoch_start(self) -> None:
        self.network.eval()

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor | None:
        """Roll out, judge, update; the update is that of the rollout before where rewards overlap."""
        self._in_flight.append(self._take_off(self._draw(batch, batch_idx)))
        num_staying = int(self.config.reward_workers > 0 and not self.trainer.is_last_batch)
        learnt = []
        while len(self._in_flight) > num_staying:
            learnt.append(self._learn(self._in_flight.pop(0)))
        if not learnt:
            return None
        logged = {name: sum(one[name] for one in learnt) / len(learnt) for name in learnt[0]}
        self._log(logged, len(batch), on_step=True)
        return torch.tensor(logged["train/loss"])

    def _draw(self, batch: CrystalBatch, batch_idx: int) -> Drawn:
        prompts = self._prompts(batch, Stream.ROLLOUT, batch_idx, self.config.rl_configs.num_drawn)
        start = time.perf_counter()
        rollout = collect(self._learner.policy, self.chain, prompts)
        return Drawn(
            rollout=rollout,
            prompts=prompts,
            epoch=self.current_epoch,
            batch_idx=batch_idx,
            drawn_at=self.global_step,
            seconds=time.perf_counter() - start,
        )

    def _take_off(self, drawn: Drawn) -> Flight:
        crystals = decode(self.network, drawn.rollout, drawn.prompts)
        start = partial(start_rewards, self.rewards, repeats=self.diversity_filter)
        finish = start_judging(crystals, drawn.prompts, start)
        return Flight(drawn=drawn, crystals=crystals, finish=finish)

    def _learn(self, flight: Flight) -> dict[str, float]:
        """Wait for the rewards and learn from them; what is to be logged."""
        start = time.perf_counter()
        judged = flight.finish()
        rewarded = time.perf_counter()
        values = self._update(flight, judged)
        logged = {f"train/{name}": float(value) for name, value in values.items()}
        logged |= {f"reward/{name}": value for name, value in judged.means.items()}
        return logged | {
            "train/reward": float(judged.rewards.mean()),
            "train/reward_std": float(judged.rewards.std(correction=0)),
            "time/rollout": flight.drawn.seconds,
            "time/reward": rewarded - start,
            "time/update": time.perf_counter() - rewarded,
        }

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """One crystal for each of the batch, with the same seeds every time."""
        prompts = self._prompts(batch, Stream.VALIDATION, batch_idx, 1, epoch=0)
        rollout = collect(self._learner.policy, self.chain, prompts)
        crystals = decode(self.network, rollout, prompts)
        table = start_rewards(self.rewards, crystals)()
        means = table.means()
        logged: dict[str, Tensor | float] = {f"val/reward/{name}": value for name, value in means.items()}
        self._log(logged | {"val/reward": means["total"]}, len(batch), on_step=False)
        if batch_idx == 0 and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            from latentite.training.loggers import show_best

            show_best(self.trainer, crystals, table, self.config.num_pictures)

    def _prompts(
        self, batch: CrystalBatch, stream: Stream, batch_idx: int, num_samples: int, epoch: int | None = None
    ) -> Prompts:
        epoch = self.current_epoch if epoch is None else epoch
        draws = self.generator(stream, epoch, batch_idx, 0)
        return Prompts.of(
            batch,
            num_samples=num_samples,
            run_seed=draws.initial_seed(),
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )

    def _update(self, flight: Flight, judged: Judged) -> dict[str, Tensor]:
        """All optimizer steps of a rollout."""
        config, drawn = self.config.rl_configs, flight.drawn
        running = RunningRewards(state=self.running_rewards.cpu())
        running = running.updated(judged.rewards, config.running_decay)
        self.running_rewards.copy_(running.state)
        draws = self._generator_on_cpu(Stream.MINIBATCHES, drawn)
        values = self._learner.policy.values(drawn.prompts.crystals)
        advantages = compute_advantages(judged.rewards, judged.groups, config, running)
        is_first = drawn.drawn_at == self.global_step
        lesson, places, count = lesson_of(drawn, judged, values, advantages, config, is_first=is_first)
        num_replayed = 0
        if self.replay is not None:
            replayed = self.replay.draw(judged.rewards, config, running, draws)
            if replayed is not None:
                lesson, num_replayed = lesson.joined(replayed), len(replayed)
                places = torch.cat([places, count + torch.arange(num_replayed)])
            self.replay.remember(drawn.rollout, values, flight.crystals, judged.rewards, judged.is_usable)
        steps = choose_steps(drawn.rollout.num_decisions, config, self._generator_on_cpu(Stream.STEPS, drawn))
        parts = [
            part.to(self.device)
            for _ in range(config.num_inner_epochs)
            for part in minibatches(places, count + num_replayed, config.num_minibatches, draws)
        ]
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        parameters = list(self.network.parameters())
        found = self._learner.improve(
            lesson, steps.to(self.device), parts, optimizer, parameters, max_norm=self.max_norm
        )
        return found if self.replay is None else found | {"replayed": torch.tensor(float(num_replayed))}

    def _generator_on_cpu(self, stream: Stream, drawn: Drawn) -> torch.Generator:
        """The same draws in every process and on every device."""
        draws = self.generator(stream, drawn.epoch, drawn.batch_idx, 0)
        return torch.Generator().manual_seed(draws.initial_seed())

    def _log(self, values: Mapping[str, Tensor | float], batch_size: int, *, on_step: bool) -> None:
        self.log_dict(
            {name: float(value) for name, value in values.items()},
            batch_size=batch_size,
            on_step=on_step,
            on_epoch=not on_step,
            sync_dist=not on_step,
        )
