"""A checkpoint and what is asked of it, made into a run; everything that it cannot do is refused here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latentite.base.files import sha256_file
from latentite.checkpoint import CheckpointRecord, Weights
from latentite.data.readers.records import fingerprint
from latentite.generators.asks import ask_warnings, build_asks
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.latent.chain import (
    SampledCrystals,
    SamplingConfig,
    sample_jobs,
    sampler_settings,
    sampling_schedule,
)
from latentite.generators.latent.start import Start, start_from
from latentite.generators.sizes import NumAtoms, choose_num_atoms, plan_jobs, training_sizes
from latentite.models import load_ldm
from latentite.nn.condition_values import value_text
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig
from latentite.sampling import options as given
from latentite.sampling.folder import Format
from latentite.sampling.options import GenerateConfig
from latentite.sampling.run import Run
from latentite.sampling.window import Advance, shard_range, window_size

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A checkpoint on its device, and what is asked of it."""

    network: LatentDiffusion
    diffusion: DiffusionConfig
    record: CheckpointRecord
    sampling: SamplingConfig
    sizes: NumAtoms
    asks: tuple[Ask, ...]
    start: Start | None

    @staticmethod
    def load(config: GenerateConfig, device: torch.device) -> Model:
        """Read the checkpoint, and refuse what it cannot do."""
        sampling = config.sampling()
        formulas = given.read_formulas(config.formula)
        units = None if config.formula_units is None else given.numbers("formula_units", config.formula_units)
        weights = None if config.weights is None else given.choice("weights", config.weights, Weights)
        network, stage, record = load_ldm(config.ckpt, weights)
        sampling_schedule(stage.diffusion, sampling)  # these two refuse what the process cannot do
        sampler_settings(stage.diffusion, sampling)
        network = network.to(device)
        start = None
        if config.init is not None:
            start = start_from(
                network,
                given.read_structures(given.source_of(config.init)),
                strength=1.0 if config.strength is None else config.strength,
                fix_sites=given.numbers("fix_sites", config.fix_sites),
                fix_species=given.names(config.fix_species),
            )
        train_sizes = training_sizes(record.data)
        asks = build_asks(
            network,
            train_sizes=train_sizes,
            conditions=config.conditions,
            formulas=formulas,
            formula_units=units,
            allowed=config.elements_allowed,
            required=config.elements_required,
            forbidden=config.elements_forbidden,
            guidance=sampling.guidance,
            start=start,
        )
        for sentence in ask_warnings(network, asks):
            log.warning("%s", sentence)
        if all(ask.num_atoms is not None for ask in asks):
            if config.size_option is not None:
                raise ValueError(
                    f"{config.size_option} must not be given with a condition that says how many atoms there are; "
                    "leave one out"
                )
            sizes = NumAtoms.from_counts({1: 1})  # nothing is drawn from it
        else:
            sizes = choose_num_atoms(config.num_atoms, config.num_atoms_distribution, train=train_sizes)
        return Model(
            network=network,
            diffusion=stage.diffusion,
            record=record,
            sampling=sampling,
            sizes=sizes,
            asks=asks,
            start=start,
        )

    def run(self, config: GenerateConfig, shard: tuple[int, int]) -> Run:
        """The run, or the shard of it."""
        total = config.num_samples * (1 + self.asks[-1].request)
        size = window_size(config.batch_size)
        first, stop = shard_range(total, *shard, size)
        return Run(
            plan=partial(
                plan_jobs, seed=config.seed, sizes=self.sizes, asks=self.asks, num_samples=config.num_samples
            ),
            draw=partial(self.draw, config.seed, config.trajectory),
            seed=config.seed,
            total=total,
            first=first,
            stop=stop,
            window_size=size,
            batch_size=config.batch_size,
            max_attempts=1 if config.no_replace else config.max_attempts,
            conditions=self.conditions,
            has_deviation=self.start is not None and bool(self.start.fixed.any()),
        )

    def draw(
        self, seed: int, trajectory: bool, jobs: Jobs, batch_size: int, advance: Advance
    ) -> SampledCrystals:
        """Sample jobs: `window.Draw` with the first two arguments given."""
        return sample_jobs(
            self.network,
            self.diffusion,
            jobs,
            seed=seed,
            config=replace(self.sampling, batch_size=batch_size),
            start=self.start,
            trajectory=trajectory,
            advance=advance,
        )

    def conditions(self, ask: Ask) -> str:
        """What the model is told of an ask, as a user would type it."""
        module = self.network.condition_module
        configs = {} if module is None else {item.name: item for item in module.config.conditions}
        return ",".join(
            f"{name}={value_text(value, configs[name])}" for name, value in ask.conditions.items()
        )


def plain_settings(config: GenerateConfig, formats: Sequence[Format], model: Model) -> dict[str, Any]:
    """Every option that the files depend on, as plain values; contents of files by their hash."""
    settings = {
        item.name: getattr(config, item.name)
        for item in fields(config)
        if item.name not in ("ckpt", "out", "device", "resume", "init", "formula", "conditions", "format")
    }
    sampler, schedule = sampling_schedule(model.diffusion, model.sampling)
    settings |= {
        "sampler": sampler.value,
        "steps": schedule.num_steps,
        "guidance": model.sampling.guidance,
        "weights": model.record.weights.value,
        "precision": model.sampling.precision.value,
        "conditions": _conditions_text(config.conditions),
        "num_atoms": None if config.num_atoms is None else str(config.num_atoms),
        "formula": given.read_formulas(config.formula),
        "format": [name.value for name in formats],
        "num_atoms_distribution": str(config.num_atoms_distribution),
    }
    for name in ("formula_units", "fix_sites"):
        value = settings[name]
        settings[name] = None if value is None else given.numbers(name, value)
    for name in ("elements_allowed", "elements_required", "elements_forbidden", "fix_species"):
        value = settings[name]
        settings[name] = None if value is None else given.names(value)
    if config.num_atoms_distribution != "train" and config.num_atoms is None:
        settings["num_atoms_distribution_sha256"] = sha256_file(config.num_atoms_distribution)
    if config.init is not None:
        source = given.source_of(config.init)
        settings["init"] = str(source) if isinstance(source, (str, Path)) else f"{len(source)} structures"
        settings["init_sha256"] = fingerprint(source)
    return settings


def _conditions_text(conditions: str | Mapping[str, object] | None) -> str | None:
    if isinstance(conditions, Mapping):
        return ",".join(f"{name}={value}" for name, value in conditions.items())
    return conditions
