"""Conditions of a model: declaration, value for a known crystal, value in a request.

`ConditionConfig` declares one condition, `condition_values` reads it off crystals for training,
`parse_conditions` reads it from what a user asked for. `conditions.py`, which comes after, turns values into
vectors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.elements import ATOMIC_NUMBER, COMPOSITION_WIDTH
from latentite.formulas import parse_amounts

NUM_SPACE_GROUPS = 230


class ConditionKind(StrEnum):
    """Sort of value that a condition has."""

    SCALAR = "scalar"
    """A numeric property."""
    CATEGORICAL = "categorical"
    """A property with names, stored as integer codes."""
    SPACE_GROUP = "space_group"
    """A property that holds the number of the space group, 1 to 230."""
    CHEMICAL_SYSTEM = "chemical_system"
    """The set of elements, from the crystal itself."""
    COMPOSITION = "composition"
    """The fraction of each element, from the crystal itself."""
    NUM_ATOMS = "num_atoms"
    """Atoms in the cell, from the crystal itself."""
    VOLUME_PER_ATOM = "volume_per_atom"
    """Å^3, from the crystal itself."""


NUMBERS = (ConditionKind.SCALAR, ConditionKind.NUM_ATOMS, ConditionKind.VOLUME_PER_ATOM)
"""Kinds that are one number, with a mean and a standard deviation."""
CLASSES = (ConditionKind.CATEGORICAL, ConditionKind.SPACE_GROUP)
"""Kinds that are one of several classes."""
LABELS = (ConditionKind.SCALAR, *CLASSES)
"""Kinds that need a label; the others are derived from the crystal."""


class Transform(StrEnum):
    """Applied to a number before it is normalised."""

    NONE = "none"
    LOG = "log"
    """Natural logarithm, for positive properties over many orders of magnitude."""
    ASINH = "asinh"
    """Like the logarithm for large values of either sign, linear near zero."""

    def __call__(self, values: Tensor) -> Tensor:
        if self is Transform.LOG:
            return values.log()
        return values.asinh() if self is Transform.ASINH else values

    def inverse(self, values: Tensor) -> Tensor:
        """The number that was transformed."""
        if self is Transform.LOG:
            return values.exp()
        return values.sinh() if self is Transform.ASINH else values


def label_statistics(
    labels: Float[Tensor, " label"],
    transform: Transform,
    *,
    what: str,
    baseline: Float[Tensor, " label"] | float = 0.0,
) -> tuple[float, float]:
    """Mean and standard deviation of the training split's transformed labels, of which none is missing.

    Args:
        labels: numbers.
        transform: applied to them.
        what: whose labels, for messages.
        baseline: taken off after that.

    Raises:
        ValueError: for labels outside the transform's range, or without spread.
    """
    transformed = transform(labels.double()) - baseline
    if not bool(transformed.isfinite().all()):
        raise ValueError(
            f"{what} must have labels that transform={transform} can take, "
            f"got {float(labels.min())} to {float(labels.max())}"
        )
    mean, std = transformed.mean(), transformed.std(correction=0)
    if std <= 1e-6 * mean.abs().clamp(min=1e-12):
        raise ValueError(f"{what} must vary in the training split, got {float(labels[0])} only")
    return float(mean), float(std)


@dataclass(kw_only=True, slots=True)
class ConditionConfig:
    """One condition."""

    name: str
    """As users type it; for kinds with labels also the name of the property."""
    kind: ConditionKind = ConditionKind.SCALAR
    unit: str = ""
    """Of a number, for messages."""
    transform: Transform = Transform.NONE
    classes: list[str] = field(default_factory=list)
    """Names of a categorical condition's codes 0, 1, ..."""
    drop_probability: float = 0.1
    """Probability in training that this condition alone is hidden."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise ValueError(f"name of a condition must be letters, digits and _, got '{self.name}'")
        if not 0.0 <= self.drop_probability <= 1.0:
            raise ValueError(
                f"drop_probability of {self.name} must be between 0 and 1, got {self.drop_probability}"
            )
        if self.transform is not Transform.NONE and self.kind not in NUMBERS:
            raise ValueError(
                f"transform of {self.name} must be none for kind {self.kind}, got {self.transform}"
            )
        if (self.kind is ConditionKind.CATEGORICAL) != bool(self.classes):
            state = "given" if self.kind is ConditionKind.CATEGORICAL else "empty"
            raise ValueError(
                f"classes of {self.name} must be {state} for kind {self.kind}, got {self.classes}"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes of {self.name} must differ from each other, got {self.classes}")

    @property
    def num_classes(self) -> int:
        """Number of classes of a class condition."""
        return NUM_SPACE_GROUPS if self.kind is ConditionKind.SPACE_GROUP else len(self.classes)

    @property
    def first_class(self) -> int:
        """The value that stands for class 0."""
        return 1 if self.kind is ConditionKind.SPACE_GROUP else 0


ConditionValue = float | int | tuple[str, ...] | dict[str, float]
"""A number; a class (code, or space group's number); the elements; the fraction of each element."""


def condition_values(configs: Sequence[ConditionConfig], crystals: CrystalBatch) -> dict[str, Tensor]:
    """The value of each condition for crystals that are known, NaN where a label is missing.

    Numbers and classes are `[crystal]`; elements and composition `[crystal 100]`, first hydrogen.

    Raises:
        ValueError: when a property that a condition needs is not among the crystals' labels.
    """
    return {config.name: _value_of(config, crystals) for config in configs}


def _value_of(config: ConditionConfig, crystals: CrystalBatch) -> Float[Tensor, " crystal *channel"]:
    dtype = crystals.lattice.dtype
    if config.kind in LABELS:
        if config.name not in crystals.properties:
            known = ", ".join(sorted(crystals.properties)) or "none"
            raise ValueError(f"condition {config.name} must be a label of the crystals, which have: {known}")
        return crystals.properties[config.name].to(dtype)
    if config.kind is ConditionKind.NUM_ATOMS:
        return crystals.num_atoms.to(dtype)
    if config.kind is ConditionKind.VOLUME_PER_ATOM:
        return crystals.volume / crystals.num_atoms
    counts = torch.zeros(len(crystals), COMPOSITION_WIDTH, dtype=dtype, device=crystals.device)
    ones = torch.ones(crystals.total_atoms, dtype=dtype, device=crystals.device)
    counts.index_put_((crystals.crystal_index, crystals.atomic_numbers - 1), ones, accumulate=True)
    if config.kind is ConditionKind.CHEMICAL_SYSTEM:
        return (counts > 0).to(dtype)
    return counts / crystals.num_atoms.unsqueeze(-1)


def request_row(config: ConditionConfig, value: ConditionValue) -> Float[Tensor, " *channel"]:
    """A parsed value as the tensor that `condition_values` would give for one crystal."""
    if isinstance(value, int | float):
        return torch.tensor(float(value))
    row = torch.zeros(COMPOSITION_WIDTH)
    fractions = value if isinstance(value, dict) else dict.fromkeys(value, 1.0)
    for symbol, fraction in fractions.items():
        row[_atomic_number(config, symbol) - 1] = fraction
    return row


def parse_conditions(
    request: str | Mapping[str, object], configs: Sequence[ConditionConfig]
) -> dict[str, ConditionValue]:
    """Typed values of a request such as `band_gap=2.0,chemical_system=Li-Fe-O`.

    Args:
        request: the text, or a mapping from names to values (text or already of the right type).
        configs: the model's conditions.

    Raises:
        ValueError: for a name that the model does not have, a name given twice, or a value that is not of its
            condition's kind.
    """
    pairs = split_request(request) if isinstance(request, str) else list(request.items())
    by_name = {config.name: config for config in configs}
    values: dict[str, ConditionValue] = {}
    for name, value in pairs:
        if name not in by_name:
            known = ", ".join(by_name) or "none: it is unconditional"
            raise ValueError(f"condition {name} must be one of the model's, which has: {known}")
        if name in values:
            raise ValueError(f"condition {name} must be given once, got it twice")
        values[name] = parse_value(value, by_name[name])
    return values


def split_request(text: str) -> list[tuple[str, object]]:
    """`a=1,b=2` as pairs of names and texts.

    Raises:
        ValueError: for a part that is not written so.
    """
    pairs: list[tuple[str, object]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = part.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise ValueError(f"conditions must be written name=value,name=value, got '{part}'")
        pairs.append((name.strip(), value.strip()))
    return pairs


def parse_value(value: object, config: ConditionConfig) -> ConditionValue:
    """One value of a request.

    Raises:
        ValueError: when it is not of the condition's kind.
    """
    if config.kind in NUMBERS:
        return _number(value, config)
    if config.kind is ConditionKind.CATEGORICAL:
        if value not in config.classes:
            raise ValueError(f"{config.name} must be one of {', '.join(config.classes)}, got {value}")
        return config.classes.index(str(value))
    if config.kind is ConditionKind.SPACE_GROUP:
        return _space_group(value, config)
    if config.kind is ConditionKind.CHEMICAL_SYSTEM:
        return _elements(value, config)
    return _fractions(value, config)


def value_text(value: ConditionValue, config: ConditionConfig) -> str:
    """A parsed value as a user would type it: `parse_value` takes it back."""
    if isinstance(value, tuple):
        return "-".join(value)
    if isinstance(value, dict):
        return "".join(f"{symbol}{fraction:.6g}" for symbol, fraction in value.items())
    return config.classes[int(value)] if config.kind is ConditionKind.CATEGORICAL else f"{value:.10g}"


def _number(value: object, config: ConditionConfig) -> float | int:
    try:
        number = float(str(value))
    except ValueError as error:
        raise ValueError(f"{config.name} must be a number{_in_unit(config)}, got {value}") from error
    if not math.isfinite(number):
        raise ValueError(f"{config.name} must be finite, got {value}")
    positive = config.kind is not ConditionKind.SCALAR or config.transform is Transform.LOG
    if positive and number <= 0:
        raise ValueError(f"{config.name} must be positive{_in_unit(config)}, got {value}")
    if config.kind is not ConditionKind.NUM_ATOMS:
        return number
    if number != int(number):
        raise ValueError(f"{config.name} must be a whole number, got {value}")
    return int(number)


def _in_unit(config: ConditionConfig) -> str:
    return f" in {config.unit}" if config.unit else ""


def _space_group(value: object, config: ConditionConfig) -> int:
    """From a number or a Hermann-Mauguin symbol."""
    text = str(value).strip()
    if text.isdecimal() and 1 <= int(text) <= NUM_SPACE_GROUPS:
        return int(text)
    from pymatgen.symmetry.groups import SpaceGroup

    try:
        return int(SpaceGroup(text).int_number)
    except ValueError as error:
        raise ValueError(
            f"{config.name} must be a number from 1 to 230 or a symbol such as Fm-3m, got {value}"
        ) from error


def _elements(value: object, config: ConditionConfig) -> tuple[str, ...]:
    """From `Li-Fe-O` or a sequence of symbols; in the order of their atomic numbers, each once."""
    parts = value.split("-") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{config.name} must be symbols joined by - such as Li-Fe-O, got {value}")
    symbols = {part.strip() for part in parts}
    return tuple(sorted(symbols, key=lambda symbol: _atomic_number(config, symbol)))


def _fractions(value: object, config: ConditionConfig) -> dict[str, float]:
    """From a formula such as LiFePO4 or amounts such as `{"Li": 1, "O": 2}`; in order of atomic numbers."""
    try:
        amounts = parse_amounts(value)
    except ValueError as error:
        raise ValueError(f"{config.name} must be a formula such as LiFePO4, got {value}") from error
    total = sum(amounts.values())
    if not total > 0:
        raise ValueError(f"{config.name} must be a formula such as LiFePO4, got {value}")
    ordered = sorted(amounts, key=lambda symbol: _atomic_number(config, symbol))
    return {symbol: amounts[symbol] / total for symbol in ordered}


def _atomic_number(config: ConditionConfig, symbol: str) -> int:
    number = ATOMIC_NUMBER.get(symbol, 0)
    if not 1 <= number <= COMPOSITION_WIDTH:
        raise ValueError(f"{config.name} must name elements from H to Fm, got '{symbol}'")
    return number
