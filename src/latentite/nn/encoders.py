"""Encoders of the VAE: a crystal in, its input features, one feature vector per atom out.

`TransformerEncoder` lets every atom attend to every other; `CSPNetEncoder` passes messages along periodic differences
of fractional coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite import lattice as lat
from latentite.base.plain import check_counts
from latentite.crystal import CrystalBatch
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.segment import segment_mean
from latentite.nn.transformer import PackedLayout, Transformer, TransformerSize, index_embedding


class EncoderFeatures(StrEnum):
    """Inputs of an encoder."""

    PLAIN = "plain"
    """Lattice matrix (9 numbers, Å) and fractional coordinates (3), as the public checkpoints have."""
    FOURIER = "fourier"
    """Scaled lengths and angles (6, standardised) and sin, cos of 2 pi k x for the first frequencies k."""


TYPICAL_SCALED_LENGTH = (2.7, 0.8)
"""Rough mean and spread of lengths / num_atoms^(1/3), Å, over MP-20: only to bring inputs near unit scale."""
TYPICAL_ANGLE = (math.pi / 2, 0.35)
"""Rough mean and spread of cell angles, radians."""


def fourier_coordinates(
    frac_coords: Float[Tensor, "atom 3"], num_frequencies: int
) -> Float[Tensor, "atom feature"]:
    """`sin(2 pi k x)` and `cos(2 pi k x)` for k = 1..K and the three axes: periodic by construction."""
    k = torch.arange(1, num_frequencies + 1, device=frac_coords.device, dtype=frac_coords.dtype)
    angle = 2 * math.pi * frac_coords.unsqueeze(-1) * k  # [atom 3 frequency]
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)


def coordinate_features(
    batch: CrystalBatch, features: EncoderFeatures, num_frequencies: int
) -> Float[Tensor, "atom feature"]:
    """Numbers that describe where each atom is."""
    if features is EncoderFeatures.PLAIN:
        return batch.frac_coords
    return fourier_coordinates(batch.frac_coords, num_frequencies)


def cell_parameters(batch: CrystalBatch) -> Float[Tensor, "crystal 6"]:
    """Scaled lengths (Å per atom^(1/3)) and angles (radians), brought near zero mean and unit spread."""
    lengths, angles = lat.parameters_from_lattice(batch.lattice)
    scaled = lat.scaled_lengths(lengths, batch.num_atoms)
    return torch.cat(
        [
            (scaled - TYPICAL_SCALED_LENGTH[0]) / TYPICAL_SCALED_LENGTH[1],
            (torch.deg2rad(angles) - TYPICAL_ANGLE[0]) / TYPICAL_ANGLE[1],
        ],
        dim=-1,
    )


def lattice_features(batch: CrystalBatch, features: EncoderFeatures) -> Float[Tensor, "crystal feature"]:
    """Numbers that describe each cell."""
    if features is EncoderFeatures.PLAIN:
        return batch.lattice.flatten(1)
    return cell_parameters(batch)


def num_coordinate_features(features: EncoderFeatures, num_frequencies: int) -> int:
    """Width of `coordinate_features`."""
    return 3 if features is EncoderFeatures.PLAIN else 6 * num_frequencies


def num_lattice_features(features: EncoderFeatures) -> int:
    """Width of `lattice_features`."""
    return 9 if features is EncoderFeatures.PLAIN else 6


class EncoderKind(StrEnum):
    """Kinds of encoder."""

    TRANSFORMER = "transformer"
    CSPNET = "cspnet"


@dataclass(kw_only=True, slots=True)
class EncoderConfig(TransformerSize):
    """Size and inputs of an encoder. Defaults are those of the public checkpoints."""

    kind: EncoderKind = EncoderKind.TRANSFORMER
    features: EncoderFeatures = EncoderFeatures.PLAIN
    num_frequencies: int = 8
    """Frequencies of the `fourier` features, and of the edges of `cspnet`."""
    index_embedding: bool = True
    """Tell each atom its place in the list. Off, the encoder is permutation-equivariant."""

    def __post_init__(self) -> None:
        # slots=True replaces the class, so the zero-argument super() would not find it
        TransformerSize.__post_init__(self)
        check_counts(self, "num_frequencies")


def embedder(num_inputs: int, d_model: int) -> nn.Sequential:
    """Two linear layers with SiLU between; the first without bias, as the public checkpoints have."""
    return nn.Sequential(nn.Linear(num_inputs, d_model, bias=False), nn.SiLU(), nn.Linear(d_model, d_model))


class TransformerEncoder(nn.Module):
    """Sum of element, cell, coordinate and index embeddings, through a transformer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.atom_type_embedder = nn.Embedding(NUM_ELEMENT_CLASSES, config.d_model)
        self.lattices_embedder = embedder(num_lattice_features(config.features), config.d_model)
        num_inputs = num_coordinate_features(config.features, config.num_frequencies)
        self.frac_coords_embedder = embedder(num_inputs, config.d_model)
        self.transformer = Transformer(config)

    def forward(self, batch: CrystalBatch, layout: PackedLayout) -> Float[Tensor, "atom channel"]:
        """Features of every atom, from all atoms of its crystal.

        Args:
            batch: crystals in canonical form; lengths in Å.
            layout: which rows belong to which crystal, `PackedLayout.of(batch.num_atoms)`.

        Returns:
            `d_model` channels per atom, in the order of the batch, without unit.
        """
        config = self.config
        cell = self.lattices_embedder(lattice_features(batch, config.features))
        tokens = (
            self.atom_type_embedder(batch.atomic_numbers)
            + cell[batch.crystal_index]
            + self.frac_coords_embedder(coordinate_features(batch, config.features, config.num_frequencies))
        )
        if config.index_embedding:
            tokens = tokens + index_embedding(batch.token_index, config.d_model).to(tokens.dtype)
        return self.transformer(tokens, layout)


