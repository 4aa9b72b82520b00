"""Several rewards as one: weights, one normalisation each, floors for what fails; everything counted.

`Rewards` asks all components where it is; `RewardWorkers` has them in processes of their own, so that they overlap what
the trainer does meanwhile. There each component lives in one process for the length of a run, with its state and its
caches, so that the number of processes cannot matter; crystals are not divided, because a reward may compare them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.base.machine import end_with_parent, network_context
from latentite.base.plain import from_plain, to_plain
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.rewards.protocol import Answer, Component, ComponentOptions, ask, make_ready, normalise
from latentite.rewards.repeats import DiversityFilterConfig, discounted
from latentite.rewards.target import TARGET, build

log = logging.getLogger(__name__)


OPTIONS = frozenset(ComponentOptions.__dataclass_fields__)


@dataclass(kw_only=True, slots=True)
class RewardConfig:
    """The reward of a run: `rl_module.reward_fn`."""

    components: dict[str, dict[str, Any]] | list[dict[str, Any]] = field(default_factory=dict)
    """By name, or a list: `_target_`, arguments of the reward, and those of `ComponentOptions`."""
    duplicate_discount: float | None = None
    """Share of its reward above the rollout's lowest that a crystal with a copy in the rollout keeps; null: all."""
    diversity_filter: DiversityFilterConfig | None = None
    """Less for kinds of crystals that earlier rollouts have made often; null: off."""

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
        components: dict[str, dict[str, Any]] = {}
        for spec in self.components:
            base = str(spec.get(TARGET, "reward")).replace(":", ".").rsplit(".", 1)[-1]
            name, number = base, 2
            while name in components:
                name, number = f"{base}_{number}", number + 1
            components[name] = spec
        return components


