"""Several rewards as one: weights, one normalisation each, floors for what fails; everything counted.

Comes after `options.py` and `target.py`; `training/rl.py` calls it once per rollout.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.plain import from_plain
from latentite.rewards.duplicates import discounted
from latentite.rewards.options import ComponentOptions, normalise
from latentite.rewards.protocol import NeedsReference, Reward, is_collective
from latentite.rewards.target import TARGET, build

if TYPE_CHECKING:
    from pymatgen.core import Structure

log = logging.getLogger(__name__)


OPTIONS = frozenset(ComponentOptions.__dataclass_fields__)


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """The reward of a run: `rl_module.reward_fn`."""

    components: dict[str, dict[str, Any]] | list[dict[str, Any]] = field(default_factory=dict)
    """By name, or a list: `_target_`, arguments of the reward, and those of `ComponentOptions`."""
    duplicate_discount: float | None = None
    """Share of its reward above the rollout's lowest that a crystal with a copy in the rollout keeps; null: all."""

    def __post_init__(self) -> None:
        if self.duplicate_discount is not None and not 0.0 <= self.duplicate_discount <= 1.0:
            raise ValueError(
                f"duplicate_discount must lie in [0, 1] or be null, got {self.duplicate_discount}"
            )
        if not self.components:
            raise ValueError(
                "components must hold at least one reward (configs/reward/ has those that are built in), got none"
            )
        for name, spec in self.named().items():
            if TARGET not in spec:
                raise ValueError(
                    f"components.{name} must have a {TARGET}, got {', '.join(spec) or 'nothing'}"
                )
            try:
                _options(spec)
            except ValueError as error:
                raise ValueError(f"components.{name}: {error}") from error

    def named(self) -> dict[str, dict[str, Any]]:
        """Components by name; in a list that of the class, numbered where it occurs again."""
        if isinstance(self.components, dict):
            return self.components
        found: dict[str, dict[str, Any]] = {}
        for spec in self.components:
            base = str(spec.get(TARGET, "reward")).replace(":", ".").rsplit(".", 1)[-1]
            name, number = base, 2
            while name in found:
                name, number = f"{base}_{number}", number + 1
            found[name] = spec
        return found


