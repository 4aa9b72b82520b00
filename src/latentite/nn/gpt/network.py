"""`GPTNetwork`: the crystal GPT with the conditions that it knows, and what it knows of its training data.

Everything that sampling needs travels together, so that a checkpoint of this stage stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.nn.conditions import Conditioning, ConditionModule, ConditionModuleConfig
from latentite.nn.element_features import NUM_SYMBOLS
from latentite.nn.gpt.cell import LatticeDensity
from latentite.nn.gpt.circular import CoordDensity
from latentite.nn.gpt.inputs import PaddedOrbits, place_crystals
from latentite.nn.gpt.log_probability import LogProbability
from latentite.nn.gpt.model import CrystalGPT
from latentite.nn.gpt.size import GPTLimits, GPTSize
from latentite.symmetry.cells import NUM_COMPONENTS, free_components
from latentite.symmetry.orbits import OrbitBatch, position_tensors

SPACE_GROUP = "space_group"
"""Condition whose value is the space group of the description, not a label."""

RIDGE = 1.0
"""Penalty of the volumes of elements, in crystals: an element that is rare keeps to the mean of all."""

MIN_STD = 0.01
"""Smallest unit of a component of the cell: where it hardly varies in training, others may still differ."""


class GPTMode(StrEnum):
    """Descriptions of crystals."""

    SYMMETRY = "symmetry"
    """Space group and orbits; special coordinates are exact."""
    P1 = "p1"
    """Every atom an orbit of space group 1."""


@dataclass(kw_only=True, slots=True)
class GPTConfig:
    """Architecture of a `GPTNetwork`."""

    size: GPTSize = field(default_factory=GPTSize)
    limits: GPTLimits = field(default_factory=GPTLimits)
    mode: GPTMode = GPTMode.SYMMETRY
    lattice_density: LatticeDensity = LatticeDensity.AR
    coord_density: CoordDensity = CoordDensity.BINS
    condition_module: ConditionModuleConfig | None = None
    """Conditions that the model knows; null for an unconditional one."""

    def __post_init__(self) -> None:
        check_size(self.size)
        width = self.size.d_model
        if self.condition_module is not None and self.condition_module.hidden_size != width:
            raise ValueError(
                f"condition_module.hidden_size must be size.d_model ({width}), "
                f"got {self.condition_module.hidden_size}"
            )


def check_size(size: GPTSize) -> None:
    """Refuse sizes of which there is no network.

    Raises:
        ValueError: naming the key.
    """
    for key in (
        "d_model",
        "num_layers",
        "num_heads",
        "dim_feedforward",
        "num_mixtures",
        "num_coord_mixtures",
    ):
        if getattr(size, key) < 1:
            raise ValueError(f"size.{key} must be at least 1, got {getattr(size, key)}")
    if size.d_model % size.num_heads:
        raise ValueError(
            f"size.d_model must be a multiple of size.num_heads ({size.num_heads}), got {size.d_model}"
        )
    if not 0.0 <= size.dropout < 1.0:
        raise ValueError(f"size.dropout must lie in [0, 1), got {size.dropout}")


def limits_of(orbits: OrbitBatch) -> GPTLimits:
    """The ranges of some crystals: what a model that learns from them may say."""
    return GPTLimits(
        max_atoms=int(orbits.num_atoms.max()),
        max_orbits=int(orbits.num_orbits.max()),
        max_elements=int(num_elements(orbits).max()),
    )


def num_elements(orbits: OrbitBatch) -> Int[Tensor, " crystal"]:
    """Different elements of each crystal."""
    present = torch.zeros(len(orbits), NUM_SYMBOLS, dtype=torch.bool, device=orbits.element.device)
    present[orbits.crystal_index, orbits.element] = True
    return present.sum(-1)


def element_fractions(orbits: OrbitBatch) -> Float[Tensor, "crystal symbol"]:
    """Share of each element in the atoms of each crystal, float64; column is the atomic number."""
    counts = torch.zeros(len(orbits), NUM_SYMBOLS, dtype=torch.float64, device=orbits.element.device)
    images = position_tensors(orbits.position.device).num_images[orbits.position].double()
    counts.index_put_((orbits.crystal_index, orbits.element), images, accumulate=True)
    return counts / counts.sum(-1, keepdim=True)


class GPTNetwork(nn.Module):
    """Model and conditions. A plain module: training lives in `training/gpt.py`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gpt = CrystalGPT(
            config.size,
            config.limits,
            lattice_density=config.lattice_density,
            coord_density=config.coord_density,
        )
        self.condition_module = (
            None if config.condition_module is None else ConditionModule(config.condition_module)
        )

    @torch.no_grad()
    def fit_statistics(self, orbits: OrbitBatch) -> None:
        """Volumes of elements and units of the cell, from the training split.

        ln of the volume per atom is fitted by the elements alone (ridge regression); what is left of it, and the
        other components of the cell, are told in units of their mean and standard deviation.
        """
        gpt, orbits = self.gpt, orbits.to("cpu")
        fractions, volume = element_fractions(orbits), orbits.cell[:, 0].double()
        mean = volume.mean()
        normal = fractions.T @ fractions + RIDGE * torch.eye(NUM_SYMBOLS, dtype=torch.float64)
        gpt.element_volume.copy_(torch.linalg.solve(normal, fractions.T @ (volume - mean)) + mean)
        components = orbits.cell.double().clone()
        components[:, 0] -= fractions @ gpt.element_volume.double().cpu()
        is_free = free_components(orbits.space_group)
        for column in range(NUM_COMPONENTS):
            values = components[is_free[:, column], column]
            if len(values) >= 2:
                gpt.cell_mean[column] = values.mean()
                gpt.cell_std[column] = values.std().clamp(min=MIN_STD)

    def within_limits(self, orbits: OrbitBatch) -> Bool[Tensor, " crystal"]:
        """Crystals that the model can say."""
        limits = self.config.limits
        return (
            (orbits.num_atoms <= limits.max_atoms)
            & (orbits.num_orbits <= limits.max_orbits)
            & (num_elements(orbits) <= limits.max_elements)
        )

    def condition_values(self, orbits: OrbitBatch) -> dict[str, Tensor]:
        """The value of every condition for known crystals, NaN where a label is missing; none without conditions."""
        if self.condition_module is None:
            return {}
        crystals = orbits.to_crystals()
        return self.condition_module.values(
            replace(
                crystals,
                frac_coords=crystals.frac_coords.float(),
                lattice=crystals.lattice.float(),
                properties={**crystals.properties, SPACE_GROUP: orbits.space_group.float()},
            )
        )

    def conditioning(
        self, values: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None, *, num_crystals: int
    ) -> Conditioning | None:
        """Conditioning of crystals; None for an unconditional one. Arguments as for `ConditionModule`."""
        if self.condition_module is None:
            return None
        return self.condition_module(values, present, num_crystals=num_crystals)

    def log_prob(
        self,
        orbits: OrbitBatch,
        reductions: Int[Tensor, "crystal 3 3"],
        conditioning: Conditioning | None = None,
        *,
        smoothing: float = 0.0,
    ) -> LogProbability:
        """Log-probability of known crystals, nats.

        Args:
            orbits: in canonical order.
            reductions: matrices that reduce their primitive lattices (`EncodedDataset.reductions`).
            conditioning: what the model is told; None: nothing, which a conditional model is told, too.
            smoothing: share of the target of a fine bin that its neighbours get.
        """
        if conditioning is None and self.condition_module is not None:
            conditioning = self.condition_module.absent(len(orbits))
        return self.gpt.log_prob(
            PaddedOrbits.of(orbits),
            place_crystals(orbits, reductions),
            None if conditioning is None else conditioning.vector,
            smoothing=smoothing,
        )
