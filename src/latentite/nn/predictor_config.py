"""What a property predictor is: its targets, its pooling, its heads, its fidelities.

`PredictorConfig` is all that a checkpoint needs to build the network again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.baselines import Extent
from latentite.nn.condition_values import Transform
from latentite.nn.vae import VAEConfig


class Pooling(StrEnum):
    """How the atoms of a crystal become one vector."""

    MEAN = "mean"
    SUM = "sum"
    ATTENTION = "attention"
    """A mean with learned weights (Ilse et al. 2018, eq. 8); all equal at the start."""


class HeadKind(StrEnum):
    """What a head says of a numeric target."""

    POINT = "point"
    """One number. With an ensemble, its members' disagreement is the uncertainty."""
    QUANTILE = "quantile"
    """Several quantiles of the label given the crystal; the median is the prediction."""


class FidelityMode(StrEnum):
    """How the heads of several fidelities (levels of theory) belong together."""

    RESIDUAL = "residual"
    """`g(h) + d_f(h)`, the last layer of `d_f` zero at the start: a new fidelity begins at the reference's values."""
    INDEPENDENT = "independent"
    """A last layer for each."""
    EMBEDDING = "embedding"
    """A vector for each, added to the pooled features; zero at the start."""


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """What the heads read and how they predict: settings of a network and of a run alike. Defaults are Chemeleon2's."""

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
        if self.ensemble < 1:
            raise ValueError(f"ensemble must be at least 1, got {self.ensemble}")
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
        """Whether any target has a baseline per element."""
        return any(self.extent(name) is not Extent.NONE for name in self.targets)
