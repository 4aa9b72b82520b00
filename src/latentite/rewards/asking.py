"""One component of the reward: its options, and its answer, which comes back whatever a user's code does.

The only place where rewards are scaled; crystals are compared in `rl/` alone."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.rewards.protocol import Reward, is_collective

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Normalize(StrEnum):
    """How a component is scaled over the crystals of a rollout."""

    NONE = "none"
    MIN_MAX = "min_max"
    """To 0 to 1."""
    STANDARD = "standard"
    """To mean 0 and standard deviation 1."""


@dataclass(kw_only=True, slots=True)
class ComponentOptions:
    """What may stand beside a component's `_target_` and its own arguments."""

    weight: float = 1.0
    """0: only for the log."""
    normalize: Normalize = Normalize.NONE
    floor: float | None = None
    """No raw value counts as less, and a crystal that fails gets it; null: it gets the lowest of the rollout."""
    cap: float | None = None
    """No raw value counts as more."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be a finite number, got {self.weight}")
        if self.floor is not None and self.cap is not None and not self.floor < self.cap:
            raise ValueError(f"floor must be below cap, got {self.floor} and {self.cap}")


def normalise(raw: Float[Tensor, " crystal"], options: ComponentOptions) -> Float[Tensor, " crystal"]:
    """Floor, cap and scale; failures (NaN) get the floor. All finite."""
    known = raw[~raw.isnan()]
    lowest = float(known.min()) if len(known) else 0.0
    values = raw.nan_to_num(nan=lowest if options.floor is None else options.floor)
    values = (
        values.clamp(options.floor, options.cap) if (options.floor, options.cap) != (None, None) else values
    )
    if options.normalize is Normalize.NONE or not len(values):
        return values
    low = values.min() if options.normalize is Normalize.MIN_MAX else values.mean()
    spread = values.max() - low if options.normalize is Normalize.MIN_MAX else values.std(correction=0)
    return (values - low) / spread if spread > 1e-12 else torch.zeros_like(values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One reward with its options."""

    name: str
    reward: Reward
    options: ComponentOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a component said of some crystals."""

    values: Float[Tensor, " crystal"]
    """Raw, float64; NaN where it failed."""
    seconds: float
    failures: tuple[str, ...] = ()
    """What it raised, each sentence once."""

    @staticmethod
    def failed(count: int, why: str) -> Answer:
        """Of a component that said nothing at all."""
        values = torch.full((count,), math.nan, dtype=torch.float64)
        return Answer(values=values, seconds=0.0, failures=(why,))


def ask(reward: Reward, structures: Sequence[Structure], batch: CrystalBatch) -> Answer:
    """Raw values; a crystal at which the reward raises is asked alone, so that it spoils only itself."""
    start = time.perf_counter()
    if not structures:
        return Answer(values=torch.zeros(0, dtype=torch.float64), seconds=0.0)
    try:
        values = _called(reward, structures, batch)
        return Answer(values=values, seconds=time.perf_counter() - start)
    except Exception as error:  # noqa: BLE001  # a user's code may raise anything, and the run must live
        failures = [_sentence(error)]
    values = torch.full((len(structures),), math.nan, dtype=torch.float64)
    if not is_collective(reward) and len(structures) > 1:
        for position, structure in enumerate(structures):
            try:
                alone = batch.select(torch.tensor([position]))
                values[position] = _called(reward, [structure], alone)[0]
            except Exception as error:  # noqa: BLE001  # as above
                failures.append(_sentence(error))
    seconds = time.perf_counter() - start
    return Answer(values=values, seconds=seconds, failures=tuple(dict.fromkeys(failures)))


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _called(reward: Reward, structures: Sequence[Structure], batch: CrystalBatch) -> Tensor:
    with torch.enable_grad():  # in validation too: a relaxation takes gradients
        values = torch.as_tensor(reward(structures, batch)).detach().cpu().double()
    if values.shape != (len(structures),):
        raise ValueError(
            f"a reward must give one number per crystal, shape ({len(structures)},), got {tuple(values.shape)}"
        )
    return torch.where(values.isinf(), math.nan, values)
