"""Lattice mathematics: pure functions on tensors, the ground floor of the package.

Conventions, kept everywhere: a lattice is a matrix whose rows are the cell vectors in Å (as in
pymatgen), fractional coordinates are row vectors, `cart = frac @ lattice`. Angles are in degrees at
public borders; functions that take or give radians say so in their name or docstring.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def lattice_from_parameters(
    lengths: Float[Tensor, "... 3"], angles: Float[Tensor, "... 3"]
) -> Float[Tensor, "... 3 3"]:
    """Right-handed lattice matrix from cell lengths (Å) and angles (degrees).

    Standard orientation of pymatgen's `Lattice.from_parameters`: c along z, a in the xz plane.
    Parameters that no cell can have (for example angles 150, 20, 20) give a clamped, flat cell rather
    than NaN, so that decoders stay finite; check `volume` to refuse them.
    """
    alpha, beta, gamma = torch.deg2rad(angles).unbind(-1)
    a, b, c = lengths.unbind(-1)
    cos_gamma_star = (alpha.cos() * beta.cos() - gamma.cos()) / (alpha.sin() * beta.sin())
    cos_gamma_star = cos_gamma_star.clamp(-1.0, 1.0)
    sin_gamma_star = (1.0 - cos_gamma_star**2).clamp(min=0.0).sqrt()
    zero = torch.zeros_like(a)
    vector_a = torch.stack([a * beta.sin(), zero, a * beta.cos()], dim=-1)
    vector_b = torch.stack(
        [-b * alpha.sin() * cos_gamma_star, b * alpha.sin() * sin_gamma_star, b * alpha.cos()], dim=-1
    )
    vector_c = torch.stack([zero, zero, c], dim=-1)
    return torch.stack([vector_a, vector_b, vector_c], dim=-2)


def parameters_from_lattice(
    lattice: Float[Tensor, "... 3 3"],
) -> tuple[Float[Tensor, "... 3"], Float[Tensor, "... 3"]]:
    """Cell lengths (Å) and angles alpha, beta, gamma (degrees) of a lattice matrix."""
    lengths = lattice.norm(dim=-1)
    first = lattice[..., [1, 0, 0], :]  # the pairs (b, c), (a, c), (a, b)
    second = lattice[..., [2, 2, 1], :]
    # atan2 of |cross| and dot stays accurate for angles near 0 and 180 degrees, where acos does not.
    cross = torch.linalg.cross(first, second, dim=-1).norm(dim=-1)
    dot = (first * second).sum(dim=-1)
    return lengths, torch.rad2deg(torch.atan2(cross, dot))


def volume(lattice: Float[Tensor, "... 3 3"]) -> Float[Tensor, "..."]:
    """Cell volume in Å^3, never negative."""
    a, b, c = lattice.unbind(-2)
    return (a * torch.linalg.cross(b, c, dim=-1)).sum(dim=-1).abs()


def wrap(frac_coords: Float[Tensor, "... 3"]) -> Float[Tensor, "... 3"]:
    """Fractional coordinates in [0, 1). A value of -1e-9, which floors to 1.0 in float32, becomes 0."""
    wrapped = frac_coords - frac_coords.floor()
    return torch.where(wrapped >= 1.0, torch.zeros_like(wrapped), wrapped)


def wrapped_difference(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Shortest signed difference `first - second` on the unit torus, in [-0.5, 0.5]."""
    difference = first - second
    return difference - difference.round()


def random_rotations(
    count: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Float[Tensor, "count 3 3"]:
    """Proper rotations, uniform with respect to the Haar measure on SO(3).

    A quaternion of four independent *normal* numbers, normalised, is uniform on the 3-sphere
    (Shoemake 1992); uniform numbers would put every axis into one octant.
    """
    quaternion = torch.randn(count, 4, generator=generator, device=device)
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def scaled_lengths(lengths: Float[Tensor, "crystal 3"], num_atoms: Tensor) -> Float[Tensor, "crystal 3"]:
    """Cell lengths over `num_atoms ** (1/3)` (Å per atom^(1/3)): nearly independent of the cell's size."""
    return lengths / num_atoms.to(lengths.dtype).pow(1.0 / 3.0).unsqueeze(-1)


def unscaled_lengths(scaled: Float[Tensor, "crystal 3"], num_atoms: Tensor) -> Float[Tensor, "crystal 3"]:
    """Inverse of `scaled_lengths`, in Å."""
    return scaled * num_atoms.to(scaled.dtype).pow(1.0 / 3.0).unsqueeze(-1)
