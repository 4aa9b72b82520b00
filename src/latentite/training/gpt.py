"""The stage `gpt`: the Lightning module that trains a crystal GPT, and the network that a run starts from.

The objective is the negative log-probability of the crystals; `nn/gpt/model.py` says how it is made of parts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentite.base.plain import naming
from latentite.data.sampler import AugmentationConfig
from latentite.models import load_gpt
from latentite.nn.conditions import Conditioning, ConditionModuleConfig
from latentite.nn.gpt.log_probability import LogProbability
from latentite.nn.gpt.network import SPACE_GROUP, GPTConfig, GPTNetwork, limits_of
from latentite.nn.gpt.size import GPTLimits
from latentite.objectives.terms import LossTerms, Term, num_processes
from latentite.symmetry.descriptions import equivalent
from latentite.symmetry.orbits import OrbitBatch
from latentite.training.conditions import check_labels, kept_conditions, resolve_conditions
from latentite.training.module import StageModule, Stream
from latentite.training.orbit_data import GPTBatch, OrbitDataModule, OrbitEncoding
from latentite.training.stage_settings import GPTModuleConfig

log = logging.getLogger(__name__)

PARTS = ("group", "letters", "elements", "cell", "coords")
"""Parts of the log-probability."""

IMPOSSIBLE_NATS = 200.0
"""A part of a validation crystal to which the model gives no probability (more atoms, or more different elements, than
any crystal of the training split) counts as so many nats: validation stays a number."""


class GPTTrainingModule(StageModule):
    """Trains a `GPTNetwork`."""

    network: GPTNetwork

    def __init__(self, config: GPTModuleConfig, network: GPTNetwork, *, seed: int = 0) -> None:
        """Take a network whose statistics are those of its training data."""
        super().__init__(
            seed=seed,
            augmentation=AugmentationConfig(),
            optimizer=config.optimizer,
            scheduler=config.scheduler,
        )
        self.config = config
        self.network = network

    def compile_network(self) -> None:
        """Compile the trunk's layers in place; names of parameters stay as they are."""
        for layer in self.network.gpt.trunk.layers:
            layer.compile(dynamic=True)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout and the sampled places draw from a seed of the step."""
        # Both know torch's own generator only; seeded anew in each step, resuming is exact.
        draws = self.generator(Stream.DROPOUT, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(draws.initial_seed())

    def training_terms(self, batch: GPTBatch, generator: torch.Generator) -> LossTerms:  # type: ignore[override]
        """Nats per crystal by part, with conditions hidden at random."""
        orbits = redescribed(batch.orbits, generator) if self.config.equivalents else batch.orbits
        conditioning = self._hidden_at_random(orbits, generator)
        log_prob = self.network.log_prob(
            orbits, batch.reductions, conditioning, smoothing=self.config.smoothing
        )
        terms = {part: Term.mean_of(-getattr(log_prob, part), weight=1.0) for part in PARTS}
        if num_processes() > 1:
            # DDP waits for a gradient of every parameter, and a batch without free coordinates has none for some.
            nothing = torch.stack([p.sum() for p in self.network.parameters() if p.requires_grad]).sum() * 0.0
            terms["group"] = replace(terms["group"], sum=terms["group"].sum + nothing)
        return LossTerms(terms=terms)

    def validation_step(self, batch: GPTBatch, batch_idx: int) -> None:
        """Nats per crystal by part with no condition shown and, for a conditional model, in all with every one shown.

        The gap between the two is what conditions tell.
        """
        parts = _finite_parts(self.network.log_prob(batch.orbits, batch.reductions))
        metrics = {part: values.mean() for part, values in parts.items()}
        metrics["loss"] = torch.stack(list(parts.values())).sum(0).mean()
        metrics["impossible"] = (~self.network.within_limits(batch.orbits)).float().mean()
        if self.network.condition_module is not None:
            values = self.network.condition_values(batch.orbits)
            shown = self.network.conditioning(values, num_crystals=len(batch))
            told = _finite_parts(self.network.log_prob(batch.orbits, batch.reductions, shown))
            metrics["loss_told"] = torch.stack(list(told.values())).sum(0).mean()
        logged = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict(logged, batch_size=len(batch), on_epoch=True, sync_dist=True)

    def _hidden_at_random(self, orbits: OrbitBatch, generator: torch.Generator) -> Conditioning | None:
        module = self.network.condition_module
        if module is None:
            return None
        values = self.network.condition_values(orbits)
        return module(values, module.hide(values, generator=generator), num_crystals=len(orbits))


def _finite_parts(log_prob: LogProbability) -> dict[str, Tensor]:
    """Nats of each crystal by part."""
    return {part: torch.nan_to_num(-getattr(log_prob, part), posinf=IMPOSSIBLE_NATS) for part in PARTS}


def redescribed(orbits: OrbitBatch, generator: torch.Generator) -> OrbitBatch:
    """Each crystal in one of its equivalent descriptions, drawn for it; cell and lattice stay as they are."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    rng = np.random.default_rng(int(seed))
    others = OrbitBatch.pack([equivalent(one, rng) for one in orbits.unpack()])
    return replace(others.to(orbits.position.device), cell=orbits.cell, properties=orbits.properties)


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTPlan:
    """The parts from which a run builds its network."""

    settings: GPTConfig
    """From which a checkpoint of the run can build it again."""
    base: GPTNetwork | None
    """The model that is fine-tuned."""


