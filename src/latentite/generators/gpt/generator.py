"""A crystal GPT behind the protocol of every generator: its checkpoint, its options, what they make."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from latentite.checkpoint import CRYSTAL_GPT, CheckpointRecord, DataCard
from latentite.crystal import CrystalBatch
from latentite.diffusion.noise import seed_uniforms
from latentite.elements import ATOMIC_NUMBER, MAX_ATOMIC_NUMBER, SYMBOLS
from latentite.generators.gpt.options import GPTOptions, space_groups, wyckoff_letters
from latentite.generators.jobs import Ask, ElementRules, Jobs
from latentite.generators.protocol import Advance, Askable, Drawn, GeneratorCard
from latentite.generators.sizes import NumAtoms, training_sizes
from latentite.generators.told import told, unusual_values
from latentite.models import gpt_of
from latentite.nn.condition_values import ConditionKind, ConditionValue
from latentite.nn.gpt.choices import DrawSettings
from latentite.nn.gpt.network import GPTConfig, GPTMode, GPTNetwork
from latentite.nn.gpt.sample import Sampler, num_uniforms
from latentite.nn.gpt.wishes import Wish, Wishes, possible_groups
from latentite.symmetry.positions import LETTERS

log = logging.getLogger(__name__)

NUM_DRAWN_FOR_UNITS = 64
"""Skeletons from which is learned how many formula units the cells of a formula have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTGenerator:
    """A network on its device, and how it is drawn from."""

    card: GeneratorCard
    network: GPTNetwork
    """In evaluation mode."""
    draws: DrawSettings
    groups: tuple[int, ...] = ()
    """Space groups that crystals may have; empty for all."""
    letters: tuple[int, ...] = ()
    """Wyckoff letters of their orbits, `a` is 0; empty where they are free."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def build(record: CheckpointRecord, options: GPTOptions, device: torch.device) -> GPTGenerator:
        """From a checkpoint.

        Raises:
            CheckpointError: when it is none of a crystal GPT.
            ValueError: for options that the model cannot fulfil.
        """
        network, config, _ = gpt_of(record)
        card = replace(card_of(network, record.data), sha256=record.sha256, weights=record.weights)
        return GPTGenerator.of(network.to(device), card, options, config)

    @staticmethod
    def of(
        network: GPTNetwork, card: GeneratorCard, options: GPTOptions, config: GPTConfig | None = None
    ) -> GPTGenerator:
        """Of a network that is there.

        Raises:
            ValueError: for options that the model cannot fulfil.
        """
        config = config or network.config
        draws = DrawSettings(
            temperature=options.temperature,
            temperature_coords=options.temperature_coords,
            top_p=options.top_p,
            max_elements=options.max_elements,
            guidance=float(options.guidance),
        )
        groups, letters = space_groups(options.space_group), wyckoff_letters(options.wyckoff)
        most = config.limits.max_elements
        if draws.max_elements is not None and draws.max_elements > most:
            raise ValueError(
                f"max_elements must be at most {most}, the most that the model has seen, got {draws.max_elements}"
            )
        if config.mode is GPTMode.P1:
            if (groups and groups != (1,)) or letters:
                raise ValueError(
                    "space_group and wyckoff must not be given: this model describes crystals without symmetry"
                )
            groups = (1,)
        settings = {
            "guidance": draws.guidance,
            "temperature": draws.temperature,
            "temperature_coords": draws.temperature_coords,
            "top_p": draws.top_p,
            "max_elements": draws.max_elements,
            "space_group": list(groups),
            "wyckoff": [LETTERS[letter] for letter in letters],
        }
        return GPTGenerator(
            card=card, network=network, draws=draws, groups=groups, letters=letters, settings=settings
        )

    # What is asked

    def accept(self, asks: Sequence[Ask]) -> tuple[Ask, ...]:
        """The asks that a space group can fulfil, with the conditions that follow; see `Generator.accept`.

        Of a formula, numbers of formula units that no space group has room for are left out.
        """
        accepted = []
        for request in range(asks[-1].request + 1):
            ways = [self._with_conditions(ask) for ask in asks if ask.request == request]
            possible = [ask for ask in ways if self._groups(self._wish(ask, 0))]
            if not possible:
                self._refuse(ways[0])
            if len(possible) > 1 and all(ask.is_by_size for ask in possible):
                possible = self._with_units(possible)
            accepted += possible
        self._refuse_guidance(accepted)
        module = self.network.condition_module
        for sentence in [] if module is None else unusual_values(module, accepted):
            log.warning("%s", sentence)
        return tuple(accepted)

    def _with_conditions(self, ask: Ask) -> Ask:
        """The ask with all that follows for the conditions of the network."""
        groups = self._asked_groups(ask)
        follows: dict[ConditionKind, ConditionValue] = {}
        if len(groups) == 1:
            follows[ConditionKind.SPACE_GROUP] = groups[0]
        rules = ask.elements
        if rules is not None and rules.allowed is not None and set(rules.allowed) == set(rules.required):
            follows[ConditionKind.CHEMICAL_SYSTEM] = tuple(SYMBOLS[z - 1] for z in rules.required)
        conditions = dict(ask.conditions)
        for config in self.card.conditions:
            if config.kind in follows:
                conditions.setdefault(config.name, follows[config.kind])
        return replace(ask, conditions=conditions)

    def _with_units(self, ways: list[Ask]) -> list[Ask]:
        """The ways of a formula, by how often the model itself makes cells of so many units.

        Skeletons are drawn whose elements are those of the formula, which the model is told. Those of the right
        composition are counted; the sizes of the training set count as one more of them, so that no way is left out.
        """
        elements = tuple(sorted(set(ways[0].composition or ())))
        rules = ElementRules(allowed=elements, required=elements)
        free = replace(ways[0], composition=None, num_atoms=None, elements=rules)
        jobs = replace(Jobs.plain(torch.zeros(NUM_DRAWN_FOR_UNITS, dtype=torch.long)), asked=(free,))
        made = Sampler(self.network.gpt, self.draws).compositions(
            self._uniforms(jobs, 0), **self._told(jobs), wishes=Wishes.of([self._wish(free, 0)] * len(jobs))
        )
        total = sum(ask.weight for ask in ways)
        weighted = []
        for ask in ways:
            counts = torch.bincount(torch.tensor(ask.composition), minlength=made.shape[1])
            hits = int((made == counts.to(made.device)).all(-1).sum())
            weighted.append(replace(ask, weight=hits + ask.weight / total))
        return weighted

    def _asked_groups(self, ask: Ask) -> tuple[int, ...]:
        """Space groups that an ask allows; empty for all."""
        for config in self.card.conditions:
            if config.kind is not ConditionKind.SPACE_GROUP or config.name not in ask.conditions:
                continue
            value = ask.conditions[config.name]
            assert isinstance(value, int | float)
            if self.groups and int(value) not in self.groups:
                raise ValueError(
                    f"condition {config.name} must be one of space_group where both are given, got {int(value)}"
                )
            return (int(value),)
        return self.groups

    def _wish(self, ask: Ask, num_atoms: int) -> Wish:
        """The exact part of an ask: that which masks keep."""
        rules = ask.elements
        allowed = self.card.elements
        if rules is not None and rules.allowed is not None:
            allowed = tuple(z for z in allowed if z in rules.allowed)
        composition = () if ask.composition is None else tuple(sorted(Counter(ask.composition).items()))
        return Wish(
            groups=self._asked_groups(ask),
            letters=self.letters,
            elements=() if composition else allowed,
            required=() if rules is None else rules.required,
            composition=composition,
            num_atoms=num_atoms or ask.num_atoms or 0,
        )

    def _groups(self, wish: Wish) -> tuple[int, ...]:
        """The space groups in which a wish can be fulfilled; none where elements are too many."""
        limits = self.network.config.limits
        most = self.draws.max_elements or limits.max_elements
        if max(len(wish.composition), len(wish.required)) > most:
            return ()
        return possible_groups(wish, limits.max_atoms, limits.max_orbits)

    def _refuse(self, ask: Ask) -> None:
        """Refuse what no space group can fulfil, with the reason."""
        wish, limits = self._wish(ask, 0), self.network.config.limits
        most = self.draws.max_elements or limits.max_elements
        count = max(len(wish.composition), len(wish.required))
        what = ask.label or "a crystal"
        if count > most:
            raise ValueError(
                f"{what} must have at most {most} elements, the most that may be used, got {count}"
            )
        if (wish.num_atoms or 1) > limits.max_atoms:
            raise ValueError(
                f"{what} must have at most {limits.max_atoms} atoms in the primitive cell, the most that the model "
                f"has seen, got {wish.num_atoms}"
            )
        asked = [f"space_group {_listed(wish.groups)}"] if wish.groups else []
        if self.letters:
            asked.append(f"wyckoff {','.join(LETTERS[letter] for letter in self.letters)}")
        raise ValueError(
            f"{' and '.join(asked) or 'a space group'} must have room for {what}: the multiplicities of its positions "
            "in the primitive cell do not add up to the atoms that are asked; ask for other formula units, letters or "
            "space groups"
        )

    def _refuse_guidance(self, asks: Sequence[Ask]) -> None:
        for ask in asks:
            if ask.conditions and self.draws.guidance == 0.0:
                raise ValueError(
                    "guidance must not be 0 where something is asked: 0 is the unconditional model and would ignore "
                    f"condition {next(iter(ask.conditions))}; 1 is the conditional model"
                )

    # Crystals

    def draw(self, jobs: Jobs, *, seed: int, batch_size: int, advance: Advance) -> Drawn:
        """One crystal for each job; see `Generator.draw`.

        Further attempts keep space group and number of atoms of the first, so that a crystal that is refused, however
        often, does not change how often these occur.
        """
        kinds = {pair: self._wish(jobs.asked[pair[0]], pair[1]) for pair in set(_pairs(jobs))}
        wishes = [kinds[pair] for pair in _pairs(jobs)]
        failures = {
            place: f"no space group that is asked has room for {wish.num_atoms or 'these'} atoms"
            for place, wish in enumerate(wishes)
            if not self._groups(wish)
        }
        places = torch.tensor(
            [place for place in range(len(jobs)) if place not in failures], dtype=torch.long
        )
        parts = [CrystalBatch.from_arrays([])]
        for members in places.split(batch_size) if len(places) else ():
            parts.append(self._draw_batch(jobs.select(members), [wishes[p] for p in members.tolist()], seed))
            advance(len(members))
        if failures:
            advance(len(failures))
        crystals = CrystalBatch.concatenate(parts[1:] or parts)
        return Drawn(crystals=crystals, failures=failures)

    def _draw_batch(self, jobs: Jobs, wishes: list[Wish], seed: int) -> CrystalBatch:
        """One batch of jobs that can be fulfilled, on the CPU."""
        sampler = Sampler(self.network.gpt, self.draws)
        again = torch.nonzero(jobs.attempts > 0).flatten()
        if len(again):
            first = jobs.select(again)
            first = replace(first, attempts=torch.zeros_like(first.attempts))
            begun = [wishes[place] for place in again.tolist()]
            groups, sizes = sampler.sizes(
                self._uniforms(first, seed), **self._told(first), wishes=Wishes.of(begun)
            )
            for place, group, size in zip(again.tolist(), groups.tolist(), sizes.tolist(), strict=True):
                wishes[place] = replace(wishes[place], groups=(group,), num_atoms=size)
        drawn = sampler.draw(self._uniforms(jobs, seed), **self._told(jobs), wishes=Wishes.of(wishes))
        crystals = drawn.orbits.to_crystals().to("cpu")
        return replace(crystals, frac_coords=crystals.frac_coords.float(), lattice=crystals.lattice.float())

    def _uniforms(self, jobs: Jobs, seed: int) -> Tensor:
        device = self.network.gpt.start.device
        return seed_uniforms(jobs.seeds(seed), num_uniforms(self.network.config.limits.max_orbits)).to(device)

    def _told(self, jobs: Jobs) -> dict[str, Tensor | None]:
        """Conditioning of each job, and of nothing."""
        module = self.network.condition_module
        if module is None:
            return {"condition": None, "absent": None}
        values, present = told(module, jobs)
        vector = module(values, present, num_crystals=len(jobs)).vector
        return {"condition": vector, "absent": module.absent(1).vector[0]}


def _pairs(jobs: Jobs) -> list[tuple[int, int]]:
    """Ask and number of atoms of each job."""
    return list(zip(jobs.asks.tolist(), jobs.num_atoms.tolist(), strict=True))


def _listed(groups: Sequence[int]) -> str:
    return ",".join(map(str, groups)) if len(groups) <= 8 else f"{groups[0]} to {groups[-1]}"


def card_of(network: GPTNetwork, data: DataCard) -> GeneratorCard:
    """The card of a network, whatever file it is from.

    Args:
        network: the model.
        data: what it was trained on.
    """
    limits, module = network.config.limits, network.condition_module
    symbols = data.elements or SYMBOLS[:MAX_ATOMIC_NUMBER]
    sizes = training_sizes(data) or NumAtoms.from_counts(dict.fromkeys(range(1, limits.max_atoms + 1), 1.0))
    return GeneratorCard(
        kind=CRYSTAL_GPT,
        sha256="",
        elements=tuple(sorted(ATOMIC_NUMBER[symbol] for symbol in symbols)),
        asks=frozenset({Askable.FORMULA, Askable.ELEMENTS, Askable.NUM_ATOMS}),
        sizes=sizes,
        needs_num_atoms=False,
        conditions=() if module is None else tuple(module.config.conditions),
    )
