"""A latent diffusion model behind the protocol of every generator: its checkpoint, its options, what they make."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentite.base.plain import names, numbers
from latentite.checkpoint import LATENT_DIFFUSION, CheckpointRecord
from latentite.data.readers.opening import fingerprint
from latentite.elements import MAX_ATOMIC_NUMBER, SYMBOLS
from latentite.generators.asks import with_composition
from latentite.generators.jobs import Ask, Jobs
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
from latentite.generators.told import unusual_values
from latentite.models import ldm_of
from latentite.nn.condition_values import ConditionKind
from latentite.nn.denoiser import TokenIndex
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.ldm import DiffusionConfig

log = logging.getLogger(__name__)

Guidance = float | Mapping[str, float]
"""One scale for all conditions, or one for each by name."""


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
        _refuse_elements(self.network, accepted)
        _refuse_guidance(self.network, accepted, self.sampling.guidance)
        module = self.network.condition_module
        unusual = [] if module is None else unusual_values(module, accepted)
        for sentence in [*ask_warnings(self.network, accepted), *unusual]:
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
                    _refuse_fixed(self.network, begun, elements, fixed)
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
    """The card of a network, whatever file it is from.

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


def _conditions_of(network: LatentDiffusion) -> list[tuple[str, ConditionKind]]:
    """Name and kind of each of the model's conditions."""
    module = network.condition_module
    return [] if module is None else [(config.name, config.kind) for config in module.config.conditions]


def _refuse_fixed(network: LatentDiffusion, ask: Ask, atoms: tuple[int, ...], fixed: tuple[int, ...]) -> None:
    """Refuse fixed atoms that the formula or the rules have no place for; atoms are atomic numbers."""
    symbols = ", ".join(sorted({SYMBOLS[z - 1] for z in fixed}))
    if ask.composition is not None:
        if fixed and not network.config.vae.atom_type_predict and ask.composition != atoms:
            raise ValueError(
                "formula must be that of the structure where atoms are fixed in a structure-prediction model"
            )
        if Counter(fixed) - Counter(ask.composition):
            raise ValueError(f"formula must hold the fixed atoms ({symbols}), got {ask.label}")
    if ask.elements is None:
        return
    if ask.elements.allowed is not None and not set(fixed) <= set(ask.elements.allowed):
        raise ValueError(f"elements_allowed and _forbidden must allow the fixed atoms ({symbols})")
    if len(set(ask.elements.required) - set(fixed)) > len(atoms) - len(fixed):
        raise ValueError("elements_required must be no more than the atoms that are not fixed")


def _refuse_elements(network: LatentDiffusion, asks: Sequence[Ask]) -> None:
    """Refuse what a structure-prediction model cannot do."""
    if network.config.vae.atom_type_predict:
        return
    if any(ask.elements is not None for ask in asks):
        raise ValueError(
            "elements_* must not be given: this model predicts structures, and is told its elements by a formula"
        )
    if any(ask.composition is None for ask in asks):
        raise ValueError("formula must be given: this model predicts structures, not elements")
    if ConditionKind.COMPOSITION not in {kind for _, kind in _conditions_of(network)}:
        raise ValueError(
            "formula must be asked of a model with a composition condition: this one's denoiser "
            "is never told the elements"
        )
    if network.config.denoiser.index is TokenIndex.NONE:
        raise ValueError(
            "formula must be asked of a model that knows which token is which atom: this one predicts structures, "
            "but its denoiser has no token index (denoiser.index=none)"
        )


def _refuse_guidance(network: LatentDiffusion, asks: Sequence[Ask], guidance: Guidance) -> None:
    """Refuse conditions that guidance would ignore, and scales of nothing."""
    conditions = _conditions_of(network)
    if isinstance(guidance, Mapping):
        known = [name for name, _ in conditions]
        unknown = [name for name in guidance if name not in known]
        if unknown:
            raise ValueError(
                f"guidance must be for conditions of the model, which has: {', '.join(known) or 'none'}; "
                f"got {unknown[0]}"
            )
        missing = [name for ask in asks for name in _given(ask, conditions) if name not in guidance]
        if missing:
            raise ValueError(
                f"guidance must have a scale for each condition that is given, got none for {missing[0]}"
            )
    for ask in asks:
        for name in ask.conditions:
            scale = guidance.get(name, 1.0) if isinstance(guidance, Mapping) else guidance
            if scale == 0.0:
                what = f"condition {name}" if name in _given(ask, conditions) else f"formula {ask.label}"
                raise ValueError(
                    f"guidance must not be 0 where something is asked: 0 is the unconditional model and would "
                    f"ignore {what}; 1 is the conditional model"
                )


def _given(ask: Ask, conditions: Sequence[tuple[str, ConditionKind]]) -> list[str]:
    """Conditions that the user gave: not those that follow from the atoms."""
    follow = (ConditionKind.COMPOSITION, ConditionKind.CHEMICAL_SYSTEM)
    return [
        name
        for name, kind in conditions
        if name in ask.conditions and not (kind in follow and ask.composition is not None)
    ]


def ask_warnings(network: LatentDiffusion, asks: Sequence[Ask]) -> list[str]:
    """Sentences that the user should read: about compositions that a model does not aim at."""
    kinds = {kind for _, kind in _conditions_of(network)}
    labels = {ask.label for ask in asks if ask.composition is not None}
    if not labels or ConditionKind.COMPOSITION in kinds:
        return []
    knows = (
        "is told the elements, but not how many of each"
        if ConditionKind.CHEMICAL_SYSTEM in kinds
        else "is not told the composition"
    )
    return [
        f"this model {knows}: the elements of {sorted(labels)[0]}{' and others' if len(labels) > 1 else ''} are "
        "put on the atoms of structures that were not made for that composition"
    ]
