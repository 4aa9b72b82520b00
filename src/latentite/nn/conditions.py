"""`ConditionModule`: what was asked of a crystal as a `Conditioning`: a vector, and the conditions that it is made of.

Each condition has its own encoder and its own learned vector for "absent", so a model trained with random hiding can
be given any subset of its conditions. A missing label is "absent", never a dropped row.

Departures from Chemeleon2: an absent condition is a vector of its own, which no value can equal, unless
`AbsentPlace.INPUT` is asked for; every condition is hidden for itself as well as all together; labels that
come in are never written to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from latentite.base.plain import check_counts
from latentite.crystal import CrystalBatch
from latentite.elements import COMPOSITION_WIDTH
from latentite.nn.condition_values import (
    CLASSES,
    NUMBERS,
    ConditionConfig,
    ConditionValue,
    condition_values,
    label_statistics,
    parse_conditions,
    request_row,
)
from latentite.nn.element_features import composition_descriptors, num_descriptors


class AbsentPlace(StrEnum):
    """The place at which the learned stand-in for an absent condition enters."""

    OUTPUT = "output"
    """Instead of the condition's embedding."""
    INPUT = "input"
    """Instead of its normalised value, as in the public checkpoints. Some value then means "absent" too, so
    only for imported checkpoints, and not for classes."""


