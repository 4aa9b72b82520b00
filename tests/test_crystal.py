"""`CrystalBatch`: packing, selecting and both ways to pymatgen and ASE."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays


def test_structures_survive_the_round_trip(crystals: CrystalBatch) -> None:
    structures = crystals.to_structures()
    again = CrystalBatch.from_structures(structures)
    torch.testing.assert_close(again.lattice, crystals.lattice)
    torch.testing.assert_close(again.frac_coords, crystals.frac_coords)
    assert again.atomic_numbers.equal(crystals.atomic_numbers)
    assert again.num_atoms.equal(crystals.num_atoms)


def test_atoms_survive_the_round_trip(crystals: CrystalBatch) -> None:
    again = CrystalBatch.from_arrays(
        [
            CrystalArrays(atoms.numbers, atoms.get_scaled_positions(wrap=False), np.asarray(atoms.cell))
            for atoms in crystals.to_atoms()
        ]
    )
    torch.testing.assert_close(again.cart_coords, crystals.cart_coords, atol=1e-4, rtol=1e-5)
    assert again.atomic_numbers.equal(crystals.atomic_numbers)


def test_derived_quantities_equal_pymatgen(crystals: CrystalBatch) -> None:
    structures = crystals.to_structures()
    np.testing.assert_allclose(crystals.volume, [s.volume for s in structures], rtol=1e-4)
    np.testing.assert_allclose(crystals.lengths, [s.lattice.abc for s in structures], rtol=1e-5)
    np.testing.assert_allclose(crystals.angles, [s.lattice.angles for s in structures], rtol=1e-4)
    cart = np.concatenate([s.cart_coords for s in structures])
    np.testing.assert_allclose(crystals.cart_coords, cart, atol=1e-4)


def test_select_equals_a_loop_with_repeats_and_any_order(crystals: CrystalBatch) -> None:
    features = torch.arange(crystals.total_atoms).float().unsqueeze(-1)
    batch = replace(crystals, properties={"x": torch.arange(len(crystals)).float()}, atom_features=features)
    index = torch.tensor([5, 0, 5, 15, 3])
    chosen = batch.select(index)
    arrays = batch.to_arrays()
    for (numbers, coords, lattice), i in zip(map(astuple, chosen.to_arrays()), index.tolist(), strict=True):
        np.testing.assert_array_equal(numbers, arrays[i].atomic_numbers)
        np.testing.assert_array_equal(coords, arrays[i].frac_coords)
        np.testing.assert_array_equal(lattice, arrays[i].lattice)
    assert chosen.properties["x"].tolist() == [5.0, 0.0, 5.0, 15.0, 3.0]
    assert chosen.atom_features is not None
    first = chosen.atom_features[chosen.first_atom].squeeze(-1).long()
    assert first.equal(batch.first_atom[index])


def test_concatenate_undoes_a_split(crystals: CrystalBatch) -> None:
    parts = [crystals.select(torch.arange(0, 7)), crystals.select(torch.arange(7, 16))]
    whole = CrystalBatch.concatenate(parts)
    assert whole.frac_coords.equal(crystals.frac_coords)
    assert whole.num_atoms.equal(crystals.num_atoms)


def test_token_index_counts_within_each_crystal() -> None:
    batch = CrystalBatch(
        atomic_numbers=torch.tensor([1, 2, 3]),
        frac_coords=torch.zeros(3, 3),
        lattice=torch.eye(3).repeat(2, 1, 1),
        num_atoms=torch.tensor([2, 1]),
    )
    assert batch.token_index.tolist() == [0, 1, 0]
    assert batch.crystal_index.tolist() == [0, 0, 1]


def test_partial_occupancies_are_refused_by_position() -> None:
    disordered = Structure(Lattice.cubic(4), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"structure 0 \(.*\) has partial occupancies"):
        CrystalBatch.from_structures([disordered])


def test_an_empty_list_is_an_empty_batch() -> None:
    assert len(CrystalBatch.from_structures([])) == 0
    assert CrystalBatch.from_structures([]).to_structures() == []
