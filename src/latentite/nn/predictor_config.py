"""Form of a property predictor: targets, pooling, heads, fidelities, and how the outputs of its heads are read.

`PredictorConfig` is all that a checkpoint needs to build the network again; `Predictions` are values and uncertainties
in the unit of the labels, and probabilities of classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.base.plain import check_counts
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.baselines import Extent
from latentite.nn.condition_values import Transform
from latentite.nn.vae import VAEConfig


class Pooling(StrEnum):
    """Ways from the atoms of a crystal to one vector."""

    MEAN = "mean"
    SUM = "sum"
    ATTENTION = "attention"
    """A mean with learned weights (Ilse et al. 2018, eq. 8); all equal at the start."""


class HeadKind(StrEnum):
    """Forms of a head's prediction of a numeric target."""

    POINT = "point"
    """One number. With an ensemble, its members' disagreement is the uncertainty."""
    QUANTILE = "quantile"
    """Several quantiles of the label given the crystal; the median is the prediction."""


class FidelityMode(StrEnum):
    """Relations between the heads of several fidelities (levels of theory)."""

    RESIDUAL = "residual"
    """`g(h) + d_f(h)`, the last layer of `d_f` zero at the start: a new fidelity begins at the reference's values."""
    INDEPENDENT = "independent"
    """A last layer for each."""
    EMBEDDING = "embedding"
    """A vector for each, added to the pooled features; zero at the start."""


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """Inputs and form of the heads: settings of a network and of a run alike. Defaults are Chemeleon2's."""

    pooling: Pooling = Pooling.MEAN
    use_encoder_features: bool = True
    """Pool the encoder's features besides the latent means."""
    composition: bool = False
    """Pool the elements themselves besides: the share of each in the crystal (its atoms where `pooling` is `sum`)."""
    standardise: bool = False
    """Pooled features less their mean, over their standard deviation; both of (a part of) the training split."""
    hidden: list[int] | None = None
    """Widths of the hidden layers; null for Chemeleon2's, a quarter and a half of the pooled vector."""
    dropout: float = 0.1
    head: HeadKind = HeadKind.POINT
    quantiles: list[float] = field(default_factory=lambda: [0.05, 0.16, 0.3, 0.5, 0.7, 0.84, 0.95])
    """`quantile`: which, symmetric about 0.5."""
    ensemble: int = 1
    """Heads that differ in their first weights; the prediction is their mean, the uncertainty their disagreement."""
    fidelity_mode: FidelityMode = FidelityMode.RESIDUAL

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        check_counts(self, "ensemble")
        if self.hidden is not None and (not self.hidden or min(self.hidden) < 1):
            raise ValueError(f"hidden must be at least one width of 1 or more, or null, got {self.hidden}")
        levels = self.quantiles
        mirrored = [round(1.0 - level, 9) for level in reversed(levels)]
        is_rising = all(low < high for low, high in pairwise(levels))
        is_symmetric = [round(level, 9) for level in levels] == mirrored
        if len(levels) < 3 or not is_rising or not is_symmetric or levels[0] <= 0.0 or 0.5 not in levels:
            raise ValueError(
                f"quantiles must rise, be symmetric about 0.5 and contain it, such as [0.16, 0.5, 0.84], got {levels}"
            )