def all_pairs(num_atoms: Int[Tensor, " crystal"]) -> tuple[Int[Tensor, " edge"], Int[Tensor, " edge"]]:
    """Every ordered pair (i, j) of atoms of the same crystal, i = j included, without a Python loop."""
    first_atom = num_atoms.cumsum(0) - num_atoms
    per_atom = num_atoms.repeat_interleave(num_atoms)  # partners of each atom
    receiver = torch.arange(int(num_atoms.sum()), device=num_atoms.device).repeat_interleave(per_atom)
    edge_start = (per_atom.cumsum(0) - per_atom).repeat_interleave(per_atom)
    place = torch.arange(receiver.shape[0], device=num_atoms.device) - edge_start
    sender = first_atom.repeat_interleave(num_atoms).repeat_interleave(per_atom) + place
    return receiver, sender


class CSPLayer(nn.Module):
    """One round of messages (Jiao et al. 2023, DiffCSP, eq. 6-8).

    Departures: (1) messages are averaged, as in the authors' code, (2) pre-norm, (3) the cell enters as scaled
    lengths and angles rather than as inner products, which is bounded whatever the size of the cell.
    """

    def __init__(self, d_model: int, num_edge_features: int, num_cell_features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        # The first layer of the message network, split by what it sees: atoms are projected once per atom
        # rather than once per edge, the same function at a fraction of the work.
        self.from_receiver = nn.Linear(d_model, d_model)
        self.from_sender = nn.Linear(d_model, d_model, bias=False)
        self.from_edge = nn.Linear(num_edge_features, d_model, bias=False)
        self.from_cell = nn.Linear(num_cell_features, d_model, bias=False)
        self.message = nn.Linear(d_model, d_model)
        self.update = nn.Sequential(
            nn.Linear(2 * d_model, d_model), nn.SiLU(), nn.Linear(d_model, d_model), nn.SiLU()
        )

    def forward(
        self,
        nodes: Float[Tensor, "atom channel"],
        edges: tuple[Int[Tensor, " edge"], Int[Tensor, " edge"]],
        edge_features: Float[Tensor, "edge feature"],
        cell_per_atom: Float[Tensor, "atom cell_feature"],
    ) -> Float[Tensor, "atom channel"]:
        """Atoms after one round of messages.

        Args:
            nodes: `d_model` channels per atom.
            edges: receiver and sender of each message, as `all_pairs` gives them.
            edge_features: of the wrapped fractional difference sender - receiver.
            cell_per_atom: features of the cell that each atom is in.
        """
        receiver, sender = edges
        normed = self.norm(nodes)
        at_receiver = self.from_receiver(normed) + self.from_cell(cell_per_atom)
        hidden = at_receiver[receiver] + self.from_sender(normed)[sender] + self.from_edge(edge_features)
        messages = F.silu(self.message(F.silu(hidden)))
        received = segment_mean(messages, receiver, nodes.shape[0])
        return nodes + self.update(torch.cat([normed, received], dim=-1))


class CSPNetEncoder(nn.Module):
    """Periodic message passing on wrapped fractional differences between all pairs of atoms of a crystal.

    Differences alone cannot tell where the origin is, and the decoder must rebuild the coordinates as given,
    so the node features hold the coordinates themselves too.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.atom_type_embedder = nn.Embedding(NUM_ELEMENT_CLASSES, config.d_model)
        num_inputs = num_coordinate_features(config.features, config.num_frequencies)
        self.frac_coords_embedder = embedder(num_inputs, config.d_model)
        num_cell = num_lattice_features(EncoderFeatures.FOURIER)
        self.layers = nn.ModuleList(
            CSPLayer(config.d_model, 6 * config.num_frequencies, num_cell) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, batch: CrystalBatch, layout: PackedLayout) -> Float[Tensor, "atom channel"]:
        """Features of every atom, from messages between all pairs of its crystal.

        Args:
            batch: crystals in canonical form; lengths in Å.
            layout: not needed, as messages run along packed edges; encoders are called alike.

        Returns:
            `d_model` channels per atom, in the order of the batch, without unit.
        """
        config = self.config
        nodes = self.atom_type_embedder(batch.atomic_numbers) + self.frac_coords_embedder(
            coordinate_features(batch, config.features, config.num_frequencies)
        )
        if config.index_embedding:
            nodes = nodes + index_embedding(batch.token_index, config.d_model).to(nodes.dtype)
        receiver, sender = all_pairs(batch.num_atoms)
        difference = lat.wrapped_difference(batch.frac_coords[sender], batch.frac_coords[receiver])
        edge_features = fourier_coordinates(difference, config.num_frequencies)
        cell = lattice_features(batch, EncoderFeatures.FOURIER)[batch.crystal_index]
        for layer in self.layers:
            nodes = layer(nodes, (receiver, sender), edge_features, cell)
        return self.norm(nodes)


def build_encoder(config: EncoderConfig) -> nn.Module:
    """The encoder that the configuration names."""
    table: dict[EncoderKind, type[nn.Module]] = {
        EncoderKind.TRANSFORMER: TransformerEncoder,
        EncoderKind.CSPNET: CSPNetEncoder,
    }
    return table[config.kind](config)
