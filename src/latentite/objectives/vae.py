"""The VAE's objective: reconstruction and KL, term by term.

`L = w_e CE(elements) + w_l |dl|^2 + w_a |da|^2 + w_x |dx|^2 + w_KL KL + w_fa L_fa`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.nn.vae import CoordinateHead, CrystalVAE, DecodedCrystals
from latentite.objectives.terms import LossTerms, Term


@dataclass(kw_only=True, slots=True)
class LossWeights:
    """Weights of the terms; names and defaults of Chemeleon2."""

    atom_types: float = 1.0
    lengths: float = 1.0
    angles: float = 10.0
    frac_coords: float = 10.0
    kl: float = 1e-5
    fa: float = 0.0
    """Alignment of latents with a foundation model's per-atom features; needs `data.atom_features_path`."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(
                    f"loss_weights.{item.name} must be a finite number of 0 or more, got {value}"
                )


class CoordinateLoss(StrEnum):
    """Measures of a coordinate's error."""

    WRAPPED = "wrapped"
    """On the torus: an atom at 0.999 rebuilt at 0.001 is off by 0.002."""
    PLAIN = "plain"
    """The difference of the numbers, as Chemeleon2 does: the same atom is off by 0.998. For comparison only."""


def coordinate_loss(
    decoded: DecodedCrystals, target: Float[Tensor, "atom 3"], kind: CoordinateLoss
) -> Float[Tensor, "atom axis"]:
    """Squared error per coordinate.

    For the circle head the squared distance in the plane between the prediction and the target's point on the
    unit circle: near the target it is `(2 pi dx)^2`, and it has a gradient everywhere but at the centre.
    """
    if decoded.coordinate_head is CoordinateHead.CIRCLE:
        angle = 2 * math.pi * target
        point = torch.cat([angle.cos(), angle.sin()], dim=-1)
        cosine, sine = (decoded.coordinates.float() - point).square().chunk(2, dim=-1)
        return cosine + sine
    predicted = decoded.coordinates.float()
    if kind is CoordinateLoss.PLAIN:
        return (predicted - target).square()
    return lat.wrapped_difference(predicted, target).square()


def alignment_loss(
    projected: Float[Tensor, "atom feature"], features: Float[Tensor, "atom feature"], *, margin: float = 0.0
) -> Float[Tensor, " atom"]:
    """Marginal cosine similarity loss per atom, `relu(1 - margin - cos)` (Yao et al. 2025, VA-VAE, eq. 3).

    Atoms whose features hold a NaN (none were precomputed) give 0 and no gradient.
    """
    known = features.isfinite().all(dim=-1)
    safe = features.masked_fill(~known.unsqueeze(-1), 0.0)
    similarity = F.cosine_similarity(projected.float(), safe.float(), dim=-1)
    return torch.where(known, F.relu(1.0 - margin - similarity), torch.zeros_like(similarity))


def reconstruction_terms(
    decoded: DecodedCrystals,
    target: CrystalBatch,
    weights: LossWeights,
    kind: CoordinateLoss = CoordinateLoss.WRAPPED,
) -> dict[str, Term]:
    """Every term that compares a decoded batch with its target."""
    lengths, angles = lat.parameters_from_lattice(target.lattice)
    scaled = lat.scaled_lengths(lengths, target.num_atoms)
    terms = {
        "lengths": Term.mean_of((decoded.scaled_lengths.float() - scaled).square(), weights.lengths),
        "angles": Term.mean_of(
            (decoded.angles_radians.float() - torch.deg2rad(angles)).square(), weights.angles
        ),
        "frac_coords": Term.mean_of(coordinate_loss(decoded, target.frac_coords, kind), weights.frac_coords),
    }
    if decoded.element_logits is not None:
        entropy = F.cross_entropy(decoded.element_logits.float(), target.atomic_numbers, reduction="none")
        terms["atom_types"] = Term.mean_of(entropy, weights.atom_types)
    return terms


def vae_loss(
    vae: CrystalVAE,
    target: CrystalBatch,
    weights: LossWeights,
    *,
    encoder_input: CrystalBatch | None = None,
    coordinate_kind: CoordinateLoss = CoordinateLoss.WRAPPED,
    alignment: nn.Module | None = None,
    latent_noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> LossTerms:
    """Loss of one batch with one posterior sample.

    Args:
        vae: the network.
        target: the clean, augmented crystals.
        weights: of the terms.
        encoder_input: what the encoder sees when it is not the target (a corrupted copy).
        coordinate_kind: how the linear head's errors are measured.
        alignment: map from a latent to the width of `target.atom_features`, for the alignment term.
        latent_noise: standard deviation of noise on the latents that the decoder sees, as a fraction of the
            spread of the batch's posterior means per channel. A diffusion model errs by such amounts; a larger
            scale of the latents is no way around it, which it is around a fixed posterior variance.
        generator: source of the posterior's noise.

    Raises:
        ValueError: when an alignment is asked for and the batch has no per-atom features.
    """
    posterior = vae.encode(target if encoder_input is None else encoder_input)
    latent = posterior.sample(generator)
    if latent_noise > 0:
        spread = posterior.mean.detach().std(dim=0, correction=0)
        noise = torch.randn(latent.shape, generator=generator, device=latent.device, dtype=latent.dtype)
        latent = latent + latent_noise * spread * noise
    decoded = vae.decode(latent, target.num_atoms, target.atomic_numbers)
    terms = reconstruction_terms(decoded, target, weights, coordinate_kind)
    terms["kl"] = Term.mean_of(posterior.kl().float().sum(dim=-1), weights.kl)
    if alignment is not None:
        if target.atom_features is None:
            raise ValueError("loss_weights.fa needs per-atom features, got none; set data.atom_features_path")
        terms["fa"] = Term.mean_of(alignment_loss(alignment(latent), target.atom_features), weights.fa)
    return LossTerms(terms=terms)
