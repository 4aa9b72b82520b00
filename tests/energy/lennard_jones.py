"""A Lennard-Jones crystal as a potential: analytic, fast, and with a minimum that everybody knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentite.crystal import CrystalBatch
from latentite.energy.neighbours import neighbour_list
from latentite.energy.potential import EnergyForces, PotentialCard, TheoryLevel


@dataclass(frozen=True, kw_only=True)
class LennardJones:
    """4 eps ((s/r)^12 - (s/r)^6), shifted to 0 at the cut-off, the same for all pairs of elements."""

    sigma: float = 2.5
    epsilon: float = 0.2
    cutoff: float = 6.0
    elements: frozenset[int] = frozenset({10, 18, 29, 36})

    @property
    def card(self) -> PotentialCard:
        return PotentialCard(
            name="Lennard-Jones",
            version="1",
            sha256=None,
            elements=self.elements,
            theory=TheoryLevel(functional="Lennard-Jones", is_corrected=False),
            cutoff=self.cutoff,
        )

    def compute(self, crystals: CrystalBatch) -> EnergyForces:
        pairs = neighbour_list(crystals, self.cutoff)
        first, second, image = (torch.from_numpy(a) for a in (pairs.first, pairs.second, pairs.image))
        index = crystals.crystal_index
        strain = torch.zeros(len(crystals), 3, 3, dtype=torch.float64, requires_grad=True)
        lattice = crystals.lattice.double() @ (torch.eye(3, dtype=torch.float64) + strain)
        cart = torch.einsum("ai,aij->aj", crystals.frac_coords.double(), lattice[index])
        vectors = (
            cart[second] + torch.einsum("pi,pij->pj", image.double(), lattice[index[first]]) - cart[first]
        )
        power = (self.sigma**2 / (vectors**2).sum(-1)) ** 3
        shift = (self.sigma / self.cutoff) ** 6
        each = 2 * self.epsilon * ((power**2 - power) - (shift**2 - shift))  # every pair is listed twice
        energy = torch.zeros(len(crystals), dtype=torch.float64).index_add(0, index[first], each)
        by_cart, by_strain = torch.autograd.grad(energy.sum(), [cart, strain])
        stress = by_strain / crystals.volume.double()[:, None, None]
        dtype = crystals.frac_coords.dtype
        return EnergyForces(
            energy=energy.detach().to(dtype),
            forces=-by_cart.to(dtype),
            stress=(0.5 * (stress + stress.transpose(1, 2))).to(dtype),
        )
