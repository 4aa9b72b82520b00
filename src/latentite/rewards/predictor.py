"""A property predictor as a reward: what a network of stage 4 says of a crystal, towards a goal.

A predictor knows crystals like those that it was trained on, and a policy will leave them for wherever it errs most:
`floor` and `cap` of the component bound what a prediction can earn, `max_std` pays nothing where an ensemble does not
agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.base.plain import from_plain
from latentite.crystal import CrystalBatch
from latentite.data.canonical import canonicalize_many
from latentite.models import load_predictor
from latentite.nn.predictor_config import HeadKind
from latentite.rewards.properties import Goal

if TYPE_CHECKING:
    from pymatgen.core import Structure


class PredictorReward:
    """A predicted property, in its own unit, scored by `Goal`; NaN where the predictor has no number to give."""

    def __init__(
        self,
        predictor: str | Path | None,
        property: str | None = None,
        max_std: float | None = None,
        batch_size: int = 256,
        **goal: Any,
    ) -> None:
        """Read the predictor, so that a wrong one is refused before a run begins.

        Args:
            predictor: a checkpoint file, or a name of `latentite hub list`.
            property: which of its targets; None where it has one only.
            max_std: predictions less certain than this (a standard deviation in the property's unit) earn nothing;
                None: all count.
            batch_size: crystals at once; not a matter of results.
            goal: arguments of `Goal`.

        Raises:
            ValueError: for no predictor, one without such a target or without uncertainties, or no goal.
        """
        if not predictor:
            raise ValueError(
                "predictor must name a checkpoint of a property predictor (a path or a name of `latentite hub list`), "
                f"got {predictor!r}"
            )
        if max_std is not None and not max_std > 0.0:
            raise ValueError(f"max_std must be above 0 or null, got {max_std}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.goal = from_plain(Goal, goal)
        self.network = load_predictor(predictor).network
        self.max_std, self.batch_size = max_std, batch_size
        config = self.network.config
        numbers = [name for name in config.targets if name not in config.classes]
        if property not in numbers and not (property is None and len(numbers) == 1):
            raise ValueError(
                f"property must be one of {', '.join(numbers) or 'none'}, the numbers that {predictor} predicts, "
                f"got {property!r}"
            )
        self.property = numbers[0] if property is None else property
        if max_std is not None and config.ensemble == 1 and config.head is not HeadKind.QUANTILE:
            raise ValueError(
                f"max_std must be null, because {predictor} knows no uncertainties, got {max_std}"
            )

    @torch.no_grad()
    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        # Predictors are trained on cells in canonical form.
        crystals = CrystalBatch.from_arrays(canonicalize_many(batch.to_arrays()))
        values = torch.full((len(crystals),), math.nan)
        for index in crystals.num_atoms.argsort(stable=True).split(self.batch_size):
            predictions = self.network.predictions(self.network.prepare(crystals.select(index)))
            values[index] = predictions.values[self.property]
            if self.max_std is not None:
                values[index[predictions.spreads[self.property] > self.max_std]] = math.nan
        return self.goal.score(values)
