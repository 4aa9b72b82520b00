"""A reward: structures in, one number per crystal out, larger is better; how it is asked, and checked.

    class Heavy:
        def __call__(self, structures, batch):
            return torch.tensor([structure.density for structure in structures])

A class or a function of that call is all that is needed. Crystals that cannot be (collapsed cells, atoms on top of
each other) never arrive. NaN means "failed": that crystal gets the component's floor. `ask` gives an answer whatever a
user's code does, `normalise` is the only place where rewards are scaled, `check_reward` checks anyone's own reward
(`latentite reward check`), and `combine.py` puts several together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.rewards.target import locate

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Reward(Protocol):
    """Anything that can be called like this."""

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        """The reward of each crystal.

        Args:
            structures: pymatgen structures; not to be changed.
            batch: the same crystals as tensors, on the CPU.
        """
        ...


@runtime_checkable
class NeedsReference(Protocol):
    """A reward that compares with known crystals: it is told them once, before the first call."""

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Take the training set."""
        ...


@runtime_checkable
class NeedsPreparation(Protocol):
    """A reward that must read something first: asked once, before the first call.

    What it raises ends the run before it has begun. Raised in a call, it would cost every crystal its floor.
    """

    def prepare(self) -> object:
        """Read what every call needs."""
        ...


def make_ready(reward: Reward, crystals: CrystalBatch) -> None:
    """Before the first call: the training set for rewards that want it, and their own reading."""
    if isinstance(reward, NeedsReference):
        reward.set_reference(crystals)
    if isinstance(reward, NeedsPreparation):
        reward.prepare()


def is_collective(reward: Reward) -> bool:
    """True if a crystal's reward depends on the others of the batch: the reward's attribute `is_collective`.

    Others are called again crystal by crystal when a call fails, so that one crystal spoils only itself.
    """
    return bool(getattr(reward, "is_collective", False))


class CustomReward:
    """A reward from a plain function of one pymatgen structure."""

    def __init__(self, function: Callable[[Structure], float] | str) -> None:
        """Take the function itself, or where it is: `package.module.function` or `path/to/file.py:function`."""
        self.function: Callable[[Structure], float] = (
            locate(function) if isinstance(function, str) else function
        )

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        return torch.tensor([float(self.function(structure)) for structure in structures])


class Normalize(StrEnum):
    """Scalings of a component over the crystals of a rollout."""

    NONE = "none"
    MIN_MAX = "min_max"
    """To 0 to 1."""
    STANDARD = "standard"
    """To mean 0 and standard deviation 1."""


@dataclass(kw_only=True, slots=True)
class ComponentOptions:
    """Options beside a component's `_target_` and its own arguments."""

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
    """Raw rewards of a component for some crystals."""

    values: Float[Tensor, " crystal"]
    """Raw, float64; NaN where it failed."""
    seconds: float
    failures: tuple[str, ...] = ()
    """Messages of the errors that it raised, each once."""

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
    _check_shape(values, len(structures))
    return torch.where(values.isinf(), math.nan, values)


def _check_shape(values: Tensor, count: int) -> None:
    if values.shape != (count,):
        raise ValueError(
            f"a reward must give one number per crystal, shape ({count},), got {tuple(values.shape)}"
        )


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
    _check_shape(values, len(structures))
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
