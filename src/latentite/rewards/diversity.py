"""Diversity: how much nearer a crystal brings the generated set to the distribution of known crystals.

The squared maximum mean discrepancy of a batch S from reference features R (Gretton et al. 2012, JMLR 13, 723,
equation 5, the biased estimate) with the cubic kernel k(x, y) = (x.y / d + 1)^3 is

    MMD^2 = mean k(S, S) - 2 mean k(S, R) + mean k(R, R),

and crystal i is rewarded with MMD^2(S without i) - MMD^2(S): positive where leaving it out takes the batch further
away. The last term cancels and is never computed. Features are fingerprints, standardised over the reference.

Where what a crystal is can be counted (its number of atoms, its elements), the Kullback-Leibler divergence of the
batch's shares from those of known crystals is brought down instead: its derivative by the probability of a crystal is,
up to a constant, the mean of ln(share in the batch / share among known crystals) over what the crystal is counted as.
Rewards of energy make crystals small and simple, as long as nothing holds them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.metrics.fingerprints import Scaling, fit_scaling, magpie, radial
from latentite.nn.element_features import NUM_SYMBOLS

if TYPE_CHECKING:
    from pymatgen.core import Structure

FEATURES: dict[str, Callable[[Sequence[CrystalArrays]], np.ndarray]] = {
    "composition": magpie,
    "structure": radial,
}
_CHUNK = 4096

MAX_ATOMS_OF_BIN = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40)
"""Largest number of atoms of each bin of sizes but the last."""
_PRIOR = 16.0
"""Crystals of the reference that are counted to each batch, so that shares of small batches are not 0."""


class DiversityReward:
    """Individual contribution to the MMD, in composition or structure features; NaN where there are none."""

    is_collective = True

    def __init__(self, features: str, max_reference: int = 20_000, seed: int = 0) -> None:
        """Choose the features.

        Args:
            features: `composition` or `structure`.
            max_reference: a larger training set is represented by a random part of it.
            seed: of that part.

        Raises:
            ValueError: for other features.
        """
        if features not in FEATURES:
            raise ValueError(f"features must be {' or '.join(FEATURES)}, got {features!r}")
        self.features = FEATURES[features]
        self.max_reference = max_reference
        self.seed = seed
        self._reference: tuple[Scaling, Tensor] | None = None

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Take the training set."""
        if len(crystals) > self.max_reference:
            chosen = torch.randperm(len(crystals), generator=torch.Generator().manual_seed(self.seed))
            crystals = crystals.select(chosen[: self.max_reference])
        rows = self.features(crystals.to_arrays())
        rows = rows[np.isfinite(rows).all(axis=1)]
        scaling = fit_scaling(rows)
        self._reference = (scaling, torch.from_numpy(scaling.apply(rows)).float())

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        if self._reference is None:
            raise ValueError("a diversity reward needs set_reference(training crystals) before it is called")
        scaling, reference = self._reference
        rows = torch.from_numpy(scaling.apply(self.features(batch.to_arrays()))).float()
        known = rows.isfinite().all(dim=1)
        result = torch.full((len(rows),), torch.nan, dtype=torch.float64)
        result[known] = mmd_contributions(rows[known], reference)
        return result


def cubic_kernel(
    x: Float[Tensor, "row feature"], y: Float[Tensor, "other feature"]
) -> Float[Tensor, "row other"]:
    """(x.y / d + 1)^3, the kernel of the kernel inception distance (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def mmd_contributions(
    samples: Float[Tensor, "crystal feature"], reference: Float[Tensor, "other feature"]
) -> Float[Tensor, " crystal"]:
    """MMD^2 without each sample minus MMD^2 with it, float64; zero for fewer than two samples."""
    count = len(samples)
    if count < 2:
        return torch.zeros(count, dtype=torch.float64)
    own = cubic_kernel(samples, samples).double()
    cross = torch.zeros(count, dtype=torch.float64)
    for part in reference.split(_CHUNK):
        cross += cubic_kernel(samples, part).double().sum(dim=1)
    cross /= len(reference)
    total = own.sum()
    without = (total - 2.0 * own.sum(dim=1) + own.diagonal()) / (count - 1) ** 2
    without = without - 2.0 * (cross.sum() - cross) / (count - 1)
    return without - (total / count**2 - 2.0 * cross.mean())


def _sizes(crystals: CrystalBatch) -> Float[Tensor, "crystal label"]:
    """Bins of numbers of atoms, one for each crystal."""
    bins = torch.bucketize(crystals.num_atoms.cpu(), torch.tensor(MAX_ATOMS_OF_BIN))
    return torch.nn.functional.one_hot(bins, len(MAX_ATOMS_OF_BIN) + 1).double()


def _elements(crystals: CrystalBatch) -> Float[Tensor, "crystal label"]:
    """Elements of each crystal, all that it has with the same share."""
    has = torch.zeros(len(crystals), NUM_SYMBOLS, dtype=torch.float64)
    has[crystals.crystal_index.cpu(), crystals.atomic_numbers.cpu()] = 1.0
    return has / has.sum(dim=1, keepdim=True)


COUNTED: dict[str, Callable[[CrystalBatch], Tensor]] = {"num_atoms": _sizes, "elements": _elements}


class SharesReward:
    """Minus the excess of what a crystal is: mean of ln(share of known crystals / share of the batch), nats."""

    is_collective = True

    def __init__(self, of: str) -> None:
        """Choose what is counted.

        Args:
            of: `num_atoms` (in bins) or `elements`.

        Raises:
            ValueError: for anything else.
        """
        if of not in COUNTED:
            raise ValueError(f"of must be {' or '.join(COUNTED)}, got {of!r}")
        self.count = COUNTED[of]
        self._reference: Tensor | None = None

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Take the training set."""
        totals = self.count(crystals).sum(dim=0) + 1.0 / NUM_SYMBOLS
        self._reference = totals / totals.sum()

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        if self._reference is None:
            raise ValueError("a reward of shares needs set_reference(training crystals) before it is called")
        labels = self.count(batch)
        shares = (labels.sum(dim=0) + _PRIOR * self._reference) / (len(batch) + _PRIOR)
        return labels @ (self._reference / shares).log()
