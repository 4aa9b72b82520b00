"""Distances of candidates for a place, and what the network makes of them.

Each candidate is a real point in the crystal. Its distances to all placed atoms and to its own images, in units of the
summed covalent radii, enter its score, with weights that the trunk makes for each pair of orbits: so the network sees a
clash, a bond length or a hole before it decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentite.nn.gpt.tokens import covalent_radii_tensor
from latentite.symmetry.orbits import position_tensors

NUM_BASIS = 12
FIRST, LAST = 0.5, 2.6
"""Range of the radial basis, in units of the summed covalent radii."""
FAR = 10.0
"""Scaled distance of what is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedCrystals:
    """Cells and atoms of crystals, as far as they are placed, in reduced primitive cells."""

    to_reduced: Float[Tensor, "crystal 3 3"]
    """Conventional fractional coordinates (rows) to those of the reduced primitive cell."""
    lattice: Float[Tensor, "crystal 3 3"]
    """Reduced primitive lattice, Å."""
    shifts: Float[Tensor, "crystal 14 3"]
    """Zero and 13 lattice vectors, with whose negatives they are all neighbouring cells; Å."""
    coords: Float[Tensor, "crystal atom 3"]
    """Of the atoms in the reduced cell."""
    orbit: Int[Tensor, "crystal atom"]
    """Place of each atom's orbit in its crystal; large for padding."""
    radius: Float[Tensor, "crystal atom"]
    """Covalent radius, Å."""

    @property
    def is_wide(self) -> Bool[Tensor, " crystal"]:
        """Reduced cells whose planes are over 6 Å apart: the nearest image of what is within 3 Å is in the own cell."""
        return (1 / torch.linalg.inv(self.lattice).norm(dim=1)).amin(-1) > 6.0


def half_shell(device: torch.device) -> Float[Tensor, "14 3"]:
    """Zero and one of each pair of opposite neighbouring cells."""
    steps = torch.tensor([-1.0, 0.0, 1.0], device=device)
    cells = torch.cartesian_prod(steps, steps, steps)
    return cells[13:]


def nearest(
    frac: Float[Tensor, "place pair 3"],
    lattice: Float[Tensor, "place 3 3"],
    shifts: Float[Tensor, "place 14 3"],
    *,
    is_wide: bool = False,
) -> Float[Tensor, "place pair"]:
    """Shortest distance between periodic images, of differences in fractional coordinates of a reduced cell; Å.

    Args:
        frac: differences.
        lattice: reduced, rows.
        shifts: of `half_shell`.
        is_wide: look at the image in the own cell alone. Where planes of the cell are at least w apart, no other
            image is nearer if the result is below w / 2.
    """
    cartesian = (frac - frac.round()) @ lattice
    if is_wide:
        return cartesian.square().sum(-1).clamp_(min=1e-8).sqrt_()
    # |d +- s|^2 = |d|^2 + |s|^2 +- 2 d.s: the nearer of both signs.
    along = (cartesian @ shifts.mT).abs_().mul_(-2.0).add_(shifts.square().sum(-1).unsqueeze(1))
    return (cartesian.square().sum(-1) + along.amin(-1)).clamp_(min=1e-8).sqrt_()


def radial_basis(scaled: Float[Tensor, "*pair"]) -> Float[Tensor, "*pair basis"]:
    """Gaussians on scaled distances: nothing of what is far, and all that is too near looks alike."""
    centres = torch.linspace(FIRST, LAST, NUM_BASIS, device=scaled.device)
    width = (LAST - FIRST) / (NUM_BASIS - 1)
    gaps = (scaled.clamp(min=FIRST) / width).unsqueeze(-1) - centres / width
    # Below -20 exp is nothing here, and where its result is a denormal number it takes eight times as long.
    return gaps.square_().neg_().clamp_(min=-20.0).exp_()


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceQuery:
    """Candidates for the places of orbits, one row each."""

    crystal: Int[Tensor, " place"]
    orbit: Int[Tensor, " place"]
    """Place of the orbit in its crystal."""
    position: Int[Tensor, " place"]
    """Row of the table of Wyckoff positions."""
    radius: Float[Tensor, " place"]
    coords: Float[Tensor, "place candidate 3"]
    """Free coordinates."""