@dataclass(kw_only=True, slots=True)
class PredictorConfig(HeadConfig):
    """Architecture of a `PropertyPredictor`. Defaults are Chemeleon2's."""

    vae: VAEConfig = field(default_factory=VAEConfig)
    targets: list[str] = field(default_factory=list)
    """Names of the properties, in the order of the outputs."""
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Categorical targets: the names behind the codes 0, 1, ... of each."""
    transforms: dict[str, Transform] = field(default_factory=dict)
    """Of numeric targets, before they are normalised; none where nothing is said."""
    extents: dict[str, Extent] = field(default_factory=dict)
    """Of targets with a baseline per element, which the network does not have to learn; none where nothing is said."""
    units: dict[str, str] = field(default_factory=dict)
    """Of numeric targets, for tables and figures."""
    fidelities: list[str] = field(default_factory=list)
    """Names of the levels of theory, in the order of the property `fidelity`; empty for one without a name."""
    reference: str | None = None
    """The fidelity that crystals without one are predicted at; null for the first."""

    def __post_init__(self) -> None:
        # slots=True replaces the class, so the zero-argument super() would not find it
        HeadConfig.__post_init__(self)
        if not self.targets:
            raise ValueError("targets must name at least one property, got none")
        for key, names in (("targets", self.targets), ("fidelities", self.fidelities)):
            if len(set(names)) != len(names):
                raise ValueError(f"{key} must have different names, got {', '.join(names)}")
        if self.reference is not None and self.reference not in self.fidelities:
            known = ", ".join(self.fidelities) or "there are none"
            raise ValueError(f"reference must be one of fidelities ({known}), got {self.reference!r}")
        self._check_targets()

    def _check_targets(self) -> None:
        for key in ("classes", "transforms", "extents", "units"):
            if unknown := [name for name in getattr(self, key) if name not in self.targets]:
                raise ValueError(f"{key}.{unknown[0]} must be one of targets ({', '.join(self.targets)})")
        for name in self.targets:
            is_plain = self.transform(name) is Transform.NONE
            if name in self.classes and (not is_plain or self.extent(name) is not Extent.NONE):
                raise ValueError(
                    f"transforms.{name} and extents.{name} must be none for a categorical target"
                )
            if name in self.classes and len(set(self.classes[name])) < 2:
                raise ValueError(f"classes.{name} must be at least two names, got {self.classes[name]}")
            if not is_plain and self.extent(name) is not Extent.NONE:
                raise ValueError(
                    f"extents.{name} must be none with transforms.{name}={self.transform(name)}, "
                    f"got {self.extent(name)}: baselines add up in the unit of the labels"
                )

    def transform(self, target: str) -> Transform:
        """Of a target."""
        return self.transforms.get(target, Transform.NONE)

    def extent(self, target: str) -> Extent:
        """Of a target's baseline."""
        return self.extents.get(target, Extent.NONE)

    @property
    def num_features(self) -> int:
        """Width of the pooled vector."""
        width = self.vae.latent_dim + (self.vae.encoder.d_model if self.use_encoder_features else 0)
        return width + (NUM_ELEMENT_CLASSES if self.composition else 0)

    @property
    def hidden_widths(self) -> list[int]:
        """Widths of the hidden layers."""
        return self.hidden or [self.num_features // 4, self.num_features // 2]

    def num_outputs(self, target: str) -> int:
        """Outputs of a target: a logit per class, a number per quantile, or one number."""
        if target in self.classes:
            return len(self.classes[target])
        return len(self.quantiles) if self.head is HeadKind.QUANTILE else 1

    @property
    def total_outputs(self) -> int:
        """Outputs of all targets."""
        return sum(self.num_outputs(target) for target in self.targets)

    @property
    def num_fidelities(self) -> int:
        """At least one."""
        return max(1, len(self.fidelities))

    @property
    def reference_index(self) -> int:
        """Position of the reference fidelity."""
        return 0 if self.reference is None else self.fidelities.index(self.reference)

    @property
    def has_baselines(self) -> bool:
        """True where any target has a baseline per element."""
        return any(self.extent(name) is not Extent.NONE for name in self.targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Of a batch, by target."""

    values: dict[str, Float[Tensor, " crystal"]]
    """In the unit of the labels; of a categorical target the code of its likeliest class."""
    spreads: dict[str, Float[Tensor, " crystal"]] = field(default_factory=dict)
    """One standard deviation, for numeric targets of a predictor that knows its uncertainty."""
    probabilities: dict[str, Float[Tensor, "crystal class"]] = field(default_factory=dict)
    """Of the classes of categorical targets."""


def split_outputs(
    config: PredictorConfig, outputs: Float[Tensor, "member crystal output"]
) -> Iterator[tuple[int, str, Float[Tensor, "member crystal part"]]]:
    """Position, name and outputs of each target."""
    widths = [config.num_outputs(name) for name in config.targets]
    parts = outputs.split(widths, dim=-1)
    yield from zip(range(len(widths)), config.targets, parts, strict=True)


def central(
    config: PredictorConfig, part: Float[Tensor, "member crystal part"]
) -> Float[Tensor, "member crystal"]:
    """The number that each member predicts, normalised: the output itself, or its median."""
    return part[..., config.quantiles.index(0.5) if config.head is HeadKind.QUANTILE else 0]


def normal_spread(
    config: PredictorConfig, part: Float[Tensor, "member crystal part"]
) -> Float[Tensor, " crystal"] | None:
    """One standard deviation in normalised units, before any stretching; None where nothing is known of it.

    Of quantiles, half the width of the interval nearest to one standard deviation; of point heads, the standard
    deviation over the ensemble.
    """
    if config.head is HeadKind.QUANTILE:
        one_sigma = NormalDist().cdf(-1.0)
        low = min(range(len(config.quantiles) // 2), key=lambda i: abs(config.quantiles[i] - one_sigma))
        levels = part.mean(dim=0).sort(dim=-1).values
        width = NormalDist().inv_cdf(config.quantiles[-1 - low])
        return (levels[:, -1 - low] - levels[:, low]) / (2.0 * width)
    return part[..., 0].std(dim=0, correction=1) if config.ensemble > 1 else None


def read_outputs(
    config: PredictorConfig,
    outputs: Float[Tensor, "member crystal output"],
    *,
    mean: Float[Tensor, "crystal target"],
    std: Float[Tensor, " target"],
    spread_scale: Float[Tensor, " target"] | None,
) -> Predictions:
    """Outputs in the unit of the labels.

    Args:
        config: of the predictor.
        outputs: of every member of the ensemble.
        mean: of the transformed labels, the baseline included.
        std: of the transformed labels.
        spread_scale: what the spread of each target is multiplied with.
    """
    values, spreads, probabilities = {}, {}, {}
    for column, name, part in split_outputs(config, outputs):
        if name in config.classes:
            chances = part.softmax(dim=-1).mean(dim=0)
            probabilities[name] = chances
            values[name] = chances.argmax(dim=-1).to(outputs.dtype)
            continue
        inverse = config.transform(name).inverse
        middle = central(config, part).mean(dim=0) * std[column] + mean[:, column]
        values[name] = inverse(middle)
        spread = normal_spread(config, part)
        if spread is not None:
            scale = 1.0 if spread_scale is None else spread_scale[column]
            half = spread * scale * std[column]
            spreads[name] = 0.5 * (inverse(middle + half) - inverse(middle - half))
    return Predictions(values=values, spreads=spreads, probabilities=probabilities)


def interval_miss(
    config: PredictorConfig,
    part: Float[Tensor, "member crystal part"],
    normalised: Float[Tensor, " crystal"],
    scale: Tensor | float,
) -> Float[Tensor, "nominal crystal"] | None:
    """Distance of each label from the central interval of each nominal coverage; 0 or less inside.

    Args:
        config: of the predictor.
        part: outputs of one target.
        normalised: its labels.
        scale: stretches the spread of an ensemble.
    """
    if config.head is HeadKind.QUANTILE:
        levels = part.mean(dim=0).sort(dim=-1).values
        half = len(config.quantiles) // 2
        pairs = [(levels[:, i], levels[:, -1 - i]) for i in range(half)]
        return torch.stack([torch.maximum(low - normalised, normalised - high) for low, high in pairs])
    spread = normal_spread(config, part)
    if spread is None:
        return None
    distance = (normalised - central(config, part).mean(dim=0)).abs()
    widths = [NormalDist().inv_cdf(0.5 + 0.5 * level) for level in nominal_coverages(config)]
    return torch.stack([distance - width * scale * spread for width in widths])


def nominal_coverages(config: PredictorConfig) -> list[float]:
    """Of the intervals of `interval_miss`."""
    if config.head is HeadKind.QUANTILE:
        return [1.0 - 2.0 * level for level in config.quantiles[: len(config.quantiles) // 2]]
    return [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
