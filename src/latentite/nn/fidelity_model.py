"""`FidelityModel`: a predictor at one fidelity as a function of three padded tensors, to be exported.

Nothing in it depends on values, only on shapes, so that `torch.export` and `torch.jit.trace` take it for any number
of crystals and atoms: atoms stay padded where the predictor packs them. Its baseline is added back; an element that
has none gives NaN, which `predictor/exported.py` refuses by name before.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite.crystal import CrystalBatch
from latentite.elements import NUM_ELEMENTS
from latentite.nn.baselines import Extent
from latentite.nn.encoders import EncoderKind
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import Pooling, read_outputs
from latentite.nn.transformer import PackedLayout


class PaddedBatch(CrystalBatch):
    """Crystals of which each has as many slots as the largest has atoms; those left over have atomic number 0."""

    __slots__ = ()

    @property
    def num_slots(self) -> int:
        """Of each crystal."""
        # len() would make a constant of a traced shape.
        return self.total_atoms // self.num_atoms.shape[0]

    @property
    def crystal_index(self) -> Int[Tensor, " slot"]:
        """For each slot the crystal that it belongs to."""
        index = torch.arange(self.num_atoms.shape[0], device=self.device).unsqueeze(1)
        return index.expand(-1, self.num_slots).reshape(-1)

    @property
    def token_index(self) -> Int[Tensor, " slot"]:
        """For each slot its place within its crystal."""
        index = torch.arange(self.num_slots, device=self.device).unsqueeze(0)
        return index.expand(self.num_atoms.shape[0], -1).reshape(-1)


class FidelityModel(nn.Module):
    """All targets of a predictor at one fidelity, in the unit of their labels."""

    baseline: Tensor
    """[119 target] float64, by atomic number; 0 for the padding, NaN where there is none."""
    is_mean: Tensor
    """[target]; whose baseline is a mean over the atoms rather than their sum."""

    def __init__(self, network: PropertyPredictor, fidelity: int) -> None:
        """Wrap a trained predictor, which is put into evaluation mode.

        Raises:
            ValueError: for an encoder whose edges depend on the numbers of atoms.
        """
        super().__init__()
        if network.config.vae.encoder.kind is not EncoderKind.TRANSFORMER:
            raise ValueError(
                "only predictors with a transformer encoder can be exported, got encoder "
                f"{network.config.vae.encoder.kind}"
            )
        self.network = network.eval().requires_grad_(False)
        self.fidelity = fidelity
        count = len(network.config.targets)
        table = torch.zeros(NUM_ELEMENTS + 1, count, dtype=torch.float64)
        if network.baselines is not None:
            table = network.baselines.values[fidelity].T.clone(memory_format=torch.contiguous_format)
            table[0] = 0.0
        self.register_buffer("baseline", table)
        is_mean = [network.config.extent(name) is Extent.PER_ATOM for name in network.config.targets]
        self.register_buffer("is_mean", torch.tensor(is_mean))

    def forward(
        self,
        atomic_numbers: Int[Tensor, "crystal slot"],
        frac_coords: Float[Tensor, "crystal slot 3"],
        lattice: Float[Tensor, "crystal 3 3"],
    ) -> Float[Tensor, "crystal target"]:
        """Every target of every crystal; of a categorical one the code of the likeliest class.

        Args:
            atomic_numbers: 0 in slots without an atom, which come last.
            frac_coords: of the canonical form; anything in slots without an atom.
            lattice: row vectors, Å.
        """
        network, config = self.network, self.network.config
        num_crystals, num_slots = atomic_numbers.shape
        mask = atomic_numbers > 0
        batch = PaddedBatch(
            atomic_numbers=atomic_numbers.reshape(-1),
            frac_coords=frac_coords.reshape(-1, 3),
            lattice=lattice,
            num_atoms=mask.sum(dim=1),
        )
        layout = PackedLayout(
            num_crystals=num_crystals, num_slots=num_slots, slot=None, attention_mask=mask[:, None, None, :]
        )
        atoms = network.vae.encoder(batch, layout)
        features = network.atom_features(atoms, batch.atomic_numbers)
        pooled = self._pooled(features.reshape(num_crystals, num_slots, features.shape[-1]), mask)
        fidelity = torch.full_like(batch.num_atoms, self.fidelity)
        baseline = self.baseline[atomic_numbers].sum(dim=1)
        per_atom = baseline / batch.num_atoms.unsqueeze(1)
        baseline = torch.where(self.is_mean, per_atom, baseline).to(pooled.dtype)
        predictions = read_outputs(
            config,
            network.head_outputs(pooled, fidelity),
            mean=network.mean + baseline,
            std=network.std,
            spread_scale=None,
        )
        return torch.stack([predictions.values[name] for name in config.targets], dim=1)

    def _pooled(self, features: Tensor, mask: Tensor) -> Tensor:
        if self.network.attention is not None:
            scores = self.network.attention(features).masked_fill(~mask.unsqueeze(-1), float("-inf"))
            return (scores.softmax(dim=1) * features).sum(dim=1)
        total = (features * mask.unsqueeze(-1)).sum(dim=1)
        if self.network.config.pooling is Pooling.SUM:
            return total
        return total / mask.sum(dim=1, keepdim=True)