def _options(spec: Mapping[str, Any]) -> ComponentOptions:
    return from_plain(ComponentOptions, {key: value for key, value in spec.items() if key in OPTIONS})


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
    """False for crystals that no reward was asked about."""
    num_failed: dict[str, int]
    """By component, of the usable crystals."""
    seconds: dict[str, float]
    """By component."""
    weights: dict[str, float]
    """By component."""
    is_repeated: Bool[Tensor, " crystal"] | None = None
    """True where the diversity filter took something away; None without a filter."""

    def means(self) -> dict[str, float]:
        """For the log: raw, normalised and weighted mean of each component, failures, cost, and the total."""
        means = {"total": float(self.total.mean()), "unusable": float((~self.is_usable).double().mean())}
        if self.is_repeated is not None:
            means["repeated"] = float(self.is_repeated.double().mean())
        count = max(int(self.is_usable.sum()), 1)
        for name, values in self.raw.items():
            normalised = float(self.normalised[name].mean())
            finite = values[values.isfinite()]
            means[f"{name}/raw"] = float(finite.mean()) if len(finite) else math.nan
            means[f"{name}/normalised"] = normalised
            means[f"{name}/weighted"] = self.weights[name] * normalised
            means[f"{name}/failed"] = self.num_failed[name]
            means[f"{name}/seconds_per_100"] = 100.0 * self.seconds[name] / count
        return means


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
            reward = build(own, f"{where}.{name}", beside=sorted(OPTIONS))
            if not callable(reward):
                raise ValueError(f"{where}.{name} must be callable with (structures, batch), got {reward!r}")
            components.append(Component(name=name, reward=reward, options=_options(spec)))
        return Rewards(components, duplicate_discount=config.duplicate_discount)

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Make the components ready, with the training set for those that want it.

        Raises:
            ValueError: naming the component that lacks something that every call needs.
        """
        for component in self.components:
            try:
                make_ready(component.reward, crystals)
            except (ValueError, FileNotFoundError, ImportError) as error:
                raise ValueError(f"reward {component.name} cannot be made ready: {error}") from error

    def __call__(
        self, crystals: CrystalBatch, is_usable: Bool[Tensor, " crystal"] | None = None
    ) -> RewardTable:
        """Rewards of crystals, on the CPU.

        Args:
            crystals: of one rollout.
            is_usable: False for those that cannot be; they get every floor. None: all are.
        """
        return self.start(crystals, is_usable)()

    def start(
        self, crystals: CrystalBatch, is_usable: Bool[Tensor, " crystal"] | None = None
    ) -> Callable[[], RewardTable]:
        """The same, to be had later: here all the work is done when the result is called for."""
        usable = torch.ones(len(crystals), dtype=torch.bool) if is_usable is None else is_usable
        shown = crystals.select(usable.nonzero().flatten())
        return lambda: self.combined(self._ask(shown), shown, usable)

    def close(self) -> None:
        """Nothing to end; for `RewardWorkers`."""

    def combined(
        self, answers: Sequence[Answer], shown: CrystalBatch, usable: Bool[Tensor, " crystal"]
    ) -> RewardTable:
        """The answers of all components, in their order, about the usable crystals, as one reward."""
        positions = usable.nonzero().flatten()
        total = torch.zeros(len(usable), dtype=torch.float64)
        raw, normalised, num_failed, seconds = {}, {}, {}, {}
        for component, answer in zip(self.components, answers, strict=True):
            self._tell(component.name, answer.failures)
            values = torch.full((len(usable),), math.nan, dtype=torch.float64)
            values[positions] = answer.values
            seconds[component.name] = answer.seconds
            num_failed[component.name] = int(answer.values.isnan().sum())
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

    def _ask(self, shown: CrystalBatch) -> list[Answer]:
        structures = shown.to_structures()
        return [ask(component.reward, structures, shown) for component in self.components]

    def _tell(self, name: str, failures: Sequence[str]) -> None:
        """Each different failure once; how many there are is in the metrics."""
        for failure in failures:
            sentence = f"reward {name} failed: {failure}"
            if sentence not in self._told and len(self._told) < 100:
                self._told.add(sentence)
                log.warning("%s; the crystals concerned get its floor", sentence)


class RewardWorkers:
    """`Rewards` whose components are asked elsewhere; `close` ends the processes."""

    def __init__(self, config: RewardConfig, count: int) -> None:
        """Build the rewards here as well, so that mistakes show at once.

        Args:
            config: of the rewards.
            count: of processes; no more are started than there are components.
        """
        self._rewards = Rewards.build(config)
        self._plain = to_plain(config)
        names = list(config.named())
        count = min(count, len(names))
        self._shares = [names[worker::count] for worker in range(count)]
        self._reference: list[CrystalArrays] = []
        self._pools: list[ProcessPoolExecutor] = []

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Start the processes and show them the training set; what goes wrong there is raised here."""
        self._reference = crystals.to_arrays()
        self._pools = [self._pool() for _ in self._shares]
        for ready in [self._prepare(worker) for worker in range(len(self._shares))]:
            ready.result()

    def start(
        self, crystals: CrystalBatch, is_usable: Bool[Tensor, " crystal"] | None = None
    ) -> Callable[[], RewardTable]:
        """Hand crystals to the processes; the result waits for them."""
        usable = torch.ones(len(crystals), dtype=torch.bool) if is_usable is None else is_usable
        shown = crystals.select(usable.nonzero().flatten())
        arrays = shown.to_arrays()
        jobs = [(pool, self._submit(worker, arrays)) for worker, pool in enumerate(self._pools)]

        def finish() -> RewardTable:
            answers: dict[str, Answer] = {}
            for worker, (pool, future) in enumerate(jobs):
                answers |= self._answers(worker, pool, future, len(arrays))
            ordered = [answers[component.name] for component in self._rewards.components]
            return self._rewards.combined(ordered, shown, usable)

        return finish

    def close(self) -> None:
        """End the processes; what they have not begun is left."""
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self._pools = []

    def _submit(self, worker: int, arrays: Sequence[CrystalArrays]) -> Future[dict[str, Answer]]:
        try:
            return self._pools[worker].submit(_answer, self._shares[worker], arrays)
        except BrokenProcessPool as error:  # it died while nobody was waiting for it
            broken: Future[dict[str, Answer]] = Future()
            broken.set_exception(error)
            return broken

    def _answers(
        self, worker: int, pool: ProcessPoolExecutor, future: Future[dict[str, Answer]], count: int
    ) -> dict[str, Answer]:
        try:
            return future.result()
        except BrokenProcessPool:
            why = "its process died, usually for want of memory; it is started anew"
        if pool is self._pools[worker]:
            pool.shutdown(wait=False)
            self._pools[worker] = self._pool()
            self._prepare(worker)
        return {name: Answer.failed(count, why) for name in self._shares[worker]}

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=network_context(__name__), initializer=_start)

    def _prepare(self, worker: int) -> Future[None]:
        return self._pools[worker].submit(_prepare, self._plain, self._shares[worker], self._reference)


_here: dict[str, Any] = {}
"""Components of this process, by name."""


def _start() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def _prepare(plain: dict[str, Any], names: Sequence[str], reference: Sequence[CrystalArrays]) -> None:
    config = from_plain(RewardConfig, plain)
    mine = {name: spec for name, spec in config.named().items() if name in names}
    rewards = Rewards.build(RewardConfig(components=mine))
    rewards.set_reference(CrystalBatch.from_arrays(reference))
    _here.update({component.name: component.reward for component in rewards.components})


def _answer(names: Sequence[str], arrays: Sequence[CrystalArrays]) -> dict[str, Answer]:
    batch = CrystalBatch.from_arrays(arrays)
    structures = batch.to_structures()
    # What was ready once may fail to be so in a process that is started anew: a file that has gone, no memory.
    failed = Answer.failed(len(arrays), "it could not be made ready in the process that was started anew")
    return {name: ask(_here[name], structures, batch) if name in _here else failed for name in names}