def _options(spec: Mapping[str, Any]) -> ComponentOptions:
    return from_plain(ComponentOptions, {key: value for key, value in spec.items() if key in OPTIONS})


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One reward with its options."""

    name: str
    reward: Reward
    options: ComponentOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTable:
    """The rewards of a rollout, crystal by crystal."""

    total: Float[Tensor, " crystal"]
    """Weighted sum of the normalised components, less the discount of duplicates; float64, always finite."""
    raw: dict[str, Float[Tensor, " crystal"]]
    """By component; NaN where it failed."""
    normalised: dict[str, Float[Tensor, " crystal"]]
    """After floor, cap and normalisation."""
    is_usable: Bool[Tensor, " crystal"]
    """Whether a crystal was shown to the rewards at all."""
    num_failed: dict[str, int]
    """By component, of the usable crystals."""
    seconds: dict[str, float]
    """By component."""
    weights: dict[str, float]
    """By component."""

    def means(self) -> dict[str, float]:
        """For the log: raw, normalised and weighted mean of each component, failures, cost, and the total."""
        found = {"total": float(self.total.mean()), "unusable": float((~self.is_usable).double().mean())}
        count = max(int(self.is_usable.sum()), 1)
        for name, values in self.raw.items():
            normalised = float(self.normalised[name].mean())
            finite = values[values.isfinite()]
            found[f"{name}/raw"] = float(finite.mean()) if len(finite) else math.nan
            found[f"{name}/normalised"] = normalised
            found[f"{name}/weighted"] = self.weights[name] * normalised
            found[f"{name}/failed"] = self.num_failed[name]
            found[f"{name}/seconds_per_100"] = 100.0 * self.seconds[name] / count
        return found


class Rewards:
    """All components of a run."""

    def __init__(self, components: Sequence[Component], *, duplicate_discount: float | None = None) -> None:
        self.components = tuple(components)
        self.duplicate_discount = duplicate_discount
        self._told: set[str] = set()

    @staticmethod
    def build(config: RewardConfig, where: str = "rl_module.reward_fn.components") -> Rewards:
        """From a config.

        Raises:
            ValueError: naming the component that cannot be made.
        """
        components = []
        for name, spec in config.named().items():
            own = {key: value for key, value in spec.items() if key not in OPTIONS}
            reward = build(own, f"{where}.{name}")
            if not callable(reward):
                raise ValueError(f"{where}.{name} must be callable with (structures, batch), got {reward!r}")
            components.append(Component(name=name, reward=reward, options=_options(spec)))
        return Rewards(components, duplicate_discount=config.duplicate_discount)

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Show the training set to the components that want it."""
        for component in self.components:
            if isinstance(component.reward, NeedsReference):
                component.reward.set_reference(crystals)

    def __call__(
        self, crystals: CrystalBatch, is_usable: Bool[Tensor, " crystal"] | None = None
    ) -> RewardTable:
        """Rewards of crystals, on the CPU.

        Args:
            crystals: of one rollout.
            is_usable: False for those that cannot be; they get every floor. None: all are.
        """
        count = len(crystals)
        usable = torch.ones(count, dtype=torch.bool) if is_usable is None else is_usable
        positions = usable.nonzero().flatten()
        shown = crystals.select(positions)
        structures = shown.to_structures()
        total = torch.zeros(count, dtype=torch.float64)
        raw, normalised, num_failed, seconds = {}, {}, {}, {}
        for component in self.components:
            start = time.perf_counter()
            values = torch.full((count,), math.nan, dtype=torch.float64)
            values[positions] = self._ask(component, structures, shown)
            seconds[component.name] = time.perf_counter() - start
            values[values.isinf()] = math.nan
            num_failed[component.name] = int(values[positions].isnan().sum())
            scaled = normalise(values, component.options)
            total += component.options.weight * scaled
            raw[component.name], normalised[component.name] = values, scaled
        if self.duplicate_discount is not None:
            total[positions] = discounted(total[positions], shown, self.duplicate_discount)
        return RewardTable(
            total=total,
            raw=raw,
            normalised=normalised,
            is_usable=usable,
            num_failed=num_failed,
            seconds=seconds,
            weights={component.name: component.options.weight for component in self.components},
        )

    def _ask(self, component: Component, structures: Sequence[Structure], batch: CrystalBatch) -> Tensor:
        """Raw values; NaN for crystals at which the reward raises."""
        if not structures:
            return torch.zeros(0, dtype=torch.float64)
        try:
            return _called(component.reward, structures, batch)
        except Exception as error:  # noqa: BLE001  # a user's code may raise anything, and the run must live
            self._tell(component, error)
        values = torch.full((len(structures),), math.nan, dtype=torch.float64)
        if is_collective(component.reward) or len(structures) == 1:
            return values
        for position, structure in enumerate(structures):
            try:
                alone = batch.select(torch.tensor([position]))
                values[position] = _called(component.reward, [structure], alone)[0]
            except Exception as error:  # noqa: BLE001  # as above
                self._tell(component, error)
        return values

    def _tell(self, component: Component, error: Exception) -> None:
        """Each different failure once; how many there are is in the metrics."""
        sentence = f"reward {component.name} failed: {type(error).__name__}: {error}"
        if sentence not in self._told and len(self._told) < 100:
            self._told.add(sentence)
            log.warning("%s; the crystals concerned get its floor", sentence)


def _called(reward: Reward, structures: Sequence[Structure], batch: CrystalBatch) -> Tensor:
    values = torch.as_tensor(reward(structures, batch)).detach().cpu().double()
    if values.shape != (len(structures),):
        raise ValueError(
            f"a reward must give one number per crystal, shape ({len(structures)},), got {tuple(values.shape)}"
        )
    return values
