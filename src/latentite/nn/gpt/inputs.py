"""Orbits of a batch in padded form, and the geometry that places are scored by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.nn.gpt.placement import PlacedCrystals, half_shell
from latentite.nn.gpt.tokens import covalent_radii_tensor
from latentite.symmetry.orbits import OrbitBatch, position_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedOrbits:
    """`OrbitBatch` with one row of orbits for each crystal; padding is 0."""

    space_group: Int[Tensor, " crystal"]
    cell: Float[Tensor, "crystal 6"]
    position: Int[Tensor, "crystal orbit"]
    element: Int[Tensor, "crystal orbit"]
    coords: Float[Tensor, "crystal orbit 3"]
    valid: Bool[Tensor, "crystal orbit"]

    @staticmethod
    def of(batch: OrbitBatch) -> PaddedOrbits:
        """All crystals of a batch."""
        num = batch.num_orbits
        valid = torch.arange(int(num.max()), device=num.device) < num.unsqueeze(-1)
        position = batch.position.new_zeros(valid.shape)
        element = batch.element.new_zeros(valid.shape)
        coords = batch.coords.new_zeros(*valid.shape, 3)
        position[valid], element[valid], coords[valid] = batch.position, batch.element, batch.coords
        return PaddedOrbits(
            space_group=batch.space_group,
            cell=batch.cell,
            position=position,
            element=element,
            coords=coords,
            valid=valid,
        )


def place_crystals(batch: OrbitBatch, reduction: Int[Tensor, "crystal 3 3"]) -> PlacedCrystals:
    """Cells and atoms of complete crystals, in the type in which networks are made."""
    dtype = torch.get_default_dtype()
    tables = position_tensors(batch.position.device)
    crystals = batch.to_crystals()
    change = reduction.to(torch.float64)
    to_reduced = torch.linalg.inv(change)  # fractional rows: f_reduced = f_primitive @ R^-1
    lattice = change @ crystals.lattice
    atom_crystal = crystals.crystal_index
    reduced = torch.einsum("ai,aij->aj", crystals.frac_coords, to_reduced[atom_crystal])
    num_images = tables.num_images[batch.position]
    place = (
        torch.arange(len(batch.position), device=batch.position.device)
        - batch.first_orbit[batch.crystal_index]
    )
    orbit = place.repeat_interleave(num_images)
    size = int(crystals.num_atoms.max())
    shape = (len(batch), size)
    slot = crystals.token_index
    coords = torch.zeros(*shape, 3, dtype=dtype, device=orbit.device)
    orbits = torch.full(shape, 10_000, dtype=torch.long, device=orbit.device)
    radius = torch.ones(shape, dtype=dtype, device=orbit.device)
    coords[atom_crystal, slot] = reduced.to(dtype)
    orbits[atom_crystal, slot] = orbit
    radius[atom_crystal, slot] = covalent_radii_tensor().to(orbit.device, dtype)[crystals.atomic_numbers]
    return PlacedCrystals(
        to_reduced=(tables.to_primitive[batch.space_group] @ to_reduced).to(dtype),
        lattice=lattice.to(dtype),
        shifts=(half_shell(orbit.device).double() @ lattice).to(dtype),
        coords=coords,
        orbit=orbits,
        radius=radius,
    )
