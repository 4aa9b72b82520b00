"""New crystals from a trained latent diffusion model: `latentite.generate(...)`, the same as `latentite sample`.

Crystal i of a run is a function of the checkpoint, the options and (seed, i), not of batch size, shard or
interruptions. What an option means is checked before anything is sampled or written. Comes after `sampling/`;
`sample_commands.py` is its command line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from latentite.checkpoint import CheckpointRecord, Weights
from latentite.crystal import CrystalBatch
from latentite.data.records import fingerprint
from latentite.diffusion.samplers import SamplerKind
from latentite.files import sha256_file
from latentite.ldm_checkpoint import load_ldm
from latentite.nn.condition_values import value_text
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig
from latentite.sampling import options as given
from latentite.sampling.asks import ask_warnings, build_asks
from latentite.sampling.chain import (
    Precision,
    SampledCrystals,
    SamplingConfig,
    sample_jobs,
    sampling_schedule,
)
from latentite.sampling.folder import Counts, Format
from latentite.sampling.jobs import Ask, Jobs
from latentite.sampling.options import Numbers, Structures, Texts
from latentite.sampling.run import Origin, Run, refuse_folder, run_in_memory, run_to_folder
from latentite.sampling.sizes import NumAtoms, choose_num_atoms, plan_jobs, training_sizes
from latentite.sampling.start import Start, start_from
from latentite.sampling.window import Advance, shard_range, window_size

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class GenerateConfig:
    """The options of `latentite sample`, under the same names; text is taken wherever the command line takes it."""

    ckpt: str | Path
    """A checkpoint file, or a name of `latentite hub list`."""
    num_samples: int = 64
    """Crystals; with formulas or structures to start from, for each of them."""
    batch_size: int = 256
    """Most crystals at once; halved when memory runs out."""
    seed: int = 0
    sampler: SamplerKind | str | None = None
    """None: the default for the checkpoint's process."""
    steps: int = 50
    eta: float = 1.0
    """Noise of `ddim` and `flow_sde`."""
    guidance: float | str | Mapping[str, float] = 2.0
    """s of u + s (c - u): one number, or `name=number,...`, one for each condition."""
    conditions: str | Mapping[str, object] | None = None
    """`band_gap=2.0,chemical_system=Li-Fe-O`."""
    num_atoms: str | int | None = None
    """`12` or `8:20`."""
    num_atoms_distribution: str | Path = "train"
    """`train`, or a file with counts (`sizes.read_num_atoms`)."""
    formula: Texts = ()
    """Formulas, or files with one formula per line."""
    formula_units: Numbers | None = None
    """Formula units per cell; None: as many as sizes of the training set allow, as often as these occur."""
    elements_allowed: Texts | None = None
    elements_required: Texts | None = None
    elements_forbidden: Texts | None = None
    init: Structures | None = None
    """Structures to start from: a file, a folder, or objects."""
    strength: float | None = None
    """Share of the steps that is taken from them, in (0, 1]; None: all, which is for fixed atoms only."""
    fix_sites: Numbers = ()
    """Atoms of `init` to keep, counted from 0."""
    fix_species: Texts = ()
    """Elements whose atoms are kept."""
    out: str | Path | None = None
    """Folder; None keeps the crystals in memory."""
    format: Texts = ("cif", "extxyz")
    """`cif`, `extxyz`, `json`."""
    trajectory: bool = False
    """Write every state on the way as well."""
    device: str = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""
    precision: Precision | str = Precision.FP32
    shard: str = "1/1"
    """`k/n`: the k-th of n parts of the run, k from 1."""
    resume: bool = False
    """Go on with the run in `out`."""
    no_replace: bool = False
    """Do not sample again what cannot be used."""
    max_attempts: int = 20
    """At each crystal."""
    weights: Weights | str | None = None
    """None: EMA where there is one."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "steps", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.init is None and (self.strength is not None or self.fix_sites != () or self.fix_species):
            raise ValueError(
                "strength, fix_sites and fix_species must be given together with init, got no init"
            )
        if self.init is not None and self.strength is None and self.fix_sites == () and not self.fix_species:
            raise ValueError(
                "strength must be given with init, such as 0.3: without it, and with no atom fixed, nothing of "
                "the structure would be kept"
            )
        if self.out is None and (self.resume or self.trajectory):
            raise ValueError(
                "out must be given together with resume and trajectory, which are about its files"
            )
        if self.num_atoms is not None and (self.formula or self.init is not None):
            raise ValueError(
                "num_atoms must not be given with formula or init, which say how many atoms there are; formula_units "
                "chooses the size of the cell"
            )

    def sampling(self) -> SamplingConfig:
        """How the chain is walked."""
        return SamplingConfig(
            sampler=None if self.sampler is None else given.choice("sampler", self.sampler, SamplerKind),
            steps=self.steps,
            eta=self.eta,
            guidance=given.parse_guidance(self.guidance),
            batch_size=self.batch_size,
            precision=given.choice("precision", self.precision, Precision),
        )

    def formats(self) -> tuple[Format, ...]:
        """The formats to write, each once."""
        found = dict.fromkeys(given.choice("format", name, Format) for name in given.names(self.format))
        if not found:
            raise ValueError(f"format must be one or more of {', '.join(Format)}, got none")
        return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateResult:
    """What a run gives."""

    counts: Counts
    asked: int
    """Crystals that were asked for here: of this shard."""
    has_requests: bool
    """Whether something was asked that can be verified: a formula, elements, a number of atoms."""
    out: Path | None
    crystals: CrystalBatch | None = None
    """In the order of the index; None when they are in files."""
    jobs: Jobs | None = None
    """Of `crystals`: index, attempt and what was asked."""


def generate(ckpt: str | Path, **options: Any) -> GenerateResult:
    """Sample crystals with a checkpoint; the options are those of `GenerateConfig`.

    Raises:
        ValueError: for what cannot be done, before anything is sampled or written.
        KeyboardInterrupt: passed on; a run in a folder can be resumed.
    """
    return generate_from(GenerateConfig(ckpt=ckpt, **options))


def generate_from(
    config: GenerateConfig, *, command: Sequence[str] = ("latentite.generate",)
) -> GenerateResult:
    """Sample what the options say.

    Args:
        config: the options.
        command: how the run was started, for the manifest.
    """
    formats = config.formats()
    shard = given.parse_shard(config.shard)
    folder = None if config.out is None else Path(config.out)
    if folder is not None:
        refuse_folder(folder, resume=config.resume)
    device = given.resolve_device(config.device)
    model = _Model.load(config, device)
    run = model.run(config, shard)
    has_requests = config.num_atoms is not None or any(
        ask.composition or ask.elements or ask.num_atoms for ask in model.asks
    )
    if folder is None:
        crystals, jobs, counts = run_in_memory(run)
        return GenerateResult(
            counts=counts,
            asked=run.stop - run.first,
            has_requests=has_requests,
            out=None,
            crystals=crystals,
            jobs=jobs,
        )
    origin = Origin(
        settings=_settings(config, formats, model),
        checkpoint={
            "file": str(config.ckpt),
            "sha256": model.record.sha256,
            "weights": model.record.weights.value,
        },
        command=command,
        device=str(device),
    )
    counts = run_to_folder(run, folder, origin=origin, formats=formats, resume=config.resume)
    return GenerateResult(counts=counts, asked=run.stop - run.first, has_requests=has_requests, out=folder)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A checkpoint on its device, and what is asked of it."""

    network: LatentDiffusion
    diffusion: DiffusionConfig
    record: CheckpointRecord
    sampling: SamplingConfig
    sizes: NumAtoms
    asks: tuple[Ask, ...]
    start: Start | None

    @staticmethod
    def load(config: GenerateConfig, device: torch.device) -> _Model:
        """Read the checkpoint, and refuse what it cannot do."""
        sampling = config.sampling()
        formulas = given.read_formulas(config.formula)
        units = None if config.formula_units is None else given.numbers("formula_units", config.formula_units)
        weights = None if config.weights is None else given.choice("weights", config.weights, Weights)
        network, stage, record = load_ldm(config.ckpt, weights=weights)
        sampling_schedule(stage.diffusion, sampling)
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
        if train_sizes is None and all(ask.num_atoms is not None for ask in asks):
            sizes = NumAtoms.from_counts({1: 1})  # nothing is drawn from it
        else:
            sizes = choose_num_atoms(config.num_atoms, config.num_atoms_distribution, train=train_sizes)
        return _Model(
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


def _settings(config: GenerateConfig, formats: Sequence[Format], model: _Model) -> dict[str, Any]:
    """Every option that the files depend on, as plain values; contents of files by their hash."""
    settings = {
        item.name: getattr(config, item.name)
        for item in fields(config)
        if item.name not in ("ckpt", "out", "device", "resume", "init", "formula", "conditions", "format")
    }
    settings |= {
        "sampler": sampling_schedule(model.diffusion, model.sampling)[0].value,
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


class _CallableModule(ModuleType):
    """Importing this module puts it in place of the function of the same name on the package: so it can be called."""

    def __call__(self, ckpt: str | Path, **options: Any) -> GenerateResult:
        return generate(ckpt, **options)


sys.modules[__name__].__class__ = _CallableModule
