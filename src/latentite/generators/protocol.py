"""The protocol of a generator of crystals: its card, jobs in, crystals out; `sampling/` knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from latentite.checkpoint import Weights
from latentite.crystal import CrystalBatch
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.sizes import NumAtoms
from latentite.nn.condition_values import ConditionConfig, value_text

Advance = Callable[[int], None]
"""Told how many more crystals are done."""


class Askable(StrEnum):
    """Requests, besides conditions, that a generator may take."""

    FORMULA = "formula"
    """Exactly these atoms."""
    ELEMENTS = "elements"
    """Elements that may, must or must not occur."""
    NUM_ATOMS = "num_atoms"
    """Number of atoms in the cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratorCard:
    """A generator's name, origin and abilities."""

    kind: str
    """Its name in the table of generators (`generators.table.GENERATORS`)."""
    sha256: str
    """Of the file that its crystals depend on."""
    elements: tuple[int, ...]
    """Atomic numbers that it can make, increasing."""
    asks: frozenset[Askable]
    """Requests that it takes besides conditions."""
    weights: Weights | None = None
    """The one of a checkpoint's two sets of weights; None where there are no two."""
    sizes: NumAtoms | None = None
    """Numbers of atoms in its training set; None where nobody says."""
    needs_num_atoms: bool = True
    """True if it must be told how many atoms each crystal has; else it chooses where nobody asks."""
    conditions: tuple[ConditionConfig, ...] = ()
    """Properties that it can be asked for."""
    has_trajectory: bool = False
    """True if it was set to give every state on the way (`Drawn.trajectory`)."""
    has_deviation: bool = False
    """True if atoms are fixed, so that every crystal has a deviation (`Drawn.fixed_deviation`)."""

    def told(self, ask: Ask) -> str:
        """The conditions of an ask as a user would type them."""
        configs = {item.name: item for item in self.conditions}
        return ",".join(
            f"{name}={value_text(value, configs[name])}" for name, value in ask.conditions.items()
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """Crystals that a generator made of jobs, on the CPU."""

    crystals: CrystalBatch
    """One for each job that has no failure, in the order of the jobs."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """By position in the jobs, why there is no crystal."""
    trajectory: list[CrystalBatch] | None = None
    """Every state decoded, from the start to `crystals`; each has as many crystals."""
    fixed_deviation: Float[Tensor, " crystal"] | None = None
    """With fixed atoms: how far from its place the worst of them came out, Å."""


class Generator(Protocol):
    """Makes crystals. Crystal i is a function of the generator, its job and (seed, i, attempt) alone."""

    @property
    def card(self) -> GeneratorCard:
        """Its name, origin and abilities."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its own options as plain values, none left open: what its crystals depend on besides the card's file."""

    def accept(self, asks: Sequence[Ask]) -> tuple[Ask, ...]:
        """The asks as it will fulfil them, ordered by request.

        Usually those that come in. A generator that starts from structures makes one request for each of them.

        Raises:
            ValueError: in one sentence, for what it cannot do.
        """

    def draw(self, jobs: Jobs, *, seed: int, batch_size: int, advance: Advance) -> Drawn:
        """One crystal for each job, or why there is none.

        Args:
            jobs: any part of a run; what they ask was accepted.
            seed: of the run; `Jobs.seeds` makes one for each crystal of it.
            batch_size: most crystals at once.
            advance: told after each batch how many jobs more are done.

        Raises:
            RuntimeError, MemoryError: when memory ran out; the caller tries again with smaller batches.
        """
