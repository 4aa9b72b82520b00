"""`CrystalBatch`: many crystals, packed atom by atom. The first file to read.

Every stage speaks this type: readers fill it, the VAE encodes it and decodes to it, the writers turn it into pymatgen
structures, ASE atoms and CIFs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite import lattice as lat
from latentite.crystal_arrays import CrystalArrays

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FIDELITY = "fidelity"
"""Property of rows whose labels are of several levels of theory: the position of theirs in the config's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrystalBatch:
    """Crystals packed atom by atom; nothing derivable is stored.

    The atoms of crystal 0 come first, then those of crystal 1, and so on. Change one with
    `dataclasses.replace`. `properties` holds one number per crystal and name, NaN where the label is missing.
    """

    atomic_numbers: Int[Tensor, " atom"]
    frac_coords: Float[Tensor, "atom 3"]
    lattice: Float[Tensor, "crystal 3 3"]
    """Row vectors, Å."""
    num_atoms: Int[Tensor, " crystal"]
    properties: dict[str, Float[Tensor, " crystal"]] = field(default_factory=dict)
    atom_features: Float[Tensor, "atom feature"] | None = None
    """Precomputed per-atom features (a foundation model's, for alignment); None where nobody asked for them."""

    def __len__(self) -> int:
        return self.num_atoms.shape[0]

    @property
    def total_atoms(self) -> int:
        """Atoms of all crystals together."""
        return self.atomic_numbers.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors, the same for all of them."""
        return self.frac_coords.device

    @property
    def crystal_index(self) -> Int[Tensor, " atom"]:
        """For each atom the crystal that it belongs to."""
        index = torch.arange(len(self), device=self.device)
        return index.repeat_interleave(self.num_atoms, output_size=self.total_atoms)

    @property
    def first_atom(self) -> Int[Tensor, " crystal"]:
        """Position of each crystal's first atom."""
        return self.num_atoms.cumsum(0) - self.num_atoms

    @property
    def token_index(self) -> Int[Tensor, " atom"]:
        """For each atom its place within its own crystal, from 0."""
        return torch.arange(self.total_atoms, device=self.device) - self.first_atom[self.crystal_index]

    @property
    def lengths(self) -> Float[Tensor, "crystal 3"]:
        """Å."""
        return lat.parameters_from_lattice(self.lattice)[0]

    @property
    def angles(self) -> Float[Tensor, "crystal 3"]:
        """Degrees."""
        return lat.parameters_from_lattice(self.lattice)[1]

    @property
    def volume(self) -> Float[Tensor, " crystal"]:
        """Å^3."""
        return lat.volume(self.lattice)

    @property
    def cart_coords(self) -> Float[Tensor, "atom 3"]:
        """Å."""
        return torch.einsum("ai,aij->aj", self.frac_coords, self.lattice[self.crystal_index])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> CrystalBatch:
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return CrystalBatch(
            atomic_numbers=move(self.atomic_numbers),
            frac_coords=move(self.frac_coords),
            lattice=move(self.lattice),
            num_atoms=move(self.num_atoms),
            properties={name: move(values) for name, values in self.properties.items()},
            atom_features=None if self.atom_features is None else move(self.atom_features),
        )

    def atoms_of(self, index: Int[Tensor, " selected"]) -> Int[Tensor, " atom"]:
        """Positions of the atoms of the crystals at the given positions, crystal by crystal."""
        num_atoms = self.num_atoms[index]
        total = int(num_atoms.sum())
        start = self.first_atom[index] - (num_atoms.cumsum(0) - num_atoms)
        return torch.arange(total, device=self.device) + start.repeat_interleave(num_atoms, output_size=total)

    def select(self, index: Int[Tensor, " selected"]) -> CrystalBatch:
        """The crystals at the given positions, in that order (repeats allowed), without a Python loop."""
        atoms = self.atoms_of(index)
        return CrystalBatch(
            atomic_numbers=self.atomic_numbers[atoms],
            frac_coords=self.frac_coords[atoms],
            lattice=self.lattice[index],
            num_atoms=self.num_atoms[index],
            properties={name: values[index] for name, values in self.properties.items()},
            atom_features=None if self.atom_features is None else self.atom_features[atoms],
        )

    @staticmethod
    def concatenate(batches: Sequence[CrystalBatch]) -> CrystalBatch:
        """One batch of all crystals in order.

        Raises:
            ValueError: for an empty sequence or batches whose property names differ.
        """
        if not batches:
            raise ValueError("CrystalBatch.concatenate needs at least one batch, got none")
        names = list(batches[0].properties)
        for batch in batches:
            if set(batch.properties) != set(names):
                raise ValueError(f"property names must agree, got {names} and {list(batch.properties)}")
        features = [b.atom_features for b in batches if b.atom_features is not None]
        if len(features) not in (0, len(batches)):
            raise ValueError("either all batches or none must have atom_features, got some")
        return CrystalBatch(
            atomic_numbers=torch.cat([b.atomic_numbers for b in batches]),
            frac_coords=torch.cat([b.frac_coords for b in batches]),
            lattice=torch.cat([b.lattice for b in batches]),
            num_atoms=torch.cat([b.num_atoms for b in batches]),
            properties={name: torch.cat([b.properties[name] for b in batches]) for name in names},
            atom_features=torch.cat(features) if features else None,
        )

    def with_properties(self, properties: Mapping[str, Tensor]) -> CrystalBatch:
        """The same crystals with other labels."""
        return replace(self, properties=dict(properties))

    @staticmethod
    def from_arrays(
        arrays: Sequence[CrystalArrays],
    ) -> CrystalBatch:
        """Pack crystals one after the other, rounded to float32."""
        if not arrays:
            return CrystalBatch(
                atomic_numbers=torch.zeros(0, dtype=torch.long),
                frac_coords=torch.zeros(0, 3),
                lattice=torch.zeros(0, 3, 3),
                num_atoms=torch.zeros(0, dtype=torch.long),
            )
        numbers = np.concatenate([crystal.atomic_numbers for crystal in arrays])
        coords = np.concatenate([crystal.frac_coords for crystal in arrays])
        lattice = np.stack([crystal.lattice for crystal in arrays])
        return CrystalBatch(
            atomic_numbers=torch.from_numpy(numbers.astype(np.int64)),
            frac_coords=torch.from_numpy(coords.astype(np.float32)),
            lattice=torch.from_numpy(lattice.astype(np.float32)),
            num_atoms=torch.tensor([crystal.num_atoms for crystal in arrays], dtype=torch.long),
        )

    @staticmethod
    def from_structures(structures: Sequence[Structure]) -> CrystalBatch:
        """Pack ordered pymatgen structures as they are (no change of cell, origin or atom order).

        Raises:
            ValueError: for a structure with partial occupancies, naming its position.
        """
        for position, structure in enumerate(structures):
            if not structure.is_ordered:
                raise ValueError(
                    f"structure {position} ({structure.composition.reduced_formula}) has partial occupancies; "
                    "order it first (pymatgen.transformations.OrderDisorderedStructureTransformation)"
                )
        return CrystalBatch.from_arrays(
            [CrystalArrays(np.array(s.atomic_numbers), s.frac_coords, s.lattice.matrix) for s in structures]
        )

    def to_arrays(self) -> list[CrystalArrays]:
        """Each crystal on the CPU, float64."""
        if len(self) == 0:
            return []
        splits = self.num_atoms.cumsum(0)[:-1].cpu().numpy()
        numbers = np.split(self.atomic_numbers.cpu().numpy(), splits)
        coords = np.split(self.frac_coords.detach().cpu().double().numpy(), splits)
        lattices = self.lattice.detach().cpu().double().numpy()
        return list(map(CrystalArrays, numbers, coords, lattices))

    def to_structures(self) -> list[Structure]:
        """One pymatgen `Structure` per crystal, atoms in order."""
        from pymatgen.core import Composition, Element, Lattice, Structure

        # One shared, immutable Composition per element: Structure would otherwise build one per atom.
        species = {
            int(z): Composition({Element.from_Z(int(z)): 1}) for z in self.atomic_numbers.unique().tolist()
        }
        return [
            Structure(
                Lattice(one.lattice), [species[z] for z in one.atomic_numbers.tolist()], one.frac_coords
            )
            for one in self.to_arrays()
        ]

    def to_atoms(self) -> list[Atoms]:
        """One periodic ASE `Atoms` per crystal."""
        from ase import Atoms

        return [
            Atoms(numbers=one.atomic_numbers, scaled_positions=one.frac_coords, cell=one.lattice, pbc=True)
            for one in self.to_arrays()
        ]
