"""A split as what a frozen encoder says of it: encoded once, kept on the device.

`CachedInputs` stands in for the crystals as the source of training batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.nn.predictor import PredictorInput, PropertyPredictor
from latentite.nn.predictor_config import Pooling
from latentite.objectives.predictor import labels_of
from latentite.training.latent_cache import ENCODE_CHUNK, CachedBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedInputs:
    """Inputs of the heads for all crystals of a split."""

    crystals: CrystalBatch
    """On the CPU, where batches are planned; everything else lies on the device."""
    inputs: PredictorInput
    labels: Float[Tensor, "crystal target"]
    is_per_atom: bool
    """Whether the features have a row per atom."""

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms of each crystal, on the CPU."""
        return self.crystals.num_atoms

    def select(self, index: Int[Tensor, " selected"]) -> CachedBatch:
        """The batch of the crystals at these positions."""
        atoms = self.crystals.atoms_of(index) if self.is_per_atom else index[:0]
        return CachedBatch(crystals=index, atoms=atoms, num_atoms=self.num_atoms[index])

    def batch(self, batch: CachedBatch) -> tuple[PredictorInput, Float[Tensor, "crystal target"]]:
        """Inputs and labels of a batch."""
        rows, own = batch.crystals, self.inputs
        inputs = PredictorInput(
            features=own.features[batch.atoms if self.is_per_atom else rows],
            num_atoms=own.num_atoms[rows],
            fidelity=own.fidelity[rows],
            baseline=own.baseline[rows],
        )
        return inputs, self.labels[rows]


@torch.no_grad()
def encode_inputs(network: PropertyPredictor, crystals: CrystalBatch) -> CachedInputs:
    """Encode a split on the device of the network.

    Crystals are encoded in order of their size, which pads little; the result is in their own order.
    """
    device = network.mean.device
    order = crystals.num_atoms.argsort(stable=True)
    parts = [network.prepare(crystals.select(index).to(device)) for index in order.split(ENCODE_CHUNK)]
    sorted_rows = CachedInputs(
        crystals=crystals.select(order),
        inputs=concatenate_inputs(parts),
        labels=labels_of(network.config, crystals.select(order).properties).to(device),
        is_per_atom=network.config.pooling is Pooling.ATTENTION,
    )
    inputs, labels = sorted_rows.batch(sorted_rows.select(order.argsort()).to(device))
    return CachedInputs(crystals=crystals, inputs=inputs, labels=labels, is_per_atom=sorted_rows.is_per_atom)


def concatenate_inputs(parts: list[PredictorInput]) -> PredictorInput:
    """One input of several, in order."""
    return PredictorInput(
        features=torch.cat([part.features for part in parts]),
        num_atoms=torch.cat([part.num_atoms for part in parts]),
        fidelity=torch.cat([part.fidelity for part in parts]),
        baseline=torch.cat([part.baseline for part in parts]),
    )
