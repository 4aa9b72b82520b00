"""Decoder of the VAE: one latent vector per atom in, elements, coordinates and cell out.

`DecodedCrystals` stands between the decoder's raw numbers and a `CrystalBatch`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.segment import segment_mean
from latentite.nn.transformer import PackedLayout, Transformer, TransformerSize, index_embedding


class CoordinateHead(StrEnum):
    """Forms of the decoder's output of a coordinate."""

    LINEAR = "linear"
    """The number itself (3 per atom), as the public checkpoints have."""
    CIRCLE = "circle"
    """Its cosine and sine (6 per atom), read by atan2: no seam at 0 = 1."""


@dataclass(kw_only=True, slots=True)
class DecoderConfig(TransformerSize):
    """Size and heads of the decoder. Defaults are those of the public checkpoints."""

    coordinate_head: CoordinateHead = CoordinateHead.LINEAR
    index_embedding: bool = True
    """Tell each atom its place in the list. Off, the decoder is permutation-equivariant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedCrystals:
    """Output of the decoder, packed like the crystals it stands for. Losses read it, `to_crystals` ends it."""

    num_atoms: Int[Tensor, " crystal"]
    element_logits: Float[Tensor, "atom element"] | None
    """None for a structure-prediction model, which is told the elements."""
    coordinates: Float[Tensor, "atom output"]
    """3 numbers (`linear`) or cos x 3, sin x 3 (`circle`) per atom."""
    coordinate_head: CoordinateHead
    scaled_lengths: Float[Tensor, "crystal 3"]
    """Å per atom^(1/3)."""
    angles_radians: Float[Tensor, "crystal 3"]

    @property
    def frac_coords(self) -> Float[Tensor, "atom 3"]:
        """Fractional coordinates, not yet wrapped for the linear head."""
        if self.coordinate_head is CoordinateHead.LINEAR:
            return self.coordinates
        cosine, sine = self.coordinates.chunk(2, dim=-1)
        return torch.atan2(sine, cosine) / (2 * math.pi)

    @property
    def lengths(self) -> Float[Tensor, "crystal 3"]:
        """Å."""
        return lat.unscaled_lengths(self.scaled_lengths, self.num_atoms)

    @property
    def angles(self) -> Float[Tensor, "crystal 3"]:
        """Degrees."""
        return torch.rad2deg(self.angles_radians)

    def to_crystals(self, atomic_numbers: Int[Tensor, " atom"] | None = None) -> CrystalBatch:
        """The most likely crystals.

        Args:
            atomic_numbers: the elements, for a structure-prediction model (or to override the logits).

        Raises:
            ValueError: when the model does not predict elements and none are given.
        """
        if atomic_numbers is None:
            if self.element_logits is None:
                raise ValueError(
                    "this model does not predict elements (atom_type_predict=false): give atomic_numbers"
                )
            atomic_numbers = self.element_logits[:, 1:].argmax(dim=-1) + 1  # class 0 is "unknown"
        return CrystalBatch(
            atomic_numbers=atomic_numbers,
            frac_coords=lat.wrap(self.frac_coords.float()),
            lattice=lat.lattice_from_parameters(self.lengths.float(), self.angles.float()),
            num_atoms=self.num_atoms,
        )


class TransformerDecoder(nn.Module):
    """Transformer over the atoms' latents with one head per kind of output."""

    def __init__(self, config: DecoderConfig, *, atom_type_predict: bool = True) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        num_outputs = 3 if config.coordinate_head is CoordinateHead.LINEAR else 6
        if atom_type_predict:
            self.atom_types_head = nn.Linear(config.d_model, NUM_ELEMENT_CLASSES)
        else:
            self.atom_type_embedder = nn.Embedding(NUM_ELEMENT_CLASSES, config.d_model)
        self.frac_coords_head = nn.Linear(config.d_model, num_outputs, bias=False)
        self.lattice_head = nn.Linear(config.d_model, 6, bias=False)
        self.atom_type_predict = atom_type_predict

    def forward(
        self,
        tokens: Float[Tensor, "atom channel"],
        num_atoms: Int[Tensor, " crystal"],
        atomic_numbers: Int[Tensor, " atom"] | None = None,
    ) -> DecodedCrystals:
        """Decode tokens that are already as wide as the decoder."""
        crystal_index = torch.arange(len(num_atoms), device=tokens.device).repeat_interleave(
            num_atoms, output_size=tokens.shape[0]
        )
        if self.config.index_embedding:
            first_atom = num_atoms.cumsum(0) - num_atoms
            token_index = torch.arange(tokens.shape[0], device=tokens.device) - first_atom[crystal_index]
            tokens = tokens + index_embedding(token_index, self.config.d_model).to(tokens.dtype)
        if not self.atom_type_predict:
            if atomic_numbers is None:
                raise ValueError(
                    "this decoder does not predict elements (atom_type_predict=false): give atomic_numbers"
                )
            tokens = tokens + self.atom_type_embedder(atomic_numbers)
        hidden = self.transformer(tokens, PackedLayout.of(num_atoms))
        cell = self.lattice_head(segment_mean(hidden, crystal_index, len(num_atoms)))
        return DecodedCrystals(
            num_atoms=num_atoms,
            element_logits=self.atom_types_head(hidden) if self.atom_type_predict else None,
            coordinates=self.frac_coords_head(hidden),
            coordinate_head=self.config.coordinate_head,
            scaled_lengths=cell[:, :3],
            angles_radians=cell[:, 3:],
        )
