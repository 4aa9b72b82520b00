"""A reward: structures in, one number per crystal out, larger is better.

    class Heavy:
        def __call__(self, structures, batch):
            return torch.tensor([structure.density for structure in structures])

A class or a function of that call is all that is needed. Crystals that cannot be (collapsed cells, atoms on top of
each other) never arrive. NaN means "failed": that crystal gets the component's floor. `contract.py` checks anyone's
own reward, `combine.py` puts several together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