def scaled_distances(
    query: PlaceQuery, placed: PlacedCrystals, num_atoms: int, num_images: int, *, is_wide: bool = False
) -> tuple[Float[Tensor, "place candidate atom"], Float[Tensor, "place candidate image"]]:
    """Distances over summed covalent radii, to atoms of orbits before and to the candidate's own images.

    Args:
        query: candidates.
        placed: atoms.
        num_atoms: of the placed atoms the first so many are looked at.
        num_images: own images besides the candidate itself, for which there is room; at least 1.
        is_wide: all cells are (see `PlacedCrystals.is_wide`).
    """
    tables = position_tensors(query.coords.device)
    dtype = query.coords.dtype
    crystal = query.crystal
    matrices = tables.image_matrix[query.position, : num_images + 1].to(dtype)
    offsets = tables.image_offset[query.position, : num_images + 1].to(dtype)
    # images [place candidate image 3], in the reduced cell
    images = torch.einsum("pmij,pcj->pcmi", matrices, query.coords) + offsets.unsqueeze(1)
    to_reduced = placed.to_reduced[crystal]
    images = images.flatten(1, 2) @ to_reduced
    images = images.unflatten(1, (-1, num_images + 1))
    point = images[:, :, :1]
    lattice, shifts = placed.lattice[crystal], placed.shifts[crystal]
    num_places, num_candidates = query.coords.shape[:2]

    own = nearest((images[:, :, 1:] - point).flatten(1, 2), lattice, shifts, is_wide=is_wide).view(
        num_places, num_candidates, -1
    )
    own = own / (2 * query.radius)[:, None, None]
    exists = torch.arange(1, num_images + 1, device=crystal.device) < tables.num_images[
        query.position
    ].unsqueeze(-1)
    own = torch.where(exists.unsqueeze(1), own, own.new_full((), FAR))

    others = placed.coords[crystal, :num_atoms].unsqueeze(1) - point
    away = nearest(others.flatten(1, 2), lattice, shifts, is_wide=is_wide).view(
        num_places, num_candidates, -1
    )
    away = away / (query.radius[:, None] + placed.radius[crystal, :num_atoms]).unsqueeze(1)
    is_placed = placed.orbit[crystal, :num_atoms] < query.orbit.unsqueeze(-1)
    return torch.where(is_placed.unsqueeze(1), away, away.new_full((), FAR)), own


@torch.no_grad()
def environment_distances(
    position: Int[Tensor, "crystal orbit"],
    element: Int[Tensor, "crystal orbit"],
    coords: Float[Tensor, "crystal orbit 3"],
    slots: Int[Tensor, " orbit"],
    placed: PlacedCrystals,
) -> Float[Tensor, "crystal orbit atom"]:
    """Scaled distances of the representatives of some orbits to the atoms of orbits up to each; `FAR` for others.

    Args:
        position: rows of the table of Wyckoff positions.
        element: atomic numbers.
        coords: free coordinates.
        slots: place of each orbit in its crystal.
        placed: all atoms.
    """
    tables = position_tensors(position.device)
    dtype = placed.coords.dtype
    point = torch.einsum("boij,boj->boi", tables.matrix[position].to(dtype), coords.to(dtype))
    point = (point + tables.offset[position].to(dtype)) @ placed.to_reduced
    gaps = placed.coords.unsqueeze(1) - point.unsqueeze(2)
    distance = nearest(gaps.flatten(1, 2), placed.lattice, placed.shifts).view(gaps.shape[:-1])
    radii = covalent_radii_tensor().to(point.device)[element]
    scaled = distance / (radii.unsqueeze(-1) + placed.radius.unsqueeze(1))
    known = placed.orbit.unsqueeze(1) <= slots.unsqueeze(-1)
    # An orbit's representative is the first of its atoms.
    first = torch.cat([torch.full_like(placed.orbit[:, :1], -1), placed.orbit[:, :-1]], dim=1) != placed.orbit
    is_self = first.unsqueeze(1) & (placed.orbit.unsqueeze(1) == slots.unsqueeze(-1))
    return torch.where(known & ~is_self, scaled, FAR)


class DistanceScore(nn.Module):
    """Score of candidates by their distances, with weights by pair of orbits."""

    def __init__(self, d_model: int, *, rank: int = 32, channels: int = 8, hidden: int = 32) -> None:
        super().__init__()
        self.channels = channels
        self.asking = nn.Linear(d_model, rank)
        self.asked = nn.Linear(d_model, rank)
        self.weights = nn.Linear(rank, NUM_BASIS * channels)
        self.own_weights = nn.Linear(d_model, NUM_BASIS * channels)
        self.from_trunk = nn.Linear(d_model, hidden)
        self.mix = nn.Linear(2 * channels + 2, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(
        self,
        hidden: Float[Tensor, "place channel"],
        neighbours: Float[Tensor, "place atom channel"],
        away: Float[Tensor, "place candidate atom"],
        own: Float[Tensor, "place candidate image"],
    ) -> Float[Tensor, "place candidate"]:
        """Scores.

        Args:
            hidden: of the trunk, for the orbit that is placed.
            neighbours: embedding of each placed atom's orbit.
            away: scaled distances to placed atoms.
            own: scaled distances to own images.
        """
        pair = self.asking(hidden).unsqueeze(1) * self.asked(neighbours)
        weights = self.weights(pair).unflatten(-1, (NUM_BASIS, self.channels))
        # [place candidate atom*basis] @ [place atom*basis channel]
        others = radial_basis(away).flatten(2) @ weights.flatten(1, 2)
        near = torch.cat([away.amin(-1, keepdim=True), own.amin(-1, keepdim=True)], dim=-1).clamp(FIRST, LAST)
        own_basis = radial_basis(own).sum(dim=2)
        own_weights = self.own_weights(hidden).unflatten(-1, (NUM_BASIS, self.channels))
        images = own_basis @ own_weights
        features = torch.cat([others, images, near], dim=-1)
        mixed = F.gelu(self.mix(features) + self.from_trunk(hidden).unsqueeze(1), approximate="tanh")
        return self.out(mixed).squeeze(-1)
