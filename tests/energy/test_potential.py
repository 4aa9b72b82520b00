"""The contract of potentials: a right one passes, and each kind of wrong one is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from lennard_jones import LennardJones
from small_crystals import argon

from latentite.crystal import CrystalBatch
from latentite.energy.neighbours import neighbour_list
from latentite.energy.potential import EnergyForces, PotentialCard, check_potential


def test_the_analytic_potential_keeps_the_contract() -> None:
    check_potential(LennardJones(), argon(), tolerance=1e-6)


@dataclass(frozen=True)
class Broken:
    """The analytic potential with something done to its answer."""

    spoil: Callable[[CrystalBatch, EnergyForces], EnergyForces]

    @property
    def card(self) -> PotentialCard:
        return LennardJones().card

    def compute(self, crystals: CrystalBatch) -> EnergyForces:
        return self.spoil(crystals, LennardJones().compute(crystals))


def _leaks(crystals: CrystalBatch, result: EnergyForces) -> EnergyForces:
    return replace(result, energy=result.energy + 0.01 * len(crystals) * crystals.num_atoms)


def _counts_from_the_first_atom(crystals: CrystalBatch, result: EnergyForces) -> EnergyForces:
    return replace(result, energy=result.energy + crystals.atomic_numbers[crystals.first_atom] * 0.01)


SPOILERS: dict[str, Callable[[CrystalBatch, EnergyForces], EnergyForces]] = {
    "forces and -dE/dx": lambda _, r: replace(r, forces=-r.forces),
    "stress and dE/dstrain": lambda _, r: replace(r, stress=r.stress * 160.2),
    "energy per atom in a supercell": lambda c, r: replace(r, energy=r.energy + 1.0),
    "alone and in a batch": _leaks,
    "energy must have shape": lambda _, r: replace(r, energy=r.energy[:1]),
    "forces must be finite": lambda _, r: replace(r, forces=r.forces * torch.nan),
    "reordering atoms": _counts_from_the_first_atom,
}


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("words", SPOILERS)
def test_a_broken_potential_is_caught(words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_potential(Broken(SPOILERS[words]), argon())


@dataclass(frozen=True)
class OtherEnergies(Broken):
    """Its shorter way to energies ends somewhere else."""

    def compute_energy(self, crystals: CrystalBatch) -> EnergyForces:
        result = self.compute(crystals)
        return replace(result, energy=result.energy + 0.01 * crystals.num_atoms)


def test_energies_alone_that_are_not_those_with_forces_are_caught() -> None:
    with pytest.raises(ValueError, match="alone and with forces"):
        check_potential(OtherEnergies(lambda _, result: result), argon())


def test_a_potential_that_writes_into_its_input_is_caught() -> None:
    def move(crystals: CrystalBatch, result: EnergyForces) -> EnergyForces:
        crystals.frac_coords.add_(0.1)
        return result

    with pytest.raises(ValueError, match="leave its input"):
        check_potential(Broken(move), argon())


def test_neighbours_are_those_of_all_images() -> None:
    crystals, cutoff = argon(), 5.0
    pairs = neighbour_list(crystals, cutoff)
    cart, lattices = crystals.cart_coords.numpy(), crystals.lattice.numpy()
    owner = crystals.crystal_index.numpy()
    found = {
        (i, j, *image) for i, j, image in zip(pairs.first, pairs.second, map(tuple, pairs.image), strict=True)
    }
    expected = {
        (i, j, *image)
        for i, j in product(range(len(cart)), repeat=2)
        for image in product(range(-4, 5), repeat=3)
        if owner[i] == owner[j] and (i != j or image != (0, 0, 0))
        if np.linalg.norm(cart[j] + np.array(image) @ lattices[owner[i]] - cart[i]) < cutoff
    }
    assert found == expected
    assert len(pairs.first) == len(found)
    assert pairs.num_pairs.sum() == len(found)
