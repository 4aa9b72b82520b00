"""The crystal VAE: an encoder, a small Gaussian latent per atom, and a decoder.

Follow one crystal: `CrystalBatch` -> `encode` -> `Posterior` (mean and log-variance per atom) -> `sample` -> `decode`
-> `DecodedCrystals` -> `to_crystals` -> `CrystalBatch`. `LatentBatch` has the latents padded, as diffusion takes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite import lattice as lat
from latentite.base.plain import check_counts
from latentite.crystal import CrystalBatch
from latentite.elements import NUM_ELEMENT_CLASSES
from latentite.nn.encoders import EncoderConfig, build_encoder
from latentite.nn.segment import segment_mean
from latentite.nn.transformer import PackedLayout, Transformer, TransformerSize, index_embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentBatch:
    """Latent tokens of a batch; a crystal's tokens come first in its row, zeros stand where the mask is False."""

    tokens: Float[Tensor, "crystal token channel"]
    mask: Bool[Tensor, "crystal token"]
    """True where a token is an atom."""

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms of each crystal."""
        return self.mask.sum(dim=-1)

    @property
    def packed(self) -> Float[Tensor, "atom channel"]:
        """The tokens atom by atom, in the order of `CrystalBatch`."""
        return self.tokens[self.mask]

    @staticmethod
    def token_mask(
        num_atoms: Int[Tensor, " crystal"], num_tokens: int | None = None
    ) -> Bool[Tensor, "crystal token"]:
        """Mask for crystals with these numbers of atoms, padded to `num_tokens` or to the largest.

        Raises:
            ValueError: when a crystal has more atoms than tokens.
        """
        largest = int(num_atoms.max()) if len(num_atoms) else 0
        if num_tokens is not None and num_tokens < largest:
            raise ValueError(
                f"num_tokens must be at least the largest crystal ({largest} atoms), got {num_tokens}"
            )
        width = largest if num_tokens is None else num_tokens
        return torch.arange(width, device=num_atoms.device) < num_atoms.unsqueeze(-1)

    @staticmethod
    def from_packed(
        latent: Float[Tensor, "atom channel"],
        num_atoms: Int[Tensor, " crystal"],
        num_tokens: int | None = None,
    ) -> LatentBatch:
        """Pad packed latents."""
        mask = LatentBatch.token_mask(num_atoms, num_tokens)
        tokens = latent.new_zeros(*mask.shape, latent.shape[-1])
        tokens[mask] = latent
        return LatentBatch(tokens=tokens, mask=mask)


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


@dataclass(kw_only=True, slots=True)
class VAEConfig:
    """Architecture of a `CrystalVAE`. Defaults are those of the public checkpoints."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    latent_dim: int = 8
    """Numbers per atom."""
    atom_type_predict: bool = True
    """Off: the structure-prediction (CSP) variant, whose decoder is told the elements."""

    def __post_init__(self) -> None:
        check_counts(self, "latent_dim")


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior:
    """Independent Gaussians `q(z | crystal)`, one vector per atom."""

    mean: Float[Tensor, "atom channel"]
    logvar: Float[Tensor, "atom channel"]

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "atom channel"]:
        """`mean + std * noise` (Kingma & Welling 2013, sec. 2.4)."""
        noise = torch.randn(
            self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Float[Tensor, "atom channel"]:
        """KL divergence from N(0, 1), nats per channel (Kingma & Welling 2013, appendix B)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)


class CrystalVAE(nn.Module):
    """Encoder, latent bottleneck, decoder. A plain module: training lives in `training/vae.py`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.decoder = TransformerDecoder(config.decoder, atom_type_predict=config.atom_type_predict)
        self.quant_conv = nn.Linear(config.encoder.d_model, 2 * config.latent_dim, bias=False)
        self.post_quant_conv = nn.Linear(config.latent_dim, config.decoder.d_model, bias=False)

    def features(self, batch: CrystalBatch) -> Float[Tensor, "atom feature"]:
        """The encoder's features of each atom, before the bottleneck."""
        return self.encoder(batch, PackedLayout.of(batch.num_atoms))

    def posterior(self, features: Float[Tensor, "atom feature"]) -> Posterior:
        """The posterior that belongs to encoder features."""
        mean, logvar = self.quant_conv(features).chunk(2, dim=-1)
        return Posterior(mean=mean, logvar=logvar.clamp(-30.0, 20.0))

    def encode(self, batch: CrystalBatch) -> Posterior:
        """Posterior of every atom of a batch."""
        return self.posterior(self.features(batch))

    def decode(
        self,
        latent: Float[Tensor, "atom channel"],
        num_atoms: Int[Tensor, " crystal"],
        atomic_numbers: Int[Tensor, " atom"] | None = None,
    ) -> DecodedCrystals:
        """Crystals that a latent stands for; `atomic_numbers` for the structure-prediction variant only."""
        return self.decoder(self.post_quant_conv(latent), num_atoms, atomic_numbers)

    def reconstruct(self, batch: CrystalBatch) -> DecodedCrystals:
        """Encode, take the posterior mean, decode."""
        return self.decode(self.encode(batch).mean, batch.num_atoms, batch.atomic_numbers)