@dataclass(kw_only=True, slots=True)
class ConditionModuleConfig:
    """All conditions of a model."""

    conditions: list[ConditionConfig] = field(default_factory=list)
    hidden_size: int = 768
    """Width of the embeddings and of the result; that of the denoiser."""
    row_drop_probability: float = 0.1
    """Probability in training that all conditions of a crystal are hidden together."""
    absent: AbsentPlace = AbsentPlace.OUTPUT
    descriptors: bool = False
    """Compositions and chemical systems are told with what follows from them (`composition_descriptors`), too."""

    def __post_init__(self) -> None:
        names = [condition.name for condition in self.conditions]
        if not names:
            raise ValueError("conditions must not be empty; leave the condition module out for none")
        if len(set(names)) != len(names):
            raise ValueError(f"conditions must have different names, got {', '.join(names)}")
        check_counts(self, "hidden_size")
        if not 0.0 <= self.row_drop_probability <= 1.0:
            raise ValueError(f"row_drop_probability must be between 0 and 1, got {self.row_drop_probability}")
        if self.absent is AbsentPlace.INPUT and self.descriptors:
            raise ValueError("absent must be output with descriptors, got input")
        if self.absent is AbsentPlace.INPUT and any(c.kind in CLASSES for c in self.conditions):
            raise ValueError("absent must be output where a condition has classes, got input")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """The conditions of crystals as a denoiser takes them, one row each."""

    vector: Float[Tensor, "crystal hidden"]
    """Everything that is asked in one; it is added to the embedding of time."""
    per_condition: Float[Tensor, "crystal condition hidden"]
    """Embedding of each of the model's conditions, in their order; of an absent one its learned stand-in."""
    present: Bool[Tensor, "crystal condition"]
    """True where the denoiser is told the condition: a usable value was given, and not hidden."""

    def __len__(self) -> int:
        return len(self.vector)

    def repeat(self, times: int) -> Conditioning:
        """All rows, so many times one after the other, as `Tensor.repeat`."""
        return Conditioning(
            vector=self.vector.repeat(times, 1),
            per_condition=self.per_condition.repeat(times, 1, 1),
            present=self.present.repeat(times, 1),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Rows of one model, one part after the other."""
        return cls(
            vector=torch.cat([part.vector for part in parts]),
            per_condition=torch.cat([part.per_condition for part in parts]),
            present=torch.cat([part.present for part in parts]),
        )


class ConditionEncoder(nn.Module):
    """Embedding of one condition. Tensor names are those of the public checkpoints."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: ConditionConfig, hidden_size: int, absent: AbsentPlace, *, descriptors: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.absent = absent
        self.is_number, self.is_class = config.kind in NUMBERS, config.kind in CLASSES
        num_inputs = 1 if self.is_number else COMPOSITION_WIDTH
        self.descriptors = descriptors and not self.is_number and not self.is_class
        if self.descriptors:
            num_inputs += num_descriptors(COMPOSITION_WIDTH)
        first = (
            nn.Embedding(config.num_classes, hidden_size)
            if self.is_class
            else nn.Linear(num_inputs, hidden_size)
        )
        self.embedding = nn.Sequential(first, nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        width = hidden_size if absent is AbsentPlace.OUTPUT else num_inputs
        self.null_embed = nn.Parameter(torch.randn(1, width))
        if absent is AbsentPlace.OUTPUT:
            nn.init.normal_(self.null_embed, std=0.02)
        self.has_statistics = not self.is_number
        if self.is_number:
            self.register_buffer("mean", torch.tensor(torch.nan))
            self.register_buffer("std", torch.tensor(torch.nan))

    def prepared(self, values: Float[Tensor, " crystal *channel"]) -> Tensor:
        """Input of the embedding: normalised numbers `[crystal 1]`, codes `[crystal]`, else the values."""
        if self.is_number:
            return ((self.config.transform(values) - self.mean) / self.std).unsqueeze(-1)
        if self.descriptors:
            return torch.cat([values, composition_descriptors(values)], dim=-1)
        return values - self.config.first_class if self.is_class else values

    def placeholder(self, num_crystals: int) -> Float[Tensor, " crystal *channel"]:
        """Values that nobody will look at."""
        shape = () if self.is_number or self.is_class else (COMPOSITION_WIDTH,)
        return self.null_embed.new_zeros(num_crystals, *shape)

    def forward(
        self, values: Float[Tensor, " crystal *channel"], present: Bool[Tensor, " crystal"]
    ) -> tuple[Float[Tensor, "crystal hidden"], Bool[Tensor, " crystal"]]:
        """Embeddings, and which of them stand for a value; a value that is hidden, missing, or not in the range of
        its transform or classes is absent."""
        inputs = self.prepared(values)
        if self.is_class:
            known = present & (inputs >= 0) & (inputs < self.config.num_classes)
            codes = torch.where(known, inputs, 0.0).long()
            return torch.where(known.unsqueeze(-1), self.embedding(codes), self.null_embed), known
        known = present & inputs.isfinite().all(dim=-1)
        rows = known.unsqueeze(-1)
        if self.absent is AbsentPlace.INPUT:
            return self.embedding(torch.where(rows, inputs, self.null_embed)), known
        return torch.where(rows, self.embedding(torch.where(rows, inputs, 0.0)), self.null_embed), known

    def fit_statistics(self, values: Float[Tensor, " crystal *channel"]) -> None:
        """Check the training split's labels and, for a number, store their mean and standard deviation.

        Raises:
            ValueError: for no label at all, labels outside the transform's or the classes' range, no spread.
        """
        name = self.config.name
        labels = values[~values.isnan()]
        if not len(labels):
            raise ValueError(f"condition {name} must have labels in the training split, got none")
        if self.is_class:
            self._check_codes(labels)
        if not self.is_number:
            return
        self.set_statistics(*label_statistics(labels, self.config.transform, what=f"condition {name}"))

    def _check_codes(self, labels: Tensor) -> None:
        first, last = self.config.first_class, self.config.first_class + self.config.num_classes - 1
        wrong = labels[(labels < first) | (labels > last) | (labels != labels.round())]
        if len(wrong):
            raise ValueError(
                f"condition {self.config.name} must be whole numbers from {first} to {last}, "
                f"got {float(wrong[0])}"
            )

    def set_statistics(self, mean: float, std: float) -> None:
        """Mean and standard deviation of the transformed labels of the training split."""
        self.mean.fill_(mean)
        self.std.fill_(std)
        self.has_statistics = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.is_number:
            self.has_statistics = bool(self.std.isfinite())


class ConditionModule(nn.Module):
    """Embeddings of all conditions, concatenated and projected."""

    def __init__(self, config: ConditionModuleConfig) -> None:
        super().__init__()
        self.config = config
        hidden_size = config.hidden_size
        self.encoders = nn.ModuleDict(
            {
                c.name: ConditionEncoder(c, hidden_size, config.absent, descriptors=config.descriptors)
                for c in config.conditions
            }
        )
        self.proj = nn.Sequential(
            nn.Linear(len(config.conditions) * hidden_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions, in order."""
        return tuple(condition.name for condition in self.config.conditions)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def encoder(self, name: str) -> ConditionEncoder:
        """The encoder of one condition.

        Raises:
            ValueError: when the model has no condition of that name.
        """
        if name not in self.encoders:
            known = ", ".join(self.names)
            raise ValueError(f"condition {name} must be one of the model's, which has: {known}")
        encoder = self.encoders[name]
        assert isinstance(encoder, ConditionEncoder)
        return encoder

    def forward(
        self,
        values: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        *,
        num_crystals: int | None = None,
    ) -> Conditioning:
        """The conditioning that the denoiser reads. The tensors that come in are not changed.

        Args:
            values: for any subset of the conditions their values, as `condition_values` gives them.
            present: for any subset of these a mask `[crystal]`, False where the value is to be hidden.
                NaN counts as hidden in any case.
            num_crystals: needed where no value is given.

        Raises:
            ValueError: for an unknown name, or a number whose statistics were never computed.
        """
        for name in (*values, *(present or {})):
            self.encoder(name)
        if num_crystals is None:
            if not values:
                raise ValueError("num_crystals must be given where no condition is")
            num_crystals = len(next(iter(values.values())))
        nothing = torch.zeros(num_crystals, dtype=torch.bool, device=self.device)
        embedded = []
        for name in self.names:
            encoder = self.encoder(name)
            if name not in values:
                embedded.append(encoder(encoder.placeholder(num_crystals), nothing))
                continue
            if not encoder.has_statistics:
                raise ValueError(f"condition {name} must have statistics of its labels; call fit_statistics")
            shown = ~nothing if present is None or name not in present else present[name]
            embedded.append(encoder(values[name], shown))
        per_condition = torch.stack([embedding for embedding, _ in embedded], dim=1)
        return Conditioning(
            vector=self.proj(per_condition.flatten(1)),
            per_condition=per_condition,
            present=torch.stack([known for _, known in embedded], dim=1),
        )

    def absent(self, num_crystals: int) -> Conditioning:
        """The conditioning where nothing was asked: the unconditional side of guidance."""
        return self({}, num_crystals=num_crystals)

    def values(self, crystals: CrystalBatch) -> dict[str, Tensor]:
        """The value of every condition for known crystals; see `condition_values`."""
        return condition_values(self.config.conditions, crystals)

    def parse(self, request: str | Mapping[str, object]) -> dict[str, ConditionValue]:
        """Typed values of a request; see `parse_conditions`."""
        return parse_conditions(request, self.config.conditions)

    def requested(self, request: Mapping[str, ConditionValue], num_crystals: int) -> dict[str, Tensor]:
        """Parsed values as tensors for `forward`, the same for every crystal, on the module's device."""
        rows = {name: request_row(self.encoder(name).config, value) for name, value in request.items()}
        return {name: row.to(self.device).expand(num_crystals, *row.shape) for name, row in rows.items()}

    def hide(self, values: Mapping[str, Tensor], *, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw which of these values a training step shows; the values themselves stay as they are.

        Every condition is hidden with its own probability, and all of a crystal's together with
        `row_drop_probability`. Draws are made for all conditions of the model, given or not.

        Returns:
            For each name a mask `[crystal]`, False where it is hidden, for `forward`.
        """
        for name in values:
            self.encoder(name)
        if not values:
            return {}
        num_crystals = len(next(iter(values.values())))
        probability = torch.tensor(
            [c.drop_probability for c in self.config.conditions] + [self.config.row_drop_probability],
            device=generator.device,
        )
        draws = torch.rand(len(probability), num_crystals, generator=generator, device=generator.device)
        shown = (draws >= probability.unsqueeze(-1)).to(self.device)
        return {name: shown[i] & shown[-1] for i, name in enumerate(self.names) if name in values}

    def fit_statistics(self, values: Mapping[str, Tensor]) -> None:
        """Compute and store the statistics of the training split's labels, missing ones (NaN) left out.

        Raises:
            ValueError: when a condition is not among the values, has no label, or does not vary.
        """
        for name in values:
            self.encoder(name)
        for name in self.names:
            encoder = self.encoder(name)
            if name not in values:
                raise ValueError(f"values must hold all conditions, got none of {name}")
            encoder.fit_statistics(values[name])

    @property
    def statistics(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of each number's transformed labels."""
        encoders = [encoder for encoder in map(self.encoder, self.names) if encoder.is_number]
        return {encoder.config.name: (float(encoder.mean), float(encoder.std)) for encoder in encoders}
