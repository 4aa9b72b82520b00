"""Jobs: the crystals of a run one by one, and the asks that they fulfil.

A run is a list of jobs, one per crystal: its index in the run, the attempt, its number of atoms, and what is asked of
it. A job says everything that the result depends on besides the network and the run's seed, so jobs can be cut into
batches, shards and resumed parts at will.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from latentite.diffusion.noise import crystal_seeds
from latentite.nn.condition_values import ConditionValue


@dataclass(frozen=True, kw_only=True, slots=True)
class ElementRules:
    """The elements that a crystal may and must have; both hold by construction when it is decoded."""

    allowed: tuple[int, ...] | None = None
    """Atomic numbers in increasing order; None for all."""
    required: tuple[int, ...] = ()
    """Atomic numbers in increasing order, each to occur at least once; a subset of the allowed ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A wish for a crystal; many crystals of a run share one."""

    label: str = ""
    """For reports: a formula such as "LiFePO4 x 4"; empty when nothing in particular is asked."""
    conditions: Mapping[str, ConditionValue] = field(default_factory=dict)
    """Parsed values of the model's conditions, any subset."""
    composition: tuple[int, ...] | None = None
    """Atomic number of every atom of the cell in increasing order, if the formula is given."""
    elements: ElementRules | None = None
    """Rules for the elements, where no composition is given."""
    num_atoms: int | None = None
    """Atoms in the cell where the request says so (a formula and its units, a structure to start from)."""
    start: int = 0
    """The number of the structure that it begins at, where there are any."""
    request: int = 0
    """The number of the user's request that this is one way to fulfil, counted from 0 without gaps."""
    weight: float = 1.0
    """Weight of this way among the others of the same request (other formula units)."""
    is_by_size: bool = False
    """True where the weight is how often crystals of this size occur in training, whatever their formula: a generator
    that knows how often the formula itself has so many units may change it."""

    @property
    def min_atoms(self) -> int:
        """Fewest atoms that can fulfil it."""
        return max(1, 0 if self.elements is None else len(self.elements.required))


@dataclass(frozen=True, kw_only=True, slots=True)
class Jobs:
    """Jobs as columns, on the CPU."""

    indices: Int[Tensor, " crystal"]
    """Place of each crystal in the whole run (over all shards), from 0."""
    attempts: Int[Tensor, " crystal"]
    """0 at first; counts up when a crystal is sampled again because it could not be used."""
    num_atoms: Int[Tensor, " crystal"]
    """0 where the generator chooses."""
    asks: Int[Tensor, " crystal"]
    """The place in `asked` of what each is asked."""
    asked: tuple[Ask, ...] = (Ask(),)

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, positions: Int[Tensor, " selected"]) -> Jobs:
        """Some of the jobs."""
        return Jobs(
            indices=self.indices[positions],
            attempts=self.attempts[positions],
            num_atoms=self.num_atoms[positions],
            asks=self.asks[positions],
            asked=self.asked,
        )

    @staticmethod
    def concatenate(parts: Sequence[Jobs]) -> Jobs:
        """Jobs of one run, one part after the other."""
        return Jobs(
            indices=torch.cat([part.indices for part in parts]),
            attempts=torch.cat([part.attempts for part in parts]),
            num_atoms=torch.cat([part.num_atoms for part in parts]),
            asks=torch.cat([part.asks for part in parts]),
            asked=parts[0].asked,
        )

    def seeds(self, run_seed: int) -> list[int]:
        """The seed of each crystal, a function of (run seed, index, attempt) alone."""
        seeds = [0] * len(self)
        for attempt in self.attempts.unique().tolist():
            positions = (self.attempts == attempt).nonzero().flatten().tolist()
            base = run_seed if attempt == 0 else crystal_seeds(run_seed, [-attempt])[0]
            drawn = crystal_seeds(base, [int(self.indices[p]) for p in positions])
            for position, seed in zip(positions, drawn, strict=True):
                seeds[position] = seed
        return seeds

    @staticmethod
    def plain(num_atoms: Int[Tensor, " crystal"], indices: Sequence[int] | None = None) -> Jobs:
        """First attempts at crystals of which nothing is asked but their number of atoms."""
        count = len(num_atoms)
        return Jobs(
            indices=torch.arange(count) if indices is None else torch.tensor(list(indices)),
            attempts=torch.zeros(count, dtype=torch.long),
            num_atoms=num_atoms,
            asks=torch.zeros(count, dtype=torch.long),
        )
