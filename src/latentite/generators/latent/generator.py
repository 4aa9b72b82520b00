"""A latent diffusion model behind the protocol of every generator: its checkpoint, its options, what they make."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentite.base.plain import names, numbers
from latentite.checkpoint import LATENT_DIFFUSION, CheckpointRecord
from latentite.data.readers.opening import fingerprint
from latentite.elements import MAX_ATOMIC_NUMBER
from latentite.generators.asks import with_composition
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.latent.capability import (
    ask_warnings,
    refuse_elements,
    refuse_fixed,
    refuse_guidance,
)
from latentite.generators.latent.chain import (
    SamplingConfig,
    sample_jobs,
    sampler_settings,
    sampling_schedule,
)
from latentite.generators.latent.options import LatentOptions
from latentite.generators.latent.start import Start, read_structures, source_of, start_from
from latentite.generators.protocol import Advance, Askable, Drawn, GeneratorCard
from latentite.generators.sizes import NumAtoms, training_sizes
from latentite.models import ldm_of
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentGenerator:
    """A network on its device, and how its chain is walked."""

    card: GeneratorCard
    network: LatentDiffusion
    """In evaluation mode."""
    diffusion: DiffusionConfig
    sampling: SamplingConfig
    """Its batch size is that of each draw."""
    start: Start | None = None
    """Structures to start from."""
    settings: Mapping[str, Any]

    @staticmethod
    def build(record: CheckpointRecord, options: LatentOptions, device: torch.device) -> LatentGenerator:
        """From a checkpoint, adapters merged.

        Raises:
            CheckpointError: when it is none of a latent diffusion model.
            ValueError: for options that the model cannot fulfil, and structures that cannot be read.
        """
        sampling = options.sampling()
        network, stage, _ = ldm_of(record)
        settings = _plain_settings(options, sampling, stage.diffusion)  # refuses what the process cannot do
        network = network.to(device)
        start = None
        if options.init is not None:
            start = start_from(
                network,
                read_structures(source_of(options.init)),
                strength=1.0 if options.strength is None else options.strength,
                fix_sites=numbers("fix_sites", options.fix_sites),
                fix_species=names(options.fix_species),
            )
        card = replace(
            card_of(network, training_sizes(record.data)),
            sha256=record.sha256,
            weights=record.weights,
            has_trajectory=options.trajectory,
            has_deviation=start is not None and bool(start.fixed.any()),
        )
        return LatentGenerator(
            card=card,
            network=network,
            diffusion=stage.diffusion,
            sampling=sampling,
            start=start,
            settings=settings,
        )

    def accept(self, asks: Sequence[Ask]) -> tuple[Ask, ...]:
        """Every request once for each structure to start from, else as they come; see `Generator.accept`."""
        accepted = tuple(asks if self.start is None else self._from_structures(asks, self.start))
        refuse_elements(self.network, accepted)
        refuse_guidance(self.network, accepted, self.sampling.guidance)
        for sentence in ask_warnings(self.network, accepted):
            log.warning("%s", sentence)
        return accepted

    def _from_structures(self, asks: Sequence[Ask], start: Start) -> list[Ask]:
        """The requests for each structure, where their numbers of atoms agree."""
        result = []
        num_starts = len(start.crystals)
        counts = start.crystals.num_atoms.tolist()
        structures = start.crystals.atomic_numbers.split(counts)
        for request in range(asks[-1].request + 1):
            ways = [ask for ask in asks if ask.request == request]
            for number, atoms in enumerate(structures):
                fitting = [ask for ask in ways if ask.num_atoms in (None, len(atoms))]
                if not fitting:
                    raise ValueError(
                        f"formula and num_atoms must fit the structure to start from, which has {len(atoms)} atoms; "
                        f"got {' or '.join(str(ask.num_atoms) for ask in ways)}"
                    )
                elements = tuple(atoms.tolist())
                fixed = tuple(atoms[start.fixed[number, : len(atoms)]].tolist())
                for ask in fitting:
                    begun = replace(
                        ask, num_atoms=len(atoms), start=number, request=request * num_starts + number
                    )
                    if ask.composition is None and not self.network.config.vae.atom_type_predict:
                        begun = with_composition(self.card.conditions, begun, elements)
                    refuse_fixed(self.network, begun, elements, fixed)
                    result.append(begun)
        return result

    def draw(self, jobs: Jobs, *, seed: int, batch_size: int, advance: Advance) -> Drawn:
        """Walk the chain for each job; see `Generator.draw`."""
        return sample_jobs(
            self.network,
            self.diffusion,
            jobs,
            seed=seed,
            config=replace(self.sampling, batch_size=batch_size),
            start=self.start,
            trajectory=self.card.has_trajectory,
            advance=advance,
        )


def card_of(network: LatentDiffusion, sizes: NumAtoms | None) -> GeneratorCard:
    """What a network can be asked, whatever file it is from.

    Args:
        network: the model.
        sizes: of its training set.
    """
    module = network.condition_module
    return GeneratorCard(
        kind=LATENT_DIFFUSION,
        sha256="",
        elements=tuple(range(1, MAX_ATOMIC_NUMBER + 1)),
        asks=frozenset(Askable),
        sizes=sizes,
        conditions=() if module is None else tuple(module.config.conditions),
    )


def _plain_settings(
    options: LatentOptions, sampling: SamplingConfig, diffusion: DiffusionConfig
) -> dict[str, Any]:
    """The options as plain values, with what the process chooses; structures by their content."""
    sampler, schedule = sampling_schedule(diffusion, sampling)
    walked = sampler_settings(diffusion, sampling)
    settings = {
        "sampler": sampler.value,
        "steps": schedule.num_steps,
        "eta": walked.eta,
        "noise_scale": walked.noise_scale,
        "guidance": sampling.guidance,
        "precision": sampling.precision.value,
        "trajectory": options.trajectory,
        "strength": options.strength,
        "fix_sites": numbers("fix_sites", options.fix_sites),
        "fix_species": names(options.fix_species),
    }
    if options.init is not None:
        source = source_of(options.init)
        settings["init"] = str(source) if isinstance(source, (str, Path)) else f"{len(source)} structures"
        settings["init_sha256"] = fingerprint(source)
    return settings
