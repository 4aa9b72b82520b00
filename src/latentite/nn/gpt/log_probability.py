"""`LogProbability`: what a crystal GPT tells of known crystals, decision by decision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LogProbability:
    """Log-probability of every decision, nats; 0 where a crystal has no such decision."""

    group_choice: Float[Tensor, " crystal"]
    letter_choices: Float[Tensor, "crystal orbit_or_stop"]
    element_choices: Float[Tensor, "crystal orbit"]
    cell_components: Float[Tensor, "crystal 6"]
    place_choices: Float[Tensor, "crystal orbit 4"]
    """The coarse cell, and the fine bin of each coordinate; or 0, and the density of each fractional coordinate."""

    @property
    def group(self) -> Float[Tensor, " crystal"]:
        """Of the space group."""
        return self.group_choice

    @property
    def letters(self) -> Float[Tensor, " crystal"]:
        """Of all letters and the end of the skeleton."""
        return self.letter_choices.sum(-1)

    @property
    def elements(self) -> Float[Tensor, " crystal"]:
        """Of all elements."""
        return self.element_choices.sum(-1)

    @property
    def cell(self) -> Float[Tensor, " crystal"]:
        """Density of the free components of the cell."""
        return self.cell_components.sum(-1)

    @property
    def coords(self) -> Float[Tensor, " crystal"]:
        """Of all places."""
        return self.place_choices.sum((-2, -1))

    @property
    def decisions(self) -> Float[Tensor, "crystal decision"]:
        """All decisions in the order in which they are made (all skeletons, then the cell, then places)."""
        between = torch.stack([self.letter_choices[:, :-1], self.element_choices], dim=-1).flatten(1)
        return torch.cat(
            [
                self.group_choice.unsqueeze(-1),
                between,
                self.letter_choices[:, -1:],
                self.cell_components,
                self.place_choices.flatten(1),
            ],
            dim=-1,
        )

    @property
    def total(self) -> Float[Tensor, " crystal"]:
        """All parts together."""
        return self.group + self.letters + self.elements + self.cell + self.coords
