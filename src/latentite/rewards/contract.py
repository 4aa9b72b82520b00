"""`check_reward`: whether a reward keeps what the protocol promises; `latentite reward check` runs it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.rewards.protocol import Reward, is_collective, make_ready

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardReport:
    """Result of a check."""

    num_crystals: int
    num_failed: int
    """NaN: allowed, each such crystal gets the floor."""
    lowest: float
    highest: float
    mean: float
    seconds_per_100: float
    is_collective: bool


def check_reward(
    reward: Reward, crystals: CrystalBatch, *, tolerance: float = 1e-5, seed: int = 0
) -> RewardReport:
    """Checks shape, finiteness, determinism, reordering, single crystals and an input that stays as it is.

    Args:
        reward: what is checked.
        crystals: at least two, sound ones; they are also its reference where it wants one.
        tolerance: relative, for rewards of the same crystals in another order.
        seed: of the order.

    Raises:
        ValueError: in one sentence, naming what is broken.
    """
    if len(crystals) < 2:
        raise ValueError(f"check_reward needs at least two crystals, got {len(crystals)}")
    make_ready(reward, crystals)
    structures = crystals.to_structures()
    kept_structures = [structure.copy() for structure in structures]
    kept = CrystalBatch.concatenate([crystals])
    start = time.perf_counter()
    values = _values(reward, structures, crystals)
    seconds = time.perf_counter() - start
    _check_untouched(structures, kept_structures, crystals, kept)
    if values.isnan().all():
        raise ValueError("a reward must be a number for real crystals, got NaN for every one of them")
    if values.isinf().any():
        raise ValueError(f"a reward must be finite or NaN, got {float(values[values.isinf()][0])}")
    _compare("called twice", _values(reward, structures, crystals), values, tolerance)
    order = torch.randperm(len(crystals), generator=torch.Generator().manual_seed(seed))
    shuffled = _values(reward, [structures[i] for i in order.tolist()], crystals.select(order))
    _compare("in another order", shuffled, values[order], tolerance)
    alone = _values(reward, structures[:1], crystals.select(torch.tensor([0])))
    if not is_collective(reward):
        _compare(
            "alone and in a batch (set the attribute is_collective = True if this is meant)",
            alone,
            values[:1],
            tolerance,
        )
    known = values[~values.isnan()]
    return RewardReport(
        num_crystals=len(crystals),
        num_failed=len(values) - len(known),
        lowest=float(known.min()),
        highest=float(known.max()),
        mean=float(known.mean()),
        seconds_per_100=100.0 * seconds / len(crystals),
        is_collective=is_collective(reward),
    )


def _values(
    reward: Reward, structures: Sequence[Structure], batch: CrystalBatch
) -> Float[Tensor, " crystal"]:
    values = reward(structures, batch)
    if not isinstance(values, Tensor):
        raise ValueError(f"a reward must give a torch.Tensor, got {type(values).__name__}")
    if values.shape != (len(structures),):
        raise ValueError(
            f"a reward must give one number per crystal, shape ({len(structures)},), got {tuple(values.shape)}"
        )
    return values.detach().cpu().double()


def _check_untouched(
    structures: Sequence[Structure],
    kept_structures: Sequence[Structure],
    batch: CrystalBatch,
    kept: CrystalBatch,
) -> None:
    for position, (now, before) in enumerate(zip(structures, kept_structures, strict=True)):
        if now != before or (now.lattice.matrix != before.lattice.matrix).any():
            raise ValueError(
                f"a reward must leave its input as it is, but structure {position} was changed; work on a copy()"
            )
    for name in ("atomic_numbers", "frac_coords", "lattice", "num_atoms"):
        if not torch.equal(getattr(batch, name), getattr(kept, name)):
            raise ValueError(f"a reward must leave its input as it is, but batch.{name} was changed")


def _compare(what: str, first: Tensor, second: Tensor, tolerance: float) -> None:
    both_failed = first.isnan() & second.isnan()
    difference = torch.where(both_failed, 0.0, (first - second).abs())
    scale = max(1.0, float(second[~second.isnan()].abs().max()) if not second.isnan().all() else 1.0)
    worst = float(difference.nan_to_num(nan=math.inf).max())
    if not worst <= tolerance * scale:
        raise ValueError(f"a crystal's reward must be the same {what}, got a difference of {worst:.3g}")
