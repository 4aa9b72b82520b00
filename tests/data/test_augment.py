"""Augmentation: one draw per crystal, and nothing that changes the crystal itself."""

from __future__ import annotations

import numpy as np
import torch
from pymatgen.core.structure_matcher import StructureMatcher

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.sampler import MASK_ELEMENT, AugmentationConfig, NoiseConfig, augment, corrupt


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmented_crystals_are_the_same_crystals(crystals: CrystalBatch) -> None:
    seen = augment(crystals, AugmentationConfig(), generator())
    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1, scale=False)
    for original, other in zip(crystals.to_structures(), seen.to_structures(), strict=True):
        assert matcher.fit(original, other)


def test_every_crystal_has_its_own_shift_and_rotation() -> None:
    """Regression: the systems before us drew one translation and one rotation for the whole batch."""
    count = 64
    batch = CrystalBatch(
        atomic_numbers=torch.ones(count, dtype=torch.long),
        frac_coords=torch.zeros(count, 3),
        lattice=torch.eye(3).repeat(count, 1, 1),
        num_atoms=torch.ones(count, dtype=torch.long),
    )
    seen = augment(batch, AugmentationConfig(), generator())
    assert len({tuple(row) for row in seen.frac_coords.tolist()}) == count
    assert len({tuple(row) for row in seen.lattice.flatten(1).tolist()}) == count


def test_a_batch_of_one_is_augmented() -> None:
    """Regression: a batch of one crashed the augmentation of Chemeleon2."""
    batch = CrystalBatch.from_arrays([CrystalArrays(np.array([3]), np.zeros((1, 3)), 3.0 * np.eye(3))])
    assert len(augment(batch, AugmentationConfig(), generator())) == 1


def test_atoms_of_one_crystal_move_together(crystals: CrystalBatch) -> None:
    seen = augment(crystals, AugmentationConfig(rotate=False), generator())
    shift = lat.wrapped_difference(seen.frac_coords, crystals.frac_coords)
    first = shift[crystals.first_atom][crystals.crystal_index]
    assert lat.wrapped_difference(shift, first).abs().max() < 1e-5
    assert seen.lattice.equal(crystals.lattice)


def test_switched_off_augmentation_changes_nothing(crystals: CrystalBatch) -> None:
    seen = augment(crystals, AugmentationConfig(translate=False, rotate=False), generator())
    assert seen.frac_coords.equal(crystals.frac_coords)
    assert seen.lattice.equal(crystals.lattice)


def test_corruption_masks_and_moves_the_stated_share_by_the_stated_length() -> None:
    count = 20_000
    batch = CrystalBatch(
        atomic_numbers=torch.full((count,), 8),
        frac_coords=torch.full((count, 3), 0.5),
        lattice=10.0 * torch.eye(3).repeat(count, 1, 1),
        num_atoms=torch.ones(count, dtype=torch.long),
    )
    seen, touched = corrupt(batch, NoiseConfig(ratio=0.3, corruption_scale=0.2), generator())
    assert abs(touched.float().mean().item() - 0.3) < 0.02
    assert (seen.atomic_numbers[touched] == MASK_ELEMENT).all()
    assert (seen.atomic_numbers[~touched] == 8).all()
    move = (seen.frac_coords - batch.frac_coords) * 10.0  # Å
    assert move[~touched].abs().max() == 0
    assert abs(move[touched].std().item() - 0.2) < 0.01


def test_the_draw_depends_on_the_generator_only(crystals: CrystalBatch) -> None:
    once, again = (augment(crystals, AugmentationConfig(), generator(7)) for _ in range(2))
    assert once.frac_coords.equal(again.frac_coords)
    assert once.lattice.equal(again.lattice)