def encoding_of(config: GPTModuleConfig) -> OrbitEncoding:
    """The description of the crystals of a run."""
    return OrbitEncoding(mode=config.mode, symprec=config.symprec, fallback=config.fallback)


def plan_gpt(config: GPTModuleConfig, conditions: Sequence[str], data: OrbitDataModule) -> GPTPlan:
    """Read what the network is made from.

    Args:
        config: of the stage.
        conditions: `data.target_condition`.
        data: of the run, loaded.

    Raises:
        ValueError: when a checkpoint cannot be used, or base, conditions and data do not fit together.
    """
    limits = limits_of(data.orbits("train"))
    if config.gpt_ckpt_path is None:
        settings = GPTConfig(
            size=config.size,
            limits=limits,
            mode=config.mode,
            lattice_density=config.lattice_density,
            coord_density=config.coord_density,
            condition_module=_run_conditions(config, conditions, data, hidden_size=config.size.d_model),
        )
        return GPTPlan(settings=settings, base=None)
    with naming("gpt_module.gpt_ckpt_path"):
        base, settings, _ = load_gpt(config.gpt_ckpt_path)
    if settings.mode is not config.mode:
        raise ValueError(
            f"gpt_module.mode must be {settings.mode}, that of the base (gpt_ckpt_path), got {config.mode}"
        )
    module = _run_conditions(config, conditions, data, hidden_size=settings.size.d_model)
    if settings.condition_module is not None:
        module = kept_conditions(settings.condition_module, module, setting="gpt_ckpt_path")
    size = replace(settings.size, dropout=config.size.dropout)
    limits = _joint(settings.limits, limits)
    return GPTPlan(settings=replace(settings, size=size, limits=limits, condition_module=module), base=base)


def build_gpt_module(
    config: GPTModuleConfig, plan: GPTPlan, data: OrbitDataModule, *, seed: int
) -> GPTTrainingModule:
    """The training module with its network; what is new in that is drawn from torch's own generator."""
    network = GPTNetwork(plan.settings)
    train = data.orbits("train")
    module = network.condition_module
    if plan.base is None:
        network.fit_statistics(train)
    else:
        result = network.load_state_dict(plan.base.state_dict(), strict=False)
        assert not result.unexpected_keys, "a fine-tuned network has all that its base has"
        log.info("fine-tuning %s", config.gpt_ckpt_path)
    if module is not None and (plan.base is None or plan.base.condition_module is None):
        module.fit_statistics(network.condition_values(train))
        if plan.base is not None:  # New conditions start without any effect: outputs are the base's.
            last = module.proj[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return GPTTrainingModule(config, network, seed=seed)


def _joint(one: GPTLimits, other: GPTLimits) -> GPTLimits:
    return GPTLimits(
        max_atoms=max(one.max_atoms, other.max_atoms),
        max_orbits=max(one.max_orbits, other.max_orbits),
        max_elements=max(one.max_elements, other.max_elements),
    )


def _run_conditions(
    config: GPTModuleConfig, names: Sequence[str], data: OrbitDataModule, *, hidden_size: int
) -> ConditionModuleConfig | None:
    train = data.splits["train"]
    module = resolve_conditions(
        names,
        config.condition_module,
        categories=train.categories,
        hidden_size=hidden_size,
        section="gpt_module",
    )
    labels = [] if module is None else [c for c in module.conditions if c.name != SPACE_GROUP]
    check_labels(labels, train)
    return module
